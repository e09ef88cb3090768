"""Figures of a folder of maps: the maps of every joint on a few people, and where maps lie."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from matplotlib.figure import Figure

from pose_jax import skeletons
from pose_jax.report.drawings import draw_pose
from pose_jax.report.plotting import (
    DIVERGING,
    FAINT,
    INK,
    TARGET,
    bare,
    new_figure,
    numbers,
    png,
    words,
)
from pose_jax.writer import read_json, write_json

INDEX = "index.json"
_COLUMNS = 5


class MapFigure(NamedTuple):
    """A figure with what stands below it."""

    name: str
    figure: Figure
    title: str
    caption: str


def draw_folder(folder: Any) -> list[Any]:
    """Writes `figures/*.png` and `figures/index.json` (titles, captions); returns the pictures.

    Args:
      folder: `explain/<method>-<score>-<name>` of a workdir (a path).

    Raises:
      ValueError: there is no `maps.json`.
      OSError: the figures cannot be written.
    """
    folder, paths, index = epath.Path(folder), [], []
    place = folder / "figures"
    place.mkdir(parents=True, exist_ok=True)
    for drawn in figures(folder):
        path = place / f"{drawn.name}.png"
        path.write_bytes(png(drawn.figure))
        paths.append(path)
        index.append(
            {"file": path.name, "title": drawn.title, "caption": drawn.caption}
        )
    write_json(place / INDEX, index)
    return paths


def figures(folder: Any) -> Iterator[MapFigure]:
    """All people first, then single ones.

    Raises:
      ValueError: there is no `maps.json`.
    """
    folder = epath.Path(folder)
    record = read_json(folder / "maps.json")
    if record is None:
        raise ValueError(f"{folder} holds no maps.json: run the task explain first")
    with np.load(io.BytesIO((folder / "pictures.npz").read_bytes())) as stored:
        pictures = {name: stored[name] for name in stored.files}
    yield _shares(record)
    for n in range(len(pictures["image"])):
        yield _person(record, pictures, n)


def _person(
    record: dict[str, Any], pictures: dict[str, np.ndarray], n: int
) -> MapFigure:
    """One person: the crop with its skeleton, then a panel per joint."""
    names, image = record["keypoints"], pictures["image"][n]
    maps, points = pictures["maps"][n], pictures["points"][n]
    rows = -(-(len(names) + 1) // _COLUMNS)
    height = image.shape[0] / image.shape[1]
    figure = new_figure(1.9 * _COLUMNS, rows * (1.9 * height + 0.3))
    axes = np.atleast_1d(figure.subplots(rows, _COLUMNS)).ravel()
    skeleton = skeletons.get(record["skeleton"])
    axes[0].imshow(draw_pose(image, points[None], skeleton))
    axes[0].set_title("answer", fontsize=9, color=INK)
    grey = 0.55 * image.mean(-1) / 255 + 0.45
    for k, name in enumerate(names):
        panel, here = axes[k + 1], np.nan_to_num(maps[k])
        panel.imshow(grey, cmap="gray", vmin=0, vmax=1)
        # A single pixel must not hide the rest.
        limit = max(float(np.quantile(np.abs(here), 0.998)), 1e-12)
        strength = np.clip(np.abs(here) / limit, 0, 1)
        panel.imshow(
            here, cmap=DIVERGING, vmin=-limit, vmax=limit, alpha=0.15 + 0.8 * strength
        )
        panel.plot(*points[k], "o", ms=5, mfc="none", mec=INK, mew=2.2)
        panel.plot(*points[k], "o", ms=5, mfc="none", mec=TARGET, mew=1.0)
        panel.set_title(words(name), fontsize=9, color=INK)
    for panel in axes:
        panel.set_xticks([])
        panel.set_yticks([])
        bare(panel)
    for panel in axes[len(names) + 1 :]:
        panel.set_visible(False)
    tap = f" at {record['tap']}" if record["tap"] else ""
    caption = (
        f"{words(record['method'])}{tap} of every joint, score {words(record['score'])}. Orange "
        "raises the score, blue lowers it (methods without sign are all orange); each panel "
        "has its own scale, cut at the 99.8th percentile. The ring is where the joint was put."
    )
    return MapFigure(
        f"person-{n}", figure, f"Person {int(pictures['of'][n]) + 1}", caption
    )


def _shares(record: dict[str, Any]) -> MapFigure:
    """How much of every joint's map lies on its own disc, on others and elsewhere."""
    names = record["keypoints"]
    density = numbers(record["density"]["mean"])
    figure = new_figure(9.5, 0.3 * len(names) + 2.2)
    left, right = figure.subplots(1, 2, width_ratios=(1.5, 1))
    limit = np.nanmax(density) if np.isfinite(density).any() else 1.0
    shown = left.imshow(density.T, cmap="cividis", vmin=0, vmax=limit, aspect="auto")
    figure.colorbar(shown, ax=left, label="mass share / area share", shrink=0.8)
    left.set_xticks(
        range(len(record["parts"])), map(words, record["parts"]), rotation=90
    )
    left.set_yticks(range(len(names)), map(words, names))
    left.set_xlabel("disc of")
    left.set_ylabel("map of")
    place = np.arange(len(names))
    mean, low, high = (
        numbers(record["own_mass"][key]) for key in ("mean", "low", "high")
    )
    right.barh(place, mean, color="#0072b2")
    right.hlines(place, low, high, color=INK, lw=1.5)
    elsewhere = numbers(record["background_mass"]["mean"])
    right.plot(elsewhere, place, "D", color=FAINT, ms=4, label="outside of all discs")
    right.set_yticks(place, [])
    right.set_ylim(len(names) - 0.5, -0.5)
    right.set_xlim(0, 1)
    right.set_xlabel("share of the map on the joint's own disc")
    right.legend(fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), frameon=False)
    bare(right, "bottom", "left")
    caption = (
        f"{words(record['method'])}, {record['people']} people. Left: absolute map inside a "
        "joint's disc against its share of the crop's area, 1 is what an even map has. "
        "Right: share on the joint's own disc, 95 % over pictures. A map can lie on the "
        "joint because the joint is where the network looks, or because any map of this kind "
        f"does. Protocol: {record['protocol']}."
    )
    return MapFigure("where", figure, "Where the maps lie", caption)
