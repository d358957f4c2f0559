"""The command line: `jfree spectrum`, `jfree tune`, `jfree check`, `jfree explore` and `jfree cache`."""

import contextlib
import io
import itertools
import re
import signal
import sys
import threading
from collections.abc import Sequence

try:
    import tyro
except ImportError as error:
    raise ImportError("The command line needs tyro: pip install 'jfree[cli]'.") from error

from ._cache import CacheCommand
from ._check import CheckCommand
from ._explore import ExploreCommand
from ._spectrum import SpectrumCommand
from ._tune import TuneCommand


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `jfree ARGV...`, in float64.

    **Arguments:** `argv`, without the program's name; by default those of the process.

    **Returns:** the exit code: 0, or 2 after one line on standard error for bad input.

    **Raises:** `SystemExit` after `--help`.
    """
    previous = signal.getsignal(signal.SIGTERM)
    in_main_thread = threading.current_thread() is threading.main_thread()
    if in_main_thread:  # as an exception, so that drafts of files are removed
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        command = _parse(sys.argv[1:] if argv is None else argv)
        import jax

        jax.config.update("jax_enable_x64", True)
        if not isinstance(command, CacheCommand):
            _keep_compiled()
        command.run()
    except (ValueError, ImportError, MemoryError) as error:
        print("jfree:", *str(error).split(), file=sys.stderr)
        return 2
    finally:
        if in_main_thread:
            signal.signal(signal.SIGTERM, previous)
    return 0


def _keep_compiled() -> None:
    from .._numerics.cache import switch_on

    try:
        switch_on()
    except OSError as error:
        print(f"jfree: compiled programs are not kept: {error}", file=sys.stderr)


def _parse(argv: Sequence[str]) -> SpectrumCommand | TuneCommand | CheckCommand | ExploreCommand | CacheCommand:
    """tyro, its boxed errors unpacked."""
    message = io.StringIO()
    commands = {
        "spectrum": SpectrumCommand,
        "tune": TuneCommand,
        "check": CheckCommand,
        "explore": ExploreCommand,
        "cache": CacheCommand,
    }
    config = (tyro.conf.OmitArgPrefixes, tyro.conf.DisallowNone, tyro.conf.FlagCreatePairsOff)
    try:
        with contextlib.redirect_stderr(message):
            return tyro.extras.subcommand_cli_from_dict(
                commands, prog="jfree", description="Free probability for deep networks.", args=argv, config=config
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        lines = [line.strip(" │") for line in re.sub(r"\x1b\[[0-9;]*m", "", message.getvalue()).splitlines()]
        text = itertools.takewhile(lambda line: not _is_rule(line), itertools.dropwhile(_is_rule, lines[1:]))
        raise ValueError(" ".join(text)) from None


def _is_rule(line: str) -> bool:
    return not line.strip("─-") and line != "-"
