"""The task `analyse` on a tiny run: records that add up, resuming, refusals."""

import json

import numpy as np
import pytest
from tiny import tiny_config

from pose_jax import data
from pose_jax.config import UserError
from pose_jax.tasks import analyse, analyse_weights, evaluate, train
from pose_jax.tasks.workdir import claim

FOLDER = "analysis/val"


def make_config():
    c = tiny_config(steps=4, eval_every=0)
    c.data.select.name = ""
    c.analyse.update(
        studies=("skips", "latent", "clusters", "redundancy"),
        styles=("zero", "other"), skeletons=3, components=(1, 2, -1), steps=(-1.0, 0.0, 1.0),
        ranks=(0, 2), displaced=6, clusters=(2, 3), restarts=2, thumbnails=5, resamples=20,
    )  # fmt: skip
    return c


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A trained run, all studies done (a few steps do not beat the mean pose)."""
    path = tmp_path_factory.mktemp("analysed")
    c = make_config()
    claim(c, str(path))
    train.run(c, str(path))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(analyse, "_health", lambda context: {"problem": ""})
        analyse.run(c, str(path))
        # So small a sample is rarely misplaced; the last study reads what it finds.
        clusters = dict(np.load(path / FOLDER / "clusters.npz"))
        clusters["misplaced"] = np.arange(64) % 5 == 0
        np.savez(path / FOLDER / "clusters.npz", **clusters)
        c.analyse.studies = ("weights",)
        analyse.run(c, str(path))
    return path


def record(workdir, study):
    return json.loads((workdir / FOLDER / f"{study}.json").read_text())


def test_skips_add_up(workdir):
    found = record(workdir, "skips")
    assert found["gates"] == ["stack0/skip0", "stack0/skip1"]
    assert set(found["splits"]) == {"train", "eval"}
    for split in found["splits"].values():
        zero, other = split["styles"]["zero"], split["styles"]["other"]
        whole, closed = zero["subsets"][-1]["pck"], zero["subsets"][0]["pck"]
        assert whole == other["subsets"][-1]["pck"]
        assert zero["subsets"][-1]["relative_change"] == [0, 0]
        np.testing.assert_allclose(zero["subsets"][-1]["cka_change"], 0, atol=1e-5)
        for name in ("all", "large", "left_knee"):
            parts = [gate[name]["value"] for gate in zero["shapley"].values()]
            total = whole[name]["value"] - closed[name]["value"]
            np.testing.assert_allclose(sum(parts), total, atol=1e-6)
            assert zero["shapley_empty"][name]["value"] == closed[name]["value"]
        assert sum(zero["histogram"]["on"]) == sum(zero["histogram"]["off"]) > 0
    arrays = np.load(workdir / FOLDER / "skips.npz")
    assert arrays["eval_crops"].shape == (3, 32, 32, 3)
    assert arrays["eval_on"].shape == arrays["eval_off"].shape == (3, 17, 2)


def test_skips_agree_with_evaluate(workdir):
    """The open network's PCK is what the task evaluate reports."""
    c = make_config()
    c.evaluate.update(metrics=("pck", "heatmap_pck"), flip_test=False)
    evaluate.run(c, str(workdir))
    results = json.loads((workdir / "results.json").read_text())["val-gt-noflip-4"]
    whole = record(workdir, "skips")["splits"]["eval"]["styles"]["zero"]["subsets"][-1]
    at = results["pck"]["thresholds"].index(0.1)
    np.testing.assert_allclose(
        whole["pck"]["all"]["value"], results["pck"]["micro"][at]
    )
    np.testing.assert_allclose(
        whole["heatmap_pck"], results["heatmap_pck_labelled"]["macro"][0], atol=1e-6
    )


def test_latent(workdir):
    found = record(workdir, "latent")
    assert found["tap"] == "stack0/bottleneck" and found["shape"] == [2, 2, 8]
    assert found["pca"]["values"] == 32 and found["pca"]["samples"] == 64
    np.testing.assert_allclose(sum(found["pca"]["shares"]), 1, atol=1e-3)
    walk, arrays = found["walk"], np.load(workdir / FOLDER / "latent.npz")
    assert walk["components"] == [1, 2, 32]
    middle = np.array(walk["nearest_rows"])[:, 1]
    assert (middle == walk["nearest_to_mean"]).all()
    decoded = arrays["mean_image_keypoints"]
    assert decoded.shape == (3, 3, 17, 2)
    np.testing.assert_allclose(decoded[0, 1], decoded[2, 1], atol=1e-4)
    own = found["projection"]["own_skips"]
    assert (
        found["projection"]["ranks"] == [0, 2, 32] and found["projection"]["complete"]
    )
    assert own["without"][0]["pck"] == own["whole"]
    assert abs(own["only"][-1]["minus_whole"]) < 0.02
    assert {r["component"] for r in found["names"]["correlations"]} <= {1, 2, 32}


def test_clusters(workdir):
    found, arrays = (
        record(workdir, "clusters"),
        np.load(workdir / FOLDER / "clusters.npz"),
    )
    assert set(found["counts"]) == {"2", "3"}
    assert all(sum(c["sizes"]) == 64 for c in found["counts"].values())
    chosen = arrays["chosen_labels"]
    for group in range(found["best"]):
        members = arrays[f"view_{group}_members"]
        assert (chosen[members] == group).all()
        assert len(arrays[f"view_{group}"]) == len(members)
        picked = arrays[f"view_{group}_picked"]
        assert len(arrays[f"view_{group}_thumbnails"]) == len(picked)
        assert picked.max() < len(members)


def test_redundancy(workdir):
    found = record(workdir, "redundancy")
    assert "stem" in found["taps"] and "stack0/heatmaps" in found["taps"]
    latent = found["taps"]["stack0/bottleneck"]
    assert latent["channels"] == 8 and 1 <= latent["axes_for_95"] <= 32
    pruning = found["pruning"]
    assert set(pruning["rankings"]) == {
        "energy", "variance", "reversed", "random_0", "random_1", "random_2",
    }  # fmt: skip
    ends = {(r[0]["pck"], r[-1]["pck"]) for r in pruning["rankings"].values()}
    assert len(ends) == 1  # All channels and none: every ranking is the same network.
    idle = pruning["idle_parameters"]
    assert idle[0] == 0 and idle[-1] == max(idle) > 0


def test_weights(workdir):
    found = record(workdir, "weights")
    files = {
        name: np.load(workdir / FOLDER / f"weights-{name}.npz")
        for name in ("misplaced", "misplaced_shuffled", "error_all")
    }
    aimed = files["misplaced"]["weight"]
    np.testing.assert_allclose(aimed.mean(), 1)
    assert sorted(files["misplaced_shuffled"]["weight"]) == sorted(aimed)
    where = np.load(workdir / FOLDER / "clusters.npz")["misplaced"]
    assert found["misplaced"] == where.sum()
    assert aimed[where].min() > aimed[~where].max() - 1e-9
    # A training reads them.
    c = make_config()
    c.data.train.source.weights = str(workdir / FOLDER / "weights-misplaced.npz")
    people = data.open_source(c.data.train.source, root=None, skeleton="coco")
    np.testing.assert_allclose(people.person(3).weight, aimed[3], rtol=1e-6)


def test_make_weights():
    error = np.array([0.1, 0.2, 0.3, 0.4])
    found = analyse_weights.make_weights(error, np.array([0, 0, 1, 1], bool), seed=0)
    raw = np.array([1, 1, 1 + 0.3 / 0.25, 1 + 0.4 / 0.25])
    np.testing.assert_allclose(found["misplaced"], raw / raw.mean())
    np.testing.assert_allclose(found["error_all"].mean(), 1)
    assert np.all(np.diff(found["error_all"]) > 0)
    with pytest.raises(UserError, match="nobody is misplaced"):
        analyse_weights.make_weights(error, np.zeros(4, bool), seed=0)


def test_finished_studies_are_kept(workdir, capsys, monkeypatch):
    monkeypatch.setattr(analyse, "_health", lambda context: {"problem": ""})
    c = make_config()
    c.analyse.studies = ("skips", "latent", "clusters", "redundancy")
    stamp = (workdir / FOLDER / "skips.json").stat().st_mtime_ns
    analyse.run(c, str(workdir))
    assert capsys.readouterr().out.count("finished before") == 4
    assert (workdir / FOLDER / "skips.json").stat().st_mtime_ns == stamp


def test_another_question_is_asked_again(workdir, capsys, monkeypatch):
    """Settings that change the answer, controls among them, are part of the question. A
    control that is the network itself differs by nothing."""
    monkeypatch.setattr(analyse, "_health", lambda context: {"problem": ""})
    c = make_config()
    c.analyse.update(
        studies=("skips",), name="again", splits=("eval",), styles=("mean",), skeletons=2,
        controls={"itself": str(workdir)},
    )  # fmt: skip
    analyse.run(c, str(workdir))
    first = json.loads((workdir / "analysis/again/skips.json").read_text())
    itself = first["controls"]["itself"]
    assert itself["minus_whole"]["value"] == 0 == itself["minus_whole"]["high"]
    style = first["splits"]["eval"]["styles"]["mean"]
    closed = itself["minus_all_closed"]["value"]
    assert closed == pytest.approx(style["whole_minus_closed"]["all"]["value"])
    capsys.readouterr()
    analyse.run(c, str(workdir))
    assert "finished before" in capsys.readouterr().out
    c.analyse.threshold = 0.2
    analyse.run(c, str(workdir))
    assert "finished before" not in capsys.readouterr().out
    second = json.loads((workdir / "analysis/again/skips.json").read_text())
    assert second["question"]["threshold"] == 0.2
    whole = [
        r["splits"]["eval"]["styles"]["mean"]["subsets"][-1]["pck"]["all"]["value"]
        for r in (first, second)
    ]
    assert whole[1] > whole[0]


def test_health_lets_a_network_pass_that_beats_the_mean_pose(workdir, monkeypatch):
    """Answers that lie on the labels pass; so does nothing else (the refusal is below)."""
    import dataclasses

    from pose_jax import inference

    real = inference.predict_source

    def labels(recipe, variables, people, **options):
        found = real(recipe, variables, people, **options)
        true = np.stack([people.person(int(r)).keypoints for r in found.rows])
        return dataclasses.replace(found, keypoints=true)

    monkeypatch.setattr(analyse.inference, "predict_source", labels)
    seen = []
    monkeypatch.setitem(analyse.STUDIES, "skips", seen.append)
    c = make_config()
    c.analyse.update(studies=("skips",), name="passes")
    analyse.run(c, str(workdir))
    health = json.loads((workdir / "analysis/passes/index.json").read_text())["health"]
    assert len(seen) == 1 and health["pck"] == 1 and health["gain"]["low"] > 0


def test_a_network_that_answers_nothing_is_not_analysed(workdir, tmp_path, capsys):
    c = make_config()
    c.analyse.name = "fresh"
    analyse.run(c, str(workdir))
    assert "not analysed" in capsys.readouterr().out
    index = json.loads((workdir / "analysis/fresh/index.json").read_text())
    assert "mean pose" in index["health"]["problem"]
    assert not (workdir / "analysis/fresh/skips.json").exists()


@pytest.mark.parametrize(
    "changes,words",
    [
        (dict(studies=("skip",)), "use some of skips, latent"),
        (dict(splits=("test",)), "use train or eval"),
        (dict(splits=()), "splits is empty"),
        (dict(studies=("skips",), gates=("stack0/skip7",)), "no tap 'stack0/skip7'"),
        (dict(studies=("skips",), styles=("noise",)), "use one of zero, mean, other"),
        (
            dict(studies=("latent",), tap="middle"),
            "those that exist: .*stack0/bottleneck",
        ),
        (dict(studies=("clusters",), clusters=(2, 65)), "65"),
        (dict(studies=("skips",), count=3), "4 people or more"),
        (dict(studies=("latent",), components=(99,)), "components 1 to 32"),
        (dict(studies=("latent",), gates=("stack0/skp0",)), "no tap 'stack0/skp0'"),
        (dict(studies=("skips",), controls={"x": "/nowhere"}), "holds no config.json"),
        (dict(studies=("weights",), name="empty"), "put 'clusters' before"),
        (dict(studies=("clusters",), view="tsne"), "pca"),
    ],
)
def test_bad_input(workdir, monkeypatch, changes, words):
    monkeypatch.setattr(analyse, "_health", lambda context: {"problem": ""})
    c = make_config()
    c.analyse.name = "bad"
    c.analyse.update(changes)
    with pytest.raises(Exception, match=words) as caught:
        analyse.run(c, str(workdir))
    assert isinstance(caught.value, UserError | ValueError)
