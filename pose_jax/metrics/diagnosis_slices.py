"""Counts of keypoint errors: over everything, per joint, and by what a person is like.

All records are plain dicts for JSON. The types of a row add up to its labelled
keypoints. A type that the data cannot show is None, not 0: a swap where every picture
holds one person, an absent keypoint without keypoint scores, a confusion that was not
asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Num, Shaped

from pose_jax import skeletons
from pose_jax.arrays import Array
from pose_jax.intervals import ratio_intervals
from pose_jax.metrics.diagnosis import (
    HUMAN,
    LABELS,
    NEAR,
    SWAP,
    KeypointErrors,
    People,
    in_same_image,
)

__all__ = [
    "crowding", "error_counts", "error_slices", "quantile_bins", "truncated",
]  # fmt: skip

FAR_PX = 20.0
BORDER_PX = 2.0


def error_counts(
    errors: KeypointErrors,
    people: People,
    skeleton: str | skeletons.Skeleton,
    *,
    normaliser: Num[Array, "n"] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """How often each label occurs, overall and per joint.

    Args:
      people: as given to `label_keypoints`.
      normaliser: a length per prediction in pixels (`pck.box_longer_side`, `pck.torso`):
        adds the distances of every type in that unit, for data that is otherwise judged
        by PCK. NaN or 0 leaves a person out.
      resamples: of the bootstrap over pictures.

    Returns:
      `persons`, `labelled`, `types` {name: {count, share, low, high} or None}, `joints`
      {name: {labelled, name of type: count or None, ...}}, `inversion` and `swap` (what
      qualifies these counts), `similarity` (mean), `sigmas`, `sigmas_source`,
      `thresholds`, `notes`, and with a normaliser `distance` {type: quartiles or None}.
    """
    skeleton = skeletons.get(skeleton)
    image = people.image[errors.person]
    skipped = _undefined(errors)
    record = {
        "persons": int(errors.labelled.any(1).sum()),
        **_row(errors, errors.labelled, image, skipped, resamples, seed),
        "joints": _joints(errors, errors.labelled, skeleton, skipped),
        "inversion": {
            "strict": int(errors.strict.sum()),
            "not_testable": int(errors.untestable.sum()),
            "misses_not_testable": int(
                (errors.untestable & errors.where("miss")).sum()
            ),
        },
        "swap": None if errors.lonely else _swaps(errors),
        "sigmas": dict(zip(skeleton.keypoints, errors.sigmas.tolist())),
        "sigmas_source": skeleton.sigmas_source
        if np.array_equal(errors.sigmas, skeleton.sigmas)
        else "given by the caller",
        "thresholds": {"near": NEAR, "human": HUMAN},
        "notes": _notes(errors, skipped),
    }
    if normaliser is not None:
        record["distance"] = _distances(errors, np.asarray(normaliser, np.float64))
    return record


def error_slices(
    errors: KeypointErrors,
    people: People,
    skeleton: str | skeletons.Skeleton,
    factors: Mapping[str, Shaped[np.ndarray, "n *k"]],
    *,
    bins: int = 4,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Error rates by size, visibility, crowding, truncation or anything else.

    Args:
      factors: {name: one value per prediction, or per prediction and joint}. Numbers
        with more than `bins` values are cut at their quantiles (over the labelled
        keypoints' people); fewer values, booleans and words are a bin each. NaN leaves
        out. Usual ones: `people.area[errors.person]`, the visible flags, `crowding`,
        `truncated`.

    Returns:
      {factor: {"bins": [{"label", "persons", "labelled", "types", "similarity",
      "joints", "inversion_strict"}, ...], "left_out": keypoints}}; labelled + left_out
      is the number of labelled keypoints.

    Raises:
      ValueError: a factor has another number of rows or joints.
    """
    skeleton = skeletons.get(skeleton)
    image, skipped = people.image[errors.person], _undefined(errors)
    record = {}
    for name, values in factors.items():
        values = np.asarray(values)
        if values.shape not in (errors.label.shape, errors.label.shape[:1]):
            raise ValueError(
                f"factor {name!r} has shape {values.shape}; give one value per "
                f"prediction [{len(image)}] or joint {list(errors.label.shape)}"
            )
        full = values if values.ndim == 2 else values[:, None]
        used = np.broadcast_to(full, errors.label.shape)
        known = errors.labelled
        asked = values[known] if values.ndim == 2 else values[known.any(1)]
        rows, inside_any = [], np.zeros_like(known)
        for label, inside in _bins(asked, used, bins):
            inside = inside & known
            inside_any |= inside
            rows.append(
                {
                    "label": label,
                    "persons": int(inside.any(1).sum()),
                    **_row(errors, inside, image, skipped, resamples, seed),
                    "joints": _joints(errors, inside, skeleton, skipped),
                    "inversion_strict": int((errors.strict & inside).sum()),
                }
            )
        left_out = int((known & ~inside_any).sum())
        record[name] = {"bins": rows, "left_out": left_out}
    return record


def quantile_bins(
    values: Num[np.ndarray, "n"], bins: int = 3
) -> tuple[Int[np.ndarray, "n"], Float[np.ndarray, "e"]]:
    """Bins with about equally many values each, and their edges.

    Equal values share a bin: an edge that repeats is dropped, so there may be fewer
    bins. A value on an edge lies in the lower bin; where many values are the least one
    (no overlap with anybody), they are a bin of their own. NaN gets -1.

    Raises:
      ValueError: no value at all, or no bin.
    """
    values = np.asarray(values, np.float64)
    known = values[~np.isnan(values)]
    if bins < 1 or not known.size:
        raise ValueError(
            f"{known.size} values cannot fill {bins} bins; need one of each"
        )
    cuts = np.quantile(known, np.linspace(0, 1, bins + 1))
    edges = np.unique(cuts)
    if len(edges) == 1 or cuts[1] == cuts[0]:
        edges = np.concatenate([edges[:1], edges])
    number = np.searchsorted(edges[1:-1], values, "left")
    return np.where(np.isnan(values), -1, number), edges


def crowding(
    boxes: Num[np.ndarray, "n 4"], image: Shaped[np.ndarray, "n"]
) -> Float[np.ndarray, "n"]:
    """The largest overlap (intersection over union) of each person's xywh box with the
    box of anybody else in the picture; 0 for who stands alone."""
    boxes = np.asarray(boxes, np.float64)
    count = len(boxes)
    nobody = People(
        np.zeros((count, 1, 2)), np.zeros((count, 1), int), np.ones(count), image
    )
    corner, area, best = (
        boxes[:, :2] + boxes[:, 2:],
        boxes[:, 2:].prod(1),
        np.zeros(count),
    )
    for rows, who in in_same_image(image, nobody):
        rows, who = rows[rows != who], who[rows != who]
        side = np.minimum(corner[rows], corner[who]) - np.maximum(
            boxes[rows, :2], boxes[who, :2]
        )
        shared = np.maximum(side, 0).prod(1)
        union = np.maximum(area[rows] + area[who] - shared, 1e-12)
        best[rows] = np.maximum(best[rows], shared / union)
    return best


def truncated(
    boxes: Num[np.ndarray, "n 4"], size: Num[np.ndarray, "n 2"]
) -> Bool[np.ndarray, "n"]:
    """Whether a person's xywh box reaches the border (2 px) of a picture of that width
    and height: boxes end where the picture ends."""
    boxes, size = np.asarray(boxes, np.float64), np.asarray(size, np.float64)
    far = boxes[:, :2] + boxes[:, 2:] >= size - BORDER_PX
    return np.any(far | (boxes[:, :2] <= BORDER_PX), axis=1)


def _undefined(errors: KeypointErrors) -> set[str]:
    flags = dict(
        swap=errors.lonely, absent=not errors.scored, confusion=not errors.any_part
    )
    return {name for name, missing in flags.items() if missing}


def _row(errors, inside, image, skipped, resamples, seed) -> dict[str, Any]:
    """Counts, shares and intervals of the types among some keypoints."""
    total = int(inside.sum())
    hits = np.stack([((errors.label == i) & inside).sum(1) for i in range(len(LABELS))])
    row: dict[str, Any] = {"labelled": total}
    types: dict[str, Any] = dict.fromkeys(LABELS)
    pictures = image[inside.any(1)]
    low = high = None
    if len(set(pictures.tolist())) >= 2:
        some = inside.any(1)
        top = hits.T[some].astype(float)
        bottom = np.repeat(inside.sum(1)[some, None].astype(float), len(LABELS), 1)
        low, high = ratio_intervals(
            top, bottom, pictures.tolist(), resamples=resamples, seed=seed
        )
    for i, name in enumerate(LABELS):
        if name not in skipped:
            count = int(hits[i].sum())
            types[name] = {
                "count": count,
                "share": count / total if total else None,
                "low": None if low is None else float(low[i]),
                "high": None if high is None else float(high[i]),
            }
    row["types"] = types
    row["similarity"] = float(errors.own[inside].mean()) if total else None
    return row


def _joints(errors, inside, skeleton, skipped) -> dict[str, Any]:
    return {
        name: {
            "labelled": int(inside[:, j].sum()),
            **{
                word: None
                if word in skipped
                else int(((errors.label[:, j] == i) & inside[:, j]).sum())
                for i, word in enumerate(LABELS)
            },
            "inversion_strict": int((errors.strict[:, j] & inside[:, j]).sum()),
            "not_testable": int((errors.untestable[:, j] & inside[:, j]).sum()),
        }
        for j, name in enumerate(skeleton.keypoints)
    }


def _swaps(errors: KeypointErrors) -> dict[str, Any]:
    """A giant neighbour turns misses into swaps: how far, and how near by own size."""
    chosen = errors.label == SWAP
    far = errors.source_distance[chosen]
    scale = 2.0 * errors.area[:, None] * (2.0 * errors.sigmas) ** 2
    own_size = np.exp(-(far**2) / np.broadcast_to(scale, chosen.shape)[chosen])
    count = int(chosen.sum())
    return {
        f"share_beyond_{FAR_PX:g}_px": float((far > FAR_PX).mean()) if count else None,
        "share_not_near_by_own_area": float((own_size < NEAR).mean())
        if count
        else None,
    }


def _notes(errors: KeypointErrors, skipped: set[str]) -> list[str]:
    notes = [
        "a mirrored joint without a label cannot show an inversion: it counts as miss",
        "people and crowds without labelled keypoints cannot be the source of a swap",
    ]
    if "swap" in skipped:
        notes.append("swap n/a: no picture holds a second labelled person")
    if "absent" in skipped:
        notes.append("absent n/a: no keypoint scores were given")
    return notes


def _distances(errors: KeypointErrors, normaliser: np.ndarray) -> dict[str, Any]:
    if normaliser.shape != errors.area.shape:
        raise ValueError(
            f"normaliser has shape {normaliser.shape}; give one length per prediction "
            f"[{len(errors.area)}]"
        )
    usable = (normaliser > 0) & np.isfinite(normaliser)
    unit = np.where(usable, normaliser, 1.0)[:, None]
    distance = np.linalg.norm(errors.predicted - errors.true, axis=-1) / unit
    found = {}
    for i, name in enumerate(LABELS):
        values = distance[(errors.label == i) & usable[:, None]]
        quartiles = (
            np.quantile(values, [0.25, 0.5, 0.75]).tolist() if values.size else None
        )
        found[name] = quartiles
    return found


def _bins(asked: np.ndarray, used: np.ndarray, bins: int):
    """(label, mask) of every bin."""
    numeric = np.issubdtype(asked.dtype, np.number)
    if numeric:
        asked = asked[~np.isnan(asked.astype(np.float64))]
    distinct = np.unique(asked)
    if not numeric or len(distinct) <= bins:
        for value in distinct:
            yield {"value": value.item()}, used == value
        return
    _, edges = quantile_bins(asked, bins)
    number = np.searchsorted(edges[1:-1], used, "left")
    known = ~np.isnan(used.astype(np.float64))
    for i, (low, high) in enumerate(zip(edges[:-1], edges[1:])):
        label = {"above" if i else "from": float(low), "to": float(high)}
        yield label, (number == i) & known
