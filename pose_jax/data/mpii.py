"""MPII Human Pose (Andriluka et al. 2014): Newell's h5 and HRNet's JSON annotations.

Both files hold the coordinates of the original MATLAB release, whose pixels count from 1 (so
confirmed by its authors); 1 is subtracted from joints and centres. Tools that use Newell's
h5 as it stands are one pixel off on pictures, which PCKh between two such points never shows.

A person is given by a centre and a scale: the body is 200 x scale pixels high. The usual
crop (Newell et al. 2016, HRNet) is a square of side 1.25 x 200 x scale around a centre that
is moved down by 15 x scale. Here the box is that square without the factor 1.25, so that
`input.padding = 1.25` gives the usual crop. The h5 carries both changes already, the JSON
carries neither; both give the same boxes.
"""

from __future__ import annotations

import json
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pose_jax import geometry, skeletons
from pose_jax.data.checks import DataError
from pose_jax.data.sources import AREA_OF_BOX, Filters, PeopleSource, Person

BODY_PX = 200.0
"""Body height in pixels at scale 1."""

_FIRST_PIXEL = 1.0  # MATLAB
_DOWN_PX = 15.0  # at scale 1
_USUAL_PADDING = 1.25  # contained in the scale of the h5


def mpii(
    path: str | Path,
    images: str | Path,
    *,
    filters: Filters | None = None,
    need_area: bool = False,
) -> PeopleSource:
    """People of MPII, from `valid.h5`/`train.h5` (Newell) or a JSON (HRNet, MMPose).

    A joint is labelled unless both its numbers are zero (h5: this agrees with the official
    `jnt_missing` on all 47,328 joints of the validation people, while Newell's rule `x = 0`
    loses one) or its `joints_vis` is 0 (JSON). The h5 tells occluded joints (1) from visible
    ones (2); the JSON does not, so all of its labelled joints are 2. The h5 has cut the
    fraction off neck and head top, which are up to one pixel too far up and left (and 13 of
    its 47,328 joints lie elsewhere than in the official evaluation file).

    `head_size` is the h5's `normalize`, 0.6 x the diagonal of the head box; the JSON has
    none. `area` is 0.53 x the extent of the labelled joints, an estimate for OKS.

    Raises:
      DataError: missing or faulty file, nobody left, or `need_area` (MPII has no areas).
    """
    path, filters = Path(path), filters or Filters()
    if need_area:
        raise DataError(
            "MPII has no person areas, which COCO AP needs; set "
            'config.evaluate.metrics=\'("pckh", "pck")\''
        )
    if not path.is_file():
        raise DataError(
            f"annotation file {path} does not exist; set POSE_JAX_DATA to the folder that "
            "holds the data sets, or give an absolute path"
        )
    rows = _json_rows(path) if path.suffix == ".json" else _h5_rows(path)
    dropped: Counter[str] = Counter()
    people = []
    for number, row in enumerate(rows):
        image_id = _image_id(row["name"])
        if not filters.in_part(image_id, number + 1):
            continue
        if row["centre"][0] < 0:
            dropped["without a position"] += 1
        elif not (row["visible"] > 0).any():
            dropped["without labelled keypoints"] += 1
        else:
            people.append(_person(number, image_id, row, path))
    people = filters.select(people, dropped, str(path))
    return PeopleSource(str(path), skeletons.MPII, people, Path(images), dropped)


def _person(number: int, image_id: int, row: dict[str, Any], path: Path) -> Person:
    labelled = row["visible"] > 0
    points = np.where(labelled[:, None], row["joints"] - _FIRST_PIXEL, 0.0)
    side = BODY_PX * row["scale"]
    centre = row["centre"] - _FIRST_PIXEL
    if not (np.isfinite(points).all() and np.isfinite(centre).all() and side > 0):
        raise DataError(
            f"{path}: person {number} ({row['name']}) has centre {row['centre']} and scale "
            f"{row['scale']}, or joints that are not finite; fix or remove the row"
        )
    extent = geometry.keypoint_box(points, labelled)
    return Person(
        id=number + 1,  # COCO evaluation takes 0 for "no match".
        image_id=image_id,
        file_name=row["name"],
        box=np.array([*(centre - side / 2), side, side]),
        keypoints=points,
        visible=row["visible"],
        area=float(AREA_OF_BOX * extent[2] * extent[3]),
        head_size=row["head_size"],
    )


def _image_id(name: str) -> int:
    """The number that is the picture's name, the same in every annotation file."""
    stem = Path(name).stem
    return int(stem) if stem.isdigit() else zlib.crc32(name.encode())


def _h5_rows(path: Path) -> Iterator[dict[str, Any]]:
    import h5py

    names = ("imgname", "part", "visible", "center", "scale", "normalize")
    try:
        with h5py.File(path) as file:
            missing = [name for name in names if name not in file]
            if missing:
                raise DataError(
                    f"{path} has no {missing[0]!r}; use train.h5 or valid.h5 of the "
                    "hourglass authors, or an HRNet JSON"
                )
            columns = [np.asarray(file[name]) for name in names]
    except OSError as error:
        raise DataError(f"{path} is not an HDF5 file ({error})") from None
    if columns[1].shape[1:] != (16, 2):
        raise DataError(f"{path}: part has shape {columns[1].shape}, not [n, 16, 2]")
    for name, joints, flags, centre, scale, head in zip(*columns):
        labelled = (joints != 0).any(-1)
        scale = float(scale) / _USUAL_PADDING
        yield {
            "name": _text(name),
            "joints": joints.astype(float),
            "visible": np.where(labelled, np.where(flags > 0, 2, 1), 0),
            "centre": centre.astype(float),
            "scale": scale,
            "head_size": float(head),
        }


def _text(name: Any) -> str:
    """A name that HDF5 holds as bytes, text or a row of character codes."""
    if isinstance(name, np.ndarray):
        return "".join(chr(int(code)) for code in name if code)
    return name.decode() if isinstance(name, bytes) else str(name)


def _json_rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        rows = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not valid JSON ({error})") from None
    if not isinstance(rows, list):
        raise DataError(
            f"{path} holds no JSON list; COCO-format files need name='coco'"
        )
    for number, row in enumerate(rows):
        try:
            joints = np.asarray(row["joints"], float)
            centre = np.asarray(row["center"], float)
            flags = np.asarray(row["joints_vis"])
            name, scale = str(row["image"]), float(row["scale"])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{path}: row {number} has no usable {error}; needed are image, joints, "
                "joints_vis, center, scale"
            ) from None
        if joints.shape != (16, 2) or flags.shape != (16,) or centre.shape != (2,):
            raise DataError(
                f"{path}: row {number} has {joints.shape} joints, not [16, 2]"
            )
        if centre[0] >= 0:
            centre = centre + (0.0, _DOWN_PX * scale)
        yield {
            "name": name,
            "joints": joints,
            "visible": np.where(flags > 0, 2, 0),
            "centre": centre,
            "scale": scale,
            "head_size": float("nan"),
        }
