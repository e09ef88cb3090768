"""Stacked hourglass (Newell, Yang, Deng, ECCV 2016) and the thesis's one-stack variant.

One file, one module: the published variants differ in numbers and three small rules
(`shortcut`, `residual_after_upsample`, `head`), which are fields of `HourglassConfig`.

Taps, for stack `i` and level `l` (0 is the finest): `stem`, `stack{i}/input`,
`stack{i}/skip{l}`, `stack{i}/encoder{l}`, `stack{i}/bottleneck`, `stack{i}/decoder{l}`,
`stack{i}/features`, `stack{i}/heatmaps`; with an autoencoder also `stack{i}/code` and
`stack{i}/reconstruction` (what the decoder reads instead of the bottleneck).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float

from pose_jax.arrays import Array
from pose_jax.models.autoencoder import Autoencoder, AutoencoderConfig
from pose_jax.models.initialise import INITS
from pose_jax.models.layers import (
    NormRelu,
    conv,
    conv1x1,
    max_pool2,
    stored,
    upsample2,
)
from pose_jax.models.outputs import Edits, Outputs, Taps

SHORTCUTS = ("identity", "conv3x3")


@dataclasses.dataclass(frozen=True)
class HourglassConfig:
    """Defaults: Newell's network with two stacks.

    Attributes:
      stacks: hourglasses in a row, each supervised.
      depth: how often the map is halved inside an hourglass.
      features: width of the residual stream.
      stem: widths of the 7x7 convolution and of the residuals before `features`.
      residuals: residual modules per position.
      bottleneck_residuals: residual modules at the lowest resolution between the encoder's
        last and the decoder's first.
      last_residuals: residual modules after an hourglass.
      shortcut: `identity` (1x1 where widths differ; Newell) or `conv3x3` (thesis).
      residual_after_upsample: decoder residuals after the skip is added, none at the finest
        level (thesis), instead of before upsampling (Newell).
      head: width of the layer before the last 1x1; 0 = `features` (Newell), -1 = number of
        keypoints (thesis).
      skips: levels that have a skip connection, 0 the finest; None = all. The others have no
        parameters either.
      autoencoder, code, autoencoder_output: what the bottleneck of every stack passes
        through, see `autoencoder.AutoencoderConfig`.
      init: how training starts, see `initialise`: `glorot`, Flax's truncated normal with
        zero biases, or `pytorch`, the thesis's.
      remat: recompute residual modules in the backward pass (saves memory).
      dtype: compute type of the layers; parameters and statistics stay float32.
      folded: normalisations that follow a convolution are part of it: an inference copy,
        made by `models.fold` and never saved.
    """

    stacks: int = 2
    depth: int = 4
    features: int = 256
    stem: tuple[int, ...] = (64, 128, 128)
    residuals: int = 1
    bottleneck_residuals: int = 1
    last_residuals: int = 1
    shortcut: str = "identity"
    residual_after_upsample: bool = False
    head: int = 0
    skips: tuple[int, ...] | None = None
    autoencoder: str = "none"
    code: int = 50
    autoencoder_output: str = "relu"
    init: str = "glorot"
    remat: bool = False
    dtype: str = "float32"
    folded: bool = False

    def __post_init__(self):
        object.__setattr__(self, "stem", tuple(self.stem))
        levels = range(self.depth) if self.skips is None else self.skips
        object.__setattr__(self, "skips", tuple(levels))
        if not set(self.skips or ()) <= set(range(self.depth)):
            raise ValueError(
                f"model.skips={self.skips} names levels beyond 0..{self.depth - 1} "
                "(model.depth)"
            )
        _ = self.squeeze  # Checks its fields.
        if self.shortcut not in SHORTCUTS:
            raise ValueError(
                f"model.shortcut is {self.shortcut!r}; use one of {SHORTCUTS}"
            )
        if self.init not in INITS:
            raise ValueError(f"model.init is {self.init!r}; use {' or '.join(INITS)}")
        for field in ("stacks", "depth", "features", "residuals"):
            if getattr(self, field) < 1:
                raise ValueError(f"model.{field} must be at least 1")
        if len(self.stem) != 3:
            raise ValueError(f"model.stem holds three widths, not {self.stem}")

    @property
    def squeeze(self) -> AutoencoderConfig:
        """The autoencoder of every stack."""
        return AutoencoderConfig(self.autoencoder, self.code, self.autoencoder_output)


def folded_norms(config: HourglassConfig) -> dict[str, str]:
    """The normalisations that a folded network lacks -> the convolution before each.

    The two are neighbours in `params`. `norm1` of a residual follows a sum that the shortcut
    reads as well, so it stays.
    """
    stacks = {f"stack{i}_norm": f"stack{i}_features" for i in range(config.stacks)}
    return {"stem_norm": "stem_conv", "norm2": "conv1", "norm3": "conv2"} | stacks


def autoencoder_name(stack: int) -> str:
    """Of the autoencoder's parameters."""
    return f"stack{stack}_autoencoder"


class Residual(nn.Module):
    """Pre-activation bottleneck: BN-ReLU-1x1(out/2), BN-ReLU-3x3, BN-ReLU-1x1, plus a
    shortcut without normalisation."""

    features: int
    shortcut: str
    dtype: Any
    folded: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b y x c"], train: bool):
        half = self.features // 2
        h = NormRelu(self.dtype, name="norm1")(x, train=train)
        h = conv1x1(half, "conv1", self.dtype, train=train)(h)
        h = NormRelu(self.dtype, folded=self.folded, name="norm2")(h, train=train)
        h = conv(half, 3, "conv2", self.dtype, train=train)(h)
        h = NormRelu(self.dtype, folded=self.folded, name="norm3")(h, train=train)
        h = conv1x1(self.features, "conv3", self.dtype, train=train)(h)
        if self.shortcut == "conv3x3":
            x = conv(self.features, 3, "shortcut", self.dtype, train=train)(x)
        elif x.shape[-1] != self.features:
            x = conv1x1(self.features, "shortcut", self.dtype, train=train)(x)
        return stored(x + h) if train else x + h


class Hourglass(nn.Module):
    """See the module text. `images` are normalised pixels, `[b, h, w, 3]`; heatmaps are at a
    quarter of the resolution, `[stacks, b, h / 4, w / 4, k]` float32.

    Raises:
      ValueError: `train` with a folded network, or pictures that cannot be halved.
    """

    config: HourglassConfig
    num_keypoints: int

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "b h w 3"],
        train: bool = False,
        edits: Edits | None = None,
    ) -> Outputs:
        taps = Taps(edits)
        dtype = jnp.dtype(self.config.dtype)
        x = taps("stem", self._stem(images.astype(dtype), train))
        heatmaps = []
        for stack in range(self.config.stacks):
            x = taps(f"stack{stack}/input", x)
            features, maps = self._stack(x, stack, taps, train)
            heatmaps.append(maps.astype(jnp.float32))
            if stack + 1 < self.config.stacks:
                for part, value in (("features", features), ("heatmaps", maps)):
                    name = f"stack{stack}_merge_{part}"
                    x = x + conv1x1(x.shape[-1], name, dtype, train=train)(value)
        return Outputs(heatmaps=jnp.stack(heatmaps), taps=taps.finish())

    def _residuals(self, x, features: int, name: str, train: bool, count: int):
        c = self.config
        block: Any = Residual
        if c.remat:
            block = nn.remat(Residual, static_argnums=(2,))
        for i in range(count):
            # A single module keeps the plain name, as most networks have one per position.
            label = name if count == 1 else f"{name}_{i}"
            x = block(features, c.shortcut, jnp.dtype(c.dtype), c.folded, name=label)(
                x, train
            )
        return x

    def _stem(self, x, train: bool):
        first, second, third = self.config.stem
        dtype = jnp.dtype(self.config.dtype)
        x = conv(first, 7, "stem_conv", dtype, strides=2)(x)
        norm = NormRelu(dtype, folded=self.config.folded, name="stem_norm")
        x = norm(x, train=train)
        x = self._residuals(x, second, "stem1", train, 1)
        x = max_pool2(x, train=train)
        x = self._residuals(x, third, "stem2", train, 1)
        return self._residuals(x, self.config.features, "stem3", train, 1)

    def _stack(self, x, stack: int, taps: Taps, train: bool):
        c, name = self.config, f"stack{stack}"
        dtype = jnp.dtype(c.dtype)

        def residuals(x, label, count=c.residuals):
            return self._residuals(x, c.features, f"{name}_{label}", train, count)

        skips = {}
        for level in range(c.depth):
            if level in (c.skips or ()):
                skip = residuals(x, f"skip{level}")
                skips[level] = taps(f"{name}/skip{level}", skip)
            x = residuals(max_pool2(x, train=train), f"encoder{level}")
            x = taps(f"{name}/encoder{level}", x)
        x = residuals(x, "bottleneck", c.residuals * c.bottleneck_residuals)
        x = taps(f"{name}/bottleneck", x)
        if c.autoencoder != "none":
            squeeze = Autoencoder(c.squeeze, dtype, name=autoencoder_name(stack))
            _, x = squeeze(x, train, lambda code: taps(f"{name}/code", code))
            x = taps(f"{name}/reconstruction", x)
        for level in reversed(range(c.depth)):
            if not c.residual_after_upsample:
                x = residuals(x, f"decoder{level}")
            x = upsample2(x)
            if level in skips:
                x = x + skips[level]
            if c.residual_after_upsample and level > 0:
                x = residuals(x, f"decoder{level}")
            x = taps(f"{name}/decoder{level}", x)

        x = self._residuals(x, c.features, f"{name}_last", train, c.last_residuals)
        width = {0: c.features, -1: self.num_keypoints}.get(c.head, c.head)
        x = conv1x1(width, f"{name}_features", dtype, train=train)(x)
        x = NormRelu(dtype, folded=c.folded, name=f"{name}_norm")(x, train=train)
        x = taps(f"{name}/features", x)
        maps = conv1x1(self.num_keypoints, f"{name}_heatmaps", dtype, train=train)(x)
        return x, taps(f"{name}/heatmaps", maps)


NEWELL = dict(features=256, stem=(64, 128, 128))
THESIS = dict(
    stacks=1,
    stem=(256, 256, 256),
    bottleneck_residuals=3,
    shortcut="conv3x3",
    residual_after_upsample=True,
    head=-1,
)
