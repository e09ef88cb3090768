"""Heatmap heads that several families share.

`DeconvHead` is SimpleBaseline's (Xiao et al., ECCV 2018): ViTPose's "classic" head and
TransPose-R's are the same with other numbers of transposed convolutions.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float

from pose_jax.arrays import Array
from pose_jax.models.layers import Deconv, NormRelu
from pose_jax.models.outputs import Taps

FINAL_INIT = nn.initializers.normal(0.001)
"""Kernels that make heatmaps start small, as in the published code."""


def final(num_keypoints: int, dtype: Any, name: str = "final") -> nn.Dense:
    """The last 1x1 convolution, features to heatmaps."""
    return nn.Dense(num_keypoints, dtype=dtype, kernel_init=FINAL_INIT, name=name)


def folded_norms(layers: int) -> dict[str, str]:
    """{normalisation: convolution before it} of a head with that many deconvolutions."""
    return {f"deconv{i}_norm": f"deconv{i}" for i in range(layers)}


class DeconvHead(nn.Module):
    """Per entry of `channels` a transposed convolution (4x4, stride 2, no bias), BN and ReLU;
    then 1x1 to heatmaps, `[b, 2**n y, 2**n x, k]`.

    Taps: `deconv{i}` after each ReLU, the last one is called `features`.
    """

    num_keypoints: int
    channels: tuple[int, ...] = (256, 256, 256)
    dtype: Any = jnp.float32
    folded: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "b y x c"], train: bool, taps: Taps
    ) -> Float[Array, "b _ _ k"]:
        last = len(self.channels) - 1
        for i, width in enumerate(self.channels):
            double = Deconv(width, self.dtype, bias=self.folded, name=f"deconv{i}")
            norm = NormRelu(self.dtype, folded=self.folded, name=f"deconv{i}_norm")
            x = norm(double(x, train=train), train=train)
            x = taps("features" if i == last else f"deconv{i}", x)
        return final(self.num_keypoints, self.dtype)(x)
