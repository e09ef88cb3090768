"""Seconds from a PyTorch checkpoint of 90 M parameters to a workdir: ViTPose-B, random weights.

    python tests/benchmarks/conversion.py [--network=vitpose-b] [--safetensors]

`command_s`: the whole command, cold (imports, compilation, parity report beside the original
where transformers is installed); `without_parity_s`: the same without the report;
`parts_s`: reading the file and matching its keys alone, in this process. `cpu_s` is the
processor time of all threads. One JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))


def make_checkpoint(config: Any, path: Path) -> int:
    """A state dict with random numbers of the network's shapes; returns parameters."""
    import jax

    from pose_jax import recipe
    from pose_jax.convert import layout, matching
    from pose_jax.trees import flat_names

    described = recipe.recipe(config)
    generator = np.random.default_rng(0)
    shapes = flat_names(described.shapes())
    # Positive, as variances are; small, as a network's outputs stay finite with.
    leaves = {
        name: (0.02 * generator.random(shape.shape) + 0.01).astype(np.float32)
        for name, shape in shapes.items()
    }
    dialect, table = next(iter(_dialects(matching, described).items()))
    del dialect
    arrays = layout.to_torch(table, leaves)
    if path.suffix == ".safetensors":
        from safetensors.numpy import save_file

        save_file(arrays, str(path))
    else:
        import torch

        tensors = {k: torch.from_numpy(np.array(v)) for k, v in arrays.items()}
        torch.save({"state_dict": tensors}, path)
    count = sum(
        int(np.prod(s.shape)) for s in jax.tree.leaves(described.shapes()["params"])
    )
    return count


def _dialects(matching, described):
    tables = matching.dialects(described.model, described.skeleton.num_keypoints)
    return {name: table for name, table in tables.items() if not table.backbone}


def command(network: str, path: Path, workdir: Path, *more: str) -> dict[str, float]:
    """Wall and processor seconds of the command."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    done = subprocess.run(
        [
            sys.executable, "-m", "pose_jax.main",
            f"--config=configs/convert.py:{network}", f"--config.checkpoint={path}",
            f"--workdir={workdir}", *more,
        ],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    wall = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall_s": wall, "cpu_s": cpu}


def parts(config: Any, path: Path) -> dict[str, float]:
    from pose_jax import recipe
    from pose_jax.convert import files, matching

    described = recipe.recipe(config)
    times, began = {}, time.process_time()

    def lap(name: str) -> None:
        nonlocal began
        now = time.process_time()
        times[name], began = now - began, now

    shapes = described.shapes()
    lap("shapes")
    tensors = files.read(path)
    lap("read")
    matching.convert(tensors, described.model, shapes, described.skeleton.num_keypoints)
    lap("convert")
    return times


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--network", default="vitpose-b")
    parser.add_argument("--safetensors", action="store_true")
    a = parser.parse_args()
    from pose_jax.config import load_config

    config = load_config(ROOT / "configs/convert.py", a.network)
    with tempfile.TemporaryDirectory() as folder:
        suffix = ".safetensors" if a.safetensors else ".pth"
        path = Path(folder) / f"weights{suffix}"
        parameters = make_checkpoint(config, path)
        report = {
            "network": a.network,
            "parameters": parameters,
            "file_mib": path.stat().st_size / 2**20,
            "command": command(a.network, path, Path(folder) / "with"),
            "without_parity": command(
                a.network, path, Path(folder) / "without",
                "--config.convert.parity=False",
            ),
            "parts_cpu_s": parts(config, path),
            "load_average": os.getloadavg()[0],
        }  # fmt: skip
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
