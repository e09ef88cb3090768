"""People as one array on disk: labels by row, without touching a picture.

A prepared data set keeps this table beside its records. It is memory-mapped, so 150,000
people open in milliseconds and worker processes share them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from pose_jax.data import checks
from pose_jax.data.sources import AREA_OF_BOX, Filters, Person, named_skeleton


def to_table(
    people: Sequence[Person], records: Iterable[int], scales: Iterable[float]
) -> np.ndarray:
    """A structured array with a row per person.

    Args:
      people: in the order of the rows.
      records: number of the record that holds each person's picture.
      scales: pixels of the stored picture per pixel of the original one.
    """
    k = len(people[0].visible) if people else 0
    names = [p.file_name.encode() for p in people]
    columns = {
        "id": np.array([p.id for p in people]),
        "image_id": np.array([p.image_id for p in people]),
        "file_name": np.array(names, f"S{max(map(len, names), default=1)}"),
        "box": np.array([p.box for p in people]).reshape(-1, 4),
        "keypoints": np.array([p.keypoints for p in people]).reshape(-1, k, 2),
        "visible": np.array([p.visible for p in people], np.int8).reshape(-1, k),
        "area": np.array([p.area for p in people], float),
        "head_size": np.array([p.head_size for p in people], float),
        "record": np.fromiter(records, np.int64),
        "scale": np.fromiter(scales, float),
    }
    fields = [(name, c.dtype, c.shape[1:]) for name, c in columns.items()]
    table = np.empty(len(people), fields)
    for name, column in columns.items():
        table[name] = column
    return table


def load_table(path: Path) -> np.ndarray:
    """The table of a file, memory-mapped.

    Raises:
      DataError: no such file, or not one that `numpy.save` wrote.
    """
    try:
        # As a plain array: indexing a memmap is ten times slower.
        return np.load(path, mmap_mode="r").view(np.ndarray)
    except (OSError, ValueError) as error:
        raise checks.DataError(
            f"{path} cannot be read ({error}); run the prepare task again"
        ) from None


def person_at(table: np.ndarray, row: int, area_source: str = "annotation") -> Person:
    """The person of a row, in pixels of the stored picture."""
    entry = table[row]
    box = np.array(entry["box"])
    area = (
        entry["area"] if area_source == "annotation" else AREA_OF_BOX * box[2] * box[3]
    )
    return Person(
        id=entry["id"].item(),
        image_id=entry["image_id"].item(),
        file_name=entry["file_name"].decode(),
        box=box,
        keypoints=np.array(entry["keypoints"]),
        visible=entry["visible"].astype(int),
        area=float(area),
        head_size=float(entry["head_size"]),
    )


def select_rows(
    table: np.ndarray, filters: Filters, dropped: Counter[str], name: str
) -> Int[np.ndarray, "n"]:
    """Rows that pass the filters; sizes count in pixels of the original picture.

    Raises:
      DataError: nobody is left; the reasons are counted in `dropped`.
    """
    used = np.ones(len(table), bool)
    if filters.part != "all":
        used = _in_part(table, filters)
    labelled = (filters.usable(table["visible"]) > 0).sum(1)
    sides = table["box"][:, 2:].max(1) / table["scale"]
    heights = table["box"][:, 3] / table["scale"]
    none = used & (labelled == 0) & (filters.labels == "visible")
    few = used & ~none & (labelled < filters.min_keypoints)
    small = used & ~none & ~few & (sides < filters.min_side_px)
    low = used & ~none & ~few & ~small & (heights < filters.min_height_px)
    for group in (none, few, small, low):
        if group.any():
            first = int(np.argmax(group))
            reason = filters.reason(
                int(labelled[first]), float(sides[first]), float(heights[first])
            )
            dropped[str(reason)] += int(group.sum())
    rows = np.flatnonzero(used & ~none & ~few & ~small & ~low)
    if filters.limit:
        rows = rows[: filters.limit]
    checks.require_some(len(rows), dropped, name)
    return rows


def _in_part(table: np.ndarray, filters: Filters) -> np.ndarray:
    column = table["id" if filters.holdout_unit == "person" else "image_id"]
    ids = np.unique(column)
    inside = [filters.in_part(i, i) for i in ids.tolist()]
    return np.isin(column, ids[np.array(inside, bool)])


class TableSource:
    """People of a table, by row; a subclass brings `name` and the pictures.

    Pickled as the arguments that opened it, so that worker processes open it anew.

    Attributes:
      rows: numbers of the selected rows of the table.
    """

    def __init__(self, path: str | Path, filters: Filters | None, area_source: str):
        self._arguments = path, filters, area_source
        self._filters, self._area_source = filters or Filters(), area_source

    def _open(
        self,
        table: Path,
        skeleton: Mapping[str, Any],
        dropped: Mapping[str, int],
        people: int | None = None,
    ) -> None:
        """Reads the labels and selects rows.

        Args:
          people: how many the data set claims to hold.

        Raises:
          DataError: a damaged table, or nobody left after the filters.
        """
        self.skeleton = named_skeleton(
            skeleton["keypoints"], skeleton["name"], skeleton["limbs"]
        )
        self.dropped = Counter(dropped)
        self._table = load_table(table)
        if people is not None and len(self._table) != people:
            raise checks.DataError(
                f"{self._arguments[0]} is damaged: {people} people are promised, the table "
                f"holds {len(self._table)}; delete it and run the prepare task again"
            )
        self.rows = select_rows(
            self._table, self._filters, self.dropped, str(self._arguments[0])
        )

    def __reduce__(self):
        return type(self), self._arguments

    def __len__(self) -> int:
        return len(self.rows)

    def person(self, row: int) -> Person:
        """The labels, in pixels of `image(row)`."""
        person = person_at(self._table, int(self.rows[row]), self._area_source)
        return self._filters.relabel(person)
