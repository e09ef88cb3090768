"""Studies of explanations: interdependence with its tree, and what grouping costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from scipy.cluster import hierarchy

from pose_jax.report import influence_drawings, plotting
from pose_jax.report.plotting import INK, OKABE_ITO, new_figure, words

KINDS = {"gsv": "o", "owen": "s", "decoupled": "^"}
_TICKS = [d * 10**e for e in range(7) for d in (1, 2, 5)]


def interdependence(
    values: Float[np.ndarray, "k k"],
    linkage: Float[np.ndarray, "m 4"],
    names: Sequence[str],
    clusters: Sequence[Sequence[int]],
    cut: float,
) -> Figure:
    """Influence ordered by the tree of joints, found clusters framed; tree and cut above.

    Args:
      values: row: the joint that suffers; column: the joint that is hidden; NaN grey.
      linkage: SciPy's, heights are distances 1 - W / max W. cut: height where it is cut.
      clusters: found ones, numbers of joints.
    """
    k = len(names)
    tree: Any = hierarchy.dendrogram(linkage, no_plot=True)
    order = [int(i) for i in tree["leaves"]]
    owner = np.zeros(k, int)
    for number, members in enumerate(clusters):
        owner[list(members)] = number
    figure = new_figure(2.2 + 0.38 * k, 3.0 + 0.36 * k)
    axes: Any = figure.subplots(2, 1, height_ratios=(1.7, 0.36 * k))
    _tree(axes[0], tree, cut, k)
    _matrix(figure, axes[1], values, order, owner, names)
    return figure


def _tree(axes, tree, cut: float, k: int) -> None:
    # SciPy puts leaves at 5, 15, 25, ...; columns of the matrix are at 0, 1, 2, ...
    for x, y in zip(tree["icoord"], tree["dcoord"]):
        axes.plot((np.array(x) - 5) / 10, y, color=INK, linewidth=1.3)
    axes.axhline(cut, color=plotting.RAISES, linewidth=1.3, linestyle="--", gid="cut")
    axes.annotate(
        "cut", (1, cut), (3, 0), xycoords=("axes fraction", "data"), va="center",
        textcoords="offset points", color=plotting.RAISES, fontsize=9.5,
    )  # fmt: skip
    axes.set(xlim=(-0.5, k - 0.5), ylim=(-0.02, 1.05), xticks=[])
    axes.set_ylabel("distance", fontsize=9.5)
    axes.tick_params(axis="y", labelsize=8.5)
    plotting.bare(axes, "left")


def _matrix(figure, axes, values, order, owner, names) -> None:
    limit = influence_drawings.colour_limit(values, range(len(names)))
    picture = axes.imshow(
        np.ma.masked_invalid(values[np.ix_(order, order)]), cmap=plotting.DIVERGING,
        vmin=-limit, vmax=limit, aspect="auto",
    )  # fmt: skip
    # Clusters are contiguous along the leaves, so frames number them as they come.
    position = {c: n for n, c in enumerate(dict.fromkeys(owner[order].tolist()))}
    along = np.array([position[c] for c in owner[order].tolist()])
    influence_drawings.frame_clusters(axes, along, along)
    labels = [words(names[i]) for i in order]
    axes.set_xticks(range(len(names)), labels, rotation=90, fontsize=9.5)
    axes.set_yticks(range(len(names)), labels, fontsize=9.5)
    axes.tick_params(length=0)
    axes.set_xlabel("joint that is hidden", fontsize=10)
    axes.set_ylabel("joint that suffers", fontsize=10)
    plotting.bare(axes)
    bar = figure.colorbar(
        picture, ax=axes, extend="both", orientation="horizontal", shrink=0.7, aspect=40
    )
    bar.set_label("drop of similarity, in units of the joint's own patch", fontsize=9.5)
    bar.ax.tick_params(labelsize=8.5)


def grouping_error(clusterings: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Error against exact Shapley values over evaluations, sampling of the same budget beside.

    Args:
      clusterings: `{name: {"kinds": {kind: {"evaluations", "member_error": {"mean", "low",
        "high"}, "sampled_member_error": ..., "player_error": ...}}}}`.

    Raises:
      ValueError: no clustering.
    """
    if not clusterings:
        raise ValueError("no clustering to draw; leave the figure out")
    figure = new_figure(8.4, 4.9)
    axes: Any = figure.subplots(1, 2, sharey=True)
    for side, field, title in (
        (axes[0], "member_error", "members of the target's own cluster"),
        (axes[1], "player_error", "all players (Owen values)"),
    ):
        _errors(side, clusterings, field)
        side.set_title(title, fontsize=10.5)
        side.set_xlabel("forward passes per person (log scale)", fontsize=9.5)
    axes[0].set_ylabel("error / mean |exact Shapley value|", fontsize=9.5)
    _legend(figure, axes[0], clusterings)
    return figure


def _errors(axes, clusterings, field: str) -> None:
    colours = _colours(clusterings)
    for number, (colour, record) in enumerate(zip(colours, clusterings.values())):
        # Clusterings with as many passes would hide each other.
        shift = 1.03 ** (number - (len(colours) - 1) / 2)
        for kind, found in record.get("kinds", {}).items():
            if field not in found:
                continue
            place = found["evaluations"] * shift
            _point(axes, place, found.get(f"sampled_{field}") or {}, colour, "x")
            _point(axes, place, found[field], colour, KINDS.get(kind, "D"))
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    ticks = [t for t in _TICKS if low <= t <= high]
    axes.set_xticks(ticks, [f"{t:,}" for t in ticks])
    axes.set_xticks([], minor=True)
    axes.set_ylim(bottom=0)
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8.5)
    plotting.bare(axes, "left", "bottom")


def _colours(clusterings) -> list[str]:
    return [OKABE_ITO[i % len(OKABE_ITO)] for i in range(len(clusterings))]


def _point(axes, place, error: Mapping[str, Any], colour, mark) -> None:
    mean, low, high = plotting.numbers([error.get(k) for k in ("mean", "low", "high")])
    if not np.isfinite(mean):
        return
    if np.isfinite([low, high]).all():
        axes.plot([place, place], [low, high], color=colour, linewidth=1.2)
    axes.plot([place], [mean], mark, color=colour, markersize=7, markeredgecolor=(
        colour if mark == "x" else "white"
    ))  # fmt: skip


def _legend(figure, axes, clusterings) -> None:
    for colour, (name, record) in zip(_colours(clusterings), clusterings.items()):
        sizes = "+".join(map(str, record.get("sizes", ())))
        axes.plot([], [], "o", color=colour, label=f"{name} ({sizes})")
    for kind, mark in KINDS.items():
        axes.plot([], [], mark, color="0.3", label=kind)
    axes.plot([], [], "x", color="0.3", label="sampling, as many passes")
    handles = axes.get_legend_handles_labels()
    figure.legend(
        *handles, loc="outside lower center", ncols=3, fontsize=9, frameon=False
    )
