"""The mergeable record of a PCK evaluation: correct points and labelled points."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

__all__ = ["ImageCounts", "Pck", "count_correct"]


@dataclasses.dataclass(frozen=True, eq=False)
class ImageCounts:
    """Counts per image.

    Attributes:
      total: images that were evaluated, with or without a label.
      correct, count: correct and labelled points of the images with a label.
    """

    total: int
    correct: Int[np.ndarray, "t m"]
    count: Int[np.ndarray, "m"]

    def merge(self, other: ImageCounts) -> ImageCounts:
        """The counts of both parts together."""
        return ImageCounts(
            self.total + other.total,
            np.concatenate([self.correct, other.correct], 1),
            np.concatenate([self.count, other.count]),
        )

    def means(self) -> dict[str, Any]:
        """`images`, `macro_images` and `macro_over_all` of `Pck.compute`."""
        rates = np.ascontiguousarray(_rate(self.correct, self.count))
        some = rates.shape[1] > 0
        over_all = (rates.sum(axis=1) / max(self.total, 1)).tolist() if some else None
        return {
            "images": self.total,
            "macro_images": _mean(rates),
            "macro_over_all": over_all,
        }


@dataclasses.dataclass(frozen=True, eq=False)
class Pck:
    """Counts of correct points; records of parts of a data set add up with `merge`.

    Attributes:
      name: protocol, e.g. "PCKh".
      names: joints, in order.
      thresholds: multiples of the normaliser.
      strict: whether `<` decides instead of `<=`.
      correct, count: correct points per threshold and joint, labelled points per joint.
      visible_correct, visible_count: the same for points labelled visible (v = 2); the
        occluded ones (v = 1) are the difference.
      entry_correct, entry_count: the same per unit of the macro mean: a person, or a
        (person, pair of limbs). Only units with a label are stored.
      left_out: persons without a usable normaliser; none of their points are counted.
      images: counts per image; None where rows may be padding. With it the two means over
        images are reported.
    """

    name: str
    names: tuple[str, ...]
    thresholds: tuple[float, ...]
    strict: bool
    correct: Int[np.ndarray, "t k"]
    count: Int[np.ndarray, "k"]
    visible_correct: Int[np.ndarray, "t k"]
    visible_count: Int[np.ndarray, "k"]
    entry_correct: Int[np.ndarray, "t n"]
    entry_count: Int[np.ndarray, "n"]
    left_out: int = 0
    images: ImageCounts | None = None

    def merge(self, other: Pck) -> Pck:
        """The record of both parts together.

        Raises:
          ValueError: the records follow different protocols.
        """
        for field in ("name", "names", "thresholds", "strict"):
            mine, theirs = getattr(self, field), getattr(other, field)
            if mine != theirs:
                raise ValueError(
                    f"cannot merge PCK records: {field} is {mine!r} and {theirs!r}; "
                    "merge only parts of one evaluation"
                )
        return dataclasses.replace(
            self,
            correct=self.correct + other.correct,
            count=self.count + other.count,
            visible_correct=self.visible_correct + other.visible_correct,
            visible_count=self.visible_count + other.visible_count,
            entry_correct=np.concatenate([self.entry_correct, other.entry_correct], 1),
            entry_count=np.concatenate([self.entry_count, other.entry_count]),
            left_out=self.left_out + other.left_out,
            images=(
                self.images.merge(other.images)
                if self.images and other.images
                else None
            ),
        )

    def compute(self) -> dict[str, Any]:
        """The rates, as plain numbers, lists and dicts (JSON).

        Returns:
          `micro` (pooled points), `per_joint_mean` (joints without a label are
          dropped), `macro` (mean over units with a label), each a list along
          `thresholds`; `joints` {name: {count, pck}}; `visible` and `occluded` {count,
          pck}; `name`, `strict`, `labels`, `entries`, `left_out`. A rate without any
          label is None. Where `images` is known, also `images`; `macro_images` (mean over
          images with a label; `macro` itself unless its units are smaller) and
          `macro_over_all` (sum of the images' rates / all images: an image without a label
          counts as wrong, as in the thesis's code).
        """
        joints = _rate(self.correct, self.count)
        used = self.count > 0
        hidden_correct = self.correct - self.visible_correct
        hidden_count = self.count - self.visible_count
        return {
            "name": self.name,
            "strict": self.strict,
            "thresholds": list(self.thresholds),
            "labels": int(self.count.sum()),
            "entries": len(self.entry_count),
            "left_out": self.left_out,
            "micro": _pooled(self.correct, self.count)["pck"],
            "per_joint_mean": _mean(joints[:, used]),
            "macro": _mean(_rate(self.entry_correct, self.entry_count)),
            "visible": _pooled(self.visible_correct, self.visible_count),
            "occluded": _pooled(hidden_correct, hidden_count),
            **(self.images.means() if self.images else {}),
            "joints": {
                name: {
                    "count": int(self.count[j]),
                    "pck": joints[:, j].tolist() if used[j] else None,
                }
                for j, name in enumerate(self.names)
            },
        }


def count_correct(
    relative: Float[np.ndarray, "n k"],
    visible: Int[np.ndarray, "n k"],
    *,
    name: str,
    names: Sequence[str],
    thresholds: Sequence[float],
    strict: bool,
    units: Sequence[Sequence[int]] | None = None,
    left_out: int = 0,
    count_images: bool = False,
) -> Pck:
    """The record of a batch of errors.

    Args:
      relative: distance / normaliser.
      visible: 0 not labelled, 1 occluded, 2 visible.
      units: joints of each unit of the macro mean; by default one unit of all joints,
        so that every row (person) is one entry.
      name, names, thresholds, strict, left_out: as in `Pck`.
      count_images: every row is an image, none is padding (see `Pck.images`).

    Raises:
      ValueError: a threshold is not a positive number.
    """
    units = [range(len(names))] if units is None else units
    thresholds = tuple(float(t) for t in thresholds)
    if not thresholds or not all(0 < t < np.inf for t in thresholds):
        raise ValueError(f"thresholds must be positive numbers, not {thresholds}")
    limits = np.array(thresholds)[:, None, None]
    hits = relative < limits if strict else relative <= limits
    labelled, seen = visible > 0, visible == 2
    hits = hits & labelled
    entry_correct = np.concatenate([hits[:, :, list(u)].sum(-1) for u in units], axis=1)
    entry_count = np.concatenate([labelled[:, list(u)].sum(-1) for u in units])
    some = entry_count > 0
    images = None
    if count_images:
        of_image = labelled.sum(-1)
        kept = of_image > 0
        images = ImageCounts(len(labelled), hits.sum(-1)[:, kept], of_image[kept])
    return Pck(
        name=name,
        names=tuple(names),
        thresholds=thresholds,
        strict=strict,
        correct=hits.sum(axis=1),
        count=labelled.sum(axis=0),
        visible_correct=(hits & seen).sum(axis=1),
        visible_count=seen.sum(axis=0),
        entry_correct=entry_correct[:, some],
        entry_count=entry_count[some],
        left_out=left_out,
        images=images,
    )


def _rate(correct: np.ndarray, count: np.ndarray) -> np.ndarray:
    return correct / np.maximum(count, 1)


def _mean(rates: np.ndarray) -> list[float] | None:
    # One memory order, so that merged parts give the same bits as the whole.
    rates = np.ascontiguousarray(rates)
    return rates.mean(axis=1).tolist() if rates.shape[1] else None


def _pooled(correct: np.ndarray, count: np.ndarray) -> dict[str, Any]:
    total = int(count.sum())
    rates = (correct.sum(axis=1) / total).tolist() if total else None
    return {"count": total, "pck": rates}
