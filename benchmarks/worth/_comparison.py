"""One cell: an architecture and an optimiser, every start at its best rate, and how they rank."""

import time
import warnings
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from scipy.stats import mannwhitneyu

from . import _measured as measured, _starts as starts
from ._models import Architecture, Model
from ._starts import Problem, Start
from ._training import Data, Optimizer, Outcome, RATES, Run, train

Row = dict[str, Any]

SELECTION, FRESH = (0, 1), (2, 3, 4, 5, 6)  # seeds


def starts_of(arch: Architecture) -> dict[str, Start]:
    """By name; those of jfree are called so."""
    found: dict[str, Start] = {
        "He": partial(starts.gaussian, variance=2.0),
        "Glorot": starts.glorot,
        "LeCun": partial(starts.gaussian, variance=1.0),
        "orthogonal": starts.usual_orthogonal,
        "LSUV": measured.lsuv,
        "anyinit": starts.anyinit_gain,
        "AutoInit": partial(measured.autoinit, law="gaussian"),
        "GradInit": measured.gradinit,
        "MetaInit": measured.metainit,
    }
    if arch.family != "mlp":
        residual: dict[str, Start] = {
            "Fixup": starts.fixup,
            "ReZero": partial(starts.with_factor, factor=0.0),
            "SkipInit": partial(starts.with_factor, factor=arch.depth**-0.5),
        }
        return {"jfree": starts.tuned_residual, **found, **residual}
    found |= {
        "edge of chaos": partial(starts.edge_of_chaos, law="gaussian", q=1.0),
        "critical orthogonal": partial(starts.edge_of_chaos, law="orthogonal", q=0.1),
    }
    if arch.activation in starts.DKS_NAMES:
        name = "TAT" if arch.activation == "relu" else "DKS"
        found |= {f"{name}, {law}": partial(starts.shaped, law=law) for law in ("gaussian", "orthogonal")}
    if arch.activation != "relu":
        found["jfree, shape"] = starts.shaped_by_jfree
    found = {"jfree": _with("weights"), "jfree, biases": _with("biases"), **found}
    return found | ({"jfree, slope": _with("slope")} if arch.activation == "relu" else {})


def _with(what: Literal["weights", "biases", "slope"]) -> Start:
    return partial(starts.tuned, what=what)


class Drawn(NamedTuple):
    """Models by seed, and the seconds until the first of them, with compilation."""

    models: list[Model]
    seconds: float


def draw(arch: Architecture, data: Data, only: tuple[str, ...] | None = None) -> dict[str, Drawn]:
    problem = Problem(arch, data.x, data.y)
    found = {}
    for name, start in starts_of(arch).items():
        if only is not None and name not in only:
            continue
        began = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of jfree, of signals that fade, and of overflows in dks
            of = start(problem)
        first = _on_host(of(0))
        seconds = time.perf_counter() - began
        found[name] = Drawn([first, *(_on_host(of(seed)) for seed in (*SELECTION, *FRESH)[1:])], seconds)
    return found


def _on_host(model: Model) -> Model:
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), model)


def compare(
    arch: Architecture,
    optimizer: Optimizer,
    data: Data,
    drawn: dict[str, Drawn],
    steps: int,
    batch: int,
    num_rates: int,
) -> list[Row]:
    """A row per start, best first."""
    rates = RATES[optimizer][:: 2 if num_rates < len(RATES[optimizer]) else 1]
    fit = partial(train, arch, optimizer, data, steps=steps, batch=batch)
    runs = [Run(each.models[seed], rate, seed) for each in drawn.values() for rate in rates for seed in SELECTION]
    losses = np.array([outcome.capped for outcome in fit(runs)]).reshape(len(drawn), len(rates), len(SELECTION))
    medians = np.median(losses, axis=2)
    chosen = [float(rates[k]) for k in np.argmin(medians, axis=1)]
    runs = [
        Run(each.models[seed], rate, seed) for each, rate in zip(drawn.values(), chosen, strict=True) for seed in FRESH
    ]
    outcomes = fit(runs)
    groups = [outcomes[k : k + len(FRESH)] for k in range(0, len(outcomes), len(FRESH))]
    rows = [
        {"start": name}
        | _summary(group)
        | {"rate": rate, "rate_is_last": rate in (rates[0], rates[-1])}
        | {"selection_loss": float(selected), "init_s": each.seconds}
        for (name, each), group, rate, selected in zip(
            drawn.items(), groups, chosen, np.min(medians, axis=1), strict=True
        )
    ]
    return ranked(rows)


def _summary(group: list[Outcome]) -> Row:
    losses = [outcome.capped for outcome in group]
    tenths = [outcome.steps_to_tenth or np.inf for outcome in group]
    return {
        "loss": float(np.median(losses)),
        "low": min(losses),
        "high": max(losses),
        "accuracy": float(np.median([outcome.accuracy for outcome in group])),
        "steps_to_tenth": int(np.median(tenths)) if np.isfinite(np.median(tenths)) else None,
        "diverged": float(np.mean([outcome.diverged for outcome in group])),
        "losses": " ".join(f"{loss:.4g}" for loss in losses),
    }


def ranked(rows: list[Row]) -> list[Row]:
    """By median loss; tied with the best is what lies within its range, or is not told from it by a test at 5 %."""
    rows = sorted(rows, key=lambda row: row["loss"])
    best = rows[0]

    def tied(row: Row) -> bool:
        return bool(best["low"] <= row["loss"] <= best["high"] or _p_value(row, best) > 0.05)

    first = {"rank": 0, "tied": False}  # columns
    return [first | row | {"rank": k + 1, "tied": tied(row)} for k, row in enumerate(rows)]


def _p_value(one: Row, other: Row) -> float:
    """Mann and Whitney's."""
    ours, others = (np.array(row["losses"].split(), float) for row in (one, other))
    return float(mannwhitneyu(ours, others).pvalue)


def summary(tables: dict[str, list[Row]]) -> list[Row]:
    """By start, over all cells that have it, how often it is first and how often first or tied; of jfree's also the
    one that did best on the seeds that the rate was chosen with.
    """
    of_jfree = [_chosen(rows) for rows in tables.values()]
    names = dict.fromkeys(row["start"] for rows in tables.values() for row in rows)
    by_name = {name: [row for rows in tables.values() for row in rows if row["start"] == name] for name in names}
    rows = [_share(name, found) for name, found in {"jfree, chosen": of_jfree, **by_name}.items()]
    return sorted(rows, key=lambda row: (-row["first_or_tied"], row["mean_rank"]))


def _chosen(rows: list[Row]) -> Row:
    return min((row for row in rows if row["start"].startswith("jfree")), key=lambda row: row["selection_loss"])


def _share(name: str, rows: list[Row]) -> Row:
    return {
        "start": name,
        "cells": len(rows),
        "first": float(np.mean([row["rank"] == 1 for row in rows])),
        "first_or_tied": float(np.mean([row["tied"] for row in rows])),
        "mean_rank": float(np.mean([row["rank"] for row in rows])),
        "median_init_s": float(np.median([row["init_s"] for row in rows])),
    }
