"""Iterative error feedback: corrections along the ideal path (Carreira et al., CVPR 2016).

Fixed path consolidation: the estimates shown in training are those of the ideal corrections,
not the network's own. Ours where the paper has a curriculum that adds one step after the
other: each person of a batch is shown one step of the path, drawn anew each time, so that a
batch costs one forward pass and all steps weigh alike from the start.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from pose_jax.arrays import Batch, PyTree
from pose_jax.data.removal import NOTHING, KeypointRemoval
from pose_jax.heatmaps import Codec
from pose_jax.models import ief
from pose_jax.models.initialise import fresh
from pose_jax.models.outputs import Outputs
from pose_jax.pixels import ColourJitter, InputSpec, normalise
from pose_jax.training.objectives import people
from pose_jax.training.state import Mean


@dataclasses.dataclass(frozen=True)
class CorrectionObjective:
    """Squared error of a correction, in units of the longest one.

    Attributes:
      module, spec: an `ief.Ief` and its input.
      joint_weights: one factor per keypoint, or empty.
      occluded_weight: factor of labelled but occluded joints.
      jitter: photometric augmentation inside the step.
      removal: keypoints removed from the crops, after the colours are jittered.
    """

    module: ief.Ief
    spec: InputSpec
    joint_weights: tuple[float, ...] = ()
    occluded_weight: float = 1.0
    jitter: ColourJitter = ColourJitter()
    removal: KeypointRemoval = NOTHING

    def init(self, key: jax.Array, example: Batch) -> PyTree:
        """Fresh variables for a batch like `example`."""
        return fresh(self.module, normalise(example["image"], self.spec), key=key)

    def loss(
        self, variables: PyTree, batch: Batch, *, key: jax.Array
    ) -> tuple[Mean, tuple[dict[str, Mean], PyTree]]:
        """(loss as sum and count, (metrics, new statistics)) of one batch in training. The
        metric `correct` judges the pose after the one correction."""
        pixels, removed = people.augmented(
            batch, self.spec, self.jitter, self.removal, key=key
        )
        truth, known = people.truth(batch), people.labelled(batch)
        stats = dict(variables["batch_stats"])
        stats["start_mean"], stats["start_count"] = ief.observe(
            stats["start_mean"], stats["start_count"], truth, known
        )
        start = jnp.broadcast_to(stats["start_mean"], truth.shape)
        # Nobody knows the way of a joint without a label: it waits at the start.
        truth = jnp.where(known[..., None], truth, start)
        steps, longest = self.module.config.steps, self._longest
        step = jax.random.randint(jax.random.fold_in(key, 2), truth.shape[:1], 0, steps)
        pose, wanted = ief.ideal_path(start, truth, step, longest)
        outputs, updated = self.module.apply(
            {**variables, "batch_stats": stats}, pixels, train=True, pose=pose,
            mutable=["batch_stats"],
        )  # fmt: skip
        found = outputs.coordinates[0]
        metrics = {
            "loss": self._squared(found - pose - wanted, batch),
            "zero_map_loss": self._squared(wanted, batch),
            "correct": people.share_correct(found, batch, self.spec.size),
            **removed,
        }
        return metrics["loss"], (metrics, updated["batch_stats"])

    def metrics(self, outputs: Outputs, batch: Batch) -> dict[str, Mean]:
        """Accuracy of outputs that were computed elsewhere (evaluation). Their `loss` is the
        squared distance left after the last step, its zero that of the crop's middle."""
        assert outputs.coordinates is not None
        points, truth = outputs.coordinates[-1], people.truth(batch)
        height, width = self.spec.size
        middle = jnp.asarray([width - 1, height - 1]) / 2
        return {
            "loss": self._squared(points - truth, batch),
            "zero_map_loss": self._squared(middle - truth, batch),
            "correct": people.share_correct(points, batch, self.spec.size),
        }

    def trainable(self, path: str) -> bool:
        """Every parameter; `optimiser.freeze` narrows it."""
        return True

    @property
    def _longest(self) -> float:
        return ief.bound(self.module.config, self.spec.size)

    def _squared(self, away, batch: Batch) -> Mean:
        """Mean over x and y, in units of the longest correction."""
        weight = people.joint_weights(batch, self.joint_weights, self.occluded_weight)
        squared = jnp.square(away / self._longest).mean(-1)
        return Mean((squared * weight).sum(), weight.sum())


def make(
    section: Any,
    module,
    spec: InputSpec,
    codec: Codec,
    jitter: ColourJitter,
    removal: KeypointRemoval = NOTHING,
) -> CorrectionObjective:
    """The objective of a config section.

    Raises:
      ValueError: another family, another loss, or a wrong number of joint weights.
    """
    if not isinstance(module, ief.Ief):
        raise ValueError(
            "objective.name='correction' trains iterative error feedback; set "
            "model.name='ief', or another objective"
        )
    if section.loss != "mse":
        raise ValueError(
            f"objective.loss is {section.loss!r}; objective.name='correction' takes 'mse'"
        )
    return CorrectionObjective(
        module=module,
        spec=spec,
        joint_weights=people.check_weights(
            tuple(section.joint_weights), module.num_keypoints
        ),
        occluded_weight=section.occluded_weight,
        jitter=jitter,
        removal=removal,
    )
