"""COCO keypoint files, read and checked for the evaluation.

What the evaluation libraries let pass with a plausible number is an error here: NaN
coordinates (AP 1.0 in pycocotools), areas of zero (AP 0), ids that start at 0 (one
match lost), unknown images, points of another skeleton.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import json
import math
import os
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

__all__ = ["GroundTruth", "Source", "check_counts", "read_ground_truth", "read_results"]

Source = dict | list | str | os.PathLike
"""Parsed JSON or the path of a JSON file."""


@dataclasses.dataclass(frozen=True, eq=False)
class GroundTruth:
    """A checked ground-truth file; image and annotation ids are renumbered from 1.

    Attributes:
      image_number: image id of the file -> internal id, in the order of the ids.
      categories: category ids that the file lists or uses.
      annotations: the fields that AP reads, one dict per annotation.
      notes: what a reader of the numbers should know about the file.
    """

    image_number: dict[Hashable, int]
    categories: tuple[int, ...]
    annotations: list[dict[str, Any]]
    notes: list[str]

    def scored(self) -> list[dict[str, Any]]:
        """Annotations that count: not crowd, at least one labelled keypoint."""
        return [a for a in self.annotations if a["num_keypoints"] and not a["iscrowd"]]


def check_counts(
    ground_truth: Source,
    results: Source,
    sigmas: Sequence[float] | np.ndarray,
    keypoint_names: Sequence[str] | None = None,
) -> tuple[dict, list]:
    """Both files parsed, refused unless all of them speak of the same keypoints.

    Raises:
      ValueError: a file has the wrong form; the numbers of sigmas, names, points per
        annotation and points per result differ; names come in another order.
    """
    truth, rows = _parsed(ground_truth), _parsed(results)
    if not isinstance(truth, dict) or not {"images", "annotations"} <= truth.keys():
        raise ValueError(
            "ground truth must be a COCO dict with 'images' and 'annotations'; results "
            "go into the second argument"
        )
    if not isinstance(rows, list):
        raise ValueError(
            f"results must be a list of COCO result rows, not {type(rows).__name__}"
        )
    counts = {"sigmas": float(len(sigmas))}
    if keypoint_names is not None:
        counts["keypoint names"] = float(len(keypoint_names))
    for category in truth.get("categories", ()):
        if category.get("keypoints"):
            counts[f"names in category {category.get('name')!r}"] = float(
                len(category["keypoints"])
            )
            _check_order(keypoint_names, category["keypoints"])
    for what, items in (("annotation", truth["annotations"]), ("result row", rows)):
        first = next((r["keypoints"] for r in items if r.get("keypoints")), None)
        if first is not None:
            counts[f"keypoints per {what}"] = len(first) / 3
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{value:g} {what}" for what, value in counts.items())
        raise ValueError(
            f"keypoint counts differ: {listed}; choose the skeleton of these files"
        )
    return truth, rows


def read_ground_truth(truth: dict, num_keypoints: int) -> GroundTruth:
    """The annotations that AP needs, from parsed JSON (left unchanged).

    `iscrowd` defaults to 0 and `num_keypoints` to the number of labelled points.

    Raises:
      ValueError: duplicate or unknown ids; a person that counts has no positive area or
        a labelled point that is not finite; a person to be ignored has no box.
    """
    image_ids = [
        _field(row, "id", "images", i) for i, row in enumerate(truth["images"])
    ]
    _refuse_duplicates(image_ids, "image id")
    # Detections with equal scores keep the order of the image ids, as in pycocotools.
    try:
        image_number = {name: i + 1 for i, name in enumerate(sorted(image_ids))}
    except TypeError:
        raise ValueError(
            "image ids mix numbers and words; use one kind in the whole file"
        ) from None
    rows = truth["annotations"]
    ids = [_field(row, "id", "annotations", i) for i, row in enumerate(rows)]
    _refuse_duplicates(ids, "annotation id")
    zeros = [0.0] * (3 * num_keypoints)
    points = _points(
        [row.get("keypoints") or zeros for row in rows],
        num_keypoints,
        lambda i: f"annotation id {ids[i]!r}",
    )
    annotations = [
        _annotation(row, points[i], image_number, i + 1) for i, row in enumerate(rows)
    ]
    changed = sum(
        (a["num_keypoints"] > 0) != bool((a["keypoints"][2::3] > 0).any())
        for a in annotations
    )
    notes = []
    if changed:
        notes.append(
            f"{changed} annotations state a num_keypoints that contradicts their "
            "points; the stated number decides whether a person counts"
        )
    return GroundTruth(
        image_number=image_number,
        categories=tuple(
            {c["id"] for c in truth.get("categories", ())}
            | {a["category_id"] for a in annotations}
        ),
        annotations=annotations,
        notes=notes,
    )


def read_results(
    rows: list, ground_truth: GroundTruth, num_keypoints: int
) -> list[dict[str, Any]]:
    """Result rows as the evaluation wants them, from parsed JSON (left unchanged).

    A `bbox` of a row is dropped: the area of a result is its keypoint extent, and a box
    would change AP_M and AP_L.

    Raises:
      ValueError: a coordinate or score is not finite, an image or category is unknown,
        a row is incomplete; the message names the row and its image.
    """
    images = _column(rows, "image_id")
    categories = _column(rows, "category_id")

    def where(i):
        return f"results[{i}] (image_id {images[i]!r})"

    for i, (image, category) in enumerate(zip(images, categories, strict=True)):
        if category not in ground_truth.categories:
            raise ValueError(
                f"{where(i)} has category {category!r}; the ground truth has "
                f"{sorted(ground_truth.categories)}"
            )
        if image not in ground_truth.image_number:
            raise ValueError(
                f"{where(i)} is not an image of the ground truth; check that image_id "
                "is not an annotation id and that both files belong to one split"
            )
    points = _points(_column(rows, "keypoints"), num_keypoints, where)
    scores = np.array(_column(rows, "score"), np.float64)
    bad = np.flatnonzero(~np.isfinite(scores))
    if bad.size:
        raise ValueError(f"score of {where(bad[0])} is {scores[bad[0]]}, not finite")
    bad = np.flatnonzero(~np.isfinite(points).all(axis=1))
    if bad.size:
        joint = int(np.flatnonzero(~np.isfinite(points[bad[0]]))[0]) // 3
        raise ValueError(
            f"keypoint {joint} of {where(bad[0])} is not finite "
            f"({points[bad[0], 3 * joint : 3 * joint + 3].tolist()}); fix it upstream"
        )
    xy = points.reshape(len(rows), num_keypoints, 3)[..., :2]
    low = xy.min(axis=1, initial=np.inf)
    extent = xy.max(axis=1, initial=-np.inf) - low
    return [
        {
            "id": i + 1,
            "image_id": ground_truth.image_number[images[i]],
            "category_id": categories[i],
            "keypoints": points[i],
            "score": score,
            "bbox": box,
            "area": area,
        }
        for i, (score, box, area) in enumerate(
            zip(
                scores.tolist(),
                np.concatenate([low, extent], axis=1).tolist(),
                extent.prod(axis=1).tolist(),
                strict=True,
            )
        )
    ]


def _annotation(row, points, image_number, number) -> dict[str, Any]:
    """One annotation with the fields that AP reads."""
    name = f"annotation id {row['id']!r}"
    image = row.get("image_id")
    if image not in image_number:
        raise ValueError(
            f"{name} lies in image {image!r}, which the list of images does not have"
        )
    labelled = points[2::3] > 0
    if not np.isfinite(points.reshape(-1, 3)[labelled]).all():
        raise ValueError(f"{name} has a labelled keypoint that is not finite")
    stated = row.get("num_keypoints")
    count = int(labelled.sum()) if stated is None else int(stated)
    crowd = int(row.get("iscrowd") or 0)
    box = [float(x) for x in row.get("bbox") or ()]
    if not labelled.any() and not (len(box) == 4 and all(map(math.isfinite, box))):
        raise ValueError(
            f"{name} has no labelled keypoint and no usable 'bbox' [x, y, width, "
            "height]; such persons are ignored around their box, so give one"
        )
    box = box if len(box) == 4 else [0.0] * 4
    area = row.get("area")
    if count and not crowd and not (area is not None and 0 < area < math.inf):
        raise ValueError(
            f"{name} has area {area}; OKS divides by the person's area in square "
            "pixels: store the segmentation area, or fill in 0.53 * box width * box "
            "height (area_source='box') before evaluating"
        )
    return {
        "id": number,
        "image_id": image_number[image],
        "category_id": row.get("category_id", 1),
        "keypoints": points,
        "num_keypoints": count,
        "iscrowd": crowd,
        "bbox": box,
        # Only persons that are ignored anyway get here without an area.
        "area": float(0.53 * box[2] * box[3] if area is None else area),
    }


def _parsed(source: Source) -> Any:
    if isinstance(source, (str, os.PathLike)):
        with open(source, encoding="utf-8") as file:
            return json.load(file)
    return source


def _points(rows: list, num_keypoints: int, where) -> np.ndarray:
    """`[n, 3 k]` numbers; `where(i)` names row i in an error."""
    width = 3 * num_keypoints
    for i, row in enumerate(rows):
        if len(row) != width:
            raise ValueError(
                f"{where(i)} has {len(row)} numbers in 'keypoints'; it needs x, y and "
                f"a third number for each of {num_keypoints} keypoints"
            )
    flat = itertools.chain.from_iterable(rows)
    return np.fromiter(flat, np.float64, len(rows) * width).reshape(len(rows), width)


def _column(rows: list, key: str) -> list:
    try:
        return [row[key] for row in rows]
    except KeyError:
        return [_field(row, key, "results", i) for i, row in enumerate(rows)]


def _field(row: dict, key: str, what: str, index: int) -> Any:
    if key not in row:
        raise ValueError(f"{what}[{index}] has no {key!r}; COCO files need it")
    return row[key]


def _refuse_duplicates(ids: list, what: str) -> None:
    repeated = [name for name, n in collections.Counter(ids).items() if n > 1]
    if repeated:
        rows = [i for i, name in enumerate(ids) if name == repeated[0]]
        raise ValueError(
            f"{what} {repeated[0]!r} occurs {len(rows)} times (rows {rows[0]} and "
            f"{rows[1]}, {len(repeated)} such ids in all); ids must be unique"
        )


def _check_order(names: Sequence[str] | None, stored: Sequence[str]) -> None:
    if names is None or list(names) == list(stored) or set(names) != set(stored):
        return
    raise ValueError(
        f"the file orders its keypoints {list(stored)} but the skeleton {list(names)}; "
        "reorder one of them, AP compares by position"
    )
