"""Maps from hiding pixels: what does a joint's score lose when something cannot be seen?

| method | what is hidden | source |
|---|---|---|
| `occlusion` | a square, at every place | Zeiler, Fergus, ECCV 2014 |
| `rise` | random blotches, many times | Petsiuk, Das, Saenko, BMVC 2018 |

One forward pass per window or mask serves all joints. `occlusion_table` keeps what every window
did to every joint: loss of the score, how far the joint moved, loss of its similarity;
`part_to_joint` sums it up into a matrix, the part that was hidden by the joint that answers.

Hidden pixels show `fill`, a number or a picture, in units of the network's input: the fills of
the pose game (`games.make_fill`), normalised, give one meaning of "removed" to both.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from pose_jax import answers, heatmaps
from pose_jax.arrays import Array, PyTree
from pose_jax.explain.attention import Apply, Score
from pose_jax.explain.gradients import of_image
from pose_jax.explain.scores import Reference
from pose_jax.heatmaps import Codec
from pose_jax.metrics.similarity import keypoint_similarity

SIDE, STRIDE = 32 / 256, 8 / 256
"""Of the window, as shares of the picture's height: 32 and 8 of 256 pixels, 841 windows."""


class OcclusionTable(NamedTuple):
    """What w windows did to k joints. A pytree of arrays.

    Attributes:
      drop: score of the whole picture minus that with the window hidden.
      displacement_px: how far the decoded joint moved, crop pixels.
      similarity_loss: what the joint's keypoint similarity to the reference lost.
      clean: `[k]` score of the whole picture; `drop / clean` is the relative loss.
      centres: (x, y) of the windows, crop pixels.
    """

    drop: Float[Array, "w k"]
    displacement_px: Float[Array, "w k"]
    similarity_loss: Float[Array, "w k"]
    clean: Float[Array, "k"]
    centres: Float[Array, "w 2"]


def occlusion(
    apply: Apply,
    variables: PyTree,
    image: Float[Array, "h w 3"],
    score: Score,
    *,
    key: Any = None,
    patch_px: int | None = None,
    stride_px: int | None = None,
    fill: Any = 0.0,
    chunk: int = 32,
) -> Float[Array, "k h w"]:
    """Mean loss of the score over the windows that cover a pixel, signed.

    Args:
      patch_px, stride_px: side of the square and its steps; by default 32 and 8 at a height
        of 256, in proportion elsewhere. The last windows end at the border.
      fill: a number (0 is the mean colour) or `[h, w, 3]`.
      chunk: forward passes done together.

    Raises:
      ValueError: a window larger than the picture, or steps larger than the window.
    """
    del key
    rows, columns = _windows(image.shape, patch_px, stride_px)
    function = of_image(apply, variables, score)
    found = _hidden_one_by_one(function, image, rows, columns, fill, chunk)
    drop = (function(image) - found).reshape(len(rows), len(columns), -1)
    total = jnp.einsum(
        "abk,ay,bx->kyx", drop, 1.0 * rows, 1.0 * columns, precision="highest"
    )
    return total / np.outer(rows.sum(0), columns.sum(0)).astype(np.float32)


def occlusion_table(
    apply: Apply,
    variables: PyTree,
    image: Float[Array, "h w 3"],
    score: Score,
    *,
    codec: Codec,
    reference: Reference,
    patch_px: int | None = None,
    stride_px: int | None = None,
    fill: Any = 0.0,
    chunk: int = 32,
) -> OcclusionTable:
    """What every window of `occlusion` did, row by row of windows.

    Args:
      codec: how joints are decoded. reference: what similarity is measured against.
    """
    size = image.shape[0], image.shape[1]
    rows, columns = _windows(size, patch_px, stride_px)

    def ask(picture):
        outputs = apply(variables, picture[None])
        maps = answers.maps(outputs, codec, size)
        points = answers.locate(outputs, codec, size)[0][0]
        similarity = keypoint_similarity(
            points, reference.points, reference.area, reference.sigmas
        )
        step = heatmaps.stride(codec, size, (maps.shape[1], maps.shape[2]))
        pixels = points * jnp.asarray(step, points.dtype)
        return {"score": score(outputs), "pixels": pixels, "similarity": similarity}

    whole = ask(image)
    found = _hidden_one_by_one(ask, image, rows, columns, fill, chunk)
    moved = found["pixels"] - whole["pixels"]
    middles = [(np.argmax(m, 1) + (m.sum(1) - 1) / 2) for m in (columns, rows)]
    centres = np.stack(np.meshgrid(*middles), -1).reshape(-1, 2)
    return OcclusionTable(
        drop=whole["score"] - found["score"],
        displacement_px=jnp.sqrt((moved**2).sum(-1)),
        similarity_loss=whole["similarity"] - found["similarity"],
        clean=whole["score"],
        centres=jnp.asarray(centres, jnp.float32),
    )


def part_to_joint(
    values: Float[Array, "w k"],
    centres: Float[Array, "w 2"],
    points: Float[Array, "n 2"],
    radius_px: float,
) -> Float[Array, "n k"]:
    """Mean over the windows whose centre lies within a radius of a body part.

    Args:
      values: a field of `OcclusionTable`. centres: its `centres`.
      points: (x, y) crop pixels of the parts, the predicted joints say.

    Returns:
      Row: part that was hidden; column: joint that answers. NaN where no window is near.
    """
    offsets = jnp.asarray(points)[:, None] - jnp.asarray(centres)
    near = ((offsets**2).sum(-1) <= radius_px**2).astype(jnp.float32)
    total = jnp.matmul(near, values, precision="highest")
    count = near.sum(1, keepdims=True)
    return jnp.where(count > 0, total / jnp.maximum(count, 1), jnp.nan)


def rise(
    apply: Apply,
    variables: PyTree,
    image: Float[Array, "h w 3"],
    score: Score,
    *,
    key: Any = None,
    masks: int = 2000,
    grid: int = 7,
    share: float = 0.5,
    centred: bool = True,
    fill: Any = 0.0,
    chunk: int = 32,
) -> Float[Array, "k h w"]:
    """Scores of randomly masked pictures, put back onto the pixels that were seen.

    A mask M is a grid of independent cells, each seen with probability `share`, upsampled
    bilinearly and shifted at random by less than a cell. The grid is one cell larger than the
    picture, not stretched over it, so cells are square where the picture is and E[M] = share.

    Args:
      masks: pictures. grid: cells along each side of the picture.
      centred: covariance of score and mask, divided by the variance of the mask: the change
        of the score when the surroundings of a pixel appear, signed and zero where a pixel
        does not matter. Otherwise the published mean of f M / share, whose level is the
        mean score and whose noise is the larger for it. Both are unbiased.
      fill: what unseen pixels show. chunk: forward passes done together.

    Raises:
      ValueError: no key, a share outside of 0..1, fewer than two masks, or cells below a pixel.
    """
    if key is None:
        raise ValueError("rise draws masks; give key=jax.random.key(0)")
    height, width = image.shape[0], image.shape[1]
    if not 0 < share < 1 or masks < 2 or not 1 <= grid <= min(height, width):
        raise ValueError(
            f"share={share:g} must lie in 0..1, masks={masks} be at least 2 and "
            f"grid={grid} in 1..{min(height, width)}"
        )
    function = of_image(apply, variables, score)
    fill = jnp.broadcast_to(jnp.asarray(fill, image.dtype), image.shape)
    size = -(-height // grid), -(-width // grid)
    counts = -(-height // size[0]) + 1, -(-width // size[1]) + 1
    spread = [_upsampling(n, c) for n, c in zip(counts, size)]

    def draw(key):
        cells, *shifts = jax.random.split(key, 3)
        seen = jax.random.bernoulli(cells, share, counts).astype(image.dtype)
        parts = [
            jax.lax.dynamic_slice_in_dim(
                jnp.asarray(up, image.dtype), jax.random.randint(k, (), 0, c), n
            )
            for up, k, c, n in zip(spread, shifts, size, (height, width))
        ]
        return jnp.einsum("ya,ab,xb->yx", parts[0], seen, parts[1], precision="highest")

    # Sums of deviations from a score near the middle keep their digits.
    middle = function(image * share + fill * (1 - share))

    def add(total, group):
        keys, weight = group
        drawn = jax.vmap(draw)(keys)
        found = jax.vmap(lambda m: function(fill + m[:, :, None] * (image - fill)))(
            drawn
        )
        change, seen = (found - middle) * weight[:, None], drawn - share
        both = jnp.einsum("nk,nyx->kyx", change, seen, precision="highest")
        seen = jnp.einsum("n,nyx->yx", weight, seen, precision="highest")
        return jax.tree.map(jnp.add, total, (both, change.sum(0), seen)), None

    chunk = min(chunk, masks)
    groups = -(-masks // chunk)
    # The last chunk is filled with masks of weight 0.
    keys = jax.random.split(key, masks)[np.arange(groups * chunk).clip(0, masks - 1)]
    weights = (jnp.arange(groups * chunk) < masks).astype(jnp.float32)
    parts = keys.reshape(groups, chunk, *keys.shape[1:]), weights.reshape(groups, chunk)
    zero = (
        jnp.zeros((len(middle), height, width), image.dtype),
        jnp.zeros_like(middle),
        jnp.zeros((height, width), image.dtype),
    )
    (both, change, seen), _ = jax.lax.scan(add, zero, parts)
    if centred:
        outer = change[:, None, None] * seen / masks
        variance = share * (1 - share) * _variance(spread, size, (height, width))
        return (both - outer) / ((masks - 1) * variance)
    # f M summed up: f = middle + change, M = share + seen.
    level = middle[:, None, None] * (seen + share * masks)
    return (both + share * change[:, None, None] + level) / (masks * share)


def _windows(shape, patch_px: int | None, stride_px: int | None):
    """Pixels of the windows along both axes, `[n, h]` and `[m, w]` booleans."""
    height = shape[0]
    patch = max(round(SIDE * height), 1) if patch_px is None else patch_px
    stride = max(round(STRIDE * height), 1) if stride_px is None else stride_px
    if not 1 <= patch <= min(shape[0], shape[1]):
        raise ValueError(
            f"a patch of {patch} pixels does not fit a picture of {shape[0]}x{shape[1]}; "
            "set patch_px to less"
        )
    if not 1 <= stride <= patch:
        raise ValueError(
            f"stride_px={stride} would leave pixels out; use 1..{patch}, the patch's side"
        )

    def along(length: int) -> np.ndarray:
        starts = list(range(0, length - patch + 1, stride))
        if starts[-1] != length - patch:
            starts.append(length - patch)
        offsets = np.arange(length) - np.array(starts)[:, None]
        return (offsets >= 0) & (offsets < patch)

    return along(shape[0]), along(shape[1])


def _hidden_one_by_one(function, image, rows, columns, fill, chunk: int):
    """`function` of the picture with every window hidden; windows lead."""
    fill = jnp.broadcast_to(jnp.asarray(fill, image.dtype), image.shape)
    down, across = jnp.asarray(rows), jnp.asarray(columns)

    def one(window):
        hidden = down[window[0]][:, None] & across[window[1]]
        return function(jnp.where(hidden[:, :, None], fill, image))

    places = np.stack(
        np.meshgrid(np.arange(len(rows)), np.arange(len(columns)), indexing="ij"), -1
    )
    return jax.lax.map(one, jnp.asarray(places.reshape(-1, 2)), batch_size=chunk)


def _upsampling(count: int, size: int) -> np.ndarray:
    """`[count * size, count]`: cells to pixels, bilinear with half-pixel centres."""
    place = ((np.arange(count * size) + 0.5) / size - 0.5).clip(0, count - 1)
    return np.maximum(1 - np.abs(place[:, None] - np.arange(count)), 0)


def _variance(spread, size, shape) -> np.ndarray:
    """`[h, w]` of a mask, as a share of that of a cell, over all shifts."""
    means = []
    for up, cell, length in zip(spread, size, shape):
        squares = (up**2).sum(1)
        means.append(np.mean([squares[s : s + length] for s in range(cell)], 0))
    return np.outer(*means).astype(np.float32)
