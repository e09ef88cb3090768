"""A tiny member of every family: what the tests of "everything works on every family" share."""

from __future__ import annotations

from typing import Any

from tiny import tiny_config

from pose_jax.models import deeppose

REGRESSORS = {"regression": "regression", "deeppose": "regression", "ief": "correction"}
"""model.name -> objective.name of families that give coordinates."""

TINY: dict[str, dict[str, Any]] = {
    "hourglass": dict(
        name="hourglass", stacks=2, depth=2, features=8, stem=(4, 4, 8)
    ),
    "hourglass52": dict(
        name="hourglass52", widths=(8, 12, 16), blocks=2, bottleneck_blocks=2, stem=4,
        features=8,
    ),
    "hrnet": dict(name="hrnet", width=4, stem=4),
    "mobile_hourglass": dict(
        name="mobile_hourglass", stem=4, features=8, blocks=1, depth=2, expansion=2
    ),
    "mobile_pose_machine": dict(
        name="mobile_pose_machine", stem=4, widths=(4, 6, 8), blocks=(1, 1, 1),
        expansion=2, stages=2,
    ),
    "simple_baseline": dict(
        name="simple_baseline", depth=18, width=4, deconv=(8, 8, 8)
    ),
    "transpose-resnet": dict(
        name="transpose", depth=18, trunk_width=4, width=16, heads=2, layers=2, mlp=32,
        deconv=(8,),
    ),
    "transpose-hrnet": dict(
        name="transpose", trunk="hrnet", trunk_width=4, width=16, heads=1, layers=1,
        mlp=32, deconv=(),
    ),
    "transpose-conv": dict(
        name="transpose", trunk="conv", stem=(4, 8), width=16, heads=2, layers=2, mlp=32,
        deconv=(),
    ),
    "vitpose": dict(
        name="vitpose", patch=16, width=16, heads=2, layers=2, mlp=32, deconv=(8, 8),
        drop_path=0.1,
    ),
    "vitpose-simple": dict(
        name="vitpose", patch=16, width=16, heads=2, layers=2, mlp=32, head="simple"
    ),
    "tokenpose": dict(
        name="tokenpose", trunk="none", patch=(16, 16), width=16, heads=2, layers=2,
        mlp=32, head=16, dropout=0.1,
    ),
    "tokenpose-stem": dict(
        name="tokenpose", trunk="stem", patch=(4, 4), width=16, heads=2, layers=2,
        mlp=32, head=16,
    ),
    "regression": dict(name="regression", depth=18, width=4),
    "regression-rle": dict(name="regression", depth=18, width=4, likelihood="rle"),
    "deeppose": dict(name="deeppose", torso=(5, 12), **deeppose.TINY),
    "ief": dict(name="ief", depth=18, width=4),
}  # fmt: skip


def config_of(name: str) -> Any:
    """A tiny run of a family, plain gradient descent so that rounding stays rounding."""
    c = tiny_config()
    c.input.size = (64, 64)
    c.model = dict(TINY[name])
    if c.model.name in ("vitpose", "transpose", "tokenpose"):
        c.model.input_size = (64, 64)
    if c.model.name in REGRESSORS:
        c.codec.update(sigma_px=2.0, activation="none")
        likelihood = c.model.get("likelihood", "mse")
        c.objective.update(name=REGRESSORS[c.model.name], loss=likelihood)
    c.optimiser.update(name="sgd", learning_rate=0.01)
    return c
