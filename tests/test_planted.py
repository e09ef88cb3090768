"""Scores of explanations against planted causes: slow references, undefined cases, gates."""

import numpy as np
import pytest
from scipy import stats

from pose_jax.data.worlds import REGIONS, SKELETON, WorldSource
from pose_jax.explain import planted
from pose_jax.tasks import planted_gates, planted_scores

R = len(REGIONS)


def slow_auc(found, used, unused):
    points = [
        1.0 if a > b else 0.5 if a == b else 0.0
        for a in found[used] for b in found[unused]
    ]  # fmt: skip
    return np.mean(points) if points else np.nan


def test_recovery_equals_the_slow_loop_with_ties(generator):
    found = generator.integers(0, 4, (20, R, 3)).astype(float)
    shift = generator.integers(0, 4, (20, R, 3)).astype(float)
    used, unused = shift > 2, shift < 1
    result = planted.recovery(found, used, unused)
    for n in range(20):
        for t in range(3):
            expected = slow_auc(found[n, :, t], used[n, :, t], unused[n, :, t])
            np.testing.assert_allclose(result[n, t], expected)
    order = generator.permutation(R)
    again = planted.recovery(found[:, order], used[:, order], unused[:, order])
    np.testing.assert_array_equal(again, result)


def test_a_constant_explanation_is_undefined_never_a_half():
    shift = np.tile(np.arange(R, dtype=float)[None, :, None], (2, 1, 2))
    truth = planted.Truth(shift, np.full(2, 1.5), 2.0)
    own = np.zeros((R, 2), bool)
    found = np.ones((2, R, 2))
    found[1, :, 1] = np.arange(R)
    found[1, 3, 0] = np.nan
    scores = planted.score(found, truth, own=own, decoy=0)
    for name, values in scores.items():
        if name not in ("calibrated_error_px", "share_error"):
            assert np.isnan(values[0]).all(), name
            assert np.isnan(values[1, 0]), name
    assert scores["recovery"][1, 1] == 1
    assert scores["rank_correlation"][1, 1] == pytest.approx(1)
    assert scores["top"][1, 1] == 1


def test_rank_correlation_is_kendalls(generator):
    found, shift = generator.normal(size=(5, R, 2)), generator.random((5, R, 2))
    shift[2, 4] = np.nan  # Not drawn.
    result = planted.rank_correlation(found, shift)
    for n in range(5):
        there = np.isfinite(shift[n, :, 0])
        expected = stats.kendalltau(np.abs(found[n, there, 0]), shift[n, there, 0])
        assert result[n, 0] == pytest.approx(expected.statistic)
    assert np.isnan(planted.rank_correlation(found, np.ones_like(shift))).all()


def test_top_hits_share_ties_and_can_leave_the_own_limb_out():
    shift = np.zeros((1, R, 1))
    shift[0, 5], shift[0, 2] = 9, 4
    found = np.zeros((1, R, 1))
    found[0, [5, 7], 0] = 3
    assert planted.top_hit(found, shift)[0, 0] == 0.5
    foreign = np.ones((R, 1), bool)
    foreign[5] = False
    assert planted.top_hit(found, shift, foreign)[0, 0] == 0
    found[0, 2] = 5
    assert planted.top_hit(found, shift, foreign)[0, 0] == 1


def test_shares_and_calibration(generator):
    shift = generator.random((6, R, 2))
    np.testing.assert_allclose(planted.share_error(3 * shift, shift), 0, atol=1e-12)
    np.testing.assert_allclose(
        planted.calibrated_error(7 * shift, shift), 0, atol=1e-12
    )
    one, other = np.zeros((2, 1, R, 1))
    one[0, 0], other[0, 1] = 1, 1
    assert planted.share_error(one, other)[0, 0] == 1
    assert np.isnan(planted.share_error(np.zeros((1, R, 1)), other)[0, 0])


def test_a_false_cause_is_a_decoy_above_the_weakest_cause():
    found, used = np.zeros((3, R, 1)), np.zeros((3, R, 1), bool)
    used[:, [2, 3]] = True
    found[:, 2], found[:, 3] = 5, 2
    found[0, 0], found[1, 0], found[2, 0] = 1, 2, 3
    fooled = planted.false_cause(found, used, 0)[:, 0]
    assert fooled.tolist() == [0, 0.5, 1]
    used[0, 0] = True  # Then it is no decoy.
    used[1] = False
    fooled = planted.false_cause(found, used, 0)[:, 0]
    assert np.isnan(fooled[:2]).all() and fooled[2] == 1


def test_preference_and_specificity(generator):
    found = np.zeros((4, R, 1))
    found[:, 1, 0], found[:, 2, 0] = [1, 2, 3, -4], [2, 2, 2, 2]
    assert planted.preference(found, 1, 2)[:, 0].tolist() == [0, 0.5, 1, 1]
    a, b = generator.normal(1, 1, 40), generator.normal(0, 1, 50)
    expected = np.mean([[x > y for y in b] for x in a])
    assert planted.specificity(a, b) == pytest.approx(expected)
    assert np.isnan(planted.specificity(np.array([np.nan]), b))


def test_pooling(generator):
    maps = generator.normal(size=(3, 8, 8))
    owners = generator.integers(0, 4, (8, 8))
    mass, density = planted.pool(maps, owners, 6)
    np.testing.assert_allclose(mass.sum(0), 1)
    total = np.abs(maps[1]).sum()
    inside = owners == 2
    assert mass[2, 1] == pytest.approx(np.abs(maps[1])[inside].sum() / total)
    assert density[2, 1] == pytest.approx(mass[2, 1] / inside.mean())
    assert (density[4:] == 0).all()
    maps[0] = 0
    maps[1, 0, 0] = np.nan
    mass, density = planted.pool(maps, owners, 6)
    assert np.isnan(mass[:, :2]).all() and np.isfinite(density[:, 2]).all()


def test_follow_is_one_for_an_oracle_and_zero_for_a_statue(generator):
    labels = generator.normal(size=(5, 8, 2, 2))
    moves = labels.copy()
    moves[:, :, 1] = 0
    top, bottom = planted.follow(moves, labels)
    np.testing.assert_allclose((top / bottom)[:, 0], 1)
    assert not top[:, 1].any()
    moves[0, 3] = np.nan
    top, bottom = planted.follow(moves, labels)
    np.testing.assert_allclose((top / bottom)[:, 0], 1)


def test_noise_floor_refuses_what_has_no_null():
    shift = np.ones((3, R, 1))
    with pytest.raises(ValueError, match="no source"):
        planted.noise_floor(shift, np.zeros(R, bool))
    shift[:, 0] = np.nan
    null = np.arange(R) == 0
    with pytest.raises(ValueError, match="never drawn"):
        planted.noise_floor(shift, null)


def oracle_arrays(source, *, donors=4, follows=True):
    """What a network would do that reads the latents, or one that never moves."""
    n, k = len(source), 14
    rows = {name: [] for name in ("moves", "labels", "line", "points", "truth")}
    for index in range(n):
        scene = source.scene(index)
        here = source.keypoints(scene)
        labels, line = np.zeros((R, donors, k, 2)), np.zeros((R, donors))
        for r, region in enumerate(REGIONS):
            for d in range(donors):
                other = source.redraw(scene, region, d)
                labels[r, d] = source.keypoints(other) - here
                line[r, d] = source.line_height(other) - source.line_height(scene)
        rows["labels"].append(labels)
        rows["moves"].append(labels if follows else np.zeros_like(labels))
        rows["line"].append(line)
        rows["points"].append(here + (0 if follows else 9))
        rows["truth"].append(here)
    arrays = {name: np.stack(values) for name, values in rows.items()}
    arrays["shift"] = np.linalg.norm(arrays["moves"], axis=-1)
    arrays["mass"] = (arrays["shift"].mean(2) > 0.1).astype(float)
    arrays["removal"] = arrays["mass"]
    return arrays


def test_gates_pass_an_oracle_and_stop_a_statue():
    source = WorldSource(12, world="composite", seed=3, test=True)
    gates = planted_gates.check(oracle_arrays(source), source)
    assert gates["learned"]
    assert gates["targets"]["right_wrist"]["learned"]
    assert gates["targets"]["right_wrist"]["follow"] == pytest.approx(1)
    assert gates["targets"]["right_wrist"]["shift_px"]["decoy"] == 0
    assert gates["targets"]["left_ankle"]["follow"] == pytest.approx(1)
    assert gates["targets"]["head_top"]["follow"] == 0  # It reads the head.
    assert gates["targets"]["left_wrist"]["control"]
    assert not gates["targets"]["left_wrist"]["learned"]
    gates = planted_gates.check(oracle_arrays(source, follows=False), source)
    assert not gates["learned"]
    text = " ".join(gates["targets"]["right_wrist"]["failed"])
    assert "follows the marker by 0.00" in text and "px off" in text


def test_null_regions_are_those_without_a_meaning():
    for world, decoy in (("composite", True), ("gate", False), ("redundant", False)):
        null = planted_gates.null_regions(WorldSource(1, world=world).rules)
        assert null[REGIONS.index("decoy")] == decoy
        assert null[REGIONS.index("background_left")]
        assert not null[REGIONS.index("marker")] and not null[REGIONS.index("line")]


def test_only_learned_targets_are_scored_and_the_oracle_wins():
    source = WorldSource(12, world="composite", seed=3, test=True)
    arrays = oracle_arrays(source, donors=8)
    gates = planted_gates.check(arrays, source)
    generator = np.random.default_rng(0)
    found = {"noise": generator.random((12, R, 4))}
    scores = planted_scores.score_all(found, arrays, source, gates)
    joints = list(source.rules.causes)
    wrist, control = joints.index("right_wrist"), joints.index("left_wrist")
    assert np.isnan(scores["noise"]["recovery"][:, control]).all()
    assert np.nanmean(scores["oracle"]["recovery"][:, wrist]) > 0.99
    assert 0.2 < np.nanmean(scores["noise"]["recovery"][:, wrist]) < 0.8
    assert np.isfinite(scores["noise"]["marker_over_decoy"][:, control]).all()
    record = planted_scores.summarise(found, arrays, source, gates, resamples=50)
    entry = record["explainers"]["noise"]["recovery"]
    assert entry["left_wrist"] == {
        "mean": None, "low": None, "high": None, "undefined": 12
    }  # fmt: skip
    assert entry["right_wrist"]["low"] < entry["right_wrist"]["high"]


def test_own_limbs():
    own = planted_scores.own_limbs(["right_wrist", "left_ankle", "head_top"])
    names = [[REGIONS[r] for r in np.flatnonzero(own[:, t])] for t in range(3)]
    assert names == [["right_arm"], ["left_leg"], ["head"]]
    assert SKELETON.name == "lsp"
