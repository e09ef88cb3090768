"""Two small public networks of inverted residuals: an hourglass and a pose machine.

Both follow edvardHua/PoseEstimationForMobile (Apache-2.0), whose published weights
`convert.mobile` loads: MobileNetV2 blocks (Sandler et al., CVPR 2018) in one hourglass
(Newell et al., ECCV 2016) and in a convolutional pose machine (Wei et al., CVPR 2016).
They were published with batch normalisation folded into the convolutions, so every
convolution has a bias, and there are no running statistics (`variables` hold `params` only).

Their pixels are BGR on 0..255 (`InputSpec` with mean 0 and std 1 / 255). Every inverted
residual is a tap: inside a position `P` of several blocks, `P/block0`, `P/block1`, ... and
`P` itself for the last one.

| network | taps |
|---|---|
| `MobileHourglass` | `stem`, `shallow`, `stack0/input`, for level `l` (0 the finest) `stack0/encoder{l}`, `stack0/skip{l}`, `stack0/decoder{l}/block`, `stack0/decoder{l}` (not level 0), `stack0/bottleneck`, `stack0/heatmaps` |
| `MobilePoseMachine` | `stem`, for level `l` (0 the finest) `level{l}` and `skip{l}`, `features`, for stage `i` `stage{i}/bottleneck`, `stage{i}/hidden`, `stage{i}/heatmaps` (before upsampling) |
"""  # noqa: E501

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from pose_jax.models.layers import max_pool2
from pose_jax.models.mobile_layers import (
    DEPTHWISE,
    InvertedResidual,
    Separable,
    stem,
    upsample_bilinear,
)
from pose_jax.models.outputs import Edits, Outputs, Taps


def _chain(x, position: str, taps: Taps, blocks: Sequence[Any]):
    """Blocks in a row; every output is a tap, the last one under the position's name."""
    for i, block in enumerate(blocks):
        last = i + 1 == len(blocks)
        x = taps(position if last else f"{position}/block{i}", block(x))
    return x


def _check(config: Any, positive: tuple[str, ...]) -> None:
    if config.depthwise not in DEPTHWISE:
        raise ValueError(
            f"model.depthwise is {config.depthwise!r}; use one of {', '.join(DEPTHWISE)}"
        )
    for field in positive:
        if getattr(config, field) < 1:
            raise ValueError(f"model.{field} must be at least 1")


def _check_size(images, multiple: int) -> None:
    height, width = images.shape[1:3]
    if height % multiple or width % multiple:
        raise ValueError(
            f"this network cannot halve a {height}x{width} picture often enough; make "
            f"input.size divisible by {multiple}"
        )


# --- hourglass --------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class MobileHourglassConfig:
    """Defaults: the published network (0.40 M weights with 14 keypoints).

    Attributes:
      stem: width at half the resolution. shallow_blocks: blocks there, expansion 1.
      features: width from a quarter of the resolution on.
      blocks: inverted residuals per position.
      depth: how often the map is halved inside the hourglass.
      expansion: of the inverted residuals.
      depthwise: `auto`, `shifted` or `native`, see `Depthwise`.
      dtype: compute type; parameters stay float32.
    """

    stem: int = 16
    shallow_blocks: int = 2
    features: int = 24
    blocks: int = 5
    depth: int = 4
    expansion: int = 6
    depthwise: str = "auto"
    dtype: str = "float32"

    def __post_init__(self):
        _check(
            self, ("stem", "shallow_blocks", "features", "blocks", "depth", "expansion")
        )


class MobileHourglass(nn.Module):
    """One hourglass whose decoder carries heatmaps: every level refines the sum of the
    upsampled coarser maps and of those that its skip branch proposes.

    `images` are BGR 0..255; heatmaps are `[1, b, h / 4, w / 4, k]` float32, at least 0.
    """

    config: MobileHourglassConfig
    num_keypoints: int

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "b h w 3"],
        train: bool = False,
        edits: Edits | None = None,
    ) -> Outputs:
        c, k, taps = self.config, self.num_keypoints, Taps(edits)
        _check_size(images, 4 * 2**c.depth)
        dtype = jnp.dtype(c.dtype)
        block = functools.partial(InvertedResidual, method=c.depthwise, dtype=dtype)

        def blocks(
            name: str, count: int = c.blocks, stride: int = 1, head: bool = False
        ):
            """`count` blocks; the first may halve the map, the last may make heatmaps."""
            widths = [c.features] * (count - 1) + [k if head else c.features]
            return [
                block(
                    width,
                    c.expansion,
                    stride=1 if i else stride,
                    head=i + 1 == count and head,
                    name=f"{name}_block{i}",
                )
                for i, width in enumerate(widths)
            ]

        x: Any = taps("stem", stem(images, c.stem, dtype))
        shallow = [
            block(c.stem, 1, name=f"shallow_block{i}") for i in range(c.shallow_blocks)
        ]
        x = _chain(x, "shallow", taps, shallow)
        x = _chain(x, "stack0/input", taps, blocks("input", stride=2))
        levels = []
        for level in range(c.depth):
            levels.append(x)
            position = f"stack0/encoder{level}"
            x = _chain(max_pool2(x), position, taps, blocks(f"encoder{level}"))
        x = _chain(x, "stack0/bottleneck", taps, blocks("bottleneck", 1))
        for level in reversed(range(c.depth)):
            decoder = block(k, c.expansion, head=True, name=f"decoder{level}")
            x = taps(f"stack0/decoder{level}/block", decoder(x))
            branch = blocks(f"skip{level}", head=True)
            x = upsample_bilinear(x, 2) + _chain(
                levels[level], f"stack0/skip{level}", taps, branch
            )
            # The finest level's sum is the network's answer.
            x = taps(f"stack0/decoder{level}" if level else "stack0/heatmaps", x)
        return Outputs(heatmaps=x[None].astype(jnp.float32), taps=taps.finish())


# --- pose machine -----------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class MobilePoseMachineConfig:
    """Defaults: the published network (0.56 M weights with 14 keypoints).

    Attributes:
      stem: width at half the resolution.
      widths, blocks: width and inverted residuals of every level; each halves the map but
        the first.
      expansion: of the levels' inverted residuals; the first level's is 1.
      feature_level: the level whose resolution all others are brought to.
      stages: predictions in a row, each sees the features and the heatmaps before it.
      stage_features, stage_expansion: of a stage's blocks (the first one's width grows from
        everything that the stage sees).
      sizes: depthwise kernels of the first stage and of the others.
      heads: hidden widths of the first stage's head and of the others'.
      upsample: factor from the features' resolution to that of the heatmaps.
      depthwise: `auto`, `shifted` or `native`, see `Depthwise`.
      dtype: compute type; parameters stay float32.
    """

    stem: int = 16
    widths: tuple[int, ...] = (8, 12, 16, 32, 48)
    blocks: tuple[int, ...] = (2, 5, 5, 5, 5)
    expansion: int = 4
    feature_level: int = 2
    stages: int = 6
    stage_features: int = 24
    stage_expansion: tuple[int, ...] = (2, 3, 3)
    sizes: tuple[int, ...] = (3, 7)
    heads: tuple[int, ...] = (256, 64)
    upsample: int = 4
    depthwise: str = "auto"
    dtype: str = "float32"

    def __post_init__(self):
        for field in ("widths", "blocks", "stage_expansion", "sizes", "heads"):
            object.__setattr__(self, field, tuple(getattr(self, field)))
        _check(self, ("stem", "expansion", "stages", "stage_features", "upsample"))
        if len(self.widths) != len(self.blocks) or min(self.widths + self.blocks) < 1:
            raise ValueError(
                "model.widths and model.blocks hold one positive number per level, not "
                f"{self.widths} and {self.blocks}"
            )
        if not 0 <= self.feature_level < len(self.widths):
            raise ValueError(f"model.feature_level is 0..{len(self.widths) - 1}")
        if len(self.sizes) != 2 or len(self.heads) != 2 or not self.stage_expansion:
            raise ValueError(
                "model.sizes and model.heads hold two numbers, model.stage_expansion one "
                "per block"
            )


class MobilePoseMachine(nn.Module):
    """MobileNetV2 levels joined at one resolution, then stages that refine the heatmaps.

    `images` are BGR 0..255; heatmaps of all stages are `[stages, b, h / 2, w / 2, k]`
    float32 in 0..6.
    """

    config: MobilePoseMachineConfig
    num_keypoints: int

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "b h w 3"],
        train: bool = False,
        edits: Edits | None = None,
    ) -> Outputs:
        c, taps = self.config, Taps(edits)
        _check_size(images, 2 ** len(c.widths))
        features = taps("features", self._features(images, taps))
        seen, heatmaps = features, []
        for stage in range(c.stages):
            maps = self._stage(seen, stage, taps)
            heatmaps.append(upsample_bilinear(maps, c.upsample).astype(jnp.float32))
            seen = jnp.concatenate([features, maps], axis=-1)
        return Outputs(heatmaps=jnp.stack(heatmaps), taps=taps.finish())

    def _features(self, images, taps: Taps):
        c, dtype = self.config, jnp.dtype(self.config.dtype)
        x = taps("stem", stem(images, c.stem, dtype))
        levels = []
        for level, (width, count) in enumerate(zip(c.widths, c.blocks)):
            blocks = [
                InvertedResidual(
                    width,
                    c.expansion if level else 1,
                    c.depthwise,
                    dtype,
                    stride=2 if level and i == 0 else 1,
                    name=f"level{level}_block{i}",
                )
                for i in range(count)
            ]
            x = _chain(x, f"level{level}", taps, blocks)
            levels.append(x)
        skips = []
        for level, x in enumerate(levels):
            if level > c.feature_level:
                x = upsample_bilinear(x, 2 ** (level - c.feature_level))
            for _ in range(c.feature_level - level):
                x = max_pool2(x)
            skips.append(taps(f"skip{level}", x))
        return jnp.concatenate(skips, axis=-1)

    def _stage(self, x, stage: int, taps: Taps):
        c, dtype = self.config, jnp.dtype(self.config.dtype)
        later = min(stage, 1)
        name = f"stage{stage}"
        blocks = [
            InvertedResidual(
                c.stage_features,
                expansion,
                c.depthwise,
                dtype,
                size=c.sizes[later],
                name=f"{name}_block{i}",
            )
            for i, expansion in enumerate(c.stage_expansion)
        ]
        x = _chain(x, f"{name}/bottleneck", taps, blocks)
        hidden = Separable(c.heads[later], c.depthwise, dtype, name=f"{name}_hidden")
        x = taps(f"{name}/hidden", hidden(x))
        last = Separable(
            self.num_keypoints, c.depthwise, dtype, head=True, name=f"{name}_heatmaps"
        )
        return taps(f"{name}/heatmaps", last(x))
