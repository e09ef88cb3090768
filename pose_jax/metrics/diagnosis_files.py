"""COCO files for the error diagnosis: the evaluation on changed results, and who is
matched to whom at the low OKS of .1.

Following Ronchi & Perona, ICCV 2017. The matching itself is COCO's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Num

from pose_jax import skeletons
from pose_jax.metrics import coco_files, similarity
from pose_jax.metrics.diagnosis import People, in_same_image

__all__ = ["ALL_SIZES", "MATCH_OKS", "Evaluation", "Matching", "match_people"]

ALL_SIZES = (0.0, 1e10)
"""COCO's range "all", square pixels; the authors' code starts at 32^2."""
MATCH_OKS = 0.1
"""Least OKS of a result that is about a person at all."""
MIRRORED_OKS = 0.5


class Evaluation:
    """The COCO evaluation of a pair of files, to be run again on changed results.

    Attributes:
      people: every annotation, crowds included.
      wanted: [m] whether the person has to be found: labelled, no crowd, of a size in
        the range.
      points: [n, k, 3] results, in file order; `scores` [n], `extent` [n] (area of the
        box around the keypoints), `image` [n] (picture and category as one number, like
        that of `people`).
      notes: what a reader should know about the files.
    """

    def __init__(
        self,
        ground_truth: coco_files.Source,
        results: coco_files.Source,
        sigmas: Sequence[float] | Num[np.ndarray, "k"],
        *,
        keypoint_names: Sequence[str] | None = None,
        area_range: tuple[float, float] = ALL_SIZES,
        max_detections: int = 20,
    ):
        """Reads and checks the files.

        Raises:
          ValueError: they cannot be scored honestly (see `coco_files`).
        """
        truth, rows = coco_files.check_counts(
            ground_truth, results, sigmas, keypoint_names
        )
        count = len(sigmas)
        self.labels = coco_files.read_ground_truth(truth, count)
        self.found = coco_files.read_results(rows, self.labels, count)
        self.sigmas = np.asarray(sigmas, np.float64)
        self.area_range = (float(area_range[0]), float(area_range[1]))
        self.max_detections = max_detections
        self.categories = sorted(self.labels.categories)
        self.notes = self.labels.notes
        people = self.labels.annotations
        stacked = _stack(people, "keypoints", (-1, count, 3))
        area = _stack(people, "area", (-1,))
        self.people = People(
            stacked[..., :2],
            np.clip(stacked[..., 2], 0, 2).astype(np.int64),
            area,
            self._pictures(people),
        )
        low, high = self.area_range
        self.wanted = _stack(people, "num_keypoints", (-1,)) > 0
        self.wanted &= _stack(people, "iscrowd", (-1,)) == 0
        self.wanted &= (low <= area) & (area <= high)
        self.points = _stack(self.found, "keypoints", (-1, count, 3))
        self.scores = _stack(self.found, "score", (-1,))
        self.extent = _stack(self.found, "area", (-1,))
        self.image = self._pictures(self.found)

    def run(
        self,
        points: Float[np.ndarray, "n k 3"] | None = None,
        scores: Float[np.ndarray, "n"] | None = None,
        thresholds: Sequence[float] | None = None,
    ) -> Any:
        """The evaluator (of `faster_coco_eval`) after it ran on the results, with other
        points, scores or OKS thresholds where given. A result keeps its size."""
        from faster_coco_eval import COCO, COCOeval_faster

        points = self.points if points is None else points
        scores = self.scores if scores is None else scores
        shared = {
            "images": [{"id": i} for i in self.labels.image_number.values()],
            "categories": [{"id": c} for c in self.categories],
        }
        rows = [
            {**row, "keypoints": p, "score": s}
            for row, p, s in zip(
                self.found,
                points.reshape(len(points), 3 * len(self.sigmas)),
                scores.tolist(),
                strict=True,
            )
        ]
        truth, poses = (
            COCO({**shared, "annotations": part}, print_function=_silent)
            for part in (self.labels.annotations, rows)
        )
        evaluator = COCOeval_faster(truth, poses, "keypoints", print_function=_silent)
        evaluator.params.kpt_oks_sigmas = self.sigmas
        evaluator.params.maxDets = [self.max_detections]
        evaluator.params.areaRng = [list(self.area_range)]
        evaluator.params.areaRngLbl = ["all"]
        if thresholds is not None:
            evaluator.params.iouThrs = np.asarray(thresholds, np.float64)
        evaluator.evaluate()
        evaluator.accumulate()
        return evaluator

    def members(self) -> dict[int, np.ndarray]:
        """Rows of the results of every picture that has some, best score first; equal
        scores keep the order of the file."""
        order = np.lexsort((-self.scores, self.image))
        pictures, start = np.unique(self.image[order], return_index=True)
        return dict(zip(pictures.tolist(), np.split(order, start[1:])))

    def oks(
        self, xy: Float[np.ndarray, "p k 2"], who: Int[np.ndarray, "p"]
    ) -> Float[np.ndarray, "p"]:
        """OKS of poses with rows of the people, one to one."""
        people = self.people
        found = similarity.oks(
            xy, people.points[who], people.visible[who], people.area[who], self.sigmas
        )
        return np.asarray(found)

    def _pictures(self, rows: list[dict]) -> np.ndarray:
        number = {c: i for i, c in enumerate(self.categories)}
        width = len(number)
        return np.array(
            [r["image_id"] * width + number[r["category_id"]] for r in rows], np.int64
        )


class Matching(NamedTuple):
    """Results and the people they are about.

    Attributes:
      row, person: matched pairs: row of the results, row of the people.
      background: rows of the results that are about nobody.
      missed: people without a result.
      counts: the tally of everything, for the record.
    """

    row: Int[np.ndarray, "n"]
    person: Int[np.ndarray, "n"]
    background: Int[np.ndarray, "f"]
    missed: Int[np.ndarray, "g"]
    counts: dict[str, int]


def match_people(
    evaluation: Evaluation, skeleton: str | skeletons.Skeleton
) -> Matching:
    """COCO's greedy matching at OKS .1, and what is left over on both sides.

    Matches to ignored people (crowds, no label, outside the range of areas) are dropped
    and counted. `pose_inversion` is the number of missed people for whom a background
    result of the picture is right once left and right change places (OKS > .5): a
    mirrored small person does not reach OKS .1.
    """
    matched = evaluation.run(thresholds=[MATCH_OKS]).eval["matched"]
    pairs = sorted(tuple(map(int, key.split("_"))) for key in matched)
    numbers = np.array(pairs, np.int64).reshape(-1, 2) - 1  # ids count from 1
    kept = numbers[evaluation.wanted[numbers[:, 1]]]
    considered = _considered(evaluation)
    ignored = set(numbers[~evaluation.wanted[numbers[:, 1]], 0].tolist())
    background = np.array(
        sorted(considered - ignored - set(kept[:, 0].tolist())), np.int64
    )
    missed = np.setdiff1d(np.flatnonzero(evaluation.wanted), kept[:, 1])
    low, high = evaluation.area_range
    size = evaluation.extent[background]
    counts = {
        "persons": int(evaluation.wanted.sum()),
        "results": len(evaluation.found),
        "results_beyond_limit": len(evaluation.found) - len(considered),
        "matched": len(kept),
        "matched_to_ignored_people": len(ignored),
        "background": len(background),
        "background_outside_area_range": int(((size < low) | (size > high)).sum()),
        "missed_people": len(missed),
        "ignored_people": int((~evaluation.wanted).sum()),
        "pose_inversion": _pose_inversions(evaluation, background, missed, skeleton),
    }
    return Matching(kept[:, 0], kept[:, 1], background, missed, counts)


def _considered(evaluation: Evaluation) -> set[int]:
    """Rows among the best of their picture."""
    limit = evaluation.max_detections
    best = [rows[:limit] for rows in evaluation.members().values()]
    return set(np.concatenate(best).tolist()) if best else set()


def _pose_inversions(evaluation, background, missed, skeleton) -> int:
    """People among the missed whose mirrored pose is among the background."""
    mirrored = skeletons.get(skeleton).mirrored
    xy = evaluation.points[background][:, mirrored, :2]
    found = []
    for rows, who in in_same_image(evaluation.image[background], evaluation.people):
        keep = np.isin(who, missed)
        rows, who = rows[keep], who[keep]
        value = evaluation.oks(xy[rows], who)
        found += zip(value.tolist(), rows.tolist(), who.tolist())
    used_rows, used_people = set(), set()
    for value, row, person in sorted(found, reverse=True):
        if value > MIRRORED_OKS and row not in used_rows and person not in used_people:
            used_rows.add(row)
            used_people.add(person)
    return len(used_people)


def _stack(rows: list[dict], key: str, shape: tuple[int, ...]) -> np.ndarray:
    if not rows:
        return np.zeros((0, *shape[1:]))
    return np.array([row[key] for row in rows], np.float64).reshape(shape)


def _silent(*_, **__) -> None:
    pass
