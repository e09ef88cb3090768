"""What AP would be if one type of error were gone, from COCO files.

Following Ronchi & Perona, ICCV 2017. Results are matched to people at OKS .1
(`diagnosis_files`); keypoints of the matched pairs are labelled (`diagnosis`); then the
COCO evaluation runs again on corrected poses, on corrected scores, and without
background results and missed people.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Num, Shaped

from pose_jax import skeletons
from pose_jax.arrays import Array
from pose_jax.metrics import coco_files, similarity
from pose_jax.metrics.diagnosis import (
    ERRORS,
    KeypointErrors,
    People,
    corrected,
    in_same_image,
    label_keypoints,
)
from pose_jax.metrics.diagnosis_files import (
    ALL_SIZES,
    MATCH_OKS,
    Evaluation,
    match_people,
)
from pose_jax.metrics.diagnosis_slices import error_counts, error_slices

__all__ = ["ap_gains", "best_scores", "diagnose_given_boxes", "diagnose_results"]


def diagnose_results(
    ground_truth: coco_files.Source,
    results: coco_files.Source,
    skeleton: str | skeletons.Skeleton,
    *,
    sigmas: Sequence[float] | Num[np.ndarray, "k"] | None = None,
    area_range: tuple[float, float] = ALL_SIZES,
    max_detections: int = 20,
    any_part: bool = False,
    keypoint_scores: bool = True,
    compatible: bool = False,
    resamples: int = 1000,
) -> dict[str, Any]:
    """Error types of COCO results and the AP that each of them costs.

    Args:
      ground_truth, results: as in `coco_ap`; the third number of a result's keypoint is
        its score.
      skeleton: of the files.
      area_range: square pixels; people outside are ignored as COCO does it, and their
        keypoints are not counted. (32^2, 1e10) is the range of the authors' code.
      any_part: see `label_keypoints`.
      keypoint_scores: whether the third numbers are scores; else nothing is absent.
      compatible: see `corrected`.

    Returns:
      `protocol`, `matching` (counts), `keypoints` (`error_counts` of the matched
      people), `ap` (`ap_gains`), `notes`.

    Raises:
      ValueError: the files cannot be scored honestly (see `coco_files`).
    """
    skeleton = skeletons.get(skeleton)
    evaluation = Evaluation(
        ground_truth,
        results,
        skeleton.sigmas if sigmas is None else sigmas,
        keypoint_names=skeleton.keypoints,
        area_range=area_range,
        max_detections=max_detections,
    )
    matching = match_people(evaluation, skeleton)
    points = evaluation.points[matching.row]
    errors = label_keypoints(
        points[..., :2],
        evaluation.people,
        skeleton,
        person=matching.person,
        scores=points[..., 2] if keypoint_scores else None,
        sigmas=evaluation.sigmas,
        any_part=any_part,
    )
    low, high = evaluation.area_range
    return {
        "protocol": (
            f"following Ronchi and Perona (ICCV 2017); matched at OKS {MATCH_OKS:g}, at "
            f"most {max_detections} results per picture; people of area {low:g} to "
            f"{high:g} square pixels"
        ),
        "matching": matching.counts,
        "keypoints": error_counts(
            errors, evaluation.people, skeleton, resamples=resamples
        ),
        "ap": ap_gains(evaluation, errors, matching.row, compatible=compatible),
        "notes": evaluation.notes,
    }


def diagnose_given_boxes(
    predicted: Num[Array, "n k 2"],
    people: People,
    skeleton: str | skeletons.Skeleton,
    *,
    scores: Num[Array, "n k"] | None = None,
    sigmas: Sequence[float] | Num[np.ndarray, "k"] | None = None,
    any_part: bool = False,
    normaliser: Num[Array, "n"] | None = None,
    factors: Mapping[str, Shaped[np.ndarray, "n *k"]] | None = None,
    bins: int = 4,
    compatible: bool = False,
    resamples: int = 1000,
) -> dict[str, Any]:
    """Error types of one prediction per person, and the mean OKS that each costs.

    For data where every person's box is given (LSP, MPII, COCO with the true boxes):
    prediction i belongs to person i. There is no OKS threshold, so that a fully mirrored
    pose stays in, whereas `diagnose_results` would call it background.

    Args:
      predicted, people, scores, sigmas, any_part: see `label_keypoints`.
      normaliser: see `error_counts`.
      factors, bins: see `error_slices`.
      compatible: see `corrected`.

    Returns:
      `protocol`, `keypoints` (`error_counts`), `slices` (`error_slices`; {} without
      factors), `oks` {baseline, one_at_a_time {type: {oks, gain, corrected}}}: a mean over
      people with a label, to which the types add up.

    Raises:
      ValueError: see `label_keypoints`, `error_slices`.
    """
    skeleton = skeletons.get(skeleton)
    errors = label_keypoints(
        predicted, people, skeleton, scores=scores, sigmas=sigmas, any_part=any_part
    )
    some = errors.labelled.any(1)

    def mean_oks(points) -> float | None:
        found = similarity.oks(
            points, errors.true, errors.labelled, errors.area, errors.sigmas
        )
        return float(np.asarray(found)[some].mean()) if some.any() else None

    base = mean_oks(errors.predicted)
    alone = {}
    for name in ERRORS:
        value = mean_oks(corrected(errors, [name], compatible=compatible))
        gain = None if value is None or base is None else value - base
        count = int(errors.where(name).sum())
        alone[name] = {"oks": value, "gain": gain, "corrected": count}
    counted: dict[str, Any] = dict(resamples=resamples)
    return {
        "protocol": (
            "following Ronchi and Perona (ICCV 2017); boxes given: matched by identity, "
            "without an OKS threshold"
        ),
        "keypoints": error_counts(
            errors, people, skeleton, normaliser=normaliser, **counted
        ),
        "slices": error_slices(
            errors, people, skeleton, factors or {}, bins=bins, **counted
        ),
        "oks": {"baseline": base, "one_at_a_time": alone, "compatible": compatible},
    }


def ap_gains(
    evaluation: Evaluation,
    errors: KeypointErrors,
    row: Int[np.ndarray, "n"],
    *,
    compatible: bool = False,
) -> dict[str, Any]:
    """AP without each type of error, and with all of them taken away one after another.

    `one_at_a_time` corrects one type in the original results (missed people: on top of
    the background row). `cumulative` keeps what was corrected before. Keypoint
    corrections leave the scores alone; `score` is `best_scores`; background results and
    missed people are ignored where they stay unmatched, at every threshold for itself.

    Args:
      row: row of the results that every row of `errors` is.

    Returns:
      `baseline` (AP), `one_at_a_time` {type: {ap, gain, corrected}}, `cumulative` [{type,
      ap, gain, corrected}], `area_range`, `compatible`, `notes`. `corrected` is the
      number of keypoints; AP and gain are None where there is nobody to find.
    """
    counts = {name: int(errors.where(name).sum()) for name in ERRORS}

    def poses(types) -> np.ndarray:
        points = evaluation.points.copy()
        points[row, :, :2] = corrected(errors, types, compatible=compatible)
        return points

    base = last = _ap(evaluation.run())
    alone: dict[str, Any] = {}
    steps: list[dict[str, Any]] = []
    for i, name in enumerate(ERRORS):
        here, before = base, last
        if counts[name]:
            here = _ap(evaluation.run(poses([name])))
            first = not any(counts[done] for done in ERRORS[:i])
            last = here if first else _ap(evaluation.run(poses(ERRORS[: i + 1])))
        alone[name] = _gain(here.value, base.value, counts[name])
        steps.append({"type": name, **_gain(last.value, before.value, counts[name])})
    scores = best_scores(evaluation, evaluation.points)
    here = _ap(evaluation.run(scores=scores))
    alone["score"] = _gain(here.value, base.value)
    points, before = poses(ERRORS), last
    last = _ap(evaluation.run(points, best_scores(evaluation, points)))
    steps.append({"type": "score", **_gain(last.value, before.value)})
    found = base.without_background(), base.without_missed_people()
    alone["background"] = _gain(found[0], base.value)
    alone["missed_people"] = _gain(found[1], found[0])
    found = last.without_background(), last.without_missed_people()
    steps.append({"type": "background", **_gain(found[0], last.value)})
    steps.append({"type": "missed_people", **_gain(found[1], found[0])})
    return {
        "baseline": base.value,
        "one_at_a_time": alone,
        "cumulative": steps,
        "area_range": list(evaluation.area_range),
        "compatible": compatible,
        "notes": [
            "gains of one type at a time do not add up to the cumulative ones",
            "AP without background results and missed people is 1 by construction",
        ],
    }


def best_scores(
    evaluation: Evaluation, points: Float[np.ndarray, "n k 3"]
) -> Float[np.ndarray, "n"]:
    """The scores that would rank results best: the best OKS with a person who counts,
    lowered for near copies of a better result by soft NMS (score x exp(-OKS^2 / .5),
    Bodla et al., ICCV 2017; the OKS of two results takes all keypoints and the mean area
    of their extents)."""
    xy, people, best = points[..., :2], evaluation.people, np.zeros(len(points))
    for rows, who in in_same_image(evaluation.image, people):
        rows, who = rows[evaluation.wanted[who]], who[evaluation.wanted[who]]
        found = evaluation.oks(xy[rows], who)
        best[rows] = np.maximum(best[rows], found)
    extent = (xy.max(1) - xy.min(1)).prod(1)
    for members in evaluation.members().values():
        left = np.sort(members)
        while len(left) > 1:
            top = left[np.argmax(best[left])]
            left = left[left != top]
            alike = similarity.keypoint_similarity(
                xy[left],
                np.repeat(xy[top][None], len(left), 0),
                np.maximum((extent[left] + extent[top]) / 2, np.spacing(1)),
                evaluation.sigmas,
            )
            best[left] *= np.exp(-(np.asarray(alike).mean(-1) ** 2) / 0.5)
    return best


class _Ap(NamedTuple):
    """AP over thresholds and categories, and the recall reached, `[t, categories]`."""

    value: float | None
    recall: Float[np.ndarray, "t c"]
    levels: Float[np.ndarray, "r"]

    def without_background(self) -> float | None:
        """Precision is 1 as far as the recall goes."""
        reached = self.recall[self.recall > -1]
        if not reached.size:
            return None
        known = (self.levels <= reached[:, None]) & (reached[:, None] > 0)
        return float(known.mean())

    def without_missed_people(self) -> float | None:
        """Recall is 1, too, at every threshold where anybody is found."""
        return 1.0 if (self.recall > 0).any() else None


def _ap(evaluator: Any) -> _Ap:
    precision = evaluator.eval["precision"][..., 0, 0]
    known = precision > -1
    value = float(precision[known].mean()) if known.any() else None
    recall = evaluator.eval["recall"][..., 0, 0]
    return _Ap(value, recall, np.asarray(evaluator.params.recThrs))


def _gain(ap, before, count: int | None = None) -> dict[str, Any]:
    gain = None if ap is None or before is None else ap - before
    found = {"ap": ap, "gain": gain}
    return found if count is None else {**found, "corrected": count}
