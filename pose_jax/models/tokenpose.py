"""TokenPose (Li et al., ICCV 2021): keypoints are tokens that attend to patches.

Learned keypoint tokens stand in front of the patch tokens; a head of two linear layers turns
each of them into its heatmap. Layers are pre-norm with GELU, without biases of query, key and
value. The sine table (`transpose.sine_positions`, computed, not stored) is added to the
patches before every layer ("sine-full"), but not again before the first of a later group.

Taps: those of the trunk (`stem`, `layer1`; with an HRNet `stage{s}/branch{b}`); `patches`,
for layer `i` `layer{i}/attention` `[b, a, k + n, k + n]` and `layer{i}/tokens`
`[b, k + n, d]`, keypoints first; `tokens` (the last layer's), `features` `[b, k, c]` (what the
head reads), `stack0/heatmaps`. Patches run along the rows of `token_grid`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float

from pose_jax.arrays import Array
from pose_jax.models import hrnet, resnet
from pose_jax.models.attention import (
    PreNormBlock,
    check_attention,
    dense,
    layer_norm,
    rematerialised,
    run_layer,
    truncated_normal,
)
from pose_jax.models.outputs import Edits, Outputs, Taps
from pose_jax.models.sizes import check_divisible
from pose_jax.models.transpose import sine_positions
from pose_jax.models.vit import check_images

TRUNKS = ("none", "stem", "hrnet")
SCALES = ("head", "width")
EPSILON = 1e-5


@dataclasses.dataclass(frozen=True)
class TokenPoseConfig:
    """Defaults: TokenPose-B.

    Attributes:
      input_size: (height, width) of the pictures; the head's maps have a quarter of it.
      trunk: `none` (patches of the picture), `stem` (HRNet's stem, stride 4) or `hrnet` (to
        stage 3, top branch, stride 4). trunk_width: of HRNet's top branch.
      patch: (height, width) of a patch on the trunk's map.
      width, heads, layers: of the transformer. mlp: hidden width of its MLPs.
      scale: of the logits: `head`, (width / heads) ** -0.5, or `width`, width ** -0.5 (the
        authors' S networks).
      groups: equal groups of layers; the keypoint tokens after each are concatenated.
      head: hidden width of the head; 0 = one linear layer.
      dropout: in training, of hidden units and both branches.
      attention: `xla` or `cudnn`, see `attention.IMPLEMENTATIONS`.
      remat: recompute transformer layers in the backward pass (saves memory).
      dtype: compute type; parameters and statistics stay float32.
      folded: an inference copy, made by `models.fold` and never saved.
    """

    input_size: tuple[int, int] = (256, 192)
    trunk: str = "hrnet"
    trunk_width: int = 32
    patch: tuple[int, int] = (4, 3)
    width: int = 192
    heads: int = 8
    layers: int = 12
    mlp: int = 576
    scale: str = "head"
    groups: int = 1
    head: int = 384
    dropout: float = 0.0
    attention: str = "xla"
    remat: bool = False
    dtype: str = "float32"
    folded: bool = False

    def __post_init__(self):
        for field in ("input_size", "patch"):
            object.__setattr__(self, field, tuple(getattr(self, field)))
        check_attention(self)
        for field, known in (("trunk", TRUNKS), ("scale", SCALES)):
            value = getattr(self, field)
            if value not in known:
                raise ValueError(f"model.{field} is {value!r}; use one of {known}")
        if self.width % 4:
            raise ValueError(
                f"model.width={self.width}: the sine table needs a multiple of 4"
            )
        if self.groups < 1 or self.layers % self.groups:
            raise ValueError(
                f"model.layers={self.layers} does not split into "
                f"model.groups={self.groups}"
            )
        if self.head < 0 or self.trunk_width < 1:
            raise ValueError("model.head and model.trunk_width are widths")
        check_divisible(self.input_size, self.token_size)
        check_divisible(self.input_size, 16 if self.trunk == "hrnet" else 4)

    @property
    def token_size(self) -> tuple[int, int]:
        """(height, width) of a patch in pixels of the picture."""
        stride = 1 if self.trunk == "none" else 4
        return self.patch[0] * stride, self.patch[1] * stride


def folded_norms(config: TokenPoseConfig) -> dict[str, str]:
    """{normalisation: convolution before it}, neighbours by name; see `models.fold`."""
    pairs = {"none": dict, "stem": resnet.folded_norms, "hrnet": hrnet.folded_norms}
    return pairs[config.trunk]()


class KeypointHead(nn.Module):
    """Every keypoint token becomes one map: LN, linear, LN, linear (or LN, linear)."""

    hidden: int
    map_size: tuple[int, int]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b k c"], train: bool):
        x = layer_norm(EPSILON, self.dtype, "norm")(x)
        if self.hidden:
            x = dense(self.hidden, "hidden", self.dtype, train)(x)
            x = layer_norm(EPSILON, self.dtype, "hidden_norm")(x)
        height, width = self.map_size
        x = dense(height * width, "final", self.dtype, train)(x)
        return x.reshape(*x.shape[:2], height, width).transpose(0, 2, 3, 1)


class TokenPose(nn.Module):
    """See the module text. `images` are normalised pixels; heatmaps are at a quarter of the
    resolution, `[1, b, h / 4, w / 4, k]` float32.

    Raises:
      ValueError: pictures of another size than `config.input_size`.
    """

    config: TokenPoseConfig
    num_keypoints: int

    @property
    def keypoint_tokens(self) -> int:
        """Tokens in front of the patches that stand for keypoints, in their order."""
        return self.num_keypoints

    @nn.nowrap
    def token_grid(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """(rows, columns) of patches of a picture of (height, width) pixels."""
        height, width = self.config.token_size
        return image_size[0] // height, image_size[1] // width

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "b h w 3"],
        train: bool = False,
        edits: Edits | None = None,
    ) -> Outputs:
        c, taps = self.config, Taps(edits)
        check_images(images, c.input_size, c.token_size)
        dtype = jnp.dtype(c.dtype)
        x = self._patches(self._trunk(images.astype(dtype), train, taps))
        x = dense(c.width, "patches", dtype, train)(x)
        positions = sine_positions(self.token_grid(c.input_size), c.width)
        positions = jnp.asarray(positions, dtype)
        x = taps("patches", x + positions)
        k = self.num_keypoints
        table = self.param("keypoints", truncated_normal, (1, k, c.width))
        first = jnp.broadcast_to(table.astype(dtype), (len(x), k, c.width))
        read = self._layers(jnp.concatenate([first, x], 1), positions, train, taps)
        features = taps("features", jnp.concatenate(read, axis=-1))
        height, width = c.input_size
        head = KeypointHead(c.head, (height // 4, width // 4), dtype, name="head")
        maps = taps("stack0/heatmaps", head(features, train))
        return Outputs(heatmaps=maps[None].astype(jnp.float32), taps=taps.finish())

    def _layers(self, x, positions, train: bool, taps: Taps) -> list[Any]:
        """Keypoint tokens after every group."""
        c, k = self.config, self.num_keypoints
        block = rematerialised(PreNormBlock, c.remat)
        length = c.layers // c.groups
        again, read = jnp.pad(positions, ((k, 0), (0, 0))), []
        for i in range(c.layers):
            if i % length:
                x = x + again
            layer = block(
                c.width,
                c.heads,
                c.mlp,
                epsilon=EPSILON,
                scale=c.width**-0.5 if c.scale == "width" else None,
                bias=False,
                dropout=c.dropout,
                hidden_dropout=c.dropout,
                attention=c.attention,
                dtype=jnp.dtype(c.dtype),
                name=f"layer{i}",
            )
            x = run_layer(layer, x, f"layer{i}", taps, train)
            if i + 1 == c.layers:
                x = taps("tokens", x)
            if (i + 1) % length == 0:
                read.append(x[:, :k])
        return read

    def _patches(self, x):
        """`[b, n, rows * columns * channels]` of a map, row by row."""
        b, height, width, c = x.shape
        p, q = self.config.patch
        x = x.reshape(b, height // p, p, width // q, q, c).swapaxes(2, 3)
        return x.reshape(b, -1, p * q * c)

    def _trunk(self, x, train: bool, taps: Taps):
        c, dtype = self.config, jnp.dtype(self.config.dtype)
        if c.trunk == "none":
            return x
        if c.trunk == "stem":
            return hrnet.Stem(dtype, c.folded, name="trunk")(x, train, taps)
        trunk = hrnet.HRNet(dtype, c.folded, c.trunk_width, stages=3, name="trunk")
        return trunk(x, train, taps)[0]


MEMBERS: dict[str, dict[str, Any]] = {
    "tiny": dict(
        trunk="none", patch=(16, 16), width=32, heads=2, layers=2, mlp=64, head=16
    ),
    "t": dict(trunk="none", patch=(16, 12), heads=16),
    "s-v1": dict(trunk="stem", scale="width"),
    "s-v2": dict(trunk="stem", scale="width", patch=(2, 2)),
    "b": dict(),
    "l": dict(trunk_width=48, heads=12, layers=24, groups=3, head=0),
}
"""The published networks and a small one of ours (`tiny`)."""
