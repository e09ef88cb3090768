"""Listed rows instead of whole games: each distinct coalition of each game once.

A player that changes nothing (a keypoint without a place owns no pixel) makes coalitions that
differ in it alone worth the same. The full sweep evaluates them all; a list of the distinct
ones is shorter by a factor of two for each such player, and equal to the last bit.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding
from jaxtyping import Bool, Int

from pose_jax.explain.shapley.coalitions import Array, PyTree
from pose_jax.explain.shapley.sweep import chunk_rows


def coalition_table(
    value_fn: Callable[..., Any],
    coalitions: Bool[Array, "c n"],
    *,
    games: PyTree,
    args: tuple = (),
    null_players: Bool[Array, "m n"] | None = None,
    chunk_size: int | None = None,
    room: int = 0,
    sharding: NamedSharding | None = None,
) -> tuple[PyTree, Int[np.ndarray, "m"]]:
    """Values of coalitions for many games, equal ones evaluated once (eager calls only).

    Rows of all games lie behind each other, so no chunk is half empty but the last.

    Args:
      value_fn: (coalition [n] bool, *args, game) -> tree of [*out], for one game.
      coalitions: rows, the same for all games.
      games: tree whose leaves lead with [m].
      null_players: which players change nothing; whether they are present is then ignored.
      chunk_size: rows evaluated together; by default as in `exact_shapley`.
      room: games that the program is compiled for, at least; calls with fewer games (the
        last part of a data set) then share it.
      sharding: as in `evaluate_rows`.

    Returns:
      Tree of [m, c, *out], and how many rows each game took.

    Raises:
      ValueError: a value is not finite (game and coalition are named).
    """
    coalitions = np.asarray(coalitions, bool)
    count, (rows, players) = len(jax.tree.leaves(games)[0]), coalitions.shape
    null = np.zeros((count, players), bool)
    if null_players is not None:
        null = np.asarray(null_players, bool)
    codes = (coalitions[None] | null[:, None]) @ (
        1 << np.arange(players, dtype=np.int64)
    )
    firsts, inverse, taken = [], np.empty((count, rows), np.int64), np.zeros(count, int)
    for game in range(count):
        _, first, back = np.unique(codes[game], return_index=True, return_inverse=True)
        inverse[game] = back.reshape(-1) + sum(map(len, firsts))
        firsts.append(game * rows + first)
        taken[game] = len(first)
    listed = np.concatenate(firsts)
    room = max(room, count)
    games = jax.tree.map(lambda x: extend(x, room), games)
    values = evaluate_rows(
        value_fn,
        coalitions[listed % rows],
        listed // rows,
        games=games,
        args=args,
        chunk_size=chunk_size,
        longest=room * rows,
        sharding=sharding,
    )
    for leaf in jax.tree.leaves(values):
        finite = (
            np.isfinite(np.asarray(leaf, np.float32)).reshape(len(listed), -1).all(1)
        )
        if not finite.all():
            row = listed[int(np.argmin(finite))]
            present = np.flatnonzero(coalitions[row % rows]).tolist()
            raise ValueError(
                f"value_fn returned a value that is not finite for coalition {present} of "
                f"game {row // rows}"
            )
    # On the host: the number of distinct rows differs from call to call.
    return jax.tree.map(lambda v: np.asarray(v)[inverse], values), taken


def evaluate_rows(
    value_fn: Callable[..., Any],
    inputs: PyTree,
    game: Int[Array, "r"],
    *,
    games: PyTree,
    args: tuple = (),
    chunk_size: int | None = None,
    longest: int = 0,
    sharding: NamedSharding | None = None,
) -> PyTree:
    """`value_fn(input, *args, game)` for a list of (input, game) pairs, in equal chunks.

    The number of chunks is traced: lists of any length up to `longest` share one program.

    Args:
      inputs: tree of [r, ...]. game: number of each row's game.
      chunk_size: rows evaluated together, per device.
      longest: rows that later calls may need (saves their compilation).
      sharding: of one axis, how the rows are dealt to devices; each holds all games.

    Returns:
      Tree of NumPy arrays [r, *out].
    """
    count, devices = len(np.asarray(game)), 1
    if sharding is not None:
        devices = math.prod(sharding.mesh.shape[name] for name in _axes(sharding))
    longest = max(longest, count, 1)
    share = -(-longest // devices)
    chunk = chunk_size or _default_chunk(
        value_fn, _shapes(inputs), _shapes((args, games))
    )
    chunk = min(chunk, share)
    share = -(-share // chunk) * chunk
    # Dealt out like cards: every device gets its part of the rows that are there.
    place = np.arange(count) % devices * share + np.arange(count) // devices

    def deal(leaf):
        leaf = np.asarray(leaf)
        dealt = np.repeat(leaf[:1], devices * share, 0)
        dealt[place] = leaf
        return dealt

    listed = jax.tree.map(deal, (inputs, np.asarray(game, np.int32)))
    steps = np.int32(math.ceil(math.ceil(count / devices) / chunk))
    table = _program(value_fn, chunk, sharding)(steps, listed, args, games)
    return jax.tree.map(lambda v: np.asarray(v)[place], table)


def extend(leaf: Any, length: int) -> np.ndarray:
    """Copies of the first entry up to a length."""
    leaf = np.asarray(leaf)
    return np.concatenate([leaf, np.repeat(leaf[:1], length - len(leaf), 0)])


def _axes(sharding: NamedSharding) -> tuple[str, ...]:
    axes = sharding.spec[0]
    return (axes,) if isinstance(axes, str) else tuple(axes)


def _shapes(tree: PyTree) -> Any:
    """Hashable: the structure and the shape and type of every leaf."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, tuple((jnp.shape(x), jnp.result_type(x)) for x in leaves)


@functools.lru_cache(maxsize=64)
def _default_chunk(value_fn: Callable, inputs: Any, rest: Any) -> int:
    """From the largest array of one evaluation, which is traced once per set of shapes."""
    structure, shapes = rest
    leaves = [jax.ShapeDtypeStruct(*s) for s in shapes]
    args, games = structure.unflatten(leaves)
    first = functools.partial(
        jax.tree.map, lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype)
    )
    rows = inputs[0].unflatten([jax.ShapeDtypeStruct(*s) for s in inputs[1]])
    closed = jax.make_jaxpr(lambda *a: value_fn(*a))(first(rows), *args, first(games))
    return chunk_rows(closed.jaxpr)


@functools.lru_cache(maxsize=64)
def _program(
    value_fn: Callable, chunk: int, sharding: NamedSharding | None
) -> Callable:
    def evaluate(steps, listed, args, games):
        def block(start):
            inputs, game = jax.tree.map(
                lambda x: lax.dynamic_slice_in_dim(x, start, chunk), listed
            )
            chosen = jax.tree.map(lambda x: jnp.asarray(x)[game], games)
            return jax.vmap(lambda i, g: value_fn(i, *args, g))(inputs, chosen)

        shapes = jax.eval_shape(block, jnp.int32(0))
        length = len(listed[1])
        table = jax.tree.map(
            lambda s: jnp.zeros((length, *s.shape[1:]), s.dtype), shapes
        )

        def step(number, table):
            values = block(number * chunk)
            return jax.tree.map(
                lambda t, v: lax.dynamic_update_slice_in_dim(t, v, number * chunk, 0),
                table,
                values,
            )

        return lax.fori_loop(0, steps, step, table)

    if sharding is None:
        return jax.jit(evaluate)
    spec = type(sharding.spec)
    split = spec(_axes(sharding))
    return jax.jit(
        jax.shard_map(
            evaluate,
            mesh=sharding.mesh,
            in_specs=(spec(), split, spec(), spec()),
            out_specs=split,
            check_vma=False,
        )
    )
