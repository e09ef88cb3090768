"""What the figures of the analyses share: narrow, so that a phone can show them, and never
told apart by colour alone (mark, fill and line style say the same)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from pose_jax.report import plotting
from pose_jax.report.influence_drawings import Estimate
from pose_jax.report.plotting import OKABE_ITO

WIDTH = 5.8
"""Inches: text of 10 points is still 9 pixels high on a page 390 pixels wide."""

TEXT, SMALL = 10.5, 9.5
MARKS = "osD^vPX*"
LINES = ("-", "--", "-.", ":")


def estimate(record: Mapping[str, Any] | None) -> Estimate:
    """`{"value", "low", "high"}` of a JSON record; what is missing is NaN."""
    found = record or {}
    return Estimate(
        *plotting.numbers([found.get(k) for k in ("value", "low", "high")]).tolist()
    )


def colour(number: int) -> str:
    """One of seven hues, again from the front beyond."""
    return OKABE_ITO[number % len(OKABE_ITO)]


def point(
    axes: Any,
    value: Estimate,
    place: float,
    number: int,
    *,
    hollow: bool = False,
    upright: bool = False,
    size: float = 5.5,
) -> None:
    """An estimate with its interval: along x at height `place`, or upright at x = `place`."""
    if not np.isfinite(value.mean):
        return
    ink, mark = colour(number), MARKS[number % len(MARKS)]
    if np.isfinite([value.low, value.high]).all():
        ends, here = [value.low, value.high], [place, place]
        pair = (here, ends) if upright else (ends, here)
        axes.plot(*pair, color=ink, linewidth=1.3, zorder=2)
    at = (place, value.mean) if upright else (value.mean, place)
    axes.plot(
        [at[0]], [at[1]], mark, color=ink, markersize=size, zorder=3,
        markerfacecolor="white" if hollow else ink,
    )  # fmt: skip


def name_point(axes: Any, label: str, number: int, *, hollow: bool = False) -> None:
    """A line of the legend for `point`s of a number."""
    ink = colour(number)
    axes.plot(
        [], [], MARKS[number % len(MARKS)], color=ink, label=label, markersize=6,
        markerfacecolor="white" if hollow else ink,
    )  # fmt: skip


def legend(figure: Figure, axes: Any, columns: int = 2) -> None:
    """One legend for all panels, above them."""
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside upper center", ncols=columns,
        fontsize=SMALL, frameon=False, columnspacing=1.2, handletextpad=0.4,
    )  # fmt: skip


def tidy(axes: Any, *, grid: str = "x", title: str = "") -> None:
    """Grid behind, small ticks, only the spines that carry a scale."""
    axes.grid(axis=grid, color="0.92")
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=SMALL, length=2)
    if title:
        axes.set_title(title, fontsize=TEXT)
    plotting.bare(axes, "bottom", *(["left"] if grid != "x" else []))


def from_zero(*axes: Any) -> None:
    """The scale of x from 0 on, the same for all, with air for whole marks at both ends."""
    ends = [float(side.dataLim.x1) for side in axes]
    end = max([e for e in ends if np.isfinite(e) and e > 0], default=1.0)
    for side in axes:
        side.set_xlim(-0.03 * end, 1.05 * end)


def rows(axes: Any, labels: Sequence[str]) -> None:
    """Named rows from the top down."""
    axes.set_yticks(range(len(labels)), labels, fontsize=SMALL)
    axes.set_ylim(len(labels) - 0.4, -0.6)


def spread(count: int, height: float = 0.5) -> np.ndarray:
    """Offsets of `count` series within a row, so that none hides another."""
    if count == 1:
        return np.zeros(1)
    return np.linspace(-height / 2, height / 2, count)
