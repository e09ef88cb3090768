"""Plain vision transformer (Dosovitskiy et al., ICLR 2021) as ViTPose uses it.

Patches of 16 pixels, a learned position table whose first slot was pretraining's class token,
pre-norm layers, a last normalisation.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from pose_jax.arrays import Array
from pose_jax.models.attention import (
    PreNormBlock,
    layer_norm,
    pytorch_bias,
    pytorch_kernel,
    rematerialised,
    run_layer,
    truncated_normal,
)
from pose_jax.models.outputs import Taps
from pose_jax.models.sizes import check_divisible

POSITIONS = "positions"
"""Name of every learned position table; weight decay leaves these alone."""
PATCH_OFFSET = 2
"""The patch convolution is padded by two pixels in the authors' code: patches begin there."""


def check_images(
    images: Any, input_size: tuple[int, int], multiple: tuple[int, int]
) -> None:
    """Refuse pictures that patches do not cover or the position table is not made for.

    Raises:
      ValueError: says what to set.
    """
    size = tuple(images.shape[1:3])
    check_divisible(size, multiple)
    if size != input_size:
        raise ValueError(
            f"the position table is for pictures of {input_size} but these are {size}; "
            f"set model.input_size={size} (trained weights: convert them with an "
            "interpolated table) or input.size to the table's"
        )


class ViT(nn.Module):
    """Pictures `[b, h, w, 3]` -> tokens `[b, n, width]`, row by row of the patch grid.

    Taps: `patches` (with positions), `layer{i}/attention`, `layer{i}/tokens`, `tokens`.
    `drop_path` grows linearly from 0 to its value over the layers.
    """

    input_size: tuple[int, int]
    patch: int
    width: int
    heads: int
    layers: int
    mlp: int
    dropout: float = 0.0
    drop_path: float = 0.0
    attention: str = "xla"
    remat: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, images: Float[Array, "b h w 3"], train: bool, taps: Taps
    ) -> Float[Array, "b n width"]:
        check_images(images, self.input_size, (self.patch, self.patch))
        x = self._embed(images.astype(self.dtype))
        tokens = x.shape[1]
        table = self.param(POSITIONS, truncated_normal, (1, tokens + 1, self.width))
        x = taps("patches", x + (table[:, 1:] + table[:, :1]).astype(self.dtype))
        block = rematerialised(PreNormBlock, self.remat)
        for i in range(self.layers):
            layer = block(
                self.width,
                self.heads,
                self.mlp,
                epsilon=1e-6,
                dropout=self.dropout,
                drop_path=self.drop_path * i / max(self.layers - 1, 1),
                attention=self.attention,
                dtype=self.dtype,
                name=f"layer{i}",
            )
            x = run_layer(layer, x, f"layer{i}", taps, train)
        return taps("tokens", layer_norm(1e-6, self.dtype, "norm")(x))

    def _embed(self, x):
        # The convolution whose windows do not overlap, written as the product that it is.
        p, offset = self.patch, PATCH_OFFSET
        b, h, w, c = x.shape
        x = jnp.pad(x, ((0, 0), (offset, 0), (offset, 0), (0, 0)))[:, :h, :w]
        x = x.reshape(b, h // p, p, w // p, p, c).swapaxes(2, 3)
        x = x.reshape(b, -1, p, p, c)
        fan_in = p * p * c
        layer = nn.DenseGeneral(
            self.width,
            axis=(-3, -2, -1),
            dtype=self.dtype,
            kernel_init=pytorch_kernel,
            bias_init=pytorch_bias(fan_in),
            name="patches",
        )
        return layer(x)


def layer_index(path: str, layers: int) -> int:
    """The layer of a parameter below an encoder: 0 for patches and positions, i + 1 for
    `layer{i}`, `layers + 1` for what follows.

    Args:
      path: `.../layer3/mlp/hidden/kernel`.
    """
    for word in path.split("/"):
        if word in ("patches", POSITIONS):
            return 0
        if word.startswith("layer") and word[5:].isdigit():
            return int(word[5:]) + 1
    return layers + 1


def interpolate_positions(
    table: Float[Array, "1 n d"], old_grid: tuple[int, int], new_grid: tuple[int, int]
) -> Float[Array, "1 m d"]:
    """A learned position table for another grid of patches, bicubic.

    The cubic of PyTorch's `interpolate(mode="bicubic", align_corners=False)` (Keys 1981 with
    a = -0.75, edges repeated, no anti-aliasing), which ViT code uses for this. A slot in front
    (class token) stays.

    Args:
      table: one row per patch, row by row, with or without one slot in front.
      old_grid, new_grid: (rows, columns).

    Raises:
      ValueError: the table is not for `old_grid`.
    """
    rows, columns = old_grid
    front = table.shape[1] - rows * columns
    if front not in (0, 1):
        raise ValueError(
            f"the table has {table.shape[1]} rows, which is not {rows} x {columns} or one "
            "more; give the grid that it was made for"
        )
    grid = table[:, front:].reshape(rows, columns, -1)
    down, across = (_cubic(old, new) for old, new in zip(old_grid, new_grid))
    grid = jnp.einsum("yr,xc,rcd->yxd", down, across, grid)
    rest = grid.reshape(1, -1, table.shape[-1]).astype(table.dtype)
    return jnp.concatenate([table[:, :front], rest], axis=1)


def _cubic(old: int, new: int) -> np.ndarray:
    """Matrix `[new, old]` of cubic resampling with pixel centres at halves."""
    at = (np.arange(new) + 0.5) * old / new - 0.5
    matrix = np.zeros((new, old))
    for tap in range(-1, 3):
        source = np.floor(at) + tap
        t, a = np.abs(at - source), -0.75
        near = ((a + 2) * t - (a + 3)) * t * t + 1
        far = a * (((t - 5) * t + 8) * t - 4)
        weight = np.where(t <= 1, near, np.where(t < 2, far, 0.0))
        index = np.clip(source, 0, old - 1).astype(int)
        np.add.at(matrix, (np.arange(new), index), weight)
    return matrix.astype(np.float32)
