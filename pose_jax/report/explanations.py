"""A folder of explanations -> its figures, each with a sentence that says how to read it.

Reads what the task `explain` wrote. Files that are not there are figures that are not drawn.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from matplotlib.figure import Figure

from pose_jax.intervals import mean_interval
from pose_jax.report import captions, influence_drawings, study_drawings
from pose_jax.report.influence_drawings import Block, Estimate
from pose_jax.report.person_figures import person_figures
from pose_jax.report.plotting import numbers, png
from pose_jax.writer import read_json, write_json

INDEX = "index.json"
_FOREIGN, _MEMBERS = 3, 2


class Drawn(NamedTuple):
    """A figure with its file stem, title and caption; `group` is the person it is of."""

    name: str
    title: str
    caption: str
    figure: Figure
    group: str = ""


def draw_folder(folder: Any) -> list[Any]:
    """Writes `figures/*.png` and `figures/index.json` (titles, captions); returns the pictures.

    Args:
      folder: `explain/<method>-<kind>-<name>` of a workdir (a path).

    Raises:
      ValueError: there is no `explanations.json`, or a file is damaged.
      OSError: the figures cannot be written.
    """
    folder, paths, index = epath.Path(folder), [], []
    place = folder / "figures"
    place.mkdir(parents=True, exist_ok=True)
    for drawn in figures(folder):
        path = place / f"{drawn.name}.png"
        path.write_bytes(png(drawn.figure))
        paths.append(path)
        about = dict(title=drawn.title, caption=drawn.caption, group=drawn.group)
        index.append({"file": path.name, **about})
    write_json(place / INDEX, index)
    return paths


def figures(folder: Any) -> Iterator[Drawn]:
    """The figures of a folder, one at a time: all people first, then single ones, then studies.

    Raises:
      ValueError: there is no `explanations.json`, or a file is damaged.
    """
    folder = epath.Path(folder)
    record = read_json(folder / "explanations.json")
    if record is None:
        raise ValueError(
            f"{folder} has no explanations.json; run the task 'explain' first"
        )
    arrays = load(folder / "explanations.npz")
    yield from _summary(record)
    if arrays:
        yield from _conditional(record, arrays)
        pictures = load(folder / "pictures.npz")
        for name, title, caption, figure, group in person_figures(
            record, arrays, pictures
        ):
            yield Drawn(name, title, caption, figure, group)
    yield from _studies(folder, record)


def load(path: Any) -> dict[str, np.ndarray]:
    """Everything in an npz; nothing where there is no file.

    Raises:
      ValueError: the file is damaged.
    """
    path = epath.Path(path)
    if not path.exists():
        return {}
    try:
        with np.load(io.BytesIO(path.read_bytes())) as stored:
            return {name: stored[name] for name in stored.files}
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is damaged ({error}); run 'explain' again") from None


def _estimates(found: Mapping[str, Any]) -> np.ndarray:
    """`[..., 3]` mean, low, high of a record of means."""
    return np.stack([numbers(found[name]) for name in ("mean", "low", "high")], -1)


def _summary(record: Mapping[str, Any]) -> Iterator[Drawn]:
    players, names = record["players"], record["keypoints"]
    influence = _estimates(record["influence"])
    owner = np.zeros(len(players["names"]), int)
    for number, members in enumerate(players["clusters"]):
        owner[list(members)] = number
    counts = np.asarray(record["influence"]["counts"])
    yield Drawn(
        "influence_matrix",
        "Who influences whom",
        captions.matrix(record),
        influence_drawings.influence_matrix(
            influence[..., 0],
            row_names=names,
            column_names=players["names"],
            row_cluster=players["target_cluster"],
            column_cluster=owner.tolist(),
            own=players["own"],
            clear=(influence[..., 1] > 0) | (influence[..., 2] < 0),
            title=f"{record['people']} people, {counts.min()} to {counts.max()} per entry",
        ),
    )
    empty, full, gap = (
        [Estimate(*row.tolist()) for row in _estimates(record[name])]
        for name in ("empty", "full", "gap")
    )
    yield Drawn(
        "gaps",
        "What there is to share out",
        captions.gaps(record),
        influence_drawings.gaps(
            names, empty, full, gap, record["score"]
        ),
    )  # fmt: skip
    foreign = owner[None, :] != np.asarray(players["target_cluster"])[:, None]
    blocks = [
        Block(
            name,
            [
                (players["names"][i], [Estimate(*influence[t, i].tolist())])
                for i in best
            ],
        )
        for t, name in enumerate(names)
        if len(best := _largest(influence[t, :, 0], foreign[t], _FOREIGN))
    ]
    if blocks:
        yield Drawn(
            "foreign",
            "Strongest players of other body parts",
            captions.foreign(record, _FOREIGN),
            influence_drawings.whisker_blocks(blocks, "mean influence on the score"),
        )


def _largest(values: np.ndarray, allowed: np.ndarray, count: int) -> np.ndarray:
    """Numbers of the largest |values| among the allowed ones, largest first."""
    size = np.where(allowed & np.isfinite(values), np.abs(values), -1)
    order = np.argsort(-size, kind="stable")[:count]
    return order[size[order] >= 0]


def _conditional(record, arrays: Mapping[str, np.ndarray]) -> Iterator[Drawn]:
    """Members of the own cluster when the target is a player, hidden, or visible."""
    players, own = record["players"], np.asarray(record["players"]["own"])
    needed = {"member_values", "hidden_values", "visible_values"}
    if not needed <= set(arrays) or own.min() < 0:
        return
    there = np.ones(arrays["member_values"].shape[:2], bool)
    there[:, own] = arrays["present"]
    known = there[:, :, None] & arrays["target_valid"][:, None, :]
    series = []
    for name in ("member_values", "hidden_values", "visible_values"):
        values = np.where(known, arrays[name], np.nan)
        low, high = mean_interval(values, arrays["image_id"].tolist())
        series.append(np.stack([_mean(values), low, high], -1))
    blocks = []
    for t, name in enumerate(record["keypoints"]):
        allowed = np.zeros(len(players["names"]), bool)
        allowed[list(players["clusters"][players["target_cluster"][t]])] = True
        allowed[own[t]] = False
        best = _largest(series[0][:, t, 0], allowed, _MEMBERS)
        rows = [
            (players["names"][i], [Estimate(*s[i, t].tolist()) for s in series])
            for i in best
        ]
        blocks.append(Block(name, rows))
    if any(block.rows for block in blocks):
        legend = ("target's own region a player", "always hidden", "always visible")
        yield Drawn(
            "conditional",
            "What helps when the joint itself cannot be seen",
            captions.conditional(record, _MEMBERS),
            influence_drawings.whisker_blocks(blocks, "mean member value", legend),
        )


def _mean(values: np.ndarray) -> np.ndarray:
    count = np.isfinite(values).sum(0)
    total = np.nansum(values, axis=0)
    return np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0)


def _studies(folder, record: Mapping[str, Any]) -> Iterator[Drawn]:
    found = read_json(folder / "interdependence.json")
    if found is not None:
        yield _interdependence(found, record)
    costs = read_json(folder / "grouping_error.json", {})
    if costs.get("clusterings"):
        yield Drawn(
            "grouping_error",
            "What the grouping costs",
            captions.grouping_error(costs),
            study_drawings.grouping_error(costs["clusterings"]),
        )


def _interdependence(found, record: Mapping[str, Any]) -> Drawn:
    names = found["keypoints"]
    values = numbers(found["normalised"])
    title = "Interdependence of joints (Perturbation Influence)"
    if "linkage" in found:
        clusters = [[names.index(n) for n in m] for m in found["clusters"].values()]
        figure = study_drawings.interdependence(
            values, numbers(found["linkage"]), names, clusters, found["cut"]
        )
    else:
        targets = record["players"]["target_cluster"]
        if "clusters" in found:
            owner = {n: g for g, m in enumerate(found["clusters"].values()) for n in m}
            targets = [owner[name] for name in names]
        figure = influence_drawings.influence_matrix(
            values, row_names=names, column_names=names, row_cluster=targets,
            column_cluster=targets, own=range(len(names)),
            unit="drop of similarity, in units of the joint's own patch",
        )  # fmt: skip
    return Drawn("interdependence", title, captions.interdependence(found), figure)


def read_index(folder: Any) -> list[dict[str, Any]]:
    """What `draw_folder` wrote: `file, title, caption, group` of every figure.

    Raises:
      ValueError: the file is no list of figures.
    """
    path = epath.Path(folder) / "figures" / INDEX
    index = read_json(path, [])
    if not isinstance(index, list):
        kind = json.dumps(index)[:40]
        raise ValueError(f"{path} holds {kind}, no list; delete it and draw again")
    return index
