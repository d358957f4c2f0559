"""What the explorer shows, written as SVG and HTML: quick to draw, and legible on light and on dark."""

import itertools
import math
from collections.abc import Iterable
from typing import Any, NamedTuple, TYPE_CHECKING

import numpy as np
from jaxtyping import Array
from numpy.typing import ArrayLike

if TYPE_CHECKING:
    from ._model import Outline, Phases, Picture, Sample, Settings

_BLUE, _ORANGE, _RED = "#4c8dd6", "#e0853a", "#d1495b"


_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


_BINS = 60


_Ticks = list[tuple[float, str]]


class _Frame(NamedTuple):
    """Axes: the ends of what is shown, and the size of the picture."""

    x: tuple[float, float]
    y: tuple[float, float]
    width: int
    height: int

    left, right, top, bottom = 52, 14, 12, 44

    def across(self, x: ArrayLike) -> Any:
        share = (np.asarray(x) - self.x[0]) / (self.x[1] - self.x[0])
        return self.left + share * (self.width - self.left - self.right)

    def down(self, y: ArrayLike) -> Any:
        share = (np.asarray(y) - self.y[0]) / (self.y[1] - self.y[0])
        return self.height - self.bottom - share * (self.height - self.top - self.bottom)

    def line(self, x: Array | np.ndarray, y: Array | np.ndarray, name: str, color: str) -> str:
        """A line through the points, broken where one is NaN."""
        x, y = self.across(x), self.down(y)
        runs = np.ma.clump_unmasked(np.ma.masked_invalid(x + y))
        points = (" ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x[run], y[run], strict=True)) for run in runs)
        style = f'fill="none" stroke="{color}" stroke-width="2" stroke-linejoin="round"'
        return "".join(f'<polyline class="{name}" points="{p}" {style}/>' for p in points)

    def box(self, x: tuple[float, float], y: tuple[float, float], name: str, color: str, opacity: float) -> str:
        (x0, x1), (y1, y0) = np.rint(self.across(x)), np.rint(self.down(y))  # so that neighbours meet
        shape = f'x="{x0:.0f}" y="{y0:.0f}" width="{x1 - x0:.0f}" height="{y1 - y0:.0f}"'
        return f'<rect class="{name}" {shape} fill="{color}" fill-opacity="{opacity:.2f}" {_CRISP}/>'

    def dot(self, x: float, y: float, name: str, color: str) -> str:
        return f'<circle class="{name}" cx="{self.across(x):.1f}" cy="{self.down(y):.1f}" r="5" fill="{color}"/>'

    def stem(self, x: float, share: float, text: str) -> str:
        """A line up to a share of the height, with a label."""
        height = self.y[0] + share * (self.y[1] - self.y[0])
        a, b = self.across(x), self.down(height)
        line = f'<line x1="{a:.1f}" x2="{a:.1f}" y1="{self.down(self.y[0]):.1f}" y2="{b:.1f}" stroke="{_ORANGE}"'
        side = "end" if a > 0.8 * self.width else "start"
        return line + ' stroke-width="2"/>' + self.dot(x, height, "atom", _ORANGE) + _text(a, b + 4, text, side, 9)

    def svg(self, parts: Iterable[str], x_ticks: _Ticks, y_ticks: _Ticks, x_label: str, y_label: str, name: str) -> str:
        inner = self.width - self.left - self.right, self.height - self.top - self.bottom
        floor, middle = self.height - self.bottom, self.left + inner[0] / 2
        clip = f'<clipPath id="{name}-frame"><rect x="{self.left}" y="{self.top - 6}" '
        clip += f'width="{inner[0]}" height="{inner[1] + 6}"/></clipPath>'
        marks = [f'<path d="M{self.left} {self.top}V{floor}H{self.width - self.right}" fill="none" {_FAINT}/>']
        for value, text in x_ticks:
            a = self.across(value)
            marks += [f'<path d="M{a:.1f} {floor}v5" {_FAINT}/>', _text(a, floor + 18, text, "middle")]
        for value, text in y_ticks:
            b = self.down(value)
            marks += [f'<path d="M{self.left} {b:.1f}h-5" {_FAINT}/>', _text(self.left - 8, b + 4, text, "end")]
        marks.append(_text(middle, self.height - 6, x_label, "middle"))
        turned = f'transform="rotate(-90 12 {self.top + inner[1] / 2})"'
        marks.append(f"<g {turned}>{_text(12, self.top + inner[1] / 2, y_label, 'middle')}</g>")
        body = f'{clip}<g clip-path="url(#{name}-frame)">{"".join(parts)}</g>{"".join(marks)}'
        size = f'viewBox="0 0 {self.width} {self.height}" style="width: 100%; max-width: {self.width}px"'
        return (
            f'<svg id="{name}" role="img" aria-label="{y_label} against {x_label}" {size} font-size="12">{body}</svg>'
        )


_CRISP = 'shape-rendering="crispEdges"'


_FAINT = 'stroke="currentColor" stroke-opacity="0.5"'


def _text(x: float, y: float, text: str, anchor: str, offset: float = 0) -> str:
    x += {"start": offset, "middle": 0, "end": -offset}[anchor]
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="currentColor">{text}</text>'


def density(picture: "Picture", sample: "Sample | None" = None) -> str:
    """The density of `log10` of the singular values, atoms as stems of a height that is their mass, over the
    histogram of a sample, if there is one.
    """
    x, y = np.asarray(picture.outline.x), picture.density
    pairs = zip(picture.outline.atoms.tolist(), picture.outline.masses.tolist(), strict=True)
    atoms = [(a, mass) for a, mass in pairs if mass > 1e-9]
    has_bulk = sum(mass for _, mass in atoms) < 1 - 1e-9
    ends = [float(e) for e in ([x[0], x[-1]] if has_bulk else []) + [a for a, _ in atoms] if math.isfinite(e)] or [0.0]
    frame_x = _rounded_out(min(ends), max(ends))
    bars = () if sample is None else _bars(sample, frame_x)
    top = max([_height(x, y) if has_bulk else 1.0, *(height for _, height in bars)])
    frame = _Frame(frame_x, (0, 1.1 * top), 760, 380)
    parts = [frame.box(ends, (0, height), "sampled", "currentColor", 0.25) for ends, height in bars if height]
    if has_bulk:
        parts.append(frame.line(x, np.minimum(y, 10 * top), "density", _BLUE))
    parts += [frame.stem(a, 0.9 * mass, f"mass {mass:.3g}") for a, mass in atoms]
    labels = "singular value s", "density of log₁₀ s"
    return frame.svg(parts, _decades(frame_x), _ticks(frame.y), *labels, "density")


def _rounded_out(low: float, high: float) -> tuple[float, float]:
    """Ends that stay where they are while the spectrum moves a little; at least a decade apart."""
    middle, reach = (low + high) / 2, max((high - low) / 2, 0.45)
    grain = 0.5 if reach < 3 else 2 ** math.floor(math.log2(reach)) / 2
    return math.floor((middle - reach - 0.02) / grain) * grain, math.ceil((middle + reach + 0.02) / grain) * grain


def _height(x: np.ndarray, y: np.ndarray) -> float:
    """The largest density, or less of one that diverges."""
    known = np.isfinite(y)
    if not known.any():
        return 1.0
    evenly = np.interp(np.linspace(x[0], x[-1], 400), x[known], y[known])
    return float(min(y[known].max(), 4 * np.quantile(evenly, 0.95), 1e6)) or 1.0


def _bars(sample: "Sample", ends: tuple[float, float]) -> list[tuple[tuple[float, float], float]]:
    counts, edges = np.histogram(sample.x, _BINS, ends)
    heights = counts / sample.number / np.diff(edges)
    return [((a, b), height) for a, b, height in zip(edges[:-1], edges[1:], heights.tolist(), strict=True)]


def _decades(ends: tuple[float, float]) -> _Ticks:
    """Ticks of a logarithmic axis."""
    low, high = math.ceil(ends[0] - 1e-9), math.floor(ends[1] + 1e-9)
    if ends[1] - ends[0] <= 3:
        values = [digit * 10.0**k for k in range(low - 1, high + 1) for digit in (1, 2, 5)]
        return [(math.log10(v), f"{v:g}") for v in values if ends[0] - 1e-9 <= math.log10(v) <= ends[1] + 1e-9]
    step = max(1, math.ceil((high - low) / 9))
    return [(k, "10" + str(k).translate(_SUPERSCRIPTS)) for k in range(low, high + 1) if k % step == 0]


def _ticks(ends: tuple[float, float]) -> _Ticks:
    span = ends[1] - ends[0]
    unit = 10.0 ** math.floor(math.log10(span / 3))
    step = next(unit * k for k in (1, 2, 5, 10) if span / (unit * k) <= 6)
    first, last = math.ceil(ends[0] / step - 1e-9), math.floor(ends[1] / step + 1e-9)
    return [(k * step, f"{k * step:.6g}") for k in range(first, last + 1)]


def phase_diagram(
    phases: "Phases", settings: "Settings", ends_w: tuple[float, float], ends_b: tuple[float, float]
) -> str:
    """Order blue, chaos red, the line between them, and where the network stands."""
    frame = _Frame(ends_w, ends_b, 380, 300)
    rows, columns = phases.log_chi.shape
    w, b = np.linspace(*ends_w, columns + 1), np.linspace(*ends_b, rows + 1)
    parts = [
        frame.box((w[first], w[last]), (b[row], b[row + 1]), "cell", _RED if level > 0 else _BLUE, 0.08 * abs(level))
        for row in range(rows)
        for first, last, level in _runs(np.clip(np.round(6 * phases.log_chi[row]), -7, 7))
    ]
    known = np.isfinite(phases.critical_sigma_w)
    if known.sum() == 1:  # of activations that know no scale
        parts.append(frame.dot(float(phases.critical_sigma_w[known][0]), 0, "critical", "currentColor"))
    else:
        parts.append(frame.line(phases.critical_sigma_w, phases.critical_sigma_b, "critical", "currentColor"))
    here = frame.dot(settings.sigma_w, settings.sigma_b, "here", _ORANGE)
    parts.append(here.replace("/>", ' stroke="currentColor" stroke-width="1.5"/>'))
    return frame.svg(parts, _ticks(ends_w), _ticks(ends_b), "sigma_w", "sigma_b", "phases")


def _runs(levels: np.ndarray) -> list[tuple[int, int, float]]:
    """Neighbours of one level that is not 0, as one: the fewer boxes, the faster the page."""
    starts = [0, *(np.flatnonzero(np.diff(levels)) + 1).tolist(), levels.size]
    return [(a, b, float(levels[a])) for a, b in itertools.pairwise(starts) if levels[a]]


def numbers(picture: "Picture", of_blocks: bool = False) -> str:
    """A table of the spectrum's numbers and those of the mean field."""
    o = picture.outline
    lower, upper = (float(e) for e in o.log_edges)
    zero, missing = float(o.mass_at_zero), int(np.isnan(picture.density).sum())
    rows = [
        ("smallest singular value", "0: the bulk reaches it" if lower == -math.inf else _certified(10**lower)),
        ("largest", _certified(10**upper)),
        ("condition number", "∞" if lower == -math.inf else _certified(10 ** (upper - lower))),
        ("share of zeros", f"{zero:.4g}"),
        ("isometry, mean of log²", _certified(float(o.isometry))),
        ("density", "certified" if not missing else f"not certified here at {missing} of {o.x.size} points"),
        ("&nbsp;", ""),
        *(_of_stream(o) if of_blocks else _of_layers(o)),
    ]
    cells = "".join(f'<tr><td>{name}</td><td style="padding-left: 1.5em">{value}</td></tr>' for name, value in rows)
    return f'<table id="numbers" style="font-size: 14px; line-height: 1.5">{cells}</table>'


def _of_stream(o: "Outline") -> list[tuple[str, str]]:
    return [
        ("mean square of the stream", f"{o.q[0]:.4g}"),
        ("behind the last block", f"{o.q[1]:.4g}"),
        ("growth χ of the last block", f"{o.chi:.4g}"),
    ]


def _of_layers(o: "Outline") -> list[tuple[str, str]]:
    return [
        ("variance q, first layer", f"{o.q[0]:.4g}"),
        ("last layer", f"{o.q[1]:.4g}"),
        ("slope χ, last hidden layer", "no hidden layer" if np.isnan(o.chi) else f"{o.chi:.4g}"),
        ("fixed point q*", "none: q grows, or stays" if np.isnan(o.fixed_q) else f"{o.fixed_q:.4g}"),
        ("χ there", f"{o.fixed_chi:.4g}"),
        ("depth scale 1 / |log χ|", _depth_scale(float(o.fixed_chi))),
        ("stability χ_q there", f"{o.fixed_chi_q:.4g}" + (", unstable" if o.fixed_chi_q > 1 + 1e-3 else "")),
        ("depth scale of variances", _depth_scale(abs(float(o.fixed_chi_q)))),
    ]


def _certified(value: float) -> str:
    return "not certified here" if math.isnan(value) else f"{value:.5g}"


def _depth_scale(chi: float) -> str:
    rate = abs(math.log(chi)) if chi > 0 else math.inf
    return "∞" if rate < 1e-12 else f"{1 / rate:.3g} layers"
