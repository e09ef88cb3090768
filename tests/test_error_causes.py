"""Influence of error cases against matched good cases: planted answers and slow loops."""

import dataclasses
import json

import numpy as np
import pytest

from pose_jax.analysis import error_causes
from pose_jax.analysis.error_causes import Cases, compare_causes, sentences, worst_cases
from pose_jax.metrics.diagnosis import LABELS

REGIONS = ("arm", "head", "leg", "other")
INVERSION, MISS = LABELS.index("inversion"), LABELS.index("miss")
PLANTED = 0.2


def make(seed=0, n=400, *, planted=PLANTED, image_noise=0.0, per_image=2, rate=0.3):
    """Joint 0: inversions carry `planted` more head share. Small people err more and have
    more arm share, whatever the error: without matching, a false difference."""
    rng = np.random.default_rng(seed)
    size, visible = rng.integers(0, 3, n), rng.integers(1, 3, (n, 2))
    image = np.arange(n) // per_image
    wrong = rng.random((n, 2)) < rate * np.array([1.8, 1.0, 0.2])[size][:, None]
    head = 0.3 + planted * wrong + rng.normal(0, 0.05, (n, 2))
    # What an image does to its errors: without it, matching cancels an image's effect.
    head += wrong * image_noise * rng.normal(0, 1, n)[image][:, None]
    arm = 0.3 - 0.1 * size[:, None] + rng.normal(0, 0.02, (n, 2))
    rest = 1 - head - arm
    influence = np.stack([arm, head, -0.3 * rest, 0.7 * rest], -1)
    influence *= rng.uniform(1, 5, (n, 2, 1))
    label = np.where(wrong, INVERSION, 0)
    full = 2.0 - wrong + rng.normal(0, 0.1, (n, 2))
    return Cases(
        label, influence, size, visible, image, ("wrist", "nose"), REGIONS,
        {"empty": np.zeros((n, 2)), "full": full},
    )  # fmt: skip


def slow(cases, joint, error):
    """Case by case."""
    columns = np.full((len(cases.size), 2 * len(REGIONS)), np.nan)
    for i, a in enumerate(cases.influence[:, joint]):
        if np.isfinite(a).all() and np.abs(a).sum() > 0:
            columns[i] = np.r_[np.abs(a), a] / np.abs(a).sum()
    usable = np.isfinite(columns).all(1)
    differences = []
    for i in np.flatnonzero((cases.label[:, joint] == error) & usable):
        alike = (
            (cases.label[:, joint] == 0) & usable & (cases.size == cases.size[i])
            & (cases.visible[:, joint] == cases.visible[i, joint])
        )  # fmt: skip
        if alike.any():
            differences.append(columns[i] - columns[alike].mean(0))
    return np.mean(differences, 0), len(differences)


def test_equals_the_slow_loop_and_finds_the_planted_region():
    cases = make()
    record = compare_causes(cases, resamples=300)
    assert json.loads(json.dumps(record)) == record
    assert record["what"].startswith("association")
    for j, joint in enumerate(cases.joints):
        row = record["joints"][joint]["inversion"]
        expected, count = slow(cases, j, INVERSION)
        found = [d["difference"] for d in row["differences"].values()][:8]
        np.testing.assert_allclose(found, expected, atol=1e-12)
        assert row["errors"] == count and row["unmatched"] == row["undefined"] == 0
        head = row["differences"]["share:head"]
        assert head["low"] < PLANTED < head["high"] and head["low"] > 0.15
        assert head["error"] - head["good"] == pytest.approx(head["difference"])
        # The confounder is matched away.
        arm = row["differences"]["share:arm"]
        assert arm["low"] < 0 < arm["high"] and abs(arm["difference"]) < 0.01
        wrong = cases.label[:, j] == INVERSION
        shares = np.abs(cases.influence[:, j])
        shares /= shares.sum(-1, keepdims=True)
        raw = shares[wrong, 0].mean() - shares[cases.label[:, j] == 0, 0].mean()
        assert raw > 0.02  # what one would have seen
        full = row["differences"]["full"]
        assert full["difference"] == pytest.approx(-1, abs=0.05)
        assert row["differences"]["empty"]["difference"] == 0
    # Shares by size sum to one, so their differences to nothing.
    shares = [row["differences"][f"share:{r}"]["difference"] for r in REGIONS]
    assert sum(shares) == pytest.approx(0, abs=1e-12)


def test_signed_and_absolute_shares_differ():
    cases = make()
    row = compare_causes(cases, resamples=50)["joints"]["wrist"]["inversion"]
    leg = {k: row["differences"][f"{k}:leg"]["difference"] for k in ("share", "signed")}
    assert leg["share"] < -0.02 and leg["signed"] == pytest.approx(-leg["share"])
    other = row["differences"]
    assert other["share:other"] == pytest.approx(other["signed:other"])


def test_sentences_name_the_association_largest_first():
    record = compare_causes(make(), resamples=200)
    texts = sentences(record)
    assert texts and all(t.startswith("association: with inversion of") for t in texts)
    assert "the share of head is" in texts[0] and "points larger" in texts[0]
    assert not any("arm" in t for t in texts)
    sizes = [float(t.split(" points")[0].split()[-1]) for t in texts]
    assert len(set(sizes)) > 3 and sizes == sorted(sizes, reverse=True)
    assert any("the signed of leg" in t for t in sentences(record, kind="signed"))
    with pytest.raises(ValueError, match="'share' or 'signed'"):
        sentences(record, kind="full")


def test_intervals_cover_the_planted_difference():
    """Errors of one picture are alike: whole pictures are resampled."""
    hits, repeats = 0, 200
    for seed in range(repeats):
        cases = make(seed, 320, planted=0.1, image_noise=0.1, per_image=6, rate=0.5)
        cases = dataclasses.replace(
            cases, label=cases.label[:, :1], influence=cases.influence[:, :1],
            visible=cases.visible[:, :1], joints=("wrist",), scalars={},
        )  # fmt: skip
        record = compare_causes(cases, errors=["inversion"], resamples=200, seed=seed)
        d = record["joints"]["wrist"]["inversion"]["differences"]["share:head"]
        hits += d["low"] <= 0.1 <= d["high"]
    assert 0.90 <= hits / repeats <= 0.98


@pytest.mark.parametrize(
    ("keep", "pictures", "message"),
    [(19, 19, "19 error cases from 19 pictures"), (30, 9, "30 error cases from 9")],
)
def test_too_few_errors_are_refused(keep, pictures, message):
    cases = make(1)
    label = np.zeros_like(cases.label)
    label[:keep, 0] = MISS
    image = np.arange(400) + 1000
    image[:keep] = np.arange(keep) % pictures
    cases = dataclasses.replace(
        cases, label=label, image=image, size=np.zeros(400, int),
        visible=np.full((400, 2), 2),
    )  # fmt: skip
    record = compare_causes(cases, resamples=20)
    row = record["joints"]["wrist"]["miss"]
    assert row["refused"].startswith(message) and "20 from 10" in row["refused"]
    assert row["errors"] == keep and row["error_images"] == pictures
    assert "differences" not in row
    assert sentences(record) == []
    # One more error, or one more picture, is enough.
    label[keep, 0] = MISS
    image[keep] = 5000
    record = compare_causes(cases, errors=["miss"], resamples=20)
    assert "refused" not in record["joints"]["wrist"]["miss"]


def test_too_few_good_cases_are_refused():
    cases = make(2)
    label = np.where(np.arange(400)[:, None] < 15, 0, MISS) * np.ones((1, 2), int)
    cases = dataclasses.replace(
        cases, label=label, size=np.zeros(400, int), visible=np.full((400, 2), 2)
    )
    row = compare_causes(cases, resamples=20)["joints"]["nose"]["miss"]
    assert row["refused"].startswith("15 matched good cases from 8 pictures")
    # Without any good case like them, errors are not compared at all.
    cases = dataclasses.replace(cases, size=np.where(label[:, 0] == MISS, 1, 0))
    row = compare_causes(cases, resamples=20)["joints"]["nose"]["miss"]
    assert row["errors"] == 0 and row["unmatched"] == 385 and "refused" in row


def test_undefined_explanations_and_scalars_are_left_out_and_counted():
    cases = make(3)
    wrong = np.flatnonzero(cases.label[:, 0] == INVERSION)
    influence, full = cases.influence.copy(), cases.scalars["full"].copy()
    influence[wrong[:3], 0] = 0
    influence[wrong[3:5], 0, 1] = np.nan
    full[wrong[5:30], 0] = np.nan
    cases = dataclasses.replace(
        cases, influence=influence, scalars={"full": full, "margin": full * np.nan}
    )
    row = compare_causes(cases, resamples=50)["joints"]["wrist"]["inversion"]
    assert row["undefined"] == 5 and row["errors"] == len(wrong) - 5
    expected, _ = slow(cases, 0, INVERSION)
    found = row["differences"]["share:head"]["difference"]
    assert found == pytest.approx(expected[1], abs=1e-12)
    assert row["differences"]["full"]["error"] == pytest.approx(1, abs=0.1)
    assert row["differences"]["margin"] == dict.fromkeys(
        ("error", "good", "difference", "low", "high")
    )


def test_the_order_of_regions_people_and_names_of_pictures_change_nothing():
    cases = make(4)
    before = compare_causes(cases, resamples=100)["joints"]["wrist"]["inversion"]
    order = [2, 0, 3, 1]
    permuted = dataclasses.replace(
        cases, influence=cases.influence[..., order],
        regions=[REGIONS[i] for i in order],
        image=[f"{i}.jpg" for i in cases.image],
    )  # fmt: skip
    after = compare_causes(permuted, resamples=100)["joints"]["wrist"]["inversion"]
    for name, d in before["differences"].items():
        assert after["differences"][name] == pytest.approx(d)
    scaled = dataclasses.replace(cases, influence=cases.influence * 7)
    again = compare_causes(scaled, resamples=100)["joints"]["wrist"]["inversion"]
    for name, d in before["differences"].items():
        assert again["differences"][name] == pytest.approx(d)


def test_worst_cases_for_a_gallery():
    cases = make(5)
    similarity = np.random.default_rng(0).random(cases.label.shape)
    rows = worst_cases(cases, similarity, "inversion", joint="nose", count=6)
    assert len(rows) == 6 and {r["joint"] for r in rows} == {"nose"}
    values = [r["similarity"] for r in rows]
    assert values == sorted(values)
    assert len({cases.image[r["person"]] for r in rows}) == 6
    wrong = cases.label[:, 1] == INVERSION
    assert values[0] == similarity[wrong, 1].min()
    # The best answer of all stands in the same picture: not taken.
    i = rows[0]["person"]
    mate = i + 1 if i % 2 == 0 else i - 1
    same = dataclasses.replace(
        cases, label=cases.label.copy(), size=cases.size.copy(),
        visible=cases.visible.copy(),
    )  # fmt: skip
    same.label[mate, 1], same.size[mate] = 0, same.size[i]
    same.visible[mate, 1], similarity[mate, 1] = same.visible[i, 1], 2.0
    assert worst_cases(same, similarity, "inversion", joint="nose", count=1)[0]["good"] not in (
        None, mate,
    )  # fmt: skip
    for r in rows:
        i, g = r["person"], r["good"]
        assert cases.label[i, 1] == INVERSION and cases.label[g, 1] == 0
        assert cases.size[i] == cases.size[g] and cases.image[i] != cases.image[g]
        assert cases.visible[i, 1] == cases.visible[g, 1]
    assert {r["joint"] for r in worst_cases(cases, similarity, "inversion", count=99)} == {
        "wrist", "nose",
    }  # fmt: skip
    assert worst_cases(cases, similarity, "swap") == []
    alone = dataclasses.replace(
        cases, size=np.where(cases.label[:, 1] == INVERSION, 5, 0)
    )
    found = worst_cases(alone, similarity, "inversion", joint="nose", count=1)
    assert found[0]["good"] is None


def test_bad_questions_are_refused():
    cases = make(6, 20)
    with pytest.raises(ValueError, match="unknown error types"):
        compare_causes(cases, errors=["good"])
    with pytest.raises(ValueError, match="unknown error type 'good'"):
        worst_cases(cases, np.zeros((20, 2)), "good")
    with pytest.raises(ValueError, match="no joint 'knee'"):
        worst_cases(cases, np.zeros((20, 2)), "miss", joint="knee")
    with pytest.raises(ValueError, match=r"similarity has shape \(3, 2\)"):
        worst_cases(cases, np.zeros((3, 2)), "miss")
    with pytest.raises(ValueError, match="influence has shape"):
        dataclasses.replace(cases, regions=("arm",))
    assert error_causes.MIN_CASES == 20 and error_causes.MIN_IMAGES == 10
