"""Group-based keypoint removal and its controls, drawn inside the jitted step.

Following XPose (Qiu et al., arXiv 2403.12370): a single keypoint of a cluster is removed
while its strongly tied partners are kept, so that the network learns to place what it cannot
see. The paper's numbers are not public; the defaults stand in `KeypointRemoval`. Targets
and weights stay as they are, the removed keypoint's included.

| kind | what is removed |
|---|---|
| `none` | nothing |
| `gkr` | one keypoint of one cluster; the box shrinks until it covers no partner |
| `gkr_strong` | one keypoint of every cluster |
| `gkr_value_weighted` | as `gkr`, keypoints drawn by measured influence (ours) |
| `gkr_shuffled_clusters` | as `gkr`, keypoints dealt to clusters of the same sizes at random |
| `random_keypoint` | any labelled keypoint, partners or not |
| `whole_cluster` | all keypoints of one cluster |
| `cutout_equal_area` | the box of `gkr`, somewhere in the crop |

With the same key all kinds draw the same box, so that arms of a study differ in the rule only.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from pose_jax import regions
from pose_jax.arrays import Array

KINDS = (
    "none", "gkr", "gkr_strong", "gkr_value_weighted", "gkr_shuffled_clusters",
    "random_keypoint", "whole_cluster", "cutout_equal_area",
)  # fmt: skip
FILLS = ("mean", "blur", "noise")


@dataclasses.dataclass(frozen=True)
class KeypointRemoval:
    """What a training step removes from its crops.

    Attributes:
      kind: table of the module.
      probability: share of crops that lose something.
      area: range of the box's area as a share of the crop; aspect: of width / height.
      jitter_px: standard deviation of the box's centre around the keypoint.
      fill: what is seen instead: the data set's `mean` colour (0 after normalisation), a
        `blur` of the crop (sigma: a twelfth of its height), or `noise`.
      clusters: partition of the keypoints, already shuffled for that kind.
      weights: one number per keypoint for `gkr_value_weighted`, how often it is drawn
        within its cluster.
    """

    kind: str = "none"
    probability: float = 0.5
    area: tuple[float, float] = regions.BOX_AREA
    aspect: tuple[float, float] = regions.BOX_ASPECT
    jitter_px: float = 3.0
    fill: str = "mean"
    clusters: tuple[tuple[int, ...], ...] = ()
    weights: tuple[float, ...] = ()

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(
                f"data.train.removal.kind is {self.kind!r}; use {', '.join(KINDS)}"
            )
        if self.fill not in FILLS:
            raise ValueError(
                f"data.train.removal.fill is {self.fill!r}; use {', '.join(FILLS)}"
            )
        if not 0 <= self.probability <= 1:
            raise ValueError("data.train.removal.probability lies between 0 and 1")
        for name, ends, most in (
            ("area", self.area, 1.0),
            ("aspect", self.aspect, 1e6),
        ):
            if len(ends) != 2 or not (0 < ends[0] <= ends[1] <= most):
                raise ValueError(
                    f"data.train.removal.{name}={ends} is no range (low, high) above 0"
                    + (" and up to 1" if name == "area" else "")
                )
        if not self.jitter_px >= 0:
            raise ValueError("data.train.removal.jitter_px is 0 or more")
        if self.active and not self.clusters:
            raise ValueError(f"keypoint removal {self.kind!r} needs clusters")
        if (self.kind == "gkr_value_weighted") != bool(self.weights):
            raise ValueError(
                "data.train.removal.influence (a file of measured influence) belongs to "
                "kind='gkr_value_weighted', and only to it"
            )
        if self.weights and not (np.asarray(self.weights) > 0).all():
            raise ValueError("weights of keypoints are positive")

    @property
    def active(self) -> bool:
        return self.kind != "none"


NOTHING = KeypointRemoval()


def removal_mask(
    keypoints: Float[Array, "k 2"],
    visible: Int[Array, "k"],
    size: tuple[int, int],
    removal: KeypointRemoval,
    *,
    key: jax.Array,
) -> Bool[Array, "h w"]:
    """Pixels that one crop loses.

    Args:
      keypoints: crop pixels. visible: 0 where unlabelled or outside of the crop; such
        keypoints are neither removed nor protected.
    """
    if not removal.active:
        return jnp.zeros(size, bool)
    keys = jax.random.split(key, 6)
    k = len(keypoints)
    removed = _choose(visible > 0, removal, keys[:3])
    half = jax.vmap(
        lambda key: regions.random_half_sides(
            size, area=removal.area, aspect=removal.aspect, key=key
        )
    )(jax.random.split(keys[3], k))
    jitter = removal.jitter_px * jax.random.normal(keys[4], (k, 2))
    centre = keypoints + jitter
    if removal.kind not in ("random_keypoint", "whole_cluster"):
        half = half * _shrink(centre, half, keypoints, visible > 0, removal)[:, None]
    if removal.kind == "cutout_equal_area":
        height, width = size
        # The same box, wholly inside of the crop as a box around a joint mostly is.
        low, high = half - 0.5, jnp.array([width - 0.5, height - 0.5]) - half
        centre = low + (high - low) * jax.random.uniform(keys[5], (k, 2))
    boxes = jax.vmap(lambda c, h: regions.box_mask(c, h, size))(centre, half)
    return jnp.any(boxes & removed[:, None, None], 0)


def _choose(labelled, removal: KeypointRemoval, keys) -> Bool[Array, "k"]:
    """Which keypoints are removed; none where the coin says so."""
    k = len(labelled)
    coin = jax.random.uniform(keys[0]) < removal.probability
    # The largest of log-weight plus Gumbel noise is a draw by weight, whatever is masked.
    noise = jax.random.gumbel(keys[1], (k,))
    if removal.weights:
        noise = noise + jnp.log(jnp.asarray(removal.weights, jnp.float32))
    if removal.kind == "random_keypoint":
        score = jnp.where(labelled, noise, -jnp.inf)
        return coin & labelled & (jnp.arange(k) == jnp.argmax(score))
    member = _members(removal, k) & labelled
    eligible = member.sum(1) >= 2
    score = jnp.where(member, noise, -jnp.inf)
    best = member & (jnp.arange(k) == jnp.argmax(score, 1)[:, None])
    lot = jnp.where(eligible, jax.random.gumbel(keys[2], eligible.shape), -jnp.inf)
    one = eligible & (jnp.arange(len(lot)) == jnp.argmax(lot))
    picked = eligible if removal.kind == "gkr_strong" else one
    chosen = member if removal.kind == "whole_cluster" else best
    return coin & (chosen & picked[:, None]).any(0)


def _members(removal: KeypointRemoval, k: int) -> np.ndarray:
    """[g, k] whether a keypoint is in a cluster."""
    member = np.zeros((len(removal.clusters), k), bool)
    for number, members in enumerate(removal.clusters):
        member[number, list(members)] = True
    return member


def _shrink(centre, half, keypoints, labelled, removal) -> Float[Array, "k"]:
    """The factor that keeps the pixel of every labelled partner out of a keypoint's box."""
    member = _members(removal, len(keypoints))
    partner = (member.T[:, :, None] & member[None]).any(1) & ~np.eye(
        len(keypoints), dtype=bool
    )
    # Half a pixel: the box must not touch the pixel that the partner lies on.
    gap = jnp.maximum(jnp.abs(keypoints[None] - centre[:, None]) - 0.5, 0)
    factor = (gap / half[:, None]).max(-1)
    factor = jnp.where(partner & labelled[None], factor, 1.0)
    return jnp.minimum(factor.min(1), 1.0)


def remove_keypoints(
    images: Float[Array, "b h w 3"],
    keypoints: Float[Array, "b k 2"],
    visible: Int[Array, "b k"],
    removal: KeypointRemoval,
    mean: tuple[float, ...],
    *,
    key: jax.Array,
) -> tuple[Float[Array, "b h w 3"], Float[Array, "b"]]:
    """Crops with regions removed, and the share of pixels that each one lost.

    Args:
      images: 0..255, before normalisation.
      mean: the data set's colour in shares of 255.
    """
    size = images.shape[1], images.shape[2]

    def one(image, points, flags, key):
        first, second = jax.random.split(key)
        mask = removal_mask(points, flags, size, removal, key=first)
        fill = _fill(image, removal.fill, mean, second)
        return regions.remove(image, fill, mask), mask.mean()

    keys = jax.random.split(key, len(images))
    return jax.vmap(one)(images, keypoints, visible, keys)


def _fill(image, name: str, mean, key):
    if name == "blur":
        return regions.blur_fill(image, sigma_px=image.shape[0] / 12)
    if name == "noise":
        return regions.noise_fill(image, key=key)
    return regions.mean_fill(image, mean)
