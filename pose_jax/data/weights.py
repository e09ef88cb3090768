"""A factor per person in the loss, from a file."""

from __future__ import annotations

import dataclasses
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from pose_jax.data.checks import DataError
from pose_jax.data.sources import PeopleSource, Person, Source


def read_weights(path: Path) -> dict[str, float]:
    """Person id (as text) -> factor, from an .npz with the arrays `id` and `weight`.

    Raises:
      DataError: no such file, other arrays, an id twice, or a factor that is negative or
        not finite.
    """
    try:
        with np.load(path) as file:
            ids, weights = np.asarray(file["id"]), np.asarray(file["weight"], float)
    except FileNotFoundError:
        raise DataError(
            f"weights file {path} does not exist; give a path under POSE_JAX_DATA or an "
            "absolute one"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path} is no .npz with the arrays 'id' and 'weight' ({error})"
        ) from None
    if ids.ndim != 1 or ids.shape != weights.shape:
        raise DataError(
            f"{path}: id has shape {ids.shape}, weight {weights.shape}; give one weight "
            "per id"
        )
    bad = ~(np.isfinite(weights) & (weights >= 0))
    if bad.any():
        raise DataError(
            f"{path}: {bad.sum()} weights are negative or not finite (the first is of id "
            f"{ids[bad][0]}); use numbers of 0 or more"
        )
    result = dict(zip(map(str, ids.tolist()), weights.tolist()))
    if len(result) < len(ids):
        raise DataError(
            f"{path}: {len(ids) - len(result)} ids are listed twice; list each once"
        )
    return result


def weighted(source: Source, weights: Mapping[str, float], name: str) -> Source:
    """The source with `Person.weight` set; people who are not listed keep 1.

    Raises:
      DataError: `weights` (called `name`) lists ids that the source does not have.
    """
    known = {str(source.person(row).id) for row in range(len(source))}
    strange = [i for i in weights if i not in known]
    if strange:
        raise DataError(
            f"{name}: {len(strange)} of {len(weights)} ids are not in {source.name} (the "
            f"first is {strange[0]}); write weights for the people of this source"
        )
    if isinstance(source, PeopleSource):
        people = [_weigh(person, weights) for person in source.people]
        return dataclasses.replace(source, people=people)
    return WeightedSource(source, weights)


def _weigh(person: Person, weights: Mapping[str, float]) -> Person:
    return dataclasses.replace(person, weight=weights.get(str(person.id), 1.0))


@dataclasses.dataclass
class WeightedSource:
    """A source whose people are made when asked for, with weights."""

    source: Source
    weights: Mapping[str, float]

    def __post_init__(self):
        self.name, self.skeleton = self.source.name, self.source.skeleton

    @property
    def dropped(self) -> Mapping[str, int]:
        return self.source.dropped

    @property
    def ground_truth(self) -> Any:
        return getattr(self.source, "ground_truth", None)

    def __len__(self) -> int:
        return len(self.source)

    def person(self, row: int) -> Person:
        return _weigh(self.source.person(row), self.weights)

    def image(self, row: int) -> UInt8[np.ndarray, "h w 3"]:
        return self.source.image(row)
