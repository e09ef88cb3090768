"""High-resolution networks: the authors' names, which mmpose and the trunks of others share."""

from __future__ import annotations

from pose_jax.convert.layout import Dialect, Names
from pose_jax.convert.names.resnet import write_block
from pose_jax.models.hrnet import MODULES, HRNetConfig


def write_stem(names: Names, key: str, path: str, blocks: int = 4) -> None:
    """Two strided convolutions and the bottlenecks; `key` ends in a dot or is empty."""
    for i in (1, 2):
        names.layer(f"{key}conv{i}", f"{path}/conv{i}", "conv")
        names.norm(f"{key}bn{i}", f"{path}/norm{i}")
    for i in range(blocks):
        write_block(
            names, f"{key}layer1.{i}", f"{path}/layer1_{i}", bottleneck=True,
            shortcut=i == 0,
        )  # fmt: skip


def write_trunk(names: Names, key: str, path: str, stages: int = 4) -> None:
    """Everything up to stage `stages`, whose last module keeps its top branch."""
    write_stem(names, key, f"{path}/stem")
    for stage in range(2, stages + 1):
        _write_transition(names, key, path, stage)
        for module in range(MODULES[stage]):
            last = stage == stages and module == MODULES[stage] - 1
            _write_module(
                names, f"{key}stage{stage}.{module}", f"{path}/stage{stage}_{module}",
                branches=stage, top_only=last,
            )  # fmt: skip


def _write_normed(names: Names, key: str, path: str, kind: str = "conv") -> None:
    names.layer(f"{key}.0", path, kind)
    names.norm(f"{key}.1", f"{path}_norm")


def _write_transition(names: Names, key: str, path: str, stage: int) -> None:
    number = stage - 1
    place = f"{path}/transition{number}"
    if number == 1:
        _write_normed(names, f"{key}transition1.0", f"{place}_0")
    # The new branch is a chain of one strided convolution, hence the second number.
    _write_normed(names, f"{key}transition{number}.{number}.0", f"{place}_{number}")


def _write_module(
    names: Names, key: str, path: str, *, branches: int, top_only: bool
) -> None:
    for b in range(branches):
        for n in range(4):
            write_block(
                names, f"{key}.branches.{b}.{n}", f"{path}/branch{b}_{n}",
                bottleneck=False, shortcut=False,
            )  # fmt: skip
    for i in range(1 if top_only else branches):
        for j in range(branches):
            fuse, place = f"{key}.fuse_layers.{i}.{j}", f"{path}/fuse{i}_{j}"
            if j > i:
                _write_normed(names, fuse, place, "conv1x1")
            for n in range(i - j):
                _write_normed(names, f"{fuse}.{n}", f"{place}_{n}")


def hrnet(config: HRNetConfig, num_keypoints: int) -> dict[str, Dialect]:
    """`hrnet` (leoxiaobin/deep-high-resolution-net.pytorch), `mmpose` and `mmpose 0.x`, and
    `imagenet`, the authors' classifiers (a backbone only)."""
    names = Names()
    write_trunk(names, "", "trunk")
    names.layer("final_layer", "final", "conv1x1", bias=True)
    whole = Dialect(names.table)

    def mmpose(head: str) -> Dialect:
        return whole.renamed(
            lambda key: f"{head}{key}" if key.startswith("final") else f"backbone.{key}"
        )

    return {
        "hrnet": whole,
        "mmpose": mmpose("head."),
        "mmpose 0.x": mmpose("keypoint_head."),
        "imagenet": imagenet(),
    }


def imagenet(stages: int = 4) -> Dialect:
    """The authors' classifiers, as a trunk up to `stages`."""
    names = Names()
    write_trunk(names, "", "trunk", stages)
    also = (*_CLASSIFIER, rf"stage{stages}\.\d\.fuse_layers\.[123]\.")
    for later in range(stages + 1, 5):
        also += (rf"stage{later}\.", rf"transition{later - 1}\.")
    return Dialect(names.table, also, backbone=True)


_CLASSIFIER = (
    r"incre_modules\.", r"downsamp_modules\.", r"final_layer\.", r"classifier\.",
)  # fmt: skip
"""What an ImageNet network has behind the trunk, whose last module fuses all branches."""
