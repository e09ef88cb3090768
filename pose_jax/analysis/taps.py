"""Taps of any model: which there are, which one is the latent, and reading them over people."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from pose_jax import sharding
from pose_jax.arrays import PyTree
from pose_jax.data import pipeline
from pose_jax.data.sources import Source
from pose_jax.pixels import normalise
from pose_jax.recipe import Recipe

AUTO = "auto"


def tap_shapes(recipe: Recipe) -> dict[str, tuple[int, ...]]:
    """Every tap of a network -> the shape of one person's values."""
    images = jnp.zeros((1, *recipe.spec.size, 3))
    outputs: Any = jax.eval_shape(recipe.module.apply, recipe.shapes(), images)
    return {name: tuple(tap.shape[1:]) for name, tap in outputs.taps.items()}


def require_tap(recipe: Recipe, name: str = AUTO) -> str:
    """The tap of that name; `auto` is the latent, the last tap called bottleneck.

    Raises:
      ValueError: there is none (those that exist are listed).
    """
    shapes = tap_shapes(recipe)
    if name == AUTO:
        found = [tap for tap in shapes if re.search(r"(^|/)bottleneck$", tap)]
        if found:
            return found[-1]
        raise ValueError(
            f"the model has no tap called bottleneck; name one of {', '.join(shapes)}"
        )
    if name not in shapes:
        raise ValueError(
            f"the model has no tap {name!r}; those that exist: {', '.join(shapes)}"
        )
    return name


def skip_taps(recipe: Recipe, names: Sequence[str] = ()) -> tuple[str, ...]:
    """The skip gates: the taps named, or all that are called skip0, skip1, ...

    Raises:
      ValueError: a tap that does not exist, or a model without skip connections.
    """
    if names:
        return tuple(require_tap(recipe, name) for name in names)
    shapes = tap_shapes(recipe)
    found = tuple(sorted(t for t in shapes if re.search(r"(^|/)skip\d+$", t)))
    if not found:
        raise ValueError(
            "the model has no skip connections (no tap called skip0, skip1, ...); "
            f"its taps are {', '.join(shapes)}"
        )
    return found


def decoder_taps(recipe: Recipe) -> tuple[str, ...]:
    """Outputs of the decoder, from coarse to fine."""
    shapes = tap_shapes(recipe)
    found = [t for t in shapes if re.search(r"(^|/)decoder\d+$", t)]
    return tuple(sorted(found, key=lambda t: (t.rpartition("/")[0], shapes[t][0])))


def make_reader(
    recipe: Recipe, names: Sequence[str]
) -> Callable[[PyTree, dict[str, Any]], dict[str, Any]]:
    """Pure function (variables, batch) -> {tap: [b, *shape] float32}. What the taps do not
    need is not computed."""

    def read(variables: PyTree, batch: dict[str, Any]) -> dict[str, Any]:
        images = normalise(batch["image"], recipe.spec)
        outputs: Any = recipe.module.apply(variables, images)
        return {name: outputs.taps[name].astype(jnp.float32) for name in names}

    return read


def compile_over(function: Callable[..., Any], mesh: Mesh) -> Any:
    """(variables, batch, ...) as one program: the batch split over the mesh."""
    replicated = sharding.replicated(mesh)
    batched = sharding.batch_sharding(mesh)
    compiled = jax.jit(function, out_shardings=replicated)

    def call(variables: PyTree, batch: dict[str, np.ndarray], *rest: Any) -> Any:
        placed = jax.device_put(batch, batched)
        return compiled(jax.device_put(variables, replicated), placed, *rest)

    return call


def batches(
    source: Source, recipe: Recipe, rows: Sequence[int], batch: int
) -> Iterator[tuple[dict[str, np.ndarray], int]]:
    """(batch, how many of its rows are real) of this process alone, in order."""
    left = len(rows)
    for found in pipeline.eval_batches(source, recipe.view, batch=batch, rows=rows):
        names = ("image", "keypoints", "visible", "id", "mask")
        yield {name: found[name] for name in names}, min(batch, left)
        left -= batch


def read_taps(
    recipe: Recipe,
    variables: PyTree,
    source: Source,
    rows: Sequence[int],
    names: Sequence[str],
    *,
    mesh: Mesh,
    batch: int,
    compiled: Any = None,
) -> dict[str, np.ndarray]:
    """{tap: [n, *shape]} for some rows of a source, in memory.

    Raises:
      ImageError: a picture cannot be read.
    """
    compiled = compiled or compile_over(make_reader(recipe, names), mesh)
    found: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for sent, count in batches(source, recipe, rows, batch):
        taps = sharding.to_host(compiled(variables, sent))
        for name in names:
            found[name].append(taps[name][:count])
    return {name: np.concatenate(parts) for name, parts in found.items()}
