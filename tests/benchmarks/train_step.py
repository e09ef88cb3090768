"""Training step on the CPU, side by side with the same network in PyTorch channels-last.

    source launch/environment.sh; python tests/benchmarks/train_step.py [--stacks=1]

Both start from the same weights on the same batch, so their losses must agree; each runs in
processes of its own, taking turns, and the ratio is of the medians (> 1: pose_jax is faster).
PyTorch runs twice: with the memory settings of the launch scripts, which help it too, and as
everybody runs it, without. Needs the extra `benchmark` (torch).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from compiled_step import compile_step

EPSILON = 1e-3
SIDES = ("jax", "torch", "torch_plain")


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--stacks", type=int, default=1)
    parser.add_argument("--features", type=int, default=256)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--run", choices=("jax", "torch"))
    parser.add_argument("--folder")
    parser.add_argument(
        "--torch_python", default=sys.executable, help="its interpreter"
    )
    return parser.parse_args()


def timed(step, steps):
    """(losses, milliseconds) of `steps` steps after a first one."""
    losses, times = [], []
    for _ in range(steps + 1):
        began = time.perf_counter()
        losses.append(float(step()))
        times.append((time.perf_counter() - began) * 1e3)
    return losses, times[1:]


def run_jax(a):
    import jax
    import optax

    from pose_jax.models import NEWELL
    from pose_jax.pixels import InputSpec
    from pose_jax.trees import flat_names

    section = dict(NEWELL, name="hourglass", stacks=a.stacks, features=a.features)
    spec = InputSpec((a.size, a.size), (0.0,) * 3, (1.0,) * 3)
    # A large epsilon: gradients that are zero but for rounding (biases before a
    # normalisation) would otherwise move by their noise's sign, and losses drift apart.
    adam = optax.adam(1e-3, eps=EPSILON)
    made = compile_step(section, spec, 16, a.batch, adam, 1e-3)
    state = made.state
    arrays = {n: np.array(v) for n, v in flat_names(state.variables).items()}
    targets = np.asarray(made.objective.render(made.batch, (a.size // 4,) * 2))
    images = np.asarray(made.batch["image"])
    np.savez(Path(a.folder) / "start.npz", images=images, targets=targets, **arrays)

    def one():
        nonlocal state
        state, metrics = made.step(state, made.batch)
        return metrics["loss"]

    losses, times = timed(one, a.steps)
    return dict(
        losses=losses[:3], times=times, compile_s=made.seconds, version=jax.__version__
    )


def run_torch(a):
    import torch
    from torch_hourglass import Hourglass, load

    torch.set_num_threads(os.cpu_count() or 1)
    stored = dict(np.load(Path(a.folder) / "start.npz"))
    images = torch.from_numpy(stored.pop("images")).permute(0, 3, 1, 2)
    targets = torch.from_numpy(stored.pop("targets")).permute(0, 3, 1, 2)
    model = Hourglass(a.stacks, a.features, (64, 128, 128), 16)
    load(model, stored)
    model = model.to(memory_format=torch.channels_last).train()
    rule = torch.optim.Adam(model.parameters(), 1e-3, eps=EPSILON)
    images = images.contiguous(memory_format=torch.channels_last)
    targets = targets.contiguous(memory_format=torch.channels_last)

    def one():
        rule.zero_grad(set_to_none=True)
        maps = model(images.float() / 255)
        # Per-map mean, summed over stacks, as in the papers.
        loss = sum(((m - targets) ** 2).mean() for m in maps)
        loss.backward()
        rule.step()
        return loss.item()

    losses, times = timed(one, a.steps)
    return dict(losses=losses[:3], times=times, version=torch.__version__)


def main():
    a = arguments()
    if a.run:
        result = run_jax(a) if a.run == "jax" else run_torch(a)
        print(json.dumps(result))
        return
    times: dict[str, list[float]] = {side: [] for side in SIDES}
    last: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(a.rounds):
            for side in SIDES:
                last[side] = child(a, side, folder)
                times[side] += last[side]["times"]
    median = {side: float(np.median(values)) for side, values in times.items()}
    ours, theirs = last["jax"]["losses"], last["torch"]["losses"]
    report = {
        "network": f"{a.stacks} stack(s), {a.features} wide, {a.size} px",
        "batch": a.batch,
        "jax": last["jax"]["version"],
        "torch": last["torch"]["version"],
        "glibc_tunables": os.environ.get("GLIBC_TUNABLES", ""),
        "milliseconds": {
            side: {"min": min(times[side]), "median": median[side]} for side in SIDES
        },
        "ratio_same_settings": median["torch"] / median["jax"],
        "ratio_plain_torch": median["torch_plain"] / median["jax"],
        "compile_s": last["jax"]["compile_s"],
        "losses": {"jax": ours, "torch": theirs},
        "largest_relative_loss_difference": float(
            np.max(np.abs(np.subtract(ours, theirs)) / np.abs(theirs))
        ),
    }
    print(json.dumps(report, indent=1))


def child(a, side: str, folder: str) -> dict[str, Any]:
    """One side in a process of its own."""
    python = sys.executable if side == "jax" else a.torch_python
    environment = dict(os.environ)
    if side == "torch_plain":
        environment.pop("GLIBC_TUNABLES", None)
    run = "jax" if side == "jax" else "torch"
    done = subprocess.run(
        [python, __file__, *sys.argv[1:], f"--run={run}", f"--folder={folder}"],
        capture_output=True, text=True, env=environment,
    )  # fmt: skip
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.strip().splitlines()[-1])


if __name__ == "__main__":
    main()
