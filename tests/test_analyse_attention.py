"""The study `attention` of the task `analyse`, and its part of the page."""

import json

import jax
import numpy as np
import pytest
from scipy import stats
from tiny import tiny_config

from pose_jax import data, partitions, recipe
from pose_jax.config import UserError
from pose_jax.explain import games
from pose_jax.explain.explainer import Explainer
from pose_jax.report import attention_drawings, attention_figures
from pose_jax.tasks import analyse, analyse_attention, report, train
from pose_jax.tasks.analyse_context import Context
from pose_jax.tasks.explain_people import People, Subject
from pose_jax.tasks.latents import Trained, load_trained
from pose_jax.tasks.workdir import claim

FOLDER = "analysis/val"
HEALTHY = dict(pck=0.5, mean_pose_pck=0.1, people=3, split="eval", problem="")


def make_config():
    c = tiny_config(steps=2, eval_every=0, save_every=2)
    c.model = dict(
        name="tokenpose", trunk="none", patch=(8, 8), width=16, heads=2, layers=2, mlp=16,
        head=8, input_size=(32, 32),
    )  # fmt: skip
    c.data.select.name = ""
    c.analyse.update(
        studies=("attention",), splits=("train", "eval"), resamples=20, batch=8
    )
    c.analyse.attention.update(people=3, batch=2, figures=1, clusters="halves-v1")
    return c


def healthy(context):
    return dict(HEALTHY)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A trained run with the study done and drawn (two steps do not beat the mean pose)."""
    path = tmp_path_factory.mktemp("attends")
    c = make_config()
    claim(c, str(path))
    train.run(c, str(path))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(analyse, "_health", healthy)
        analyse.run(c, str(path))
    report.run(c, str(path))
    return path


def record_of(workdir):
    return json.loads((workdir / FOLDER / "attention.json").read_text())


def arrays_of(workdir):
    return dict(np.load(workdir / FOLDER / "attention.npz"))


def test_record_and_arrays(workdir):
    found, arrays = record_of(workdir), arrays_of(workdir)
    assert found["people"] == 3 and found["grid"] == [4, 4] and found["layers"] == 2
    assert found["kinds"] == ["last_layer", "rollout", "gradient", "joint_tokens"]
    groups = [row["group"] for row in found["rows"]]
    counted = [groups.count(g) for g in attention_drawings.SERIES]
    assert counted == [4, 4, 4, 2, 1]
    for name in found["kinds"]:
        for prefix in ("", "untrained_"):
            matrix = arrays[prefix + name]
            assert matrix.shape == (3, 17, 18)
            np.testing.assert_allclose(matrix.sum(-1), 1, rtol=1e-4)
        assert np.abs(matrix - arrays[name]).max() > 1e-6
    assert arrays["picture_layers"].shape == (1, 2, 5, 4, 4)
    assert (arrays["picture_targets"] >= -1).all() and len(arrays["id"]) == 3
    for shares in found["shares"].values():
        assert sum(part["value"] for part in shares.values()) == pytest.approx(1)


def test_numbers_are_those_of_the_arrays(workdir):
    """Means of scipy's correlations over the other joints' discs, person by person."""
    found, arrays = record_of(workdir), arrays_of(workdir)
    row = next(
        r for r in found["rows"] if (r["group"], r["name"]) == ("attention", "rollout")
    )
    means = []
    for m in range(3):
        each = []
        for t in np.flatnonzero(arrays["valid"][m]):
            others = arrays["present"][m] & (np.arange(17) != t)
            a = arrays["rollout"][m, t, :17][others]
            b = arrays["occlusion"][m, t][others]
            each.append(stats.kendalltau(a, b).statistic)
        means.append(np.mean(each))
    assert row["kendall"]["occlusion"]["value"] == pytest.approx(np.mean(means))


def test_influence_and_occlusion_are_measured(workdir):
    """Owen values of the Explainer, and the score of a forward pass with one disc hidden."""
    arrays, trained = arrays_of(workdir), load_trained(str(workdir), "last")
    source = data.open_source(make_config().data.eval, root=None, skeleton="coco")
    rows = [
        r for r in range(len(source)) if str(source.person(r).id) == arrays["id"][1]
    ]
    people = People(
        trained.recipe, [Subject("a", "a", "", rows[0], None)], source, "figures"
    )
    skeleton = trained.recipe.skeleton
    players = games.keypoint_players(skeleton, partitions.get("halves-v1", skeleton))
    explainer = Explainer(
        trained.recipe, trained.variables, players, kind="owen", score="matched_filter",
        reference="predicted",
    )  # fmt: skip
    explained = explainer(people.crops([0]))[0]
    np.testing.assert_allclose(
        arrays["influence"][1], np.abs(explained.influence.T), rtol=1e-3, atol=1e-6
    )
    person = jax.tree.map(lambda x: x[0], explainer.people(people.crops([0]))[0])
    game = jax.jit(explainer.game(True))
    everybody = np.ones(17, bool)
    full = game(everybody, trained.variables, person)
    for player in (0, 9):
        alone = everybody.copy()
        alone[player] = False
        drop = np.abs(full - game(alone, trained.variables, person))
        valid = arrays["valid"][1]
        np.testing.assert_allclose(
            arrays["occlusion"][1, valid, player], drop[valid], rtol=1e-3, atol=1e-6
        )


def test_page_answers_the_question(workdir):
    drawn = {p.name for p in (workdir / FOLDER / "figures").glob("*.png")}
    assert drawn == {
        "attention_agreement.png", "attention_matrices.png", "attention_layers_0.png",
        "attention_evidence_0.png",
    }  # fmt: skip
    page = (workdir / "report.html").read_text()
    found = record_of(workdir)
    assert "Does attention tell the truth?" in page
    assert "Attention is not attribution" in page
    value = next(r for r in found["rows"] if r["name"] == "distance")["spearman"]
    text = f"{value['influence']['value']:.3f}".replace("-", "−")
    assert f"“nearer = more” reaches {text}" in page


def test_finished_study_is_kept(workdir, capsys, monkeypatch):
    monkeypatch.setattr(analyse, "_health", healthy)
    c = make_config()
    c.analyse.attention.show_above = 0.01
    analyse.run(c, str(workdir))
    assert "finished before" in capsys.readouterr().out
    c.analyse.update(name="again")
    c.analyse.attention.update(people=2, batch=2, figures=1, removal="blur")
    analyse.run(c, str(workdir))
    assert "finished before" not in capsys.readouterr().out
    c.analyse.attention.removal = "noise"
    calls = []
    monkeypatch.setattr(
        analyse_attention, "_people", lambda *a: calls.append(a) or 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        analyse.run(c, str(workdir))
    assert calls


def test_a_network_that_has_not_learned_is_not_analysed(workdir, capsys):
    c = make_config()
    c.analyse.name = "fresh"
    analyse.run(c, str(workdir))
    assert "not analysed" in capsys.readouterr().out
    assert not (workdir / "analysis/fresh/attention.json").exists()


@pytest.mark.parametrize(
    "changes,words",
    [
        (dict(people=0), "attention.people=0"),
        (dict(joints_at_once=-1), "joints_at_once=-1 is 0 or more"),
        (dict(score="similarity"), "no gradient"),
        (dict(score="heigth"), "score 'heigth' is unknown"),
        (dict(clusters="arms"), "use one of limbs-v1"),
        (dict(removal="grey"), "removal 'grey' is unknown"),
        (dict(side=0.0), "side=0"),
    ],
)
def test_bad_input(workdir, monkeypatch, changes, words):
    monkeypatch.setattr(analyse, "_health", healthy)
    c = make_config()
    c.analyse.name = "bad"
    c.analyse.attention.update(changes)
    with pytest.raises(Exception, match=words) as caught:
        analyse.run(c, str(workdir))
    assert isinstance(caught.value, UserError | ValueError)


def test_networks_without_attention_are_refused():
    """Before anything is computed: neither people nor weights are looked at."""
    c = tiny_config()
    trained = Trained(recipe.recipe(c), {}, 0, 0)
    context = Context(c, c.analyse, trained, (), None, None)
    with pytest.raises(ValueError, match="Hourglass computes no attention"):
        analyse_attention.run(context)


# --- agreement of made evidence ---------------------------------------------------------


def made(people=8, joints=6, seed=0):
    """Attention of the last layer is the influence, rollout its opposite, gradient noise."""
    draw = np.random.default_rng(seed)
    influence = draw.uniform(0.1, 1, (people, joints, joints))
    rest = np.full((people, joints, 1), 0.5)
    kinds = {
        "last_layer": influence, "rollout": 1 / influence,
        "gradient": draw.uniform(size=influence.shape),
    }  # fmt: skip
    shares = {
        k: np.concatenate([v / v.sum(-1, keepdims=True) / 2, rest], -1)
        for k, v in kinds.items()
    }
    noise = {f"untrained_{k}": draw.permuted(v, axis=-1) for k, v in shares.items()}
    return {
        **shares, **noise, "influence": influence, "occlusion": influence**2,
        "distance": draw.uniform(size=influence.shape),
        "area": draw.uniform(size=(people, joints + 1)),
        "valid": np.ones((people, joints), bool),
        "present": np.ones((people, joints), bool),
    }  # fmt: skip


def test_truthful_attention_is_recognised():
    arrays = made()
    found = analyse_attention.compare(
        arrays, range(6), [str(i) for i in range(8)], resamples=200, seed=0
    )
    rows = {(r["group"], r["name"]): r["spearman"] for r in found["rows"]}
    for name, value in (("last_layer", 1), ("rollout", -1)):
        for reference in ("influence", "occlusion"):
            assert rows["attention", name][reference]["value"] == pytest.approx(value)
    assert abs(rows["attention", "gradient"]["influence"]["value"]) < 0.4
    assert rows["ceiling", "occlusion"]["influence"]["value"] == pytest.approx(1)
    assert "occlusion" not in rows["ceiling", "occlusion"]
    assert abs(rows["shuffled", "last_layer"]["influence"]["value"]) < 0.4
    for name in ("distance", "uniform", "untrained", "shuffled"):
        assert found["minus"]["last_layer"][name]["low"] > 0
        assert found["minus"]["rollout"][name]["high"] < 0
    assert found["joints"]["last_layer"] == pytest.approx([1] * 6)
    background = found["shares"]["last_layer"]["background"]
    assert background["value"] == pytest.approx(0.5)
    record = {
        **found, "protocol": "made up", "keypoints": list("abcdef"),
        "clusters": [[0, 1, 2], [3, 4, 5]],
    }  # fmt: skip
    said = attention_figures.sentences(record)
    assert (
        "Last layer: Spearman 1.000" in said[0] and "clearly above “nearer" in said[0]
    )
    assert "clearly above no baseline, clearly below" in said[1]
    assert "".join(attention_figures.tables(record)).count("<table") == 4
    for statistic in ("spearman", "kendall"):
        assert len(attention_drawings.agreement(record, statistic).axes) == 2


def test_the_own_disc_is_not_compared():
    """Influence of the own disc, however wrong, changes nothing."""
    arrays = made(people=3)
    want = analyse_attention.compare(arrays, range(6), list("abc"), resamples=5, seed=0)
    arrays["influence"][:, np.arange(6), np.arange(6)] = 99
    found = analyse_attention.compare(
        arrays, range(6), list("abc"), resamples=5, seed=0
    )
    assert found["rows"][0]["spearman"]["influence"]["value"] == pytest.approx(1)
    assert found["joints"] == want["joints"]


# --- drawings ---------------------------------------------------------------------------


def test_the_strongest_spot_does_not_hide_the_rest():
    image, maps = np.full((40, 40, 3), 200, np.uint8), np.zeros((40, 40))
    maps[20, 20], maps[:8] = 1.0, 0.01
    whole, cut = (
        attention_drawings.overlay(image, maps, quantile=q).astype(int)
        for q in (1, 0.99)
    )
    rest = np.abs(whole[2, 2] - whole[30, 30]).max()
    assert rest < 40 and np.abs(cut[2, 2] - cut[30, 30]).max() > 100
    np.testing.assert_array_equal(whole[30, 30], cut[30, 30])


def test_overlay_shows_where_the_map_is():
    image = np.full((32, 24, 3), 200, np.uint8)
    maps = np.zeros((4, 3))
    maps[1, 2], maps[3, 0] = 0.5, 0.004
    drawn = attention_drawings.overlay(image, maps, above=0.0).astype(int)
    plain = drawn[4, 4]
    assert np.abs(drawn[12, 20] - plain).max() > 100
    assert np.abs(drawn[28, 4] - plain).max() > 5
    cut = attention_drawings.overlay(image, maps, above=0.01).astype(int)
    np.testing.assert_array_equal(cut[28, 4], plain)
    np.testing.assert_array_equal(cut[12, 20], drawn[12, 20])


def test_discs_are_orange_and_blue():
    image = np.full((10, 10, 3), 128, np.uint8)
    owners = np.full((10, 10), -1)
    owners[:3], owners[7:] = 0, 1
    drawn = attention_drawings.discs(image, np.array([1.0, -1.0]), owners).astype(int)
    assert drawn[1, 1, 0] > drawn[1, 1, 2] + 50 and drawn[8, 1, 2] > drawn[8, 1, 0] + 50
    assert np.ptp(drawn[5, 5]) == 0


def test_matrices_leave_the_diagonal_out_and_follow_clusters():
    values = np.arange(16.0).reshape(4, 4)
    values[2, 2] = 900
    figure = attention_drawings.matrices(
        {"influence": values, "rollout": values}, list("abcd"), [[2, 0], [1, 3]]
    )
    axes = [a for a in figure.axes if a.images]
    shown = axes[0].images[0].get_array()
    order = [2, 0, 1, 3]
    assert shown[0, 1] == values[2, 0] and shown[3, 2] == values[3, 1]
    assert np.isnan(np.diag(np.ma.filled(shown, np.nan))).all()
    assert axes[0].images[0].norm.vmax == 14
    assert [t.get_text() for t in axes[0].get_yticklabels()] == [
        "abcd"[i] for i in order
    ]


def test_sheet_of_many_layers_keeps_first_and_last():
    image = np.zeros((32, 24, 3), np.uint8)
    maps = np.random.default_rng(0).random((12, 2, 4, 3))
    figure = attention_drawings.layers(
        image, maps, np.array([[3.0, 4.0], [9.0, 9.0]]), ["left_wrist", "nose"]
    )
    rows = [a.get_ylabel() for a in figure.axes if a.get_ylabel()]
    assert len(rows) == attention_drawings.MOST_LAYERS
    assert rows[0] == "layer 1" and rows[-1] == "layer 12"
    assert [a.get_title() for a in figure.axes[:3]] == ["", "left wrist", "nose"]
