"""SimpleBaseline-50, HRNet-W32 and ViTPose-B on the CPU, side by side with PyTorch.

    source launch/environment.sh; python tests/benchmarks/families.py [--batch=8]
        [--networks=vitpose-b,simple-baseline-50,hrnet-w32] [--rounds=3] [--steps=4]

Forward pass (evaluation) and training step (Adam) at 256x192, float32. Both sides start from
the same weights on the same batch, so that heatmaps and first losses must agree; each runs in
processes of its own, taking turns, and ratios are of the medians (> 1: pose_jax is faster).
PyTorch runs in the fastest of its implementations and memory formats, found in its first
round, with the memory settings of the launch scripts and (`torch_plain`) without. `folded` is
our forward pass as `Estimator` runs it, normalisations folded. Needs torch; transformers where
it is to compete. `--tiny` shrinks the networks, to try the script; `--cpu_time` compares the
processor time of one core, which other work on the machine disturbs less.
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

EPSILON = 1e-3  # See train_step.py.
SIDES = ("jax", "torch", "torch_plain")
KEYPOINTS = 17
TINY = {
    "vitpose-b": dict(width=96, heads=3, layers=2, mlp=384),
    "simple-baseline-50": dict(width=8),
    "hrnet-w32": dict(width=8, stem=16),
}


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--networks", default=",".join(TINY))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--cpu_time", action="store_true")
    parser.add_argument("--run", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--network", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.cpu_time:
        a.threads = 1
    return a


def section_of(name: str, tiny: bool) -> dict[str, Any]:
    from pose_jax.models import zoo

    (found,) = (m for m in zoo.list_models() if m.name == name)
    return {**found.section, **(TINY[name] if tiny else {})}


def timed(a, call) -> tuple[list[Any], list[float]]:
    """(results, milliseconds) of `a.steps` calls after a first one."""
    clock = time.process_time if a.cpu_time else time.perf_counter
    results, times = [], []
    for _ in range(a.steps + 1):
        began = clock()
        results.append(call())
        times.append((clock() - began) * 1e3)
    return results, times[1:]


def run_jax(a) -> dict[str, Any]:
    import jax
    import optax

    from pose_jax import models
    from pose_jax.convert import layout, matching
    from pose_jax.pixels import InputSpec
    from pose_jax.trees import flat_names

    section = section_of(a.network, a.tiny)
    spec = InputSpec((256, 192), (0.0,) * 3, (1.0,) * 3)
    adam = optax.adam(1e-3, eps=EPSILON)
    made = compile_step(section, spec, KEYPOINTS, a.batch, adam, 1e-3)
    state = made.state
    arrays = {n: np.array(v) for n, v in flat_names(state.variables).items()}
    stored = Path(a.folder) / f"{a.network}.npz"
    if not stored.exists():
        tables = matching.dialects(section, KEYPOINTS)
        start = {
            f"{dialect}/{name}": array
            for dialect in ("msra", "hrnet", "vitpose", "huggingface")
            if dialect in tables and not tables[dialect].backbone
            for name, array in layout.to_torch(tables[dialect], arrays).items()
        }
        targets = made.objective.render(made.batch, (64, 48))
        images = np.asarray(made.batch["image"])
        np.savez(stored, images=images, targets=np.asarray(targets), **start)
    module = models.build(section, num_keypoints=KEYPOINTS)
    variables = jax.tree.map(np.array, state.variables)
    pair = {"plain": (module, variables), "folded": models.fold(module, variables)}
    found: dict[str, Any] = {"version": jax.__version__, "compile_s": made.seconds}
    for name, (network, weights) in pair.items():
        weights = jax.device_put(weights)

        @jax.jit
        def forward(weights, images, network=network):
            return network.apply(weights, images.astype(np.float32) / 255).heatmaps[0]

        maps, times = timed(
            a,
            lambda run=forward, weights=weights: np.asarray(
                run(weights, made.batch["image"])
            ),
        )
        found["forward" if name == "plain" else "folded"] = times
        if name == "plain":
            np.save(Path(a.folder) / f"{a.network}-maps.npy", maps[-1])

    def one():
        nonlocal state
        state, metrics = made.step(state, made.batch)
        return float(metrics["loss"])

    found["losses"], found["step"] = timed(a, one)
    return found


def run_torch(a) -> dict[str, Any]:
    """The candidates that were asked for, else all with the fastest of both chosen."""
    import torch
    import torch_families

    torch.set_num_threads(a.threads)
    section = section_of(a.network, a.tiny)
    chosen = Path(a.folder) / f"{a.network}-{a.run}-chosen.json"
    asked = json.loads(chosen.read_text()) if chosen.exists() else None
    tried: dict[str, Any] = {}
    for name, form, dialect in torch_families.candidates(section):
        key = f"{name}, {form}"
        parts = [
            what for what in ("forward", "step") if not asked or asked[what] == key
        ]
        if not parts:
            continue
        try:
            model = torch_families.build(section, KEYPOINTS, name)
        except ImportError:
            continue
        tried[key] = time_torch(a, model, torch_families.FORMATS[form], dialect, parts)
    best: dict[str, Any] = {"version": torch.__version__}
    pick = {
        what: min(
            (k for k in tried if what in tried[k]),
            key=lambda k: float(np.median(tried[k][what])),
        )
        for what in ("forward", "step")
    }
    chosen.write_text(json.dumps(pick))
    medians = {
        k: {w: float(np.median(t[w])) for w in ("forward", "step") if w in t}
        for k, t in tried.items()
    }
    best |= {what: tried[key][what] for what, key in pick.items()}
    step = tried[pick["step"]]
    return best | {
        "chosen": pick,
        "tried": medians,
        "losses": step["losses"],
        "difference": tried[pick["forward"]]["difference"],
    }


def time_torch(a, model, form, dialect: str, parts) -> dict[str, Any]:
    import torch
    import torch_families

    stored = dict(np.load(Path(a.folder) / f"{a.network}.npz"))
    images = torch.from_numpy(stored.pop("images")).permute(0, 3, 1, 2)
    targets = torch.from_numpy(stored.pop("targets")).permute(0, 3, 1, 2)
    images = images.contiguous(memory_format=form)
    targets = targets.contiguous(memory_format=form)
    prefix = f"{dialect}/"
    weights = {
        k.removeprefix(prefix): v for k, v in stored.items() if k.startswith(prefix)
    }
    torch_families.load(model, weights)
    model = model.to(memory_format=form)
    found: dict[str, Any] = {}

    def forward():
        with torch.inference_mode():
            return model(images.float() / 255)

    if "forward" in parts:
        model.eval()
        maps, found["forward"] = timed(a, forward)
        ours = np.load(Path(a.folder) / f"{a.network}-maps.npy")
        theirs = maps[-1].permute(0, 2, 3, 1).numpy()
        found["difference"] = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
    if "step" not in parts:
        return found
    model.train()
    rule = torch.optim.Adam(model.parameters(), 1e-3, eps=EPSILON, fused=True)

    def one():
        rule.zero_grad(set_to_none=True)
        loss = ((model(images.float() / 255) - targets) ** 2).mean()
        loss.backward()
        rule.step()
        return loss.item()

    found["losses"], found["step"] = timed(a, one)
    return found


def compare(a, name: str) -> dict[str, Any]:
    """One network: children in turn, then medians."""
    times: dict[str, dict[str, list[float]]] = {side: {} for side in SIDES}
    last: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(a.rounds):
            for side in SIDES:
                last[side] = child(side, name, folder)
                for what in ("forward", "folded", "step"):
                    more = last[side].get(what, [])
                    times[side].setdefault(what, []).extend(more)
                last[side].setdefault("chosen", {})
    median = {
        side: {w: float(np.median(t)) for w, t in found.items() if t}
        for side, found in times.items()
    }
    ours, theirs = last["jax"]["losses"][:3], last["torch"]["losses"][:3]
    return {
        "milliseconds": median,
        "best": {
            side: {w: min(t) for w, t in found.items() if t}
            for side, found in times.items()
        },
        **{
            f"ratio_{side}": {
                what: median[side][what] / median["jax"][what]
                for what in ("forward", "step")
            }
            for side in ("torch", "torch_plain")
        },
        "chosen": {side: last[side]["chosen"] for side in ("torch", "torch_plain")},
        "compile_s": last["jax"]["compile_s"],
        "losses": {"jax": ours, "torch": theirs},
        "largest_relative_loss_difference": float(
            np.max(np.abs(np.subtract(ours, theirs)) / np.abs(theirs))
        ),
        "largest_relative_map_difference": last["torch"]["difference"],
        "jax": last["jax"]["version"],
        "torch": last["torch"]["version"],
        "load_average": os.getloadavg()[0],
    }


def child(side: str, name: str, folder: str) -> dict[str, Any]:
    """One side in a process of its own."""
    environment = dict(os.environ)
    if side == "torch_plain":
        environment.pop("GLIBC_TUNABLES", None)
    more = [f"--run={side}", f"--network={name}", f"--folder={folder}"]
    done = subprocess.run(
        [sys.executable, __file__, *sys.argv[1:], *more],
        capture_output=True, text=True, env=environment,
    )  # fmt: skip
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.strip().splitlines()[-1])


def main():
    a = arguments()
    if a.run:
        if a.cpu_time:
            os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        print(json.dumps(run_jax(a) if a.run == "jax" else run_torch(a)))
        return
    for name in a.networks.split(","):
        row = {"network": name, "batch": a.batch, "threads": a.threads}
        row["clock"] = "cpu" if a.cpu_time else "wall"
        tunables = os.environ.get("GLIBC_TUNABLES", "")
        row |= {"tiny": a.tiny, "glibc_tunables": tunables, **compare(a, name)}
        print(json.dumps(row, indent=1), flush=True)


if __name__ == "__main__":
    main()
