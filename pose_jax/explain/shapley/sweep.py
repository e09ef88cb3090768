"""The pass over all rows: chunks, weighted sums, and the split over devices.

Rows of many games lie behind each other in one flat axis (row = game x rows + coalition),
which is cut into equal shares for the devices and into chunks inside each share. A chunk's
values are multiplied by the weights of their rows and added to [p, *out] sums, so memory
does not grow with the number of rows unless the table of single values is kept.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding

from pose_jax.explain.shapley.coalitions import PyTree

NO_ROW = int(np.iinfo(np.int32).max)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is summed over the rows; hashable, so that programs can be kept by it."""

    num_players: int
    rows: int

    def masks(self, row: Any, coalitions: Any) -> Any:
        """[r] row numbers -> [r, n] coalitions."""
        return coalitions[row]

    def weights(self, masks: Any) -> Any:
        """[r, n] coalitions -> [r, p] weights of their values in p sums (None: no sums)."""
        return None

    def result(self, sums: PyTree) -> Any:
        """Sums [p, *out] of one game -> its record, without the table."""
        return sums


class Layout(NamedTuple):
    """The flat axis: `games` x `rows`, padded to `devices` x `steps` x `chunk`."""

    games: int
    rows: int
    devices: int
    steps: int
    chunk: int

    @property
    def total(self) -> int:
        return self.games * self.rows

    @property
    def share(self) -> int:
        """Rows of one device, padding included."""
        return self.steps * self.chunk

    @property
    def slots(self) -> int:
        """Games that one chunk can touch; chunks start at multiples of their size."""
        if self.rows % self.chunk == 0:
            return 1
        if self.chunk % self.rows == 0:
            return self.chunk // self.rows
        return min(self.games, (self.chunk + self.rows - 2) // self.rows + 1)


def fixed_layout(games: int, rows: int, devices: int, chunk: int) -> Layout:
    """Chunks of exactly this size."""
    share = -(-games * rows // devices)
    return Layout(games, rows, devices, -(-share // chunk), chunk)


def fitted_layout(games: int, rows: int, devices: int, chunk: int) -> Layout:
    """Chunks of at most this size, equal ones, of whole games where they fit."""
    share = -(-games * rows // devices)
    if games > 1 and rows <= chunk and rows <= share:
        whole = -(-share // rows)
        steps = -(-whole // (chunk // rows))
        return Layout(games, rows, devices, steps, -(-whole // steps) * rows)
    steps = -(-share // chunk)
    return Layout(games, rows, devices, steps, -(-share // steps))


def sweep(
    plan: Plan,
    layout: Layout,
    keep: bool,
    first: Any,
    coalitions: Any,
    row_values: Callable[[Any, Any, Any], PyTree],
) -> tuple[PyTree, PyTree, Any]:
    """One device's share, from flat row `first` on.

    Args:
      row_values: (flat rows [r], their games [r], their coalitions [r, n]) -> tree of
        [r, *out]; padding repeats the last row and weighs nothing.

    Returns:
      Sums [games + slots - 1, p, *out] (the surplus is padding), table [share, *out] or
      None, and the first flat row with a value that is not finite (`NO_ROW`: none).
    """
    slots, length = layout.slots, layout.games + layout.slots - 1

    def block(start):
        ids = start + jnp.arange(layout.chunk, dtype=jnp.int32)
        real = ids < layout.total
        ids = jnp.minimum(ids, layout.total - 1)
        game, row = jnp.zeros_like(ids), ids
        if layout.games > 1:
            game, row = ids // layout.rows, ids % layout.rows
        masks = plan.masks(row, coalitions)
        values = row_values(ids, game, masks)
        finite = functools.reduce(
            jnp.logical_and,
            [jnp.isfinite(v).reshape(len(ids), -1).all(1) for v in jax.tree.leaves(values)],
        )  # fmt: skip
        bad = jnp.min(jnp.where(real & ~finite, ids, NO_ROW))
        weights = plan.weights(masks)
        if weights is None:
            return game[0], None, values, bad
        weights = jnp.where(real[:, None], weights, 0)
        weigh = functools.partial(_weigh, layout, weights, game - game[0])
        return game[0], jax.tree.map(weigh, values), values, bad

    def add(total, part, game):
        if length == 1:
            return total + part
        old = lax.dynamic_slice_in_dim(total, game, slots)
        return lax.dynamic_update_slice_in_dim(total, old + part, game, 0)

    def step(carry, start):
        sums, bad = carry
        game, part, values, found = block(start)
        sums = jax.tree.map(lambda s, p: add(s, p, game), sums, part)
        return (sums, jnp.minimum(bad, found)), values if keep else None

    part = jax.eval_shape(block, jnp.int32(0))[1]
    sums = jax.tree.map(lambda p: jnp.zeros((length, *p.shape[1:]), p.dtype), part)
    carry = (sums, jnp.int32(NO_ROW))
    if layout.steps == 1:
        (sums, bad), table = step(carry, jnp.int32(first))
    else:
        starts = first + layout.chunk * jnp.arange(layout.steps, dtype=jnp.int32)
        (sums, bad), table = lax.scan(step, carry, starts)
        table = jax.tree.map(lambda t: t.reshape(-1, *t.shape[2:]), table)
    return sums, table, bad


def _weigh(layout: Layout, weights, game, values):
    """Weights [r, p], values [r, *out] -> sums [slots, p, *out], float32 at least."""
    dtype = jnp.promote_types(jnp.float32, values.dtype)
    flat = values.reshape(len(values), -1).astype(dtype)
    weights = weights.astype(dtype)
    product = functools.partial(jnp.einsum, precision=lax.Precision.HIGHEST)
    slots, p = layout.slots, weights.shape[1]
    if slots == 1:
        sums = product("rp,rf->pf", weights, flat)
    elif layout.chunk % layout.rows == 0:
        split = (slots, layout.rows, -1)
        sums = product("grp,grf->gpf", weights.reshape(split), flat.reshape(split))
    else:
        own = (game[:, None] == jnp.arange(slots)).astype(dtype)
        wide = (own[:, :, None] * weights[:, None]).reshape(len(flat), slots * p)
        sums = product("rp,rf->pf", wide, flat)
    return sums.reshape(slots, p, *values.shape[1:])


def sharded(
    one_share: Callable, layout: Layout, sharding: NamedSharding, *, gather: bool
) -> Callable:
    """`one_share(first, *operands)` on every device of the coalition axis.

    The loop over chunks runs inside, on rows that the device makes itself; only the sums
    travel, in one all-reduce. The table stays split unless it is to be gathered.
    """
    axes, spec = sharding.spec[0], type(sharding.spec)

    def local(*operands):
        first = lax.axis_index(axes).astype(jnp.int32) * layout.share
        sums, table, bad = one_share(first, *operands)
        sums = jax.tree.map(lambda s: lax.psum(s, axes), sums)
        if gather:
            table = jax.tree.map(lambda t: lax.all_gather(t, axes, tiled=True), table)
        return sums, table, lax.pmin(bad, axes)

    return jax.shard_map(
        local,
        mesh=sharding.mesh,
        in_specs=spec(),
        out_specs=(spec(), spec() if gather else spec(axes), spec()),
        check_vma=False,
    )


def chunk_rows(jaxpr: Any) -> int:
    """How many evaluations of this program to do together.

    4 MiB of the largest array are what a CPU's caches like (64 rows of a small conv net at
    64 px), but 4 rows at least, and 8 of a network whose weights are larger than the caches,
    so that reading them serves several (row by row ViTPose-S takes 1.23 times as long, a
    mobile hourglass 1.19 times); accelerators need far more work per call.
    """
    if jax.default_backend() != "cpu":
        return min(max(2**28 // max(largest_array(jaxpr), 1), 1), 8192)
    weights = sum(_bytes(variable.aval) for variable in jaxpr.invars)
    least = 8 if weights > 2**25 else 4
    return min(max(2**22 // max(largest_array(jaxpr), 1), least), 8192)


def _bytes(aval: Any) -> int:
    if not hasattr(aval, "shape") or not hasattr(aval, "dtype"):
        return 0
    return math.prod(aval.shape) * aval.dtype.itemsize


def largest_array(jaxpr: Any) -> int:
    """Bytes of the largest array that one evaluation makes."""
    best = 0
    for equation in jaxpr.eqns:
        for variable in equation.outvars:
            best = max(best, _bytes(variable.aval))
        for value in equation.params.values():
            for inner in value if isinstance(value, (tuple, list)) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    best = max(best, largest_array(inner))
    return best
