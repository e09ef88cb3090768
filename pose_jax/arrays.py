"""Shape letters and named array types: the page to read first.

Letters: `b` batch, `h w` image rows and columns, `y x` heatmap rows and columns (never
`h w`), `k` keypoints, `c d` channels and width, `n` tokens or players, `s` stages (stacks,
cascade stages), `g` clusters, `t` time, `a` heads. Write `*b` and index from the right.

Keypoints are `(x, y)` in pixels with pixel centres at integers. `visible` follows COCO:
0 not labelled, 1 labelled but occluded, 2 labelled and visible. Images are NHWC, RGB,
`uint8` until the jitted step normalises them.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import jax
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

Array: TypeAlias = jax.Array | np.ndarray
PyTree: TypeAlias = Any
Batch: TypeAlias = dict[str, Any]
"""Fixed keys: `image [b, h, w, 3] uint8`, `keypoints [b, k, 2]`, `visible [b, k]`,
`weight [b, k]`, `id [b]` (row of the source), `mask [b]` (0 = padding),
`matrix [b, 3, 3]` (image pixels -> crop pixels), `box [b, 4]` (xywh)."""

Image: TypeAlias = UInt8[Array, "*b h w 3"]
"""RGB, 0..255."""
Pixels: TypeAlias = Float[Array, "*b h w 3"]
"""Normalised pixels, what a model sees."""
Heatmaps: TypeAlias = Float[Array, "*b y x k"]
Keypoints: TypeAlias = Float[Array, "*b k 2"]
"""`(x, y)` pixels."""
Visible: TypeAlias = Int[Array, "*b k"]
Weights: TypeAlias = Float[Array, "*b k"]
Boxes: TypeAlias = Float[Array, "*b 4"]
"""`x, y, width, height` in image pixels (COCO)."""
Matrix: TypeAlias = Float[Array, "*b 3 3"]
Mask: TypeAlias = Bool[Array, "*b"]

__all__ = [
    "Array", "Batch", "Boxes", "Heatmaps", "Image", "Keypoints", "Mask", "Matrix",
    "Pixels", "PyTree", "Visible", "Weights",
]  # fmt: skip
