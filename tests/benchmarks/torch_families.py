"""SimpleBaseline, HRNet and ViTPose in PyTorch: the rivals of `families.py`, for timing.

Modules are named as in the authors' code, so that `pose_jax.convert` moves the weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

BLOCKS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
FORMATS = {"channels_last": torch.channels_last, "nchw": torch.contiguous_format}


def conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)


class Block(nn.Module):
    """A bottleneck or a basic block."""

    def __init__(self, inputs: int, width: int, stride: int, bottleneck: bool):
        super().__init__()
        outputs = 4 * width if bottleneck else width
        if bottleneck:
            self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
            self.conv2 = conv3x3(width, width, stride)
            self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
            self.bn3 = nn.BatchNorm2d(outputs)
        else:
            self.conv1, self.conv2 = (
                conv3x3(inputs, width, stride),
                conv3x3(width, width),
            )
        self.bn1, self.bn2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.downsample, self.bottleneck = None, bottleneck
        if stride > 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False),
                nn.BatchNorm2d(outputs),
            )

    def forward(self, x):
        h = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)), inplace=True)))
        if self.bottleneck:
            h = self.bn3(self.conv3(F.relu(h, inplace=True)))
        h += x if self.downsample is None else self.downsample(x)
        return F.relu(h, inplace=True)


def deconvolutions(inputs: int, widths: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in widths:
        layers += [
            nn.ConvTranspose2d(inputs, width, 4, 2, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        ]
        inputs = width
    return nn.Sequential(*layers)


class SimpleBaseline(nn.Module):
    def __init__(self, num_keypoints: int, depth=50, width=64, deconv=(256, 256, 256)):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        inputs, bottleneck = width, depth >= 50
        for stage, count in enumerate(BLOCKS[depth]):
            blocks, wide = [], width * 2**stage
            for number in range(count):
                stride = 2 if stage and not number else 1
                blocks.append(Block(inputs, wide, stride, bottleneck))
                inputs = 4 * wide if bottleneck else wide
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.deconv_layers = deconvolutions(inputs, deconv)
        self.final_layer = nn.Conv2d(deconv[-1], num_keypoints, 1)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = F.max_pool2d(x, 3, 2, 1)
        for stage in range(1, 5):
            x = getattr(self, f"layer{stage}")(x)
        return self.final_layer(self.deconv_layers(x))


def normed(inputs: int, outputs: int, stride: int, size: int, relu: bool):
    conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)
    layers = [conv, nn.BatchNorm2d(outputs)]
    return nn.Sequential(*layers, *([nn.ReLU(inplace=True)] if relu else []))


class Exchange(nn.Module):
    """Four basic blocks per branch, then sums at every resolution."""

    def __init__(self, widths: Sequence[int], outputs: int):
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(*(Block(w, w, 1, False) for _ in range(4))) for w in widths
        )
        self.fuse_layers = nn.ModuleList(
            nn.ModuleList(self._bring(widths, j, i) for j in range(len(widths)))
            for i in range(outputs)
        )

    def _bring(self, widths, source: int, target: int) -> nn.Module:
        if source == target:
            return nn.Identity()
        if source > target:
            layers = normed(widths[source], widths[target], 1, 1, relu=False)
            times = 2 ** (source - target)
            return layers.append(nn.Upsample(scale_factor=times, mode="nearest"))
        steps = target - source
        return nn.Sequential(
            *(
                normed(
                    widths[source],
                    widths[target if n == steps - 1 else source],
                    2, 3, relu=n < steps - 1,
                )
                for n in range(steps)
            )
        )  # fmt: skip

    def forward(self, xs):
        xs = [branch(x) for branch, x in zip(self.branches, xs)]
        fused = []
        for i, layers in enumerate(self.fuse_layers):
            y = xs[i]
            for j, layer in enumerate(layers):
                y = y if j == i else y + layer(xs[j])
            fused.append(F.relu(y, inplace=len(xs) > 1))
        return fused


class HRNet(nn.Module):
    def __init__(self, num_keypoints: int, width=32, stem=64):
        super().__init__()
        self.conv1, self.bn1 = conv3x3(3, stem, 2), nn.BatchNorm2d(stem)
        self.conv2, self.bn2 = conv3x3(stem, stem, 2), nn.BatchNorm2d(stem)
        blocks = [Block(stem if not n else 4 * stem, stem, 1, True) for n in range(4)]
        self.layer1 = nn.Sequential(*blocks)
        widths = [width * 2**b for b in range(4)]
        self.transition1 = nn.ModuleList(
            [normed(4 * stem, width, 1, 3, True), self._lower(4 * stem, widths[1])]
        )
        for stage, modules in ((2, 1), (3, 4), (4, 3)):
            if stage > 2:
                new = self._lower(widths[stage - 2], widths[stage - 1])
                others = [nn.Identity() for _ in range(stage - 1)]
                setattr(self, f"transition{stage - 1}", nn.ModuleList([*others, new]))
            outputs = [stage] * modules
            if stage == 4:
                outputs[-1] = 1
            parts = (Exchange(widths[:stage], n) for n in outputs)
            setattr(self, f"stage{stage}", nn.Sequential(*parts))
        self.final_layer = nn.Conv2d(width, num_keypoints, 1)

    def _lower(self, inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(normed(inputs, outputs, 2, 3, True))

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = F.relu(self.bn2(self.conv2(x)), inplace=True)
        x = self.layer1(x)
        xs = self.stage2([layer(x) for layer in self.transition1])
        xs = self.stage3([*xs, self.transition2[-1](xs[-1])])
        xs = self.stage4([*xs, self.transition3[-1](xs[-1])])
        return self.final_layer(xs[0])


class Attention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        b, n, c = x.shape
        parts = self.qkv(x).reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(*parts)
        return self.proj(x.transpose(1, 2).reshape(b, n, c))


class MLP(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


class Layer(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, 1e-6), nn.LayerNorm(width, 1e-6)
        self.attn, self.mlp = Attention(width, heads), MLP(width, hidden)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    def __init__(self, input_size, patch, width, heads, layers, mlp):
        super().__init__()
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, width, patch, patch, 2)
        self.grid = tuple(side // patch for side in input_size)
        rows = self.grid[0] * self.grid[1] + 1
        self.pos_embed = nn.Parameter(torch.zeros(1, rows, width))
        parts = (Layer(width, heads, mlp) for _ in range(layers))
        self.blocks = nn.Sequential(*parts)
        self.last_norm = nn.LayerNorm(width, 1e-6)

    def forward(self, x):
        x = self.patch_embed.proj(x).flatten(2).transpose(1, 2)
        x = x + self.pos_embed[:, 1:] + self.pos_embed[:, :1]
        x = self.last_norm(self.blocks(x))
        return x.transpose(1, 2).unflatten(2, self.grid)


class ViTPose(nn.Module):
    """With the classic head; `torch.compile` may be put around it."""

    def __init__(
        self, num_keypoints: int, width=768, heads=12, layers=12, mlp=3072,
        input_size=(256, 192), patch=16, deconv=(256, 256),
    ):  # fmt: skip
        super().__init__()
        self.backbone = ViT(input_size, patch, width, heads, layers, mlp)
        self.keypoint_head = nn.Module()
        self.keypoint_head.deconv_layers = deconvolutions(width, deconv)
        self.keypoint_head.final_layer = nn.Conv2d(deconv[-1], num_keypoints, 1)

    def forward(self, x):
        head = self.keypoint_head
        return head.final_layer(head.deconv_layers(self.backbone(x)))


class Transformers(nn.Module):
    """ViTPose as the transformers library has it, with its SDPA attention."""

    def __init__(
        self, num_keypoints: int, width=768, heads=12, layers=12, mlp=3072,
        input_size=(256, 192), patch=16, deconv=(256, 256),
    ):  # fmt: skip
        super().__init__()
        import transformers

        if tuple(deconv) != (256, 256):
            raise ValueError("transformers' head has two deconvolutions of 256")
        backbone = transformers.VitPoseBackboneConfig(
            image_size=list(input_size), patch_size=[patch, patch], hidden_size=width,
            num_hidden_layers=layers, num_attention_heads=heads, mlp_ratio=mlp // width,
            out_indices=[layers],
        )  # fmt: skip
        config = transformers.VitPoseConfig(
            backbone_config=backbone, num_labels=num_keypoints, use_simple_decoder=False
        )
        self.model: Any = transformers.VitPoseForPoseEstimation(config)

    def forward(self, x):
        return self.model(x).heatmaps


RIVALS = {
    "simple_baseline": {"plain": (SimpleBaseline, "msra")},
    "hrnet": {"plain": (HRNet, "hrnet")},
    "vitpose": {
        "plain": (ViTPose, "vitpose"),
        "transformers": (Transformers, "huggingface"),
    },
}
"""model.name -> implementation -> (class, dialect of `pose_jax.convert`)."""


def build(section: Mapping[str, Any], num_keypoints: int, implementation="plain"):
    """The network of a `config.model` section."""
    made, _ = RIVALS[section["name"]][implementation]
    fields = {k: v for k, v in section.items() if k not in ("name", "head")}
    return made(num_keypoints, **fields)


def load(model: nn.Module, arrays: Mapping[str, Any]) -> None:
    """Every array has its place; counters of batches have none."""
    inner: Any = getattr(model, "model", model)
    state = {name: torch.from_numpy(array) for name, array in arrays.items()}
    missing, unexpected = inner.load_state_dict(state, strict=False)
    missing = [m for m in missing if not m.endswith("num_batches_tracked")]
    assert not missing and not unexpected, (missing, unexpected)


def candidates(section: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(implementation, memory format, dialect) to choose the fastest from."""
    for name, (_, dialect) in RIVALS[section["name"]].items():
        for form in FORMATS:
            yield name, form, dialect
