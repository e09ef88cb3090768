"""ViTPose (Xu, Zhang, Zhang, Tao, NeurIPS 2022): a plain vision transformer and a small head.

Two heads: `classic`, two transposed convolutions (4x4, stride 2, BN, ReLU) and 1x1; `simple`,
ReLU, bilinear upsampling by four and 3x3.

Taps: `patches`, for layer `i` `layer{i}/attention` `[b, a, n, n]` and `layer{i}/tokens`
`[b, n, d]`, `tokens` (normalised, what the head reads); of the head `deconv0` (`classic`),
`features`, `stack0/heatmaps`. Tokens run along the rows of `token_grid`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from pose_jax.arrays import Array
from pose_jax.models import heads, vit
from pose_jax.models.attention import check_attention
from pose_jax.models.outputs import Edits, Outputs, Taps
from pose_jax.models.rectifier import rectify
from pose_jax.models.sizes import check_divisible

HEADS = ("classic", "simple")


@dataclasses.dataclass(frozen=True)
class ViTPoseConfig:
    """Defaults: ViTPose-B with the classic head.

    Attributes:
      input_size: (height, width) of the pictures, which the position table is made for.
      patch: side of a patch, pixels.
      width, heads, layers: of the transformer. mlp: hidden width of its MLPs.
      head: see the module text. deconv: widths of the classic head.
      dropout: of attention and MLP outputs. drop_path: of the last layer, growing linearly
        from 0 in the first. Both in training.
      attention: `xla` or `cudnn`, see `attention.IMPLEMENTATIONS`.
      remat: recompute layers in the backward pass (saves memory).
      dtype: compute type; parameters and statistics stay float32.
      folded: an inference copy, made by `models.fold` and never saved.
    """

    input_size: tuple[int, int] = (256, 192)
    patch: int = 16
    width: int = 768
    heads: int = 12
    layers: int = 12
    mlp: int = 3072
    head: str = "classic"
    deconv: tuple[int, ...] = (256, 256)
    dropout: float = 0.0
    drop_path: float = 0.0
    attention: str = "xla"
    remat: bool = False
    dtype: str = "float32"
    folded: bool = False

    def __post_init__(self):
        object.__setattr__(self, "input_size", tuple(self.input_size))
        object.__setattr__(self, "deconv", tuple(self.deconv))
        check_attention(self)
        check_divisible(self.input_size, self.patch)
        if self.head not in HEADS:
            raise ValueError(f"model.head is {self.head!r}; use {' or '.join(HEADS)}")
        if not self.deconv or min(self.deconv) < 1:
            raise ValueError(f"model.deconv={self.deconv}: positive widths are needed")


def folded_norms(config: ViTPoseConfig) -> dict[str, str]:
    """{normalisation: convolution before it}, neighbours by name; see `models.fold`."""
    return heads.folded_norms(len(config.deconv)) if config.head == "classic" else {}


class SimpleHead(nn.Module):
    """ReLU, bilinear upsampling by four, 3x3: `[b, 4 y, 4 x, k]`. Tap: `features`."""

    num_keypoints: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b y x c"], train: bool, taps: Taps):
        b, height, width, c = x.shape
        size = b, 4 * height, 4 * width, c
        # Half-pixel centres: PyTorch's bilinear with align_corners=False.
        x = taps("features", jax.image.resize(rectify(x), size, "bilinear"))
        return nn.Conv(
            self.num_keypoints,
            (3, 3),
            padding=((1, 1), (1, 1)),
            dtype=self.dtype,
            kernel_init=heads.FINAL_INIT,
            name="final",
        )(x)


class ViTPose(nn.Module):
    """See the module text. `images` are normalised pixels; heatmaps are at a quarter of the
    resolution (with patches of 16 and two deconvolutions), `[1, b, h / 4, w / 4, k]` float32.

    Raises:
      ValueError: pictures of another size than `config.input_size`.
    """

    config: ViTPoseConfig
    num_keypoints: int

    keypoint_tokens = 0
    """Tokens in front of the patches that stand for keypoints."""
    patch_offset = vit.PATCH_OFFSET
    """Pixels by which the first patch begins outside of the picture."""

    @nn.nowrap
    def token_grid(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """(rows, columns) of patches of a picture of (height, width) pixels."""
        patch = self.config.patch
        return image_size[0] // patch, image_size[1] // patch

    @property
    def num_layers(self) -> int:
        """Of the transformer, for layer-wise learning rate decay."""
        return self.config.layers

    @nn.nowrap
    def layer_index(self, path: str) -> int:
        """0 for patches and positions, i + 1 for layer i, `num_layers + 1` for the rest.

        Args:
          path: of a parameter, `encoder/layer3/mlp/hidden/kernel`.
        """
        inside = path.startswith("encoder/")
        layers = self.config.layers
        return vit.layer_index(path, layers) if inside else layers + 1

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "b h w 3"],
        train: bool = False,
        edits: Edits | None = None,
    ) -> Outputs:
        c, taps = self.config, Taps(edits)
        dtype = jnp.dtype(c.dtype)
        encoder = vit.ViT(
            c.input_size,
            c.patch,
            c.width,
            c.heads,
            c.layers,
            c.mlp,
            c.dropout,
            c.drop_path,
            c.attention,
            c.remat,
            dtype,
            name="encoder",
        )
        tokens = encoder(images, train, taps)
        x = tokens.reshape(len(tokens), *self.token_grid(c.input_size), c.width)
        if c.head == "simple":
            head = SimpleHead(self.num_keypoints, dtype, name="head")
        else:
            head = heads.DeconvHead(
                self.num_keypoints, c.deconv, dtype, c.folded, name="head"
            )
        maps = taps("stack0/heatmaps", head(x, train, taps))
        return Outputs(heatmaps=maps[None].astype(jnp.float32), taps=taps.finish())


SIZES: dict[str, dict[str, Any]] = {
    "tiny": dict(width=96, heads=3, layers=4, mlp=384, deconv=(64, 64)),
    "s": dict(width=384, heads=12, layers=12, mlp=1536),
    "b": dict(width=768, heads=12, layers=12, mlp=3072),
    "l": dict(width=1024, heads=16, layers=24, mlp=4096),
    "h": dict(width=1280, heads=16, layers=32, mlp=5120),
}
"""Published widths and depths, and a small one of ours (`tiny`)."""
