"""Direct regression: a ResNet, the mean over positions, one linear layer to coordinates.

The practical form of DeepPose's first stage. With `likelihood="rle"` the layer also gives the
scale of every coordinate's error, and the loss reads a flow that learns its shape (Li et al.,
"Human Pose Regression with Residual Log-likelihood Estimation", ICCV 2021). Layers follow the
open reimplementation of MMPose.

Taps: `stem`, `layer1` ... `layer4`, `pooled`, `coordinates` (crop pixels), with a likelihood
also `spread` (crop pixels).
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from pose_jax.arrays import Array
from pose_jax.models import resnet
from pose_jax.models.flow import RealNVP
from pose_jax.models.outputs import Edits, Outputs, Taps

LIKELIHOODS = ("none", "rle")

COORDINATES_INIT = nn.initializers.normal(0.01)
"""Kernels that make every coordinate start near the middle of the crop."""


@dataclasses.dataclass(frozen=True)
class RegressionConfig:
    """Defaults: ResNet-50 without a likelihood.

    Attributes:
      depth: of the ResNet: 18, 34, 50, 101 or 152. width: of its first stage.
      likelihood: `none`: coordinates alone; `rle`: and the scale of their error.
      remat: recompute residual blocks in the backward pass (saves memory).
      dtype: compute type; coordinates, parameters and statistics stay float32.
      folded: an inference copy, made by `models.fold` and never saved.
    """

    depth: int = 50
    width: int = 64
    likelihood: str = "none"
    remat: bool = False
    dtype: str = "float32"
    folded: bool = False

    def __post_init__(self):
        resnet.check_depth(self.depth)
        if self.width < 1:
            raise ValueError(f"model.width is {self.width}; it must be positive")
        if self.likelihood not in LIKELIHOODS:
            raise ValueError(
                f"model.likelihood is {self.likelihood!r}; use {' or '.join(LIKELIHOODS)}"
            )


def folded_norms(config: RegressionConfig) -> dict[str, str]:
    """{normalisation: convolution before it}, neighbours by name; see `models.fold`."""
    return resnet.folded_norms()


def to_pixels(
    shares: Float[Array, "*b 2"], image_size: tuple[int, int]
) -> Float[Array, "*b 2"]:
    """Shares of the crop's sides, counted from its middle -> (x, y) crop pixels."""
    return (0.5 + shares) * sides(image_size) - 0.5


def sides(image_size: tuple[int, int]) -> Float[Array, "2"]:
    """Width and height, in the order of coordinates."""
    return jnp.asarray([image_size[1], image_size[0]], jnp.float32)


class Regression(nn.Module):
    """See the module text. `images` are normalised pixels of any size; coordinates are crop
    pixels `[1, b, k, 2]`, float32, and so is the spread.

    Raises:
      ValueError: `train` with a folded network.
    """

    config: RegressionConfig
    num_keypoints: int

    def setup(self):
        c = self.config
        if c.likelihood == "rle":
            self.flow = RealNVP()

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "b h w 3"],
        train: bool = False,
        edits: Edits | None = None,
    ) -> Outputs:
        c, taps, dtype = self.config, Taps(edits), jnp.dtype(self.config.dtype)
        check_trainable(train, c.folded)
        size = images.shape[1], images.shape[2]
        trunk = resnet.ResNet(
            c.depth, 4, c.width, dtype, c.folded, c.remat, name="trunk"
        )
        x = trunk(images.astype(dtype), train, taps)[-1]
        x = taps("pooled", x.astype(jnp.float32).mean((1, 2)))
        rle = c.likelihood == "rle"
        numbers = nn.DenseGeneral(
            (self.num_keypoints, 4 if rle else 2),
            kernel_init=COORDINATES_INIT,
            name="head",
        )(x)
        found = taps("coordinates", to_pixels(numbers[..., :2], size))
        spread = None
        if rle:
            # The layer counts sigma in shares of the crop, so that 1 is the largest.
            scale = jax.nn.sigmoid(numbers[..., 2:])
            spread = taps("spread", scale * sides(size))[None]
            if self.is_initializing():
                self.flow(jnp.zeros((1, 2)))
        return Outputs(coordinates=found[None], spread=spread, taps=taps.finish())

    def log_density(self, residuals: Float[Array, "*b 2"]) -> Float[Array, "*b"]:
        """Of residuals that were divided by their scale, under the flow.

        Use: `module.apply(variables, residuals, method="log_density")`.

        Raises:
          ValueError: the network has no likelihood.
        """
        if self.config.likelihood != "rle":
            raise ValueError("this network has no flow; set model.likelihood='rle'")
        return self.flow(residuals)


def check_trainable(train: bool, folded: bool) -> None:
    """Raises:
    ValueError: a folded network is asked to train.
    """
    if train and folded:
        raise ValueError(
            "a folded network has no batch statistics to train with; train the network "
            "with model.folded=False and fold the result"
        )
