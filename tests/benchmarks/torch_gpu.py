"""Training steps of PyTorch on a GPU: autocast bf16, eager and compiled; channels last
where there are convolutions. Without a GPU the same on the CPU, to try it."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch_families
from compiled_step import ROOT
from torch_hourglass import Hourglass

sys.path.insert(0, str(ROOT))


def rival_rows(
    names: Sequence[str], batches: Sequence[int], tiny: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """A row per network, batch and mode; `names` of `pose_jax.list_models()`."""
    from pose_jax.models import zoo

    members = {member.name: member for member in zoo.list_models()}
    for batch in batches:
        for name in names:
            member = members[name]
            known = _hourglass(name) or member.section["name"] in torch_families.RIVALS
            for mode in ("eager", "compiled") if known else ():
                torch.compiler.reset()
                rate = _rate(member, batch, tiny, compiled=mode == "compiled")
                yield dict(network=name, torch=mode, batch=batch, images_per_s=rate)


def _hourglass(name: str) -> bool:
    """Whether it is one of Newell's, which the twin in PyTorch makes."""
    return name.removeprefix("hourglass-").isdigit()


def _make(member, tiny: dict[str, Any]) -> torch.nn.Module:
    if _hourglass(member.name):
        stacks = member.section["stacks"]
        return Hourglass(stacks, 256, (64, 128, 128), member.num_keypoints)
    more = tiny if member.name.startswith("vitpose") else {}
    section = {**member.section, **more}
    return torch_families.build(section, member.num_keypoints)


def _rate(
    member, batch: int, tiny: dict[str, Any], *, compiled: bool, repeats: int = 10
) -> float:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    repeats, warm = (repeats, 3) if device == "cuda" else (2, 1)
    model = _make(member, tiny).to(device)
    model = model.to(memory_format=torch.channels_last).train()
    rule = torch.optim.Adam(model.parameters(), 1e-4, fused=True)
    run = torch.compile(model) if compiled else model
    height, width = member.input_size
    images = torch.rand(batch, 3, height, width, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    maps = batch, member.num_keypoints, height // 4, width // 4
    targets = torch.rand(*maps, device=device)
    times = []
    for _ in range(repeats + warm):
        _wait(device)
        began = time.perf_counter()
        rule.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16):
            made = run(images)
            stacks = made if isinstance(made, list) else [made]
            loss = sum(((m - targets) ** 2).mean() for m in stacks)
        loss.backward()
        rule.step()
        _wait(device)
        times.append(time.perf_counter() - began)
    return batch / float(np.median(times[warm:]))


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
