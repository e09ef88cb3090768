"""Orbax checkpoints: weights, optimiser, position in the data, best and last.

Items of a step: `variables` (what `apply` needs; the averaged ones where averaging is on),
`training` (everything else of the state), `data` (a position per process), `info` (JSON).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import grain
import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from jax.experimental import multihost_utils

from pose_jax import sharding
from pose_jax.arrays import PyTree
from pose_jax.writer import is_main_process, say


class CheckpointError(Exception):
    """No usable checkpoint, or weights that do not fit; the message says what differs."""


class _Position:
    """Gives grain's checkpoint handler the position to save, and receives it back."""

    def __init__(self, state: bytes = b""):
        self.state = state

    def get_state(self) -> bytes:
        return self.state

    def set_state(self, state: bytes) -> None:
        self.state = state

    def start_prefetch(self) -> None:
        """Nothing: the loop's own iterator fetches."""


class Restored(NamedTuple):
    variables: PyTree
    training: PyTree
    position: bytes
    step: int


class Checkpoints:
    """The `checkpoints/` folder of a workdir."""

    def __init__(self, workdir, *, keep_last: int = 2):
        policies = ocp.checkpoint_managers
        self._folder = epath.Path(workdir) / "checkpoints"
        self._manager = ocp.CheckpointManager(
            self._folder.resolve() if "://" not in str(workdir) else self._folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy(
                    [
                        policies.LatestN(keep_last),
                        policies.BestN(
                            get_metric_fn=lambda m: m["select"],
                            n=1,
                            keep_checkpoints_without_metrics=False,
                        ),
                    ]
                ),
                cleanup_tmp_directories=True,
            ),
        )

    def steps(self) -> list[int]:
        return sorted(self._manager.all_steps())

    def save(
        self,
        step: int,
        *,
        variables: PyTree,
        training: PyTree,
        position: bytes,
        info: Mapping[str, Any],
        metric: float | None = None,
    ) -> None:
        """Write one step in the background; `metric` (higher is better) ranks it."""
        self._manager.save(
            step,
            args=ocp.args.Composite(
                variables=ocp.args.StandardSave(variables),
                training=ocp.args.StandardSave(training),
                data=grain.checkpoint.CheckpointSave(_Position(position)),
                info=ocp.args.JsonSave(dict(info)),
            ),
            metrics=None if metric is None else {"select": float(metric)},
            force=True,
        )

    def reached_preemption(self, step: int) -> bool:
        return self._manager.reached_preemption(step)

    def wait(self) -> None:
        self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.close()

    def restore(self, variables: PyTree, training: PyTree) -> Restored | None:
        """The newest step that can be read, placed as the abstract trees say.

        An unreadable step is named and set aside, and the one before is tried. None
        without any step.

        Raises:
          CheckpointError: steps exist but none can be read.
        """
        steps, damaged = self.steps(), []
        for step in reversed(steps):
            # One process may miss what is its own alone. Agreed before Orbax's collectives:
            # a process that fails inside them leaves the others waiting for it.
            if sharding.any_over_processes(np.array(not self._own_position(step))):
                say(
                    f"checkpoint {step} in {self._folder} lacks the data position of a process"
                )
                damaged.append(step)
                continue
            position = _Position()
            try:
                items: Any = self._manager.restore(
                    step,
                    args=ocp.args.Composite(
                        variables=ocp.args.StandardRestore(variables),
                        training=ocp.args.StandardRestore(training),
                        data=grain.checkpoint.CheckpointRestore(position),
                    ),
                )
            except Exception as error:  # Orbax and TensorStore raise many kinds.
                say(
                    f"checkpoint {step} in {self._folder} cannot be read "
                    f"({_first_line(error)}); trying the one before",
                    everywhere=True,
                )
                damaged.append(step)
                continue
            self._set_aside(damaged)
            return Restored(items.variables, items.training, position.state, step)
        if steps:
            raise CheckpointError(
                f"none of the checkpoints {steps} in {self._folder} could be read (reasons "
                "above); repair the folder, or use another --workdir to start again"
            )
        return None

    def _own_position(self, step: int) -> bool:
        """Whether this process's position in the data is there (asked with several only)."""
        number, count = jax.process_index(), jax.process_count()
        if count == 1:
            return True
        name = f"process_{number}-of-{count}.json"
        return (self._folder / str(step) / "data" / name).exists()

    def _set_aside(self, steps: list[int]) -> None:
        """Move unreadable steps away, so that the run can save these steps again."""
        if not steps:
            return
        for step in steps if is_main_process() else []:
            aside = self._folder.parent / "damaged_checkpoints" / str(step)
            aside.parent.mkdir(exist_ok=True)
            if aside.exists():
                aside.rmtree()
            (self._folder / str(step)).rename(aside)
            say(f"moved it to {aside}")
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("damaged checkpoints are set aside")
        self._manager.reload()


def load_variables(workdir, which: str | int = "last") -> tuple[PyTree, int]:
    """Weights of a run on the host: (variables as numpy, step).

    Args:
      workdir: a folder with `checkpoints/`.
      which: `last`, `best` (by the selection metric) or a step.

    Raises:
      CheckpointError: no such checkpoint, or none can be read.
    """
    folder = epath.Path(workdir) / "checkpoints"
    steps = _finished_steps(folder)
    if not steps:
        raise CheckpointError(
            f"{folder} holds no checkpoint; train first, or check the path"
        )
    if which == "best":
        candidates = [best_step(folder, steps)]
    elif which == "last":
        candidates = steps[::-1]
    elif int(which) in steps:
        candidates = [int(which)]
    else:
        raise CheckpointError(
            f"{folder} has no step {which}; it holds {', '.join(map(str, steps))}"
        )
    problems = []
    for step in candidates:
        try:
            return _read_variables(folder / str(step) / "variables"), step
        except Exception as error:
            problems.append(f"{step}: {_first_line(error)}")
            say(f"checkpoint {step} in {folder} is damaged ({_first_line(error)})")
    raise CheckpointError(f"no checkpoint in {folder} could be read ({problems[0]})")


def save_variables(workdir, variables: PyTree, *, info: Mapping[str, Any]) -> None:
    """Weights without training state, as step 0 (converted models)."""
    checkpoints = Checkpoints(workdir, keep_last=1)
    checkpoints.save(
        0,
        variables=variables,
        training={"step": np.int32(0)},
        position=b"",
        info=info,
    )
    checkpoints.wait()
    checkpoints.close()


def saved_steps(workdir) -> list[int]:
    """Finished steps of a workdir, oldest first."""
    return _finished_steps(epath.Path(workdir) / "checkpoints")


def best_step(folder, steps: list[int]) -> int:
    """Step with the highest selection metric; the last one when none was measured."""
    scores = {}
    for step in steps:
        path = epath.Path(folder) / str(step) / "metrics" / "metrics"
        if path.exists():
            scores[step] = json.loads(path.read_text())["select"]
    return max(scores, key=lambda s: (scores[s], s)) if scores else steps[-1]


def merge(
    fresh: Mapping[str, Any], loaded: Mapping[str, Any], *, allow: bool = False
) -> dict[str, Any]:
    """Loaded leaves in the structure of fresh ones (flat dicts of arrays).

    Args:
      allow: keep the fresh value where a name is missing or a shape differs.

    Raises:
      CheckpointError: names or shapes differ; both differences are listed.
    """
    missing = sorted(set(fresh) - set(loaded))
    unused = sorted(set(loaded) - set(fresh))
    shapes = sorted(
        name
        for name in set(fresh) & set(loaded)
        if np.shape(fresh[name]) != np.shape(loaded[name])
    )
    if not allow and (missing or unused or shapes):
        raise CheckpointError(
            "the weights do not fit this model: "
            f"missing {_shown(missing)}; not used {_shown(unused)}; "
            f"other shape {_shown(shapes)}. Is config.model the one they were made with?"
        )
    skip = set(missing) | set(shapes)
    return {name: fresh[name] if name in skip else loaded[name] for name in fresh}


def _finished_steps(folder: epath.Path) -> list[int]:
    if not folder.exists():
        return []
    return sorted(
        int(p.name)
        for p in folder.iterdir()
        if p.name.isdigit() and (p / "_CHECKPOINT_METADATA").exists()
    )


def _read_variables(path: epath.Path) -> PyTree:
    """A saved tree as numpy arrays, whatever devices wrote it."""
    with _quiet(), ocp.PyTreeCheckpointer() as reader:
        resolved = path.resolve() if "://" not in str(path) else path
        tree = reader.metadata(resolved).item_metadata.tree
        arguments = jax.tree.map(
            lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree
        )
        return reader.restore(resolved, restore_args=arguments)


@contextlib.contextmanager
def _quiet():
    """Orbax warns of files that weights alone do not need."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:160] if text else 'no detail'}"


def _shown(names: list[str]) -> str:
    if not names:
        return "nothing"
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if names[5:] else "")
