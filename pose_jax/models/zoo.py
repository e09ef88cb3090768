"""The published members of the families, with the figures their authors print."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from pose_jax import models
from pose_jax.models.hourglass import NEWELL, THESIS


@dataclasses.dataclass(frozen=True)
class Member:
    """One published network.

    Attributes:
      name: how it is called here.
      section: its `config.model`.
      num_keypoints, input_size: as published; (height, width) in pixels.
      parameters: trained numbers; normalisation statistics are not counted.
      gflops: 2 x multiply-adds of one forward pass of one crop, in 10^9.
      published: figures with their protocol.
      weights: where trained weights are, or an empty text.
    """

    name: str
    section: Mapping[str, Any]
    num_keypoints: int
    input_size: tuple[int, int]
    parameters: int
    gflops: float
    published: str
    weights: str = ""

    @property
    def taps(self) -> tuple[str, ...]:
        """Names of the intermediates that can be read and edited."""
        module = models.build(self.section, num_keypoints=self.num_keypoints)
        images = jnp.zeros((1, *self.input_size, 3))
        variables = jax.eval_shape(module.init, jax.random.key(0), images)
        outputs: Any = jax.eval_shape(module.apply, variables, images)
        return tuple(outputs.taps)


_MOBILE = "edvardHua/PoseEstimationForMobile, release/{}/model.tflite (Apache-2.0)"
_HOURGLASS: dict[str, Any] = dict(name="hourglass")

MEMBERS: tuple[Member, ...] = (
    Member(
        "hourglass-1", {**_HOURGLASS, **NEWELL, "stacks": 1}, 16, (256, 256),
        3_426_448, 10.3, "",
    ),
    Member(
        "hourglass-2", {**_HOURGLASS, **NEWELL, "stacks": 2}, 16, (256, 256),
        6_570_400, 16.7,
        "MPII val 87.4 (paper's ablation, PCKh@0.5); 88.3 (PyTorch port, its own script)",
    ),
    Member(
        "hourglass-8", {**_HOURGLASS, **NEWELL, "stacks": 8}, 16, (256, 256),
        25_434_112, 54.9,
        "MPII val 88.1 (paper), 90.2 (PyTorch port, its own script); test elbow 91.2, "
        "wrist 87.1",
    ),
    Member(
        "hourglass-thesis", {**_HOURGLASS, **THESIS, "features": 256}, 17, (256, 256),
        14_526_053, 60.5,
        "COCO 2017 crops, heatmap PCK (3.2 of 64 cells, macro): val .433, test .441",
    ),
    Member(
        "mobile-hourglass", dict(name="mobile_hourglass"), 14, (192, 192),
        401_316, 0.56,
        "AI Challenger test PCKh 91.81 (author)",
        _MOBILE.format("hourglass_model"),
    ),
    Member(
        "mobile-pose-machine", dict(name="mobile_pose_machine"), 14, (192, 192),
        564_100, 0.57,
        "AI Challenger test PCKh 93.78 (author)",
        _MOBILE.format("cpm_model"),
    ),
)  # fmt: skip


def list_models() -> tuple[Member, ...]:
    """A record per published network; `models.build(member.section, ...)` makes it."""
    return MEMBERS
