"""What the objectives that read people share: pixels, weights of joints, the share right."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Float

from pose_jax.arrays import Array, Batch
from pose_jax.data.removal import KeypointRemoval, remove_keypoints
from pose_jax.pixels import ColourJitter, InputSpec, jitter_colours, normalise
from pose_jax.training.state import Mean


def augmented(
    batch: Batch,
    spec: InputSpec,
    jitter: ColourJitter,
    removal: KeypointRemoval,
    *,
    key: jax.Array,
) -> tuple[Float[Array, "b h w 3"], dict[str, Mean]]:
    """(what the network sees in training, metrics of what was removed)."""
    images, found = batch["image"], {}
    if jitter.active:
        images = jitter_colours(images, jitter, key=key)
    if removal.active:
        images, share = remove_keypoints(
            images.astype(jnp.float32), batch["keypoints"], batch["visible"],
            removal, spec.colour, key=jax.random.fold_in(key, 1),
        )  # fmt: skip
        real = batch["mask"].astype(jnp.float32)
        found["removed_area"] = Mean((share * real).sum(), real.sum())
    return normalise(images, spec), found


def joint_weights(
    batch: Batch, factors: Sequence[float], occluded: float
) -> Float[Array, "b k"]:
    """Of every joint in the loss: 0 without a label and in padding.

    Args:
      factors: one per keypoint, or none. occluded: of labelled but occluded joints.
    """
    weight = jnp.where(labelled(batch), batch["weight"], 0.0)
    weight = jnp.where(batch["visible"] == 1, weight * occluded, weight)
    return weight * jnp.asarray(factors, jnp.float32) if factors else weight


def labelled(batch: Batch) -> Array:
    """`[b, k]` joints with a label, of real people."""
    return (batch["visible"] > 0) & batch["mask"][:, None]


def truth(batch: Batch) -> Float[Array, "b k 2"]:
    """The labels; 0 where there is none, whatever the file holds there."""
    return jnp.where(labelled(batch)[..., None], batch["keypoints"], 0.0)


def share_correct(
    points: Float[Array, "b k 2"], batch: Batch, size: tuple[int, int]
) -> Mean:
    """Share of labelled joints within a twentieth of the crop's longer side."""
    error = jnp.linalg.norm(points - truth(batch), axis=-1)
    right = (error < max(size) / 20) & labelled(batch)
    return Mean(
        right.sum().astype(jnp.float32), labelled(batch).sum().astype(jnp.float32)
    )


def check_weights(weights: Sequence[float], num_keypoints: int) -> tuple[float, ...]:
    """Raises:
    ValueError: there are some, but not one per keypoint.
    """
    if weights and len(weights) != num_keypoints:
        raise ValueError(
            f"objective.joint_weights has {len(weights)} numbers but the model has "
            f"{num_keypoints} keypoints"
        )
    return tuple(float(w) for w in weights)
