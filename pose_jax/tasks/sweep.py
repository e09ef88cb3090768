"""`sweep`: one run per arm and seed, each in a workdir of its own; the same command resumes."""

from __future__ import annotations

import fcntl
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from etils import epath
from ml_collections import ConfigDict

from pose_jax.config import Interrupted, UserError, to_plain
from pose_jax.tasks.workdir import claim
from pose_jax.writer import is_main_process, read_json, say, write_json

_OF_STUDY = ("sweep", "compare", "report")


class Cell(NamedTuple):
    """One run of a sweep."""

    arm: str
    seed: int
    config: Any
    workdir: str


def run(config: Any, workdir: str) -> None:
    """Run `config.sweep.tasks` for every arm and seed, seed by seed.

    A finished cell is skipped, an interrupted one goes on where it stopped, a failed one is
    named at the end while the others go on. In the background another process does all that
    and the tasks behind this one; this process ends.

    Raises:
      UserError: no arms, a sweep already running in the workdir, or cells that failed.
      Interrupted: the program was asked to stop.
    """
    section = config.sweep
    cells = list(make_cells(config, workdir))
    if section.background:
        _start_in_background(workdir)
        raise SystemExit(0)
    with _alone(workdir):
        failed = {}
        for number, cell in enumerate(cells, 1):
            label = f"cell {number}/{len(cells)}: {cell.arm}, seed {cell.seed}"
            if is_finished(cell):
                say(f"{label}: finished before")
                continue
            say(label)
            try:
                _run_cell(cell)
            except Interrupted:
                raise
            except Exception as error:  # Whatever it is, the other cells go on.
                if not isinstance(error, UserError | ValueError | OSError):
                    traceback.print_exc()
                failed[label] = str(error) or type(error).__name__
                say(f"{label} failed: {failed[label]}")
        if failed:
            raise UserError(
                f"{len(failed)} of {len(cells)} cells failed; mend the cause and give the same "
                "command again:\n" + "\n".join(f"  {k}: {v}" for k, v in failed.items())
            )
    say(f"sweep of {len(cells)} cells is complete: {workdir}/cells")


def make_cells(config: Any, workdir: str) -> Iterator[Cell]:
    """The runs of `config.sweep`, seed by seed, so that early results hold every arm.

    Raises:
      UserError: no arms or seeds, an unknown task, or an arm that overrides what is no field.
    """
    from pose_jax.tasks import TASKS

    section = config.sweep
    if not section.arms or not section.seeds:
        raise UserError(
            "sweep.arms and sweep.seeds are needed: arms = {name: {section: {field: value}}}"
        )
    wrong = [t for t in section.tasks if t not in TASKS or t in ("sweep", "compare")]
    if wrong:
        raise UserError(
            f"sweep.tasks holds {wrong[0]!r}, which is no task of a single run"
        )
    for seed in section.seeds:
        for arm in section.arms:
            cell = config.copy_and_resolve_references()
            _override(cell, arm, section.arms[arm])
            cell.seed, cell.tasks = int(seed), tuple(section.tasks)
            folder = epath.Path(workdir) / "cells" / arm / f"seed{seed}"
            yield Cell(arm, int(seed), cell, str(folder))


def _override(cell: Any, arm: str, changes: Any) -> None:
    if not isinstance(changes, ConfigDict) or "/" in arm or arm in ("", ".", ".."):
        raise UserError(
            f"arm {arm!r} of the sweep: arms = {{name: {{section: {{field: value}}}}}}, and "
            "names are those of folders"
        )
    with cell.ignore_type():  # A whole number may stand for a share.
        try:
            cell.update(changes.to_dict())
        except (KeyError, AttributeError, TypeError) as error:
            text = str(error.args[0] if error.args else error).splitlines()[0]
            raise UserError(f"arm {arm!r} of the sweep: {text}") from None


def is_finished(cell: Cell) -> bool:
    """Whether the cell ran all its tasks with this config."""
    ran = read_json(_mark(cell))
    return ran is not None and _own(ran) == _own(to_plain(cell.config))


def _own(config: dict[str, Any]) -> dict[str, Any]:
    """What the cell runs; another arm or seed of the study does not make it another cell."""
    return {k: v for k, v in config.items() if k not in _OF_STUDY}


def _mark(cell: Cell):
    return epath.Path(cell.workdir) / "finished.json"


def _run_cell(cell: Cell) -> None:
    from pose_jax.tasks import TASKS

    claim(cell.config, cell.workdir)
    for name in cell.config.tasks:
        TASKS[name](cell.config, cell.workdir)
    if is_main_process():
        write_json(_mark(cell), _own(to_plain(cell.config)))


@contextmanager
def _alone(workdir: str) -> Iterator[None]:
    """A lock that ends with the process; buckets have none."""
    if "://" in workdir or not is_main_process():
        yield
        return
    path = Path(workdir) / "sweep.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                f"a sweep is running in {workdir} already; see {workdir}/sweep.log"
            ) from None
        yield


def _start_in_background(workdir: str) -> None:
    with _alone(workdir):  # Refused here, where somebody reads it.
        pass
    log = Path(workdir) / "sweep.log"
    with open(log, "a") as file:
        child = subprocess.Popen(
            [*sys.orig_argv, "--config.sweep.background=False"],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    say(f"sweep started in the background as process {child.pid}; log: {log}")
