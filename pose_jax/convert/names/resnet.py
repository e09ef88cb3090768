"""Residual trunks and SimpleBaseline: torchvision's names, which MSRA, timm and mmpose share.

| dialect | from |
|---|---|
| `msra` | microsoft/human-pose-estimation.pytorch |
| `mmpose` | mmpose 1.x: `backbone.` and `head.`; files of 0.x say `keypoint_head.` |
| `torchvision` | a classifier of torchvision or timm; a backbone only |
| `huggingface`, `huggingface classifier` | transformers' ResNetModel and ResNetForImageClassification; a backbone only |
"""  # noqa: E501

from __future__ import annotations

from pose_jax.convert.layout import Dialect, Names
from pose_jax.models.resnet import BLOCKS
from pose_jax.models.simple_baseline import SimpleBaselineConfig


def write_trunk(names: Names, key: str, path: str, depth: int, stages: int = 4) -> None:
    """Stem and stages of a ResNet; `key` ends in a dot or is empty."""
    names.layer(f"{key}conv1", f"{path}/conv1", "conv")
    names.norm(f"{key}bn1", f"{path}/norm1")
    for stage in range(stages):
        for block in range(BLOCKS[depth][stage]):
            write_block(
                names, f"{key}layer{stage + 1}.{block}", f"{path}/layer{stage + 1}_{block}",
                bottleneck=depth >= 50,
                shortcut=not block and (stage > 0 or depth >= 50),
            )  # fmt: skip


def write_block(
    names: Names, key: str, path: str, *, bottleneck: bool, shortcut: bool
) -> None:
    """A basic block or a bottleneck."""
    kinds = ("conv1x1", "conv", "conv1x1") if bottleneck else ("conv", "conv")
    for i, kind in enumerate(kinds, 1):
        names.layer(f"{key}.conv{i}", f"{path}/conv{i}", kind)
        names.norm(f"{key}.bn{i}", f"{path}/norm{i}")
    if shortcut:
        names.layer(f"{key}.downsample.0", f"{path}/shortcut", "conv1x1")
        names.norm(f"{key}.downsample.1", f"{path}/shortcut_norm")


def write_deconv_head(names: Names, key: str, path: str, layers: int) -> None:
    """Transposed convolutions and the last 1x1; `key` ends in a dot or is empty."""
    for i in range(layers):
        names.layer(f"{key}deconv_layers.{3 * i}", f"{path}/deconv{i}", "deconv")
        names.norm(f"{key}deconv_layers.{3 * i + 1}", f"{path}/deconv{i}_norm")
    names.layer(f"{key}final_layer", f"{path}/final", "conv1x1", bias=True)


def simple_baseline(
    config: SimpleBaselineConfig, num_keypoints: int
) -> dict[str, Dialect]:
    """See the module text."""

    def dialect(trunk: str, head: str) -> Dialect:
        names = Names()
        write_trunk(names, trunk, "trunk", config.depth)
        write_deconv_head(names, head, "head", len(config.deconv))
        return Dialect(names.table)

    return {
        "msra": dialect("", ""),
        "mmpose": dialect("backbone.", "head."),
        "mmpose 0.x": dialect("backbone.", "keypoint_head."),
        **trunks(config.depth),
    }


def trunks(depth: int, path: str = "trunk", stages: int = 4) -> dict[str, Dialect]:
    """Backbones alone, by dialect."""
    names = Names()
    write_trunk(names, "", path, depth, stages)
    # A classifier's last layer and stages that this trunk does not have are left behind.
    also = (r"fc\.", *(rf"layer{n}\." for n in range(stages + 1, 5)))
    theirs = tuple(rf"encoder\.stages\.{n - 1}\." for n in range(stages + 1, 5))
    torchvision = Dialect(names.table, also, backbone=True)
    plain = torchvision.renamed(_huggingface).table
    prefixed = {f"resnet.{key}": places for key, places in plain.items()}
    behind = (r"classifier\.", *(rf"resnet\.{pattern}" for pattern in theirs))
    return {
        "torchvision": torchvision,
        "huggingface": Dialect(plain, theirs, backbone=True),
        "huggingface classifier": Dialect(prefixed, behind, backbone=True),
    }


def _huggingface(key: str) -> str:
    """torchvision's key -> transformers'."""
    for ours, theirs in (
        ("conv1.", "embedder.embedder.convolution."),
        ("bn1.", "embedder.embedder.normalization."),
    ):
        if key.startswith(ours):
            return f"{theirs}{key.removeprefix(ours)}"
    layer, block, rest = key.split(".", 2)
    stem = f"encoder.stages.{int(layer[5:]) - 1}.layers.{block}"
    for ours, theirs in (
        ("downsample.0.", "shortcut.convolution."),
        ("downsample.1.", "shortcut.normalization."),
    ):
        if rest.startswith(ours):
            return f"{stem}.{theirs}{rest.removeprefix(ours)}"
    name, field = rest.split(".", 1)
    kind = "convolution" if name.startswith("conv") else "normalization"
    return f"{stem}.layer.{int(name[-1]) - 1}.{kind}.{field}"
