"""What a config describes, as records: network, input, codec, skeleton."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from pose_jax import models, skeletons
from pose_jax.arrays import PyTree
from pose_jax.config import to_plain, to_tuples
from pose_jax.data.pipeline import View
from pose_jax.heatmaps import Codec
from pose_jax.pixels import InputSpec

PRECISIONS = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything but the weights.

    Attributes:
      module: the network; `apply(variables, pixels) -> Outputs`.
      spec: its input. codec: its heatmaps. skeleton: its keypoints.
      model: the plain config section that built the module.
    """

    module: nn.Module
    spec: InputSpec
    codec: Codec
    skeleton: skeletons.Skeleton
    model: Mapping[str, Any]

    @property
    def view(self) -> View:
        """How people become crops for this network."""
        return View(self.spec, self.codec.unit, self.skeleton)

    def inference(self, variables: PyTree) -> tuple[Recipe, PyTree]:
        """The same network for prediction only, faster: (recipe, its variables).

        Normalisation is folded into the convolutions (`models.fold`); heatmaps, taps and
        edits stay what they are. The variables come back as numpy where they were folded.
        """
        module, folded = models.fold(self.module, variables)
        if module is self.module:
            return self, variables
        model = {**self.model, "folded": True}
        return dataclasses.replace(self, module=module, model=model), folded

    def shapes(self, num_keypoints: int | None = None) -> Any:
        """Abstract variables, for any number of keypoints (nothing is computed)."""
        k = num_keypoints or self.skeleton.num_keypoints
        module = models.build(self.model, num_keypoints=k)
        images = jnp.zeros((1, *self.spec.size, 3))
        return jax.eval_shape(module.init, jax.random.key(0), images)


def recipe(config: Any, *, precision: str = "float32") -> Recipe:
    """The records of a config (a ConfigDict or what `config.json` holds).

    Raises:
      ValueError: fields that do not exist or do not fit.
      KeyError: unknown skeleton.
    """
    plain = to_tuples(to_plain(config))
    if precision not in PRECISIONS:
        raise ValueError(
            f"train.precision is {precision!r}; use {' or '.join(PRECISIONS)}"
        )
    skeleton = skeletons.get(plain["skeleton"])
    model = dict(plain["model"])
    if precision != "float32":
        model["dtype"] = precision
    return Recipe(
        module=models.build(model, num_keypoints=skeleton.num_keypoints),
        spec=InputSpec(**plain["input"]),
        codec=Codec(**plain["codec"]),
        skeleton=skeleton,
        model=model,
    )
