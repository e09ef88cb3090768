"""Layers that the model families share. NHWC; parameters float32, compute in `dtype`.

The formulations are chosen by measurement (CPU and accelerators alike): 1x1 convolutions are
matrix products, pooling is a reshape, batch normalisation and ReLU are one function with its
own gradient, which recomputes the ReLU mask instead of storing it.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from pose_jax.arrays import Array
from pose_jax.models import products
from pose_jax.models.rectifier import rectify

EPSILON = 1e-5


def max_pool2(
    x: Float[Array, "b h w c"], *, train: bool = False
) -> Float[Array, "b h/2 w/2 c"]:
    """2x2 max-pooling, stride 2. At exact ties the gradient is shared.

    With `train` the gradient is written out, which is faster on a CPU and has no forward mode.

    Raises:
      ValueError: odd height or width.
    """
    _, h, w, _ = x.shape
    if h % 2 or w % 2:
        raise ValueError(
            f"a {h}x{w} map cannot be halved; make input.size divisible by "
            "4 * 2**model.depth"
        )
    return _max_pool2_train(x) if train else _max_pool2(x)


def _quarters(x):
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c)


def _max_pool2(x):
    return _quarters(x).max((2, 4))


def _max_pool2_forward(x):
    y = _max_pool2(x)
    return y, (x, y)


def _max_pool2_backward(operands, g):
    x, y = operands
    parts = _quarters(x)
    # A NaN equals nothing: its gradient is zero here; the forward pass carries it on.
    # Over the four pixels one by one: as a sum over axes the mask would be stored first.
    pixels = [parts[:, :, i, :, j] for i in (0, 1) for j in (0, 1)]
    ties = sum((pixel == y).astype(g.dtype) for pixel in pixels)
    share = (g / ties)[:, :, None, :, None]
    return (jnp.where(parts == y[:, :, None, :, None], share, 0).reshape(x.shape),)


_max_pool2_train = jax.custom_vjp(_max_pool2)
_max_pool2_train.defvjp(_max_pool2_forward, _max_pool2_backward)


def stored(x: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
    """`x`, kept in memory where a CPU would compute it again for everyone who reads it.

    XLA:CPU fuses cheap operations into each of their readers. Along a residual stream every
    reader then sums up all earlier blocks again: quadratic in depth (HRNet-W32's training
    step took 1.8 times as long, and 3.5 times as long to compile). A division counts as
    expensive and is done once. It is by ones that the compiler recognises only after
    fusion, so it costs nothing and keeps every bit. The gradient, a stream of sums as well,
    is treated alike.
    """
    return jax.lax.platform_dependent(x, cpu=_divided, default=lambda x: x)


def _divided(x):
    # Of the size of `x`: division by one number would become a multiplication.
    return x / jax.lax.optimization_barrier(jnp.ones_like(x))


def upsample2(x: Float[Array, "b h w c"]) -> Float[Array, "b 2*h 2*w c"]:
    """Nearest-neighbour upsampling by two."""
    b, h, w, c = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None, :], (b, h, 2, w, 2, c))
    return x.reshape(b, 2 * h, 2 * w, c)


def max_pool3(
    x: Float[Array, "b h w c"], *, train: bool = False
) -> Float[Array, "b y x c"]:
    """3x3 max-pooling, stride 2, one pixel of padding, as ResNets have it.

    On a CPU even maps are pooled along columns, then rows: XLA's windows take five times as
    long there, their gradient eight times. Accelerators and odd maps keep XLA's. The gradient
    goes to the first of equal pixels with `train`, which has no forward mode.
    """
    _, h, w, _ = x.shape
    if h % 2 or w % 2:
        return _windows3(x)
    pool = _pool3_train if train else _pool3

    def lines(x):
        return pool(pool(x, 2), 1)

    return jax.lax.platform_dependent(x, cpu=lines, default=_windows3)


def _windows3(x):
    padding: Any = ((1, 1), (1, 1))
    return nn.max_pool(x, (3, 3), (2, 2), padding)


def _thirds(x, axis: int):
    """Along one axis the pixels before, at and behind every even one."""
    pairs = x.reshape(*x.shape[:axis], -1, 2, *x.shape[axis + 1 :])
    even, odd = (
        jax.lax.index_in_dim(pairs, i, axis + 1, keepdims=False) for i in (0, 1)
    )
    return _shifted(odd, axis, 1, -jnp.inf), even, odd


def _shifted(x, axis: int, by: int, fill: float):
    """Moved by one pixel along an axis, by 1 or -1."""
    pads = [(0, 0)] * x.ndim
    pads[axis] = (1, 0) if by > 0 else (0, 1)
    start = 0 if by > 0 else 1
    x = jnp.pad(x, pads, constant_values=fill)
    return jax.lax.slice_in_dim(x, start, start + x.shape[axis] - 1, axis=axis)


def _pool3(x, axis: int):
    before, even, odd = _thirds(x, axis)
    return jnp.maximum(jnp.maximum(before, even), odd)


def _pool3_forward(x, axis: int):
    y = _pool3(x, axis)
    return y, (x, y)


def _pool3_backward(axis: int, operands, g):
    x, y = operands
    before, even, _ = _thirds(x, axis)
    first = before == y
    second = (even == y) & ~first
    behind = jnp.where(first | second, 0, g)
    before = _shifted(jnp.where(first, g, 0), axis, -1, 0)
    pairs = jnp.stack([jnp.where(second, g, 0), behind + before], axis + 1)
    return (pairs.reshape(x.shape),)


_pool3_train = jax.custom_vjp(_pool3, nondiff_argnums=(1,))
_pool3_train.defvjp(_pool3_forward, _pool3_backward)


def conv1x1(
    features: int, name: str, dtype: Any, *, bias: bool = True, train: bool = False
) -> nn.Dense:
    """A 1x1 convolution, written as the matrix product that it is.

    `train` picks the form with fast weight gradients, which has no forward mode.
    """
    return nn.Dense(
        features,
        use_bias=bias,
        dtype=dtype,
        dot_general=products.dot_general if train else jax.lax.dot_general,
        kernel_init=_conv_init,
        name=name,
    )


def conv(
    features: int,
    size: int,
    name: str,
    dtype: Any,
    *,
    strides: int = 1,
    bias: bool = True,
    train: bool = False,
) -> nn.Conv:
    """Square convolution with PyTorch's symmetric padding (not "SAME" under strides).

    `train` as in `conv1x1`.
    """
    pad = size // 2
    function = products.conv_general_dilated if train else jax.lax.conv_general_dilated
    return nn.Conv(
        features,
        (size, size),
        strides=strides,
        padding=((pad, pad), (pad, pad)),
        use_bias=bias,
        dtype=dtype,
        conv_general_dilated=function,
        kernel_init=_conv_init,
        name=name,
    )


_conv_init = nn.initializers.glorot_normal()


class Deconv(nn.Module):
    """Transposed convolution, 4x4, stride 2: PyTorch's `ConvTranspose2d(c, features, 4, 2, 1)`.

    `kernel` is `[4, 4, c, features]` as the equivalent convolution of the dilated map has it
    (PyTorch's turned by 180 degrees). `train` as in `conv1x1`.
    """

    features: int
    dtype: Any = jnp.float32
    bias: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], *, train: bool = False
    ) -> Float[Array, "b 2*h 2*w d"]:
        shape = (4, 4, x.shape[-1], self.features)
        kernel = self.param("kernel", _conv_init, shape).astype(self.dtype)
        double = products.deconvolve4 if train else products.plain_deconvolve4
        y = double(x.astype(self.dtype), kernel)
        if self.bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            y = y + bias.astype(self.dtype)
        return y


class NormRelu(nn.Module):
    """Batch normalisation followed by ReLU, with one-pass statistics and a fused gradient.

    Variables are named as in `flax.linen.BatchNorm`. Statistics are float32 and, under `jit`
    over a mesh, those of the global batch. With `folded` the convolution before it has taken
    the normalisation over (`folding.fold`): ReLU alone, no variables. Without `relu` it is
    the normalisation alone, for branches that are added first.
    """

    dtype: Any = jnp.float32
    momentum: float = 0.9
    folded: bool = False
    relu: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "*b c"], *, train: bool) -> Float[Array, "*b c"]:
        gate = rectify if self.relu else lambda x: x
        if self.folded and train:
            raise ValueError(
                "a folded network has no batch statistics to train with; train the network "
                "with model.folded=False and fold the result"
            )
        if self.folded:
            return gate(x.astype(self.dtype))
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,))
        variance = self.variable("batch_stats", "var", jnp.ones, (channels,))
        x = x.astype(self.dtype)
        if not train:
            factor = scale * jax.lax.rsqrt(variance.value + EPSILON)
            offset = bias - mean.value * factor
            return gate(x * factor.astype(x.dtype) + offset.astype(x.dtype))
        result: Any = _norm_relu(x, scale, bias, self.relu)
        y, batch_mean, batch_variance = result
        if not self.is_initializing():
            keep = self.momentum
            mean.value = keep * mean.value + (1 - keep) * batch_mean
            variance.value = keep * variance.value + (1 - keep) * batch_variance
        return y


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _norm_relu(x, scale, bias, relu):
    return _norm_relu_forward(x, scale, bias, relu)[0]


def _statistics(x):
    """Mean and biased variance over all axes but the last, one pass, float32."""
    wide = x.astype(jnp.float32)
    count = x.size // x.shape[-1]
    axes = tuple(range(x.ndim - 1))
    mean = wide.sum(axes) / count
    square = (wide * wide).sum(axes) / count
    return mean, jnp.maximum(square - mean * mean, 0.0)


def _norm_relu_forward(x, scale, bias, relu):
    mean, variance = _statistics(x)
    inverse = jax.lax.rsqrt(variance + EPSILON)
    factor = scale * inverse
    offset = bias - mean * factor
    y = x * factor.astype(x.dtype) + offset.astype(x.dtype)
    y = jax.nn.relu(y) if relu else y
    return (y, mean, variance), (x, scale, bias, mean, inverse)


def _norm_relu_backward(relu, residuals, cotangents):
    # The statistics leave only towards the running averages, which carry no gradient.
    grad, _, _ = cotangents
    x, scale, bias, mean, inverse = residuals
    count = x.size // x.shape[-1]
    axes = tuple(range(x.ndim - 1))
    factor = scale * inverse
    offset = bias - mean * factor
    wide, x32 = grad.astype(jnp.float32), x.astype(jnp.float32)
    if relu:
        passes = x * factor.astype(x.dtype) + offset.astype(x.dtype) > 0
        wide = jnp.where(passes, wide, 0)
    # Sums of g and g*x, and the gradient as one linear form in g and x: two passes over the
    # maps, where sums over the normalised input would take three.
    grad_bias = wide.sum(axes)
    grad_scale = ((wide * x32).sum(axes) - mean * grad_bias) * inverse
    slope = factor * inverse * grad_scale / count
    constant = factor * grad_bias / count - slope * mean
    grad_x = factor * wide - slope * x32 - constant
    return grad_x.astype(x.dtype), grad_scale, grad_bias


_norm_relu.defvjp(_norm_relu_forward, _norm_relu_backward)
