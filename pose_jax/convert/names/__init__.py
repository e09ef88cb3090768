"""State-dict keys of public code bases, one file per kind of network: tables, nothing else.

`FAMILIES[model.name](config, num_keypoints)` gives `{dialect: Dialect}`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pose_jax.convert.layout import Dialect
from pose_jax.convert.names import (
    hourglass,
    hrnet,
    resnet,
    tokenpose,
    transpose,
    vitpose,
)

FAMILIES: dict[str, Callable[[Any, int], dict[str, Dialect]]] = {
    "hourglass": hourglass.hourglass,
    "hourglass52": hourglass.hourglass52,
    "hrnet": hrnet.hrnet,
    "simple_baseline": resnet.simple_baseline,
    "tokenpose": tokenpose.tokenpose,
    "transpose": transpose.transpose,
    "vitpose": vitpose.vitpose,
}
"""model.name -> the code bases that publish weights of it."""
