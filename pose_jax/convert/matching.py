"""Which code base a state dict comes from, and its numbers as our variables."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pose_jax import models
from pose_jax.arrays import PyTree
from pose_jax.convert import layout
from pose_jax.convert.layout import Dialect
from pose_jax.convert.names import FAMILIES
from pose_jax.models import vit, zoo
from pose_jax.trees import flat_names

_SHOWN = 6


class MatchError(ValueError):
    """A file that does not fit the network; the message lists keys and says what to do."""


@dataclasses.dataclass(frozen=True)
class Converted:
    """Attributes:
    leaves: {name: array}, float32; all of the network's, or its trunk's with `backbone`.
    dialect: the code base whose names the file has.
    backbone: the network has no trained head.
    spare: keys of the file that were known and not needed.
    interpolated: names of position tables that were brought to another size.
    """

    leaves: dict[str, np.ndarray]
    dialect: str
    backbone: bool
    spare: tuple[str, ...] = ()
    interpolated: tuple[str, ...] = ()


def dialects(section: Mapping[str, Any], num_keypoints: int) -> dict[str, Dialect]:
    """The tables of a network by code base.

    Raises:
      ValueError: no public code base has this network.
    """
    name = section["name"]
    if name not in FAMILIES:
        raise ValueError(
            f"no public PyTorch weights are known for model.name={name!r}; conversion knows "
            f"{', '.join(FAMILIES)}"
        )
    module: Any = models.build(section, num_keypoints=num_keypoints)
    return FAMILIES[name](module.config, num_keypoints)


def convert(
    tensors: Mapping[str, np.ndarray],
    section: Mapping[str, Any],
    shapes: PyTree,
    num_keypoints: int,
    *,
    file: str = "the file",
    dialect: str = "auto",
    backbone: bool = False,
    interpolate: bool = False,
) -> Converted:
    """The network's leaves out of a state dict.

    Args:
      shapes: abstract variables of the network.
      file: for messages.
      dialect: a code base's name, or `auto` for the one whose keys fit best.
      backbone: read a trunk alone.
      interpolate: bring position tables of another size to the network's.

    Raises:
      MatchError: missing, unused or misshapen tensors; a backbone where a whole network was
        asked for.
    """
    tables = dialects(section, num_keypoints)
    name = _choose(tensors, tables, dialect, backbone)
    table = tables[name]
    missing = [k for k, places in table.table.items() if places and k not in tensors]
    unused = [k for k in tensors if k not in table.table and not table.spare(k)]
    if table.backbone and not backbone and not (missing or unused):
        raise MatchError(
            f"{file} holds a backbone without a pose head ({name}'s names): to train from it set "
            "convert.backbone_only=True and then init_from.path to the result"
        )
    if backbone and (missing or unused):
        _refuse_whole(tensors, tables, file)
    if missing or unused:
        raise MatchError(
            f"{file} does not fit model {section['name']!r} (nearest: {name}): "
            f"{_listed(missing, 'missing')} and {_listed(unused, 'not used')}"
            f"{_hint(tensors)}"
        )
    _check_constants(table, tensors, file)
    used = {k: v for k, v in tensors.items() if table.table.get(k)}
    wanted = {leaf: x.shape for leaf, x in flat_names(shapes).items()}
    _check_shapes(used, wanted, table, section, file)
    leaves = {
        leaf: np.asarray(array, np.float32)
        for leaf, array in layout.to_flax(table.table, used).items()
    }
    changed = _fit_positions(
        leaves, wanted, section, interpolate, square=table.backbone
    )
    spare = tuple(k for k in tensors if k not in used)
    return Converted(leaves, name, table.backbone, spare, changed)


def _check_constants(table: Dialect, tensors, file: str) -> None:
    """Stored tables that this network computes must be what it computes."""
    for key, ours in table.constants.items():
        there = tensors.get(key)
        if there is None or (
            there.shape == ours.shape and np.allclose(there, ours, atol=1e-5)
        ):
            continue
        what = "shape" if there.shape != ours.shape else "values"
        raise MatchError(
            f"{file}: {key} has other {what} ({list(there.shape)}) than the table that this "
            f"network computes ({list(ours.shape)}); set input.size and model.input_size to "
            "those of the weights"
        )


def _choose(tensors, tables: dict[str, Dialect], asked: str, backbone: bool) -> str:
    if asked != "auto":
        if asked not in tables:
            raise MatchError(
                f"convert.dialect={asked!r}; this network is known as "
                f"{', '.join(tables) or 'nothing public'}"
            )
        return asked
    fitting = [n for n, d in tables.items() if d.backbone or not backbone]
    if not fitting:
        raise MatchError(
            "no public code base has this network"
            if not tables
            else "this network has no backbone of its own to load"
        )

    def overlap(name: str) -> float:
        """Keys in common as a share of all."""
        table = tables[name]
        keys = {k for k, places in table.table.items() if places}
        others = {k for k in tensors if not table.spare(k)}
        return len(keys & others) / max(len(keys | others), 1)

    return max(fitting, key=overlap)


def _listed(keys: Sequence[str], what: str) -> str:
    shown = ", ".join(keys[:_SHOWN])
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return f"{len(keys)} keys are {what}" + (f" ({shown}{more})" if keys else "")


def _hint(tensors: Mapping[str, np.ndarray]) -> str:
    found = fits(tensors)
    if not found:
        return ""
    return f"; it is a {' or '.join(found)}: use configs/convert.py:{found[0]}"


def fits(tensors: Mapping[str, np.ndarray]) -> list[str]:
    """Names of the published networks that a state dict fits, keys and shapes."""
    return [
        member.name
        for member in zoo.MEMBERS
        if member.section["name"] in FAMILIES and _fits(tensors, member)
    ]


def _fits(tensors: Mapping[str, np.ndarray], member: zoo.Member) -> bool:
    wanted = None
    for table in dialects(member.section, member.num_keypoints).values():
        if table.backbone:
            continue
        keys = {k for k, places in table.table.items() if places}
        if not keys <= set(tensors) or not all(
            k in table.table or table.spare(k) for k in tensors
        ):
            continue
        if wanted is None:
            wanted = {k: x.shape for k, x in flat_names(_shapes(member)).items()}
        expected = layout.torch_shapes(table.table, wanted)
        if all(
            _same(table.table[k][0].leaf, tensors[k].shape, expected[k]) for k in keys
        ):
            return True
    return False


def _same(leaf: str, there: tuple[int, ...], here: tuple[int, ...]) -> bool:
    """Whether shapes agree; the number of keypoints is the user's, so heads may differ."""
    head = "final" in leaf or "heatmaps" in leaf or leaf.endswith("/keypoints")
    return there == here or (head and len(there) == len(here))


def _shapes(member: zoo.Member) -> PyTree:
    module = models.build(member.section, num_keypoints=member.num_keypoints)
    images = jnp.zeros((1, *member.input_size, 3))
    return jax.eval_shape(module.init, jax.random.key(0), images)


def _fit_positions(
    leaves, wanted, section, interpolate: bool, *, square: bool
) -> tuple[str, ...]:
    """Learned position tables of another length, in place; what was taken for what."""
    changed = []
    for leaf, array in leaves.items():
        shape = wanted.get(leaf)
        if leaf.rpartition("/")[2] != vit.POSITIONS or shape in (None, array.shape):
            continue
        size, patch = section.get("input_size"), section.get("patch", 16)
        there, here = array.shape[1] - 1, shape[1] - 1
        if not interpolate:
            raise MatchError(
                f"the position table is for {there} patches and model.input_size={tuple(size)} "
                f"has {here}; convert.interpolate=True brings it to that size (bicubic), or set "
                "input.size and model.input_size to those of the weights"
            )
        grid = (size[0] // patch, size[1] // patch)
        old = _grid(there, grid, square)
        leaves[leaf] = np.asarray(
            vit.interpolate_positions(jnp.asarray(array), old, grid)
        )
        changed.append(f"{leaf} from {old} to {grid} patches")
    return tuple(changed)


def _grid(count: int, like: tuple[int, int], square: bool) -> tuple[int, int]:
    """(rows, columns) of a table whose length alone is known: of a backbone (pretrained on
    square pictures) a square if it is one; else the factors whose ratio is nearest to the
    network's."""
    root = math.isqrt(count)
    if square and root * root == count:
        return root, root
    pairs = [(n, count // n) for n in range(1, count + 1) if count % n == 0]
    return min(pairs, key=lambda p: abs(math.log(p[0] / p[1] * like[1] / like[0])))


def _check_shapes(tensors, wanted, table: Dialect, section, file: str) -> None:
    """Tensors before any rule is applied: a 3x3 kernel has a 1x1 corner too."""
    expected = layout.torch_shapes(table.table, wanted)
    wrong = []
    for key, tensor in tensors.items():
        shape = expected[key]
        table_of_positions = (
            table.table[key][0].leaf.rpartition("/")[2] == vit.POSITIONS
        )
        if table_of_positions and tensor.ndim == 3 and tensor.shape[2] == shape[2]:
            continue  # Its length is looked at, and may be changed, later.
        if tensor.shape != shape:
            wrong.append((key, tensor.shape, shape))
    if wrong:
        key, there, shape = wrong[0]
        others = f" and {len(wrong) - 1} more" if wrong[1:] else ""
        raise MatchError(
            f"{file} is another network than model {section['name']!r}: {key} has shape "
            f"{list(there)} where {list(shape)} is needed{others}; the number of keypoints "
            f"comes from config.skeleton{_hint(tensors)}"
        )


def _refuse_whole(tensors, tables: dict[str, Dialect], file: str) -> None:
    """A complete network where a trunk was asked for."""
    for name, table in tables.items():
        keys = {k for k, places in table.table.items() if places}
        if not table.backbone and keys <= set(tensors):
            raise MatchError(
                f"{file} holds a whole network ({name}'s names): leave "
                "convert.backbone_only out; init_from.backbone_only=True takes its trunk"
            )
