"""Data: sources of people, crops store, augmentation, pipeline."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from pose_jax import skeletons
from pose_jax.data import sources
from pose_jax.data.checks import NO_AP, DataError
from pose_jax.data.crops import CropsSource
from pose_jax.data.figures import Figure, FigureSource
from pose_jax.data.lsp import lsp
from pose_jax.data.mpii import mpii
from pose_jax.data.sources import Filters, PeopleSource, Person, Source
from pose_jax.data.thesis import FIRST_PIXEL, thesis_crops
from pose_jax.data.weights import read_weights, weighted
from pose_jax.data.worlds import SKELETON as WORLD_SKELETON
from pose_jax.data.worlds import Scene, WorldSource


@dataclasses.dataclass
class FigurePeople:
    """Synthetic figures as a source of people."""

    figures: FigureSource

    def __post_init__(self):
        self.name = f"figures(seed={self.figures.seed}, count={self.figures.count})"
        self.skeleton = skeletons.get(self.figures.skeleton)
        self.dropped: dict[str, int] = {}
        # A row is asked for its labels and for its picture; both come from one drawing.
        self._render = functools.lru_cache(maxsize=256)(self.figures.render)

    def __getstate__(self):
        return {"figures": self.figures}

    def __setstate__(self, state):
        self.__init__(**state)

    def __len__(self) -> int:
        return len(self.figures)

    def person(self, row: int) -> Person:
        figure: Figure = self._render(row)
        return Person(
            id=row + 1,
            image_id=row + 1,
            file_name=f"figure {row}",
            box=figure.box,
            keypoints=figure.keypoints,
            visible=figure.visible,
            area=float(figure.area),
        )

    def image(self, row: int) -> UInt8[np.ndarray, "h w 3"]:
        return self._render(row).image


@dataclasses.dataclass
class WorldPeople:
    """The figures of a world with planted causes as a source of people."""

    worlds: WorldSource

    def __post_init__(self):
        w = self.worlds
        test = ", test" if w.test else ""
        self.name = f"worlds({w.world}{test}, seed={w.seed}, count={w.count})"
        self.skeleton = WORLD_SKELETON
        self.dropped: dict[str, int] = {}
        # Small pictures that are slow to draw: training comes back to each several times.
        self._render = functools.lru_cache(maxsize=2**14)(self._draw)

    def __getstate__(self):
        return {"worlds": self.worlds}

    def __setstate__(self, state):
        self.__init__(**state)

    def _draw(self, row: int) -> UInt8[np.ndarray, "h w 3"]:
        return self.worlds.render(self.worlds.scene(row))

    def __len__(self) -> int:
        return len(self.worlds)

    def person(self, row: int) -> Person:
        scene: Scene = self.worlds.scene(row)
        points, size = self.worlds.keypoints(scene), self.worlds.size
        near, far = points.min(1) >= -0.5, points.max(1) < size - 0.5
        inside = near & far
        return Person(
            id=row + 1,
            image_id=row + 1,
            file_name=f"{self.worlds.world} {row}",
            # From the first pixel's centre to the last's: with `input.padding=1` the crop of the
            # default codec is the picture itself, pixel by pixel.
            box=np.array([0.0, 0.0, size - 1, size - 1]),
            keypoints=np.where(inside[:, None], points, 0.0),
            visible=np.where(inside, 2, 0),
            area=0.25 * size**2,
        )

    def image(self, row: int) -> UInt8[np.ndarray, "h w 3"]:
        return self._render(row)


def open_source(
    section: Any, *, root: Path | None, skeleton: str, area_source: str = "annotation",
    need_area: bool = False,
) -> Source:  # fmt: skip
    """The source that a config section describes (see `config.source`).

    Args:
      root: folder that relative paths start from (`POSE_JAX_DATA`).
      skeleton: the model's skeleton; figures are drawn for it.

    Raises:
      DataError: missing or faulty files, nobody left after the filters, thesis crops of
        people without pictures of their own.
      ValueError: unknown source or crop name.
    """
    if section.crop not in CROPS:
        raise ValueError(
            f"crop is {section.crop!r}; use '' (the box as it is) or 'thesis'"
        )
    opener = SOURCES.get(section.name)
    if opener is None:
        raise ValueError(
            f"unknown data source {section.name!r}; choose one of {', '.join(SOURCES)}"
        )
    plain = section
    if section.crop:
        # The square is that of all labels, and people are counted once they have one: a
        # store of such crops, filtered when it is read, holds the same.
        plain = section.copy_and_resolve_references()
        plain.update(labels="all", limit=0)
    source = opener(
        plain,
        root=root,
        skeleton=skeleton,
        area_source=area_source,
        need_area=need_area,
    )
    if section.crop:
        source = _cropped(source, section)
    if section.weights:
        # Weights come out of a run, so a path from here is taken first.
        given = Path(section.weights)
        path = given if given.exists() else under(root, section.weights)
        source = weighted(source, read_weights(path), str(path))
    return source


def _cropped(source: Source, section: Any) -> Source:
    if not isinstance(source, PeopleSource):
        raise DataError(
            f"crop={section.crop!r} needs whole pictures, which data source "
            f"{section.name!r} lacks; use coco, mpii or lsp (the task prepare can store "
            "such crops)"
        )
    # Only COCO's labels are misread by the thesis: the others are 0-based when they arrive.
    first_pixel = FIRST_PIXEL if section.name == "coco" else 0.0
    cropped = thesis_crops(source, first_pixel=first_pixel)
    # Sizes were judged by the annotated boxes.
    filters = dataclasses.replace(
        filters_of(section), part="all", min_side_px=0.0, min_height_px=0.0
    )
    return sources.narrow(cropped, filters)


def _figures(section, *, skeleton, **_) -> Source:
    figures = FigureSource(
        section.count or 1000,
        seed=section.seed,
        size=tuple(section.size),
        skeleton=skeleton,
    )
    return FigurePeople(figures)


def _worlds(section, *, skeleton, **_) -> Source:
    if skeleton != WORLD_SKELETON.name:
        raise ValueError(
            f"worlds have the joints of {WORLD_SKELETON.name!r}; set config.skeleton to it, not "
            f"{skeleton!r}"
        )
    height, width = section.size
    if height != width:
        raise ValueError(f"pictures of worlds are square; size={tuple(section.size)}")
    return WorldPeople(
        WorldSource(
            section.count or 1000,
            world=section.world,
            seed=section.seed,
            size=height,
            test=section.world_test,
        )
    )


def _coco(section, *, root, area_source, need_area, **_) -> Source:
    return sources.coco(
        under(root, section.path),
        under(root, section.images),
        filters=filters_of(section),
        area_source=area_source,
        need_area=need_area,
    )


def _mpii(section, *, root, need_area, **_) -> Source:
    return mpii(
        under(root, section.path),
        under(root, section.images),
        filters=filters_of(section),
        need_area=need_area,
    )


def _lsp(section, *, root, area_source, need_area, **_) -> Source:
    return lsp(
        str(under(root, section.path)),
        under(root, section.images),
        filters=filters_of(section),
        need_area=need_area and area_source == "annotation",
    )


def _crops(section, *, root, area_source, need_area, **_) -> Source:
    if need_area:
        raise DataError(NO_AP)
    return CropsSource(under(root, section.path), filters_of(section), area_source)


def _tfds(section, *, root, area_source, need_area, **_) -> Source:
    if need_area:
        raise DataError(NO_AP)
    from pose_jax.data.tfds_coco import TfdsSource  # Slow to import.

    return TfdsSource(under(root, section.path), filters_of(section), area_source)


def filters_of(section: Any) -> Filters:
    """The filters of a config section."""
    return Filters(
        min_keypoints=section.min_keypoints,
        min_side_px=section.min_side_px,
        min_height_px=section.min_height_px,
        limit=section.limit,
        part=section.part,
        holdout=section.holdout,
        holdout_unit=section.holdout_unit,
        labels=section.labels,
    )


def under(root: Path | None, path: str) -> Path:
    """A path of the config: relative ones start from the folder of data sets."""
    return Path(path) if root is None else root / path


CROPS = ("", "thesis")
"""Values of `config.data.*.crop`."""

SOURCES: dict[str, Callable[..., Source]] = {
    "figures": _figures,
    "worlds": _worlds,
    "coco": _coco,
    "mpii": _mpii,
    "lsp": _lsp,
    "crops": _crops,
    "tfds": _tfds,
}
"""Name in `config.data.*.name` -> opener."""
