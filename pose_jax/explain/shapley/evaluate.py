"""A value function and a plan -> a record, as one compiled program.

Eager calls keep a bounded cache of programs and refuse values that are not finite; calls
inside a trace (`jit`, `vmap`, `grad`) become part of the caller's program.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer, eval_jaxpr
from jax.sharding import NamedSharding

from pose_jax.explain.shapley.coalitions import PyTree
from pose_jax.explain.shapley.sweep import (
    NO_ROW,
    Layout,
    Plan,
    chunk_rows,
    fitted_layout,
    fixed_layout,
    sharded,
    sweep,
)

TABLE_BYTES = 2**26
"""Larger tables are not kept unless asked for."""


@dataclasses.dataclass(frozen=True)
class Options:
    """How a game is evaluated; none of it changes the values."""

    chunk_size: int | None = None
    sharding: NamedSharding | None = None
    keep_table: bool | None = None

    def __post_init__(self):
        if self.chunk_size is not None and self.chunk_size < 1:
            raise ValueError(f"chunk_size={self.chunk_size} is not positive")
        if self.sharding is None:
            return
        spec = tuple(self.sharding.spec)
        if len(spec) != 1 or spec[0] is None:
            raise ValueError(
                f"sharding has the specification {self.sharding.spec}; it must name the "
                "mesh axes of the coalition axis and nothing else, like P('data')"
            )


def run(
    plan: Plan,
    value_fn: Callable,
    args: tuple,
    games: PyTree,
    coalitions: Any,
    options: Options,
) -> tuple[Any, PyTree]:
    """Evaluate the game.

    Args:
      coalitions: [rows, n] for plans that do not enumerate, else None.

    Returns:
      The plan's record without a table, and the table (None when not kept).

    Raises:
      TypeError: args is no tuple, or value_fn is not hashable.
      ValueError: a value is not finite (eager calls only), or bad games.
    """
    if not isinstance(args, tuple):
        raise TypeError(
            f"args must be a tuple of arguments, not {type(args).__name__}: args=(x,)"
        )
    leaves = jax.tree.leaves((args, games))
    # Inside a trace no program may be kept: value_fn can hold the caller's tracers.
    if any(isinstance(x, Tracer) for x in leaves) or isinstance(jnp.zeros(()), Tracer):
        found = _evaluate(plan, value_fn, options, True, coalitions, args, games)
        return found[0], found[1]
    try:
        hash(value_fn)
    except TypeError as error:
        raise TypeError(
            "value_fn must be hashable (a plain function); hand arrays over in args="
        ) from error
    _note_function(value_fn)
    program = _program(plan, value_fn, options)
    result, table, bad = program(coalitions, args, games)
    if not isinstance(bad, Tracer) and (row := int(bad)) != NO_ROW:
        _refuse(plan, coalitions, row, games)
    if options.sharding is not None:
        # Cut to size outside of the program: inside, this would have to gather.
        table = _trim(table, _count_games(games), plan.rows, games is None, options)
    return result, table


@functools.lru_cache(maxsize=64)
def _program(plan: Plan, value_fn: Callable, options: Options) -> Callable:
    trim = options.sharding is None
    return jax.jit(functools.partial(_evaluate, plan, value_fn, options, trim))


_SEEN: weakref.WeakSet = weakref.WeakSet()
_REMADE: collections.Counter = collections.Counter()


def _note_function(value_fn: Callable) -> None:
    """Warn when the same code comes back as a new function again and again."""
    given = getattr(value_fn, "value_fn", value_fn)  # Inside of our own wrapper.
    try:
        # A method is a new object at every access; its owner is not.
        owner = getattr(given, "__self__", given)
        if owner in _SEEN:
            return
        _SEEN.add(owner)
    except TypeError:  # No weak reference can be had; then nothing is known.
        return
    for name in ("func", "__wrapped__", "__func__"):
        given = getattr(given, name, given)
    code = getattr(given, "__code__", type(given))
    _REMADE[code] += 1
    if _REMADE[code] == 5:
        name = getattr(given, "__qualname__", repr(given))
        warnings.warn(
            f"value_fn {name} was made anew for the fifth time, and every new function "
            "compiles again: define it once and hand what changes over in args=",
            stacklevel=4,
        )


def _evaluate(plan, value_fn, options, trim: bool, coalitions, args, games):
    """Record, table and the first flat row with a value that is not finite."""
    count = _count_games(games)
    mask = jax.ShapeDtypeStruct((plan.num_players,), bool)
    game = () if games is None else (jax.tree.map(_first_game, games),)

    # JAX remembers traces by function; this one is never seen again.
    def fresh(*inputs):
        return value_fn(*inputs)

    # Traced once, here; the chunks below replay it, perhaps on another view of the mesh.
    plain = (*jax.tree.map(_without_mesh, args), *game)
    closed, shapes = jax.make_jaxpr(fresh, return_shape=True)(mask, *plain)
    leaves, structure = jax.tree.flatten(shapes)
    if not leaves:
        raise ValueError("value_fn returned no array")
    layout = _layout(plan, count, closed.jaxpr, options)
    keep = options.keep_table
    if keep is None:
        size = sum(x.size * x.dtype.itemsize for x in leaves)
        keep = layout.total * size <= TABLE_BYTES

    def one_share(first, coalitions, consts, args, games):
        given = jax.tree.leaves(args)

        def one(mask, games):
            own = jax.tree.leaves(games)
            return eval_jaxpr(closed.jaxpr, consts, mask, *given, *own)

        def row_values(ids, game, masks):
            del ids
            of = 0 if count == 1 else game
            chosen = jax.tree.map(lambda x: jnp.asarray(x)[of], games)
            axis = None if count == 1 else 0
            values = jax.vmap(one, (0, axis))(masks, chosen)
            return structure.unflatten([_floating(v) for v in values])

        return sweep(plan, layout, keep, first, coalitions, row_values)

    coalitions = None if coalitions is None else jnp.asarray(coalitions)
    operands = (coalitions, closed.consts, args, games)
    if options.sharding is None:
        sums, table, bad = one_share(0, *operands)
    else:
        uneven = games is not None or layout.devices * layout.share != layout.total
        spread = sharded(one_share, layout, options.sharding, gather=trim and uneven)
        sums, table, bad = spread(*operands)
    if trim:
        table = _trim(table, count, plan.rows, games is None)
    return _results(plan, count, sums, games is None), table, bad


def _results(plan: Plan, count: int, sums: PyTree, single: bool) -> Any:
    sums = jax.tree.map(lambda x: x[:count], sums)
    if single:
        return plan.result(jax.tree.map(lambda x: x[0], sums))
    return jax.vmap(plan.result)(sums)


@functools.partial(jax.jit, static_argnums=0)
def reduce_table(plan: Plan, table: PyTree, coalitions: Any) -> Any:
    """The plan's record from a table, a tree of [rows, *out], without evaluations."""
    layout = fitted_layout(1, plan.rows, 1, 8192)
    table = jax.tree.map(lambda v: _floating(jnp.asarray(v)), table)

    def row_values(ids, game, masks):
        del game, masks
        return jax.tree.map(lambda v: v[ids], table)

    sums, _, _ = sweep(plan, layout, False, 0, coalitions, row_values)
    return _results(plan, 1, sums, True)


def _layout(plan: Plan, games: int, jaxpr, options: Options) -> Layout:
    devices = 1
    if options.sharding is not None:
        mesh, axes = options.sharding.mesh, options.sharding.spec[0]
        names = (axes,) if isinstance(axes, str) else axes
        devices = math.prod(mesh.shape[name] for name in names)
    if options.chunk_size is not None:
        layout = fixed_layout(games, plan.rows, devices, options.chunk_size)
    else:
        layout = fitted_layout(games, plan.rows, devices, chunk_rows(jaxpr))
    if layout.devices * layout.share >= NO_ROW:
        raise ValueError(
            f"{games:,} games of {plan.rows:,} coalitions do not fit into one call "
            f"(limit {NO_ROW:,} rows); split the games"
        )
    return layout


def _trim(
    table: PyTree, games: int, rows: int, single: bool, options: Options | None = None
) -> PyTree:
    """[padded rows, *out] -> [rows, *out] or [games, rows, *out].

    A split table stays split where it needs no cutting, else every device gets all of it.
    """

    def cut(leaf):
        if single and len(leaf) == rows:
            return leaf
        if options is not None and options.sharding is not None:
            spec = type(options.sharding.spec)()
            leaf = jax.device_put(leaf, NamedSharding(options.sharding.mesh, spec))
        leaf = leaf[: games * rows]
        return leaf if single else leaf.reshape(games, rows, *leaf.shape[1:])

    return jax.tree.map(cut, table)


def _floating(values):
    if jnp.issubdtype(values.dtype, jnp.floating):
        return values
    return values.astype(jnp.float32)


def _without_mesh(leaf):
    aval = jax.typeof(leaf)
    weak = getattr(aval, "weak_type", False)
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=weak)


def _first_game(leaf):
    aval = jax.typeof(leaf)
    return jax.ShapeDtypeStruct(aval.shape[1:], aval.dtype)


def _count_games(games: PyTree) -> int:
    if games is None:
        return 1
    shapes = [np.shape(x) for x in jax.tree.leaves(games)]
    counts = {s[0] if s else 0 for s in shapes}
    if len(counts) != 1 or 0 in counts:
        raise ValueError(
            f"leaves of games have the shapes {shapes}; all must lead with the same "
            "number of games, one at least"
        )
    return counts.pop()


def _refuse(plan: Plan, coalitions, flat_row: int, games) -> None:
    game, row = divmod(flat_row, plan.rows)
    mask = np.asarray(plan.masks(np.array([row], np.int32), coalitions))[0]
    where = "" if games is None else f" of game {game}"
    raise ValueError(
        f"value_fn returned a value that is not finite for coalition "
        f"{np.flatnonzero(mask).tolist()} (row {row}{where})"
    )
