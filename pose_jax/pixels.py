"""From uint8 crops to what a model sees; runs inside the jitted step."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Float, UInt8

from pose_jax.arrays import Array

CHANNEL_ORDERS = ("rgb", "bgr")
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class InputSpec:
    """What a network expects; travels with its weights.

    Attributes:
      size: (height, width) of the crop in pixels.
      mean, std: per channel, RGB order, on the 0..1 scale.
      channel_order: `rgb` or `bgr`.
      padding: margin factor around the person box.
      area: the crop is cut out and resized (half-pixel centres), see `geometry`.
    """

    size: tuple[int, int] = (256, 256)
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    channel_order: str = "rgb"
    padding: float = 1.25
    area: bool = False

    @property
    def colour(self) -> tuple[float, ...]:
        """The mean colour of photos, shares of 255: what a removed region shows. It is `mean`
        (so the fill is 0 after normalisation), or ImageNet's where a network subtracts
        nothing: black would be a shape of its own."""
        return self.mean if any(self.mean) else IMAGENET_MEAN

    def __post_init__(self):
        object.__setattr__(self, "size", tuple(int(v) for v in self.size))
        object.__setattr__(self, "mean", tuple(float(v) for v in self.mean))
        object.__setattr__(self, "std", tuple(float(v) for v in self.std))
        if self.channel_order not in CHANNEL_ORDERS:
            raise ValueError(
                f"input.channel_order is {self.channel_order!r}; use 'rgb' or 'bgr'"
            )
        if len(self.size) != 2 or min(self.size) <= 0:
            raise ValueError(f"input.size is (height, width) > 0, not {self.size}")
        if min(self.std) <= 0 or self.padding <= 0:
            raise ValueError("input.std and input.padding must be positive")


def normalise(
    images: UInt8[Array, "*b h w 3"] | Float[Array, "*b h w 3"], spec: InputSpec
) -> Float[Array, "*b h w 3"]:
    """RGB 0..255 -> normalised float32 pixels in the model's channel order."""
    pixels = images.astype(jnp.float32) / 255.0
    pixels = (pixels - jnp.asarray(spec.mean)) / jnp.asarray(spec.std)
    return pixels[..., ::-1] if spec.channel_order == "bgr" else pixels


@dataclasses.dataclass(frozen=True)
class ColourJitter:
    """Strengths of photometric augmentation (0 = off).

    Attributes:
      brightness: the picture is multiplied by U(1 - b, 1 + b).
      contrast: distance from the mean grey is multiplied by U(1 - c, 1 + c).
      saturation: distance from the grey picture is multiplied by U(1 - s, 1 + s).
      gain: every channel is multiplied by its own U(1 - g, 1 + g) (Newell et al. 2016).
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    gain: float = 0.0

    @property
    def active(self) -> bool:
        return any(dataclasses.astuple(self))


def jitter_colours(
    images: UInt8[Array, "b h w 3"], jitter: ColourJitter, *, key: jax.Array
) -> Float[Array, "b h w 3"]:
    """Photometric augmentation of RGB 0..255 pictures; returns float32 0..255."""
    pixels = images.astype(jnp.float32)
    batch = pixels.shape[0]
    keys = jax.random.split(key, 4)

    def factor(index, strength, channels=1):
        return jax.random.uniform(
            keys[index],
            (batch, 1, 1, channels),
            minval=1 - strength,
            maxval=1 + strength,
        )

    grey = pixels.mean(-1, keepdims=True)
    pixels = grey + (pixels - grey) * factor(0, jitter.saturation)
    level = pixels.mean((1, 2, 3), keepdims=True)
    pixels = level + (pixels - level) * factor(1, jitter.contrast)
    pixels = pixels * factor(2, jitter.brightness) * factor(3, jitter.gain, 3)
    return jnp.clip(pixels, 0, 255)
