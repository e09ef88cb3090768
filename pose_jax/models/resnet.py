"""Residual networks (He et al., CVPR 2016) as trunks of pose models.

The blocks are the post-activation ones; the stride of a bottleneck sits in its 3x3
convolution, as in torchvision and in every pose code base. Parameters are named after
torchvision's: `conv1, norm1, layer{stage}_{block}/{conv1, norm1, ..., shortcut, shortcut_norm}`.
Taps: `stem` (after the pooling), `layer1` ... `layer4`.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float

from pose_jax.arrays import Array
from pose_jax.models.layers import NormRelu, conv, conv1x1, max_pool3, stored
from pose_jax.models.outputs import Taps
from pose_jax.models.rectifier import rectify

BLOCKS: dict[int, tuple[int, ...]] = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
"""Depth -> residual blocks per stage; below 50 they are basic, from 50 on bottlenecks."""


def check_depth(depth: int) -> None:
    """Raises:
    ValueError: no such network.
    """
    if depth not in BLOCKS:
        raise ValueError(
            f"model.depth is {depth}; residual networks have {', '.join(map(str, BLOCKS))}"
        )


def folded_norms() -> dict[str, str]:
    """{normalisation: convolution before it}, neighbours by name, of trunk and blocks."""
    numbered = {f"norm{i}": f"conv{i}" for i in (1, 2, 3)}
    return {**numbered, "shortcut_norm": "shortcut"}


class _Block(nn.Module):
    """What the two blocks share: fields and the shortcut."""

    width: int
    stride: int = 1
    dtype: Any = jnp.float32
    folded: bool = False

    def _norm(self, name: str, relu: bool = True) -> NormRelu:
        return NormRelu(self.dtype, folded=self.folded, relu=relu, name=name)

    def _conv1x1(self, width: int, name: str, train: bool) -> nn.Dense:
        return conv1x1(width, name, self.dtype, bias=self.folded, train=train)

    def _conv3x3(self, name: str, stride: int, train: bool) -> nn.Conv:
        return conv(
            self.width, 3, name, self.dtype,
            strides=stride, bias=self.folded, train=train,
        )  # fmt: skip

    def _add(self, x, h, train: bool):
        """The sum with the shortcut, projected where stride or width change; ReLU last."""
        if self.stride > 1 or x.shape[-1] != h.shape[-1]:
            x = x[:, :: self.stride, :: self.stride]
            x = self._conv1x1(h.shape[-1], "shortcut", train)(x)
            x = self._norm("shortcut_norm", relu=False)(x, train=train)
        return stored(rectify(x + h))


class BasicBlock(_Block):
    """3x3 (stride) BN ReLU, 3x3 BN, plus the shortcut, ReLU."""

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool):
        h = self._conv3x3("conv1", self.stride, train)(x)
        h = self._norm("norm1")(h, train=train)
        h = self._conv3x3("conv2", 1, train)(h)
        return self._add(x, self._norm("norm2", relu=False)(h, train=train), train)


class Bottleneck(_Block):
    """1x1 BN ReLU, 3x3 (stride) BN ReLU, 1x1 to four times the width BN, plus the shortcut,
    ReLU."""

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool):
        h = self._norm("norm1")(
            self._conv1x1(self.width, "conv1", train)(x), train=train
        )
        h = self._conv3x3("conv2", self.stride, train)(h)
        h = self._norm("norm2")(h, train=train)
        h = self._conv1x1(4 * self.width, "conv3", train)(h)
        return self._add(x, self._norm("norm3", relu=False)(h, train=train), train)


class ResNet(nn.Module):
    """The first `stages` stages: 7x7 stride 2, 3x3 pooling stride 2, residual stages of which
    all but the first halve the map.

    Attributes:
      depth: a key of `BLOCKS`. stages: 1 to 4. width: of the stem and the first stage (64).
      remat: recompute blocks in the backward pass.
      folded: see `models.fold`.
    """

    depth: int = 50
    stages: int = 4
    width: int = 64
    dtype: Any = jnp.float32
    folded: bool = False
    remat: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], train: bool, taps: Taps
    ) -> list[Float[Array, "b y x d"]]:
        """One map per stage, the finest (stride 4) first; `x` has any number of channels."""
        stem = conv(self.width, 7, "conv1", self.dtype, strides=2, bias=self.folded)
        norm = NormRelu(self.dtype, folded=self.folded, name="norm1")
        x = taps("stem", max_pool3(norm(stem(x), train=train), train=train))
        kind: Any = Bottleneck if self.depth >= 50 else BasicBlock
        if self.remat:
            kind = nn.remat(kind, static_argnums=(2,))
        maps = []
        for stage in range(self.stages):
            for number in range(BLOCKS[self.depth][stage]):
                stride = 2 if stage and not number else 1
                x = kind(
                    self.width * 2**stage, stride, self.dtype, self.folded,
                    name=f"layer{stage + 1}_{number}",
                )(x, train)  # fmt: skip
            x = taps(f"layer{stage + 1}", x)
            maps.append(x)
        return maps
