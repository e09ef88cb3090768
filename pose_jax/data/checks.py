"""Checks of annotation files: every fault is counted, named and comes with a way out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pose_jax.skeletons import Skeleton

MAX_UNREADABLE = 0.01
"""Share of pictures that a data set being prepared may lose."""

NO_AP = (
    "COCO AP needs every person of a picture in one frame, also the ignored ones, which "
    "prepared data lacks; use pck, or evaluate on the original annotation file"
)


class DataError(ValueError):
    """Annotations that cannot be used as they are."""


def _shown(values: Sequence[Any]) -> str:
    head = ", ".join(str(v) for v in values[:5])
    return head + (", ..." if len(values) > 5 else "")


def check_coco(dataset: Any, name: str) -> None:
    """Structure, ids and references of a COCO-format file.

    Raises:
      DataError: not COCO format, duplicate ids, or annotations of unknown images.
    """
    if not isinstance(dataset, Mapping):
        raise DataError(f"{name} holds no JSON object; a COCO file is an object")
    for key in ("images", "annotations", "categories"):
        if not isinstance(dataset.get(key), list):
            raise DataError(
                f"{name} has no list {key!r}; a COCO keypoint file has images, "
                "annotations and categories"
            )
    for key in ("images", "annotations"):
        ids = Counter(row.get("id") for row in dataset[key])
        if None in ids:
            raise DataError(
                f"{name}: {ids[None]} {key} have no id; give each a unique id"
            )
        strange = [i for i in ids if not isinstance(i, int)]
        if strange:
            raise DataError(
                f"{name}: {len(strange)} ids in {key} are no integers ({_shown(strange)}); "
                "number them"
            )
        twice = [i for i, n in ids.items() if n > 1]
        if twice:
            raise DataError(
                f"{name}: {len(twice)} duplicate ids in {key} ({_shown(twice)}); "
                "make every id unique"
            )
    unnamed = [row["id"] for row in dataset["images"] if not row.get("file_name")]
    if unnamed:
        raise DataError(
            f"{name}: {len(unnamed)} images have no file_name (ids {_shown(unnamed)}); "
            "add it"
        )
    known = {row["id"] for row in dataset["images"]}
    orphans = [
        a["id"] for a in dataset["annotations"] if a.get("image_id") not in known
    ]
    if orphans:
        raise DataError(
            f"{name}: {len(orphans)} annotations point at images that are not listed "
            f"(annotation ids {_shown(orphans)}); remove them or add the images"
        )


def check_person(
    annotation: Mapping[str, Any], skeleton: Skeleton, name: str, *, need_area: bool
) -> None:
    """One labelled person.

    Raises:
      DataError: keypoint count, box, coordinates or area cannot be used.
    """
    where = f"{name}: annotation {annotation['id']}"
    keypoints = annotation.get("keypoints", ())
    if len(keypoints) != 3 * skeleton.num_keypoints:
        raise DataError(
            f"{where} has {len(keypoints)} keypoint numbers but skeleton "
            f"{skeleton.name!r} needs 3 x {skeleton.num_keypoints}; fix the file or its "
            "category's list of keypoint names"
        )
    box = annotation.get("bbox")
    if box is None or len(box) != 4:
        raise DataError(f"{where} has no bbox [x, y, width, height]; add one")
    numbers = (*keypoints, *box)
    if not all(isinstance(v, int | float) and math.isfinite(v) for v in numbers):
        raise DataError(
            f"{where} has coordinates that are no finite numbers; mark unlabelled "
            "keypoints as 0, 0, 0"
        )
    if strange := set(keypoints[2::3]) - {0, 1, 2}:
        raise DataError(
            f"{where} has visibility {_shown(sorted(strange))}; use 0 (not labelled), "
            "1 (occluded) or 2 (visible)"
        )
    if box[2] <= 0 or box[3] <= 0:
        raise DataError(
            f"{where} has a box of size {box[2]} x {box[3]}; sides must be > 0"
        )
    if need_area and not (annotation.get("area") or 0) > 0:
        raise DataError(
            f"{where} has area {annotation.get('area')}; object keypoint similarity needs "
            "area > 0: fix the file, or set config.evaluate.area_source='box' to use "
            "0.53 x width x height"
        )


def require_some(count: int, dropped: Mapping[str, int], name: str) -> None:
    """Refuse an empty data set.

    Raises:
      DataError: nobody is left; the message counts why people were dropped.
    """
    if count == 0:
        reasons = ", ".join(f"{n} {why}" for why, n in dropped.items()) or "none listed"
        raise DataError(
            f"{name} has no usable person (dropped: {reasons}); relax the filters of "
            "config.data or check the file"
        )


def check_unreadable(reasons: Sequence[str], pictures: int, name: str) -> None:
    """Refuse a data set of which too many pictures cannot be read.

    Raises:
      DataError: more than 1 % of them; the message names the first.
    """
    if len(reasons) > MAX_UNREADABLE * pictures:
        first = "\n  ".join(reasons[:5])
        raise DataError(
            f"{len(reasons)} of {pictures} pictures of {name} cannot be read, more than "
            f"{MAX_UNREADABLE:.0%}; check the folder of images. The first:\n  {first}"
        )
