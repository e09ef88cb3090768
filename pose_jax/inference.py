"""Forward passes over people: one jitted program from uint8 crops to keypoints."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int

from pose_jax import answers, geometry, heatmaps, sharding
from pose_jax.arrays import PyTree
from pose_jax.data import pipeline
from pose_jax.data.sources import Source
from pose_jax.pixels import normalise
from pose_jax.recipe import Recipe

Predict = Callable[[PyTree, dict[str, Any]], dict[str, Any]]


def make_predict(recipe: Recipe, *, flip_test: bool) -> Predict:
    """Pure function (variables, batch) -> keypoints in crop pixels, scores, grid cells.

    With `flip_test`, the answer on the mirrored crop is brought back and averaged in, see
    `answers.read_flipped`.
    """
    codec, size = recipe.codec, recipe.spec.size

    def forward(variables, images) -> Any:
        return recipe.module.apply(variables, normalise(images, recipe.spec))

    def predict(variables: PyTree, batch: dict[str, Any]) -> dict[str, Any]:
        images = batch["image"]
        outputs = forward(variables, images)
        if flip_test:
            mirrored, pairs = images[:, :, ::-1], recipe.skeleton.mirrored
            other = forward(variables, mirrored)
            answer = answers.read_flipped(outputs, other, pairs, codec, size)
        else:
            answer = answers.read(outputs, codec, size)
        maps, keypoints, scores = answer
        # A maximum over NaN may come out finite; the maps themselves are asked.
        finite = jnp.isfinite(maps).all((1, 2))
        result = {
            "keypoints": keypoints,
            "scores": jnp.where(finite, scores, jnp.nan),
            "grid": jax.vmap(heatmaps.argmax)(maps),
        }
        if "keypoints" in batch:
            targets = jax.vmap(
                lambda p, v: heatmaps.render(
                    p, v, codec, size, (maps.shape[1], maps.shape[2])
                )
            )(batch["keypoints"], batch["visible"])
            result["true_grid"] = jax.vmap(heatmaps.argmax)(targets)
            result["drawn"] = targets.max((1, 2)) > 0
        return result

    return predict


def compile_predict(predict: Predict, mesh: Mesh):
    """The function as one program over the mesh; every process gets the whole result."""
    replicated = sharding.replicated(mesh)
    return jax.jit(
        predict,
        in_shardings=(replicated, sharding.batch_sharding(mesh)),
        out_shardings=replicated,
    )


@dataclasses.dataclass
class Predictions:
    """Predictions for rows of a source, unique by row.

    Attributes:
      rows: `[n]` row of the source.
      keypoints: `[n, k, 2]` (x, y) image pixels. scores: `[n, k]`.
      grid, true_grid: `[n, k, 2]` peak cells of predicted and target maps.
      drawn: `[n, k]` whether the target map holds a peak.
      map_side: longer side of the heatmaps.
    """

    rows: Int[np.ndarray, "n"]
    keypoints: Float[np.ndarray, "n k 2"]
    scores: Float[np.ndarray, "n k"]
    grid: Int[np.ndarray, "n k 2"]
    true_grid: Int[np.ndarray, "n k 2"]
    drawn: np.ndarray
    map_side: int


def predict_source(
    recipe: Recipe,
    variables: PyTree,
    source: Source,
    *,
    mesh: Mesh,
    batch: int,
    flip_test: bool,
    compiled: Any = None,
    rows: Iterable[int] | None = None,
    report: Callable[[int], None] = lambda done: None,
    alone: bool = False,
) -> Predictions:
    """Keypoints of every person of a source.

    Args:
      mesh: over all processes, which share the rows; or, with `alone`, over devices of this
        process, which does all of them by itself.

    Raises:
      ValueError: a prediction is not finite (the row is named), or a batch the mesh cannot
        split.
    """
    sharding.check_batch(batch, mesh, what="evaluate.batch")
    compiled = compiled or compile_predict(
        make_predict(recipe, flip_test=flip_test), mesh
    )
    variables = jax.device_put(variables, sharding.replicated(mesh))
    wanted = list(range(len(source)) if rows is None else rows)
    parts, done = [], 0
    for rows_ in pipeline.eval_batches(
        source,
        recipe.view,
        batch=batch,
        rows=wanted,
        process=0 if alone else jax.process_index(),
        processes=1 if alone else jax.process_count(),
    ):
        sent = {name: rows_[name] for name in ("image", "keypoints", "visible", "id")}
        result = sharding.to_host(compiled(variables, sharding.put_batch(sent, mesh)))
        count = min(batch, len(wanted) - done)
        # Rows of a global batch are in order, padding last: cutting it is the mask.
        parts.append({name: value[:count] for name, value in result.items()})
        done += count
        report(done)
    merged = {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
    finite = np.isfinite(merged["keypoints"]).all((1, 2))
    finite &= np.isfinite(merged["scores"]).all(1)
    if not finite.all():
        row = wanted[int(np.argmin(finite))]
        raise ValueError(
            f"the prediction for person {source.person(row).id} is not finite; the weights "
            "hold NaN or infinity: evaluate an earlier checkpoint"
        )
    matrices = np.stack(
        [pipeline.crop_matrix(source.person(row), recipe.view) for row in wanted]
    )
    side = max(map_size(recipe))
    return Predictions(
        rows=np.array(wanted),
        keypoints=geometry.invert(merged["keypoints"].astype(np.float64), matrices),
        scores=merged["scores"],
        grid=merged["grid"],
        true_grid=merged["true_grid"],
        drawn=merged["drawn"],
        map_side=side,
    )


def map_size(recipe: Recipe) -> tuple[int, int]:
    """Height and width of the heatmaps."""
    images = jnp.zeros((1, *recipe.spec.size, 3))

    def maps(variables, images):
        outputs: Any = recipe.module.apply(variables, images)
        return answers.maps(outputs, recipe.codec, recipe.spec.size)

    found: Any = jax.eval_shape(maps, recipe.shapes(), images)
    return found.shape[1], found.shape[2]
