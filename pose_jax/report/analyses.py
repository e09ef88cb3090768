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

from pose_jax.report import analysis_figures
from pose_jax.report.plotting import png
from pose_jax.writer import read_json, write_json

INDEX = "index.json"
_DAMAGED = (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error)


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
    for study, make in analysis_figures.MAKERS.items():
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
