"""Means over many people: influence matrix, what there is to share out, dots and whiskers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from pose_jax.report import plotting
from pose_jax.report.plotting import FAINT, INK, hue, new_figure, words


class Estimate(NamedTuple):
    """A mean with its 95 % interval (NaN where unknown)."""

    mean: float
    low: float
    high: float

    @property
    def clear(self) -> bool:
        """Whether the interval excludes 0."""
        return bool(self.low > 0 or self.high < 0)


class Block(NamedTuple):
    """Rows under one heading; one estimate per series."""

    heading: str
    rows: Sequence[tuple[str, Sequence[Estimate]]]


def influence_matrix(
    values: Float[np.ndarray, "k n"],
    *,
    row_names: Sequence[str],
    column_names: Sequence[str],
    row_cluster: Sequence[int],
    column_cluster: Sequence[int],
    own: Sequence[int],
    clear: Bool[np.ndarray, "k n"] | None = None,
    unit: str = "mean change of the score",
    title: str = "",
) -> Figure:
    """Rows are targets, columns are players, clusters framed; dots where the interval excludes 0.

    Args:
      values: NaN where nobody has both; drawn grey.
      row_cluster, column_cluster: cluster numbers; both axes are ordered by them.
      own: `[k]` the column that is the row's own region (-1: none); it does not set the
        colour scale, so that the rest stays visible.
      clear: entries that get a dot.
    """
    rows = np.argsort(np.asarray(row_cluster), kind="stable")
    columns = np.argsort(np.asarray(column_cluster), kind="stable")
    ordered = values[np.ix_(rows, columns)]
    limit = colour_limit(values, own)
    figure = new_figure(1.9 + 0.36 * len(columns), 1.6 + 0.34 * len(rows))
    axes = figure.subplots()
    picture = axes.imshow(
        np.ma.masked_invalid(ordered), cmap=plotting.DIVERGING, vmin=-limit, vmax=limit
    )
    if clear is not None:
        y, x = np.nonzero(clear[np.ix_(rows, columns)])
        dark = np.abs(ordered[y, x]) > 0.45 * limit
        colours = np.where(dark, "white", "black")
        axes.scatter(x, y, s=13, c=colours.tolist(), linewidths=0)
    frame_clusters(
        axes, np.asarray(row_cluster)[rows], np.asarray(column_cluster)[columns]
    )
    names = [words(str(column_names[i])) for i in columns]
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=9.5)
    axes.set_yticks(
        range(len(rows)), [words(str(row_names[i])) for i in rows], fontsize=9.5
    )
    axes.tick_params(length=0)
    axes.set_xlabel("player: the region that is shown or hidden", fontsize=10)
    axes.set_ylabel("target: the joint that is scored", fontsize=10)
    if title:
        axes.set_title(title, fontsize=11)
    plotting.bare(axes)
    bar = figure.colorbar(picture, ax=axes, extend="both", shrink=0.8, pad=0.02)
    bar.set_label(unit, fontsize=9.5)
    bar.ax.tick_params(labelsize=8.5)
    return figure


def colour_limit(values: Float[np.ndarray, "k n"], own: Sequence[int]) -> float:
    """The largest |value| of any player but the target's own region."""
    others = np.array(values, float)
    for row, column in enumerate(own):
        if column >= 0:
            others[row, column] = np.nan
    finite = np.abs(others[np.isfinite(others)])
    return float(finite.max(initial=0.0)) or 1e-6


def frame_clusters(axes: Any, rows: np.ndarray, columns: np.ndarray) -> None:
    """Frames blocks of one cluster; cluster numbers must be contiguous along each axis."""
    for cluster in np.unique(rows):
        y, x = np.flatnonzero(rows == cluster), np.flatnonzero(columns == cluster)
        if len(x):
            frame = Rectangle(
                (x[0] - 0.5, y[0] - 0.5), len(x), len(y), fill=False, edgecolor="black",
                linewidth=2.0, clip_on=False, gid="cluster",
            )  # fmt: skip
            axes.add_patch(frame)
    for values, line in ((rows, axes.axhline), (columns, axes.axvline)):
        for edge in np.flatnonzero(np.diff(values)):
            line(edge + 0.5, color="0.7", linewidth=0.6)


def gaps(
    names: Sequence[str],
    empty: Sequence[Estimate],
    full: Sequence[Estimate],
    gap: Sequence[Estimate],
    score: str,
) -> Figure:
    """Per joint: score of the context alone, of the whole picture, and their difference."""
    figure = new_figure(8.0, 1.3 + 0.29 * len(names))
    axes: Any = figure.subplots(1, 2, sharey=True, width_ratios=(1.25, 1))
    left, right = axes
    for y, (a, b, difference) in enumerate(zip(empty, full, gap)):
        _whisker(left, a, y - 0.13, "0.45", "o", hollow=True)
        _whisker(left, b, y + 0.13, INK, "o")
        colour = hue(difference.mean) if difference.clear else FAINT
        _whisker(right, difference, y, colour, "D")
    left.plot([], [], "o", color="0.45", markerfacecolor="white", label="context alone")
    left.plot([], [], "o", color=INK, label="whole picture")
    figure.legend(
        *left.get_legend_handles_labels(), loc="outside upper left", ncols=2, fontsize=9,
        frameon=False,
    )  # fmt: skip
    left.set_yticks(range(len(names)), [words(n) for n in names], fontsize=9.5)
    left.set_xlabel(f"score ({score})", fontsize=9.5)
    right.set_xlabel("difference v(all) − v(∅)", fontsize=9.5)
    right.axvline(0, color=INK, linewidth=0.8)
    left.set_ylim(len(names) - 0.4, -0.6)
    for side in (left, right):
        side.tick_params(axis="y", length=0)
        side.tick_params(axis="x", labelsize=8.5)
        side.grid(axis="x", color="0.92")
        side.set_axisbelow(True)
        plotting.bare(side, "bottom")
    return figure


def whisker_blocks(
    blocks: Sequence[Block], xlabel: str, series: Sequence[str] = ("",)
) -> Figure:
    """Dots with whiskers in rows under headings, in two columns that share the scale.

    With one series the colour is the sign, grey where the interval holds 0; with several it
    is the series.

    Raises:
      ValueError: no rows.
    """
    blocks = [block for block in blocks if block.rows]
    if not blocks:
        raise ValueError("no rows to draw; leave the figure out")
    lines = np.cumsum([len(block.rows) + 1 for block in blocks])
    first = int(np.searchsorted(lines, lines[-1] / 2)) + 1
    halves = [half for half in (blocks[:first], blocks[first:]) if half]
    tallest = max(sum(len(b.rows) + 1 for b in half) for half in halves)
    figure = new_figure(4.4 * len(halves), 1.0 + 0.205 * tallest)
    axes: Any = figure.subplots(1, len(halves), sharex=True, squeeze=False)
    for side, half in zip(axes[0], halves):
        _column(side, half, len(series))
        side.set_ylim(tallest - 0.3, -0.7)
        side.set_xlabel(xlabel, fontsize=9.5)
    if len(series) > 1:
        for number, name in enumerate(series):
            axes[0, 0].plot([], [], _MARKS[number], color=_COLOURS[number], label=name)
        handles = axes[0, 0].get_legend_handles_labels()
        figure.legend(
            *handles, loc="outside upper center", ncols=3, fontsize=9, frameon=False
        )
    return figure


_MARKS = "oDs"
_COLOURS = ("#000000", "#cc79a7", "#009e73")  # Orange and blue mean a sign.


def _column(axes, blocks: Sequence[Block], series: int) -> None:
    y, places, labels = 0, [], []
    for block in blocks:
        places.append(y)
        labels.append((words(block.heading), True))
        for name, estimates in block.rows:
            y += 1
            places.append(y)
            labels.append((words(name), False))
            for number, estimate in enumerate(estimates):
                shift = 0.0 if series == 1 else 0.24 * (number - (series - 1) / 2)
                colour = _COLOURS[number]
                if series == 1:
                    colour = hue(estimate.mean) if estimate.clear else FAINT
                _whisker(axes, estimate, y + shift, colour, _MARKS[number], size=4.5)
        y += 1
    axes.set_yticks(places, [text for text, _ in labels])
    for tick, (_, heading) in zip(axes.get_yticklabels(), labels):
        size, weight = (9.5, "bold") if heading else (8.5, "normal")
        tick.set(fontsize=size, weight=weight)
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.grid(axis="x", color="0.92")
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=8.5)
    plotting.bare(axes, "bottom")


def _whisker(axes, estimate: Estimate, y, colour, mark, *, hollow=False, size=6.0):
    if not np.isfinite(estimate.mean):
        return
    if np.isfinite([estimate.low, estimate.high]).all():
        axes.plot([estimate.low, estimate.high], [y, y], color=colour, linewidth=1.4)
    face = "white" if hollow else colour
    axes.plot(
        [estimate.mean], [y], mark, color=colour, markerfacecolor=face, markersize=size
    )
