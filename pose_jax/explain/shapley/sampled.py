"""Shapley values from some of the coalitions, with intervals.

Two estimators, both vector-valued, both drawn on the host so that no coalition is
evaluated twice:

  antithetic  orders of the players and their reversals (Castro et al. 2009; Mitchell et al.
              2022). One pair gives one estimate of every value; pairs are independent, so
              Student's t over pairs is an honest interval.
  leverage    weighted regression on complementary pairs, drawn without replacement with
              equal shares for all sizes (Lundberg and Lee 2017; Covert and Lee 2021;
              Musco and Witter 2025, where these shares are leverage scores). Usually
              closer at equal budget. Interval: see `regression`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import NamedSharding

from pose_jax.explain.shapley import orders, regression
from pose_jax.explain.shapley.coalitions import check_players
from pose_jax.explain.shapley.evaluate import Options, Plan, run
from pose_jax.explain.shapley.exact import exact_shapley
from pose_jax.explain.shapley.result import ShapleyResult

ESTIMATORS = {"antithetic": orders.Orders, "leverage": regression.Regression}


class Estimate(NamedTuple):
    """values, standard_error [n, f] (float64), pairs used, degrees of freedom."""

    values: np.ndarray
    standard_error: np.ndarray
    pairs: int
    degrees_of_freedom: int


class Design(Protocol):
    """Which coalitions are evaluated, in which order."""

    coalitions: np.ndarray
    """[rows, n]: empty, full, then the others in order of use, all distinct."""
    stages: list[int]
    """Rows after which an estimate can be made, rising; the last one is all."""

    def estimate(self, values: np.ndarray) -> Any: ...


def sampled_shapley(
    value_fn: Callable[..., Any],
    num_players: int,
    *,
    budget: int,
    args: tuple = (),
    estimator: str = "antithetic",
    tolerance: float | None = None,
    chunk_size: int | None = None,
    sharding: NamedSharding | None = None,
    key: jax.Array,
) -> ShapleyResult:
    """Shapley values from at most `budget` distinct evaluations, with standard errors.

    Exact (`kind="exact"`) whenever the budget covers all 2^n coalitions. Eager only: the
    coalitions are drawn, and the values of all of them held, on the host.

    Args:
      value_fn, num_players, args, chunk_size, sharding: as in `exact_shapley`, with any
        number of players.
      budget: largest number of distinct coalitions evaluated, empty and full among them.
      estimator: "antithetic" or "leverage".
      tolerance: stop as soon as the largest standard error of an output is below this
        fraction of the spread (largest minus smallest) of its values; for all outputs. The
        budget stays the limit. Looking repeatedly makes intervals a little too narrow.
      key: PRNG key of the draw.

    Returns:
      Result with `.standard_error`, `.interval()`, `.pairs`; with a tolerance also
      `.converged` and `.forecast_evaluations` = evaluations x (ratio / tolerance)^2.

    Raises:
      ValueError: a budget too small for two pairs, an unknown estimator, a value that is
        not finite.
      TypeError: called inside a trace.
    """
    check_players(num_players)
    if estimator not in ESTIMATORS:
        raise ValueError(f"estimator={estimator!r} is none of {', '.join(ESTIMATORS)}")
    if tolerance is not None and not tolerance > 0:
        raise ValueError(f"tolerance={tolerance} is not positive")
    traced = any(isinstance(x, Tracer) for x in jax.tree.leaves((args, key)))
    if traced or isinstance(jnp.zeros(()), Tracer):
        raise TypeError(
            "sampled_shapley draws on the host and cannot stand inside jit or vmap; "
            "exact_shapley and group_shapley can"
        )
    options = Options(chunk_size, sharding, True)
    if math.log2(max(budget, 1)) >= num_players:
        found = exact_shapley(
            value_fn,
            num_players,
            args=args,
            chunk_size=chunk_size,
            sharding=sharding,
        )
        return _with_flags(found, tolerance)
    generator = np.random.default_rng(
        np.asarray(jax.random.key_data(key)).ravel().tolist()
    )
    stages = 1 if tolerance is None else 6
    design = ESTIMATORS[estimator](num_players, budget, stages, generator)
    return _stage_by_stage(design, estimator, value_fn, args, options, tolerance)


def _stage_by_stage(design, estimator, value_fn, args, options, tolerance):
    """Evaluate stage after stage until the tolerance is met or the rows are used up."""
    rows, n = design.coalitions.shape
    # One shape for all stages, so that one program serves them.
    size = int(max(np.diff([0, *design.stages])))
    outputs: list[np.ndarray] = []
    shapes: list[Any] = []
    structure: Any = None
    done, fit, ratios = 0, None, []
    for stage in design.stages:
        chosen = design.coalitions[done:stage]
        padded = np.concatenate([chosen, np.repeat(chosen[-1:], size - len(chosen), 0)])
        _, table = run(Plan(n, size), value_fn, args, None, padded, options)
        leaves, structure = jax.tree.flatten(table)
        shapes = [leaf.shape[1:] for leaf in leaves]
        flat = [np.asarray(x, np.float64).reshape(size, -1) for x in leaves]
        outputs.append(np.concatenate(flat, 1)[: stage - done])
        done = stage
        values = np.concatenate(outputs)
        fit = Estimate(*design.estimate(values))
        if tolerance is not None:
            spread = fit.values.max(0) - fit.values.min(0)
            worst = fit.standard_error.max(0)
            # An output without spread (constant) is known as soon as it has no error.
            ratios = np.divide(
                worst, spread, out=np.where(worst > 0, np.inf, 0.0), where=spread > 0
            )
            if (ratios < tolerance).all():
                break
    assert fit is not None
    values = np.concatenate(outputs)
    ends = np.cumsum([math.prod(s) for s in shapes])[:-1]

    def tree(array, lead=(), dtype=None):
        parts = np.split(np.asarray(array), ends, axis=-1)
        return structure.unflatten(
            [jnp.asarray(p.reshape((*lead, *s)), dtype) for p, s in zip(parts, shapes)]
        )

    def floats(array, lead=()):
        return tree(array, lead, jnp.result_type(float))

    residual = fit.values.sum(0) - (values[1] - values[0])
    converged = forecast = None
    if tolerance is not None:
        converged = tree(np.asarray(ratios) < tolerance)
        forecast = floats(done * (np.asarray(ratios) / tolerance) ** 2)
    return ShapleyResult(
        values=floats(fit.values, (n,)),
        empty=floats(values[0]),
        full=floats(values[1]),
        residual=floats(residual),
        standard_error=floats(fit.standard_error, (n,)),
        pairs=fit.pairs,
        converged=converged,
        forecast_evaluations=forecast,
        kind=estimator,
        evaluations=done,
        num_players=n,
        degrees_of_freedom=fit.degrees_of_freedom,
    )


def _with_flags(exact: ShapleyResult, tolerance: float | None) -> ShapleyResult:
    if tolerance is None:
        return exact
    spent = float(exact.evaluations)
    return dataclasses.replace(
        exact,
        converged=jax.tree.map(lambda x: jnp.ones(x.shape, bool), exact.empty),
        forecast_evaluations=jax.tree.map(
            lambda x: jnp.full(x.shape, spent), exact.empty
        ),
    )
