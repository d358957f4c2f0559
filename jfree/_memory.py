"""Refusing what would not fit, before it is allocated."""

import jax
import psutil


def available_memory() -> int:
    """Bytes that the default device has left."""
    stats = jax.devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats["bytes_in_use"]
    return psutil.virtual_memory().available


def check_memory(what: str, num_bytes: float) -> None:
    """**Raises:** `MemoryError` if `num_bytes` are more than there are, with `what` should be smaller."""
    available = available_memory()
    if num_bytes > available:
        raise MemoryError(
            f"This takes about {num_bytes / 1e9:.3g} GB, and {available / 1e9:.3g} GB are left: {what} must be smaller."
        )
