"""`jfree cache`: the compiled programs that are kept between runs."""

import dataclasses
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class CacheCommand:
    """Tells where compiled programs are kept between runs, how many there are, and their size.

    The environment variable JFREE_CACHE names another directory, or is off; JAX_COMPILATION_CACHE_DIR goes before it.
    """

    clear: bool = False
    """Remove them, those of other versions of JAX included."""

    def run(self) -> None:
        from .._numerics.cache import clear, directory, is_users, root_directory

        own, root = directory(), root_directory()
        if own is None or root is None or is_users():
            if self.clear:
                raise ValueError("`clear` needs a directory of jfree's own, neither JAX_COMPILATION_CACHE_DIR nor off.")
            print(_line(own) if own else "Compiled programs are not kept: JFREE_CACHE is off.")
            return
        for path in sorted({own, *root.glob("jax-*")}):
            if self.clear and path.is_dir():
                try:
                    clear(path)
                except OSError as error:
                    raise ValueError(f"`clear`: {path} cannot be emptied: {error}") from error
            print(_line(path))


def _line(path: Path) -> str:
    from .._numerics.cache import contents

    programs, num_bytes = contents(path)
    return f"{path}: {programs} programs, {num_bytes / 1e6:.1f} MB"
