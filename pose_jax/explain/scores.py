"""What is explained: one number per keypoint from the heatmaps of one person.

A score is `score(heatmaps, reference) -> [k]` (`heatmap` gives whole maps). The reference is
fixed by the clean picture or by labels and never by the picture that is scored: a score that
looked up its own maximum could stay high after the joint jumped elsewhere (`peak` is that
score, kept for comparison). Larger is better everywhere but for
`position_x` and `position_y`, which say where to the joint is pulled.

| name | value | source |
|---|---|---|
| `value` | map at the reference pixel | default without labels |
| `disc` | sum of the map over a disc around the reference | Seg-Grad-CAM's sum over a set of pixels |
| `matched_filter` | inner product with the training Gaussian at the reference, divided by its norm | a smooth `value` |
| `contrast` | `value` minus the highest value farther than three radii away | why here and not elsewhere |
| `mirror_contrast` | `value` minus the mirrored joint's map at the same pixel | left/right swaps |
| `likelihood` | exp(-0.3 d), d from the map's centre of mass to the reference, map pixels | PoseIG (CVPR 2023) |
| `displacement` | -d of the same centre of mass | |
| `position_x`, `position_y` | the same centre of mass, map pixels, signed | coordinate sensitivity |
| `log_likelihood` | log of the map's share at the reference (softmax over positions) | cross-entropy's own score |
| `similarity` | keypoint similarity of the decoded position | COCO OKS; default with labels |
| `thresholded` | share of the thresholds .50:.05:.95 below the similarity | keypoint AP of one person |
| `peak` | highest value anywhere | |
| `heatmap` | the map itself, `[k, y, x]` | |
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from pose_jax import heatmaps as heatmaps_
from pose_jax.arrays import Array
from pose_jax.heatmaps import Codec
from pose_jax.metrics.similarity import keypoint_similarity
from pose_jax.skeletons import Skeleton

THRESHOLDS = tuple(0.5 + 0.05 * n for n in range(10))


class Reference(NamedTuple):
    """Where the joints are taken to be, in heatmap pixels. A pytree of arrays.

    Attributes:
      points: `[k, 2]` (x, y); labels, or the clean picture's own answer.
      valid: `[k]` False where there is no label: the score means nothing there.
      area: area of the person, square heatmap pixels, for similarity.
      sigmas: `[k]` constants of the keypoints.
      mirror: `[k]` number of the mirrored keypoint (its own where it has none).
    """

    points: Float[Array, "k 2"]
    valid: Bool[Array, "k"]
    area: Float[Array, ""]
    sigmas: Float[Array, "k"]
    mirror: Int[Array, "k"]


def from_clean(
    clean: Float[Array, "y x k"], codec: Codec, skeleton: Skeleton, area: Any
) -> Reference:
    """The reference of a picture without labels: the model's own answer on it.

    Args:
      clean: activated heatmaps of the untouched picture.
      area: area of the person, square heatmap pixels.
    """
    k = clean.shape[-1]
    return from_points(
        heatmaps_.locate(clean, codec), jnp.ones(k, bool), skeleton, area
    )


def from_points(points: Any, valid: Any, skeleton: Skeleton, area: Any) -> Reference:
    """The reference of a labelled person; `points` in heatmap pixels."""
    return Reference(
        jnp.asarray(points, jnp.float32),
        jnp.asarray(valid, bool),
        jnp.asarray(area, jnp.float32),
        jnp.asarray(skeleton.sigmas, jnp.float32),
        jnp.asarray(skeleton.mirrored),
    )


Score: TypeAlias = Callable[[Any, Reference], Any]


def make_score(name: str, codec: Codec) -> Score:
    """The score of a name, `score(heatmaps [y, x, k], reference) -> [k]`.

    Args:
      codec: how the model's maps are rendered and decoded.

    Raises:
      ValueError: no score has the name.
    """
    if name not in SCORES:
        raise ValueError(
            f"score {name!r} is unknown; choose one of {', '.join(SCORES)}"
        )
    function = SCORES[name]
    return lambda maps, reference: function(maps, reference, codec)


def _value(maps, reference, codec):
    height, width, k = maps.shape
    cells = jnp.round(reference.points).astype(int)
    x, y = cells[:, 0].clip(0, width - 1), cells[:, 1].clip(0, height - 1)
    return maps[y, x, jnp.arange(k)]


def _distance(maps, reference) -> Float[Array, "y x k"]:
    """From every pixel to every keypoint's reference."""
    y, x = jnp.mgrid[: maps.shape[0], : maps.shape[1]]
    offsets = jnp.stack([x, y], -1)[:, :, None] - reference.points
    return jnp.sqrt((offsets**2).sum(-1))


def _radius(codec) -> float:
    return 2 * codec.sigma_px


def _disc(maps, reference, codec):
    near = _distance(maps, reference) <= _radius(codec)
    return jnp.where(near, maps, 0).sum((0, 1))


def _matched_filter(maps, reference, codec):
    squared = (_distance(maps, reference) / codec.sigma_px) ** 2
    template = jnp.exp(-0.5 * squared)
    norm = jnp.sqrt((template**2).sum((0, 1)))
    return (maps * template).sum((0, 1)) / jnp.maximum(norm, 1e-12)


def _contrast(maps, reference, codec):
    far = _distance(maps, reference) > 3 * _radius(codec)
    # A map so small that nothing lies far away has no rival.
    rival = jnp.where(far, maps, -jnp.inf).max((0, 1))
    return _value(maps, reference, codec) - jnp.where(far.any((0, 1)), rival, 0.0)


def _mirror_contrast(maps, reference, codec):
    mirrored = _value(maps[:, :, reference.mirror], reference, codec)
    return _value(maps, reference, codec) - mirrored


def _displacement(maps, reference, codec):
    squared = ((centre(maps) - reference.points) ** 2).sum(-1)
    # The slope of the root at 0 is infinite; a joint that has not moved has slope 0.
    moved = squared > 0
    return -jnp.where(moved, jnp.sqrt(jnp.where(moved, squared, 1.0)), 0.0)


def centre(maps: Float[Array, "y x k"]) -> Float[Array, "k 2"]:
    """Centre of the mass above zero; the first pixel, with no slope, where there is none."""
    mass = jnp.maximum(maps, 0)
    total = mass.sum((0, 1))
    some = total > 1e-12
    total = jnp.where(some, total, 1.0)
    y, x = jnp.mgrid[: maps.shape[0], : maps.shape[1]].astype(maps.dtype)
    sums = [jnp.einsum("yxk,yx->k", mass, axis) / total for axis in (x, y)]
    return jnp.where(some[:, None], jnp.stack(sums, -1), 0.0)


def _position_x(maps, reference, codec):
    return centre(maps)[:, 0]


def _position_y(maps, reference, codec):
    return centre(maps)[:, 1]


def _likelihood(maps, reference, codec):
    return jnp.exp(0.3 * _displacement(maps, reference, codec))


def _log_likelihood(maps, reference, codec):
    height, width, k = maps.shape
    if codec.activation == "softmax":  # The maps are shares already, scaled.
        shares = maps / jnp.maximum(maps.sum((0, 1)), 1e-30)
        logs = jnp.log(jnp.maximum(shares, 1e-30))
    else:
        logs = jax.nn.log_softmax(maps.reshape(height * width, k), axis=0)
        logs = logs.reshape(maps.shape)
    return _value(logs, reference, codec)


def _similarity(maps, reference, codec):
    points = heatmaps_.locate(maps, codec)
    return keypoint_similarity(
        points, reference.points, reference.area, reference.sigmas
    )


def _thresholded(maps, reference, codec):
    similarity = _similarity(maps, reference, codec)
    return (similarity[:, None] > jnp.asarray(THRESHOLDS)).mean(-1)


def _peak(maps, reference, codec):
    return maps.max((0, 1))


def _heatmap(maps, reference, codec):
    return jnp.moveaxis(maps, -1, 0)


SCORES: dict[str, Callable[..., Any]] = {
    "value": _value,
    "disc": _disc,
    "matched_filter": _matched_filter,
    "contrast": _contrast,
    "mirror_contrast": _mirror_contrast,
    "likelihood": _likelihood,
    "displacement": _displacement,
    "position_x": _position_x,
    "position_y": _position_y,
    "log_likelihood": _log_likelihood,
    "similarity": _similarity,
    "thresholded": _thresholded,
    "peak": _peak,
    "heatmap": _heatmap,
}
