"""Listed rows instead of whole games: each distinct coalition of each game once.

A player that changes nothing (a keypoint without a place owns no pixel) makes coalitions that
differ in it alone worth the same. The full sweep evaluates them all; a list of the distinct
ones is shorter by a factor of two for each such player, and equal to the last bit.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
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
    return jax.tree.map(lambda v: v[inverse], values), taken


def evaluate_rows(
    value_fn: Callable[..., Any],
    inputs: PyTree,
    game: Int[Array, "r"],
    *,
    games: PyTree,
    args: tuple = (),
    chunk_size: int | None = None,
    longest: int = 0,
) -> PyTree:
    """`value_fn(input, *args, game)` for a list of (input, game) pairs, in equal chunks.

    The number of chunks is traced: lists of any length up to `longest` share one program.

    Args:
      inputs: tree of [r, ...]. game: number of each row's game.
      longest: rows that later calls may need (saves their compilation).

    Returns:
      Tree of [r, *out].
    """
    count = len(np.asarray(game))
    chunk = chunk_size or _default_chunk(value_fn, inputs, args, games)
    longest = max(longest, count, 1)
    chunk = min(chunk, longest)
    length = -(-longest // chunk) * chunk

    program = _program(value_fn, chunk)
    listed = inputs, np.asarray(game, np.int32)
    padded = jax.tree.map(lambda x: extend(x, length), listed)
    steps = jnp.int32(-(-count // chunk))
    return jax.tree.map(lambda v: v[:count], program(steps, padded, args, games))


def extend(leaf, length: int) -> np.ndarray:
    """Copies of the first entry up to a length."""
    leaf = np.asarray(leaf)
    return np.concatenate([leaf, np.repeat(leaf[:1], length - len(leaf), 0)])


def _default_chunk(value_fn, inputs, args, games) -> int:
    def first(leaf):
        aval = jax.typeof(leaf)
        return jax.ShapeDtypeStruct(aval.shape[1:], aval.dtype)

    given = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), args)
    closed = jax.make_jaxpr(lambda *a: value_fn(*a))(
        jax.tree.map(first, inputs), *given, jax.tree.map(first, games)
    )
    return chunk_rows(closed.jaxpr)


@functools.lru_cache(maxsize=64)
def _program(value_fn: Callable, chunk: int) -> Callable:
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

    return jax.jit(evaluate)
