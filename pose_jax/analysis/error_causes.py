"""Do explanations of errors differ from explanations of good answers?

Joins error types (`metrics.diagnosis`) and influences (any explainer) per person and
joint. Error cases of a joint are compared with good cases of the same joint, the same
tercile of person size and the same visibility flag. Differences are associations: what
goes with an error need not have caused it. Only an intervention (remove or exchange the
region and see whether the error goes) may be called a cause.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Num, Shaped

from pose_jax.metrics.diagnosis import ERRORS, GOOD, LABELS

__all__ = [
    "MIN_CASES",
    "MIN_IMAGES",
    "Cases",
    "compare_causes",
    "sentences",
    "worst_cases",
]

MIN_CASES, MIN_IMAGES = 20, 10
"""Fewer cases, or cases from fewer pictures, are not compared."""
BLOCK = 2**23


@dataclasses.dataclass(frozen=True, eq=False)
class Cases:
    """What is known about n people with k joints and r regions.

    Attributes:
      label: codes of `diagnosis.LABELS`, below 0 where nothing is known.
      influence: signed influence of every region on the joint's score. Not finite
        anywhere: the case has no explanation.
      size: tercile of the person's size (`diagnosis_slices.quantile_bins`).
      visible: 1 occluded, 2 visible.
      image: the picture of every person.
      joints, regions: names.
      scalars: further numbers per case, such as v(empty), v(full) and the margin over
        the mirrored joint; NaN where unknown.
    """

    label: Int[np.ndarray, "n k"]
    influence: Num[np.ndarray, "n k r"]
    size: Int[np.ndarray, "n"]
    visible: Int[np.ndarray, "n k"]
    image: Sequence[Hashable] | Shaped[np.ndarray, "n"]
    joints: Sequence[str]
    regions: Sequence[str]
    scalars: Mapping[str, Num[np.ndarray, "n k"]] = dataclasses.field(
        default_factory=dict
    )

    def __post_init__(self):
        n, k, r = len(self.size), len(self.joints), len(self.regions)
        shapes = {
            "label": (self.label.shape, (n, k)),
            "influence": (self.influence.shape, (n, k, r)),
            "visible": (self.visible.shape, (n, k)),
            "image": ((len(self.image),), (n,)),
            **{f"scalars[{s!r}]": (v.shape, (n, k)) for s, v in self.scalars.items()},
        }
        for name, (got, need) in shapes.items():
            if got != need:
                raise ValueError(f"{name} has shape {got}; {need} is needed for {n} "
                                 f"people, {k} joints and {r} regions")  # fmt: skip

    def columns(self) -> list[str]:
        """Names of the compared numbers: shares by size, signed shares, scalars."""
        return [
            *(f"share:{name}" for name in self.regions),
            *(f"signed:{name}" for name in self.regions),
            *self.scalars,
        ]

    def values(self) -> tuple[Float[np.ndarray, "n k c"], Bool[np.ndarray, "n k"]]:
        """The columns, and which cases have shares: influences are finite and not all 0.

        Shares are |a| / sum |a|, signed shares a / sum |a|.
        """
        influence = np.asarray(self.influence, np.float64)
        finite = np.isfinite(influence).all(-1, keepdims=True)
        influence = np.where(finite, influence, 0.0)
        total = np.abs(influence).sum(-1, keepdims=True)
        defined = (finite & (total > 0))[..., 0]
        signed = influence / np.where(total > 0, total, 1.0)
        extra = [np.asarray(v, np.float64)[..., None] for v in self.scalars.values()]
        return np.concatenate([np.abs(signed), signed, *extra], -1), defined

    def strata(self) -> Int[np.ndarray, "n k"]:
        """A number for each combination of size tercile and visibility."""
        return self.size[:, None] * 3 + np.clip(self.visible, 0, 2)


def compare_causes(
    cases: Cases,
    *,
    errors: Sequence[str] = ERRORS,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Any]:
    """Mean difference of error cases and matched good cases, per joint and error type.

    Every error case is compared with the mean of the good cases of its stratum (joint,
    size tercile, visibility flag); the difference is the mean over error cases. Error
    cases whose stratum has no good case are dropped. Pictures are resampled whole, errors
    and good cases from the same draw; an interval is for its own region, without
    correction for their number.

    Returns:
      {"what", "level", "joints": {joint: {error type: row}}}. A row holds `errors`,
      `error_images`, `good`, `good_images` (cases compared), `undefined` and `unmatched`
      (cases left out: no explanation, no good case like it) and either `refused`, the
      reason, or `differences` {column: {error, good, difference, low, high}}; scalars
      use the cases where they are finite.

    Raises:
      ValueError: an unknown error type.
    """
    unknown = sorted(set(errors) - set(ERRORS))
    if unknown:
        raise ValueError(f"unknown error types {unknown}; use {', '.join(ERRORS)}")
    values, defined = cases.values()
    number = {image: i for i, image in enumerate(dict.fromkeys(list(cases.image)))}
    images = np.array([number[image] for image in cases.image], np.int64)
    strata = cases.strata()
    joints = {}
    for j, joint in enumerate(cases.joints):
        joints[joint] = {
            name: _compare(
                values[:, j], defined[:, j], strata[:, j],
                cases.label[:, j] == LABELS.index(name), cases.label[:, j] == GOOD,
                images, cases.columns(), resamples, level, seed,
            )
            for name in errors
        }  # fmt: skip
    return {
        "what": (
            "association: mean influence of error cases minus that of good cases of the "
            "same joint, size tercile and visibility; not a cause unless an intervention "
            "shows it"
        ),
        "level": level,
        "joints": joints,
    }


def sentences(record: dict[str, Any], *, kind: str = "share") -> list[str]:
    """The differences whose interval leaves out 0, in words, largest first.

    Args:
      record: of `compare_causes`.
      kind: "share" or "signed".

    Raises:
      ValueError: another kind.
    """
    if kind not in ("share", "signed"):
        raise ValueError(f"kind is {kind!r}; use 'share' or 'signed'")
    found = []
    for joint, rows in record["joints"].items():
        for error, row in rows.items():
            for column, d in row.get("differences", {}).items():
                if not column.startswith(f"{kind}:") or d["low"] <= 0 <= d["high"]:
                    continue
                region = column.removeprefix(f"{kind}:")
                words = "larger" if d["difference"] > 0 else "smaller"
                found.append((
                    -abs(d["difference"]),
                    f"association: with {error} of {joint}, the {kind} of {region} is "
                    f"{100 * abs(d['difference']):.1f} points {words} "
                    f"({100 * d['low']:+.1f} to {100 * d['high']:+.1f}; "
                    f"{row['errors']} errors, {row['good']} good cases)",
                ))  # fmt: skip
    return [text for _, text in sorted(found)]


def worst_cases(
    cases: Cases,
    similarity: Float[np.ndarray, "n k"],
    error: str,
    *,
    joint: str | None = None,
    count: int = 8,
) -> list[dict[str, Any]]:
    """The error cases that lie farthest off, for a gallery, one per picture.

    Args:
      similarity: to the right place (`KeypointErrors.own`); the least comes first, equal
        ones in the order of the people.
      joint: one joint only; None takes all.

    Returns:
      Rows {person, joint, error, similarity, good}: `good` is the person with the best
      answer for the same joint among the good cases of the stratum, not of the same
      picture, or None.

    Raises:
      ValueError: unknown error type or joint, or another shape.
    """
    if error not in ERRORS:
        raise ValueError(f"unknown error type {error!r}; use {', '.join(ERRORS)}")
    if joint is not None and joint not in cases.joints:
        raise ValueError(
            f"no joint {joint!r}; the cases have {', '.join(cases.joints)}"
        )
    if similarity.shape != cases.label.shape:
        raise ValueError(
            f"similarity has shape {similarity.shape}; {cases.label.shape} is needed"
        )
    _, defined = cases.values()
    hits = (cases.label == LABELS.index(error)) & defined
    if joint is not None:
        hits &= np.arange(len(cases.joints)) == list(cases.joints).index(joint)
    people, joints = np.nonzero(hits)
    order = np.argsort(similarity[people, joints], kind="stable")
    good, strata = (cases.label == GOOD) & defined, cases.strata()
    rows, seen = [], set()
    for person, j in zip(people[order].tolist(), joints[order].tolist()):
        image = cases.image[person]
        if image in seen or len(rows) == count:
            continue
        seen.add(image)
        elsewhere = np.array([other != image for other in cases.image], bool)
        alike = np.flatnonzero(
            good[:, j] & (strata[:, j] == strata[person, j]) & elsewhere
        )
        best = alike[np.argmax(similarity[alike, j])] if alike.size else None
        rows.append(
            {
                "person": person,
                "joint": cases.joints[j],
                "error": error,
                "similarity": float(similarity[person, j]),
                "good": None if best is None else int(best),
            }
        )
    return rows


def _compare(
    values, defined, strata, wrong, good, images, columns, resamples, level, seed
) -> dict[str, Any]:
    """One joint and error type."""
    undefined = int((wrong & ~defined).sum())
    wrong, good = wrong & defined, good & defined
    shared = np.intersect1d(strata[wrong], strata[good])
    inside = np.isin(strata, shared)
    row: dict[str, Any] = {
        "errors": int((wrong & inside).sum()),
        "error_images": len(set(images[wrong & inside].tolist())),
        "good": int((good & inside).sum()),
        "good_images": len(set(images[good & inside].tolist())),
        "undefined": undefined,
        "unmatched": int((wrong & ~inside).sum()),
    }
    wrong, good = wrong & inside, good & inside
    for side, words in (("error", "error cases"), ("good", "matched good cases")):
        n = row["errors" if side == "error" else "good"]
        pictures = row[f"{side}_images"]
        if n < MIN_CASES or pictures < MIN_IMAGES:
            row["refused"] = (
                f"{n} {words} from {pictures} pictures; {MIN_CASES} from {MIN_IMAGES} "
                "are needed"
            )
            return row
    sums = _sums(values, strata, wrong, good, images, shared)
    plain = np.ones((1, sums[0].shape[0]))
    bad_mean, good_mean = (m[0] for m in _means(sums, plain))
    draws = np.random.default_rng(seed).multinomial(
        plain.size, np.full(plain.size, 1 / plain.size), size=resamples
    )
    size = max(1, BLOCK // max(1, sums[0][0].size))
    parts = [
        np.subtract(*_means(sums, draws[i : i + size].astype(np.float64)))
        for i in range(0, resamples, size)
    ]
    ends = [(1 - level) / 2, (1 + level) / 2]
    drawn = np.concatenate(parts)
    known = np.isfinite(bad_mean - good_mean)
    low, high = np.full((2, len(columns)), np.nan)
    low[known], high[known] = np.nanquantile(drawn[:, known], ends, axis=0)
    row["differences"] = {
        name: {
            "error": _number(bad_mean[c]),
            "good": _number(good_mean[c]),
            "difference": _number(bad_mean[c] - good_mean[c]),
            "low": _number(low[c]),
            "high": _number(high[c]),
        }
        for c, name in enumerate(columns)
    }
    return row


def _sums(values, strata, wrong, good, images, shared) -> list[np.ndarray]:
    """Sums and counts of both sides, `[pictures, strata, columns]` each; only pictures
    with a case."""
    used = np.unique(images[wrong | good])
    found = []
    for side in (wrong, good):
        total, count = np.zeros((2, len(used), len(shared), values.shape[1]))
        at = np.searchsorted(used, images[side]), np.searchsorted(shared, strata[side])
        known = np.isfinite(values[side])
        np.add.at(total, at, np.where(known, values[side], 0.0))
        np.add.at(count, at, known)
        found += [total, count]
    return found


def _means(
    sums: list[np.ndarray], weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mean of the error cases, and of the good cases with the strata of the errors,
    `[draws, columns]`; a stratum that a draw empties on one side drops out of both."""
    bad, n_bad, fine, n_fine = (np.tensordot(weights, s, 1) for s in sums)
    both = (n_bad > 0) & (n_fine > 0)
    share = np.where(both, n_bad, 0.0)
    fine_mean = fine / np.where(both, n_fine, 1.0)
    total = share.sum(1)
    total = np.where(total > 0, total, np.nan)
    return np.where(both, bad, 0.0).sum(1) / total, (share * fine_mean).sum(1) / total


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
