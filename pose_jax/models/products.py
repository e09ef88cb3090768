"""Matrix product, 3x3 and transposed convolution whose weight gradients are fast on a CPU.

XLA's own rule for the gradient of a kernel reaches a fifth to a half of the forward rate on
CPUs: it transposes whole feature maps in memory first. The forms below contract them where
they lie (1.0x to 2.1x for a layer between two normalisations, 1.4x for the whole training step;
`tests/benchmarks/weight_gradient.py`). Accelerators keep their own convolution for it. The
price is forward mode, so these are for training; reverse mode works to any order.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

_LAYOUT = ("NHWC", "HWIO", "NHWC")
_ROWS = (((0,), (0,)), ((), ()))  # contracts the leading axis of both


@jax.custom_vjp
def dense(x, kernel):
    """`x [*b, i] @ kernel [i, o] -> [*b, o]`."""
    return _dense(x, kernel)


def _dense(x, kernel):
    return lax.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())))


def _dense_backward(operands, g):
    x, kernel = operands
    grad_x = lax.dot_general(g, kernel, (((g.ndim - 1,), (1,)), ((), ())))
    # (x, g) in this order: the reverse, which autodiff writes, makes XLA:CPU store g transposed.
    x, g = x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1])
    return grad_x, lax.dot_general(x, g, _ROWS)


dense.defvjp(lambda x, kernel: (_dense(x, kernel), (x, kernel)), _dense_backward)


@jax.custom_vjp
def convolve3(x, kernel):
    """3x3 convolution, stride 1, one pixel of zeros around: `[b, h, w, i]`, `[3, 3, i, o]`."""
    return _convolve3(x, kernel)


def _convolve3(x, kernel, dimensions=_LAYOUT):
    pad = ((1, 1), (1, 1))
    return lax.conv_general_dilated(
        x, kernel, (1, 1), pad, dimension_numbers=dimensions
    )


def _convolve3_backward(operands, g):
    x, kernel = operands
    grad_x = _convolve3(g, kernel[::-1, ::-1], ("NHWC", "HWOI", "NHWC"))
    return grad_x, lax.platform_dependent(x, g, cpu=_shifted, default=_transposed)


convolve3.defvjp(
    lambda x, kernel: (_convolve3(x, kernel), (x, kernel)), _convolve3_backward
)


def _transposed(x, g):
    shape = jax.ShapeDtypeStruct((3, 3, x.shape[-1], g.shape[-1]), x.dtype)
    return jax.linear_transpose(lambda kernel: _convolve3(x, kernel), shape)(g)[0]


def _shifted(x, g):
    """Three column shifts of the cotangent side by side, against three row slices of `x`."""
    height, inputs, outputs = x.shape[1], x.shape[-1], g.shape[-1]
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    columns = [jnp.pad(g, ((0, 0), (0, 0), (j, 2 - j), (0, 0))) for j in range(3)]
    columns = jnp.concatenate(columns, -1).reshape(-1, 3 * outputs)
    rows = []
    for i in range(3):
        part = x[:, i : i + height].reshape(-1, inputs)
        products = lax.dot_general(part, columns, _ROWS)
        rows.append(products.reshape(inputs, 3, outputs).swapaxes(0, 1))
    return jnp.stack(rows)


def plain_deconvolve4(x, kernel):
    """Transposed 4x4 convolution, stride 2, that doubles the map, in XLA's own form.

    `[b, h, w, i]`, `[4, 4, i, o] -> [b, 2h, 2w, o]`.
    """
    return lax.conv_general_dilated(
        x, kernel, (1, 1), ((2, 2), (2, 2)), lhs_dilation=(2, 2),
        dimension_numbers=_LAYOUT,
    )  # fmt: skip


deconvolve4 = jax.custom_vjp(plain_deconvolve4)
"""The same with a gradient that is fast on a CPU too, where XLA's own is fifty times slower
than its forward pass."""


def _deconvolve4_backward(operands, g):
    def gradient(function):
        return lambda x, kernel, g: jax.vjp(function, x, kernel)[1](g)

    return lax.platform_dependent(
        *operands, g,
        cpu=gradient(_windows_deconvolve4), default=gradient(plain_deconvolve4),
    )  # fmt: skip


deconvolve4.defvjp(
    lambda x, kernel: (plain_deconvolve4(x, kernel), (x, kernel)), _deconvolve4_backward
)


def _windows_deconvolve4(x, kernel):
    """As one matrix product: every 2x2 window of the padded map makes four output pixels, one
    per parity of row and column, each from the kernel's taps of its own parity."""
    b, h, w, inputs = x.shape
    outputs = kernel.shape[-1]
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = [x[:, i : i + h + 1, j : j + w + 1] for i in (0, 1) for j in (0, 1)]
    taps = kernel.reshape(2, 2, 2, 2, inputs, outputs)  # (tap, parity) of rows, columns
    taps = taps.transpose(0, 2, 4, 1, 3, 5).reshape(4 * inputs, 4 * outputs)
    y = dense(jnp.concatenate(windows, -1), taps).reshape(b, h + 1, w + 1, 4, outputs)
    # The window at (i, j) holds pixels i - 1 and i; odd rows start one window later.
    rows = [
        jnp.stack([y[:, i : i + h, j : j + w, 2 * i + j] for j in (0, 1)], 3)
        for i in (0, 1)
    ]
    return jnp.stack(rows, 2).reshape(b, 2 * h, 2 * w, outputs)


def dot_general(
    x,
    kernel,
    dimension_numbers: Any,
    precision: Any = None,
    preferred_element_type: Any = None,
):
    """`dense` where it applies, XLA's own elsewhere; for `flax.linen.Dense`."""
    plain = (((x.ndim - 1,), (0,)), ((), ()))
    options = precision, preferred_element_type
    if kernel.ndim == 2 and dimension_numbers == plain and options == (None, None):
        return dense(x, kernel)
    return lax.dot_general(x, kernel, dimension_numbers, *options)


def conv_general_dilated(x, kernel, strides: Any, padding: Any, **options: Any):
    """`convolve3` where it applies, XLA's own elsewhere; for `flax.linen.Conv`."""
    if (
        kernel.shape[:2] == (3, 3)
        and tuple(strides) == (1, 1)
        and tuple(map(tuple, padding)) == ((1, 1), (1, 1))
        and _plain(**options)
    ):
        return convolve3(x, kernel)
    return lax.conv_general_dilated(x, kernel, strides, padding, **options)


def _plain(
    lhs_dilation=None,
    rhs_dilation=None,
    dimension_numbers=None,
    feature_group_count=1,
    batch_group_count=1,
    precision=None,
    preferred_element_type=None,
) -> bool:
    """Whether these are the options of an ordinary NHWC convolution."""
    dilations = {*(lhs_dilation or (1,)), *(rhs_dilation or (1,))}
    layout = lax.conv_dimension_numbers((1, 3, 3, 1), (3, 3, 1, 1), _LAYOUT)
    return (
        dilations == {1}
        and dimension_numbers in (layout, _LAYOUT)
        and (feature_group_count, batch_group_count) == (1, 1)
        and precision is None
        and preferred_element_type is None
    )
