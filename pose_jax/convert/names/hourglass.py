"""Hourglasses: two PyTorch ports of Newell's network, and mmpose's hourglass52.

| dialect | from | network |
|---|---|---|
| `princeton` | princeton-vl/pytorch_stacked_hourglass | `hourglass` with `NEWELL`'s stem |
| `bearpaw` | bearpaw/pytorch-pose | `hourglass` with stem (64, 128, 256) |
| `mmpose`, `mmpose 0.x` | open-mmlab/mmpose | `hourglass52` |
"""

from __future__ import annotations

from pose_jax.convert.layout import Dialect, Names
from pose_jax.convert.names.resnet import write_block
from pose_jax.models.hourglass import HourglassConfig
from pose_jax.models.hourglass52 import Hourglass52Config


def hourglass(config: HourglassConfig, num_keypoints: int) -> dict[str, Dialect]:
    """Tables of the two ports; none for variants that neither of them has."""
    ported = (
        config.shortcut == "identity" and not config.residual_after_upsample
        and config.head == 0 and config.autoencoder == "none"
        and config.skips == tuple(range(config.depth))
    )  # fmt: skip
    if not ported:
        return {}
    tables = {"bearpaw": _bearpaw(config)}
    if config.residuals == config.last_residuals == 1:
        tables["princeton"] = _princeton(config)
    return tables


def _positions(name: str, count: int) -> list[str]:
    """Names of the residuals at one position: a single one has no number."""
    return [name] if count == 1 else [f"{name}_{i}" for i in range(count)]


def _princeton(config: HourglassConfig) -> Dialect:
    names = Names()

    def residual(key: str, path: str, changes: bool = False) -> None:
        for i in (1, 2, 3):
            kind = "conv" if i == 2 else "conv1x1"
            names.norm(f"{key}.bn{i}", f"{path}/norm{i}")
            names.layer(f"{key}.conv{i}.conv", f"{path}/conv{i}", kind, bias=True)
        if changes:
            skip = f"{path}/shortcut"
            names.layer(f"{key}.skip_layer.conv", skip, "conv1x1", bias=True)
        else:  # Every residual owns one; it is used where the width changes.
            names.ignore(f"{key}.skip_layer.conv.{f}" for f in ("weight", "bias"))

    names.layer("pre.0.conv", "stem_conv", "conv", bias=True)
    names.norm("pre.0.bn", "stem_norm")
    widths = (*config.stem, config.features)
    for i, at in enumerate((1, 3, 4)):
        residual(f"pre.{at}", f"stem{i + 1}", widths[i] != widths[i + 1])
    for stack in range(config.stacks):
        name = f"stack{stack}"
        key = f"hgs.{stack}.0."
        for level in range(config.depth):
            residual(f"{key}up1", f"{name}_skip{level}")
            residual(f"{key}low1", f"{name}_encoder{level}")
            residual(f"{key}low3", f"{name}_decoder{level}")
            key += "low2."
        residual(key.rstrip("."), f"{name}_bottleneck")
        residual(f"features.{stack}.0", f"{name}_last")
        _write_end(
            names, stack, config.stacks, f"features.{stack}.1.conv",
            f"features.{stack}.1.bn", f"outs.{stack}.conv",
            f"merge_features.{stack}.conv.conv", f"merge_preds.{stack}.conv.conv",
        )  # fmt: skip
    return Dialect(names.table)


def _bearpaw(config: HourglassConfig) -> Dialect:
    names = Names()

    def residual(key: str, path: str, changes: bool = False) -> None:
        for i in (1, 2, 3):
            kind = "conv" if i == 2 else "conv1x1"
            names.norm(f"{key}.bn{i}", f"{path}/norm{i}")
            names.layer(f"{key}.conv{i}", f"{path}/conv{i}", kind, bias=True)
        if changes:
            names.layer(f"{key}.downsample.0", f"{path}/shortcut", "conv1x1", bias=True)

    def position(key: str, path: str, count: int) -> None:
        for i, name in enumerate(_positions(path, count)):
            residual(f"{key}.{i}", name)

    names.layer("conv1", "stem_conv", "conv", bias=True)
    names.norm("bn1", "stem_norm")
    widths = (*config.stem, config.features)
    for i in range(3):
        residual(f"layer{i + 1}.0", f"stem{i + 1}", widths[i] != widths[i + 1])
    for stack in range(config.stacks):
        name = f"stack{stack}"
        for level in range(config.depth):
            # The last entry of their list is the outermost level.
            key = f"hg.{stack}.hg.{config.depth - 1 - level}"
            for j, part in enumerate(("skip", "encoder", "decoder")):
                position(f"{key}.{j}", f"{name}_{part}{level}", config.residuals)
        count = config.residuals * config.bottleneck_residuals
        position(f"hg.{stack}.hg.0.3", f"{name}_bottleneck", count)
        position(f"res.{stack}", f"{name}_last", config.last_residuals)
        _write_end(
            names, stack, config.stacks, f"fc.{stack}.0", f"fc.{stack}.1",
            f"score.{stack}", f"fc_.{stack}", f"score_.{stack}",
        )  # fmt: skip
    return Dialect(names.table)


def _write_end(
    names: Names, stack: int, stacks: int, features: str, norm: str, maps: str,
    merge_features: str, merge_maps: str,
) -> None:  # fmt: skip
    """What follows an hourglass: features, heatmaps and the way to the next stack."""
    name = f"stack{stack}"
    layers = [(features, f"{name}_features"), (maps, f"{name}_heatmaps")]
    if stack + 1 < stacks:
        layers += [
            (merge_features, f"{name}_merge_features"),
            (merge_maps, f"{name}_merge_heatmaps"),
        ]
    for key, path in layers:
        names.layer(key, path, "conv1x1", bias=True)
    names.norm(norm, f"{name}_norm")


def hourglass52(config: Hourglass52Config, num_keypoints: int) -> dict[str, Dialect]:
    """mmpose's names; files of its first versions call the head `keypoint_head`."""
    names = Names()
    also: tuple[str, ...] = ()

    def normed(key: str, path: str, kind: str) -> None:
        names.layer(f"{key}.conv", path, kind)
        names.norm(f"{key}.bn", f"{path}_norm")

    def block(key: str, path: str, shortcut: bool = False) -> None:
        write_block(names, key, path, bottleneck=False, shortcut=shortcut)

    normed("backbone.stem.0", "stem_conv", "conv")
    block("backbone.stem.1.0", "stem_0", shortcut=True)
    widths = config.widths
    for stack in range(config.stacks):
        name, key = f"stack{stack}", f"backbone.hourglass_modules.{stack}."
        for level in range(config.depth):
            changes = widths[level] != widths[level + 1]
            for i in range(config.blocks):
                block(f"{key}up1.{i}", f"{name}_skip{level}_{i}")
                block(f"{key}low1.{i}", f"{name}_encoder{level}_{i}", shortcut=i == 0)
                last = i == config.blocks - 1
                block(f"{key}low3.{i}", f"{name}_decoder{level}_{i}", last and changes)
            key += "low2."
        for i in range(config.bottleneck_blocks):
            block(f"{key}{i}", f"{name}_bottleneck_{i}")
        normed(f"backbone.out_convs.{stack}", f"{name}_features", "conv")
        if stack + 1 < config.stacks:
            normed(f"backbone.conv1x1s.{stack}", f"{name}_merge_input", "conv1x1")
            normed(f"backbone.remap_convs.{stack}", f"{name}_merge_features", "conv1x1")
            block(f"backbone.inters.{stack}", f"{name}_merge_0")
        else:
            # Allocated for one stack more than there is.
            also = (rf"backbone\.inters\.{stack}\.",)
        head = f"head.multi_final_layers.{stack}"
        names.layer(head, f"{name}_heatmaps", "conv1x1", bias=True)
    whole = Dialect(names.table, also)
    return {
        "mmpose": whole,
        "mmpose 0.x": whole.renamed(
            lambda key: f"keypoint_{key}" if key.startswith("head.") else key
        ),
    }
