"""Does attention tell the truth? Matrices of attention beside measured influence of body parts.

An attention matrix holds, for every target joint, the share of its map that lies in the
region of each player (the pose game's discs, what is left is background). Whether its order of
players is that of the Group Shapley influence is a rank correlation per person and target, to be
read against baselines: attention is not attribution, and near things agree with each other.
Shares and influences are compared as orders because their units differ.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import stats

from pose_jax import answers
from pose_jax.arrays import Array, PyTree
from pose_jax.explain import attention
from pose_jax.explain.scores import Reference, make_score
from pose_jax.intervals import mean_interval
from pose_jax.pixels import normalise
from pose_jax.recipe import Recipe

MAPS = ("last_layer", "rollout", "gradient")
JOINT_TOKENS = "joint_tokens"
"""Attention between keypoint tokens in the last layer, where there are such tokens."""

FEWEST = 3
"""Players that a rank correlation needs."""

STATISTICS: dict[str, Callable[..., Any]] = {
    "spearman": stats.spearmanr,
    "kendall": stats.kendalltau,
}


def region_shares(
    maps: Float[Array, "k h w"], owners: Int[Array, "h w"], players: int
) -> Float[Array, "k n"]:
    """Share of every map in the region of each player, then in the background (last column).

    Args:
      maps: not negative. owners: player of every pixel, `regions.FREE` where none.

    Returns:
      Rows that sum to one, NaN where a map is zero everywhere; n = players + 1.
    """
    column = jnp.where(owners >= 0, owners, players)
    sums = jnp.einsum("khw,hwn->kn", maps, jax.nn.one_hot(column, players + 1))
    return sums / sums.sum(-1, keepdims=True)


def make_evidence(
    recipe: Recipe, score: str, players: int, *, at_once: int = 0
) -> Callable[..., dict[str, Any]]:
    """Pure function (variables, image, reference, points, owners) -> attention of one person.

    Takes (of the function): the crop `[h, w, 3]` 0..255, the `scores.Reference`, joints `[k, 2]`
    in crop pixels under which tokens are read, and the player of every pixel. Points come from
    outside so that an untrained network is asked about the same places.

    Returns (of the function): `layers [l, k, y, x]` what the joints' tokens read, heads
    averaged; `maps` of `MAPS`, `[k, y, x]` each; `matrices` of the same and of `JOINT_TOKENS`,
    `[k, players + 1]` (for the latter the last column is what goes to patches).

    Args:
      score: a name of `scores.SCORES` with a gradient. players: how many.
      at_once: see `attention.gradient_rollout`.

    Raises:
      ValueError: an unknown score, a network that does not attend.
    """
    module, codec, size = recipe.module, recipe.codec, recipe.spec.size
    places, score_of = attention.tokens_of(module, size), make_score(score, codec)

    def evidence(
        variables: PyTree, image: Any, reference: Reference, points: Any, owners: Any
    ) -> dict[str, Any]:
        def asked(outputs):
            return score_of(answers.maps(outputs, codec, size)[0], reference)

        pixels, tokens = normalise(image, recipe.spec), places.of(points)
        outputs: Any = module.apply(variables, pixels[None])
        weights = attention.read(outputs.taps).mean(1)
        layers = attention.dependency(weights, tokens)
        rows = {
            "last_layer": layers[-1],
            "rollout": attention.rollout(weights, tokens),
            "gradient": attention.gradient_rollout(
                module.apply, variables, pixels, asked, tokens, at_once=at_once
            ),
        }
        maps = {name: places.patches(row) for name, row in rows.items()}
        matrices = {
            name: region_shares(places.upsample(m), owners, players)
            for name, m in maps.items()
        }
        if places.keypoints:
            between = attention.joint_to_joint(weights[-1], places)
            rest = 1 - between.sum(-1, keepdims=True)
            matrices[JOINT_TOKENS] = jnp.concatenate([between, rest], -1)
        return {"layers": places.patches(layers), "maps": maps, "matrices": matrices}

    return evidence


def without_one(coalitions: Bool[np.ndarray, "c n"]) -> Int[np.ndarray, "n"]:
    """The row in which player i alone is hidden, for every i.

    Raises:
      ValueError: such a row was not evaluated.
    """
    rows = {row.tobytes(): i for i, row in enumerate(coalitions)}
    wanted = ~np.eye(coalitions.shape[1], dtype=bool)
    try:
        return np.array([rows[row.tobytes()] for row in wanted])
    except KeyError:
        raise ValueError(
            "the coalitions lack one with a single player hidden; take those of a gsv or "
            "owen game"
        ) from None


def comparable(
    target_valid: Bool[np.ndarray, "m k"],
    present: Bool[np.ndarray, "m n"],
    own: Sequence[int],
) -> Bool[np.ndarray, "m k n"]:
    """Which players a target's evidence is compared over: those with a region, without its
    own, which is nearest, most attended and most influential, and would always agree.

    Args:
      own: `[k]` the player that is the target itself, -1 where there is none.
    """
    others = np.asarray(own)[:, None] != np.arange(present.shape[1])
    return target_valid[:, :, None] & present[:, None, :] & others


def agreement(
    first: Float[np.ndarray, "m k n"],
    second: Float[np.ndarray, "m k n"],
    compared: Bool[np.ndarray, "m k n"],
    statistic: str = "spearman",
) -> Float[np.ndarray, "m k"]:
    """Rank correlation over players, per person and target; NaN where there is nothing to rank
    (fewer than three players, or all alike).

    Args:
      statistic: `spearman` or `kendall` (tau-b), by scipy.

    Raises:
      ValueError: another statistic.
    """
    if statistic not in STATISTICS:
        raise ValueError(f"statistic {statistic!r}; use {' or '.join(STATISTICS)}")
    correlate = STATISTICS[statistic]
    found = np.full(compared.shape[:2], np.nan)
    there = compared & np.isfinite(first) & np.isfinite(second)
    for m, k in np.argwhere(there.sum(-1) >= FEWEST):
        a, b = first[m, k][there[m, k]], second[m, k][there[m, k]]
        if np.ptp(a) > 0 and np.ptp(b) > 0:
            found[m, k] = correlate(a, b).statistic
    return found


def per_person(values: Float[np.ndarray, "m k"]) -> Float[np.ndarray, "m"]:
    """Mean over targets of what is known; NaN without any."""
    there = np.isfinite(values)
    total, count = np.where(there, values, 0).sum(1), there.sum(1)
    return np.divide(total, count, out=np.full(len(values), np.nan), where=count > 0)


def summary(
    values: Float[np.ndarray, "m"],
    groups: Sequence[Hashable],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Mean over people with its 95 % interval, pictures resampled; None where unknown.

    Returns:
      `value`, `low`, `high`, and `people` that have a value.
    """
    there = np.isfinite(values)
    if not there.any():
        return {"value": None, "low": None, "high": None, "people": 0}
    low, high = mean_interval(values, groups, resamples=resamples, seed=seed)
    ends = [float(v) if np.isfinite(v) else None for v in (low, high)]
    mean = float(values[there].mean())
    return {"value": mean, "low": ends[0], "high": ends[1], "people": int(there.sum())}


def partners(groups: Sequence[Hashable], *, seed: int = 0) -> Int[np.ndarray, "m"]:
    """For every person somebody of another picture, at random; -1 where there is nobody."""
    generator, number = np.random.default_rng(seed), np.arange(len(groups))
    names = {group: i for i, group in enumerate(dict.fromkeys(groups))}
    picture = np.array([names[group] for group in groups])
    found = np.full(len(groups), -1)
    for person in number:
        others = number[picture != picture[person]]
        if len(others):
            found[person] = generator.choice(others)
    return found


def shuffled(
    first: Float[np.ndarray, "m k n"],
    second: Float[np.ndarray, "m k n"],
    compared: Bool[np.ndarray, "m k n"],
    pairs: Int[np.ndarray, "m"],
    statistic: str = "spearman",
) -> Float[np.ndarray, "m k"]:
    """`agreement` of each person's first with the second of his partner: what poses have in
    common, whoever is looked at. NaN where there is no partner."""
    both = compared & compared[pairs] & (pairs >= 0)[:, None, None]
    return agreement(first, second[pairs], both, statistic)
