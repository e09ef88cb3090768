"""Heatmap regression: mean-squared error or spatial softmax cross-entropy, every stack."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from pose_jax import heatmaps
from pose_jax.arrays import Array, Batch, PyTree
from pose_jax.data.removal import NOTHING, KeypointRemoval, remove_keypoints
from pose_jax.heatmaps import Codec
from pose_jax.models.autoencoder import PROJECTION
from pose_jax.models.initialise import fresh
from pose_jax.models.outputs import Outputs
from pose_jax.pixels import ColourJitter, InputSpec, jitter_colours, normalise
from pose_jax.training.state import Mean

LOSSES = ("mse", "cross_entropy")


@dataclasses.dataclass(frozen=True)
class HeatmapObjective:
    """A training regime: pure functions of variables and a batch.

    Attributes:
      module, spec, codec: network, its input, its heatmaps.
      loss_name: `mse`, the mean over pixels and joints (Newell et al. 2016), or
        `cross_entropy` between the unit-mass target and the softmax over positions.
      joint_weights: one factor per keypoint, or empty.
      unlabelled_as_empty: unlabelled joints are supervised with an empty map (Newell et al.,
        the thesis) instead of being left out; `mse` only.
      occluded_weight: factor of labelled but occluded joints.
      jitter: photometric augmentation inside the step.
      removal: keypoints removed from the crops, after the colours are jittered.
    """

    module: nn.Module
    spec: InputSpec
    codec: Codec
    loss_name: str = "mse"
    joint_weights: tuple[float, ...] = ()
    unlabelled_as_empty: bool = False
    occluded_weight: float = 1.0
    jitter: ColourJitter = ColourJitter()
    removal: KeypointRemoval = NOTHING

    def __post_init__(self):
        if self.loss_name not in LOSSES:
            raise ValueError(
                f"objective.loss is {self.loss_name!r}; use one of {', '.join(LOSSES)}"
            )
        softmax = self.codec.activation == "softmax"
        if (self.loss_name == "cross_entropy") != softmax:
            raise ValueError(
                f"objective.loss={self.loss_name!r} needs codec.activation="
                f"{'softmax' if self.loss_name == 'cross_entropy' else 'none'!r}"
            )
        if self.unlabelled_as_empty and softmax:
            raise ValueError(
                "objective.unlabelled_as_empty works with objective.loss='mse' only: a "
                "softmax cannot be empty"
            )

    def init(self, key: jax.Array, example: Batch) -> PyTree:
        """Fresh variables for a batch like `example`, drawn as `model.init` says."""
        images = normalise(example["image"], self.spec)
        return fresh(self.module, images, key=key)

    def loss(
        self, variables: PyTree, batch: Batch, *, key: jax.Array
    ) -> tuple[Mean, tuple[dict[str, Mean], PyTree]]:
        """(loss as sum and count, (metrics, new statistics)) of one batch in training."""
        images = batch["image"]
        if self.jitter.active:
            images = jitter_colours(images, self.jitter, key=key)
        removed = {}
        if self.removal.active:
            images, share = remove_keypoints(
                images.astype(jnp.float32),
                batch["keypoints"],
                batch["visible"],
                self.removal,
                self.spec.colour,
                key=jax.random.fold_in(key, 1),
            )
            real = batch["mask"].astype(jnp.float32)
            removed = {"removed_area": Mean((share * real).sum(), real.sum())}
        outputs, updated = self.module.apply(
            variables,
            normalise(images, self.spec),
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.fold_in(key, 2)},
        )
        loss, zero = self.supervise(outputs, batch)
        metrics = {
            "loss": loss,
            "zero_map_loss": zero,
            "correct": self._accuracy(outputs, batch),
            **removed,
        }
        return loss, (metrics, updated.get("batch_stats", {}))

    def supervise(self, outputs: Outputs, batch: Batch) -> tuple[Mean, Mean]:
        """Loss of the outputs and of all-zero outputs (the answer "nothing")."""
        assert outputs.heatmaps is not None
        targets = self.render(batch, outputs.heatmaps.shape[2:4])
        weight = self._weights(batch)
        per_stage = [self._per_map(maps, targets) for maps in outputs.heatmaps]
        zero = self._per_map(jnp.zeros_like(targets), targets)
        count = weight.sum()
        loss = sum((each * weight).sum() for each in per_stage)
        return (
            Mean(jnp.asarray(loss), count),
            Mean(len(per_stage) * (zero * weight).sum(), count),
        )

    def render(self, batch: Batch, map_size) -> Float[Array, "b y x k"]:
        """Targets, drawn on the device."""
        return jax.vmap(
            lambda points, visible: heatmaps.render(
                points, visible, self.codec, self.spec.size, tuple(map_size)
            )
        )(batch["keypoints"], batch["visible"])

    def metrics(self, outputs: Outputs, batch: Batch) -> dict[str, Mean]:
        """Loss and accuracy of outputs that were computed elsewhere (evaluation)."""
        loss, zero = self.supervise(outputs, batch)
        return {
            "loss": loss,
            "zero_map_loss": zero,
            "correct": self._accuracy(outputs, batch),
        }

    def trainable(self, path: str) -> bool:
        """Every parameter but fitted projections; `optimiser.freeze` narrows it."""
        return PROJECTION not in path.split("/")

    def _weights(self, batch: Batch) -> Float[Array, "b k"]:
        visible, mask = batch["visible"], batch["mask"].astype(jnp.float32)
        weight = jnp.where(visible > 0, batch["weight"], 0.0)
        weight = jnp.where(visible == 1, weight * self.occluded_weight, weight)
        if self.unlabelled_as_empty:
            # An unlabelled joint has no weight of its own: the person's factor counts.
            factor = batch["weight"].max(1, keepdims=True)
            factor = jnp.where((visible > 0).any(1, keepdims=True), factor, 1.0)
            weight = jnp.where(visible == 0, factor, weight)
        if self.joint_weights:
            weight = weight * jnp.asarray(self.joint_weights, jnp.float32)
        return weight * mask[:, None]

    def _per_map(self, maps, targets) -> Float[Array, "b k"]:
        if self.loss_name == "mse":
            return jnp.square(maps - targets).mean((1, 2))
        b, height, width, k = targets.shape
        mass = targets.reshape(b, height * width, k)
        total = mass.sum(1, keepdims=True)
        mass = mass / jnp.where(total > 0, total, 1.0)
        log_probability = jax.nn.log_softmax(maps.reshape(b, height * width, k), axis=1)
        return -(mass * log_probability).sum(1)

    def _accuracy(self, outputs: Outputs, batch: Batch) -> Mean:
        """Share of labelled joints whose peak is within a twentieth of the map's side."""
        assert outputs.heatmaps is not None
        maps = outputs.heatmaps[-1]
        size = maps.shape[1], maps.shape[2]
        scale = heatmaps.stride(self.codec, self.spec.size, size)
        peak = jax.vmap(heatmaps.argmax)(maps)
        error = jnp.linalg.norm(
            peak - batch["keypoints"] / jnp.asarray(scale, jnp.float32), axis=-1
        )
        labelled = (batch["visible"] > 0) & batch["mask"][:, None]
        correct = (error < max(size) / 20) & labelled
        return Mean(
            correct.sum().astype(jnp.float32), labelled.sum().astype(jnp.float32)
        )


def make(
    section: Any,
    module,
    spec: InputSpec,
    codec: Codec,
    jitter: ColourJitter,
    removal: KeypointRemoval = NOTHING,
):
    """The objective of a config section.

    Raises:
      ValueError: wrong number of joint weights, or fields that do not fit together.
    """
    weights = tuple(float(w) for w in section.joint_weights)
    if weights and len(weights) != module.num_keypoints:
        raise ValueError(
            f"objective.joint_weights has {len(weights)} numbers but the model has "
            f"{module.num_keypoints} keypoints"
        )
    return HeatmapObjective(
        module=module,
        spec=spec,
        codec=codec,
        loss_name=section.loss,
        joint_weights=weights,
        unlabelled_as_empty=section.unlabelled_as_empty,
        occluded_weight=section.occluded_weight,
        jitter=jitter,
        removal=removal,
    )
