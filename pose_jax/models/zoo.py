"""The published members of the families, with the figures their authors print."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from pose_jax import models
from pose_jax.models import tokenpose, transpose, vitpose
from pose_jax.models.hourglass import NEWELL, THESIS


@dataclasses.dataclass(frozen=True)
class Member:
    """One published network.

    Attributes:
      name: how it is called here.
      section: its `config.model`.
      num_keypoints, input_size: as published; (height, width) in pixels.
      parameters: trained numbers; normalisation statistics are not counted.
      gflops: 2 x multiply-adds of one forward pass of one crop, in 10^9.
      published: figures with their protocol.
      weights: where trained weights are, or an empty text.
    """

    name: str
    section: Mapping[str, Any]
    num_keypoints: int
    input_size: tuple[int, int]
    parameters: int
    gflops: float
    published: str
    weights: str = ""

    @property
    def taps(self) -> tuple[str, ...]:
        """Names of the intermediates that can be read and edited."""
        module = models.build(self.section, num_keypoints=self.num_keypoints)
        images = jnp.zeros((1, *self.input_size, 3))
        variables = jax.eval_shape(module.init, jax.random.key(0), images)
        outputs: Any = jax.eval_shape(module.apply, variables, images)
        return tuple(outputs.taps)


_MOBILE = "edvardHua/PoseEstimationForMobile, release/{}/model.tflite (Apache-2.0)"
_COCO = "COCO val2017, 256x192, flip test, detected boxes (AP 56.4): AP {}"
_MSRA = "microsoft/human-pose-estimation.pytorch; mmpose"
_VITPOSE = "ViTAE-Transformer/ViTPose; mmpose; huggingface usyd-community"


def _hourglass(
    name: str, stem, stacks: int, parameters: int, gflops: float, *more: str
):
    section = {"name": "hourglass", "features": 256, "stem": stem, "stacks": stacks}
    return Member(name, section, 16, (256, 256), parameters, gflops, *more)


def _coco(name: str, section: Mapping[str, Any], parameters: int, gflops: float, *more):
    return Member(name, section, 17, (256, 192), parameters, gflops, *more)


def _simple_baseline(depth: int, parameters: int, gflops: float, ap: str = ""):
    section = dict(name="simple_baseline", depth=depth)
    more = (_COCO.format(ap), _MSRA) if ap else ("",)
    return _coco(f"simple-baseline-{depth}", section, parameters, gflops, *more)


def _vitpose(size: str, head: str, parameters: int, gflops: float, ap: str = ""):
    section = dict(name="vitpose", **vitpose.SIZES[size], head=head)
    name = f"vitpose-{size}" + ("-simple" if head == "simple" else "")
    return _coco(
        name, section, parameters, gflops, _COCO.format(ap) if ap else "", _VITPOSE
    )


def _transpose(member: str, parameters: int, gflops: float, ap: str):
    section = dict(name="transpose", **transpose.MEMBERS[member])
    published = f"{_COCO.format(ap)}; the authors store a sine table besides"
    weights = "yangsenius/TransPose" if member != "h-a6" else ""
    return _coco(f"transpose-{member}", section, parameters, gflops, published, weights)


def _tokenpose(member: str, parameters: int, gflops: float, ap: str):
    section = dict(name="tokenpose", **tokenpose.MEMBERS[member])
    published = f"{_COCO.format(ap)}; the authors store a sine table besides"
    name = f"tokenpose-{member}"
    return _coco(name, section, parameters, gflops, published, "leeyegy/TokenPose")


MEMBERS: tuple[Member, ...] = (
    _hourglass("hourglass-1", NEWELL["stem"], 1, 3_426_448, 10.3, ""),
    _hourglass(
        "hourglass-2", NEWELL["stem"], 2, 6_570_400, 16.7,
        "MPII val 87.4 (paper's ablation, PCKh@0.5); 88.3 (PyTorch port, its own script)",
        "princeton-vl/pytorch_stacked_hourglass",
    ),
    _hourglass(
        "hourglass-8", NEWELL["stem"], 8, 25_434_112, 54.9,
        "MPII val 88.1 (paper), 90.2 (PyTorch port, its own script); test elbow 91.2, "
        "wrist 87.1",
        "princeton-vl/pytorch_stacked_hourglass",
    ),
    _hourglass(
        "hourglass-1-bearpaw", (64, 128, 256), 1, 3_586_960, 11.6, "", "bearpaw/pytorch-pose",
    ),
    _hourglass(
        "hourglass-2-bearpaw", (64, 128, 256), 2, 6_730_912, 18.0,
        "MPII val 86.95 (PCKh@0.5, plain mean of joints)", "bearpaw/pytorch-pose",
    ),
    _hourglass(
        "hourglass-8-bearpaw", (64, 128, 256), 8, 25_594_624, 56.2,
        "MPII val 88.78 (PCKh@0.5, plain mean of joints)", "bearpaw/pytorch-pose",
    ),
    Member(
        "hourglass-thesis", {"name": "hourglass", **THESIS, "features": 256}, 17,
        (256, 256), 14_526_053, 60.5,
        "COCO 2017 crops, heatmap PCK (3.2 of 64 cells, macro): val .433, test .441",
    ),
    Member(
        "hourglass52", dict(name="hourglass52"), 17, (256, 256), 93_667_217, 57.2,
        "COCO val2017, 256x256, flip test, detected boxes (AP 56.4): AP 72.6; the file stores "
        "an unused block of 1,180,672 besides",
        "mmpose (hourglass52)",
    ),
    Member(
        "mobile-hourglass", dict(name="mobile_hourglass"), 14, (192, 192),
        401_316, 0.56,
        "AI Challenger test PCKh 91.81 (author)",
        _MOBILE.format("hourglass_model"),
    ),
    Member(
        "mobile-pose-machine", dict(name="mobile_pose_machine"), 14, (192, 192),
        564_100, 0.57,
        "AI Challenger test PCKh 93.78 (author)",
        _MOBILE.format("cpm_model"),
    ),
    _simple_baseline(18, 15_376_721, 5.8),
    _simple_baseline(34, 25_484_881, 9.4),
    _simple_baseline(50, 33_999_697, 10.9, "70.4"),
    _simple_baseline(101, 52_991_825, 18.1, "71.4"),
    _simple_baseline(152, 68_635_473, 25.4, "72.0"),
    _coco(
        "hrnet-w32", dict(name="hrnet", width=32), 28_536_113, 15.3,
        _COCO.format("74.4"), "leoxiaobin/deep-high-resolution-net.pytorch; mmpose",
    ),
    _coco(
        "hrnet-w48", dict(name="hrnet", width=48), 63_595_745, 31.4,
        _COCO.format("75.1"), "leoxiaobin/deep-high-resolution-net.pytorch; mmpose",
    ),
    _vitpose("s", "classic", 24_290_577, 11.2, "73.8"),
    _vitpose("s", "simple", 21_722_513, 9.3, "73.5"),
    _vitpose("b", "classic", 89_994_513, 37.1, "75.8"),
    _vitpose("b", "simple", 85_912_337, 35.0, "75.5"),
    _vitpose("l", "classic", 308_544_785, 123.1, "78.3"),
    _vitpose("l", "simple", 303_453_201, 121.0, "78.2"),
    _vitpose("h", "classic", 637_208_849, 251.7, "79.1"),
    _vitpose("h", "simple", 631_107_857, 249.3, "78.9"),
    _transpose("r-a3", 4_998_737, 10.8, "71.7"),
    _transpose("r-a4", 5_788_497, 12.6, "72.6"),
    _transpose("h-s", 7_822_673, 19.9, "74.2"),
    _transpose("h-a4", 17_011_217, 34.4, "75.3"),
    _transpose("h-a6", 17_160_785, 42.6, "75.8"),
    _tokenpose("t", 5_816_448, 3.2, "65.6"),
    _tokenpose("s-v1", 6_620_736, 5.5, "72.5"),
    _tokenpose("s-v2", 6_227_520, 15.0, "73.5"),
    _tokenpose("b", 13_465_216, 12.6, "74.7"),
    _tokenpose("l", 27_482_400, 24.4, "75.8"),
    _coco(
        "regression-50", dict(name="regression"), 23_577_698, 8.0, _COCO.format("54.1"),
    ),
    _coco(
        "regression-50-rle", dict(name="regression", likelihood="rle"), 23_701_148, 8.0,
        f"{_COCO.format('70.6')}; 123,384 of the parameters serve training alone",
    ),
    Member(
        "deeppose", dict(name="deeppose"), 14, (220, 220), 112_175_264, 68.0,
        "the paper: about 40 M parameters per stage, here 37.4 M; our layout of the layers "
        "that it leaves open",
    ),
    Member(
        "ief", dict(name="ief"), 16, (224, 224), 23_623_776, 37.7,
        "MPII val PCKh 81.0 with GoogLeNet and a search over scales; ours has a ResNet-50",
    ),
)  # fmt: skip


def list_models() -> tuple[Member, ...]:
    """A record per published network; `models.build(member.section, ...)` makes it."""
    return MEMBERS


def describe() -> str:
    """The members as a table of text, and the taps of every family."""
    lines = [
        f"{'name':22}{'model.name':20}{'input':>9}{'parameters':>13}{'GFLOPs':>8}  published"
    ]
    for m in MEMBERS:
        size = f"{m.input_size[0]}x{m.input_size[1]}"
        lines.append(
            f"{m.name:22}{m.section['name']:20}{size:>9}{m.parameters:>13,}{m.gflops:>8.1f}"
            f"  {m.published or '-'}"
        )
    lines.append(
        "\ntaps (stacks, levels and layers counted from 0; {i} stands for them all):"
    )
    seen: dict[str, dict[str, None]] = {}
    for m in _smallest():
        names = seen.setdefault(m.section["name"], {})
        names |= dict.fromkeys(re.sub(r"\d+", "{i}", tap) for tap in m.taps)
    lines += [f"{family:20} {', '.join(taps)}" for family, taps in seen.items()]
    return "\n".join(lines)


def _smallest() -> list[Member]:
    """The smallest member of every structure: the others differ in numbers, not in the names
    of their taps, and the largest take seconds to trace."""
    kinds: dict[Any, Member] = {}
    for m in MEMBERS:
        words = {k: v for k, v in m.section.items() if isinstance(v, str | bool)}
        kind = (*sorted(words.items()), *sorted(m.section))
        if kind not in kinds or m.gflops < kinds[kind].gflops:
            kinds[kind] = m
    return list(kinds.values())
