"""What a training reads: people or stored latents, and the split that selects among its steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from pose_jax import data, evaluation, inference, sharding
from pose_jax.config import UserError, to_plain
from pose_jax.data.augment import Augment
from pose_jax.data.latents import LatentStore, latent_iterator
from pose_jax.data.pipeline import TrainIterator, train_iterator
from pose_jax.pixels import ColourJitter
from pose_jax.recipe import Recipe
from pose_jax.tasks.removal import claim_removal, make_removal
from pose_jax.tasks.workdir import data_root
from pose_jax.training import step as step_
from pose_jax.training.objectives import OBJECTIVES
from pose_jax.writer import say

_COLOURS = tuple(f.name for f in dataclasses.fields(ColourJitter))


@runtime_checkable
class Feed(Protocol):
    """Batches of one training.

    Attributes:
      objective: what is minimised on them. example: zeros shaped like a batch.
      metric: name of `score`, higher is better; None when nothing selects.
      iterator: endless batches of this process. name, dropped: for the log.
      rows: ids in a batch are below this number.
    """

    objective: Any
    example: dict[str, Any]
    metric: str | None
    iterator: TrainIterator
    name: str
    dropped: Any

    def __len__(self) -> int: ...

    @property
    def rows(self) -> int: ...

    def score(self, variables: Any) -> float: ...

    def describe(self, rows: Sequence[int]) -> list[Any]: ...

    def file_name(self, row: int) -> str: ...


def make_feed(config: Any, described: Recipe, trained: Recipe, workdir: str, mesh: Any):
    """The feed of `config.objective.name`.

    Args:
      described, trained: the network for evaluation and, in the precision asked, training.

    Raises:
      UserError: unknown objective, or a data source that does not fit it.
    """
    name, latents = config.objective.name, config.data.train.source.name == "latents"
    if name not in OBJECTIVES:
        raise UserError(
            f"unknown objective.name {name!r}; choose one of {', '.join(OBJECTIVES)}"
        )
    if latents != (name == "latent"):
        raise UserError(
            f"objective.name={name!r} does not train on data.train.source.name="
            f"{config.data.train.source.name!r}; objective 'latent' and source 'latents' "
            "belong together"
        )
    if latents:
        return LatentFeed(config, trained, mesh)
    return PeopleFeed(config, described, trained, workdir, mesh)


class PeopleFeed:
    """People of a data source, augmented; a split of people selects."""

    def __init__(self, config, described: Recipe, trained: Recipe, workdir, mesh):
        self._config, self._recipe, self._mesh, c = config, described, mesh, config
        opened: dict[str, Any] = dict(root=data_root(), skeleton=c.skeleton)
        self.source = data.open_source(c.data.train.source, **opened)
        self.select = None
        if c.data.select.name:
            self.select = data.open_source(c.data.select, **opened)
        self.metric = c.train.select if self.select else None
        self.name, self.dropped = self.source.name, self.source.dropped
        augment = to_plain(c.data.train.augment)
        jitter = ColourJitter(**{n: augment.pop(n) for n in _COLOURS})
        removal = make_removal(c.data.train.removal, trained.skeleton, c.seed)
        claim_removal(removal, workdir)
        self.objective = OBJECTIVES[c.objective.name](
            c.objective, trained.module, trained.spec, trained.codec, jitter, removal
        )
        self.example = step_.example_batch(
            trained.spec.size, trained.skeleton.num_keypoints
        )
        self.iterator = train_iterator(
            self.source, described.view, Augment(**augment),
            batch=c.train.batch, seed=c.seed,
            process=jax.process_index(), processes=jax.process_count(),
            workers=c.train.workers, threads=c.train.threads,
        )  # fmt: skip
        self._predict: Any = None

    def __len__(self) -> int:
        return len(self.source)

    @property
    def rows(self) -> int:
        return len(self.source)

    def score(self, variables: Any) -> float:
        """`train.select` on the selection split."""
        assert self.select is not None
        c = self._config
        if self._predict is None:
            self._predict = inference.compile_predict(
                inference.make_predict(self._recipe, flip_test=False), self._mesh
            )
        batch = sharding.round_up(min(c.evaluate.batch, len(self.select)), self._mesh)
        found = inference.predict_source(
            self._recipe, variables, self.select,
            mesh=self._mesh, batch=batch, flip_test=False, compiled=self._predict,
        )  # fmt: skip
        return evaluation.select_score(found, self.select, self._recipe, c)

    def describe(self, rows: Sequence[int]) -> list[Any]:
        return [self.source.person(int(row)).id for row in rows]

    def file_name(self, row: int) -> str:
        return self.source.person(row).file_name


class LatentFeed:
    """Stored latents, one store per stack, split by picture; the held-out ones select."""

    metric = "reconstruction"

    def __init__(self, config, trained: Recipe, mesh):
        c, section = config, config.data.train.source
        self.objective = OBJECTIVES["latent"](c.objective, trained.module, trained.spec)
        root = data.under(data_root(), section.path)
        stacks = trained.module.config.stacks
        self._stores = [
            LatentStore.open(root / f"stack{i}-bottleneck") for i in range(stacks)
        ]
        people = self._stores[0].people()
        filters = data.filters_of(section)
        enough = people["labelled"] >= section.min_keypoints
        # Salted: the people may come from a split that was carved by the same hash.
        names = [f"latents of {i}" for i in people["image_id"]]
        mine = np.array([filters.in_part(n, n) for n in names], bool)
        self._rows = np.flatnonzero(enough & mine)
        others = ~mine if filters.part == "train" else np.zeros_like(mine)
        self._held_out = np.flatnonzero(enough & others)
        if not len(self._rows):
            raise UserError(f"no latent of {root} passes the filters of its source")
        if filters.part == "train" and not len(self._held_out):
            raise UserError(
                f"holdout={section.holdout:g} of {len(people['id'])} latents leaves nobody "
                "to validate on; raise pretrain.holdout, or set it to 0"
            )
        self.metric = "reconstruction" if len(self._held_out) else None
        self._ids = people["id"]
        self.name, self.dropped = (
            f"latents of {self._stores[0].index['source']}",
            {
                f"with fewer than {section.min_keypoints} keypoints": int(
                    (~enough).sum()
                )
            },
        )
        shape = (1, stacks, *self._stores[0].shape)
        self.example = {
            "latent": jnp.zeros(shape, jnp.float32),
            "id": jnp.zeros((1,), jnp.int32),
            "mask": jnp.zeros((1,), bool),
        }
        self.iterator = latent_iterator(
            self._stores, self._rows, batch=c.train.batch, seed=c.seed,
            shuffle=not c.objective.file_order,
            process=jax.process_index(), processes=jax.process_count(),
        )  # fmt: skip
        self._error = jax.jit(self._mean_error)
        self._rows_at_a_time = sharding.round_up(256, mesh)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def rows(self) -> int:
        return len(self._ids)

    def _mean_error(self, variables, latents):
        restored = self.objective.restore(variables, latents)
        return jnp.square(restored - latents).mean(tuple(range(1, latents.ndim)))

    def score(self, variables: Any) -> float:
        """Minus the mean squared error on the held-out latents, without noise."""
        errors = []
        variables = sharding.gather(variables)
        for start in range(0, len(self._held_out), self._rows_at_a_time):
            rows = self._held_out[start : start + self._rows_at_a_time]
            stored = [s.read(rows).reshape(-1, *s.shape) for s in self._stores]
            errors.append(np.asarray(self._error(variables, np.stack(stored, 1))))
        return -float(np.concatenate(errors).mean())

    def describe(self, rows: Sequence[int]) -> list[Any]:
        return [str(self._ids[int(row)]) for row in rows]

    def file_name(self, row: int) -> str:
        return f"person {self._ids[row]}"


def announce(feed: Feed, model: str, parameters: int) -> None:
    """One line for the log."""
    dropped = ", ".join(f"{n} {why}" for why, n in feed.dropped.items() if n)
    say(
        f"training {model} ({parameters:,} parameters) on {len(feed)} people of "
        f"{feed.name}" + (f" (left out: {dropped})" if dropped else "")
    )
