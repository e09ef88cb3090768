"""Newell's hourglass in PyTorch, channels last: the rival of `train_step.py`.

Module names equal those of `pose_jax.models.hourglass`, so that weights move by name.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


class Residual(nn.Module):
    def __init__(self, inputs: int, features: int):
        super().__init__()
        half = features // 2
        self.norm1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, half, 1)
        self.norm2, self.conv2 = (
            nn.BatchNorm2d(half),
            nn.Conv2d(half, half, 3, padding=1),
        )
        self.norm3, self.conv3 = nn.BatchNorm2d(half), nn.Conv2d(half, features, 1)
        self.shortcut = nn.Conv2d(inputs, features, 1) if inputs != features else None

    def forward(self, x):
        h = self.conv1(F.relu(self.norm1(x), inplace=True))
        h = self.conv2(F.relu(self.norm2(h), inplace=True))
        h = self.conv3(F.relu(self.norm3(h), inplace=True))
        return h + (x if self.shortcut is None else self.shortcut(x))


class Hourglass(nn.Module):
    def __init__(self, stacks: int, features: int, stem, num_keypoints: int, depth=4):
        super().__init__()
        self.stacks, self.depth = stacks, depth
        a, b, c = stem
        self.stem_conv = nn.Conv2d(3, a, 7, stride=2, padding=3)
        self.stem_norm = nn.BatchNorm2d(a)
        self.stem1, self.stem2 = Residual(a, b), Residual(b, c)
        self.stem3 = Residual(c, features)
        for s in range(stacks):
            for level in range(depth):
                for part in ("skip", "encoder", "decoder"):
                    block = Residual(features, features)
                    setattr(self, f"stack{s}_{part}{level}", block)
            setattr(self, f"stack{s}_bottleneck", Residual(features, features))
            setattr(self, f"stack{s}_last", Residual(features, features))
            setattr(self, f"stack{s}_features", nn.Conv2d(features, features, 1))
            setattr(self, f"stack{s}_norm", nn.BatchNorm2d(features))
            setattr(self, f"stack{s}_heatmaps", nn.Conv2d(features, num_keypoints, 1))
            if s + 1 < stacks:
                merge = nn.Conv2d(features, features, 1)
                setattr(self, f"stack{s}_merge_features", merge)
                merge = nn.Conv2d(num_keypoints, features, 1)
                setattr(self, f"stack{s}_merge_heatmaps", merge)

    def part(self, stack: int, name: str):
        return getattr(self, f"stack{stack}_{name}")

    def forward(self, x):
        x = F.relu(self.stem_norm(self.stem_conv(x)), inplace=True)
        x = self.stem3(self.stem2(F.max_pool2d(self.stem1(x), 2)))
        maps = []
        for s in range(self.stacks):
            skips, y = [], x
            for level in range(self.depth):
                skips.append(self.part(s, f"skip{level}")(y))
                y = self.part(s, f"encoder{level}")(F.max_pool2d(y, 2))
            y = self.part(s, "bottleneck")(y)
            for level in reversed(range(self.depth)):
                y = self.part(s, f"decoder{level}")(y)
                y = F.interpolate(y, scale_factor=2, mode="nearest") + skips[level]
            y = self.part(s, "features")(self.part(s, "last")(y))
            y = F.relu(self.part(s, "norm")(y), inplace=True)
            maps.append(self.part(s, "heatmaps")(y))
            if s + 1 < self.stacks:
                x = x + self.part(s, "merge_features")(y)
                x = x + self.part(s, "merge_heatmaps")(maps[-1])
        return maps


def load(model: Hourglass, arrays: dict[str, np.ndarray]) -> None:
    """Flax arrays by name (`params/stem1/conv2/kernel`) -> the PyTorch module."""
    state = {}
    for name, value in arrays.items():
        _, *path, kind = name.split("/")
        if kind == "kernel":
            value = value[None, None] if value.ndim == 2 else value
            value, kind = value.transpose(3, 2, 0, 1), "weight"
        kind = {"scale": "weight", "mean": "running_mean", "var": "running_var"}.get(
            kind, kind
        )
        state[".".join([*path, kind])] = torch.from_numpy(np.ascontiguousarray(value))
    missing, unexpected = model.load_state_dict(state, strict=False)
    missing = [m for m in missing if not m.endswith("num_batches_tracked")]
    assert not missing and not unexpected, (missing, unexpected)
