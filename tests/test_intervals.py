"""Bootstrap intervals: coverage on simulated data, pictures and seeds as units, pairing."""

import time

import numpy as np
import pytest

from pose_jax.intervals import mean_interval, paired_difference, ratio_interval


def persons(generator, pictures=60, per_picture=3, spread=1.0, noise=1.0, entries=()):
    """Values that persons of one picture share in part; [m, *entries] and the pictures."""
    groups = np.repeat(np.arange(pictures), per_picture)
    shared = generator.normal(size=(pictures, *entries)) * spread
    return shared[groups] + generator.normal(
        size=(len(groups), *entries)
    ) * noise, groups


def test_mean_intervals_cover(generator):
    """400 entries are 400 repetitions of one study: true mean 0."""
    values, groups = persons(generator, entries=(20, 20))
    low, high = mean_interval(values, groups.tolist())
    assert low.shape == high.shape == (20, 20)
    assert 0.91 < ((low < 0) & (high > 0)).mean() < 0.97
    # Taken for independent, persons of one picture promise too much.
    low, high = mean_interval(values, range(len(values)))
    assert ((low < 0) & (high > 0)).mean() < 0.87


def test_mean_interval_is_the_ratio_interval_of_counts(generator):
    """Missing entries count for nothing, in each entry on its own."""
    values, groups = persons(generator, pictures=12, entries=(3,))
    values[generator.uniform(size=values.shape) < 0.4] = np.nan
    values[:, 1] = np.where(groups < 9, values[:, 1], np.nan)
    low, high = mean_interval(values, groups.tolist(), seed=3)
    for entry in range(3):
        there = ~np.isnan(values[:, entry])
        top = np.where(there, values[:, entry], 0)
        expected = ratio_interval(top, there.astype(float), groups.tolist(), seed=3)
        np.testing.assert_allclose((low[entry], high[entry]), expected, rtol=1e-9)


def test_entries_of_one_picture_have_no_interval(generator):
    values = generator.normal(size=(6, 4))
    groups = ["a", "a", "b", "b", "c", "c"]
    values[2:, 0] = np.nan  # Picture a alone.
    values[:, 1] = np.nan
    values[1:5, 2] = np.nan  # Pictures a and c.
    low, high = mean_interval(values, groups)
    np.testing.assert_array_equal(np.isnan(low), [True, True, False, False])
    np.testing.assert_array_equal(np.isnan(high), np.isnan(low))
    # Two persons, drawn with replacement: the ends are the persons themselves.
    np.testing.assert_allclose((low[2], high[2]), np.sort(values[[0, 5], 2]))


def test_one_value_per_person_gives_one_interval(generator):
    values, groups = persons(generator)
    low, high = mean_interval(values, groups.tolist(), level=0.5)
    wide = mean_interval(values, groups.tolist(), level=0.99)
    assert low.shape == () and wide[0] < low < values.mean() < high < wide[1]


def test_many_entries_are_taken_in_blocks(generator, monkeypatch):
    values, groups = persons(generator, pictures=10, entries=(7,))
    whole = mean_interval(values, groups.tolist())
    monkeypatch.setattr("pose_jax.intervals.BLOCK", 2000)
    np.testing.assert_array_equal(mean_interval(values, groups.tolist()), whole)


def study(
    generator, *, seeds=3, pictures=100, effect=0.0, seed=0.0, picture=0.0, arm=0.0
):
    """Two arms of [s, m] correct joints out of [s, m] labelled ones, two persons a picture.

    Deviations: `seed` of the difference by seed, `picture` of both arms by picture, `arm` of
    the difference by picture (the same in all seeds).
    """
    groups = np.repeat(np.arange(pictures), 2)
    labelled = np.broadcast_to(
        generator.integers(5, 15, len(groups)), (seeds, len(groups))
    )
    shared = generator.normal(size=pictures)[groups] * picture
    noise = generator.normal(size=(2, seeds, len(groups))) * 0.05
    gain = effect + generator.normal(size=(seeds, 1)) * seed
    gain = gain + generator.normal(size=pictures)[groups] * arm
    a, b = (labelled * (0.6 + shared + n) for n in noise)
    return a + labelled * gain, labelled, b, labelled, groups.tolist()


def test_a_constant_shift_is_found(generator):
    top_a, bottom, top_b, _, groups = study(generator, picture=0.2)
    found = paired_difference(top_b + 0.1 * bottom, bottom, top_b, bottom, groups)
    np.testing.assert_allclose([found.estimate, found.low, found.high], 0.1, rtol=1e-9)
    np.testing.assert_allclose(found.per_seed, 0.1, rtol=1e-9)
    assert found.standard_error < 1e-9 and found.smallest_effect < 1e-8
    turned = paired_difference(top_b, bottom, top_b + 0.1 * bottom, bottom, groups)
    np.testing.assert_allclose(turned.estimate, -0.1, rtol=1e-9)


def test_the_estimate_is_the_mean_of_ratio_differences(generator):
    a, b = generator.uniform(1, 2, (2, 2, 30)), generator.uniform(1, 2, (2, 2, 30))
    found = paired_difference(*a, *b, range(30))
    expected = a[0].sum(1) / a[1].sum(1) - b[0].sum(1) / b[1].sum(1)
    np.testing.assert_allclose(found.per_seed, expected)
    np.testing.assert_allclose(found.estimate, expected.mean())
    assert found.low < found.estimate < found.high
    np.testing.assert_allclose(found.smallest_effect, 2.8 * found.standard_error)


def test_pairing_shrinks_the_interval(generator):
    """What makes a picture hard for both arms cancels; unpaired it would not."""
    given = study(generator, picture=0.2, effect=0.02)
    paired = paired_difference(*given)
    assert paired.low > 0
    top_a, bottom_a, top_b, bottom_b, groups = given
    order = np.arange(len(groups)).reshape(-1, 2)[::-1].ravel()
    unpaired = paired_difference(
        top_a, bottom_a, top_b[:, order], bottom_b[:, order], groups
    )
    np.testing.assert_allclose(unpaired.estimate, paired.estimate)
    assert unpaired.standard_error > 5 * paired.standard_error


def test_pictures_and_not_persons_are_drawn(generator):
    given = study(generator, arm=0.1)
    right = paired_difference(*given)
    persons_drawn = paired_difference(*given[:4], range(len(given[4])))
    assert right.standard_error > 1.2 * persons_drawn.standard_error


@pytest.mark.parametrize(
    "options,low,high",
    [
        (dict(seed=0.0, arm=0.1), 0.91, 0.985),
        (dict(seeds=8, seed=0.02, arm=0.0), 0.85, 0.97),
        (dict(seeds=3, seed=0.02, arm=0.0), 0.6, 0.9),
    ],
)
def test_differences_cover(generator, options, low, high):
    """True difference 0 in 200 studies; coarse with three seeds that differ a lot."""
    inside = []
    for _ in range(200):
        found = paired_difference(
            *study(generator, pictures=40, **options), resamples=400
        )
        inside.append(found.low < 0 < found.high)
    assert low < np.mean(inside) < high


@pytest.mark.parametrize(
    "options", [dict(arm=0.1), dict(seed=0.03), dict(seeds=1, arm=0.1)]
)
def test_standard_errors_are_those_of_repeated_studies(generator, options):
    found = [
        paired_difference(*study(generator, pictures=40, **options), resamples=300)
        for _ in range(200)
    ]
    truth = np.std([f.estimate for f in found])
    mean = np.sqrt(np.mean([f.standard_error**2 for f in found]))
    np.testing.assert_allclose(mean, truth, rtol=0.15)


def test_four_of_five_studies_show_the_smallest_effect(generator):
    options = dict(pictures=40, seeds=1, arm=0.1)
    effect = np.mean([
        paired_difference(*study(generator, **options), resamples=300).smallest_effect
        for _ in range(30)
    ])  # fmt: skip
    seen = [
        paired_difference(
            *study(generator, effect=effect, **options), resamples=300
        ).low
        > 0
        for _ in range(200)
    ]
    assert 0.7 < np.mean(seen) < 0.9


def test_a_study_takes_well_under_a_second(generator):
    given = study(generator, pictures=451, seed=0.01, arm=0.1)
    given = (*(g[:, ::2] for g in given[:4]), given[4][::2])
    start = time.process_time()
    paired_difference(*given, resamples=2000)
    assert time.process_time() - start < 1.0


ONES = np.ones((2, 3))


@pytest.mark.parametrize(
    "call,message",
    [
        (lambda: mean_interval(np.ones((3, 2)), [1, 2]), "3 rows of values and 2 groups"),
        (lambda: mean_interval(np.ones((0, 2)), []), "at least one"),
        (lambda: paired_difference(ONES, ONES, ONES, ONES, [1, 2]), r"groups \[2\]"),
        (lambda: paired_difference(*[np.ones((0, 3))] * 4, [1, 2, 3]), "at least one"),
        (lambda: paired_difference(ONES, ONES, ONES, 0 * ONES, [1, 2, 3]), "sums to nothing"),
        (lambda: ratio_interval(np.ones(2), np.ones(2), [1]), "equally many"),
    ],
)  # fmt: skip
def test_mistakes_are_explained(call, message):
    with pytest.raises(ValueError, match=message):
        call()
