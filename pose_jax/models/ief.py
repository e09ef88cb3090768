"""Iterative error feedback (Carreira, Agrawal, Fragkiadaki, Malik, CVPR 2016).

The network sees the crop and, in further channels, its own estimate drawn as one map per
joint, and answers how far each joint has yet to go. `steps` such corrections are made with the
same weights, from the mean pose of the training people.

Ours where the paper has others: a ResNet for GoogLeNet; the mean of the first people seen
for the median of all as the first estimate; no map of the body marking point, which in
crops around a person would be the same for everybody.

Taps carry an axis of steps behind the batch's: `stem`, `layer1` ... `layer4`, `pooled`,
`correction` and `coordinates` (crop pixels); an edit broadcasts against that.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Bool, Float

from pose_jax.arrays import Array
from pose_jax.models import resnet
from pose_jax.models.outputs import Edit, Edits, Outputs, Taps
from pose_jax.models.regression import COORDINATES_INIT, check_trainable

SIDE = 224
"""Pixels of the published crops; lengths in pixels are meant on them."""

FIRST_POSES = 10_000
"""Labelled people whose mean is the first estimate."""

# The published maps reach 50 beside pixels of +-128; ours are divided by their deviation.
_CONTRAST = 255 * 0.226
_DIMENSIONS = {"pooled": 3, "correction": 4, "coordinates": 4}


@dataclasses.dataclass(frozen=True)
class IefConfig:
    """Defaults: the published iteration on a ResNet-50.

    Attributes:
      steps: corrections in a row.
      bound_px: length of the longest correction taught, pixels of a crop of 224.
      depth: of the ResNet: 18, 34, 50, 101 or 152. width: of its first stage.
      remat: recompute residual blocks in the backward pass (saves memory).
      dtype: compute type; coordinates, parameters and statistics stay float32.
      folded: an inference copy, made by `models.fold` and never saved.
    """

    steps: int = 4
    bound_px: float = 20.0
    depth: int = 50
    width: int = 64
    remat: bool = False
    dtype: str = "float32"
    folded: bool = False

    def __post_init__(self):
        resnet.check_depth(self.depth)
        if self.steps < 1 or self.width < 1 or self.bound_px <= 0:
            raise ValueError("model.steps, width and bound_px must be positive")


def folded_norms(config: IefConfig) -> dict[str, str]:
    """{normalisation: convolution before it}, neighbours by name; see `models.fold`."""
    return resnet.folded_norms()


def bound(config: IefConfig, image_size: tuple[int, int]) -> float:
    """Length of the longest correction taught, crop pixels."""
    return config.bound_px * max(image_size) / SIDE


def render(
    pose: Float[Array, "b k 2"], image_size: tuple[int, int]
) -> Float[Array, "b h w k"]:
    """The estimate as maps: 100 exp(-0.001 d^2) - 50, with d in pixels of a crop of 224, in
    the unit of normalised pixels."""
    height, width = image_size
    decay = 0.001 * (SIDE / max(image_size)) ** 2

    def along(length: int, axis: int):
        distance = jnp.arange(length)[:, None] - pose[:, None, :, axis]
        return jnp.exp(-decay * distance**2)

    gaussian = along(height, 1)[:, :, None] * along(width, 0)[:, None]
    return (100 * gaussian - 50) / _CONTRAST


def ideal_path(
    start: Float[Array, "b k 2"],
    truth: Float[Array, "b k 2"],
    step: Any,
    longest: float,
) -> tuple[Float[Array, "b k 2"], Float[Array, "b k 2"]]:
    """(pose, correction to be taught) after `step` ideal corrections: straight to the truth,
    none longer than `longest` (fixed path consolidation).

    Args:
      step: 0, 1, ...; a number or one per person `[b]`.
    """
    way = truth - start
    # The slope of the root at 0 is infinite.
    length = jnp.sqrt((way**2).sum(-1, keepdims=True) + 1e-12)
    gone = jnp.asarray(step, jnp.float32).reshape(-1, 1, 1) * longest
    left = jnp.maximum(length - gone, 0.0)
    pose = truth - way * left / length
    return pose, way / length * jnp.minimum(left, longest)


def observe(
    mean: Float[Array, "k 2"],
    count: Float[Array, "k"],
    poses: Float[Array, "b k 2"],
    labelled: Bool[Array, "b k"],
) -> tuple[Float[Array, "k 2"], Float[Array, "k"]]:
    """Mean pose and people behind it, per joint, with a batch more; fixed once a joint was
    seen `FIRST_POSES` times."""
    weight = (labelled & (count < FIRST_POSES)).astype(jnp.float32)
    more = weight.sum(0)
    # Files hold anything where there is no label.
    away = jnp.where(weight[..., None] > 0, poses - mean, 0.0).sum(0)
    total = count + more
    return mean + away / jnp.maximum(total, 1)[:, None], total


class Step(nn.Module):
    """One correction. Carries the pose `[b, k, 2]`; gives the new one and its taps."""

    config: IefConfig
    num_keypoints: int

    @nn.compact
    def __call__(self, pose, edits: Edits, images, train: bool):
        c, taps, dtype = self.config, Taps(edits), jnp.dtype(self.config.dtype)
        size = images.shape[1], images.shape[2]
        seen = jnp.concatenate([images, render(pose, size)], -1)
        trunk = resnet.ResNet(
            c.depth, 4, c.width, dtype, c.folded, c.remat, name="trunk"
        )
        x = trunk(seen.astype(dtype), train, taps)[-1]
        x = taps("pooled", x.astype(jnp.float32).mean((1, 2)))
        head = nn.DenseGeneral(
            (self.num_keypoints, 2), kernel_init=COORDINATES_INIT, name="head"
        )
        pose = pose + taps("correction", head(x) * bound(c, size))
        return taps("coordinates", pose), taps.finish()


class Ief(nn.Module):
    """See the module text. `images` are normalised pixels of any size; coordinates
    `[steps, b, k, 2]` are crop pixels, float32.

    Args (of a call):
      pose: an estimate; one correction of it is made instead of the iteration. In training
        one correction is made of this, or of the mean pose.

    Raises:
      ValueError: `train` with a folded network.
    """

    config: IefConfig
    num_keypoints: int

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "b h w 3"],
        train: bool = False,
        edits: Edits | None = None,
        *,
        pose: Float[Array, "b k 2"] | None = None,
    ) -> Outputs:
        c, k = self.config, self.num_keypoints
        check_trainable(train, c.folded)
        middle = jnp.asarray([images.shape[2] - 1, images.shape[1] - 1]) / 2
        start = self.variable(
            "batch_stats", "start_mean", lambda: jnp.broadcast_to(middle, (k, 2))
        )
        self.variable("batch_stats", "start_count", jnp.zeros, (k,))
        once = train or pose is not None or self.is_initializing()
        if pose is None:
            pose = jnp.broadcast_to(start.value, (len(images), k, 2))
        count = 1 if once else c.steps
        broadcast: Any = (0, nn.broadcast, nn.broadcast)
        scanned = nn.scan(
            Step,
            variable_broadcast=("params", "batch_stats"),
            split_rngs={"params": False},
            in_axes=broadcast,
            length=count,
        )
        by_step = {n: _by_step(n, e, count) for n, e in (edits or {}).items()}
        if once:  # Statistics and parameters cannot be made inside of a scan.
            first = {n: Edit(e.scale[0], e.shift[0]) for n, e in by_step.items()}
            _, taps = Step(c, k, name="step")(pose, first, images, train)
            taps = {name: value[:, None] for name, value in taps.items()}
        else:
            _, taps = scanned(c, k, name="step")(pose, by_step, images, train)
            taps = {name: jnp.moveaxis(value, 0, 1) for name, value in taps.items()}
        found = jnp.moveaxis(taps["coordinates"], 1, 0)
        return Outputs(coordinates=found, taps=taps)


def _by_step(name: str, edit: Edit, count: int) -> Edit:
    """An edit of a tap `[b, t, ...]` as one edit per step, steps leading."""

    def leading(value):
        value = jnp.asarray(value)
        missing = _DIMENSIONS.get(name, 5) - value.ndim
        value = value.reshape((1,) * missing + value.shape)
        value = jnp.moveaxis(value, 1, 0)
        return jnp.broadcast_to(value, (count, *value.shape[1:]))

    return Edit(leading(edit.scale), leading(edit.shift))
