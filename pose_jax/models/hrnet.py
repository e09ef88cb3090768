"""High-resolution networks (Sun et al., CVPR 2019): parallel branches that exchange by sums.

Parameters follow the authors' names: `conv1, norm1, conv2, norm2, layer1_{n}`, `transition{s}_{b}`,
`stage{s}_{m}/{branch{b}_{n}, fuse{i}_{j}}`; normalisations are called after their convolution.
Taps: `stem`, `layer1`, `stage{s}/branch{b}` after each stage, `features`, `stack0/heatmaps`.
"""  # noqa: E501

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float

from pose_jax.arrays import Array
from pose_jax.models import heads, resnet
from pose_jax.models.layers import NormRelu, conv, conv1x1, stored
from pose_jax.models.outputs import Edits, Outputs, Taps
from pose_jax.models.rectifier import rectify
from pose_jax.models.resnet import BasicBlock, Bottleneck
from pose_jax.models.sizes import check_divisible

MODULES = {2: 1, 3: 4, 4: 3}
"""Stage -> modules in a row; a stage has as many branches as its number."""


def folded_norms(config: Any = None) -> dict[str, str]:
    """{normalisation: convolution before it}, neighbours by name; see `models.fold`."""
    pairs = {**resnet.folded_norms(), "transition1_0_norm": "transition1_0"}
    stages = range(1, 4)
    fuses = [f"fuse{i}_{j}" for i in range(4) for j in range(i + 1, 4)]
    fuses += [
        f"fuse{i}_{j}_{n}" for i in range(4) for j in range(i) for n in range(i - j)
    ]
    names = [f"transition{s}_{s}" for s in stages] + fuses
    return pairs | {f"{name}_norm": name for name in names}


class _Normed(nn.Module):
    """Convolutions that are followed by their normalisation, `name` and `name_norm`."""

    dtype: Any = jnp.float32
    folded: bool = False

    def _normed(self, x, layer: nn.Module, train: bool, relu: bool = True):
        norm = NormRelu(
            self.dtype, folded=self.folded, relu=relu, name=f"{layer.name}_norm"
        )
        return norm(layer(x), train=train)

    def _conv3x3(self, width: int, name: str, stride: int, train: bool) -> nn.Conv:
        return conv(
            width, 3, name, self.dtype, strides=stride, bias=self.folded, train=train
        )


class Stem(nn.Module):
    """Two 3x3 convolutions of stride 2, then `blocks` bottlenecks: 256 channels at a quarter
    of the resolution."""

    dtype: Any = jnp.float32
    folded: bool = False
    blocks: int = 4
    width: int = 64

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], train: bool, taps: Taps
    ) -> Float[Array, "b h/4 w/4 d"]:
        for i in (1, 2):
            layer = conv(
                self.width, 3, f"conv{i}", self.dtype,
                strides=2, bias=self.folded, train=train,
            )  # fmt: skip
            norm = NormRelu(self.dtype, folded=self.folded, name=f"norm{i}")
            x = norm(layer(x), train=train)
        x = taps("stem", x)
        for i in range(self.blocks):
            block = Bottleneck(
                self.width, 1, self.dtype, self.folded, name=f"layer1_{i}"
            )
            x = block(x, train)
        return taps("layer1", x)


class Exchange(_Normed):
    """One module: four basic blocks per branch, then every branch becomes the sum of all,
    brought to its resolution; with `top_only` the others are left out."""

    top_only: bool = False
    blocks: int = 4

    @nn.compact
    def __call__(
        self, branches: list[Float[Array, "b _ _ _"]], train: bool
    ) -> list[Float[Array, "b _ _ _"]]:
        widths = [x.shape[-1] for x in branches]
        branches = list(branches)
        for b, width in enumerate(widths):
            for n in range(self.blocks):
                block = BasicBlock(
                    width, 1, self.dtype, self.folded, name=f"branch{b}_{n}"
                )
                branches[b] = block(branches[b], train)
        fused = []
        for i in range(1 if self.top_only else len(branches)):
            parts = [
                self._bring(x, j, i, widths[i], train) for j, x in enumerate(branches)
            ]
            fused.append(stored(rectify(sum(parts[1:], parts[0]))))
        return fused

    def _bring(self, x, source: int, target: int, width: int, train: bool):
        name = f"fuse{target}_{source}"
        if source == target:
            return x
        if source > target:
            layer = conv1x1(width, name, self.dtype, bias=self.folded, train=train)
            x = self._normed(x, layer, train, relu=False)
            return _repeat(x, 2 ** (source - target))
        for n in range(target - source):
            last = n == target - source - 1
            layer = self._conv3x3(
                width if last else x.shape[-1], f"{name}_{n}", 2, train
            )
            x = self._normed(x, layer, train, relu=not last)
        return x


def _repeat(x, times: int):
    """Nearest-neighbour upsampling."""
    b, h, w, c = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None, :], (b, h, times, w, times, c))
    return x.reshape(b, h * times, w * times, c)


class HRNet(_Normed):
    """The trunk up to stage `stages`; the last module keeps its top branch alone.

    Attributes:
      width: of the top branch; every lower one doubles it. stages: 2, 3 or 4.
      stem: width of the stem (64). remat: recompute modules in the backward pass.
    """

    width: int = 32
    stages: int = 4
    stem: int = 64
    remat: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], train: bool, taps: Taps
    ) -> list[Float[Array, "b y x d"]]:
        """`[top branch]`, a quarter of the resolution."""
        stem = Stem(self.dtype, self.folded, width=self.stem, name="stem")
        branches = [stem(x, train, taps)]
        for stage in range(2, self.stages + 1):
            branches = self._transition(branches, stage, train)
            for module in range(MODULES[stage]):
                last = stage == self.stages and module == MODULES[stage] - 1
                kind: Any = (
                    nn.remat(Exchange, static_argnums=(2,)) if self.remat else Exchange
                )
                branches = kind(
                    self.dtype, self.folded, last, name=f"stage{stage}_{module}"
                )(branches, train)
            branches = [
                taps(f"stage{stage}/branch{b}", x) for b, x in enumerate(branches)
            ]
        return branches

    def _transition(self, branches: list[Any], stage: int, train: bool) -> list[Any]:
        """One branch more, made from the lowest one; the first transition also narrows the
        stem's output."""
        new = self._conv3x3(
            self.width * 2 ** (stage - 1),
            f"transition{stage - 1}_{stage - 1}",
            2,
            train,
        )
        lowest = self._normed(branches[-1], new, train)
        if stage == 2:
            narrow = self._conv3x3(self.width, "transition1_0", 1, train)
            branches = [self._normed(branches[0], narrow, train)]
        return [*branches, lowest]


@dataclasses.dataclass(frozen=True)
class HRNetConfig:
    """Defaults: HRNet-W32.

    Attributes:
      width: of the branch with the highest resolution: 32 or 48 as published.
      stem: width of the first two convolutions.
      remat: recompute modules in the backward pass (saves memory).
      dtype: compute type; parameters and statistics stay float32.
      folded: an inference copy, made by `models.fold` and never saved.
    """

    width: int = 32
    stem: int = 64
    remat: bool = False
    dtype: str = "float32"
    folded: bool = False

    def __post_init__(self):
        if self.width < 1 or self.stem < 1:
            raise ValueError("model.width and model.stem must be at least 1")


class HRNetPose(nn.Module):
    """See the module text. Heatmaps `[1, b, h / 4, w / 4, k]` float32.

    Raises:
      ValueError: picture sides that are no multiple of 32.
    """

    config: HRNetConfig
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
        trunk = HRNet(dtype, c.folded, c.width, 4, c.stem, c.remat, name="trunk")
        x = taps("features", trunk(images.astype(dtype), train, taps)[0])
        maps = taps("stack0/heatmaps", heads.final(self.num_keypoints, dtype)(x))
        return Outputs(heatmaps=maps[None].astype(jnp.float32), taps=taps.finish())
