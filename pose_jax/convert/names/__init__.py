"""State-dict keys of public code bases, one file per kind of network: tables, nothing else.

`FAMILIES[model.name](config, num_keypoints)` gives `{dialect: Dialect}`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pose_jax.convert.layout import Dialect
from pose_jax.convert.names.hourglass import hourglass, hourglass52
from pose_jax.convert.names.hrnet import hrnet
from pose_jax.convert.names.resnet import simple_baseline
from pose_jax.convert.names.tokenpose import tokenpose
from pose_jax.convert.names.transpose import transpose
from pose_jax.convert.names.vitpose import vitpose

FAMILIES: dict[str, Callable[[Any, int], dict[str, Dialect]]] = {
    "hourglass": hourglass,
    "hourglass52": hourglass52,
    "hrnet": hrnet,
    "simple_baseline": simple_baseline,
    "tokenpose": tokenpose,
    "transpose": transpose,
    "vitpose": vitpose,
}
"""model.name -> the code bases that publish weights of it."""
