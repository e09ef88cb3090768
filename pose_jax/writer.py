"""What a run leaves behind: metrics.jsonl, TensorBoard events, manifest, progress.

Paths go through `etils.epath`, so a workdir may be a bucket; files that must never be half
written are written beside and renamed.
"""

from __future__ import annotations

import json
import math
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

_PACKAGES = (
    "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy",
    "opencv-python-headless", "faster-coco-eval",
)  # fmt: skip


def is_main_process() -> bool:
    return jax.process_index() == 0


def say(text: str, *, everywhere: bool = False) -> None:
    """One line for the person at the terminal, from the first process only.

    Args:
      everywhere: each process speaks of what it alone may see, and says which it is.
    """
    if is_main_process():
        print(text, flush=True)
    elif everywhere:
        print(f"process {jax.process_index()}: {text}", flush=True)


def write_json(path, value: Any) -> None:
    """Write JSON beside and rename, so a reader never sees half a file."""
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.parent / (path.name + ".partial")
    partial.write_text(json.dumps(value, indent=1, default=_to_json) + "\n")
    partial.replace(path)


def read_json(path, default: Any = None) -> Any:
    """Parsed file, or `default` when it does not exist.

    Raises:
      ValueError: the file is not JSON; the message names it.
    """
    path = epath.Path(path)
    if not path.exists():
        return default
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path} is not valid JSON ({error}); restore or delete it"
        ) from None


def update_results(workdir, name: str, record: Mapping[str, Any]) -> None:
    """Add one record to `results.json` beside the others."""
    path = epath.Path(workdir) / "results.json"
    results = read_json(path, {})
    results[name] = record
    write_json(path, results)


def _to_json(value: Any) -> Any:
    if isinstance(value, np.ndarray | jax.Array):
        return np.asarray(value).tolist()
    if isinstance(value, np.generic):
        return value.item()
    return str(value)


def manifest(command: list[str]) -> dict[str, Any]:
    """Versions, devices, git revision and command of this process."""
    devices = jax.devices()
    return {
        "command": " ".join(command),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "backend": jax.default_backend(),
        "devices": [str(d.device_kind) for d in devices],
        "processes": jax.process_count(),
        "git": _git_revision(),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git_revision() -> str | None:
    """Revision of the source tree, with `+dirty` when it has changes."""

    def git(*args):
        out = subprocess.run(
            ["git", *args],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
        )
        return out.stdout.strip() if out.returncode == 0 else None

    try:
        revision = git("rev-parse", "HEAD")
        return revision and revision + (
            "+dirty" if git("status", "--porcelain") else ""
        )
    except (OSError, subprocess.SubprocessError):
        return None


class MetricsWriter:
    """Appends scalars to `metrics.jsonl` and TensorBoard events; silent off process 0.

    A resumed run first drops the rows after its checkpoint, so no step stands twice.
    """

    def __init__(self, workdir, *, resume_step: int = 0):
        self._path = epath.Path(workdir) / "metrics.jsonl"
        self._events = None
        if not is_main_process():
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._rows = [r for r in read_rows(workdir) if r["step"] <= resume_step]
        partial = self._path.parent / "metrics.jsonl.partial"
        partial.write_text("".join(json.dumps(row) + "\n" for row in self._rows))
        partial.replace(self._path)
        self._remote = "://" in str(workdir)
        if not self._remote:
            from tensorboardX import SummaryWriter

            self._events = SummaryWriter(
                str(epath.Path(workdir) / "tensorboard"),
                purge_step=resume_step + 1 if resume_step else None,
            )

    def write(self, step: int, scalars: Mapping[str, Any], prefix: str = "") -> None:
        """One row: `{"step": step, prefix + name: value}`."""
        if not is_main_process():
            return
        row: dict[str, Any] = {"step": int(step)}
        for name, value in scalars.items():
            value = float(value)
            row[prefix + name] = value if math.isfinite(value) else None
            if self._events:
                self._events.add_scalar(prefix + name, value, step)
        self._rows.append(row)
        if self._remote:  # Buckets cannot append.
            self._path.write_text("".join(json.dumps(r) + "\n" for r in self._rows))
        else:
            with open(self._path, "a") as file:
                file.write(json.dumps(row) + "\n")

    def close(self) -> None:
        if self._events:
            self._events.close()


def read_rows(workdir) -> list[dict[str, Any]]:
    """Rows of `metrics.jsonl`; a last line cut off by a crash is skipped."""
    path = epath.Path(workdir) / "metrics.jsonl"
    rows = []
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                continue
    return rows


class ProgressBar:
    """A progress bar on a terminal, one line per report elsewhere."""

    def __init__(self, total: int, title: str, *, done: int = 0, every: float = 20.0):
        self._total, self._title, self._done = total, title, done
        self._start_done, self._start = done, time.monotonic()
        self._last, self._every = self._start, every
        self._bar = None
        console = Console(file=sys.stdout)
        if is_main_process() and console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=console,
            )
            self._task = self._bar.add_task(title, total=total, completed=done, note="")

    def __enter__(self):
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_):
        if self._bar:
            self._bar.stop()
        else:
            self._line("")

    def update(self, done: int, note: str = "") -> None:
        """Say how far it is; `note` stands behind the bar."""
        self._done = done
        if self._bar:
            self._bar.update(self._task, completed=done, note=note)
        elif time.monotonic() - self._last >= self._every:
            self._line(note)

    def _line(self, note: str) -> None:
        self._last = time.monotonic()
        elapsed = self._last - self._start
        rate = (self._done - self._start_done) / max(elapsed, 1e-9)
        left = (self._total - self._done) / rate if rate > 0 else math.inf
        eta = f", {left:.0f} s left" if math.isfinite(left) and left > 0 else ""
        say(f"{self._title} {self._done}/{self._total} {note}{eta}".rstrip())


__all__ = [
    "MetricsWriter", "ProgressBar", "is_main_process", "manifest", "read_json",
    "read_rows", "say", "update_results", "write_json",
]  # fmt: skip
