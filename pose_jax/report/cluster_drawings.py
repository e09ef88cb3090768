"""What a tap groups together, and how much of it a network can lose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox, OffsetImage

from pose_jax.report import analysis_panels as panels
from pose_jax.report import drawings
from pose_jax.report.analysis_panels import SMALL, TEXT, WIDTH
from pose_jax.report.plotting import FAINT, INK, LOWERS, RAISES, new_figure, words

_THUMBNAIL = 0.062
"""Side of a thumbnail as a share of the picture's."""


def counts(
    found: Mapping[str, Mapping[str, Any]],
    references: Mapping[str, Mapping[int, float]],
) -> Figure:
    """Silhouette (and published ones), stability and people below zero against K."""
    ks = sorted(map(int, found))
    records = [found[str(k)] for k in ks]
    figure = new_figure(WIDTH, 6.4)
    axes: Any = figure.subplots(3, 1, sharex=True, height_ratios=(1.5, 1, 1))
    axes[0].plot(ks, [r["silhouette"] for r in records], "o-", color=LOWERS,
                 label="this network")  # fmt: skip
    for number, (name, values) in enumerate(references.items(), 1):
        axes[0].plot(
            list(values), list(values.values()), panels.LINES[number],
            marker=panels.MARKS[number], color=panels.colour(number),
            markerfacecolor="white", lw=1.2, label=name,
        )  # fmt: skip
    axes[0].axhline(0, color=INK, lw=0.8)
    axes[0].set_ylabel("silhouette", fontsize=SMALL)
    axes[1].plot(ks, [r.get("stability") for r in records], "o-", color=LOWERS)
    axes[1].set_ylabel("stability (ARI)", fontsize=SMALL)
    axes[1].set_ylim(0, 1.05)
    share = [r["below_zero"] / max(sum(r["sizes"]), 1) for r in records]
    axes[2].plot(ks, share, "o-", color=LOWERS)
    axes[2].set_ylabel("share below 0", fontsize=SMALL)
    axes[2].set_ylim(bottom=0)
    axes[2].set_xlabel("K, number of clusters", fontsize=SMALL)
    axes[2].set_xticks(sorted({*ks, *(k for r in references.values() for k in r)}))
    for side in axes:
        panels.tidy(side, grid="both")
    panels.legend(figure, axes[0], columns=1)
    return figure


def view(
    places: Float[np.ndarray, "n 2"],
    labels: Int[np.ndarray, "n"],
    picked: Int[np.ndarray, "p"],
    thumbnails: UInt8[np.ndarray, "p h w 3"],
    title: str,
    shares: Sequence[float] | None = None,
) -> Figure:
    """People in the plane, some as thumbnails centred on their own position.

    Args:
      places: 2-D positions. labels: cluster of each.
      picked: numbers of `places` that have a thumbnail, in the thumbnails' order.
      shares: variance of the two axes, where they are principal components.

    Raises:
      ValueError: thumbnails are not those of `picked`.
    """
    if len(picked) != len(thumbnails) or (len(picked) and picked.max() >= len(places)):
        raise ValueError(
            f"{len(thumbnails)} thumbnails for {len(picked)} of {len(places)} people"
        )
    figure = new_figure(WIDTH, WIDTH + 0.4)
    axes: Any = figure.subplots()
    groups = np.unique(labels).tolist()
    for g in groups:
        mine = places[labels == g]
        axes.plot(
            mine[:, 0], mine[:, 1], panels.MARKS[g % 8], color=panels.colour(g),
            ms=3.2, mew=0.7, markerfacecolor="none", alpha=0.7,
            label=f"cluster {g} ({len(mine):,})",
        )  # fmt: skip
    zoom = _THUMBNAIL * WIDTH * 72 / max(thumbnails.shape[1:3]) if len(picked) else 1
    for number in apart(places, picked):
        who = int(picked[number])
        image = OffsetImage(thumbnails[number], zoom=zoom, interpolation="bilinear")
        axes.add_artist(AnnotationBbox(
            image, tuple(places[who].tolist()), pad=0.12, gid=f"person-{who}",
            bboxprops=dict(edgecolor=panels.colour(int(labels[who])), linewidth=1.6),
        ))  # fmt: skip
        if len(groups) > 1:
            axes.annotate(
                str(labels[who]), places[who], (-13, 8), textcoords="offset points",
                fontsize=8.5, zorder=5, va="center", ha="center",
                bbox=dict(boxstyle="round,pad=0.1", facecolor="white", linewidth=0),
            )  # fmt: skip
    # Half a thumbnail of air, so that none is cut.
    axes.margins(0.5 * _THUMBNAIL + 0.02)
    axes.set_title(title, fontsize=TEXT)
    for axis, n in ((axes.xaxis, 0), (axes.yaxis, 1)):
        share = f" ({shares[n]:.1%} of the variance)" if shares else ""
        axis.set_label_text(f"axis {n + 1}{share}", fontsize=SMALL)
    panels.tidy(axes, grid="both", title=title)
    if len(groups) > 1:
        panels.legend(figure, axes, columns=3)
    return figure


def apart(places: Float[np.ndarray, "n 2"], picked: Int[np.ndarray, "p"]) -> list[int]:
    """Numbers of the thumbnails that do not hide an earlier one; positions stay true."""
    extent = np.ptp(places, axis=0) + 1e-12
    where = places[picked] / extent
    kept: list[int] = []
    for n in range(len(picked)):
        gaps = np.abs(where[kept] - where[n])
        if not kept or (gaps.max(1) > 1.45 * _THUMBNAIL).all():
            kept.append(n)
    return kept


def nearest(crops: UInt8[np.ndarray, "g m h w 3"]) -> UInt8[np.ndarray, "y x 3"]:
    """A row per cluster: the people nearest to its centre, nearest first."""
    images = crops.reshape(-1, *crops.shape[2:])
    titles = [f"cluster {g}" for g in range(len(crops)) for _ in range(crops.shape[1])]
    return drawings.contact_sheet(
        list(images), columns=crops.shape[1], tile=(112, 112), titles=titles
    )


def agreement(found: Mapping[str, Mapping[str, Any]], k: int) -> Figure:
    """NMI of clusters and attributes, the strongest first; shuffled clusters beside."""
    order = sorted(found, key=lambda n: -(found[n].get("nmi") or 0))
    figure = new_figure(WIDTH, 1.2 + 0.27 * len(order))
    axes: Any = figure.subplots()
    for y, name in enumerate(order):
        entry = {key: np.nan if v is None else v for key, v in found[name].items()}
        above = entry["nmi"] > entry["null_high"]
        axes.plot([0, entry["null_high"]], [y, y], color="0.75", lw=6, zorder=1)
        axes.plot([entry["null"]], [y], "|", color=INK, ms=8, zorder=2)
        axes.plot(
            [entry["nmi"]], [y], "o", color=LOWERS if above else FAINT, ms=6, zorder=3,
            markerfacecolor=LOWERS if above else "white",
        )  # fmt: skip
    axes.plot([], [], "o", color=LOWERS, label="NMI above the null")
    axes.plot([], [], "o", color=FAINT, markerfacecolor="white", label="not above")
    axes.plot([], [], color="0.75", lw=6, label="shuffled, up to its 95th percentile")
    panels.tidy(axes)
    panels.rows(axes, [attribute(name) for name in order])
    axes.set_xlim(left=0)
    axes.set_xlabel(
        f"normalised mutual information with K = {k} clusters", fontsize=SMALL
    )
    panels.legend(figure, axes, columns=2)
    return figure


def attribute(name: str) -> str:
    """`left_hip_to_left_knee_angle` -> `l. hip – l. knee, angle`."""
    if not name.endswith("_angle"):
        return words(name)
    ends = name.removesuffix("_angle").split("_to_")
    brief = [words(e).replace("left ", "l. ").replace("right ", "r. ") for e in ends]
    return f"{' – '.join(brief)}, angle"


def taps(found: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Axes for 95 % of every tap, as a share of its channels and of all its values."""
    names = list(found)
    figure = new_figure(WIDTH, 1.3 + 0.34 * len(names))
    axes: Any = figure.subplots()
    for y, name in enumerate(names):
        entry = found[name]
        share = entry["channel_axes_for_95"] / max(entry["channels"], 1)
        axes.barh([y], [share], 0.62, color="#56b4e9")
        said = f"{entry['channel_axes_for_95']} of {entry['channels']}"
        if entry.get("axes_for_95") is not None:
            limit = min(entry["values"], entry["people"] - 1)
            said += f";  whole {entry['axes_for_95']:,} of {limit:,}"
            axes.plot([entry["axes_for_95"] / limit], [y], "D", color=INK, ms=5)
        axes.text(1.03, y, said, va="center", fontsize=8.5)
    panels.tidy(axes)
    panels.rows(axes, [_tap_label(n, found[n]["shape"]) for n in names])
    axes.set_xlim(0, 1)
    axes.barh([0], [0], color="#56b4e9", label="axes / channels")
    axes.plot([], [], "D", color=INK, ms=5, label="axes / values that can vary")
    axes.set_xlabel("share needed for 95 % of the variance", fontsize=SMALL)
    panels.legend(figure, axes)
    return figure


def _tap_label(name: str, shape: Sequence[int]) -> str:
    return f"{name} {'×'.join(map(str, shape[:2]))}"


def pruning(found: Mapping[str, Any]) -> Figure:
    """PCK against channels kept, a line per ranking; parameters that then have no influence."""
    figure = new_figure(WIDTH, 5.6)
    axes: Any = figure.subplots(2, 1, sharex=True, height_ratios=(1.7, 1))
    channels, rankings = max(found["channels"], 1), found["rankings"]
    named = dict.fromkeys(name.split("_")[0] for name in rankings)
    for number, ranking in enumerate(named):
        arms = [v for n, v in rankings.items() if n.split("_")[0] == ranking]
        for arm in arms:
            kept = np.array([e["kept"] for e in arm]) / channels
            order = np.argsort(kept)
            values = np.array([e["pck"] for e in arm])
            axes[0].plot(
                kept[order], values[order], panels.LINES[number % 4], lw=1.3,
                color=panels.colour(number), marker=panels.MARKS[number], ms=4.5,
            )  # fmt: skip
            if len(arms) == 1:
                whole = arm[0]["pck"] - arm[0]["minus_whole"]
                ends = np.array([[e["low"], e["high"]] for e in arm], float) + whole
                axes[0].vlines(kept, *ends.T, color=panels.colour(number), lw=1)
        axes[0].plot(
            [], [], panels.LINES[number % 4], color=panels.colour(number),
            marker=panels.MARKS[number], ms=5,
            label=ranking if len(arms) == 1 else f"{ranking} ({len(arms)} draws)",
        )  # fmt: skip
    axes[0].set_ylabel("PCK", fontsize=SMALL)
    axes[0].set_ylim(bottom=0)
    first = next(iter(rankings.values()))
    kept = [e["kept"] / channels for e in first]
    idle = 100 * np.array(found["idle_parameters"], float) / max(found["parameters"], 1)
    axes[1].plot(kept, idle, "o-", color=RAISES)
    axes[1].set_ylabel("idle parameters, %", fontsize=SMALL)
    axes[1].set_ylim(bottom=0)
    axes[1].set_xlabel("channels kept, share", fontsize=SMALL)
    for side in axes:
        panels.tidy(side, grid="both")
    panels.legend(figure, axes[0], columns=4)
    return figure
