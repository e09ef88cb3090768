"""What the studies of `analyse` share: network, people, the question that a record answers."""

from __future__ import annotations

import dataclasses
import json
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from pose_jax import data, evaluation, geometry
from pose_jax.analysis import attributes, taps
from pose_jax.config import UserError, to_plain
from pose_jax.data.latents import LatentStore
from pose_jax.data.pipeline import crop_matrix, to_skeleton
from pose_jax.data.sources import Person, Source
from pose_jax.intervals import paired_difference
from pose_jax.metrics import pck as pck_
from pose_jax.tasks.latents import Trained, collect, folder_of
from pose_jax.tasks.workdir import data_root
from pose_jax.writer import read_json

SECTIONS = {
    "train": lambda config: config.data.train.source,
    "eval": lambda config: config.data.eval,
}
"""Name in `config.analyse.splits` -> its data section."""


@dataclasses.dataclass(frozen=True)
class People:
    """Labels of n people in the model's skeleton.

    Attributes:
      true: `[n, k, 2]` image pixels. visible: `[n, k]`. sides: `[n]` longer side of the box.
      matrices: `[n, 3, 3]` image to crop pixels. groups: the picture of every person.
    """

    people: list[Person]
    true: np.ndarray
    visible: np.ndarray
    sides: np.ndarray
    matrices: np.ndarray
    groups: list[Any]

    @property
    def labelled(self) -> np.ndarray:
        return self.visible > 0

    @property
    def fingerprint(self) -> int:
        """Of who they are and how they are labelled."""
        ids = json.dumps([str(p.id) for p in self.people]).encode()
        boxes = np.stack([p.box for p in self.people])
        parts = (self.true, self.visible, boxes)
        total = zlib.crc32(ids)
        for part in parts:
            total = zlib.crc32(np.ascontiguousarray(part, np.float64).tobytes(), total)
        return total


@dataclasses.dataclass(frozen=True)
class Split:
    """People that a study looks at.

    Attributes:
      name: as in `config.analyse.splits`. rows: of the source, evenly spread.
    """

    name: str
    source: Source
    rows: np.ndarray
    people: People


@dataclasses.dataclass(frozen=True)
class Context:
    """What every study gets.

    Attributes:
      config, section: everything and `config.analyse`. workdir, folder: where to write.
    """

    config: Any
    section: Any
    trained: Trained
    splits: tuple[Split, ...]
    workdir: Any
    folder: Any

    @property
    def batch(self) -> int:
        """People per program call."""
        return self.section.batch or min(self.config.evaluate.batch, 32)

    @property
    def protocol(self) -> str:
        """What a PCK of these studies is."""
        recipe = self.trained.recipe
        return (
            f"PCK@{self.section.threshold:g} of the longer box side, ground-truth boxes x "
            f"{recipe.spec.padding:g}, input {recipe.spec.size[0]}x{recipe.spec.size[1]}, "
            f"no flip test, decode {recipe.codec.decode}, step {self.trained.step}; "
            "intervals 95 %, by picture"
        )

    def latents(self, split: Split, tap: str) -> LatentStore:
        """The store of a tap, row by row the people of a split; collected where it lacks."""
        section = {**to_plain(SECTIONS[split.name](self.config))}
        section["people"] = split.people.fingerprint
        folder = folder_of(self.workdir, section, self.trained.weights, tap)
        return collect(
            self.trained, split.source, {tap: folder},
            batch=self.batch, rows=split.rows.tolist(),
        )[tap]  # fmt: skip

    def question(self, *fields: str, **more: Any) -> dict[str, Any]:
        """What a record answers: weights, people, the settings that change the answer."""
        names = (*fields, "threshold", "resamples", "seed", "batch")
        people = {s.name: [s.source.name, s.people.fingerprint] for s in self.splits}
        asked = {
            "weights": self.trained.weights,
            "people": people,
            **{name: to_plain(self.section[name]) for name in names},
            **more,
        }
        return json.loads(json.dumps(asked))

    def finished(self, study: str, question: dict[str, Any], *files: str) -> bool:
        """Whether a study's record answers this question, and its files are there."""
        stored = read_json(self.folder / f"{study}.json", {})
        there = all((self.folder / name).exists() for name in files)
        return there and stored.get("question") == question

    def right(self, keypoints: np.ndarray, people: People) -> np.ndarray:
        """`[*s, n, k]`: whether joints (`[*s, n, k, 2]` crop pixels) are within the threshold;
        joints without a label are not."""
        lead = keypoints.shape[:-3]
        matrices = np.broadcast_to(people.matrices, (*lead, *people.matrices.shape))
        points = geometry.invert(np.asarray(keypoints, np.float64), matrices)
        error = np.linalg.norm(points - people.true, axis=-1) / people.sides[:, None]
        return (error <= self.section.threshold) & people.labelled

    def difference(
        self, right: np.ndarray, base: np.ndarray, people: People
    ) -> dict[str, float]:
        """PCK of `[n, k]` right joints minus that of others, paired by picture."""
        asked = people.labelled.sum(1)[None].astype(float)
        d = paired_difference(
            right.sum(1)[None].astype(float), asked,
            base.sum(1)[None].astype(float), asked,
            people.groups, resamples=self.section.resamples,
        )  # fmt: skip
        return {
            "value": d.estimate, "low": d.low, "high": d.high,
            "smallest_effect": d.smallest_effect,
        }  # fmt: skip

    def gates(self) -> tuple[str, ...]:
        """Skip gates of the network; none where it has none and none were named."""
        if self.section.gates:
            return taps.skip_taps(self.trained.recipe, tuple(self.section.gates))
        try:
            return taps.skip_taps(self.trained.recipe)
        except ValueError:
            return ()


def pck(right: np.ndarray, people: People) -> float:
    """Share of right joints."""
    return float(right.sum() / max(people.labelled.sum(), 1))


def open_split(config: Any, trained: Trained, name: str) -> Split:
    """People of one split.

    Raises:
      UserError: an unknown split, or nobody with a joint of the model.
    """
    if name not in SECTIONS:
        raise UserError(f"analyse.splits holds {name!r}; use {' or '.join(SECTIONS)}")
    source = data.open_source(
        SECTIONS[name](config), root=data_root(), skeleton=config.skeleton
    )
    count = min(config.analyse.count or len(source), len(source))
    rows = np.linspace(0, len(source) - 1, count).round().astype(int)
    skeleton = trained.recipe.skeleton
    labelled = [
        (to_skeleton(source.person(r), source.skeleton, skeleton).visible > 0).any()
        for r in rows.tolist()
    ]
    rows = rows[np.array(labelled, bool)]
    if not len(rows):
        raise UserError(
            f"nobody in {source.name} has a keypoint of skeleton {skeleton.name!r}"
        )
    return Split(name, source, rows, people_of(trained, source, rows))


def people_of(trained: Trained, source: Source, rows: np.ndarray) -> People:
    """People of some rows of a source."""
    recipe = trained.recipe
    people, true, visible = evaluation.people_arrays(source, rows.tolist(), recipe)
    return People(
        people, true, visible,
        sides=pck_.box_longer_side(np.stack([p.box for p in people])),
        matrices=np.stack([crop_matrix(p, recipe.view) for p in people]),
        groups=[p.image_id for p in people],
    )  # fmt: skip


def select(people: People, index: np.ndarray) -> People:
    """Some of the people."""
    return People(
        [people.people[i] for i in index], people.true[index], people.visible[index],
        people.sides[index], people.matrices[index], [people.groups[i] for i in index],
    )  # fmt: skip


def people_attributes(
    context: Context, split: Split, index: np.ndarray
) -> dict[str, np.ndarray]:
    """What labels say about some people of a split. `truncation` and `scale_px` are those of
    the boxes, which are the crops themselves where the data option `thesis` made them."""
    people = select(split.people, index)
    boxes = np.stack([p.box for p in people.people])
    sizes = _image_sizes(split.source, split.rows[index])
    skeleton = context.trained.recipe.skeleton
    return attributes.attributes(people.true, people.visible, boxes, sizes, skeleton)


def _image_sizes(source: Any, rows: Sequence[int] | np.ndarray) -> np.ndarray | None:
    """(height, width) of people's pictures where a source knows without decoding them."""
    listed = (
        getattr(source, "ground_truth", None) if hasattr(source, "people") else None
    )
    try:
        images = {i["id"]: (i["height"], i["width"]) for i in listed["images"]}  # type: ignore[index]
        return np.array([images[source.person(int(r)).image_id] for r in rows], float)
    except (TypeError, KeyError):
        return None


def spread(rows: np.ndarray, count: int) -> np.ndarray:
    """At most so many of them, evenly."""
    picked = np.linspace(0, len(rows) - 1, min(count, len(rows)))
    return rows[picked.astype(int)]
