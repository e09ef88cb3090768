"""Autoencoders of a latent: Andersen's convolutional one, and a fixed linear projection.

Following the thesis behind `configs/autoencoder.py`: in the bottleneck of an hourglass, after
its last residual, `decode(autoencode(latent))`; the skip connections stay as they are. With a
latent of 256 x 4 x 4 and a code of 50 the network has 1,578,994 parameters.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from pose_jax.arrays import Array
from pose_jax.models.layers import conv
from pose_jax.models.rectifier import rectify

KINDS = ("none", "convolutional", "pca")
OUTPUTS = ("relu", "linear")
PROJECTION = "projection"
"""Name of the parameters that no objective trains."""


@dataclasses.dataclass(frozen=True)
class AutoencoderConfig:
    """How a latent is squeezed.

    Attributes:
      kind: `convolutional`, or `pca`: mean and principal components of stored latents, which
        training never changes; `none` leaves the latent alone.
      code: numbers in the code.
      output: last layer of the convolutional one. `relu` is the thesis's; the latent it
        restores is a sum of residuals and takes both signs, so `linear` is its control.
    """

    kind: str = "none"
    code: int = 50
    output: str = "relu"

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(
                f"model.autoencoder is {self.kind!r}; use {', '.join(KINDS)}"
            )
        if self.output not in OUTPUTS:
            raise ValueError(
                f"model.autoencoder_output is {self.output!r}; use {' or '.join(OUTPUTS)}"
            )
        if self.code < 1:
            raise ValueError(f"model.code must be at least 1, not {self.code}")


class Autoencoder(nn.Module):
    """`latent [b, y, x, c]` -> (`code [b, code]`, reconstruction like the latent).

    Three 3x3 convolutions to 3/4, 1/2 and 1/4 of the channels, a dense code, and the same way
    back, each followed by ReLU. The original's transposed convolutions of stride 1 are
    convolutions with turned kernels; both have the same parameters. `tap` sees the code and
    may change it.

    Raises:
      ValueError: the code is larger than the latent.
    """

    config: AutoencoderConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        latent: Float[Array, "b y x c"],
        train: bool = False,
        tap: Callable[[Any], Any] = lambda code: code,
    ) -> tuple[Float[Array, "b n"], Float[Array, "b y x c"]]:
        size = latent[0].size
        if self.config.code > size:
            raise ValueError(
                f"model.code={self.config.code} is larger than the latent of {size} values "
                f"({' x '.join(map(str, latent.shape[1:]))}); choose a smaller code"
            )
        if self.config.kind == "pca":
            return self._project(latent, tap)
        channels = latent.shape[-1]
        widths = [max(channels * part // 4, 1) for part in (3, 2, 1)]
        h = latent
        for n, width in enumerate(widths):
            h = rectify(conv(width, 3, f"encoder{n}", self.dtype, train=train)(h))
        small = h.shape
        h = rectify(self._dense(self.config.code, "code")(h.reshape(len(h), -1)))
        code = h = tap(h)
        h = rectify(self._dense(small[1] * small[2] * small[3], "expand")(h))
        h = h.reshape(small)
        for n, width in enumerate([widths[1], widths[0], channels]):
            h = conv(width, 3, f"decoder{n}", self.dtype, train=train)(h)
            if n < 2 or self.config.output == "relu":
                h = rectify(h)
        return code, h

    def _dense(self, features: int, name: str) -> nn.Dense:
        init = nn.initializers.glorot_normal()
        return nn.Dense(features, dtype=self.dtype, kernel_init=init, name=name)

    def _project(self, latent, tap):
        flat = latent.reshape(len(latent), -1)
        mean, components = Projection(self.config.code, name=PROJECTION)(flat)
        code = tap((flat - mean) @ components.T)
        restored = mean + code @ components
        return code, restored.reshape(latent.shape).astype(latent.dtype)


class Projection(nn.Module):
    """Holds a mean `[d]` and orthonormal components `[n, d]`. Before any are fitted they are
    the first axes of the latent, which is a projection too."""

    rank: int

    @nn.compact
    def __call__(self, flat: Float[Array, "b d"]):
        size = flat.shape[-1]
        mean = self.param("mean", nn.initializers.zeros, (size,))
        components = self.param(
            "components", lambda _, shape: jnp.eye(*shape), (self.rank, size)
        )
        return jax.lax.stop_gradient((mean, components))
