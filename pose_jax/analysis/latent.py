"""What a latent does: decode points of it, move people along it, cut it down to a few axes.

The nearest real sample to a point on a principal axis, which is how Andersen's thesis read its
latent, says nothing about an axis whose steps are shorter than the distance between samples.
Here the network itself reads the moved latent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from pose_jax import answers
from pose_jax.arrays import Array, PyTree
from pose_jax.models import Edit
from pose_jax.pixels import normalise
from pose_jax.recipe import Recipe


def _read(recipe: Recipe, outputs: Any) -> tuple[Any, Any]:
    """Keypoints `[b, k, 2]` in crop pixels and peaks `[b, k]` of a network's answer."""
    answer = answers.read(outputs, recipe.codec, recipe.spec.size)
    return answer.keypoints, answer.scores


def _closed(gates: Sequence[str]) -> dict[str, Edit]:
    return {gate: Edit(scale=0.0) for gate in gates}


def make_decode(
    recipe: Recipe, tap: str, gates: Sequence[str] = ()
) -> Callable[[PyTree, Array, Array], dict[str, Any]]:
    """Pure function (variables, image [h, w, 3], latents [m, d]) -> `keypoints [m, k, 2]`,
    `peak [m, k]`: the picture's tap is replaced by each latent. The skips are that picture's, or
    closed where `gates` names them."""

    def decode(variables: PyTree, image: Any, latents: Any) -> dict[str, Any]:
        images = normalise(image[None], recipe.spec)

        def one(latent):
            plain: Any = recipe.module.apply(variables, images)
            shape = plain.taps[tap].shape
            edits = {tap: Edit(0.0, latent.reshape(shape)), **_closed(gates)}
            outputs = recipe.module.apply(variables, images, edits=edits)
            keypoints, peak = _read(recipe, outputs)
            return {"keypoints": keypoints[0], "peak": peak[0]}

        return jax.vmap(one)(latents)

    return decode


def make_displacement(
    recipe: Recipe, tap: str, gates: Sequence[str] = ()
) -> Callable[[PyTree, dict[str, Any], Array], Float[Array, "m b k"]]:
    """Pure function (variables, batch, moves [m, d]) -> how far (crop pixels) every joint of
    every person goes when the tap is moved by each vector, with the person's own skips, or
    with `gates` closed before and after."""

    def displace(variables: PyTree, batch: dict[str, Any], moves: Any):
        images = normalise(batch["image"], recipe.spec)
        plain: Any = recipe.module.apply(variables, images, edits=_closed(gates))
        before, _ = _read(recipe, plain)
        shape = plain.taps[tap].shape[1:]

        def one(move):
            edits = {tap: Edit(1.0, move.reshape(shape)), **_closed(gates)}
            outputs = recipe.module.apply(variables, images, edits=edits)
            after, _ = _read(recipe, outputs)
            return jnp.linalg.norm(after - before, axis=-1)

        return jax.vmap(one)(moves)

    return displace


def make_projection(
    recipe: Recipe, tap: str, gates: Sequence[str] = ()
) -> Callable[..., dict[str, Any]]:
    """Pure function (variables, batch, mean [d], components [c, d], kept [r, c]) -> what the
    network answers from a latent that was cut down:

      `only [r, b, k, 2]`     mean + the kept components: nothing else is left,
      `without [r, b, k, 2]`  the latent minus the kept components (mean stays): all else is,
      `whole [b, k, 2]`       the latent as it is.

    Keypoints in crop pixels. `gates` are closed throughout.
    """

    def project(
        variables: PyTree,
        batch: dict[str, Any],
        mean: Float[Array, "d"],
        components: Float[Array, "c d"],
        kept: Bool[Array, "r c"],
    ) -> dict[str, Any]:
        images = normalise(batch["image"], recipe.spec)
        plain: Any = recipe.module.apply(variables, images, edits=_closed(gates))
        latent = plain.taps[tap]
        flat = latent.reshape(len(latent), -1)
        # Float32 at full precision: sums over thousands of axes feed the network.
        product = jax.lax.Precision.HIGHEST
        code = jnp.matmul(flat - mean, components.T, precision=product)

        def answer(new):
            edits = {tap: Edit(0.0, new.reshape(latent.shape)), **_closed(gates)}
            outputs = recipe.module.apply(variables, images, edits=edits)
            return _read(recipe, outputs)[0]

        def one(mask):
            part = jnp.matmul(code * mask, components, precision=product)
            return answer(mean + part), answer(flat - part)

        only, without = jax.vmap(one)(kept.astype(jnp.float32))
        return {"only": only, "without": without, "whole": _read(recipe, plain)[0]}

    return project
