"""Principal components of a tap: how much they hold, what a step along one does, and how well
the network answers with some of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from matplotlib.figure import Figure

from pose_jax.report import analysis_panels as panels
from pose_jax.report import drawings
from pose_jax.report.analysis_panels import SMALL, TEXT, WIDTH
from pose_jax.report.influence_drawings import Estimate
from pose_jax.report.plotting import INK, LOWERS, RAISES, new_figure

DECODED = {
    "own_skips": "own skips",
    "skips_closed": "skips closed",
}
_TILE, _PAPER = 168, 250


def spectrum(found: Mapping[str, Any]) -> Figure:
    """Share of the variance per component, and the sum with marks at 95 and 99 %."""
    shares, cumulative = (np.asarray(found[k], float) for k in ("shares", "cumulative"))
    figure = new_figure(WIDTH, 5.0)
    axes: Any = figure.subplots(2, 1)
    above = shares > 0
    axes[0].plot(np.flatnonzero(above) + 1, shares[above], ".-", color=LOWERS, ms=4)
    axes[0].set(xscale="log", yscale="log")
    axes[1].plot(np.arange(1, len(cumulative) + 1), cumulative, color=LOWERS, lw=1.6)
    axes[1].set_ylim(0, 1.02)
    for level, key, mark, lower in (
        (0.95, "components_for_95", "o", -34), (0.99, "components_for_99", "D", -16)
    ):  # fmt: skip
        count = found.get(key)
        if count is None or count > len(cumulative):
            continue
        axes[1].plot([count, count], [0, level], ":", color=INK, lw=1)
        axes[1].plot([count], [level], mark, color=RAISES, ms=6.5, gid=key)
        axes[1].annotate(
            f"{level:.0%}: {count:,}", (count, level),
            (8 if count < len(cumulative) / 2 else -8, lower),
            ha="left" if count < len(cumulative) / 2 else "right",
            textcoords="offset points", fontsize=SMALL,
        )  # fmt: skip
    for side, label in zip(axes, ("share of the variance", "sum of the shares")):
        panels.tidy(side, grid="both")
        side.set_ylabel(label, fontsize=SMALL)
        side.set_xlabel("principal component (log scale)" if side is axes[0] else
                        "first components", fontsize=SMALL)  # fmt: skip
    return figure


def walk(
    strips: Mapping[str, Float[np.ndarray, "c k 2"]],
    peaks: Mapping[str, Float[np.ndarray, "c k"]],
    visible: Int[np.ndarray, "c k"],
    same: Bool[np.ndarray, "c"],
    steps: Sequence[float],
    size: tuple[int, int],
    skeleton: str,
    title: str,
) -> Figure:
    """One component: a column per step, a strip per reading, skeletons in the crop's frame.

    Args:
      strips: name -> joints in crop pixels; the first is the nearest real person.
      peaks: name -> opacity 0.15..1 of a strip that the network decoded.
      visible: labels of the nearest people. same: whose nearest person is the mean's.
      size: height and width of the crop.
    """
    figure = new_figure(WIDTH, 0.6 + 0.84 * len(strips))
    axes: Any = figure.subplots(len(strips), len(steps), squeeze=False)
    for line, (name, points) in zip(axes, strips.items()):
        for column, side in enumerate(line):
            side.imshow(
                box(
                    points[column], size, skeleton,
                    peaks[name][column] if name in peaks else None,
                    None if name in peaks else visible[column],
                ),
                gid=f"{name}-{column}",
            )  # fmt: skip
            side.set(xticks=[], yticks=[])
            for spine in side.spines.values():
                spine.set(color="0.75", linewidth=0.8)
        line[0].set_ylabel(name, fontsize=SMALL - 1)
    for column, step in enumerate(steps):
        axes[0, column].set_title(_step(step), fontsize=SMALL)
        if same[column]:
            axes[0, column].set_xlabel("same", fontsize=8.5, labelpad=1, gid="same")
    figure.suptitle(title, fontsize=TEXT)
    return figure


def _step(step: float) -> str:
    return "mean" if step == 0 else f"{step:+g} sd".replace("-", "−")


def box(
    points: Float[np.ndarray, "k 2"],
    size: tuple[int, int],
    skeleton: str,
    opacity: Float[np.ndarray, "k"] | None = None,
    visible: Int[np.ndarray, "k"] | None = None,
) -> UInt8[np.ndarray, "y x 3"]:
    """A skeleton on light paper in the crop's frame (height, width)."""
    scale = _TILE / max(size)
    paper = np.full(
        (round(size[0] * scale), round(size[1] * scale), 3), _PAPER, np.uint8
    )
    return drawings.draw_pose(
        paper,
        ((points + 0.5) * scale - 0.5)[None],
        skeleton,
        scores=None if opacity is None else opacity[None],
        visible=None if visible is None else visible[None],
        thickness=4,
    )


def displacement(found: Mapping[str, Any]) -> Figure:
    """Mean way of a joint per unit step, with its own skips and with skips closed."""
    components = found["components"]
    present = [name for name in DECODED if name in found]
    figure = new_figure(WIDTH, 1.2 + 0.36 * len(components))
    axes: Any = figure.subplots()
    for number, name in enumerate(present):
        shift = panels.spread(len(present), 0.28)[number]
        for y, entry in enumerate(found[name]):
            value = panels.estimate(entry)
            scaled = Estimate(*(100 * part for part in value))
            panels.point(axes, scaled, y + shift, number, hollow=number == 1)
        panels.name_point(axes, DECODED[name], number, hollow=number == 1)
    panels.tidy(axes)
    panels.rows(axes, [f"component {n}" for n in components])
    axes.set_xlim(left=0)
    axes.set_xlabel(
        "joints move by, % of the crop's side per unit step", fontsize=SMALL
    )
    panels.legend(figure, axes)
    return figure


def projection(found: Mapping[str, Any]) -> Figure:
    """PCK from the first r components alone, and without them; the whole as a line."""
    present = [name for name in DECODED if name in found]
    ranks = found["ranks"]
    figure = new_figure(WIDTH, 0.7 + 2.5 * len(present))
    axes: Any = figure.subplots(len(present), 1, sharex=True, squeeze=False)[:, 0]
    for side, name in zip(axes, present):
        entry = found[name]
        side.axhline(entry["whole"], color=INK, lw=1, ls="--", label="untouched")
        for number, (field, label) in enumerate(
            (("only", "first r components only"), ("without", "without the first r"))
        ):
            values = [around(e, entry["whole"]) for e in entry[field]]
            side.plot(
                range(len(ranks)), [v.mean for v in values], panels.LINES[number],
                color=panels.colour(number), lw=1, zorder=1,
            )  # fmt: skip
            for x, value in enumerate(values):
                panels.point(
                    side, value, x, number, hollow=number == 1, upright=True, size=5
                )
            panels.name_point(side, label, number, hollow=number == 1)
        panels.tidy(side, grid="y", title=DECODED[name])
        side.set_ylim(bottom=0)
        side.set_ylabel("PCK", fontsize=SMALL)
    last = "all" if found.get("complete") else f"{ranks[-1]:,}"
    axes[-1].set_xticks(range(len(ranks)), [*(f"{r:,}" for r in ranks[:-1]), last])
    axes[-1].set_xlabel("r, number of principal components", fontsize=SMALL)
    panels.legend(figure, axes[0], columns=3)
    return figure


def around(entry: Mapping[str, Any], whole: float) -> Estimate:
    """PCK with the interval of its difference from the untouched network."""
    ends = [entry.get(k) for k in ("low", "high")]
    low, high = (whole + e if e is not None else np.nan for e in ends)
    return Estimate(entry["pck"], low, high)
