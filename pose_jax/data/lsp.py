"""Leeds Sports Pose (Johnson and Everingham 2010) and its extended training set (2011).

Both come as `joints.mat` and a folder of numbered pictures, one person each, 14 joints. Two
traps: LSP stores `[3, 14, n]` and its third number is 1 where a joint is *occluded*; LSPET
stores `[14, 3, n]` and its third number is 1 where a joint is *labelled* (the other joints
hold rubbish such as (0, -26)). The coordinates are used as they are.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from PIL import Image as PillowImage

from pose_jax import geometry, skeletons
from pose_jax.data.checks import DataError
from pose_jax.data.images import SUFFIXES
from pose_jax.data.sources import AREA_OF_BOX, Filters, PeopleSource, Person

MARGIN = 0.12
"""Margin around the labelled joints, in longer sides: the files hold no boxes."""

_SLICE = re.compile(r"(.+)\[(\d*):(\d*)\]")


def lsp(
    path: str,
    images: str | Path,
    *,
    filters: Filters | None = None,
    need_area: bool = False,
) -> PeopleSource:
    """People of LSP or LSPET, told apart by the layout of `joints.mat`.

    The box is the extent of the labelled joints plus 12 % of its longer side all around,
    clipped to the picture; the area is 0.53 x width x height of the box, an estimate. People
    whose picture is not in the folder are dropped and counted; ids are picture numbers.

    Args:
      path: `joints.mat`, or a range of its pictures counted from 0 as in a Python slice:
        LSP's training people are `joints.mat[:1000]`, its test people `joints.mat[1000:]`.
      images: folder of im0001.jpg, im0002.jpg, ...
      need_area: refuse, because the areas are estimates.

    Raises:
      DataError: missing or faulty file, no pictures, nobody left, or `need_area`.
    """
    if need_area:
        raise DataError(
            "LSP has no person areas, which COCO AP needs; set "
            "config.evaluate.area_source='box' to use 0.53 x width x height"
        )
    match = _SLICE.fullmatch(str(path))
    first = int(match[2] or 0) if match else 0
    last = int(match[3]) if match and match[3] else None
    filters = filters or Filters()
    points, visible = read_joints(Path(match[1] if match else path))
    pictures = _numbered(Path(images))
    dropped: Counter[str] = Counter()
    people = []
    for index in range(len(points))[first:last]:
        number = index + 1
        if not filters.in_part(number, number):
            continue
        labelled = visible[index] > 0
        if not labelled.any():
            dropped["without labelled keypoints"] += 1
        elif number not in pictures:
            dropped["without a picture in the folder"] += 1
        else:
            name = pictures[number]
            box = _box(points[index], labelled, Path(images) / name)
            person = Person(
                id=number,
                image_id=number,
                file_name=name,
                box=box,
                keypoints=np.where(labelled[:, None], points[index], 0.0),
                visible=visible[index],
                area=float(AREA_OF_BOX * box[2] * box[3]),
            )
            people.append(person)
    people = filters.select(people, dropped, str(path))
    return PeopleSource(str(path), skeletons.LSP, people, Path(images), dropped)


def read_joints(
    path: Path,
) -> tuple[Float[np.ndarray, "n 14 2"], Int[np.ndarray, "n 14"]]:
    """Keypoints and visibility (0 not labelled, 1 occluded, 2 visible) of a `joints.mat`.

    Raises:
      DataError: no file, no MATLAB file, or `joints` of another shape.
    """
    from scipy.io import loadmat

    if not path.is_file():
        raise DataError(
            f"annotation file {path} does not exist; set POSE_JAX_DATA to the folder that "
            "holds the data sets, or give an absolute path"
        )
    try:
        joints = loadmat(path, appendmat=False)["joints"]
    except Exception as error:  # SciPy raises many kinds on damaged files.
        raise DataError(
            f"{path} is not a MATLAB file with the variable 'joints' ({error})"
        ) from None
    shape = np.shape(joints)
    if len(shape) == 3 and shape[:2] == (3, 14):
        points = joints[:2].transpose(2, 1, 0)
        visible = np.where(joints[2].T > 0, 1, 2)
    elif len(shape) == 3 and shape[:2] == (14, 3):
        points = joints[:, :2].transpose(2, 0, 1)
        visible = np.where(joints[:, 2].T > 0, 2, 0)
    else:
        raise DataError(
            f"{path}: joints has shape {shape}; LSP has (3, 14, n), LSPET (14, 3, n)"
        )
    points = points.astype(float)
    if not np.isfinite(points[visible > 0]).all():
        raise DataError(f"{path}: labelled joints are not finite numbers")
    return points, visible.astype(int)


def _numbered(folder: Path) -> dict[int, str]:
    """Names of the pictures by the number they hold."""
    names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
    pictures = [name for name in names if name.lower().endswith(SUFFIXES)]
    found = {int("0" + re.sub(r"\D", "", Path(n).stem)): n for n in pictures}
    if not found:
        raise DataError(
            f"{folder} holds no pictures; set config.data.*.images to the folder of "
            "im0001.jpg, im0002.jpg, ..."
        )
    return found


def _box(points, labelled, picture: Path) -> Float[np.ndarray, "4"]:
    try:
        with PillowImage.open(picture) as opened:  # Reads the header only.
            width, height = opened.size
    except OSError:  # Whoever asks for the picture is told.
        width = height = np.inf
    x, y, w, h = geometry.keypoint_box(points, labelled)
    margin = MARGIN * max(w, h)
    low = np.clip((x - margin, y - margin), 0, (width - 1, height - 1))
    high = np.clip((x + w + margin, y + h + margin), 1, (width, height))
    return np.concatenate([low, np.maximum(high - low, 1.0)])
