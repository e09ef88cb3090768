"""How tensors of a PyTorch state dict lie in our variables, both ways.

A family's table says for every key of a state dict where its numbers go: `{key: (Place, ...)}`.
Most tensors have one place; a packed projection has several, each a range of its rows; a key
without a place is known and not needed. Everything is NumPy, nothing is computed: a round trip
gives back the same bits.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np


class Rule(NamedTuple):
    """A layout: PyTorch's tensor -> ours, and back."""

    to_flax: Callable[[np.ndarray], np.ndarray]
    to_torch: Callable[[np.ndarray], np.ndarray]


def _turn(kernel: np.ndarray) -> np.ndarray:
    """By 180 degrees over the first two axes."""
    return kernel[::-1, ::-1]


RULES: dict[str, Rule] = {
    "same": Rule(lambda t: t, lambda a: a),
    # (out, in, y, x) <-> [y, x, in, out]
    "conv": Rule(lambda t: t.transpose(2, 3, 1, 0), lambda a: a.transpose(3, 2, 0, 1)),
    # (out, in, 1, 1) <-> [in, out]
    "conv1x1": Rule(lambda t: t[:, :, 0, 0].T, lambda a: a.T[:, :, None, None]),
    # (out, in) <-> [in, out]
    "linear": Rule(lambda t: t.T, lambda a: a.T),
    # A position table without the slot in front that ours has; an empty slot changes nothing.
    "positions": Rule(
        lambda t: np.concatenate([np.zeros_like(t[:, :1]), t], 1),
        lambda a: a[:, 1:] + a[:, :1],
    ),
    # (in, out, y, x) <-> [y, x, in, out], turned: the dilated map is correlated with it.
    "deconv": Rule(
        lambda t: _turn(t.transpose(2, 3, 0, 1)),
        lambda a: _turn(a).transpose(2, 3, 0, 1),
    ),
}
"""Name -> layout. Kernels of ours end in (inputs, outputs)."""


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a tensor, or a range of its rows, goes.

    Attributes:
      leaf: name of ours, `params/trunk/conv1/kernel`.
      rule: a key of `RULES`.
      part, parts: the tensor's first axis holds `parts` equal pieces, this is number `part`.
    """

    leaf: str
    rule: str = "same"
    part: int = 0
    parts: int = 1

    def to_flax(self, tensor: np.ndarray) -> np.ndarray:
        rows = tensor.shape[0] // self.parts if self.parts > 1 else None
        if rows is not None:
            tensor = tensor[self.part * rows : (self.part + 1) * rows]
        return RULES[self.rule].to_flax(tensor)

    def to_torch(self, array: np.ndarray) -> np.ndarray:
        return RULES[self.rule].to_torch(array)


Table: TypeAlias = dict[str, tuple[Place, ...]]


@dataclasses.dataclass(frozen=True)
class Dialect:
    """One code base's names for one network.

    Attributes:
      table: all keys that hold numbers of ours.
      also: regular expressions of further keys that such files may have and we do not need.
      backbone: the file has no pose head: the network is not complete afterwards.
      constants: tables that their code stores and ours computes: compared when they are read,
        written when we export.
    """

    table: Table
    also: tuple[str, ...] = ()
    backbone: bool = False
    constants: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def spare(self, key: str) -> bool:
        """Whether a key may stand in the file and is not needed."""
        if key in self.constants:
            return True
        places = self.table.get(key)
        if places is not None:
            return not places
        return any(re.match(pattern, key) for pattern in self.also)

    def renamed(self, rename: Callable[[str], str]) -> Dialect:
        """The same places under other keys."""
        table = {rename(key): places for key, places in self.table.items()}
        constants = {rename(key): array for key, array in self.constants.items()}
        return dataclasses.replace(self, table=table, constants=constants)


class Names:
    """Writes a table, layer by layer. `key` and `path` are prefixes without their last dot or
    slash."""

    def __init__(self):
        self.table: Table = {}

    def put(self, key: str, *places: Place) -> None:
        if key in self.table:
            raise ValueError(f"{key} stands twice in the table")
        self.table[key] = places

    def ignore(self, keys: Iterable[str]) -> None:
        """Keys that a file may have and we do not need."""
        for key in keys:
            self.put(key)

    def layer(self, key: str, path: str, rule: str, *, bias: bool = False) -> None:
        """A convolution or a linear layer."""
        self.put(f"{key}.weight", Place(f"params/{path}/kernel", rule))
        if bias:
            self.put(f"{key}.bias", Place(f"params/{path}/bias"))

    def norm(self, key: str, path: str) -> None:
        """Batch normalisation."""
        self.put(f"{key}.weight", Place(f"params/{path}/scale"))
        self.put(f"{key}.bias", Place(f"params/{path}/bias"))
        self.put(f"{key}.running_mean", Place(f"batch_stats/{path}/mean"))
        self.put(f"{key}.running_var", Place(f"batch_stats/{path}/var"))
        self.ignore([f"{key}.num_batches_tracked"])

    def layer_norm(self, key: str, path: str) -> None:
        self.put(f"{key}.weight", Place(f"params/{path}/scale"))
        self.put(f"{key}.bias", Place(f"params/{path}/bias"))

    def split(
        self, key: str, paths: Iterable[str], rule: str, *, bias: bool = True
    ) -> None:
        """A packed layer whose rows are those of several of ours, in order."""
        paths = list(paths)
        self.put(
            f"{key}weight",
            *(
                Place(f"params/{path}/kernel", rule, i, len(paths))
                for i, path in enumerate(paths)
            ),
        )
        if bias:
            self.put(
                f"{key}bias",
                *(
                    Place(f"params/{path}/bias", "same", i, len(paths))
                    for i, path in enumerate(paths)
                ),
            )


def leaves_of(table: Table) -> set[str]:
    """Names of ours that a table fills."""
    return {place.leaf for places in table.values() for place in places}


def to_flax(table: Table, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """`{leaf: array}` of the tensors, which must be keys of the table."""
    return {
        place.leaf: np.ascontiguousarray(place.to_flax(tensor))
        for key, tensor in tensors.items()
        for place in table[key]
    }


def torch_shapes(
    table: Table, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor, from those of our leaves: nothing is allocated."""
    found = {}
    for key, places in table.items():
        parts = [
            place.to_torch(np.broadcast_to(np.float32(0), shapes[place.leaf])).shape
            for place in places
            if place.leaf in shapes
        ]
        if parts:
            found[key] = (
                sum(part[0] for part in parts) if len(parts) > 1 else parts[0][0],
            )
            found[key] += parts[0][1:]
    return found


def to_torch(dialect: Dialect, leaves: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """`{key: tensor}` of all leaves that the table fills, and the constants: the other way of
    `to_flax`."""
    result = {
        key: np.ascontiguousarray(array) for key, array in dialect.constants.items()
    }
    for key, places in dialect.table.items():
        parts = [place.to_torch(np.asarray(leaves[place.leaf])) for place in places]
        if parts:
            joined = np.concatenate(parts) if len(parts) > 1 else parts[0]
            result[key] = np.ascontiguousarray(joined)
    return result
