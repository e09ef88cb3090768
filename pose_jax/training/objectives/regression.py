"""Regression of coordinates: squared error, smooth L1 or residual log-likelihood, every stage."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Float

from pose_jax.arrays import Array, Batch, PyTree
from pose_jax.data.removal import NOTHING, KeypointRemoval
from pose_jax.heatmaps import Codec
from pose_jax.models.deeppose import Centres, DeepPose
from pose_jax.models.initialise import fresh
from pose_jax.models.outputs import Outputs
from pose_jax.models.regression import sides, to_pixels
from pose_jax.pixels import ColourJitter, InputSpec, normalise
from pose_jax.training.objectives import people
from pose_jax.training.state import Mean

LOSSES = ("mse", "smooth_l1", "rle")


@dataclasses.dataclass(frozen=True)
class RegressionObjective:
    """A training regime: pure functions of variables and a batch.

    Errors are measured in shares of what a stage saw: of the crop's sides, of the box's side
    in the later stages of a cascade. These are shown boxes as the stage before them would
    have missed: the truth plus noise from a normal distribution per joint, fitted to that
    stage's errors on the batch (the paper fits it to all training people).

    Attributes:
      module, spec: network and its input.
      loss_name: `mse`; `smooth_l1`, quadratic up to 1; `rle`, the negative log-likelihood of
        Li et al. (ICCV 2021) with a Laplace base, for networks that have one.
      joint_weights: one factor per keypoint, or empty.
      occluded_weight: factor of labelled but occluded joints.
      jitter: photometric augmentation inside the step.
      removal: keypoints removed from the crops, after the colours are jittered.
    """

    module: nn.Module
    spec: InputSpec
    loss_name: str = "mse"
    joint_weights: tuple[float, ...] = ()
    occluded_weight: float = 1.0
    jitter: ColourJitter = ColourJitter()
    removal: KeypointRemoval = NOTHING

    def __post_init__(self):
        if self.loss_name not in LOSSES:
            raise ValueError(
                f"objective.loss is {self.loss_name!r}; objective.name='regression' takes "
                f"{', '.join(LOSSES)}"
            )
        likelihood = getattr(getattr(self.module, "config", None), "likelihood", "none")
        if (self.loss_name == "rle") != (likelihood == "rle"):
            raise ValueError(
                f"objective.loss={self.loss_name!r} does not fit model.likelihood="
                f"{likelihood!r}; loss 'rle' and likelihood 'rle' belong together"
            )

    def init(self, key: jax.Array, example: Batch) -> PyTree:
        """Fresh variables for a batch like `example`.

        Raises:
          ValueError: the network draws heatmaps.
        """
        images = normalise(example["image"], self.spec)
        variables = fresh(self.module, images, key=key)
        outputs: Any = jax.eval_shape(self.module.apply, variables, images)
        if outputs.coordinates is None:
            raise ValueError(
                "objective.name='regression' trains networks that give coordinates; this "
                "one gives heatmaps: use objective.name='heatmap'"
            )
        return variables

    def loss(
        self, variables: PyTree, batch: Batch, *, key: jax.Array
    ) -> tuple[Mean, tuple[dict[str, Mean], PyTree]]:
        """(loss as sum and count, (metrics, new statistics)) of one batch in training."""
        pixels, removed = people.augmented(
            batch, self.spec, self.jitter, self.removal, key=key
        )
        for_dropout, for_boxes = jax.random.split(jax.random.fold_in(key, 2))
        more: dict[str, Any] = {}
        if isinstance(self.module, DeepPose):
            more["centres"] = simulated_centres(batch, key=for_boxes)
        outputs, updated = self.module.apply(
            variables, pixels, train=True, mutable=["batch_stats"],
            rngs={"dropout": for_dropout}, **more,
        )  # fmt: skip
        loss, zero = self.supervise(outputs, batch, variables)
        # Later stages looked near the truth: only the first answers by itself.
        correct = people.share_correct(outputs.coordinates[0], batch, self.spec.size)
        metrics = {"loss": loss, "zero_map_loss": zero, "correct": correct, **removed}
        return loss, (metrics, updated.get("batch_stats", {}))

    def supervise(
        self, outputs: Outputs, batch: Batch, variables: PyTree | None = None
    ) -> tuple[Mean, Mean]:
        """Loss of the outputs and of the answer "the middle of what I see", summed over
        stages. Without variables a likelihood is that of its base, without the flow."""
        assert outputs.coordinates is not None
        weight = people.joint_weights(batch, self.joint_weights, self.occluded_weight)
        middle = to_pixels(jnp.zeros(2), self.spec.size)
        unit = sides(self.spec.size)
        loss = zero = jnp.float32(0)
        for stage, points in enumerate(outputs.coordinates):
            if stage and f"stage{stage}/side" in outputs.taps:
                middle = outputs.taps[f"stage{stage}/centres"]
                unit = outputs.taps[f"stage{stage}/side"][:, None, None]
            spread = None if outputs.spread is None else outputs.spread[stage] / unit
            for answer, given in ((points, True), (middle, False)):
                scale = (
                    spread if given or spread is None else jnp.full_like(spread, 0.5)
                )
                error = jnp.where(
                    people.labelled(batch)[..., None], answer - people.truth(batch), 0.0
                )
                each = (self._per_joint(error / unit, scale, variables) * weight).sum()
                loss, zero = (loss + each, zero) if given else (loss, zero + each)
        return Mean(loss, weight.sum()), Mean(zero, weight.sum())

    def metrics(self, outputs: Outputs, batch: Batch) -> dict[str, Mean]:
        """Loss and accuracy of outputs that were computed elsewhere (evaluation)."""
        assert outputs.coordinates is not None
        loss, zero = self.supervise(outputs, batch)
        correct = people.share_correct(outputs.coordinates[-1], batch, self.spec.size)
        return {"loss": loss, "zero_map_loss": zero, "correct": correct}

    def trainable(self, path: str) -> bool:
        """Every parameter; `optimiser.freeze` narrows it."""
        return True

    def _per_joint(self, error, spread, variables) -> Float[Array, "b k"]:
        if self.loss_name == "mse":
            return jnp.square(error).mean(-1)
        if self.loss_name == "smooth_l1":
            return optax.huber_loss(error).mean(-1)
        # A Laplace density of that scale, times the flow's density over its base, as the
        # authors' code has it: the flow's own counts for either coordinate.
        residual = error / jnp.maximum(spread, 1e-9)
        base = jnp.log(2 * spread) + jnp.abs(residual)
        if variables is None:
            return base.sum(-1)
        log_phi: Any = self.module.apply(variables, residual, method="log_density")
        return (base + jnp.log(spread) - log_phi[..., None]).sum(-1)


def simulated_centres(batch: Batch, *, key: jax.Array) -> Centres:
    """Where the later stages of a cascade look in training; unlabelled joints' boxes lie at
    the estimate. No gradient passes."""
    known = people.labelled(batch)[..., None]
    truth = people.truth(batch)
    count = jnp.maximum(known.sum(0), 1)

    def centres(stage: int, before: Array) -> Array:
        before = jax.lax.stop_gradient(jnp.asarray(before))
        error = jnp.where(known, before - truth, 0.0)
        mean = error.sum(0) / count
        variance = jnp.where(known, (error - mean) ** 2, 0.0).sum(0) / count
        noise = jax.random.normal(jax.random.fold_in(key, stage), before.shape)
        return jnp.where(known, truth + mean + jnp.sqrt(variance) * noise, before)

    return centres


def make(
    section: Any,
    module,
    spec: InputSpec,
    codec: Codec,
    jitter: ColourJitter,
    removal: KeypointRemoval = NOTHING,
) -> RegressionObjective:
    """The objective of a config section.

    Raises:
      ValueError: wrong number of joint weights, or fields that do not fit together.
    """
    return RegressionObjective(
        module=module,
        spec=spec,
        loss_name=section.loss,
        joint_weights=people.check_weights(
            tuple(section.joint_weights), module.num_keypoints
        ),
        occluded_weight=section.occluded_weight,
        jitter=jitter,
        removal=removal,
    )
