"""Scores of people with one random box hidden at a time: the data of Perturbation Influence.

Following XPose (Qiu et al., arXiv 2403.12370), itself after RISE: masks of random area and
aspect ratio centred on a joint; how far does every other joint's score fall? Number and
sizes of the masks are not public; the defaults are those of `regions`.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float

from pose_jax import regions
from pose_jax.arrays import Array, PyTree
from pose_jax.explain import shapley
from pose_jax.explain.games import BoxGame, Person
from pose_jax.explain.shapley.listed import extend


def hidden_scores(
    game: BoxGame,
    variables: PyTree,
    people: Person,
    centres: Float[Array, "m n 2"],
    present: Bool[Array, "m n"],
    *,
    masks: int = 8,
    area: tuple[float, float] = regions.BOX_AREA,
    aspect: tuple[float, float] = regions.BOX_ASPECT,
    chunk_size: int | None = None,
    room: int = 0,
    sharding: Any = None,
    key: jax.Array,
) -> tuple[Float[np.ndarray, "m k"], Float[np.ndarray, "m n r k"]]:
    """Scores of the clean crops and with each of `masks` boxes at every joint.

    Joints without a place are not evaluated: NaN.

    Args:
      centres: joints, crop pixels.
      masks: r, boxes per joint.
      room: people to compile for, at least. sharding: how rows are split over devices.

    Raises:
      ValueError: masks is not positive.
    """
    if masks < 1:
        raise ValueError(f"masks={masks}; at least one box per joint is needed")
    centres, present = np.asarray(centres, np.float32), np.asarray(present)
    count, joints = present.shape
    size = people.image.shape[1], people.image.shape[2]
    # Each person and joint sees boxes of its own: with shared ones a joint that drew small
    # boxes would seem to matter less.
    draw = functools.partial(regions.random_half_sides, size, area=area, aspect=aspect)
    keys = jax.random.split(key, (count, joints, masks))
    halves = np.asarray(jax.vmap(lambda k: draw(key=k))(keys.reshape(-1)))
    halves = halves.reshape(count, joints, masks, 2)
    person, joint = np.nonzero(present)
    middle = np.repeat(centres[person, joint], masks, axis=0)
    # A box of no size hides nothing: the clean score, in the same batch.
    box = (
        np.concatenate([np.zeros((count, 2), np.float32), middle]),
        np.concatenate(
            [np.zeros((count, 2), np.float32), halves[person, joint].reshape(-1, 2)]
        ),
    )
    owner = np.concatenate([np.arange(count), np.repeat(person, masks)])
    room = max(room, count)
    extended = jax.tree.map(lambda x: extend(x, room), people)
    values = np.asarray(
        shapley.evaluate_rows(
            game, box, owner, args=(variables,), games=extended,
            chunk_size=chunk_size, longest=room * (1 + joints * masks), sharding=sharding,
        )
    )  # fmt: skip
    masked = np.full((count, joints, masks, values.shape[1]), np.nan, np.float32)
    masked[person, joint] = values[count:].reshape(len(person), masks, -1)
    return values[:count], masked
