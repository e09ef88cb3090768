"""Seconds from the command to the first finished training step, compilation cache warm.

source launch/environment.sh; python tests/benchmarks/start_up.py
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run(workdir: Path) -> float:
    """Time until `metrics.jsonl` holds step 1."""
    command = [
        sys.executable, "-m", "pose_jax.main", "--config=configs/quickstart.py",
        f"--workdir={workdir}", "--config.tasks=('train',)", "--config.train.steps=1",
        "--config.train.log_every=1", "--config.data.select.name=",
    ]  # fmt: skip
    began = time.perf_counter()
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    rows = workdir / "metrics.jsonl"
    while process.poll() is None and not (rows.exists() and rows.stat().st_size):
        time.sleep(0.02)
    seconds = time.perf_counter() - began
    out, _ = process.communicate()
    if process.returncode:
        sys.exit(out)
    return seconds


def main():
    with tempfile.TemporaryDirectory() as folder:
        times = [run(Path(folder) / str(n)) for n in range(4)]
    print(json.dumps({"cold_or_first_s": times[0], "warm_s": times[1:]}, indent=1))


if __name__ == "__main__":
    main()
