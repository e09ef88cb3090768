"""A folder of analyses -> its figures, each with a sentence that says how to read it.

Reads what the task `analyse` wrote. Studies that are not there are figures that are not drawn;
of a network that was not analysed there is none.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import cv2
import numpy as np
from etils import epath
from matplotlib.figure import Figure

from pose_jax.report import analysis_captions as captions
from pose_jax.report import (
    cluster_drawings,
    latent_drawings,
    skip_drawings,
    thesis_numbers,
)
from pose_jax.report.plotting import png
from pose_jax.writer import read_json, write_json

INDEX = "index.json"
STUDIES = ("skips", "latent", "clusters", "redundancy")
_DAMAGED = (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error)
_STRIPS = {
    "mean_image": "decoded,\nmean's skips",
    "skips_closed": "decoded,\nclosed",
}


class Drawn(NamedTuple):
    """A figure (or RGB picture) with its file stem, title, caption and study."""

    name: str
    title: str
    caption: str
    picture: Figure | np.ndarray
    study: str


def draw_folder(folder: Any) -> list[Any]:
    """Writes `figures/*.png` and `figures/index.json` (titles, captions); returns the pictures.

    Args:
      folder: `analysis/<name>` of a workdir (a path).

    Raises:
      ValueError: there is no `index.json`, or a file is damaged or not whole.
      OSError: the figures cannot be written.
    """
    folder, paths, index = epath.Path(folder), [], []
    place = folder / "figures"
    place.mkdir(parents=True, exist_ok=True)
    for drawn in figures(folder):
        path = place / f"{drawn.name}.png"
        path.write_bytes(_encoded(drawn.picture))
        paths.append(path)
        about = dict(title=drawn.title, caption=drawn.caption, study=drawn.study)
        index.append({"file": path.name, **about})
    write_json(place / INDEX, index)
    return paths


def _encoded(picture: Figure | np.ndarray) -> bytes:
    if isinstance(picture, Figure):
        return png(picture)
    return cv2.imencode(".png", np.ascontiguousarray(picture[..., ::-1]))[1].tobytes()


def figures(folder: Any) -> Iterator[Drawn]:
    """The figures of a folder, study by study, one at a time.

    Raises:
      ValueError: there is no `index.json`, or a file is damaged or not whole.
    """
    folder = epath.Path(folder)
    index = read_json(folder / "index.json")
    if index is None:
        raise ValueError(f"{folder} has no index.json; run the task 'analyse' first")
    if problem(index):
        return
    makers = (_skips, _latent, _clusters, _redundancy)
    for study, make in zip(STUDIES, makers):
        record = read_json(folder / f"{study}.json")
        if record is None:
            continue
        try:
            arrays = load(folder / f"{study}.npz")
            for name, title, caption, picture in make(record, arrays, index):
                yield Drawn(name, title, caption, picture, study)
        except (KeyError, IndexError, TypeError) as error:
            raise ValueError(
                f"{folder}/{study}.json is not whole ({error!r}); delete it and run "
                "'analyse' again"
            ) from None


def problem(index: Mapping[str, Any]) -> str:
    """Why the network was not analysed; empty when it was."""
    return str((index.get("health") or {}).get("problem") or "")


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
    except _DAMAGED as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{path} is damaged ({reason}); delete it and the JSON beside it, then run "
            "'analyse' again"
        ) from None


_Made = Iterator[tuple[str, str, str, Figure | np.ndarray]]


def _skips(record, arrays: Mapping[str, np.ndarray], index) -> _Made:
    styles = skip_drawings.styles_of(record)
    if not styles:
        return
    drawn = len(skip_drawings.subset_order(record["opened"]))
    yield (
        "skips_subsets",
        "PCK with some skips closed",
        captions.subsets(record, drawn),
        skip_drawings.subsets(record),
    )
    for style in styles:
        yield (
            f"skips_shapley_{style}",
            f"Who carries which joint ({skip_drawings.STYLES.get(style, style)})",
            captions.shapley(record, style),
            skip_drawings.shapley(record, style),
        )
    yield (
        "skips_histogram",
        "Every person, with skips and without",
        captions.histogram(record),
        skip_drawings.histogram(record),
    )
    for split in record["splits"]:
        if f"{split}_crops" in arrays:
            fields = ("crops", "on", "off", "true", "visible", "score")
            parts = [arrays[f"{split}_{field}"] for field in fields]
            yield (
                f"skips_people_{split}",
                f"The same people with skips open and closed ({split})",
                captions.sheet(record, split, len(parts[0]), float(parts[-1].min())),
                skip_drawings.sheet(*parts, index["skeleton"]),
            )
        if record["decoders"]:
            yield (
                f"skips_effects_{split}",
                f"What closing does to the features ({split})",
                captions.effects(record, split),
                skip_drawings.effects(record, split),
            )
    yield (
        "skips_answers",
        "How sure the answers are",
        captions.answers(record),
        skip_drawings.answers(record),
    )


def _latent(record, arrays: Mapping[str, np.ndarray], index) -> _Made:
    yield (
        "latent_spectrum",
        "How many components hold the variance",
        captions.spectrum(record),
        latent_drawings.spectrum(record["pca"]),
    )
    if arrays:
        yield from _walk(record, arrays, index)
    yield (
        "latent_displacement",
        "How far a step moves the joints",
        captions.displacement(record),
        latent_drawings.displacement(record["displacement"]),
    )
    yield (
        "latent_projection",
        "What the first components are enough for",
        captions.projection(record),
        latent_drawings.projection(record["projection"]),
    )


def _walk(record, arrays: Mapping[str, np.ndarray], index) -> _Made:
    found, shares = record["walk"], record["pca"]["shares"]
    there = {f: name for f, name in _STRIPS.items() if f"{f}_peak" in arrays}
    top = max((float(arrays[f"{field}_peak"].max()) for field in there), default=1.0)
    same = np.array(found["nearest_rows"]) == found["nearest_to_mean"]
    for n, component in enumerate(found["components"]):
        strips = {"nearest\nperson": arrays["nearest_keypoints"][n]}
        strips |= {name: arrays[f"{f}_keypoints"][n] for f, name in there.items()}
        opacity = {
            name: np.clip(arrays[f"{f}_peak"][n] / max(top, 1e-9), 0, 1)
            for f, name in there.items()
        }
        share = (
            f", {shares[component - 1]:.2%} of the variance"
            if component <= len(shares)
            else ""
        )
        yield (
            f"latent_walk_{component:04d}",
            f"Walk along component {component}",
            captions.walk(record, n, top),
            latent_drawings.walk(
                strips, opacity, arrays["nearest_visible"][n], same[n], found["steps"],
                tuple(arrays["size"].tolist()), index["skeleton"],
                f"component {component}{share}",
            ),
        )  # fmt: skip


def _clusters(record, arrays: Mapping[str, np.ndarray], index) -> _Made:
    yield (
        "clusters_counts",
        "How many clusters there are",
        captions.counts(record),
        cluster_drawings.counts(record["counts"], thesis_numbers.SILHOUETTES),
    )
    for name in sorted(n[5:-8] for n in arrays if n.endswith("_members")):
        yield _view(record, arrays, name)
    if "nearest_crops" in arrays:
        yield (
            "clusters_nearest",
            "Nearest to the centres",
            captions.NEAREST,
            cluster_drawings.nearest(arrays["nearest_crops"]),
        )
    best = record["best"]
    yield (
        "clusters_agreement",
        "What the clusters agree with",
        captions.agreement(record),
        cluster_drawings.agreement(record["counts"][str(best)]["agreement"], best),
    )


def _view(record, arrays: Mapping[str, np.ndarray], name: str):
    places, members, picked, thumbnails = (
        arrays[f"view_{name}{part}"]
        for part in ("", "_members", "_picked", "_thumbnails")
    )
    # Positions, members and labels carry one order; `members` are numbers of all people.
    labels = arrays["chosen_labels"][members]
    title = "all people" if name == "all" else f"cluster {name} by itself"
    drawn = len(cluster_drawings.apart(places, picked))
    return (
        f"clusters_view_{name}",
        f"Where people lie: {title}",
        captions.view(record, name, drawn, len(places)),
        cluster_drawings.view(
            places, labels, picked, thumbnails, title,
            (record.get("view_shares") or {}).get(name),
        ),
    )  # fmt: skip


def _redundancy(record, arrays: Mapping[str, np.ndarray], index) -> _Made:
    if record["taps"]:
        yield (
            "redundancy_taps",
            "Components for 95 % at every tap",
            captions.taps(record),
            cluster_drawings.taps(record["taps"]),
        )
    yield (
        "redundancy_pruning",
        "Channels that can be spared",
        captions.pruning(record),
        cluster_drawings.pruning(record["pruning"]),
    )


def read_index(folder: Any) -> list[dict[str, Any]]:
    """What `draw_folder` wrote: `file, title, caption, study` of every figure.

    Raises:
      ValueError: the file is no list of figures.
    """
    path = epath.Path(folder) / "figures" / INDEX
    found = read_json(path, [])
    if not isinstance(found, list):
        raise ValueError(f"{path} holds no list; delete it and draw again")
    return found
