"""How much of a tap a network needs: axes for 95 % of the variance, channels taken away."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from pose_jax import answers
from pose_jax.arrays import Array, PyTree
from pose_jax.models import Edit
from pose_jax.pixels import normalise
from pose_jax.recipe import Recipe

RANKINGS = ("energy", "variance", "reversed", "random")
"""By which channels go first: the least mean square, the least variance, the most energy
(should hurt most), drawn at random (what any ranking has to beat)."""


def make_moments(
    recipe: Recipe, names: Sequence[str]
) -> Callable[[PyTree, dict[str, Any]], dict[str, Any]]:
    """Pure function (variables, batch) -> {tap: (count, sums [c], products [c, c])} over the
    channels of every tap, positions and real people (`batch["mask"]`) pooled."""

    def moments(variables: PyTree, batch: dict[str, Any]) -> dict[str, Any]:
        images = normalise(batch["image"], recipe.spec)
        outputs: Any = recipe.module.apply(variables, images)
        found = {}
        for name in names:
            tap = outputs.taps[name].astype(jnp.float32)
            x = tap.reshape(len(tap), -1, tap.shape[-1])
            x = x * batch["mask"].astype(jnp.float32)[:, None, None]
            flat = x.reshape(-1, x.shape[-1])
            count = batch["mask"].sum() * x.shape[1]
            products = jnp.matmul(flat.T, flat, precision=jax.lax.Precision.HIGHEST)
            found[name] = (count, flat.sum(0), products)
        return found

    return moments


def spectrum(
    count: float, sums: Float[np.ndarray, "c"], products: Float[np.ndarray, "c c"]
) -> Float[np.ndarray, "c"]:
    """Variances along the principal axes of the channels, falling."""
    mean = sums / count
    covariance = products / count - np.outer(mean, mean)
    return np.maximum(np.linalg.eigvalsh(covariance)[::-1], 0.0)


def axes_for(variance: Float[np.ndarray, "c"], share: float = 0.95) -> int:
    """How many axes hold that share of the variance; 0 where nothing varies."""
    total = variance.sum()
    if total <= 0:
        return 0
    return int(np.argmax(np.cumsum(variance) / total >= share - 1e-9)) + 1


def rank_channels(
    mean: Float[np.ndarray, "c"],
    variance: Float[np.ndarray, "c"],
    ranking: str,
    *,
    seed: int = 0,
) -> np.ndarray:
    """Channels in the order in which they go.

    Raises:
      ValueError: unknown ranking.
    """
    energy = mean**2 + variance
    if ranking == "energy":
        return np.argsort(energy, kind="stable")
    if ranking == "reversed":
        return np.argsort(-energy, kind="stable")
    if ranking == "variance":
        return np.argsort(variance, kind="stable")
    if ranking == "random":
        return np.random.default_rng(seed).permutation(len(mean))
    raise ValueError(f"the ranking is {ranking!r}; use one of {', '.join(RANKINGS)}")


def make_pruned(recipe: Recipe, tap: str) -> Callable[..., dict[str, Any]]:
    """Pure function (variables, batch, kept [p, c], instead [c]) -> `keypoints [p, b, k, 2]`
    in crop pixels, with the channels that are not kept replaced by constants."""

    def pruned(
        variables: PyTree,
        batch: dict[str, Any],
        kept: Bool[Array, "p c"],
        instead: Float[Array, "c"],
    ) -> dict[str, Any]:
        images = normalise(batch["image"], recipe.spec)

        def one(mask):
            mask = mask.astype(jnp.float32)
            edit = Edit(mask, (1 - mask) * instead)
            outputs: Any = recipe.module.apply(variables, images, edits={tap: edit})
            return answers.read(outputs, recipe.codec, recipe.spec.size).keypoints

        return {"keypoints": jax.vmap(one)(kept)}

    return pruned


def make_idle_parameters(recipe: Recipe, tap: str) -> Callable[..., Any]:
    """Pure function (variables, images uint8, kept [c], instead [c], *, key) -> number of
    parameters that lose their influence on the answer (gradient zero, which it was not with
    everything kept) once the other channels are constants: what produces nothing but them.
    Layers that read a constant could be folded, too; they are not counted.

    Layers behind a ReLU may be silent on few images, so the number is a little noisy; show it
    a dozen.
    """

    def idle(
        variables: PyTree, images: Any, kept: Any, instead: Any, *, key: jax.Array
    ):
        rest = {n: v for n, v in variables.items() if n != "params"}
        pixels = normalise(images, recipe.spec)

        def answer(params, mask):
            edits = {tap: Edit(mask, (1 - mask) * instead)}
            outputs: Any = recipe.module.apply(
                {"params": params, **rest}, pixels, edits=edits
            )
            found = answers.raw(outputs)
            return (found * jax.random.normal(key, found.shape)).sum()

        mask = jnp.asarray(kept, jnp.float32)
        whole = jax.grad(answer)(variables["params"], jnp.ones_like(mask))
        grads = jax.grad(answer)(variables["params"], mask)
        lost = jax.tree.map(lambda w, g: ((w != 0) & (g == 0)).sum(), whole, grads)
        return sum(jax.tree.leaves(lost))

    return idle
