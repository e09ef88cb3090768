"""COCO keypoint AP and AR, refusing what the evaluation libraries score silently.

The numbers are those of the COCO keypoint evaluation (cocodataset.org/#keypoints-eval):
OKS thresholds .50:.05:.95, 101 recall points, at most 20 results per image, area from
the ground truth (for COCO: of the segmentation). `faster_coco_eval` computes them;
`pycocotools` gives the same.
"""

from __future__ import annotations

import collections
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Num, Shaped

from pose_jax.arrays import Array
from pose_jax.metrics import coco_files, similarity
from pose_jax.metrics.points import check_points

__all__ = ["coco_ap", "keypoint_oks_table"]

_RANGES = (
    ("", "at all", (0.0, 1e10)),
    ("_M", "of medium size (area 32^2 to 96^2)", (32.0**2, 96.0**2)),
    ("_L", "of large size (area above 96^2)", (96.0**2, 1e10)),
)
_OKS_50, _OKS_75 = 0, 5


def coco_ap(
    ground_truth: coco_files.Source,
    results: coco_files.Source,
    *,
    sigmas: Sequence[float] | Num[np.ndarray, "k"],
    keypoint_names: Sequence[str] | None = None,
    max_detections: int = 20,
) -> dict[str, Any]:
    """AP and AR of result rows against a COCO keypoint file, as fractions.

    Any number of keypoints works. Ids may start at 0, `iscrowd` and `num_keypoints` may
    be missing, an empty result list scores 0. People smaller than 32^2 count in AP but
    in no size row. Only a row's `score` ranks it, never the third number of its
    keypoints.

    Args:
      ground_truth: COCO dict or the path of its JSON file.
      results: list of rows `image_id, category_id, keypoints [3 k], score`, or a path.
        A row's `bbox` is not read: the size of a result is its keypoint extent.
      sigmas: constants of the keypoints, `Skeleton.sigmas`.
      keypoint_names: `Skeleton.keypoints`; the file's own names must not have another
        order.
      max_detections: results per image and category that count, best scores first.

    Returns:
      AP, AP50, AP75, AP_M, AP_L, AR, AR50, AR75, AR_M, AR_L, each None where the ground
      truth has nobody to find; `notes`, sentences about such gaps; `counts` {images,
      persons, results}.

    Raises:
      ValueError: the input cannot be scored honestly (see `coco_files`); the message
        names the row and what to do.
    """
    truth, rows = coco_files.check_counts(ground_truth, results, sigmas, keypoint_names)
    labels = coco_files.read_ground_truth(truth, len(sigmas))
    found = coco_files.read_results(rows, labels, len(sigmas))
    persons = labels.scored()
    notes = [*labels.notes, *_cut_note(found, max_detections)]
    for suffix, words, (low, high) in _RANGES:
        if not any(low <= person["area"] <= high for person in persons):
            notes.append(
                f"no labelled person {words}: AP{suffix} and AR{suffix} are None"
            )
    precision = recall = np.full((10, len(_RANGES)), -1.0)
    if persons:
        precision, recall = _evaluate(labels, found, sigmas, max_detections)
    return {
        **_summary("AP", precision),
        **_summary("AR", recall),
        "notes": notes,
        "counts": {
            "images": len(labels.image_number),
            "persons": len(persons),
            "results": len(found),
        },
    }


def keypoint_oks_table(
    predicted: Num[Array, "n k 2"],
    true: Num[Array, "n k 2"],
    visible: Shaped[Array, "n k"],
    areas: Num[Array, "n"],
    sigmas: Sequence[float] | Num[np.ndarray, "k"],
    names: Sequence[str],
) -> dict[str, Any]:
    """Mean keypoint similarity of every joint over matched persons.

    AP is one number for whole persons; this table says which joints cost it.

    Args:
      predicted, true: image pixels; row i of both is the same person.
      visible: 0 not labelled, 1 and 2 labelled.
      areas: square pixels, as in `similarity.keypoint_similarity`.
      names: joints, in order.

    Returns:
      `joints` {name: {count, oks}} with oks None for a joint without a label; `oks`,
      the mean OKS of the persons with a label; `persons`, their number.

    Raises:
      ValueError: shapes disagree, a point is not finite, or the area of a labelled
        person is not above 0; the message names the row.
    """
    names = tuple(names)
    predicted, true, visible = check_points(predicted, true, visible, names)
    labelled, areas = visible > 0, np.asarray(areas, np.float64)
    if areas.shape != (len(true),) or len(sigmas) != len(names):
        raise ValueError(
            f"got areas {areas.shape} and {len(sigmas)} sigmas for {len(true)} persons "
            f"with {len(names)} keypoints; give an area per person, a sigma per joint"
        )
    some = labelled.any(axis=1)
    bad = np.flatnonzero(some & ~((areas > 0) & (areas < np.inf)))
    if bad.size:
        raise ValueError(
            f"area of row {bad[0]} is {areas[bad[0]]}; give the person's area in "
            "square pixels"
        )
    predicted, true, labelled = predicted[some], true[some], labelled[some]
    values = similarity.keypoint_similarity(predicted, true, areas[some], sigmas)
    persons = similarity.oks(predicted, true, labelled, areas[some], sigmas)
    count = labelled.sum(axis=0)
    total = np.sum(values, axis=0, where=labelled)
    return {
        "joints": {
            name: {"count": int(n), "oks": float(t / n) if n else None}
            for name, n, t in zip(names, count, total, strict=True)
        },
        "oks": float(np.mean(persons)) if len(persons) else None,
        "persons": len(persons),
    }


def _evaluate(labels, found, sigmas, max_detections) -> tuple[np.ndarray, np.ndarray]:
    """Precision `[10, 101, categories, 3]`, recall `[10, categories, 3]`; -1: none."""
    from faster_coco_eval import COCO, COCOeval_faster

    shared = {
        "images": [{"id": i} for i in labels.image_number.values()],
        "categories": [{"id": c} for c in labels.categories],
    }
    truth = COCO({**shared, "annotations": labels.annotations}, print_function=_silent)
    poses = COCO({**shared, "annotations": found}, print_function=_silent)
    evaluator = COCOeval_faster(truth, poses, "keypoints", print_function=_silent)
    evaluator.params.kpt_oks_sigmas = np.asarray(sigmas, np.float64)
    evaluator.params.maxDets = [max_detections]
    evaluator.evaluate()
    evaluator.accumulate()
    return evaluator.eval["precision"][..., 0], evaluator.eval["recall"][..., 0]


def _summary(kind: str, values: np.ndarray) -> dict[str, float | None]:
    """The five numbers of one kind from `[thresholds, ..., ranges]`."""
    return {
        kind: _mean(values[..., 0]),
        f"{kind}50": _mean(values[_OKS_50, ..., 0]),
        f"{kind}75": _mean(values[_OKS_75, ..., 0]),
        f"{kind}_M": _mean(values[..., 1]),
        f"{kind}_L": _mean(values[..., 2]),
    }


def _mean(values: np.ndarray) -> float | None:
    values = values[values > -1]
    return float(values.mean()) if values.size else None


def _cut_note(found: list[dict], max_detections: int) -> list[str]:
    per_image = collections.Counter((r["image_id"], r["category_id"]) for r in found)
    crowded = sum(n > max_detections for n in per_image.values())
    if not crowded:
        return []
    return [
        f"only the {max_detections} best-scored results of an image count; "
        f"{crowded} of the images have more"
    ]


def _silent(*_, **__) -> None:
    pass
