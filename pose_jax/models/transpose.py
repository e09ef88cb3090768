"""TransPose (Yang, Quan, Nie, Yang, ICCV 2021): convolutions, then a transformer encoder whose
attention says which places a keypoint was read from.

The encoder is DETR's: post-norm layers, ReLU, a sine table added to queries and keys in every
layer. The table is computed from `input_size`; the authors' files store it (196,608 numbers
of R-A3, R-A4 and H-S, 294,912 of H-A4), so their counts are larger by as much.

Taps: those of the trunk (`stem`, `layer1`, `layer2` of a ResNet; `stem`, `layer1`,
`stage{s}/branch{b}` of an HRNet; `stem{i}` of plain convolutions); `patches`, for layer `i`
`layer{i}/attention` `[b, a, n, n]` and `layer{i}/tokens` `[b, n, d]`, `tokens` (the last
layer's); `deconv{i}` except the last, `features`, `stack0/heatmaps`. Tokens run along the
rows of `token_grid`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from pose_jax.arrays import Array
from pose_jax.models import heads, hrnet, resnet
from pose_jax.models.attention import (
    MLP,
    Attention,
    check_attention,
    layer_norm,
    pytorch_kernel,
    rematerialised,
    run_layer,
)
from pose_jax.models.layers import NormRelu, conv
from pose_jax.models.outputs import Edit, Edits, Outputs, Taps
from pose_jax.models.sizes import check_divisible
from pose_jax.models.vit import check_images

TRUNKS = ("resnet", "hrnet", "conv")
EPSILON = 1e-5
_XAVIER = nn.initializers.glorot_uniform()
# The authors draw query, key and value as one [3 d, d] matrix, so its fans are 3 d and d.
_PACKED_XAVIER = nn.initializers.variance_scaling(0.5, "fan_avg", "uniform")


@dataclasses.dataclass(frozen=True)
class TransPoseConfig:
    """Defaults: TransPose-R-A4.

    Attributes:
      input_size: (height, width) of the pictures, which the sine table is made for.
      trunk: `resnet` (stages 1 and 2, stride 8), `hrnet` (to stage 3, top branch, stride 4)
        or `conv` (see `ConvStem`; ours).
      depth: of the ResNet. trunk_width: of its first stage or of HRNet's top branch.
      stem: widths of the `conv` trunk.
      width, heads, layers: of the transformer. mlp: hidden width of its MLPs.
      deconv: widths of the transposed convolutions of the head; may be empty.
      dropout: in training, of attention weights, hidden units and both branches.
      attention: `xla` or `cudnn`, see `attention.IMPLEMENTATIONS`.
      remat: recompute transformer layers in the backward pass (saves memory).
      dtype: compute type; parameters and statistics stay float32.
      folded: an inference copy, made by `models.fold` and never saved.
    """

    input_size: tuple[int, int] = (256, 192)
    trunk: str = "resnet"
    depth: int = 50
    trunk_width: int = 64
    stem: tuple[int, ...] = (32, 64, 128)
    width: int = 256
    heads: int = 8
    layers: int = 4
    mlp: int = 1024
    deconv: tuple[int, ...] = (256,)
    dropout: float = 0.1
    attention: str = "xla"
    remat: bool = False
    dtype: str = "float32"
    folded: bool = False

    def __post_init__(self):
        for field in ("input_size", "stem", "deconv"):
            object.__setattr__(self, field, tuple(getattr(self, field)))
        check_attention(self)
        if self.width % 4:
            raise ValueError(
                f"model.width={self.width}: the sine table needs a multiple of 4"
            )
        if self.trunk not in TRUNKS:
            raise ValueError(f"model.trunk is {self.trunk!r}; use one of {TRUNKS}")
        resnet.check_depth(self.depth)
        if not self.stem or min((*self.stem, *self.deconv, self.trunk_width)) < 1:
            raise ValueError(
                "model.stem, model.deconv and model.trunk_width hold positive widths"
            )
        check_divisible(self.input_size, self.multiple)

    @property
    def stride(self) -> int:
        """Pixels per token."""
        return {"resnet": 8, "hrnet": 4, "conv": 2 ** len(self.stem)}[self.trunk]

    @property
    def multiple(self) -> int:
        """Of picture sides. HRNet's lowest branch of stage 3 has stride 16."""
        return 16 if self.trunk == "hrnet" else self.stride


def folded_norms(config: TransPoseConfig) -> dict[str, str]:
    """{normalisation: convolution before it}, neighbours by name; see `models.fold`."""
    if config.trunk == "hrnet":
        pairs = hrnet.folded_norms()
    elif config.trunk == "conv":
        count = range(1, max(len(config.stem), 2) + 1)
        pairs = {f"norm{i}": f"conv{i}" for i in count}
    else:
        pairs = resnet.folded_norms()
    return pairs | heads.folded_norms(len(config.deconv))


def sine_positions(grid: tuple[int, int], width: int) -> Float[np.ndarray, "n width"]:
    """DETR's two-dimensional sine table (Carion et al., ECCV 2020), row by row.

    The first half of the channels codes the row, the second the column; sine and cosine
    alternate, temperature 10,000; rows and columns count from 1 and are scaled to 2 pi.

    Args:
      grid: (rows, columns). width: a multiple of 4.
    """
    half = width // 2
    period = 10_000.0 ** (2 * (np.arange(half) // 2) / half)

    def code(count: int) -> np.ndarray:
        at = np.arange(1, count + 1) / (count + 1e-6) * 2 * np.pi
        angle = at[:, None] / period
        return np.where(np.arange(half) % 2, np.cos(angle), np.sin(angle))

    rows, columns = grid
    table = np.concatenate(
        [np.repeat(code(rows), columns, 0), np.tile(code(columns), (rows, 1))], axis=1
    )
    return table.astype(np.float32)


class ConvStem(nn.Module):
    """Per width a 3x3 convolution of stride 2 with BN and ReLU and, but for the first, a
    basic residual block. Convolutions before a transformer: Xiao et al., NeurIPS 2021.

    Taps: `stem{i}`.
    """

    widths: tuple[int, ...]
    dtype: Any = jnp.float32
    folded: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool, taps: Taps):
        for i, width in enumerate(self.widths):
            layer = conv(
                width,
                3,
                f"conv{i + 1}",
                self.dtype,
                strides=2,
                bias=self.folded,
                train=train,
            )
            norm = NormRelu(self.dtype, folded=self.folded, name=f"norm{i + 1}")
            x = norm(layer(x), train=train)
            if i:
                block = resnet.BasicBlock(
                    width, 1, self.dtype, self.folded, name=f"block{i + 1}"
                )
                x = block(x, train)
            x = taps(f"stem{i}", x)
        return x


class PostNormBlock(nn.Module):
    """norm(x + attention), then norm(x + mlp); queries and keys carry the positions."""

    config: TransPoseConfig

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b n c"],
        train: bool,
        edit: Edit | None,
        positions: Float[Array, "n c"],
    ):
        """(tokens, attention weights)."""
        c, dtype = self.config, jnp.dtype(self.config.dtype)

        def dropped(y):
            return nn.Dropout(c.dropout, deterministic=not train)(y)

        attention = Attention(
            c.width,
            c.heads,
            dropout=c.dropout,
            implementation=c.attention,
            dtype=dtype,
            kernel_init=_PACKED_XAVIER,
            output_init=_XAVIER,
            name="attention",
        )
        placed = x + positions.astype(dtype)
        h, weights = attention(placed, placed, x, train, edit)
        x = layer_norm(EPSILON, dtype, "attention_norm")(x + dropped(h))
        mlp = MLP(
            c.width,
            c.mlp,
            "relu",
            hidden_dropout=c.dropout,
            dtype=dtype,
            kernel_init=_XAVIER,
            pytorch_biases=True,
            name="mlp",
        )
        h = dropped(mlp(x, train))
        return layer_norm(EPSILON, dtype, "mlp_norm")(x + h), weights


class TransPose(nn.Module):
    """See the module text. `images` are normalised pixels; heatmaps are
    `[1, b, h / 4, w / 4, k]` float32 in the published members.

    Raises:
      ValueError: pictures of another size than `config.input_size`.
    """

    config: TransPoseConfig
    num_keypoints: int

    keypoint_tokens = 0
    """Tokens in front of the patches that stand for keypoints."""

    @nn.nowrap
    def token_grid(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """(rows, columns) of tokens of a picture of (height, width) pixels."""
        stride = self.config.stride
        return image_size[0] // stride, image_size[1] // stride

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "b h w 3"],
        train: bool = False,
        edits: Edits | None = None,
    ) -> Outputs:
        c, taps = self.config, Taps(edits)
        dtype = jnp.dtype(c.dtype)
        check_images(images, c.input_size, (c.multiple, c.multiple))
        x = self._trunk(images.astype(dtype), train, taps)
        init = heads.FINAL_INIT if c.trunk == "hrnet" else pytorch_kernel
        reduce = nn.Dense(
            c.width, use_bias=False, dtype=dtype, kernel_init=init, name="reduce"
        )
        grid = self.token_grid(c.input_size)
        x = taps("patches", reduce(x).reshape(len(x), -1, c.width))
        positions = jnp.asarray(sine_positions(grid, c.width))
        block = rematerialised(PostNormBlock, c.remat)
        for i in range(c.layers):
            layer = block(c, name=f"layer{i}")
            x = run_layer(layer, x, f"layer{i}", taps, train, positions)
        x = taps("tokens", x).reshape(len(x), *grid, c.width)
        if not c.deconv:
            x = taps("features", x)
        head = heads.DeconvHead(
            self.num_keypoints, c.deconv, dtype, c.folded, name="head"
        )
        maps = taps("stack0/heatmaps", head(x, train, taps))
        return Outputs(heatmaps=maps[None].astype(jnp.float32), taps=taps.finish())

    def _trunk(self, x, train: bool, taps: Taps):
        c, dtype = self.config, jnp.dtype(self.config.dtype)
        if c.trunk == "conv":
            return ConvStem(c.stem, dtype, c.folded, name="trunk")(x, train, taps)
        if c.trunk == "hrnet":
            trunk = hrnet.HRNet(dtype, c.folded, c.trunk_width, stages=3, name="trunk")
            return trunk(x, train, taps)[0]
        trunk = resnet.ResNet(c.depth, 2, c.trunk_width, dtype, c.folded, name="trunk")
        return trunk(x, train, taps)[-1]


_H: dict[str, Any] = dict(trunk="hrnet", heads=1, deconv=())
MEMBERS: dict[str, dict[str, Any]] = {
    "tiny": dict(
        trunk="conv", stem=(16, 32), width=32, heads=2, layers=2, mlp=64, deconv=()
    ),
    "small": dict(
        trunk="conv", width=96, heads=4, layers=4, mlp=384, deconv=(96,), dropout=0.0
    ),
    "r-a3": dict(layers=3),
    "r-a4": dict(layers=4),
    "h-s": dict(**_H, trunk_width=32, width=64, layers=4, mlp=128),
    "h-a4": dict(**_H, trunk_width=48, width=96, layers=4, mlp=192),
    "h-a6": dict(**_H, trunk_width=48, width=96, layers=6, mlp=192),
}
"""The published networks and two small ones of ours (`tiny`, `small`)."""
