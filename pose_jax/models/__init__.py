"""Model families: one file each; the registry is one literal dict."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from pose_jax.models.folding import fold
from pose_jax.models.hourglass import NEWELL, THESIS, Hourglass, HourglassConfig
from pose_jax.models.mobile import (
    MobileHourglass,
    MobileHourglassConfig,
    MobilePoseMachine,
    MobilePoseMachineConfig,
)
from pose_jax.models.outputs import Edit, Outputs, Taps

FAMILIES: dict[str, tuple[type, type]] = {
    "hourglass": (Hourglass, HourglassConfig),
    "mobile_hourglass": (MobileHourglass, MobileHourglassConfig),
    "mobile_pose_machine": (MobilePoseMachine, MobilePoseMachineConfig),
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
