"""How predictions stand up when joints are hidden: 1..r labelled keypoints removed at random.

The same regions, ownership and mean colour as in the pose game. The labels v = 1 of a data set
say how it does under natural occlusion; they are scored by the ordinary evaluation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int

from pose_jax import inference, regions
from pose_jax.arrays import Array, PyTree
from pose_jax.data.augment import transform_person
from pose_jax.data.pipeline import crop_matrix
from pose_jax.data.sources import Person, Source
from pose_jax.evaluation import people_arrays
from pose_jax.intervals import ratio_interval
from pose_jax.metrics.pck import box_longer_side
from pose_jax.recipe import Recipe

THRESHOLD = 0.1
"""PCK threshold, a share of the box's longer side."""


@dataclasses.dataclass(frozen=True)
class OcclusionSweep:
    """Errors with ever more joints hidden; `c` numbers of joints, `m` people.

    Attributes:
      counts: joints hidden per person (all labelled ones where a person has fewer).
      error: `[c, m, k]` distance / longer box side. hidden: `[c, m, k]` whether hidden.
      visible: `[m, k]` labels of the data. images: `[m]` picture of every person.
    """

    counts: tuple[int, ...]
    error: Float[np.ndarray, "c m k"]
    hidden: Bool[np.ndarray, "c m k"]
    visible: Int[np.ndarray, "m k"]
    images: tuple[Any, ...]

    def record(self, resamples: int = 1000) -> dict[str, Any]:
        """PCK@0.1 of hidden and of seen joints for every number, with 95 % intervals."""
        labelled = self.visible > 0
        rows = []
        for count, error, hidden in zip(self.counts, self.error, self.hidden):
            row: dict[str, Any] = {"removed": count}
            for name, where in (("hidden", hidden), ("seen", labelled & ~hidden)):
                correct, total = ((error < THRESHOLD) & where).sum(1), where.sum(1)
                row[name] = {"joints": int(total.sum()), "pck": None}
                if total.sum():
                    row[name]["pck"] = float(correct.sum() / total.sum())
                    row[name]["interval_95"] = ratio_interval(
                        correct, total, self.images, resamples=resamples
                    )
            rows.append(row)
        return {"threshold": THRESHOLD, "rows": rows}


def removed_joints(
    visible: Int[Array, "k"], count: Int[Array, ""] | int, *, key: jax.Array
) -> Bool[Array, "k"]:
    """Which labelled keypoints are hidden: `count` of them, or all where there are fewer.

    With one key the joints of a smaller count are among those of a larger one.
    """
    labelled = visible > 0
    draw = jnp.where(labelled, jax.random.uniform(key, visible.shape), jnp.inf)
    rank = jnp.argsort(jnp.argsort(draw))
    return labelled & (rank < count)


def make_predict(
    recipe: Recipe, *, flip_test: bool, side: float = regions.SIDE, seed: int = 0
) -> inference.Predict:
    """As `inference.make_predict`, for `((variables, count), batch)` with `count` joints
    hidden; which ones depends on the seed and the person alone."""
    plain = inference.make_predict(recipe, flip_test=flip_test)
    size = recipe.spec.size

    def hide(image, points, visible, row, count):
        key = jax.random.fold_in(jax.random.key(seed), row)
        owners = regions.keypoint_owners(
            points, visible > 0, size, side_px=side * size[0]
        )
        seen = ~removed_joints(visible, count, key=key)
        image = image.astype(jnp.float32)
        fill = regions.mean_fill(image, recipe.spec.colour)
        return regions.remove(image, fill, regions.hidden(owners, seen))

    def predict(variables: PyTree, batch: dict[str, Any]) -> dict[str, Any]:
        model, count = variables
        images = jax.vmap(hide, (0, 0, 0, 0, None))(
            batch["image"], batch["keypoints"], batch["visible"], batch["id"], count
        )
        return plain(model, {**batch, "image": images})

    return predict


def occlusion_sweep(
    recipe: Recipe,
    variables: PyTree,
    source: Source,
    *,
    mesh: Mesh,
    batch: int,
    flip_test: bool,
    counts: Sequence[int],
    seed: int = 0,
) -> OcclusionSweep:
    """Predict everybody once per number of hidden joints.

    Raises:
      ValueError: no counts, negative ones, or a prediction that is not finite.
    """
    if not counts or min(counts) < 0:
        raise ValueError(
            f"evaluate.occlusion={tuple(counts)} holds numbers of joints, >= 0"
        )
    predict = make_predict(recipe, flip_test=flip_test, seed=seed)
    compiled = inference.compile_predict(predict, mesh)
    rows = list(range(len(source)))
    people, true, visible = people_arrays(source, rows, recipe)
    # Which joints were hidden: those in the crop, as the program saw them.
    inside = np.stack([_in_crop(person, recipe) for person in people])
    longer = box_longer_side(np.stack([p.box for p in people]))
    choose = jax.jit(
        jax.vmap(
            lambda row, seen, count: removed_joints(
                seen, count, key=jax.random.fold_in(jax.random.key(seed), row)
            ),
            (0, 0, None),
        )
    )
    errors, hidden = [], []
    for count in counts:
        found = inference.predict_source(
            recipe, (variables, jnp.int32(count)), source,
            mesh=mesh, batch=batch, flip_test=flip_test, compiled=compiled,
        )  # fmt: skip
        distance = np.linalg.norm(found.keypoints - true, axis=-1)
        errors.append(distance / longer[:, None])
        hidden.append(np.asarray(choose(np.array(rows), inside, count)))
    return OcclusionSweep(
        counts=tuple(int(c) for c in counts),
        error=np.stack(errors),
        hidden=np.stack(hidden),
        visible=visible,
        images=tuple(p.image_id for p in people),
    )


def _in_crop(person: Person, recipe: Recipe) -> np.ndarray:
    matrix = crop_matrix(person, recipe.view)
    size = recipe.spec.size
    return transform_person(person, recipe.skeleton, matrix, size, flip=False)[1]
