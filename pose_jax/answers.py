"""What a model answers, read the same way whether it draws heatmaps or names coordinates.

Evaluation, explanation and analysis read heatmaps. A network that regresses coordinates gets
maps drawn for it: one Gaussian of the codec's width per joint at a quarter of the crop's size,
as high as the network is sure. Its keypoints stay the numbers that it gave, never decoded
from those maps: a decoder is only as good as its map, which ends at the crop's border.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from pose_jax import heatmaps
from pose_jax.arrays import Array
from pose_jax.heatmaps import Codec
from pose_jax.models.outputs import Outputs

REDUCTION = 4
"""Crop pixels per pixel of a drawn map, as in networks that make their own."""


class Answer(NamedTuple):
    """Of a batch of people. A pytree of arrays; what nobody reads costs nothing in `jit`.

    Attributes:
      maps: activated heatmaps.
      keypoints: (x, y) crop pixels, outside of the crop where a network says so.
      scores: 0..1, height of the peaks.
    """

    maps: Float[Array, "b y x k"]
    keypoints: Float[Array, "b k 2"]
    scores: Float[Array, "b k"]


def read(outputs: Outputs, codec: Codec, image_size: tuple[int, int]) -> Answer:
    """The last stage's answer.

    Args:
      image_size: (height, width) of the crop.

    Raises:
      ValueError: the outputs hold neither heatmaps nor coordinates.
    """
    if outputs.heatmaps is None:
        return _drawn(*_regressed(outputs, image_size), codec, image_size)
    return _decoded(maps(outputs, codec, image_size), codec, image_size)


def read_flipped(
    outputs: Outputs,
    mirrored_outputs: Outputs,
    mirrored: np.ndarray,
    codec: Codec,
    image_size: tuple[int, int],
) -> Answer:
    """The flip test: the answer averaged with that on the mirrored crop, brought back.

    Heatmaps are mirrored, aligned as the codec says and averaged; of coordinates, the
    coordinates themselves are.

    Args:
      mirrored: number of every keypoint's mirror image.
    """
    if outputs.heatmaps is None:
        points, height = _regressed(outputs, image_size)
        others, other_height = _regressed(mirrored_outputs, image_size)
        # Pixel centres are integers: column x of the mirrored crop was width - 1 - x.
        back = jnp.stack([image_size[1] - 1 - others[..., 0], others[..., 1]], -1)
        points = (points + back[:, mirrored]) / 2
        height = (height + other_height[:, mirrored]) / 2
        return _drawn(points, height, codec, image_size)
    there = maps(mirrored_outputs, codec, image_size)
    back = heatmaps.unflip(there, mirrored, codec, image_size)
    here = maps(outputs, codec, image_size)
    return _decoded((here + back) / 2, codec, image_size)


def maps(
    outputs: Outputs, codec: Codec, image_size: tuple[int, int]
) -> Float[Array, "b y x k"]:
    """Activated heatmaps of the last stage, float32, drawn where the network made none."""
    if outputs.heatmaps is None:
        return draw(*_regressed(outputs, image_size), codec, image_size)
    return heatmaps.activate(outputs.heatmaps[-1], codec)


def raw(outputs: Outputs) -> Float[Array, "b *out"]:
    """The last stage as the network's last layer left it: heatmaps or coordinates."""
    found = outputs.coordinates if outputs.heatmaps is None else outputs.heatmaps
    return found[-1]


def locate(
    outputs: Outputs, codec: Codec, image_size: tuple[int, int]
) -> tuple[Float[Array, "b k 2"], Float[Array, "b k"]]:
    """Keypoints (x, y) in pixels of the maps, and the heights of their peaks."""
    if outputs.heatmaps is None:
        points, height = _regressed(outputs, image_size)
        return points / _step(codec, image_size), height
    here = maps(outputs, codec, image_size)
    return jax.vmap(lambda m: heatmaps.locate(m, codec))(here), here.max((1, 2))


def draw(
    points: Float[Array, "b k 2"],
    height: Float[Array, "b k"],
    codec: Codec,
    image_size: tuple[int, int],
) -> Float[Array, "b y x k"]:
    """Sub-pixel Gaussians, differentiable in position and height.

    Decoders that interpolate give the position back inside of the map; within a map pixel
    or two of its border they are as coarse as on any map. Joints outside of the crop lie on
    its border.

    Args:
      points: (x, y) crop pixels. height: of the peaks.
    """
    size = _map_size(image_size)
    last = jnp.asarray([size[1] - 1, size[0] - 1], jnp.float32)
    centre = jnp.clip(points / _step(codec, image_size), 0, last)

    def along(length: int, axis: int):
        offset = jnp.arange(length)[:, None] - centre[:, None, :, axis]
        return jnp.exp(-(offset**2) / (2 * codec.sigma_px**2))

    gaussian = along(size[0], 1)[:, :, None] * along(size[1], 0)[:, None]
    return gaussian * height[:, None, None]


def _map_size(image_size) -> tuple[int, int]:
    return image_size[0] // REDUCTION, image_size[1] // REDUCTION


def _step(codec: Codec, image_size):
    """(x, y) crop pixels per pixel of a drawn map."""
    step = heatmaps.stride(codec, image_size, _map_size(image_size))
    return jnp.asarray(step, jnp.float32)


def _decoded(here, codec: Codec, image_size) -> Answer:
    decode = jax.vmap(lambda m: heatmaps.decode(m, codec, image_size))
    return Answer(here, *decode(here))


def _drawn(points, height, codec: Codec, image_size) -> Answer:
    return Answer(draw(points, height, codec, image_size), points, height)


def _regressed(outputs: Outputs, image_size):
    """Coordinates `[b, k, 2]` and how sure they are, `[b, k]`: 1 minus the mean scale of the
    error in shares of the crop (Li et al., ICCV 2021), 1 from networks that do not say."""
    if outputs.coordinates is None:
        raise ValueError(
            "the outputs hold neither heatmaps nor coordinates; a model family has to give "
            "one of them"
        )
    points = outputs.coordinates[-1].astype(jnp.float32)
    if outputs.spread is None:
        return points, jnp.ones(points.shape[:-1], jnp.float32)
    side = jnp.asarray([image_size[1], image_size[0]], jnp.float32)
    share = outputs.spread[-1].astype(jnp.float32) / side
    return points, jnp.clip(1 - share.mean(-1), 0, 1)
