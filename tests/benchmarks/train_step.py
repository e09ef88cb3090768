"""Training step on the CPU, side by side with the same network in PyTorch channels-last.

    GLIBC_TUNABLES=glibc.malloc.hugetlb=1 python tests/benchmarks/train_step.py [--stacks=1]

Both start from the same weights on the same batch, so their losses must agree; each runs in
processes of its own, alternating, and the ratio is of the medians (> 1: pose_jax is faster).
Needs the extra `benchmark` (torch).
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

import numpy as np

EPSILON = 1e-3
ROOT = Path(__file__).resolve().parents[2]


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


def make_batch(a):
    generator = np.random.default_rng(0)
    return dict(
        image=generator.integers(0, 256, (a.batch, a.size, a.size, 3), np.uint8),
        keypoints=generator.uniform(0, a.size, (a.batch, 16, 2)).astype(np.float32),
        visible=np.full((a.batch, 16), 2, np.int32),
        weight=np.ones((a.batch, 16), np.float32),
        id=np.arange(a.batch, dtype=np.int32),
        mask=np.ones(a.batch, bool),
    )


def timed(step, steps):
    """(losses, milliseconds) of `steps` steps after a first one."""
    losses, times = [], []
    for _ in range(steps + 1):
        began = time.perf_counter()
        losses.append(float(step()))
        times.append((time.perf_counter() - began) * 1e3)
    return losses, times[1:]


def run_jax(a):
    sys.path.insert(0, str(ROOT))
    import jax
    import optax

    from pose_jax import config, models, sharding
    from pose_jax.heatmaps import Codec
    from pose_jax.models import NEWELL
    from pose_jax.pixels import ColourJitter, InputSpec
    from pose_jax.training import step as step_
    from pose_jax.training.objectives import heatmap
    from pose_jax.trees import flat_names

    c = config.default()
    section = dict(NEWELL, name="hourglass", stacks=a.stacks, features=a.features)
    spec = InputSpec((a.size, a.size), (0.0,) * 3, (1.0,) * 3)
    codec = Codec("unbiased", "quarter", 1.0)
    module = models.build(section, num_keypoints=16)
    objective = heatmap.make(c.objective, module, spec, codec, ColourJitter())
    # A large epsilon: gradients that are zero but for rounding (biases before a
    # normalisation) would otherwise move by their noise's sign, and losses drift apart.
    transform, schedule = optax.adam(1e-3, eps=EPSILON), optax.constant_schedule(1e-3)
    mesh = sharding.make_mesh()
    batch = make_batch(a)
    state, shardings = step_.create_state(
        step_.make_init(objective, transform, average=False),
        jax.random.key(0, impl="unsafe_rbg"),
        step_.example_batch(spec.size, 16),
        mesh,
        fsdp=False,
    )
    folder = Path(a.folder)
    arrays = {n: np.array(v) for n, v in flat_names(state.variables).items()}
    targets = np.asarray(objective.render(batch, (a.size // 4,) * 2))
    np.savez(folder / "start.npz", targets=targets, **arrays)
    step = step_.compile_step(
        step_.make_train_step(objective, transform, schedule, seed=0), shardings, mesh
    )
    placed = sharding.put_batch(batch, mesh)
    began = time.perf_counter()
    compiled = step.lower(state, placed).compile()
    seconds = time.perf_counter() - began

    def one():
        nonlocal state
        state, metrics = compiled(state, placed)
        return metrics["loss"]

    losses, times = timed(one, a.steps)
    return dict(
        losses=losses[:3], times=times, compile_s=seconds, version=jax.__version__
    )


def run_torch(a):
    import torch
    from torch_hourglass import Hourglass, load

    torch.set_num_threads(os.cpu_count() or 1)
    stored = dict(np.load(Path(a.folder) / "start.npz"))
    targets = torch.from_numpy(stored.pop("targets").transpose(0, 3, 1, 2)).contiguous()
    model = Hourglass(a.stacks, a.features, (64, 128, 128), 16)
    load(model, stored)
    model = model.to(memory_format=torch.channels_last).train()
    rule = torch.optim.Adam(model.parameters(), 1e-3, eps=EPSILON)
    images = torch.from_numpy(make_batch(a)["image"]).permute(0, 3, 1, 2)
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
    times: dict[str, list[float]] = {"jax": [], "torch": []}
    last = {}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(a.rounds):
            for name in ("jax", "torch"):
                python = sys.executable if name == "jax" else a.torch_python
                more = [*sys.argv[1:], f"--run={name}", f"--folder={folder}"]
                done = subprocess.run(
                    [python, __file__, *more], capture_output=True, text=True
                )
                if done.returncode:
                    sys.exit(done.stderr)
                last[name] = json.loads(done.stdout.strip().splitlines()[-1])
                times[name] += last[name]["times"]
    median = {name: float(np.median(values)) for name, values in times.items()}
    difference = np.abs(np.subtract(last["jax"]["losses"], last["torch"]["losses"]))
    print(
        json.dumps(
            {
                "network": f"{a.stacks} stack(s), {a.features} wide, {a.size} px",
                "batch": a.batch,
                "jax": last["jax"]["version"],
                "torch": last["torch"]["version"],
                "hugepages": "hugetlb" in os.environ.get("GLIBC_TUNABLES", ""),
                "jax_ms": {"min": min(times["jax"]), "median": median["jax"]},
                "torch_ms": {"min": min(times["torch"]), "median": median["torch"]},
                "ratio_median": median["torch"] / median["jax"],
                "ratio_min": min(times["torch"]) / min(times["jax"]),
                "compile_s": last["jax"]["compile_s"],
                "losses": {name: last[name]["losses"] for name in last},
                "largest_relative_loss_difference": float(
                    (difference / np.abs(last["torch"]["losses"])).max()
                ),
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
