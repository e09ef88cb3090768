"""The mergeable record of a PCK evaluation: correct points and labelled points."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

__all__ = ["Pck", "count_correct"]


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
        )

    def compute(self) -> dict[str, Any]:
        """The rates, as plain numbers, lists and dicts (JSON).

        Returns:
          `micro` (pooled points), `per_joint_mean` (joints without a label are
          dropped), `macro` (mean over units with a label), each a list along
          `thresholds`; `joints` {name: {count, pck}}; `visible` and `occluded` {count,
          pck}; `name`, `strict`, `labels`, `entries`, `left_out`. A rate without any
          label is None.
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
) -> Pck:
    """The record of a batch of errors.

    Args:
      relative: distance / normaliser.
      visible: 0 not labelled, 1 occluded, 2 visible.
      units: joints of each unit of the macro mean; by default one unit of all joints,
        so that every row (person) is one entry.
      name, names, thresholds, strict, left_out: as in `Pck`.

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
