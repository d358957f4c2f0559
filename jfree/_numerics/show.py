"""Networks, spectra and results as short tables, in terminals and notebooks."""

import dataclasses
import functools
import html
import itertools
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
from jaxtyping import ArrayLike

from .arrays import is_concrete


class Table(NamedTuple):
    """Rows of text under a title."""

    title: str
    header: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()

    def __str__(self) -> str:
        cells = [self.header, *self.rows]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in cells if line]
        return "\n".join([self.title, *(f"  {line}" for line in lines)])

    def as_html(self) -> str:
        """For notebooks."""

        def row(tag: str, cells: Sequence[str]) -> str:
            return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"

        body = "".join(row("td", cells) for cells in self.rows)
        table = f"<table><thead>{row('th', self.header)}</thead><tbody>{body}</tbody></table>" if self.rows else ""
        return f"<div>{html.escape(self.title)}{table}</div>"


class Shown(eqx.Module):
    """Prints as a table; as any module while traced, or with axes over several of its kind."""

    def _table(self) -> Table | None:
        return None

    def _shown(self) -> Table | None:
        leaves = jax.tree.leaves(self)
        if not leaves or not all(isinstance(leaf, jax.Array | np.ndarray) and is_concrete(leaf) for leaf in leaves):
            return None
        try:
            return self._table()
        except Exception:  # parts of a network, as `eqx.partition` gives them, print as any module
            return None

    def __repr__(self) -> str:
        table = self._shown()
        return super().__repr__() if table is None else str(table)

    def _repr_html_(self) -> str | None:
        table = self._shown()
        return None if table is None else table.as_html()


def number(x: ArrayLike) -> str:
    """One number, or the least and the largest of several."""
    values = np.asarray(x)
    return f"{float(values):.4g}" if values.size == 1 else f"{values.min():.4g} to {values.max():.4g}"


def counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def name_of(module: eqx.Module, by_name: Mapping[str, Callable[[], eqx.Module]]) -> str:
    """The string that is short for it, or its class with what it was given."""
    mine = type(module), tuple(_values(module))
    for name, default in by_name.items():
        if _given(default) == mine:
            return name
    return f"{type(module).__name__}({', '.join(_values(module))})"


@functools.cache
def _given(default: Callable[[], eqx.Module]) -> tuple[type[eqx.Module], tuple[str, ...]]:
    """The class of what goes by a name, and what it was given."""
    plain = default()
    return type(plain), tuple(_values(plain))


def _values(module: eqx.Module) -> list[str]:
    def short(value: Any) -> str:
        numeric = isinstance(value, jax.Array | np.ndarray | float | int) and np.ndim(value) == 0
        if isinstance(value, eqx.Module):
            return type(value).__name__
        return number(value) if numeric else getattr(value, "__name__", "...")

    return [short(getattr(module, field.name)) for field in dataclasses.fields(module)]


def runs(rows: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    """Rows with their numbers, from 1, before them; neighbours that are alike in one."""
    found, last = [], 0
    for row, alike in itertools.groupby(map(tuple, rows)):
        first, last = last + 1, last + len(list(alike))
        found.append((str(first) if first == last else f"{first}-{last}", *row))
    return found


def is_interactive() -> bool:
    """Whether somebody sees a progress bar: in a terminal or a notebook."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules
