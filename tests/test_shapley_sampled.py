"""Sampled Shapley values: errors shrink, intervals are honest, nothing is evaluated twice."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import shapley_reference as reference
from scipy.special import stdtrit
from test_shapley import close, lookup, saturating, weights

from pose_jax.explain import exact_shapley, sampled_shapley
from pose_jax.explain.shapley import result, sampled

ESTIMATORS = ("antithetic", "leverage")


def key(seed=0):
    return jax.random.key(seed)


def draw(n, budget, estimator, seed=0, **options):
    return sampled_shapley(
        saturating,
        n,
        budget=budget,
        estimator=estimator,
        args=(weights(n), 1.0),
        key=key(seed),
        **options,
    )


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_close_to_exact(estimator):
    exact = exact_shapley(saturating, 12, args=(weights(12), 1.0))
    errors = []
    for budget in (150, 1200):
        found = draw(12, budget, estimator)
        assert found.evaluations <= budget
        assert budget - found.evaluations < 2 * 11
        close((found.empty, found.full), (exact.empty, exact.full))
        close(found.residual, np.zeros(2), 1e-5)
        assert found.kind == estimator and found.pairs > 1
        assert found.table is None and found.converged is None
        errors.append(float(jnp.sqrt(((found.values - exact.values) ** 2).mean())))
        inside = abs(found.values - exact.values) <= 5 * found.standard_error + 1e-5
        assert inside.all()
    assert errors[1] < 0.6 * errors[0]


def test_budget_counts_distinct_evaluations():
    """The rows that are evaluated are all different, empty and full among them."""
    for estimator, n, budget in (
        ("antithetic", 6, 50), ("antithetic", 10, 400), ("leverage", 6, 61),
        ("leverage", 7, 100), ("leverage", 9, 400), ("antithetic", 40, 3000),
        ("leverage", 40, 3000),
    ):  # fmt: skip
        design = sampled.ESTIMATORS[estimator](n, budget, 4, np.random.default_rng(0))
        rows = design.coalitions
        assert len(rows) == design.stages[-1] <= budget
        assert len(np.unique(rows, axis=0)) == len(rows)
        assert not rows[0].any() and rows[1].all()
        assert budget - len(rows) <= 2 * n


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_exact_when_the_budget_covers_all(estimator):
    found = draw(7, 128, estimator, tolerance=0.1)
    exact = exact_shapley(saturating, 7, args=(weights(7), 1.0))
    close(found.values, exact.values)
    assert found.kind == "exact" and found.standard_error is None
    assert found.evaluations == 128 and found.converged.all()
    close(found.interval(), (exact.values, exact.values))
    almost = draw(7, 127, estimator)
    assert almost.kind == estimator and almost.evaluations <= 127
    close(almost.values, exact.values, 0.2)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("n,budget", [(8, 120), (11, 300)])
def test_intervals_cover(estimator, n, budget):
    """95 % intervals hold the truth in 90 to 98 % of 200 seeds, averaged over players."""
    rng = np.random.default_rng(n)
    # Dividends of one to three players and a saturating part.
    table = reference.random_table(n, seed=n, order=3)
    masks = (np.arange(2**n)[:, None] >> np.arange(n) & 1).astype(float)
    table = table / table.std() + np.tanh(masks @ rng.normal(size=n))
    truth = np.asarray(
        exact_shapley(lookup, n, args=(table.astype(np.float32),)).values
    )
    inside, bias = [], []
    for seed in range(200):
        design = sampled.ESTIMATORS[estimator](
            n, budget, 1, np.random.default_rng([seed, n])
        )
        rows = design.coalitions @ (1 << np.arange(n))
        values, error, _, degrees = design.estimate(table[rows][:, None])
        t = stdtrit(degrees, 0.975)
        inside.append(abs(values[:, 0] - truth) <= t * error[:, 0])
        bias.append(values[:, 0] - truth)
    covered = np.mean(inside)
    assert 0.90 <= covered <= 0.98, covered
    # No bias beyond what 200 draws can show.
    spread = np.std(bias, axis=0) / np.sqrt(200)
    assert (abs(np.mean(bias, axis=0)) < 4.5 * spread).all()


def test_intervals_of_a_call_are_those():
    found = draw(10, 200, "antithetic")
    low, high = found.interval()
    t = stdtrit(found.degrees_of_freedom, 0.975)
    close(high - low, 2 * t * found.standard_error, 1e-5)
    wide = found.interval(0.99)
    assert (wide[1] > high).all() and found.degrees_of_freedom == found.pairs - 1


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_tolerance_stops_early_and_forecasts(estimator):
    loose = draw(12, 3000, estimator, tolerance=0.1)
    assert loose.converged.all() and loose.evaluations < 3000
    ratio = loose.standard_error.max(0) / (loose.values.max(0) - loose.values.min(0))
    assert (ratio < 0.1).all()
    close(loose.forecast_evaluations, loose.evaluations * (ratio / 0.1) ** 2, 1e-3)
    tight = draw(12, 300, estimator, tolerance=1e-4)
    assert not tight.converged.any() and (tight.forecast_evaluations > 300).all()
    assert 300 - tight.evaluations < 24


def test_a_forecast_comes_true():
    """What the forecast asks for is about what the tolerance then takes."""
    first = draw(12, 200, "antithetic", tolerance=0.02)
    needed = float(first.forecast_evaluations.max())
    second = draw(12, int(min(needed * 1.6, 4000)), "antithetic")
    spread = second.values.max(0) - second.values.min(0)
    assert (second.standard_error.max(0) / spread < 0.02 * 1.3).all()


def test_stages_use_one_program():
    traces = []

    def value(coalition, weight):
        traces.append(1)
        return jnp.tanh(jnp.sum(coalition * weight))

    for estimator in ESTIMATORS:
        sampled_shapley(value, 12, budget=600, estimator=estimator, tolerance=1e-9,
                        args=(weights(12),), key=key())  # fmt: skip
    assert len(traces) <= 2


def test_keys_decide():
    a, b, c = (draw(10, 200, "antithetic", seed=s) for s in (0, 0, 1))
    close(a.values, b.values, 0)
    assert abs(a.values - c.values).max() > 1e-3


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_additive_games_and_trees_of_outputs(estimator):
    """Every order sees an additive game exactly; outputs keep their structure."""

    def value(coalition, weight):
        total = jnp.sum(jnp.where(coalition, weight, 0))
        return {"a": total, "b": total * jnp.ones((2, 3))}

    weight = weights(20)
    found = sampled_shapley(
        value, 20, budget=400, estimator=estimator, args=(weight,), key=key()
    )
    close(found.values["a"], weight, 1e-4)
    assert found.values["b"].shape == (20, 2, 3)
    assert found.standard_error["a"].max() < 1e-4
    close(found.values["b"][:, 1, 2], weight, 1e-4)


def upper_end(level, degrees):
    one = result.ShapleyResult(0.0, 0.0, 0.0, 0.0, degrees_of_freedom=degrees)
    return dataclasses.replace(one, standard_error=1.0).interval(level)[1]


def test_students_quantiles():
    """Against tables."""
    for degrees, expected in (
        (1, 12.706205), (2, 4.302653), (5, 2.570582), (30, 2.042272), (200, 1.971896),
        (201, 1.971837), (1000, 1.962339),
    ):  # fmt: skip
        assert abs(upper_end(0.95, degrees) - expected) < 2e-6
    assert abs(upper_end(0.99, 9) - 3.249836) < 1e-5
    assert upper_end(0.0, 7) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    "options,error,message",
    [
        (dict(budget=20), ValueError, "budget=20 is too small: two antithetic pairs"),
        (dict(budget=40, estimator="leverage"), ValueError, "too small for the regression"),
        (dict(budget=100, estimator="kernel"), ValueError, "none of antithetic, leverage"),
        (dict(budget=100, tolerance=0.0), ValueError, "tolerance=0.0"),
    ],
)  # fmt: skip
def test_mistakes_are_explained(options, error, message):
    with pytest.raises(error, match=message):
        sampled_shapley(saturating, 12, args=(weights(12), 1.0), key=key(), **options)


def test_sampling_inside_a_trace_is_explained():
    def run(weight):
        return sampled_shapley(saturating, 8, budget=60, args=(weight, 1.0), key=key())

    with pytest.raises(TypeError, match="cannot stand inside jit"):
        jax.jit(run)(weights(8))


def test_values_that_are_not_finite():
    def value(coalition):
        return jnp.where(coalition.sum() == 1, jnp.nan, 1.0)

    with pytest.raises(ValueError, match="not finite for coalition"):
        sampled_shapley(value, 10, budget=100, key=key())
