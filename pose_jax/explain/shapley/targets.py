"""The target axis of a value function: its length and its missing labels."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def check_valid(target_valid: Any, targets: int, games: bool) -> None:
    """Refuse a mask that does not match the targets (and games)."""
    shape = jnp.shape(target_valid)
    if shape[-1:] != (targets,) or len(shape) != (2 if games else 1):
        needed = f"[games, {targets}]" if games else f"[{targets}]"
        raise ValueError(f"target_valid has shape {list(shape)}; it needs {needed}")


@dataclasses.dataclass(frozen=True)
class Targets:
    """The value function, its target axis checked and its invalid targets set to 0.

    With `masked` the validity of the targets rides along: with the game where there are games,
    else as the last argument.
    """

    value_fn: Callable
    targets: int
    masked: bool
    games: bool

    def __call__(self, coalition, *args):
        valid = None
        if self.masked and self.games:
            *rest, (game, valid) = args
            args = (*rest, game)
        elif self.masked:
            *args, valid = args

        def clean(leaf):
            leaf = jnp.asarray(leaf)
            if leaf.shape[:1] != (self.targets,):
                raise ValueError(
                    f"value_fn returned shape {list(leaf.shape)} where its first axis must "
                    f"hold the {self.targets} targets (without target_cluster= every "
                    "player is a target)"
                )
            if valid is None:
                return leaf
            shape = (self.targets,) + (1,) * (leaf.ndim - 1)
            return jnp.where(valid.reshape(shape), leaf, 0)

        return jax.tree.map(clean, self.value_fn(coalition, *args))
