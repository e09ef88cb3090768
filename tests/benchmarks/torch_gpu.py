"""The hourglass in PyTorch on a GPU: channels last, autocast bf16, eager and compiled."""

from __future__ import annotations

import time

import numpy as np
import torch
from torch_hourglass import Hourglass


def rival_rows(batches, stacks=(2,)):
    """A row per network, batch and mode."""
    for count in stacks:
        for batch in batches:
            for mode in ("eager", "compiled"):
                yield dict(
                    network=f"hourglass-{count} (PyTorch {mode})",
                    batch=batch,
                    images_per_s=_rate(count, batch, compiled=mode == "compiled"),
                )


def _rate(stacks: int, batch: int, *, compiled: bool, repeats: int = 10) -> float:
    model = Hourglass(stacks, 256, (64, 128, 128), 16).cuda()
    model = model.to(memory_format=torch.channels_last).train()
    rule = torch.optim.Adam(model.parameters(), 1e-4, fused=True)
    run = torch.compile(model) if compiled else model
    images = torch.rand(batch, 3, 256, 256, device="cuda")
    images = images.contiguous(memory_format=torch.channels_last)
    targets = torch.rand(batch, 16, 64, 64, device="cuda")
    times = []
    for _ in range(repeats + 3):
        torch.cuda.synchronize()
        began = time.perf_counter()
        rule.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16):
            loss = sum(((m - targets) ** 2).mean() for m in run(images))
        loss.backward()
        rule.step()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return batch / float(np.median(times[3:]))
