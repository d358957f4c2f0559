"""Refusing what would not fit, before it is allocated."""

import math
from pathlib import Path

import jax
import psutil

_CONTAINER = Path("/sys/fs/cgroup")


def available_memory() -> float:
    """Bytes that the default device has left."""
    stats = jax.devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats["bytes_in_use"]
    return min(psutil.virtual_memory().available, _left_to_container())


def _left_to_container() -> float:
    """What a container (cgroup v2) may still take; files it has read only count until others need the room."""
    try:
        limit, used = (int((_CONTAINER / name).read_text()) for name in ("memory.max", "memory.current"))
        stat = dict(line.split() for line in (_CONTAINER / "memory.stat").read_text().splitlines())
        return max(0, limit - used + int(stat["inactive_file"]))
    except (OSError, ValueError, KeyError):  # no container, or one without a limit
        return math.inf


def check_memory(what: str, num_bytes: float) -> None:
    """**Raises:** `MemoryError` if `num_bytes` are more than there are, with `what` should be smaller."""
    available = available_memory()
    if num_bytes > available:
        raise MemoryError(
            f"This takes about {num_bytes / 1e9:.3g} GB, and {available / 1e9:.3g} GB are left: {what} must be smaller."
        )
