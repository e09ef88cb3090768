"""Published numbers of Andersen's bachelor thesis, each with its protocol.

One-stack hourglass, 256 x 256 crops of COCO 2017, no augmentation, unit-mass targets, MSE over
all maps, RMSprop. PCK there: argmax on the 64 x 64 map, strictly nearer than 3.2 cells (5 % of
the crop's side), per picture, then the mean over pictures. Silhouettes and variance shares were
read off figures. Its resumed runs did not train (the optimiser held copies of the parameters),
so what it publishes after epoch 47 is no ceiling of its network.
"""

from __future__ import annotations

from typing import NamedTuple


class Published(NamedTuple):
    """A number of the thesis.

    Attributes:
      name: of the quantity. value: as published. protocol: what it was measured on.
    """

    name: str
    value: float
    protocol: str


_LATENT = "third bottleneck residual, 4,096 values"

SKIPS_ON = Published(
    "PCK, all skips open", 0.493,
    "123,520 training crops, argmax of 64x64 maps, mean over pictures",
)  # fmt: skip
SKIPS_OFF = Published(
    "PCK, all skips closed (zero)", 0.179,
    "the same crops and weights, skips replaced by zero",
)  # fmt: skip
COMPONENTS_95 = Published(
    "components for 95 % of the variance", 542,
    f"all 124,040 training crops, {_LATENT}; the printed 541 is an index from 0",
)  # fmt: skip
FIRST_SHARE = Published(
    "share of the first component", 0.534,
    f"7,017 fully labelled training crops, {_LATENT}",
)  # fmt: skip
BEST_K = Published(
    "K of the best silhouette", 2,
    f"k-means, 10 restarts, {_LATENT}; 10,000 random and 7,017 fully labelled crops alike",
)  # fmt: skip

SILHOUETTES: dict[str, dict[int, float]] = {
    "thesis, 10,000 random crops": {
        2: 0.18, 3: 0.035, 4: 0.037, 5: 0.032, 6: 0.026, 7: 0.0, 8: -0.01, 9: -0.01,
        10: -0.01,
    },
    "thesis, 7,017 fully labelled": {
        2: 0.107, 3: 0.047, 4: 0.026, 5: 0.025, 6: 0.027, 7: 0.022, 8: 0.010, 9: 0.008,
        10: 0.009,
    },
}  # fmt: skip
"""Silhouette (Euclidean) by K on the hourglass's latent; read off figures."""

NOTHING_BEYOND = 50
"""The component from which the thesis saw nothing change, and took the rest for noise."""
