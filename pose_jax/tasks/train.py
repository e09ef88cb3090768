"""`train`: the one training loop. Resumes by itself; Ctrl-C saves."""

from __future__ import annotations

import dataclasses
import math
import signal
import time
from typing import Any

import jax
import numpy as np
from etils import epath

from pose_jax import checkpoint, sharding
from pose_jax.config import Interrupted, UserError, to_plain
from pose_jax.recipe import recipe
from pose_jax.report import drawings
from pose_jax.tasks import initialise
from pose_jax.tasks.feeds import announce, make_feed
from pose_jax.training import step as step_
from pose_jax.training.optimiser import make_optimiser
from pose_jax.training.state import TrainState, plateau_update
from pose_jax.writer import MetricsWriter, ProgressBar, is_main_process, read_rows, say


def run(config: Any, workdir: str) -> None:
    """Train until `config.train.steps`, from the newest checkpoint of the workdir.

    Raises:
      UserError: non-finite loss, too many unreadable pictures, or an interruption.
    """
    loop = Loop(config, workdir)
    if loop.start >= config.train.steps:
        say(f"training is complete at step {loop.start}; nothing to do")
        return
    loop.run()
    if is_main_process():
        rows = read_rows(workdir)
        if any("train/loss_ratio" in row for row in rows):
            path = epath.Path(workdir) / "figures" / "learning_curve.png"
            drawings.learning_curve(rows, path, title=config.model.name)


class Stop:
    """Turns SIGINT and SIGTERM into a request that the loop answers between steps."""

    def __init__(self):
        self.asked = ""
        self._old: dict[int, Any] = {}

    def __enter__(self):
        # With several processes SIGTERM belongs to JAX, which lets all of them agree on the
        # step to stop at (`reached_preemption`).
        alone = jax.process_count() == 1
        for number in (signal.SIGINT, signal.SIGTERM) if alone else ():
            try:
                self._old[number] = signal.signal(number, self._handle)
            except ValueError:  # Not the main thread (notebooks): nothing to catch.
                pass
        return self

    def __exit__(self, *_):
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _handle(self, number, _frame):
        if self.asked:
            raise KeyboardInterrupt
        self.asked = signal.Signals(number).name
        say(f"{self.asked}: saving after this step (again to leave at once)")


class Loop:
    """Everything one training needs, built once."""

    def __init__(self, config: Any, workdir: str):
        self.config, self.workdir, c = config, workdir, config
        self.recipe = recipe(c)
        trained = recipe(c, precision=c.train.precision)
        self.mesh = sharding.make_mesh(sharding.MeshConfig(**to_plain(c.mesh)))
        sharding.check_batch(
            c.train.batch, self.mesh, accumulation=c.train.accumulation
        )
        self.feed = make_feed(c, self.recipe, trained, workdir, self.mesh)
        objective = self.feed.objective
        transform, schedule = make_optimiser(
            c.optimiser, c.train.steps, objective.trainable, module=trained.module
        )
        self.state, shardings = step_.create_state(
            step_.make_init(objective, transform, average=c.train.ema > 0),
            jax.random.key(c.seed, impl="unsafe_rbg"),
            self.feed.example,
            self.mesh,
            fsdp=c.mesh.fsdp,
        )
        self.train_step = step_.compile_step(
            step_.make_train_step(
                objective, transform, schedule,
                seed=c.seed,
                accumulation=c.train.accumulation,
                decay=c.train.ema,
                freeze=tuple(c.optimiser.freeze),
            ),
            shardings,
            self.mesh,
        )  # fmt: skip
        self.iterator = self.feed.iterator
        self.checkpoints = checkpoint.Checkpoints(workdir, keep_last=c.train.keep_last)
        self.bad: set[int] = set()
        self.start = self._resume()

    def _resume(self) -> int:
        """Restore the newest checkpoint, or begin (from `init_from` if given)."""
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
            split_state(self.state),
        )
        found = self.checkpoints.restore(*abstract)
        if found is not None:
            self.state = join_state(found.variables, found.training)
            self.iterator.set_state(found.position)
            say(f"resuming {self.workdir} at step {found.step}")
            return found.step
        self.state = initialise.from_model(
            self.config, self.recipe, self.state, self.workdir
        )
        parameters = sum(x.size for x in jax.tree.leaves(self.state.params))
        announce(self.feed, self.config.model.name, parameters)
        return 0

    def run(self) -> None:
        c, steps = self.config.train, self.config.train.steps
        writer = MetricsWriter(self.workdir, resume_step=self.start)
        window = Window(c.batch)
        bar = ProgressBar(steps, "train", done=self.start)
        with Stop() as stop, bar:
            batch, ids = self._fetch(window)
            pending: tuple[int, Any, Any] | None = None
            for done in range(self.start + 1, steps + 1):
                self.state, metrics = self.train_step(self.state, batch)
                used = ids
                if done < steps:
                    batch, ids = self._fetch(window)
                if pending:
                    self._read(pending, window)
                pending = (done, metrics, used)
                preempted = self.checkpoints.reached_preemption(done)
                leaving = bool(stop.asked) or preempted
                last = leaving or done == steps
                if last or _due(done, c.log_every, c.save_every, c.eval_every):
                    self._read(pending, window)
                    pending = None
                    self._check_bad()
                    if last or _due(done, c.log_every):
                        row = window.close()
                        writer.write(done, row, "train/")
                        bar.update(done, _note(row))
                    score = None
                    if self.feed.metric and (done == steps or _due(done, c.eval_every)):
                        score = self._select(done, writer)
                        window.restart()
                    if last or score is not None or _due(done, c.save_every):
                        self._save(done, score, ahead=int(done < steps))
                if leaving:
                    self.checkpoints.wait()
                    writer.close()
                    raise Interrupted(
                        f"stopped by {stop.asked or 'preemption'} at step {done}, saved; "
                        "the same command goes on from there"
                    )
        self.checkpoints.wait()
        writer.close()

    def _fetch(self, window: Window) -> tuple[Any, np.ndarray]:
        began = time.monotonic()
        rows = next(self.iterator)
        window.waited += time.monotonic() - began
        unreadable = np.flatnonzero(~rows["mask"])
        if len(unreadable):
            self._name_bad(rows["id"][unreadable])
            if jax.process_count() == 1:  # Else all of them together, at a log line.
                self._check_bad()
        sent = {name: rows[name] for name in self.feed.example}
        return sharding.put_batch(sent, self.mesh), rows["id"]

    def _name_bad(self, rows: np.ndarray) -> None:
        for row in set(rows.tolist()) - self.bad:  # Each once, however many epochs.
            self.bad.add(row)
            name = self.feed.file_name(row)
            say(f"unreadable picture skipped: {name}", everywhere=True)

    def _check_bad(self) -> None:
        """Too many unreadable pictures, over all processes, end the run."""
        mine = np.zeros(self.feed.rows, bool)
        mine[list(self.bad)] = True
        # Rows change processes from epoch to epoch; each counts once.
        count = int(sharding.any_over_processes(mine).sum())
        if count > self.config.train.max_bad_images * len(self.feed):
            raise UserError(
                f"{count} unreadable pictures among {len(self.feed)} people are more "
                f"than train.max_bad_images={self.config.train.max_bad_images:g}; repair "
                f"{self.feed.name}"
            )

    def _read(self, pending: tuple[int, Any, np.ndarray], window: Window) -> None:
        """Fetch a step's metrics; a non-finite loss ends the run, named."""
        done, metrics, ids = pending
        values = {k: float(v) for k, v in sharding.to_host(metrics).items()}
        if not math.isfinite(values["loss"]) or not math.isfinite(
            values["gradient_norm"]
        ):
            self.checkpoints.wait()
            people = self.feed.describe(ids.tolist())
            raise UserError(
                f"loss {values['loss']} with gradient norm {values['gradient_norm']} at "
                f"step {done}; sample ids {people}; nothing was saved from it. Lower "
                "optimiser.learning_rate, set optimiser.clip, or look at these samples; "
                f"saved steps: {self.checkpoints.steps() or 'none'}"
            )
        window.add(values)

    def _select(self, done: int, writer: MetricsWriter) -> float:
        """Score on the selection split; also moves the plateau schedule."""
        c, name = self.config, str(self.feed.metric)
        score = self.feed.score(self.state.variables)
        writer.write(done, {name: score}, "select/")
        say(f"step {done}: {name} on the selection split {score:.4f}")
        if c.optimiser.schedule == "plateau":
            self.state = dataclasses.replace(
                self.state,
                plateau=jax.device_put(
                    plateau_update(
                        sharding.to_host(self.state.plateau), score,
                        factor=c.optimiser.factor, patience=c.optimiser.patience,
                        floor_scale=c.optimiser.floor / c.optimiser.learning_rate,
                    ),
                    sharding.replicated(self.mesh),
                )
            )  # fmt: skip
        return score

    def _save(self, done: int, score: float | None, *, ahead: int) -> None:
        variables, training = split_state(self.state)
        self.checkpoints.save(
            done,
            variables=variables,
            training=training,
            position=self.iterator.state(ahead),
            info={"config": to_plain(self.config), "step": done},
            metric=score,
        )


class Window:
    """Averages between two log lines, and where the time went."""

    def __init__(self, batch: int):
        self._batch = batch
        self.restart()

    def restart(self) -> None:
        self._sums: dict[str, float] = {}
        self._count, self.waited, self._start = 0, 0.0, time.monotonic()

    def add(self, values: dict[str, float]) -> None:
        self._count += 1
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value

    def close(self) -> dict[str, float]:
        """Means of the window, images/s and the share of time spent waiting for input."""
        elapsed = max(time.monotonic() - self._start, 1e-9)
        row = {name: total / max(self._count, 1) for name, total in self._sums.items()}
        row["images_per_second"] = self._count * self._batch / elapsed
        row["input_wait"] = min(self.waited / elapsed, 1.0)
        self.restart()
        return row


def split_state(state: TrainState) -> tuple[Any, Any]:
    """(what `apply` needs, the rest): no array is stored twice."""
    averaged = bool(jax.tree.leaves(state.average))
    rest = dataclasses.replace(
        state, batch_stats={}, average={}, params=state.params if averaged else {}
    )
    return state.variables, rest


def join_state(variables: Any, rest: TrainState) -> TrainState:
    """Inverse of `split_state`."""
    averaged = bool(jax.tree.leaves(rest.params))
    return dataclasses.replace(
        rest,
        batch_stats=variables.get("batch_stats", {}),
        params=rest.params if averaged else variables["params"],
        average=variables["params"] if averaged else {},
    )


def _due(done: int, *cadences: int) -> bool:
    return any(every and done % every == 0 for every in cadences)


def _note(row: dict[str, float]) -> str:
    return (
        f"loss {row.get('loss', math.nan):.5g} "
        f"({row.get('loss_ratio', math.nan):.2f} of zero maps) "
        f"{row['images_per_second']:.0f} img/s, input wait {row['input_wait']:.0%}"
    )
