"""Scores of the explainers of one network in one world, with intervals over pictures."""

from __future__ import annotations

from typing import Any

import numpy as np

from pose_jax.data.worlds import REGIONS, SKELETON, WorldSource
from pose_jax.explain import planted
from pose_jax.intervals import mean_interval
from pose_jax.tasks.arrays import plain
from pose_jax.tasks.planted_gates import null_regions

_DECOY, _MARKER = REGIONS.index("decoy"), REGIONS.index("marker")


def own_limbs(joints: list[str]) -> np.ndarray:
    """`[r, t]` the joint's own limb."""
    own = np.zeros((len(REGIONS), len(joints)), bool)
    for n, joint in enumerate(joints):
        limb = {"wrist": "arm", "ankle": "leg"}.get(joint.split("_")[-1])
        own[REGIONS.index(f"{joint.split('_')[0]}_{limb}" if limb else "head"), n] = (
            True
        )
    return own


def truth_of(arrays: dict[str, np.ndarray], source: WorldSource) -> planted.Truth:
    """What the network used, of the planted targets."""
    targets = [SKELETON.index(name) for name in source.rules.causes]
    shift = planted.defined_mean(arrays["shift"][..., targets], 2)
    floor = planted.noise_floor(shift, null_regions(source.rules))
    return planted.Truth(shift, floor, planted.SURE_PX * source.size / 96)


def score_all(
    found: dict[str, np.ndarray], arrays: dict[str, np.ndarray], source: WorldSource,
    gates: dict[str, Any],
) -> dict[str, dict[str, np.ndarray]]:  # fmt: skip
    """`{explainer: {score: [m, t]}}`, with the two explainers that know the answer: `oracle`
    (effects measured with other donors: the ceiling) and `swapped` (the effects of the next
    picture: what the average layout gives away). NaN for targets that were not learned."""
    joints = list(source.rules.causes)
    targets = [SKELETON.index(name) for name in joints]
    truth, own = truth_of(arrays, source), own_limbs(joints)
    learned = np.array([gates["targets"][j]["learned"] for j in joints])
    by_donor = arrays["shift"][..., targets]
    half = by_donor.shape[2] // 2
    known = {"swapped": np.roll(np.nan_to_num(truth.shift), 1, axis=0)}
    if half:
        known["oracle"] = np.nan_to_num(by_donor[:, :, half:].mean(2))
    result = {}
    for name, values in {**known, **found}.items():
        here = truth
        if name == "oracle":
            here = planted.Truth(
                by_donor[:, :, :half].mean(2), truth.floor, truth.sure_px
            )
        here = planted.Truth(here.shift[: len(values)], here.floor, here.sure_px)
        scores = planted.score(values, here, own=own, decoy=_DECOY)
        scores = {k: np.where(learned, v, np.nan) for k, v in scores.items()}
        scores["marker_over_decoy"] = planted.preference(values, _MARKER, _DECOY)
        result[name] = scores
    return result


def summarise(
    found: dict[str, np.ndarray], arrays: dict[str, np.ndarray], source: WorldSource,
    gates: dict[str, Any], *, resamples: int,
) -> dict[str, Any]:  # fmt: skip
    """Means, intervals over pictures and how many were undefined, per explainer and target."""
    joints = list(source.rules.causes)
    table: dict[str, Any] = {}
    for name, scores in score_all(found, arrays, source, gates).items():
        table[name] = {}
        for score, values in scores.items():
            low, high = mean_interval(
                values, list(range(len(values))), resamples=resamples
            )
            count, mean = np.isfinite(values).sum(0), planted.defined_mean(values)
            table[name][score] = {
                joint: {
                    "mean": plain(mean)[t], "low": plain(low)[t], "high": plain(high)[t],
                    "undefined": int(len(values) - count[t]),
                }
                for t, joint in enumerate(joints)
            }  # fmt: skip
    return {"pictures": len(arrays["points"]), "explainers": table}
