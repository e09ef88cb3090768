"""Stored latents: what one tap of a trained network holds for every person of a source.

A folder of `index.json` (which network, tap and people), `people.npz` (ids, pictures, number
of labelled joints) and `part-00000.npy`, ...: float32 arrays `[rows, *tap shape]` that are
whole or not there, so that collecting streams, resumes part by part and is shared by
processes; reading maps them into memory.
"""

from __future__ import annotations

import functools
import io
import os
from collections.abc import Sequence
from typing import Any

import grain
import numpy as np
from etils import epath
from jaxtyping import Bool, Float, Int

from pose_jax.data.checks import DataError
from pose_jax.data.pipeline import TrainIterator
from pose_jax.writer import is_main_process, read_json, write_json

FORMAT, VERSION = "pose_jax latents", 1
INDEX, PEOPLE = "index.json", "people.npz"
_QUESTION = ("tap", "weights", "source", "rows", "input")
"""What makes two stores the same; the rest is for readers."""

LABELLED = ("all", "full")


class LatentStore:
    """Latents of one tap, by row of the people they were collected from.

    Attributes:
      path: the folder. index: what `index.json` holds: `tap`, `shape`, `weights` (of the
        network), `step`, `source`, `rows`, `part_rows`, `input`.
    """

    def __init__(self, path: Any, index: dict[str, Any]):
        self.path, self.index = epath.Path(path), index

    @classmethod
    def create(
        cls,
        path: Any,
        *,
        tap: str,
        shape: Sequence[int],
        weights: int,
        step: int,
        source: str,
        input: dict[str, Any],
        ids: Sequence[Any],
        image_ids: Sequence[Any],
        labelled: Int[np.ndarray, "n"],
        joints: int,
        part_rows: int = 0,
    ) -> LatentStore:
        """A new store, or the one that is there if it answers the same question.

        Args:
          weights: fingerprint of the network. input: how people were cut out.
          labelled: labelled joints per person. joints: of the skeleton.
          part_rows: rows of a part; by default what makes parts of at most 16 MiB.

        Raises:
          DataError: the folder holds latents of another network, tap or people.
        """
        part_rows = part_rows or part_size(shape)
        index = dict(
            format=FORMAT, version=VERSION, tap=tap, shape=list(shape), weights=weights,
            step=step, source=source, input=input, rows=len(ids), joints=joints,
            part_rows=part_rows,
        )  # fmt: skip
        folder = epath.Path(path)
        stored = read_json(folder / INDEX)
        if stored is not None:
            differing = [k for k in _QUESTION if stored.get(k) != index[k]]
            if differing:
                raise DataError(_mismatch(path, stored, index, differing))
            store = cls(path, stored)
            if store.people()["id"].tolist() == [str(i) for i in ids]:
                return store
            raise DataError(f"{path} holds latents of other people; delete it")
        if is_main_process():
            buffer = io.BytesIO()
            np.savez(
                buffer,
                id=np.array([str(i) for i in ids]),
                image_id=np.array([str(i) for i in image_ids]),
                labelled=np.asarray(labelled, np.int32),
            )
            _write(folder / PEOPLE, buffer.getvalue())
            write_json(folder / INDEX, index)
        return cls(path, index)

    @classmethod
    def open(cls, path: Any, *, weights: int | None = None) -> LatentStore:
        """A complete store.

        Args:
          weights: fingerprint of the network that the latents must come from.

        Raises:
          DataError: no store, parts are missing, or latents of another network.
        """
        index = read_json(epath.Path(path) / INDEX)
        if index is None or index.get("format") != FORMAT:
            raise DataError(
                f"{path} holds no stored latents; collect them with "
                "config.tasks=('analyse',)"
            )
        if index["version"] != VERSION:
            raise DataError(
                f"{path} has format version {index['version']}, this program reads "
                f"{VERSION}; delete it and collect again"
            )
        store = cls(path, index)
        if weights is not None and weights != index["weights"]:
            wanted = {**index, "weights": weights}
            raise DataError(_mismatch(path, index, wanted, ["weights"]))
        missing = [n for n in range(store.num_parts) if not store.part(n).exists()]
        if missing:
            raise DataError(
                f"{path} lacks {len(missing)} of {store.num_parts} parts; give the same "
                "collecting command again, it goes on from there"
            )
        return store

    def __len__(self) -> int:
        return self.index["rows"]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one latent."""
        return tuple(self.index["shape"])

    @property
    def size(self) -> int:
        """Values of one latent."""
        return int(np.prod(self.shape))

    @property
    def num_parts(self) -> int:
        return -(-len(self) // self.index["part_rows"])

    def part(self, number: int):
        """Path of a part."""
        return self.path / f"part-{number:05d}.npy"

    def part_rows(self, number: int) -> range:
        """Rows that a part holds."""
        size = self.index["part_rows"]
        return range(number * size, min((number + 1) * size, len(self)))

    def write_part(self, number: int, latents: Float[np.ndarray, "n *shape"]) -> None:
        """Store a whole part.

        Raises:
          ValueError: another shape than promised, or values that are not finite.
        """
        wanted = (len(self.part_rows(number)), *self.shape)
        if latents.shape != wanted:
            raise ValueError(f"part {number} has shape {latents.shape}, not {wanted}")
        if not np.isfinite(latents).all():
            bad = ~np.isfinite(latents).reshape(len(latents), -1).all(1)
            row = self.part_rows(number)[int(np.argmax(bad))]
            raise ValueError(
                f"the latent of row {row} is not finite; the weights hold NaN or infinity"
            )
        path = self.part(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.parent / f"{path.name}.{os.getpid()}.partial"
        with partial.open("wb") as file:
            np.save(file, latents.astype(np.float32, copy=False))
        partial.replace(path)

    def people(self) -> dict[str, np.ndarray]:
        """`id`, `image_id` (strings) and `labelled` (joints) of every row."""
        with np.load(io.BytesIO((self.path / PEOPLE).read_bytes())) as stored:
            return {name: stored[name] for name in stored.files}

    def parts(self) -> list[Float[np.ndarray, "n d"]]:
        """Every part, flattened; mapped into memory where the file system can.

        Raises:
          DataError: a part is damaged.
        """
        return [self._load(n).reshape(-1, self.size) for n in range(self.num_parts)]

    def rows(self, labelled: str = "all") -> Int[np.ndarray, "n"]:
        """Rows of everybody, or (`full`) of people whose joints are all labelled.

        Raises:
          ValueError: unknown name, or nobody is left.
        """
        if labelled not in LABELLED:
            raise ValueError(f"labelled is {labelled!r}; use {' or '.join(LABELLED)}")
        found = np.arange(len(self))
        if labelled == "full":
            count = self.people()["labelled"]
            found = found[count == self.index["joints"]]
        if not len(found):
            raise ValueError(
                f"none of {len(self)} people has all {self.index['joints']} joints "
                "labelled; use 'all'"
            )
        return found

    def read(self, rows: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """Latents `[n, d]` of some rows (default all), in memory."""
        if rows is None:
            return np.concatenate(self.parts())
        rows = np.asarray(rows)
        result = np.empty((len(rows), self.size), np.float32)
        where = rows // self.index["part_rows"]
        for number in np.unique(where):
            mine = where == number
            local = rows[mine] - number * self.index["part_rows"]
            result[mine] = self._load(int(number)).reshape(-1, self.size)[local]
        return result

    def selected_parts(self, rows: Int[np.ndarray, "n"]) -> list[np.ndarray]:
        """Latents of sorted rows part by part, so that a study can stream them."""
        if len(rows) == len(self):
            return self.parts()
        keep: Bool[np.ndarray, "n"] = np.zeros(len(self), bool)
        keep[rows] = True
        return [
            part[keep[np.array(self.part_rows(n))]]
            for n, part in enumerate(self.parts())
            if keep[np.array(self.part_rows(n))].any()
        ]

    def _load(self, number: int) -> np.ndarray:
        path = self.part(number)
        try:
            if "://" in str(path):
                return np.load(io.BytesIO(path.read_bytes()))
            return np.load(str(path), mmap_mode="r")
        except (OSError, ValueError, EOFError) as error:
            raise DataError(
                f"{path} is damaged ({error}); delete it and collect again"
            ) from None


def part_size(shape: Sequence[int]) -> int:
    """Rows of a part: at most 16 MiB, 1,024 rows."""
    return int(np.clip(2**22 // max(int(np.prod(shape)), 1), 1, 1024))


def _write(path, content: bytes) -> None:
    """A file that is whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Two studies may collect from one network at once; they write the same.
    partial = path.parent / f"{path.name}.{os.getpid()}.partial"
    partial.write_bytes(content)
    partial.replace(path)


def _mismatch(path, stored, asked, names: Sequence[str]) -> str:
    lines = "; ".join(f"{n}: stored {stored.get(n)}, asked {asked[n]}" for n in names)
    what = "another checkpoint" if "weights" in names else "another question"
    return f"{path} holds latents of {what} ({lines}); delete the folder, or choose another"


def latent_iterator(
    stores: Sequence[LatentStore],
    rows: Int[np.ndarray, "n"],
    *,
    batch: int,
    seed: int,
    shuffle: bool = True,
    process: int = 0,
    processes: int = 1,
) -> TrainIterator:
    """Endless batches of this process's share: `latent [b, stores, *shape]`, `id`, `mask`.

    Args:
      stores: one per stack, of the same people. shuffle: else in file order, as the thesis.

    Raises:
      ValueError: fewer latents than processes, or a batch the processes cannot share.
    """
    if batch % processes or len(rows) < processes:
        raise ValueError(
            f"{len(rows)} latents in batches of {batch} cannot feed {processes} processes"
        )
    usable = len(rows) // processes * processes
    order: Any = grain.MapDataset.range(len(rows))
    if shuffle:
        order = order.seed(seed).shuffle()
    order = order[:usable][process::processes].repeat(None)
    batches = order.batch(batch // processes, drop_remainder=True)
    fetch = functools.partial(_fetch, tuple(stores), np.asarray(rows))
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
    return TrainIterator(iter(batches.map(fetch).to_iter_dataset(options)))


def _fetch(stores, rows, chosen) -> dict[str, np.ndarray]:
    mine = rows[np.asarray(chosen)]
    latents = [store.read(mine).reshape(len(mine), *store.shape) for store in stores]
    return {
        "latent": np.stack(latents, axis=1),
        "id": mine.astype(np.int32),
        "mask": np.ones(len(mine), bool),
    }
