"""SimpleBaseline (Xiao, Wu, Wei, ECCV 2018): a ResNet, three transposed convolutions, 1x1.

Taps: `stem`, `layer1` ... `layer4`, `deconv0`, `deconv1`, `features`, `stack0/heatmaps`.
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float

from pose_jax.arrays import Array
from pose_jax.models import heads, resnet
from pose_jax.models.outputs import Edits, Outputs, Taps
from pose_jax.models.sizes import check_divisible


@dataclasses.dataclass(frozen=True)
class SimpleBaselineConfig:
    """Defaults: the published network with ResNet-50.

    Attributes:
      depth: of the ResNet: 18, 34, 50, 101 or 152.
      width: of its first stage. deconv: widths of the transposed convolutions.
      remat: recompute residual blocks in the backward pass (saves memory).
      dtype: compute type; parameters and statistics stay float32.
      folded: an inference copy, made by `models.fold` and never saved.
    """

    depth: int = 50
    width: int = 64
    deconv: tuple[int, ...] = (256, 256, 256)
    remat: bool = False
    dtype: str = "float32"
    folded: bool = False

    def __post_init__(self):
        object.__setattr__(self, "deconv", tuple(self.deconv))
        resnet.check_depth(self.depth)
        if not 1 <= len(self.deconv) <= 3 or min((self.width, *self.deconv)) < 1:
            raise ValueError(
                f"model.deconv={self.deconv} and model.width={self.width}: one to three "
                "positive widths and a positive width are needed"
            )


def folded_norms(config: SimpleBaselineConfig) -> dict[str, str]:
    """{normalisation: convolution before it}, neighbours by name; see `models.fold`."""
    return {**resnet.folded_norms(), **heads.folded_norms(len(config.deconv))}


class SimpleBaseline(nn.Module):
    """See the module text. `images` are normalised pixels; heatmaps are at a quarter of the
    resolution with three transposed convolutions, `[1, b, h / 4, w / 4, k]` float32.

    Raises:
      ValueError: picture sides that are no multiple of 32.
    """

    config: SimpleBaselineConfig
    num_keypoints: int

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "b h w 3"],
        train: bool = False,
        edits: Edits | None = None,
    ) -> Outputs:
        c, taps = self.config, Taps(edits)
        check_divisible(images.shape[1:3], 32)
        dtype = jnp.dtype(c.dtype)
        trunk = resnet.ResNet(
            c.depth, 4, c.width, dtype, c.folded, c.remat, name="trunk"
        )
        head = heads.DeconvHead(
            self.num_keypoints, c.deconv, dtype, c.folded, name="head"
        )
        x = trunk(images.astype(dtype), train, taps)[-1]
        maps = taps("stack0/heatmaps", head(x, train, taps))
        return Outputs(heatmaps=maps[None].astype(jnp.float32), taps=taps.finish())
