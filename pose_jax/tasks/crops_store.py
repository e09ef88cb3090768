"""Writing a crops store: cut in parts, so that an interrupted run continues, then merged."""

from __future__ import annotations

import dataclasses
import functools
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from pose_jax.config import UserError
from pose_jax.data import crops
from pose_jax.data.checks import check_unreadable
from pose_jax.data.images import ImageError
from pose_jax.data.people_table import to_table
from pose_jax.data.sources import Source
from pose_jax.writer import ProgressBar, read_json, say, write_json

_PART = 2000  # Pictures between two places where an interrupted run continues.


def write_store(
    source: Source, path: Path, cutting: crops.CropSettings, settings: dict[str, Any]
) -> int:
    """Cut everybody out of a source into the new store `path`; returns how many.

    Args:
      settings: kept in the index; unfinished work with the same ones is taken over.

    Raises:
      UserError: a foreign folder is in the way, or nobody is left.
      DataError: more than 1 % unreadable pictures.
    """
    partial = _claim_partial(path, settings)
    parts = _cut_all(source, _by_picture(source), cutting, partial)
    for part in parts:
        for reason in part.unreadable:
            say(f"left out: {reason}")
    count = _merge(partial, parts, source, settings)
    partial.rename(path)
    return count


def _claim_partial(path: Path, settings: dict[str, Any]) -> Path:
    """The folder of unfinished work: kept when it has the same settings, else emptied."""
    partial = path.parent / (path.name + ".partial")
    wanted = {"format": crops.FORMAT, "version": crops.VERSION, "settings": settings}
    if partial.exists():
        marker = read_json(partial / crops.INDEX)
        if marker is None or marker.get("format") != crops.FORMAT:
            raise UserError(f"{partial} is in the way and not ours; move or delete it")
        if {name: marker.get(name) for name in wanted} == wanted:
            return partial
        shutil.rmtree(partial)
    write_json(partial / crops.INDEX, wanted)
    return partial


def _by_picture(source: Source) -> list[list[int]]:
    """Rows of every picture, so that each is decoded once."""
    pictures: dict[tuple[Any, str], list[int]] = {}
    for row in range(len(source)):
        person = source.person(row)
        pictures.setdefault((person.image_id, person.file_name), []).append(row)
    return list(pictures.values())


@dataclasses.dataclass
class Cut:
    """The people of one picture: their records, and who has none and why."""

    records: list[bytes] = dataclasses.field(default_factory=list)
    outside: int = 0
    lost: int = 0
    unreadable: str = ""


def _cut_picture(
    source: Source, rows: Sequence[int], cutting: crops.CropSettings
) -> Cut:
    try:
        image = source.image(rows[0])
    except ImageError as error:
        return Cut(lost=len(rows), unreadable=str(error))
    done = Cut()
    for row in rows:
        person = source.person(row)
        found = crops.cut(image, person.box, cutting)
        if found is None:
            done.outside += 1
        else:
            crop, matrix = found
            moved = crops.move(person, matrix)
            done.records.append(crops.pack(crop, moved, matrix, cutting.quality))
    return done


def _cut_all(source: Source, pictures, cutting, partial: Path) -> list[Part]:
    """Every picture, in parts; those that an earlier run finished are taken over."""
    parts: list[Part] = []
    cv2.setNumThreads(1)  # One picture per thread.
    pool = ThreadPoolExecutor(os.cpu_count())
    cut = functools.partial(_cut_picture, source, cutting=cutting)
    with ProgressBar(len(pictures), "prepare") as bar:
        try:
            for first in range(0, len(pictures), _PART):
                name = partial / f"part-{first // _PART:05d}"
                part = read_part(name)
                if part is None:
                    cuts = pool.map(cut, pictures[first : first + _PART])
                    report = functools.partial(_report, bar, first)
                    part = write_part(name, cuts, report)
                parts.append(part)
                reasons = [reason for p in parts for reason in p.unreadable]
                check_unreadable(reasons, len(pictures), source.name)
                bar.update(min(first + _PART, len(pictures)))
        finally:
            pool.shutdown(cancel_futures=True)
    return parts


def _report(bar: ProgressBar, first: int, done: int) -> None:
    bar.update(first + done)


@dataclasses.dataclass
class Part:
    """A finished piece of a store: a file of records and what is not in it."""

    records: str
    outside: int
    lost: int
    unreadable: list[str]


def read_part(name: Path) -> Part | None:
    """A part that an earlier run finished; with unreadable pictures it is tried again."""
    found = read_json(name.with_suffix(".json"))
    return None if found is None or found["unreadable"] else Part(**found)


def write_part(name: Path, cuts: Iterable[Cut], report: Callable[[int], None]) -> Part:
    """The records of some pictures in a file; its summary comes last and completes it."""
    from array_record.python.array_record_module import ArrayRecordWriter

    part = Part(str(name.with_suffix(".array_record")), 0, 0, [])
    writer = ArrayRecordWriter(part.records, crops.WRITER_OPTIONS)
    for done, cut in enumerate(cuts, start=1):
        for record in cut.records:
            writer.write(record)
        part.outside += cut.outside
        part.lost += cut.lost
        part.unreadable += [cut.unreadable] if cut.unreadable else []
        report(done)
    writer.close()
    write_json(name.with_suffix(".json"), dataclasses.asdict(part))
    return part


def _merge(partial: Path, parts: Sequence[Part], source: Source, settings) -> int:
    """Turn the parts into the files of a store; returns the number of people."""
    from array_record.python.array_record_data_source import ArrayRecordDataSource
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(partial / crops.RECORDS), crops.WRITER_OPTIONS)
    people, scales = [], []
    for part in parts:
        for record in ArrayRecordDataSource(part.records):
            writer.write(record)
            fields = crops.unpack(record)
            people.append(crops.person_of(fields))
            scales.append(float(fields["matrix"][0, 0]))
    writer.close()
    if not people:
        raise UserError(
            f"nobody of {source.name} lies inside a picture; check the boxes"
        )
    np.save(partial / crops.TABLE, to_table(people, range(len(people)), scales))
    lost, outside = sum(p.lost for p in parts), sum(p.outside for p in parts)
    dropped = dict(source.dropped)
    dropped |= {"with unreadable pictures": lost} if lost else {}
    dropped |= {"outside of their picture": outside} if outside else {}
    index = crops.make_index(
        source,
        people=len(people),
        dropped=dropped,
        unreadable=[reason for part in parts for reason in part.unreadable],
        settings=settings,
    )
    for part in partial.glob("part-*"):
        part.unlink()
    write_json(partial / crops.INDEX, index)
    return len(people)
