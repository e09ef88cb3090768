"""Skip connections: what is left with gates closed, and what each gate is worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float, Int, UInt8
from matplotlib.figure import Figure

from pose_jax.report import analysis_panels as panels
from pose_jax.report import drawings
from pose_jax.report.analysis_panels import SMALL, TEXT, WIDTH
from pose_jax.report.plotting import INK, new_figure, words

MOST_SUBSETS = 32
"""Beyond so many only those with at most one gate open or at most one closed are drawn."""

STYLES = {
    "zero": "closed = zero",
    "mean": "closed = mean",
    "other": "closed = another's",
}
_TILE, _COLUMNS = 140, 2


def short(gates: Sequence[str]) -> list[str]:
    """Names without the stack where there is one stack only."""
    stacks = {gate.split("/")[0] for gate in gates}
    return [gate.split("/", 1)[-1] if len(stacks) == 1 else gate for gate in gates]


def subset_order(opened: Sequence[Sequence[bool]]) -> list[int]:
    """Numbers of the subsets by how many gates are open, then in their own order."""
    counts = [sum(map(bool, row)) for row in opened]
    order = sorted(range(len(opened)), key=lambda n: counts[n])
    if len(order) <= MOST_SUBSETS:
        return order
    gates = len(opened[0])
    return [n for n in order if counts[n] <= 1 or counts[n] >= gates - 1]


def subsets(record: Mapping[str, Any]) -> Figure:
    """PCK of the subsets of gates: a row per subset, a panel per style, a mark per split."""
    order, gates = subset_order(record["opened"]), short(record["gates"])
    splits, styles = record["splits"], styles_of(record)
    wide = 0.3 * len(gates)
    figure = new_figure(
        max(WIDTH, wide + 1.5 * len(styles)), 1.5 + 0.3 * max(len(order), 4)
    )
    axes: Any = figure.subplots(
        1, 1 + len(styles), sharey=True, width_ratios=[wide, *[1.6] * len(styles)]
    )
    _gate_marks(axes[0], [record["opened"][n] for n in order], gates)
    for side, style in zip(axes[1:], styles):
        for number, (shift, split) in enumerate(zip(_shifts(splits), splits.values())):
            found = split["styles"][style]["subsets"]
            for y, n in enumerate(order):
                value = panels.estimate(found[n]["pck"]["all"])
                panels.point(side, value, y + shift, number, hollow=number == 0)
        panels.tidy(side, title=STYLES.get(style, style))
        side.set_xlabel("PCK", fontsize=SMALL)
        side.tick_params(axis="y", length=0)
    panels.from_zero(*axes[1:])
    _split_legend(figure, axes[1], splits)
    return figure


def _gate_marks(axes, opened, gates) -> None:
    """A disc per gate: filled where it is open."""
    for y, row in enumerate(opened):
        for x, is_open in enumerate(row):
            axes.plot(
                [x], [y], "o", color=INK, markersize=8.5,
                markerfacecolor=INK if is_open else "white",
            )  # fmt: skip
    axes.set_xticks(range(len(gates)), gates, rotation=90, fontsize=SMALL)
    axes.set_yticks([])
    axes.set(xlim=(-0.6, len(gates) - 0.4), ylim=(len(opened) - 0.4, -0.6))
    axes.set_title("open: ●", fontsize=TEXT)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _shifts(splits) -> np.ndarray:
    return panels.spread(len(splits), 0.3)


def _split_legend(figure, axes, splits) -> None:
    for number, (name, split) in enumerate(splits.items()):
        label = f"{name} ({split['people']:,} people)"
        panels.name_point(axes, label, number, hollow=number == 0)
    panels.legend(figure, axes)


def styles_of(record: Mapping[str, Any]) -> list[str]:
    """Styles that every split has."""
    named = [list(split["styles"]) for split in record["splits"].values()]
    return [style for style in named[0] if all(style in others for others in named)]


def shapley(record: Mapping[str, Any], style: str) -> Figure:
    """Dots with intervals: a row per joint and size class; panels for the skips' values, and
    first from where they start to where their sum leads."""
    splits, gates = record["splits"], record["gates"]
    first = next(iter(splits.values()))["styles"][style]
    parts = list(first["shapley_empty"])
    labels = [_part(name, record["classes"]) for name in parts]
    figure = new_figure(
        max(WIDTH, 1.6 + 1.05 * (len(gates) + 1)), 1.5 + 0.29 * len(parts)
    )
    axes: Any = figure.subplots(
        1, 1 + len(gates), sharey=True, width_ratios=[1.3, *[1] * len(gates)]
    )
    for side in axes[2:]:
        side.sharex(axes[1])
    for number, (shift, split) in enumerate(zip(_shifts(splits), splits.values())):
        found = split["styles"][style]
        for y, part in enumerate(parts):
            empty = panels.estimate(found["shapley_empty"].get(part))
            whole = panels.estimate(found["subsets"][-1]["pck"].get(part))
            _path(axes[0], empty.mean, whole.mean, y + shift, number)
            for side, gate in zip(axes[1:], gates):
                value = panels.estimate(found["shapley"][gate].get(part))
                panels.point(
                    side, value, y + shift, number, hollow=number == 0, size=4.5
                )
    panels.rows(axes[0], labels)
    for tick, part in zip(axes[0].get_yticklabels(), parts):
        tick.set_weight(
            "bold" if part == "all" or part in record["classes"] else "normal"
        )
    for side, title in zip(axes, ["none × to whole", *short(gates)]):
        panels.tidy(side, title=title)
        side.tick_params(axis="y", length=0)
        side.axhline(len(record["classes"]) + 0.5, color="0.7", linewidth=0.8)
    for side in axes[1:]:
        side.axvline(0, color=INK, linewidth=0.8)
    panels.from_zero(axes[0])
    axes[0].set_xlabel("PCK", fontsize=SMALL)
    axes[1].set_xlabel("share of PCK", fontsize=SMALL)
    _split_legend(figure, axes[1], splits)
    return figure


def _part(name: str, classes: Mapping[str, Sequence[str]]) -> str:
    if name == "all":
        return "all joints"
    return f"{name} joints" if name in classes else words(name)


def _path(axes, start: float, end: float, y: float, number: int) -> None:
    if np.isfinite([start, end]).all():
        ink = panels.colour(number)
        axes.plot([start, end], [y, y], color=ink, linewidth=1.2)
        axes.plot([start], [y], "x", color=ink, markersize=5)
        axes.plot(
            [end], [y], panels.MARKS[number], color=ink, markersize=4.5,
            markerfacecolor="white" if number == 0 else ink,
        )  # fmt: skip


def histogram(record: Mapping[str, Any]) -> Figure:
    """Share of people by their own heatmap PCK: all gates open (filled), all closed (hatched)."""
    splits, styles = record["splits"], styles_of(record)
    width = max(WIDTH, 2.9 * len(splits))
    figure = new_figure(width, 0.7 + 1.75 * len(styles))
    axes: Any = figure.subplots(
        len(styles), len(splits), sharex=True, sharey=True, squeeze=False
    )
    for line, style in zip(axes, styles):
        for side, (name, split) in zip(line, splits.items()):
            found = split["styles"][style]["histogram"]
            edges, on, off = (
                np.asarray(found[k], float) for k in ("edges", "on", "off")
            )
            for counts, look in (
                (on, dict(color="#56b4e9", edgecolor="white", label="all gates open")),
                (off, dict(facecolor="none", edgecolor=INK, hatch="////",
                           label="all gates closed")),
            ):  # fmt: skip
                share = counts / max(counts.sum(), 1)
                side.bar(edges[:-1], share, np.diff(edges), align="edge", **look)
            panels.tidy(side, grid="y", title=f"{name}, {STYLES.get(style, style)}")
            side.set_xlim(0, 1)
    for side in axes[-1]:
        side.set_xlabel("heatmap PCK of a person", fontsize=SMALL)
    for side in axes[:, 0]:
        side.set_ylabel("share of people", fontsize=SMALL)
    panels.legend(figure, axes[0, 0])
    return figure


def sheet(
    crops: UInt8[np.ndarray, "n h w 3"],
    on: Float[np.ndarray, "n k 2"],
    off: Float[np.ndarray, "n k 2"],
    true: Float[np.ndarray, "n k 2"],
    visible: Int[np.ndarray, "n k"],
    score: Float[np.ndarray, "n"],
    skeleton: str,
) -> UInt8[np.ndarray, "y x 3"]:
    """Pairs of crops: the answer with all gates open, and with all closed; truth in white.

    Raises:
      ValueError: nobody to draw.
    """
    images, titles = [], []
    scale = _TILE / max(crops.shape[1:3])
    for n, crop in enumerate(crops):
        shape = [max(1, round(side * scale)) for side in crop.shape[1::-1]]
        large = cv2.resize(crop, shape, interpolation=cv2.INTER_CUBIC)
        truth = _scaled(true[n], scale)[None]
        for points, title in ((on[n], f"open {score[n]:.2f}"), (off[n], "closed")):
            images.append(drawings.compare(
                large, _scaled(points, scale)[None], truth, skeleton,
                visible=visible[n][None], thickness=2,
            ))  # fmt: skip
            titles.append(title)
    return drawings.contact_sheet(
        images, columns=2 * _COLUMNS, tile=(_TILE, _TILE), titles=titles
    )


def _scaled(points: np.ndarray, scale: float) -> np.ndarray:
    """Pixel centres are integers before and after."""
    return (points + 0.5) * scale - 0.5
