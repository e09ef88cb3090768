"""Attention: maps over the crop, matrices side by side, agreement with measured influence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import matplotlib
import numpy as np
from jaxtyping import Float, Int, UInt8
from matplotlib.figure import Figure

from pose_jax import regions
from pose_jax.report import analysis_panels as panels
from pose_jax.report.analysis_panels import SMALL, TEXT, WIDTH
from pose_jax.report.influence_drawings import frame_clusters
from pose_jax.report.plotting import (
    DIVERGING,
    FAINT,
    MISSING,
    TARGET,
    new_figure,
    words,
)

NAMES = {
    "last_layer": "last layer",
    "rollout": "rollout",
    "gradient": "gradient × attention",
    "joint_tokens": "joint tokens",
    "distance": "nearer = more",
    "uniform": "larger disc = more",
    "occlusion": "occlusion",
    "influence": "Shapley influence",
}
SERIES = {
    "attention": "trained network",
    "untrained": "random weights",
    "shuffled": "another person's influence",
    "baseline": "no network",
    "ceiling": "other measurement",
}
"""Group of a row -> its name in the legend."""

MOST_LAYERS = 6
_TILE = 1.35
_ROLLOUT = (
    0.99  # Its residual half leads back to the own token, which would hide the rest.
)
_HOLLOW = ("untrained", "shuffled", "baseline")


def agreement(record: Mapping[str, Any], statistic: str = "spearman") -> Figure:
    """Rank correlation of every evidence with influence and with occlusion, a row each."""
    rows: dict[str, list[Mapping[str, Any]]] = {}
    for row in record["rows"]:
        rows.setdefault(row["name"], []).append(row)
    figure = new_figure(WIDTH + 0.6, 1.5 + 0.42 * len(rows))
    axes: Any = figure.subplots(1, 2, sharey=True, sharex=True)
    order = {group: n for n, group in enumerate(SERIES)}
    for side, reference in zip(axes, ("influence", "occlusion")):
        side.axvline(0, color=FAINT, linewidth=0.8, zorder=0)
        for place, series in enumerate(rows.values()):
            for shift, row in zip(panels.spread(len(series)), series):
                found = panels.estimate(row[statistic].get(reference))
                group = row["group"]
                panels.point(
                    side, found, place + shift, order[group], hollow=group in _HOLLOW
                )
        panels.tidy(side, title=f"with {NAMES[reference]}")
        side.set_xlabel(f"{_STATISTICS[statistic]}, 95 %", fontsize=SMALL)
    there = dict.fromkeys(row["group"] for row in record["rows"])
    for group in SERIES:
        if group in there:
            panels.name_point(
                axes[0], SERIES[group], order[group], hollow=group in _HOLLOW
            )
    panels.rows(axes[0], [NAMES[name] for name in rows])
    panels.legend(figure, axes[0], 3)
    return figure


_STATISTICS = {"spearman": "Spearman's ρ", "kendall": "Kendall's τ"}


def matrices(
    found: Mapping[str, Float[np.ndarray, "k n"]],
    names: Sequence[str],
    clusters: Sequence[Sequence[int]],
) -> Figure:
    """Targets by players, one panel per evidence, each on its own scale.

    Args:
      found: means over people, NaN where unknown; the players are the targets.
      clusters: both axes are ordered by them, blocks framed.
    """
    order = [i for cluster in clusters for i in cluster]
    cluster = np.repeat(np.arange(len(clusters)), [len(c) for c in clusters])
    lines = -(-len(found) // 2)
    figure = new_figure(2 * 2.9 + 1.1, 3.1 * lines + 0.9)
    grid: Any = figure.subplots(lines, 2, sharex=True, sharey=True, squeeze=False)
    for axes in grid.ravel()[len(found) :]:
        axes.set_axis_off()
    colours = matplotlib.colormaps["magma_r"].with_extremes(bad=MISSING)
    labels = [words(names[i]) for i in order]
    for place, (axes, (name, matrix)) in enumerate(zip(grid.ravel(), found.items())):
        shown = np.array(matrix, float)
        np.fill_diagonal(shown, np.nan)
        limit = float(np.nanmax(shown, initial=0.0)) or 1e-6
        picture = axes.imshow(
            shown[np.ix_(order, order)], cmap=colours, vmin=0, vmax=limit
        )
        frame_clusters(axes, cluster, cluster)
        axes.set_title(NAMES[name], fontsize=TEXT)
        axes.set_yticks(range(len(order)), labels, fontsize=7)
        axes.set_xticks(range(len(order)), labels, fontsize=7, rotation=90)
        below = place + 2 >= len(found)
        axes.tick_params(length=0, labelbottom=below, labelleft=place % 2 == 0)
        bar = figure.colorbar(picture, ax=axes, shrink=0.75, pad=0.02)
        bar.ax.tick_params(labelsize=7, length=2)
    return figure


def layers(
    image: UInt8[np.ndarray, "h w 3"],
    maps: Float[np.ndarray, "l j y x"],
    points: Float[np.ndarray, "j 2"],
    titles: Sequence[str],
    *,
    above: float = 0.0,
) -> Figure:
    """A row per layer, a column per joint: what its token reads (TransPose's dependency areas).

    Args:
      maps: softmax weights over tokens, heads averaged. points: predicted, crop pixels.
      titles: of the joints. above: upsampled weights up to here count as zero.
    """
    kept = np.unique(np.linspace(0, len(maps) - 1, min(len(maps), MOST_LAYERS)).round())
    rows = {f"layer {n + 1}": maps[n] for n in kept.astype(int).tolist()}
    figure, grid = _sheet(image, len(rows), len(titles) + 1, list(rows), ["", *titles])
    for axes, row in zip(grid, rows.values()):
        axes[0].imshow(image)
        for cell, found, point in zip(axes[1:], row, points):
            cell.imshow(overlay(image, found, above=above))
            _star(cell, point)
    return figure


def evidence(
    image: UInt8[np.ndarray, "h w 3"],
    maps: Mapping[str, Float[np.ndarray, "j y x"]],
    influence: Float[np.ndarray, "j n"],
    owners: Int[np.ndarray, "h w"],
    points: Float[np.ndarray, "j 2"],
    titles: Sequence[str],
    *,
    above: float = 0.0,
) -> Figure:
    """A row per joint: its maps side by side, then the measured influence of every disc.

    Args:
      maps: by kind, over tokens. influence: signed. owners: player of every pixel.
      above: upsampled weights of the last layer up to here count as zero.
    """
    heads = [*(NAMES[name] for name in maps), NAMES["influence"]]
    figure, grid = _sheet(image, len(titles), len(heads), titles, heads)
    for j, axes in enumerate(grid):
        for cell, (name, found) in zip(axes, maps.items()):
            last = name == "last_layer"
            quantile = _ROLLOUT if name == "rollout" else 1.0
            drawn = overlay(
                image, found[j], above=above if last else 0.0, quantile=quantile
            )
            cell.imshow(drawn)
            _star(cell, points[j])
        axes[-1].imshow(discs(image, influence[j], owners))
        _star(axes[-1], points[j])
    return figure


def overlay(
    image: UInt8[np.ndarray, "h w 3"],
    found: Float[np.ndarray, "y x"],
    *,
    above: float = 0.0,
    quantile: float = 1.0,
) -> UInt8[np.ndarray, "h w 3"]:
    """The crop in grey under a map, bilinearly upsampled.

    Args:
      found: not negative, over tokens. above: upsampled values up to here count as zero.
      quantile: of the map; has full ink, as has what is larger.
    """
    height, width = image.shape[:2]
    size = (width, height)
    large = cv2.resize(found.astype(np.float32), size, interpolation=cv2.INTER_LINEAR)
    large = np.where(large > above, np.maximum(large, 0), 0)
    full = float(np.quantile(large, quantile)) or float(large.max())
    share = np.clip(large / max(full, 1e-30), 0, 1)
    colour = matplotlib.colormaps["inferno"](share)[..., :3]
    weight = 0.15 + 0.75 * np.sqrt(share)[..., None]
    grey = _grey(image) * 0.75
    return np.rint(255 * (weight * colour + (1 - weight) * grey)).astype(np.uint8)


def discs(
    image: UInt8[np.ndarray, "h w 3"],
    influence: Float[np.ndarray, "n"],
    owners: Int[np.ndarray, "h w"],
) -> UInt8[np.ndarray, "h w 3"]:
    """The crop in grey, every player's region in the colour of its influence."""
    values = influence / max(float(np.abs(influence).max()), 1e-12)
    owned = owners != regions.FREE
    value = np.where(owned, values[np.where(owned, owners, 0)], 0.0)
    colour = np.asarray(DIVERGING((value + 1) / 2))[..., :3]
    weight = np.where(owned, 0.35 + 0.6 * np.abs(value), 0.0)[..., None]
    grey = 0.35 + 0.5 * _grey(image)
    return np.rint(255 * (weight * colour + (1 - weight) * grey)).astype(np.uint8)


def _grey(image) -> np.ndarray:
    return np.repeat(image.mean(-1, keepdims=True) / 255, 3, axis=-1)


def _star(axes, point) -> None:
    axes.plot(
        *point, "*", color=TARGET, markersize=7, markeredgecolor="black",
        markeredgewidth=0.6,
    )  # fmt: skip


def _sheet(image, rows: int, columns: int, row_names, column_names):
    """Bare tiles of the crop's shape with names at the left and above."""
    height, width = image.shape[:2]
    figure = new_figure(
        _TILE * columns + 0.4, (_TILE * height / width + 0.06) * rows + 0.3
    )
    grid: Any = figure.subplots(rows, columns, squeeze=False)
    for cell in grid.ravel():
        cell.set(xticks=[], yticks=[])
        cell.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
        for spine in cell.spines.values():
            spine.set_visible(False)
    for cell, name in zip(grid[0], column_names):
        cell.set_title(words(name), fontsize=SMALL)
    for cell, name in zip(grid[:, 0], row_names):
        cell.set_ylabel(words(name), fontsize=SMALL)
    return figure, grid
