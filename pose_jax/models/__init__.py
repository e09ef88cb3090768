"""Model families: one file each; the registry is one literal dict."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from pose_jax.models.deeppose import DeepPose, DeepPoseConfig
from pose_jax.models.folding import fold
from pose_jax.models.hourglass import NEWELL, THESIS, Hourglass, HourglassConfig
from pose_jax.models.hourglass52 import Hourglass52, Hourglass52Config
from pose_jax.models.hrnet import HRNetConfig, HRNetPose
from pose_jax.models.ief import Ief, IefConfig
from pose_jax.models.mobile import (
    MobileHourglass,
    MobileHourglassConfig,
    MobilePoseMachine,
    MobilePoseMachineConfig,
)
from pose_jax.models.outputs import Edit, Outputs, Taps
from pose_jax.models.regression import Regression, RegressionConfig
from pose_jax.models.simple_baseline import SimpleBaseline, SimpleBaselineConfig
from pose_jax.models.tokenpose import TokenPose, TokenPoseConfig
from pose_jax.models.transpose import TransPose, TransPoseConfig
from pose_jax.models.vitpose import ViTPose, ViTPoseConfig

FAMILIES: dict[str, tuple[type, type]] = {
    "hourglass": (Hourglass, HourglassConfig),
    "hourglass52": (Hourglass52, Hourglass52Config),
    "hrnet": (HRNetPose, HRNetConfig),
    "mobile_hourglass": (MobileHourglass, MobileHourglassConfig),
    "mobile_pose_machine": (MobilePoseMachine, MobilePoseMachineConfig),
    "regression": (Regression, RegressionConfig),
    "deeppose": (DeepPose, DeepPoseConfig),
    "ief": (Ief, IefConfig),
    "simple_baseline": (SimpleBaseline, SimpleBaselineConfig),
    "tokenpose": (TokenPose, TokenPoseConfig),
    "transpose": (TransPose, TransPoseConfig),
    "vitpose": (ViTPose, ViTPoseConfig),
}
"""Family name -> (module, its frozen config)."""


def build(config: Mapping[str, Any], *, num_keypoints: int) -> nn.Module:
    """A model from its config section (`name` + the family's fields).

    Raises:
      ValueError: unknown family, or a field that the family does not have.
    """
    fields = dict(config)
    name = fields.pop("name", None)
    if name not in FAMILIES:
        raise ValueError(
            f"unknown model.name {name!r}; choose one of {', '.join(FAMILIES)}"
        )
    module, record = FAMILIES[name]
    known = [f.name for f in dataclasses.fields(record)]
    for field in fields:
        if field not in known:
            near = difflib.get_close_matches(field, known, 1)
            hint = f"; did you mean model.{near[0]}?" if near else ""
            raise ValueError(f"model {name!r} has no field {field!r}{hint}")
    return module(record(**fields), num_keypoints)


__all__ = ["FAMILIES", "NEWELL", "THESIS", "Edit", "Outputs", "Taps", "build", "fold"]
