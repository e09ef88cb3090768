"""ViTPose and the plain vision transformer.

| dialect | from |
|---|---|
| `vitpose` | ViTAE-Transformer/ViTPose (timm's names under `backbone.`) |
| `mmpose` | mmpose 1.x; its position table has no slot in front |
| `huggingface` | transformers' VitPoseForPoseEstimation |
| `mae` | facebookresearch/mae and timm classifiers; a backbone only |
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pose_jax.convert.layout import Dialect, Names, Place
from pose_jax.models.vitpose import ViTPoseConfig


class _Style(NamedTuple):
    """How a code base calls things; `{i}` is the layer."""

    positions: str
    patches: str
    layer: str
    norms: tuple[str, str]
    attention: tuple[str, ...]
    output: str
    mlp: tuple[str, str]
    last: str
    positions_rule: str = "same"


_TIMM = _Style(
    "pos_embed", "patch_embed.proj", "blocks.{i}.", ("norm1", "norm2"), ("attn.qkv",),
    "attn.proj", ("mlp.fc1", "mlp.fc2"), "last_norm",
)  # fmt: skip
_MMPOSE = _Style(
    "pos_embed", "patch_embed.projection", "layers.{i}.", ("ln1", "ln2"), ("attn.qkv",),
    "attn.proj", ("ffn.layers.0.0", "ffn.layers.1"), "ln1", "positions",
)  # fmt: skip
_HUGGINGFACE = _Style(
    "embeddings.position_embeddings", "embeddings.patch_embeddings.projection",
    "encoder.layer.{i}.", ("layernorm_before", "layernorm_after"),
    tuple(f"attention.attention.{name}" for name in ("query", "key", "value")),
    "attention.output.dense", ("mlp.fc1", "mlp.fc2"), "layernorm",
)  # fmt: skip
QUERY_KEY_VALUE = ("query", "key", "value")


def _write_encoder(
    names: Names, key: str, style: _Style, layers: int, path: str = "encoder"
) -> None:
    names.put(
        f"{key}{style.positions}",
        Place(f"params/{path}/positions", style.positions_rule),
    )
    names.layer(f"{key}{style.patches}", f"{path}/patches", "conv", bias=True)
    for i in range(layers):
        prefix, place = key + style.layer.format(i=i), f"{path}/layer{i}"
        for part, norm in zip(("attention", "mlp"), style.norms):
            names.layer_norm(f"{prefix}{norm}", f"{place}/{part}_norm")
        write_projections(names, prefix, style.attention, f"{place}/attention")
        names.layer(
            f"{prefix}{style.output}", f"{place}/attention/output", "linear", bias=True
        )
        for layer, name in zip(style.mlp, ("hidden", "output")):
            names.layer(f"{prefix}{layer}", f"{place}/mlp/{name}", "linear", bias=True)
    names.layer_norm(f"{key}{style.last}", f"{path}/norm")


def write_projections(
    names: Names, key: str, layers: Sequence[str], path: str, *, bias: bool = True
) -> None:
    """Query, key and value, packed in one layer or apart."""
    paths = [f"{path}/{name}" for name in QUERY_KEY_VALUE]
    if len(layers) == 1:
        names.split(f"{key}{layers[0]}.", paths, "linear", bias=bias)
        return
    for layer, place in zip(layers, paths):
        names.layer(f"{key}{layer}", place, "linear", bias=bias)


def _write_head(names: Names, config: ViTPoseConfig, style: str) -> None:
    theirs = style == "huggingface"
    count = len(config.deconv) if config.head == "classic" else 0
    key = "keypoint_head." if style == "vitpose" else "head."
    for i in range(count):
        deconv = f"deconv{i + 1}" if theirs else f"deconv_layers.{3 * i}"
        norm = f"batchnorm{i + 1}" if theirs else f"deconv_layers.{3 * i + 1}"
        names.layer(f"{key}{deconv}", f"head/deconv{i}", "deconv")
        names.norm(f"{key}{norm}", f"head/deconv{i}_norm")
    names.layer(
        f"{key}{'conv' if theirs else 'final_layer'}", "head/final",
        "conv1x1" if count else "conv", bias=True,
    )  # fmt: skip


def vitpose(config: ViTPoseConfig, num_keypoints: int) -> dict[str, Dialect]:
    """See the module text."""
    tables = {}
    styles = {"vitpose": _TIMM, "mmpose": _MMPOSE, "huggingface": _HUGGINGFACE}
    for name, style in styles.items():
        names = Names()
        _write_encoder(names, "backbone.", style, config.layers)
        _write_head(names, config, name)
        tables[name] = Dialect(names.table)
    names = Names()
    _write_encoder(names, "", _TIMM._replace(last="norm"), config.layers)
    left = (
        r"cls_token", r"mask_token", r"decoder_", r"head\.", r"fc_norm\.", r"head_drop",
    )  # fmt: skip
    tables["mae"] = Dialect(names.table, left, backbone=True)
    return tables
