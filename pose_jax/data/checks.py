"""Checks of annotation files: every fault is counted, named and comes with a way out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pose_jax.skeletons import Skeleton


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
            raise DataError(f"{name}: {ids[None]} {key} have no id; give each a unique id")
        twice = [i for i, n in ids.items() if n > 1]
        if twice:
            raise DataError(
                f"{name}: {len(twice)} duplicate ids in {key} ({_shown(twice)}); "
                "make every id unique"
            )
    known = {row["id"] for row in dataset["images"]}
    orphans = [a["id"] for a in dataset["annotations"] if a.get("image_id") not in known]
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
    if not all(math.isfinite(v) for v in (*keypoints, *box)):
        raise DataError(
            f"{where} has NaN or infinite coordinates; mark unlabelled keypoints as 0, 0, 0"
        )
    if box[2] <= 0 or box[3] <= 0:
        raise DataError(f"{where} has a box of size {box[2]} x {box[3]}; sides must be > 0")
    if need_area and not annotation.get("area", 0) > 0:
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
