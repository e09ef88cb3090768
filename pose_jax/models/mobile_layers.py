"""Layers of the mobile networks: inverted residuals, TensorFlow's resizing and padding.

Every convolution has a bias and a bounded activation and no normalisation. The published
weights were trained with batch normalisation, folded afterwards. Fresh weights therefore
start residuals and heatmaps small and the heatmaps' bias positive: without that, ReLU6 at
the output turns whole heatmaps off for good within a hundred steps.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pose_jax.models.rectifier import rectify

DEPTHWISE = ("auto", "shifted", "native")
PIXEL_RANGE = 255.0

# Standard deviations of fresh 1x1 weights, relative to He et al. (2015).
RESIDUAL_SCALE = 0.1
HEAD_SCALE = 0.03
HEAD_BIAS = 0.02


def pointwise(
    features: int, name: str, dtype: Any, *, scale: float = 1.0, head: bool = False
) -> nn.Dense:
    """A 1x1 convolution as the matrix product that it is; `head` makes heatmaps."""
    return nn.Dense(
        features,
        dtype=dtype,
        kernel_init=nn.initializers.variance_scaling(
            2 * scale**2, "fan_in", "truncated_normal"
        ),
        bias_init=nn.initializers.constant(HEAD_BIAS if head else 0.0),
        name=name,
    )


def depthwise_native(
    x: Float[Array, "b h w c"], kernel: Float[Array, "n n 1 c"], stride: int = 1
) -> Float[Array, "b y x c"]:
    """Depthwise convolution, padding "SAME", by the backend's own operation."""
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


def depthwise_shifted(
    x: Float[Array, "b h w c"], kernel: Float[Array, "n n 1 c"], stride: int = 1
) -> Float[Array, "b y x c"]:
    """The same as a sum of shifted pictures, one per kernel tap.

    XLA compiles it on CPU to one vectorised loop: on two cores 8 to 50 times faster than its
    grouped convolution, 5 to 20 times with gradients; the whole networks 10 and 15 times.
    """
    size = kernel.shape[0]
    rows, columns = (-(-side // stride) for side in x.shape[1:3])
    pad = [(0, 0)]
    for side, out in ((x.shape[1], rows), (x.shape[2], columns)):
        # "SAME" puts the odd pixel of padding at the end.
        total = max((out - 1) * stride + size - side, 0)
        pad.append((total // 2, total - total // 2))
    x = jnp.pad(x, [*pad, (0, 0)])
    last_row, last_column = (rows - 1) * stride + 1, (columns - 1) * stride + 1
    taps = [
        x[:, i : i + last_row : stride, j : j + last_column : stride] * kernel[i, j, 0]
        for i in range(size)
        for j in range(size)
    ]
    return functools.reduce(jnp.add, taps)


def upsample_bilinear(
    x: Float[Array, "b h w c"], factor: int
) -> Float[Array, "b y x c"]:
    """Bilinear upsampling by an integer, without half-pixel centres or aligned corners.

    Output pixel `i` reads position `i / factor`: every pixel blends with the next one, the
    last with itself (TensorFlow 1's `resize_bilinear`).
    """
    for axis in (1, 2):
        size = x.shape[axis]
        after = jax.lax.slice_in_dim(x, 1, size, axis=axis)
        edge = jax.lax.slice_in_dim(x, size - 1, size, axis=axis)
        after = jnp.concatenate([after, edge], axis)
        parts = [x + (after - x) * (i / factor) for i in range(factor)]
        shape = (*x.shape[:axis], size * factor, *x.shape[axis + 1 :])
        x = jnp.stack(parts, axis + 1).reshape(shape)
    return x


class Depthwise(nn.Module):
    """Depthwise convolution with bias and ReLU.

    `method` is `shifted`, `native`, or `auto`: shifted where the program is traced for CPU
    (`jax.default_backend()`), native elsewhere. Both compute the same.
    """

    size: int
    stride: int
    method: str
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b y x c"]:
        channels = x.shape[-1]
        shape = (self.size, self.size, 1, channels)
        kernel = self.param("kernel", nn.initializers.he_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        kernel, bias = kernel.astype(self.dtype), bias.astype(self.dtype)
        if self.size == 1:  # A factor per channel.
            return rectify(x * kernel[0, 0, 0] + bias)
        shifted = self.method == "shifted" or (
            self.method == "auto" and jax.default_backend() == "cpu"
        )
        convolve = depthwise_shifted if shifted else depthwise_native
        return rectify(convolve(x, kernel, self.stride) + bias)


class InvertedResidual(nn.Module):
    """1x1 to `expansion` times the width, depthwise, 1x1 to `features`; the input is added
    where stride and width allow. ReLU6 also follows the last 1x1, unlike in MobileNetV2.

    `head` tells that the features are heatmaps (it matters for fresh weights only).
    """

    features: int
    expansion: int
    method: str
    dtype: Any
    size: int = 3
    stride: int = 1
    head: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b y x d"]:
        residual = self.stride == 1 and x.shape[-1] == self.features
        scale = RESIDUAL_SCALE if residual else HEAD_SCALE if self.head else 1.0
        width = self.expansion * x.shape[-1]
        h = rectify(pointwise(width, "expand", self.dtype)(x), "relu6")
        h = Depthwise(
            self.size, self.stride, self.method, self.dtype, name="depthwise"
        )(h)
        project = pointwise(
            self.features, "project", self.dtype, scale=scale, head=self.head
        )
        h = rectify(project(h), "relu6")
        return x + h if residual else h


class Separable(nn.Module):
    """Depthwise 1x1 (a factor per channel) with ReLU, then 1x1 with ReLU6."""

    features: int
    method: str
    dtype: Any
    head: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w d"]:
        x = Depthwise(1, 1, self.method, self.dtype, name="depthwise")(x)
        scale = HEAD_SCALE if self.head else 1.0
        last = pointwise(
            self.features, "pointwise", self.dtype, scale=scale, head=self.head
        )
        return rectify(last(x), "relu6")


def stem(x: Float[Array, "b h w 3"], features: int, dtype) -> Float[Array, "b y x c"]:
    """3x3 convolution of stride 2, ReLU6. Fresh weights undo the range of the pixels."""
    scale = 2.0 / PIXEL_RANGE**2
    convolve = nn.Conv(
        features,
        (3, 3),
        strides=2,
        padding="SAME",
        dtype=dtype,
        kernel_init=nn.initializers.variance_scaling(
            scale, "fan_in", "truncated_normal"
        ),
        name="stem",
    )
    return rectify(convolve(x.astype(dtype)), "relu6")
