"""mmpose's "hourglass52": the hourglass of CornerNet (Law & Deng, ECCV 2018), not Newell's.

Five halvings by strided convolutions instead of pooling, growing widths, post-activation basic
blocks. One stack is "hourglass52", two would be CornerNet's 104.

Taps, for stack `i` and level `l` (0 is the finest): `stem`, `stack{i}/input`,
`stack{i}/skip{l}`, `stack{i}/encoder{l}`, `stack{i}/bottleneck`, `stack{i}/decoder{l}`,
`stack{i}/features`, `stack{i}/heatmaps`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float

from pose_jax.arrays import Array
from pose_jax.models import heads, resnet
from pose_jax.models.layers import NormRelu, conv, conv1x1, upsample2
from pose_jax.models.outputs import Edits, Outputs, Taps
from pose_jax.models.rectifier import rectify
from pose_jax.models.resnet import BasicBlock
from pose_jax.models.sizes import check_divisible


@dataclasses.dataclass(frozen=True)
class Hourglass52Config:
    """Defaults: the published network.

    Attributes:
      stacks: hourglasses in a row, each supervised.
      widths: channels per resolution, the finest first; one more than there are halvings.
      blocks: basic blocks per position, alike at every level.
      bottleneck_blocks: basic blocks at the lowest resolution.
      stem: width of the first convolution. features: width before the heatmaps.
      remat: recompute blocks in the backward pass (saves memory).
      dtype: compute type; parameters and statistics stay float32.
      folded: an inference copy, made by `models.fold` and never saved.
    """

    stacks: int = 1
    widths: tuple[int, ...] = (256, 256, 384, 384, 384, 512)
    blocks: int = 2
    bottleneck_blocks: int = 4
    stem: int = 128
    features: int = 256
    remat: bool = False
    dtype: str = "float32"
    folded: bool = False

    def __post_init__(self):
        object.__setattr__(self, "widths", tuple(self.widths))
        counts = (self.stacks, self.blocks, self.bottleneck_blocks, *self.widths)
        if len(self.widths) < 2 or min(counts) < 1:
            raise ValueError(
                f"model.widths={self.widths}: two or more positive widths are needed; "
                "stacks and blocks are at least 1"
            )

    @property
    def depth(self) -> int:
        """How often the map is halved inside an hourglass."""
        return len(self.widths) - 1


def folded_norms(config: Hourglass52Config) -> dict[str, str]:
    """{normalisation: convolution before it}, neighbours by name; see `models.fold`."""
    names = ["stem_conv"]
    for i in range(config.stacks):
        names.append(f"stack{i}_features")
        if i + 1 < config.stacks:
            names += [f"stack{i}_merge_input", f"stack{i}_merge_features"]
    return {**resnet.folded_norms(), **{f"{name}_norm": name for name in names}}


class Hourglass52(nn.Module):
    """See the module text. Heatmaps `[stacks, b, h / 4, w / 4, k]` float32.

    Raises:
      ValueError: picture sides that are no multiple of 4 * 2**depth.
    """

    config: Hourglass52Config
    num_keypoints: int

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "b h w 3"],
        train: bool = False,
        edits: Edits | None = None,
    ) -> Outputs:
        c, taps = self.config, Taps(edits)
        check_divisible(images.shape[1:3], 4 * 2**c.depth)
        dtype = jnp.dtype(c.dtype)
        stem = conv(c.stem, 7, "stem_conv", dtype, strides=2, bias=c.folded)
        x = self._norm(stem(images.astype(dtype)), "stem_conv_norm", train)
        x = taps("stem", self._blocks(x, "stem", 1, c.widths[0], train, stride=2))
        heatmaps = []
        for stack in range(c.stacks):
            x = taps(f"stack{stack}/input", x)
            y = self._hourglass(x, stack, 0, taps, train)
            layer = conv(
                c.features,
                3,
                f"stack{stack}_features",
                dtype,
                bias=c.folded,
                train=train,
            )
            y = self._norm(layer(y), f"stack{stack}_features_norm", train)
            y = taps(f"stack{stack}/features", y)
            head = heads.final(self.num_keypoints, dtype, f"stack{stack}_heatmaps")
            heatmaps.append(taps(f"stack{stack}/heatmaps", head(y)).astype(jnp.float32))
            if stack + 1 < c.stacks:
                x = self._merge(x, y, stack, train)
        return Outputs(heatmaps=jnp.stack(heatmaps), taps=taps.finish())

    def _hourglass(self, x, stack: int, level: int, taps: Taps, train: bool):
        """The hourglass from one resolution down, and back up to it."""
        c, name = self.config, f"stack{stack}"
        width, below = c.widths[level], c.widths[level + 1]
        skip = self._blocks(x, f"{name}_skip{level}", c.blocks, width, train)
        skip = taps(f"{name}/skip{level}", skip)
        label = f"{name}_encoder{level}"
        x = self._blocks(x, label, c.blocks, below, train, stride=2)
        x = taps(f"{name}/encoder{level}", x)
        if level + 1 < c.depth:
            x = self._hourglass(x, stack, level + 1, taps, train)
        else:
            count = c.bottleneck_blocks
            x = self._blocks(x, f"{name}_bottleneck", count, below, train)
            x = taps(f"{name}/bottleneck", x)
        # The width changes in the last block, at the lower resolution.
        label = f"{name}_decoder{level}"
        x = self._blocks(x, label, c.blocks, width, train, change=c.blocks - 1)
        return taps(f"{name}/decoder{level}", skip + upsample2(x))

    def _blocks(
        self, x, label: str, count: int, width: int, train: bool,
        stride: int = 1, change: int = 0,
    ):  # fmt: skip
        """`count` blocks; number `change` brings the new width and stride."""
        c = self.config
        kind: Any = nn.remat(BasicBlock, static_argnums=(2,)) if c.remat else BasicBlock
        for i in range(count):
            wide = width if i >= change else x.shape[-1]
            x = kind(
                wide, stride if i == change else 1, jnp.dtype(c.dtype), c.folded,
                name=f"{label}_{i}",
            )(x, train)  # fmt: skip
        return x

    def _norm(self, x, name: str, train: bool, relu: bool = True):
        dtype = jnp.dtype(self.config.dtype)
        norm = NormRelu(dtype, folded=self.config.folded, relu=relu, name=name)
        return norm(x, train=train)

    def _merge(self, x, features, stack: int, train: bool):
        """Input of the next stack."""
        c = self.config
        total = 0.0
        for part, value in (("input", x), ("features", features)):
            name = f"stack{stack}_merge_{part}"
            layer = conv1x1(
                c.widths[0], name, jnp.dtype(c.dtype), bias=c.folded, train=train
            )
            total = total + self._norm(layer(value), f"{name}_norm", train, relu=False)
        label = f"stack{stack}_merge"
        return self._blocks(rectify(total), label, 1, c.widths[0], train)
