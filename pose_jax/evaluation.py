"""Scores of predictions: PCK family, COCO AP, baselines; numbers always with protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pose_jax import intervals, skeletons
from pose_jax.data.pipeline import crop_matrix, to_skeleton
from pose_jax.data.sources import Person, Source
from pose_jax.inference import Predictions
from pose_jax.metrics import coco_ap as ap
from pose_jax.metrics import pck as pck_
from pose_jax.metrics.similarity import oks_nms, rescore
from pose_jax.recipe import Recipe

METRICS = ("pck", "pck_torso", "pck_crop", "heatmap_pck", "pckh", "ap", "occlusion")


def results_rows(
    predictions: Predictions,
    source: Source,
    recipe: Recipe,
    *,
    detected: bool,
    nms: float,
    score_threshold: float,
) -> list[dict[str, Any]]:
    """COCO result format: image_id, category_id, keypoints (x, y, score), score.

    The keypoints are those of the data's skeleton; joints that the model lacks stand at the
    person's box centre with score 0. Detections are rescored (box score x mean of the
    keypoint scores above the threshold) and thinned by OKS-NMS; its area is the padded box,
    unlike the segmentation area inside AP.
    """
    people = [source.person(int(row)) for row in predictions.rows]
    shared = skeletons.mapping(recipe.skeleton, source.skeleton)
    k = source.skeleton.num_keypoints
    points = np.zeros((len(people), k, 2))
    scores = np.zeros((len(people), k))
    for n, person in enumerate(people):
        points[n] = person.box[:2] + person.box[2:] / 2
    points[:, shared.target] = predictions.keypoints[:, shared.source]
    scores[:, shared.target] = predictions.scores[:, shared.source]
    used = scores[:, shared.target]
    if detected:
        boxes = np.array([p.box_score for p in people])
        person_scores = np.asarray(rescore(boxes, used, threshold=score_threshold))
        keep = _suppress(
            people, points[:, shared.target], person_scores, recipe,
            np.asarray(source.skeleton.sigmas)[shared.target], nms,
        )  # fmt: skip
    else:
        person_scores = used.mean(1)
        keep = np.arange(len(people))
    return [
        {
            "image_id": people[n].image_id,
            "category_id": 1,
            "keypoints": np.concatenate([points[n], scores[n][:, None]], axis=1)
            .round(3)
            .ravel()
            .tolist(),
            "score": round(float(person_scores[n]), 6),
        }
        for n in keep
    ]


def _suppress(people, points, scores, recipe: Recipe, sigmas, threshold: float):
    padding = recipe.spec.padding
    by_image: dict[Any, list[int]] = {}
    for n, person in enumerate(people):
        by_image.setdefault(person.image_id, []).append(n)
    keep: list[int] = []
    for members in by_image.values():
        index = np.array(members)
        areas = np.array([np.prod(people[n].box[2:] * padding) for n in members])
        kept = oks_nms(points[index], scores[index], areas, sigmas, threshold)
        keep.extend(index[np.asarray(kept)].tolist())
    return np.array(sorted(keep), int)


def ground_truth(source: Source) -> dict[str, Any]:
    """The labels of a source as a COCO-format object (its own file where it has one).

    People whom the source's filters left out become ignore regions, as COCO's own people
    without labels are: nobody predicts them, and finding them is no mistake.
    """
    own = getattr(source, "ground_truth", None)
    if own is not None:
        kept = {source.person(row).id for row in range(len(source))}
        rows = [
            a if a["id"] in kept or a.get("iscrowd") else _unlabelled(a)
            for a in own["annotations"]
        ]
        return {**own, "annotations": rows}
    people = [source.person(row) for row in range(len(source))]
    return {
        "images": [{"id": i} for i in sorted({p.image_id for p in people})],
        "categories": [
            {"id": 1, "name": "person", "keypoints": list(source.skeleton.keypoints)}
        ],
        "annotations": [
            {
                "id": p.id,
                "image_id": p.image_id,
                "category_id": 1,
                "iscrowd": 0,
                "bbox": p.box.tolist(),
                "area": p.area,
                "num_keypoints": int((p.visible > 0).sum()),
                "keypoints": np.concatenate([p.keypoints, p.visible[:, None]], axis=1)
                .ravel()
                .tolist(),
            }
            for p in people
        ],
    }


def _unlabelled(annotation: Mapping[str, Any]) -> dict[str, Any]:
    blank = [0] * len(annotation.get("keypoints") or ())
    return {**annotation, "num_keypoints": 0, "keypoints": blank}


def average_precision(
    source: Source, rows: Sequence[Mapping[str, Any]], recipe: Recipe, area_source: str
) -> dict[str, Any]:
    """COCO AP over the joints that model and data share."""
    shared = skeletons.mapping(recipe.skeleton, source.skeleton)
    dataset = ground_truth(source)
    if area_source == "box":
        dataset = {
            **dataset,
            "annotations": [
                {**a, "area": 0.53 * a["bbox"][2] * a["bbox"][3]}
                for a in dataset["annotations"]
            ],
        }
    if shared.missing:
        dataset = _only(dataset, shared.target)
    result = ap.coco_ap(dataset, list(rows), sigmas=np.asarray(source.skeleton.sigmas))
    return {
        **result,
        "area_source": area_source,
        "sigmas": source.skeleton.sigmas_source,
    }


def _only(dataset: Mapping[str, Any], joints: np.ndarray) -> dict[str, Any]:
    """Labels of other joints are taken away: the model cannot be asked for them."""
    annotations = []
    for annotation in dataset["annotations"]:
        numbers = np.asarray(annotation.get("keypoints", []), float).reshape(-1, 3)
        kept = np.zeros_like(numbers)
        if len(numbers):
            kept[joints] = numbers[joints]
        annotations.append(
            {
                **annotation,
                "keypoints": kept.ravel().tolist(),
                "num_keypoints": int((kept[:, 2] > 0).sum()),
            }
        )
    return {**dataset, "annotations": annotations}


def people_arrays(
    source: Source, rows: Sequence[int], recipe: Recipe
) -> tuple[list[Person], np.ndarray, np.ndarray]:
    """(people in the model's skeleton, keypoints `[n, k, 2]`, visible `[n, k]`)."""
    people = [
        to_skeleton(source.person(int(row)), source.skeleton, recipe.skeleton)
        for row in rows
    ]
    return (
        people,
        np.stack([p.keypoints for p in people]),
        np.stack([p.visible for p in people]),
    )


def mean_pose(people: Sequence[Person]) -> np.ndarray:
    """Mean position of every joint inside the box, in box sides: the baseline that sees no
    pixel. `[k, 2]`; joints that are never labelled stand in the middle."""
    total = np.zeros((len(people[0].visible), 2))
    count = np.zeros(len(people[0].visible))
    for person in people:
        labelled = person.visible > 0
        relative = (person.keypoints - person.box[:2]) / person.box[2:]
        total[labelled] += relative[labelled]
        count[labelled] += 1
    return np.where(count[:, None] > 0, total / np.maximum(count, 1)[:, None], 0.5)


def score(
    predictions: Predictions,
    source: Source,
    recipe: Recipe,
    section: Any,
    *,
    mean_pose_of: np.ndarray | None = None,
) -> dict[str, Any]:
    """Every metric of the PCK family that `section.metrics` asks for.

    `heatmap_pck` stands in one record per variant that the skeleton has.

    Raises:
      ValueError: unknown metric, or one that the data cannot give.
    """
    for metric in section.metrics:
        if metric not in METRICS:
            raise ValueError(
                f"unknown metric {metric!r} in evaluate.metrics; known: {', '.join(METRICS)}"
            )
    people, true, visible = people_arrays(source, predictions.rows.tolist(), recipe)
    boxes = np.stack([p.box for p in people])
    names, thresholds = recipe.skeleton.keypoints, tuple(section.pck_thresholds)
    result: dict[str, Any] = {}
    longer = pck_.box_longer_side(boxes)
    if "pck" in section.metrics:
        record = pck_.pck(
            predictions.keypoints,
            true,
            visible,
            longer,
            thresholds,
            names,
            name="PCK box",
        )
        result["pck"] = record.compute()
        if section.bootstrap:
            result["pck"]["interval_95"] = _interval(
                record, [p.image_id for p in people], visible, section.bootstrap
            )
        if mean_pose_of is not None:
            guess = boxes[:, None, :2] + mean_pose_of * boxes[:, None, 2:]
            baseline = pck_.pck(guess, true, visible, longer, thresholds, names)
            result["mean_pose"] = baseline.compute()
    if "pck_torso" in section.metrics:
        sides = pck_.torso(true, visible, recipe.skeleton)
        record = pck_.pck(
            predictions.keypoints, true, visible, sides, (0.2,), names, name="PCK torso"
        )
        result["pck_torso"] = record.compute()
    if "pck_crop" in section.metrics:
        matrices = np.stack([crop_matrix(p, recipe.view) for p in people])
        sides = pck_.crop_side(matrices, recipe.spec.size)
        record = pck_.pck(
            predictions.keypoints,
            true,
            visible,
            sides,
            thresholds,
            names,
            name="PCK crop",
        )
        result["pck_crop"] = record.compute()
    if "heatmap_pck" in section.metrics:
        drawn = np.where(predictions.drawn, visible, 0)
        for variant in pck_.heatmap_variants(names):
            record = pck_.heatmap_pck(
                predictions.grid, predictions.true_grid, drawn,
                predictions.map_side, names=names, variant=variant,
            )  # fmt: skip
            result[f"heatmap_pck_{variant}"] = record.compute()
    if "pckh" in section.metrics:
        heads = np.array([p.head_size for p in people])
        if not np.isfinite(heads).all():
            raise ValueError(
                "evaluate.metrics holds 'pckh' but the data has no head boxes; use MPII"
            )
        record = pck_.pckh(predictions.keypoints, true, visible, heads)
        result["pckh"] = {**record.compute(), "rows": pck_.pckh_rows(record)}
    return result


def _interval(record, images: Sequence[Any], visible, resamples: int):
    """95 % interval of the pooled PCK per threshold, resampling pictures."""
    labelled = (visible > 0).any(1)
    groups = [image for image, some in zip(images, labelled) if some]
    return [
        intervals.ratio_interval(
            correct, record.entry_count, groups, resamples=resamples
        )
        for correct in record.entry_correct
    ]


def protocol(
    source: Source, recipe: Recipe, section: Any, *, count: int, step: int
) -> str:
    """What a number means, in one line."""
    shared = skeletons.mapping(recipe.skeleton, source.skeleton)
    boxes = "ground truth" if section.boxes == "ground_truth" else section.boxes
    parts = [
        f"data {source.name}",
        f"{count} people",
        f"boxes: {boxes}",
        f"box x {recipe.spec.padding:g}",
        f"input {recipe.spec.size[0]}x{recipe.spec.size[1]}",
        f"flip test {'on' if section.flip_test else 'off'}",
        f"decode {recipe.codec.decode}",
        f"step {step}",
    ]
    if shared.missing:
        parts.append(f"{len(shared.names)} shared joints: {', '.join(shared.names)}")
    if source.dropped:
        dropped = ", ".join(f"{n} {why}" for why, n in source.dropped.items())
        parts.append(f"left out: {dropped}")
    return "; ".join(parts)


def select_score(
    predictions: Predictions, source: Source, recipe: Recipe, config: Any
) -> float:
    """The number that ranks checkpoints (higher is better), by `train.select`.

    `pck`: pooled PCK at a tenth of the box's longer side; `heatmap_pck`: the thesis's macro
    mean; `ap`: COCO AP.

    Raises:
      ValueError: unknown name.
    """
    name = config.train.select
    if name == "ap":
        rows = results_rows(
            predictions, source, recipe, detected=False, nms=0.9, score_threshold=0.2
        )
        result = average_precision(source, rows, recipe, config.evaluate.area_source)
        return float(result["AP"] or 0.0)
    people, true, visible = people_arrays(source, predictions.rows.tolist(), recipe)
    names = recipe.skeleton.keypoints
    if name == "heatmap_pck":
        drawn = np.where(predictions.drawn, visible, 0)
        record = pck_.heatmap_pck(
            predictions.grid, predictions.true_grid, drawn, predictions.map_side,
            names=names,
        )  # fmt: skip
        return float((record.compute()["macro"] or [0.0])[0])
    if name != "pck":
        raise ValueError(f"train.select is {name!r}; use pck, heatmap_pck or ap")
    sides = pck_.box_longer_side(np.stack([p.box for p in people]))
    record = pck_.pck(predictions.keypoints, true, visible, sides, (0.1,), names)
    return float((record.compute()["micro"] or [0.0])[0])
