"""From a source to batches: order, decoding, one warp per sample, padding.

Training order is a global shuffle, then a slice per process; it depends on the seed alone,
never on the number of workers, and its position is saved with the checkpoint.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import functools
import json
from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import grain
import numpy as np

from pose_jax import geometry, skeletons
from pose_jax.data.augment import Augment, sample_matrix, transform_person
from pose_jax.data.images import ImageError
from pose_jax.data.sources import Person, Source
from pose_jax.pixels import InputSpec
from pose_jax.skeletons import Skeleton


@dataclasses.dataclass(frozen=True)
class View:
    """How people of a source become crops for a model.

    Attributes:
      spec: crop size and padding.
      unit: box convention of the codec (see `geometry`).
      skeleton: the model's skeleton; joints are mapped by name, others are unlabelled.
    """

    spec: InputSpec
    unit: bool
    skeleton: Skeleton


def to_skeleton(person: Person, source: Skeleton, target: Skeleton) -> Person:
    """The person with the keypoints of another skeleton (missing ones unlabelled)."""
    if source.keypoints == target.keypoints:
        return person
    shared = skeletons.mapping(source, target)
    keypoints = np.zeros((target.num_keypoints, 2))
    visible = np.zeros(target.num_keypoints, int)
    keypoints[shared.target] = person.keypoints[shared.source]
    visible[shared.target] = person.visible[shared.source]
    return dataclasses.replace(person, keypoints=keypoints, visible=visible)


def crop_matrix(person: Person, view: View) -> np.ndarray:
    """The matrix of an unaugmented crop."""
    return geometry.crop_matrix(
        person.box,
        view.spec.size,
        padding=view.spec.padding,
        unit=view.unit,
        area=view.spec.area,
    )


def make_sample(
    source: Source,
    row: int,
    view: View,
    augment: Augment | None = None,
    generator: np.random.Generator | None = None,
) -> dict[str, Any]:
    """One row of a batch. A picture that cannot be read gives `mask = False`."""
    person = to_skeleton(source.person(row), source.skeleton, view.skeleton)
    flip = False
    if augment is not None and generator is not None:
        matrix, flip = sample_matrix(
            person,
            view.skeleton,
            view.spec,
            augment,
            unit=view.unit,
            generator=generator,
        )
    else:
        matrix = crop_matrix(person, view)
    keypoints, visible = transform_person(
        person, view.skeleton, matrix, view.spec.size, flip=flip
    )
    readable = True
    try:
        crop = geometry.warp(source.image(row), matrix, view.spec.size)
    except ImageError:
        readable = False
        crop = np.zeros((*view.spec.size, 3), np.uint8)
        visible = np.zeros_like(visible)
    return {
        "image": crop,
        "keypoints": keypoints.astype(np.float32),
        "visible": visible.astype(np.int32),
        "weight": np.float32(person.weight) * (visible > 0).astype(np.float32),
        "id": np.int32(row),
        "mask": np.bool_(readable),
        "matrix": matrix,
        "box": person.box.astype(np.float32),
    }


class _Augmented(grain.transforms.MapWithIndex):
    """Row numbers of a batch -> augmented batch (a class, so that workers can pickle it).

    A whole batch travels between processes at once; sample by sample, the receiving process
    would be the limit. Draws depend on the seed and the place in the order of all processes,
    so they are the same however the order is shared out.
    """

    def __init__(
        self, source, view, augment, *, seed: int, process: int, processes: int
    ):
        self._arguments = source, view, augment
        self._seed, self._process, self._processes = seed, process, processes

    def map_with_index(self, index, element):
        source, view, augment = self._arguments
        samples = []
        for place, row in enumerate(element, start=int(index) * len(element)):
            key = self._seed, place * self._processes + self._process
            generator = np.random.Generator(
                np.random.Philox(key=np.array(key, np.uint64))
            )
            samples.append(make_sample(source, int(row), view, augment, generator))
        return {name: np.stack([s[name] for s in samples]) for name in samples[0]}


def train_iterator(
    source: Source,
    view: View,
    augment: Augment,
    *,
    batch: int,
    seed: int,
    process: int = 0,
    processes: int = 1,
    workers: int = 0,
    threads: int = 4,
) -> TrainIterator:
    """Endless shuffled batches of this process's share.

    Args:
      batch: rows per step over all processes.
      workers: extra decoding processes (0 = threads only).
      threads: decoding threads; OpenCV releases the lock.

    Raises:
      ValueError: fewer people than processes, or a batch the processes cannot share.
    """
    if batch % processes:
        raise ValueError(
            f"train.batch={batch} is not divisible by {processes} processes"
        )
    usable = len(source) // processes * processes
    if usable == 0:
        raise ValueError(f"{len(source)} people cannot feed {processes} processes")
    cv2.setNumThreads(1)  # One picture per thread; nested threads only fight.
    rows = grain.MapDataset.range(len(source)).seed(seed).shuffle()
    rows = rows[:usable][process::processes].repeat(None)
    batches = rows.batch(batch // processes, drop_remainder=True).map_with_index(
        _Augmented(
            source, view, augment, seed=seed, process=process, processes=processes
        )
    )
    threads = max(threads, 1)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads + 1)
    dataset = batches.to_iter_dataset(options)
    if workers:
        dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
    return TrainIterator(iter(dataset))


class TrainIterator:
    """Batches plus the position *before* the batch in hand, which is what resuming needs:
    the loop fetches one batch ahead of the step it runs."""

    def __init__(self, iterator: Any):
        self._iterator = iterator
        self._positions: collections.deque[Any] = collections.deque([self._position()])

    def _position(self) -> str:
        return json.dumps(self._iterator.get_state())

    def __next__(self) -> dict[str, np.ndarray]:
        batch = next(self._iterator)
        self._positions.append(self._position())
        while len(self._positions) > 8:
            self._positions.popleft()
        return batch

    def __iter__(self) -> TrainIterator:
        return self

    def state(self, ahead: int = 0) -> bytes:
        """Position as if the last `ahead` batches had not been fetched."""
        return self._positions[-1 - ahead].encode()

    def set_state(self, state: bytes) -> None:
        self._iterator.set_state(json.loads(state.decode()))
        self._positions = collections.deque([self._position()])


def eval_batches(
    source: Source,
    view: View,
    *,
    batch: int,
    rows: Sequence[int] | None = None,
    process: int = 0,
    processes: int = 1,
    threads: int = 4,
) -> Iterator[dict[str, np.ndarray]]:
    """Every row once, in order; each process gets its slice of every batch.

    The last batch is padded with copies whose `mask` is False. Unreadable pictures raise.

    Raises:
      ImageError: a picture cannot be read (named): a score over the rest would be silent.
    """
    rows = list(range(len(source)) if rows is None else rows)
    share = batch // processes
    load = functools.partial(_load_strict, source, view)
    with concurrent.futures.ThreadPoolExecutor(max(threads, 1)) as pool:
        pending: collections.deque[Any] = collections.deque()
        starts = range(0, len(rows), batch)
        upcoming = iter(starts)

        def submit() -> None:
            start = next(upcoming, None)
            if start is not None:
                mine = rows[start : start + batch][process * share :][:share]
                pending.append([pool.submit(load, row) for row in mine])

        for _ in range(3):
            submit()
        for _ in starts:
            samples = [future.result() for future in pending.popleft()]
            submit()
            yield _stack(samples, share, view)


def _load_strict(source: Source, view: View, row: int) -> dict[str, np.ndarray]:
    sample = make_sample(source, row, view)
    if not sample["mask"]:
        source.image(row)  # Raises with the file's name.
        raise ImageError(f"row {row} of {source.name} could not be read")
    return sample


def _stack(samples, share: int, view: View) -> dict[str, np.ndarray]:
    if not samples:
        k = view.skeleton.num_keypoints
        empty = {
            "image": np.zeros((*view.spec.size, 3), np.uint8),
            "keypoints": np.zeros((k, 2), np.float32),
            "visible": np.zeros(k, np.int32),
            "weight": np.zeros(k, np.float32),
            "id": np.int32(0),
            "mask": np.bool_(False),
            "matrix": np.eye(3),
            "box": np.zeros(4, np.float32),
        }
        samples = [empty]
    padding = dict(samples[-1], mask=np.bool_(False), weight=samples[-1]["weight"] * 0)
    samples = samples + [padding] * (share - len(samples))
    return {name: np.stack([s[name] for s in samples]) for name in samples[0]}
