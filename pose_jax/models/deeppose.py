"""DeepPose (Toshev and Szegedy, CVPR 2014): a cascade of coordinate regressors.

Stage 0 sees the whole crop and names every joint. Each later stage looks again, once per
joint, at a box around the estimate before it, whose side is `sigma` times the diameter of
the estimated pose, and names what is left to go, in shares of the box. Stages have weights
of their own. The paper refines from the photo and with one network per joint; here boxes are
cut from the input crop, and a stage's weights are shared over joints, which are told apart by
a one-hot code at the first fully connected layer.

The layers follow AlexNet. The paper counts "about 40M" parameters and gives no strides for
the poolings: AlexNet's own (6x6 maps into the first fully connected layer) would make 58M
with two layers of 4096, stride 3 in the last pooling (4x4 maps) makes 37M.

Taps of stage `i`: `stage{i}/conv1` .. `conv5`, `stage{i}/fc1`, `stage{i}/fc2`,
`stage{i}/coordinates` (crop pixels); from stage 1 on also `stage{i}/centres` and
`stage{i}/side` (crop pixels), the box, and a joint axis behind the batch's in all of them
but `side`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from pose_jax.arrays import Array
from pose_jax.models.layers import conv
from pose_jax.models.outputs import Edits, Outputs, Taps
from pose_jax.models.rectifier import rectify
from pose_jax.models.regression import COORDINATES_INIT, to_pixels

Centres = Callable[[int, Array], Array]
"""(stage, the estimate before it `[b, k, 2]`) -> where its boxes lie `[b, k, 2]`."""

_LEAST_SIDE = 0.05
"""Of a box, as a share of the crop: a collapsed pose must leave something to see."""


@dataclasses.dataclass(frozen=True)
class DeepPoseConfig:
    """Defaults: the published network, for one person in 220x220 pixels.

    Attributes:
      stages: regressors in a row.
      channels: of the five convolutions. fully_connected: width of the two layers.
      sigma: side of a box as a multiple of the pose's diameter (1.0 FLIC, 2.0 LSP).
      torso: the two opposite torso joints whose distance is the diameter; empty: half the
        longer side of the pose's bounding box stands in for it.
      dropout: share of the fully connected activations dropped in training (0.6, after a
        public reimplementation; the paper gives none).
      dtype: compute type; coordinates and parameters stay float32.
    """

    stages: int = 3
    channels: tuple[int, ...] = (96, 256, 384, 384, 256)
    fully_connected: int = 4096
    sigma: float = 2.0
    torso: tuple[int, ...] = ()
    dropout: float = 0.6
    dtype: str = "float32"

    def __post_init__(self):
        for field in ("channels", "torso"):
            object.__setattr__(self, field, tuple(getattr(self, field)))
        if self.stages < 1 or self.fully_connected < 1:
            raise ValueError("model.stages and fully_connected must be at least 1")
        if len(self.channels) != 5:
            raise ValueError(f"model.channels holds five widths, not {self.channels}")
        if len(self.torso) not in (0, 2) or min(self.torso, default=0) < 0:
            raise ValueError(
                f"model.torso={self.torso}; name two keypoints by number, or none"
            )
        if self.sigma <= 0 or not 0 <= self.dropout < 1:
            raise ValueError("model.sigma must be positive, dropout in 0 .. 1")


def local_response_norm(x: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
    """Across five neighbouring channels (Krizhevsky et al., NIPS 2012, section 3.3):
    x / (2 + 1e-4 * sum of squares) ** 0.75."""
    squares = jnp.pad(x * x, ((0, 0),) * (x.ndim - 1) + ((2, 2),))
    # Five shifted sums: windows over channels are slow on a CPU.
    total = sum(squares[..., i : i + x.shape[-1]] for i in range(5))
    root = jax.lax.rsqrt(2 + 1e-4 * total)
    return x * root * jnp.sqrt(root)  # The power -3/4 without a logarithm.


def crop_boxes(
    images: Float[Array, "b h w c"],
    centres: Float[Array, "b k 2"],
    sides: Float[Array, "b"],
) -> Float[Array, "b k h w c"]:
    """Square boxes at the size of the picture, sampled bilinearly; 0 outside of it.

    Differentiable in the picture, the centres and the sides.

    Args:
      centres: (x, y) pixels, pixel centres at integers. sides: of the boxes, pixels; the
        longer side of a picture that is no square.
    """
    height, width = images.shape[1:3]

    def one(image, centre, side):
        zoom = max(height, width) / side
        # A pixel is a square whose corner lies half a pixel before its centre.
        middle = jnp.stack([height, width]) / 2
        translation = middle - (centre[::-1] + 0.5) * zoom
        return jax.image.scale_and_translate(
            image, image.shape, (0, 1), jnp.stack([zoom, zoom]), translation,
            "linear", antialias=False,
        )  # fmt: skip

    per_joint = jax.vmap(one, (None, 0, None))
    return jax.vmap(per_joint)(images, centres, sides)


def diameter(pose: Float[Array, "b k 2"], torso: tuple[int, ...]) -> Float[Array, "b"]:
    """Of poses, in the unit of the coordinates, see `DeepPoseConfig.torso`."""
    if torso:
        across = pose[:, torso[0]] - pose[:, torso[1]]
        # The slope of the root at 0 is infinite.
        return jnp.sqrt((across**2).sum(-1) + 1e-6)
    return (pose.max(1) - pose.min(1)).max(-1) / 2


class Regressor(nn.Module):
    """AlexNet-like layers from pixels to numbers. Leading axes are a batch; with `joints` the
    last of them counts joints.

    Attributes:
      outputs: shape of the numbers.
    """

    config: DeepPoseConfig
    outputs: tuple[int, ...]
    joints: int = 0

    @nn.compact
    def __call__(self, x: Float[Array, "*b h w 3"], train: bool, taps: Taps):
        c, name, dtype = self.config, self.name, jnp.dtype(self.config.dtype)
        lead = x.shape[:-3]
        x = x.reshape(-1, *x.shape[-3:]).astype(dtype)
        for i, (features, size) in enumerate(zip(c.channels, (11, 5, 3, 3, 3)), 1):
            strides = 4 if i == 1 else 1
            layer = conv(
                features, size, f"conv{i}", dtype, strides=strides, train=train
            )
            x = rectify(layer(x))
            x = taps(f"{name}/conv{i}", x.reshape(*lead, *x.shape[1:]))
            x = x.reshape(-1, *x.shape[-3:])
            if i in (1, 2):
                x = _pool(local_response_norm(x), 2)
        x = _pool(x, 3).reshape(*lead, -1)
        x = nn.Dense(c.fully_connected, dtype=dtype, name="fc1")(x)
        if self.joints:
            code = jnp.eye(self.joints, dtype=dtype)
            # Beside the features in the input of fc1, written as a summand of its own.
            x = x + nn.Dense(c.fully_connected, False, dtype, name="joint")(code)
        x = self._hidden(x, "fc1", train, taps)
        x = nn.Dense(c.fully_connected, dtype=dtype, name="fc2")(x)
        x = self._hidden(x, "fc2", train, taps)
        head = nn.DenseGeneral(self.outputs, kernel_init=COORDINATES_INIT, name="head")
        return head(x.astype(jnp.float32))

    def _hidden(self, x, label: str, train: bool, taps: Taps):
        x = taps(f"{self.name}/{label}", rectify(x))
        return nn.Dropout(self.config.dropout, deterministic=not train)(x)


def _pool(x, stride: int):
    """3x3 maxima, without padding; maps smaller than that are pooled whole."""
    window = min(3, x.shape[-3]), min(3, x.shape[-2])
    return nn.max_pool(x, window, (stride, stride))


class DeepPose(nn.Module):
    """See the module text. `images` are normalised pixels; coordinates `[stages, b, k, 2]` are
    crop pixels, float32.

    Args (of a call):
      centres: where later stages look, if not at the estimate before them: training shows
        them boxes as the stage before would have missed.

    Raises:
      ValueError: a torso joint that does not exist.
    """

    config: DeepPoseConfig
    num_keypoints: int

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "b h w 3"],
        train: bool = False,
        edits: Edits | None = None,
        *,
        centres: Centres | None = None,
    ) -> Outputs:
        c, k = self.config, self.num_keypoints
        if max(c.torso, default=0) >= k:
            raise ValueError(
                f"model.torso={c.torso} names a joint beyond the {k} of the skeleton"
            )
        taps, size = Taps(edits), (images.shape[1], images.shape[2])
        shares = Regressor(c, (k, 2), name="stage0")(images, train, taps)
        pose = taps("stage0/coordinates", to_pixels(shares, size))
        found = [pose]
        for stage in range(1, c.stages):
            name = f"stage{stage}"
            before = pose if centres is None else centres(stage, pose)
            middle = taps(f"{name}/centres", before)
            side = c.sigma * diameter(middle, c.torso)
            side = taps(f"{name}/side", jnp.maximum(side, _LEAST_SIDE * max(size)))
            seen = crop_boxes(images, middle, side)
            shares = Regressor(c, (2,), k, name=name)(seen, train, taps)
            pose = taps(f"{name}/coordinates", middle + shares * side[:, None, None])
            found.append(pose)
        return Outputs(coordinates=jnp.stack(found), taps=taps.finish())


TINY = dict(channels=(8, 8, 8, 8, 8), fully_connected=32, dropout=0.0)
"""For tests, at 44 pixels."""
