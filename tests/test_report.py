"""What a person sees: figures of explanations and the page, on arrays made by hand."""

import html.parser
import io
import json
import os
import re

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.patches import FancyArrowPatch, Rectangle
from PIL import Image

from pose_jax import config
from pose_jax.config import UserError
from pose_jax.report import (
    explanations,
    influence_drawings,
    markup,
    page,
    person_drawings,
    person_figures,
    plotting,
    study_drawings,
)
from pose_jax.report.influence_drawings import Block, Estimate
from pose_jax.report.person_drawings import Bars
from pose_jax.tasks import report

NAMES = ["left_hip", "left_knee", "right_hip", "right_knee"]
CLUSTERS, CLUSTER_OF = [[0, 1], [2, 3]], [0, 0, 1, 1]
SIZE = (24, 18)
COALITIONS = (np.arange(16)[:, None] >> np.arange(4) & 1).astype(bool)


def means(values):
    """As `explain` writes them: a value without people is None."""
    values = np.asarray(values, float)

    def plain(x):
        return np.where(np.isnan(x), None, x.astype(object)).tolist()

    return {
        "mean": plain(values),
        "low": plain(values - 0.05),
        "high": plain(values + 0.05),
        "counts": (~np.isnan(values)).astype(int).tolist(),
    }


def make_record(influence, **fields):
    return {
        "protocol": "data nowhere; 3 people",
        "method": "group_shapley",
        "kind": "gsv",
        "score": "similarity",
        "reference": "labels",
        "removal": "mean",
        "people": 3,
        "keypoints": NAMES,
        "skeleton": "made",
        "players": {
            "kind": "disc",
            "names": NAMES,
            "clusters": CLUSTERS,
            "cluster_names": ["left_leg", "right_leg"],
            "target_cluster": CLUSTER_OF,
            "own": [0, 1, 2, 3],
        },
        "evaluations": 48,
        "largest_residual": 1e-7,
        "influence": means(influence),
        "empty": means([0.1, 0.2, 0.3, np.nan]),
        "full": means([0.5, 0.6, 0.7, np.nan]),
        "gap": means([0.4, 0.4, 0.4, np.nan]),
        "quality": {"pck@0.1": 0.25, "joints": 9, "per_joint": [0.5, 0.2, 0.1, None]},
        **fields,
    }


def make_arrays(seed=0):
    draw = np.random.default_rng(seed)
    owners = np.full((3, *SIZE), -1, np.int16)
    for player, (y, x) in enumerate([(4, 4), (16, 4), (4, 12), (16, 12)]):
        owners[:, y : y + 3, x : x + 3] = player
    centres = np.array([(5, 5), (5, 17), (13, 5), (13, 17)], np.float32)
    arrays = {
        name: draw.normal(0, 0.2, (3, 4, 4)).astype(np.float32)
        for name in ("member_values", "influence", "hidden_values", "visible_values")
    }
    arrays |= {
        "cluster_values": draw.normal(0, 0.2, (3, 2, 4)).astype(np.float32),
        "empty": draw.uniform(0, 0.4, (3, 4)),
        "full": draw.uniform(0.5, 1, (3, 4)),
        "baseline": draw.uniform(0.2, 0.5, (3, 4)),
        "table": draw.uniform(0, 1, (3, 16, 4)),
        "target_valid": np.array([[True] * 4, [True] * 3 + [False], [True] * 4]),
        "present": np.ones((3, 4), bool),
        "keypoints": np.repeat(centres[None].astype(float), 3, 0),
        "centres": np.repeat(centres[None], 3, 0),
        "matrix": np.repeat(np.eye(3)[None], 3, 0),
        "id": np.array(["7", "8", "9"]),
        "image_id": np.array(["a", "b", "b"]),
        "coalitions": COALITIONS,
    }
    pictures = {
        "image": draw.integers(0, 255, (2, *SIZE, 3)).astype(np.uint8),
        "fill": np.full((2, *SIZE, 3), 128, np.uint8),
        "owners": owners[:2],
        "of": np.array([0, 2]),
    }
    return arrays, pictures


INTERDEPENDENCE = {
    "keypoints": NAMES,
    "normalised": [
        [1, 0.5, 0, 0.1],
        [0.5, 1, None, 0],
        [0, 0, 1, -0.2],
        [0, 0, 0.3, 1],
    ],
    "linkage": [[0, 1, 0.2, 2], [2, 3, 0.4, 2], [4, 5, 0.9, 4]],
    "cut": 0.65,
    "clusters": {"a": ["left_hip", "left_knee"], "b": ["right_hip", "right_knee"]},
}
ERROR = {"mean": 0.3, "low": 0.2, "high": 0.4}
GROUPING = {
    "exact_evaluations": 16,
    "clusterings": {
        "limbs-v1": {
            "sizes": [2, 2],
            "kinds": {
                "gsv": {"evaluations": 12, "member_error": ERROR},
                "owen": {
                    "evaluations": 12,
                    "member_error": {"mean": 0.5, "low": None, "high": None},
                    "player_error": ERROR,
                    "sampled_member_error": ERROR,
                },
            },
        }
    },
}


def write_folder(folder, *, studies=True, seed=0, pictures=2, **fields):
    """A folder as the task `explain` leaves it."""
    folder.mkdir(parents=True, exist_ok=True)
    influence = np.random.default_rng(seed).normal(0, 0.1, (4, 4))
    influence[3] = np.nan
    arrays, kept = make_arrays(seed)
    kept = {name: values[:pictures] for name, values in kept.items()}
    record = make_record(influence, **fields)
    if seed:
        record["gap"] = means([0.3, 0.1, -0.2, 0.3])
    (folder / "explanations.json").write_text(json.dumps(record))
    np.savez(folder / "explanations.npz", **arrays)
    np.savez(folder / "pictures.npz", **kept)
    if studies:
        write(folder / "interdependence.json", INTERDEPENDENCE)
        write(folder / "grouping_error.json", GROUPING)
        low = {"mean": 0.4, "low": 0.3, "high": 0.5, "people": 3, "agree": False}
        high = {"mean": 0.9, "low": 0.85, "high": 0.95, "people": 3, "agree": True}
        fills = {"blur": low, "noise": high}
        write(folder / "removals.json", {"removal": "mean", "against": fills})
    return folder


def write(path, value):
    path.write_text(json.dumps(value))


def pixels(figure):
    return np.asarray(Image.open(io.BytesIO(plotting.png(figure))).convert("RGB"))


def arrows_of(figure):
    return {
        patch.get_gid(): patch
        for axes in figure.axes
        for patch in axes.patches
        if isinstance(patch, FancyArrowPatch)
    }


PLACES = np.array([[3.0, 3], [15, 3], [3, 20], [15, 20], [9, 12], [9, 1], [16, 12]])


def draw_arrows(influence, targets=(0,), places=PLACES):
    names = [f"p{i}" for i in range(len(PLACES))]
    return person_drawings.influence_arrows(
        np.full((24, 18, 3), 90, np.uint8), places, PLACES, influence, targets,
        player_names=names, joint_names=names, own=list(range(len(PLACES))),
    )  # fmt: skip


def test_the_largest_arrow_is_the_largest_player():
    influence = np.zeros((7, 7))
    influence[:, 0] = [9.0, 0.1, -0.4, 0.2, 0.05, 0.01, 0.3]
    arrows = arrows_of(draw_arrows(influence))
    # The joint itself and the weakest are left out.
    assert set(arrows) == {f"p{i} -> p0" for i in (1, 2, 3, 4, 6)}
    widest = max(arrows, key=lambda name: arrows[name].get_linewidth())
    assert widest == "p2 -> p0"
    assert to_hex(arrows["p2 -> p0"].get_edgecolor()) == plotting.LOWERS
    assert to_hex(arrows["p6 -> p0"].get_edgecolor()) == plotting.RAISES
    assert arrows["p6 -> p0"].get_alpha() < arrows["p2 -> p0"].get_alpha()
    influence[5, 0] = 2.0
    arrows = arrows_of(draw_arrows(influence))
    assert max(arrows, key=lambda n: arrows[n].get_linewidth()) == "p5 -> p0"


def test_arrows_of_all_panels_have_one_scale_and_players_without_place_none():
    influence = np.zeros((7, 7))
    influence[1, 0], influence[3, 2] = 0.8, 0.2
    arrows = arrows_of(draw_arrows(influence, (0, 2)))
    assert set(arrows) == {"p1 -> p0", "p3 -> p2"}
    assert arrows["p3 -> p2"].get_linewidth() < arrows["p1 -> p0"].get_linewidth()
    places = PLACES.copy()
    places[1] = np.nan
    assert set(arrows_of(draw_arrows(influence, (0, 2), places))) == {"p3 -> p2"}
    with pytest.raises(ValueError, match="no target"):
        draw_arrows(influence, ())


def test_waterfall_goes_from_empty_to_all():
    names, foreign = ["a", "b", "c, whole"], [False, False, True]
    game = Bars("left_knee", names, [0.3, -0.2, 0.4], foreign, 0.1, 0.6)
    figure = person_drawings.waterfalls([game], "similarity")
    axes = figure.axes[0]
    bars = [p for p in axes.patches if isinstance(p, Rectangle)]
    ends = [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in bars]
    assert ends[0][0] == pytest.approx(game.start)
    assert ends[-1][1] == pytest.approx(game.end)
    for before, after in zip(ends, ends[1:]):
        assert before[1] == pytest.approx(after[0])
    assert [bool(bar.get_hatch()) for bar in bars] == [False, False, True]
    colours = [to_hex(bar.get_facecolor()) for bar in bars]
    assert colours == [plotting.RAISES, plotting.LOWERS, plotting.RAISES]
    printed = [t.get_text() for t in axes.texts]
    assert printed == ["0.10", "+0.30", "−0.20", "+0.40", "0.60"]
    labels = [t.get_text() for t in axes.get_yticklabels()]
    assert labels[0].startswith("context alone") and labels[-1].endswith("v(all)")


def test_bars_are_the_values_of_the_kind():
    arrays, _ = make_arrays()
    one = {k: v[0] for k, v in arrays.items()}
    record = make_record(np.zeros((4, 4)))
    found = person_figures.bars(record, one, 1)
    assert set(found.names) == {"left_hip", "left_knee", "right_leg, whole"}
    assert found.names[-1] == "right_leg, whole" and found.foreign[-1]
    assert found.values[-1] == pytest.approx(float(one["cluster_values"][1, 1]))
    sizes = np.abs(found.values[:2])
    assert sizes[0] >= sizes[1]
    assert (found.start, found.end) == (one["empty"][1], one["full"][1])
    record["kind"] = "decoupled"
    found = person_figures.bars(record, one, 1)
    assert set(found.names) == {"left_hip", "left_knee"}
    assert found.start == one["baseline"][1]
    assert found.start_name == "own cluster hidden"


def test_image_pixels_become_crop_pixels():
    points = np.array([[10.0, 40.0], [20.0, 80.0]])
    matrix = np.array([[0.5, 0, 1], [0, 0.25, -2], [0, 0, 1]])
    found = person_figures.in_crop(points, matrix)
    assert found == pytest.approx(np.array([[6.0, 8.0], [11.0, 18.0]]))
    assert person_figures.in_crop(points, 2 * matrix) == pytest.approx(found)


def test_people_without_label_do_not_count(tmp_path):
    """Conditional values are means over people in whom the target is valid."""
    folder = write_folder(tmp_path / "labels", studies=False, pictures=0)
    with np.load(folder / "explanations.npz") as stored:
        arrays = {k: stored[k] for k in stored.files}
    for name in ("member_values", "hidden_values", "visible_values"):
        arrays[name][:] = 0.5
        arrays[name][1, :, 3] = 77.0  # Person 1 has no right knee.
    np.savez(folder / "explanations.npz", **arrays)
    drawn = {d.name: d for d in explanations.figures(folder)}
    dots = [
        float(line.get_xdata()[0])
        for axes in drawn["conditional"].figure.axes
        for line in axes.lines
        if len(line.get_xdata()) == 1
    ]
    assert len(dots) == 12 and set(dots) == {0.5}


def test_composite_hides_what_is_not_in_the_coalition():
    arrays, pictures = make_arrays()
    image, fill, owners = (pictures[k][0] for k in ("image", "fill", "owners"))
    coalition = np.array([True, False, True, True])
    seen = person_drawings.composite(image, fill, owners, coalition)
    assert (seen[owners == 1] == 128).all()
    assert (seen[owners != 1] == image[owners != 1]).all()


def test_picked_coalitions():
    scores = COALITIONS @ np.array([0.4, 0.3, 0.2, 0.1]) + 0.05
    present = np.array([True, True, True, False])
    found = person_drawings.pick_coalitions(COALITIONS, scores, present, few=2)
    # The absent player counts neither way; of its rows the better score is taken.
    assert COALITIONS[found["full"]][:3].all()
    assert not COALITIONS[found["empty"]][:3].any()
    assert COALITIONS[found["best"]][:3].tolist() == [True, True, False]
    assert COALITIONS[found["worst"]][:3].tolist() == [False, False, True]
    nobody = person_drawings.pick_coalitions(COALITIONS, scores * np.nan, present)
    assert nobody == {}


def test_best_of_equal_coalitions_is_the_simplest():
    present = np.ones(4, bool)
    found = person_drawings.pick_coalitions(COALITIONS, np.ones(16), present)
    assert COALITIONS[found["best"]].sum() == 1
    assert (~COALITIONS[found["worst"]]).sum() == 1


def test_targets_come_from_different_clusters_first():
    gap = np.array([0.9, -0.8, 0.1, 0.2])
    valid = np.ones(4, bool)
    choose = person_figures.choose_targets
    assert choose(gap, valid, CLUSTER_OF, 2) == [0, 3]
    assert choose(gap, valid, CLUSTER_OF) == [0, 3, 1, 2]
    assert choose(gap, np.array([False, True, True, False]), CLUSTER_OF) == [1, 2]
    assert choose(gap, ~valid, CLUSTER_OF) == []


def test_players_lie_at_their_joint_or_in_the_middle_of_their_pixels():
    arrays, pictures = make_arrays()
    centres, owners = arrays["centres"][0].astype(float), pictures["owners"][0]
    present = np.array([True, False, True, True])
    owners = np.where(owners == 1, -1, owners).astype(np.int16)
    places = person_figures.player_places(
        centres + 0.25, present, owners, [0, 1, 2, -1], 4
    )
    assert places[0] == pytest.approx(centres[0] + 0.25)
    assert np.isnan(places[1]).all()
    assert places[3] == pytest.approx([13, 17])


def matrix(values, **fields):
    given = dict(
        row_names=NAMES, column_names=NAMES, row_cluster=[1, 0, 1, 0],
        column_cluster=[1, 0, 1, 0], own=[0, 1, 2, 3],
    )  # fmt: skip
    return influence_drawings.influence_matrix(values, **(given | fields))


def test_influence_matrix_is_ordered_framed_and_marked():
    values = np.arange(16.0).reshape(4, 4) / 100
    values[0, 1] = np.nan
    np.fill_diagonal(values, 7.0)
    clear = np.zeros((4, 4), bool)
    clear[0, 2] = True
    figure = matrix(values, clear=clear)
    axes = figure.axes[0]
    order = [1, 3, 0, 2]
    shown = axes.images[0].get_array()
    assert shown.filled(np.nan) == pytest.approx(
        values[np.ix_(order, order)], nan_ok=True
    )
    assert shown.mask.sum() == 1
    # The diagonal of 7 does not set the range.
    assert axes.images[0].get_clim() == pytest.approx((-0.14, 0.14))
    assert [t.get_text() for t in axes.get_yticklabels()] == [
        "left knee", "right knee", "left hip", "right hip",
    ]  # fmt: skip
    frames = [p.get_bbox().bounds for p in axes.patches if p.get_gid() == "cluster"]
    assert frames == [(-0.5, -0.5, 2, 2), (1.5, 1.5, 2, 2)]
    assert axes.collections[0].get_offsets().tolist() == [[3, 2]]


def test_matrix_of_nothing_is_drawn():
    pixels(matrix(np.full((4, 4), np.nan)))


def whiskers(axes):
    return [
        tuple(line.get_xdata())
        for line in axes.lines
        if len(line.get_xdata()) == 2 and line.get_ydata()[0] == line.get_ydata()[1]
    ]


def test_whiskers_are_the_intervals():
    rows = [("b", [Estimate(0.2, 0.1, 0.4)]), ("c", [Estimate(-0.3, -0.5, 0.1)])]
    blank = ("d", [Estimate(np.nan, np.nan, np.nan)])
    lone = ("e", [Estimate(0.25, np.nan, np.nan)])
    blocks = [Block("one", rows), Block("two", [blank, lone]), Block("none", [])]
    figure = influence_drawings.whisker_blocks(blocks, "value")
    first, second = figure.axes
    assert whiskers(first) == [(0.1, 0.4), (-0.5, 0.1)]
    colours = [line.get_color() for line in first.lines[:4]]
    assert colours == [plotting.RAISES, plotting.RAISES, plotting.FAINT, plotting.FAINT]
    assert whiskers(second) == []
    assert [line.get_xdata()[0] for line in second.lines][:1] == [0.25]
    with pytest.raises(ValueError, match="no rows"):
        influence_drawings.whisker_blocks([Block("none", [])], "value")


def test_gaps_are_drawn():
    three = Estimate(0.1, 0.0, 0.2), Estimate(0.7, 0.6, 0.8), Estimate(0.6, 0.5, 0.7)
    figure = influence_drawings.gaps(["nose"], *([e] for e in three), "s")
    left, right = figure.axes
    assert whiskers(left) == [(0.0, 0.2), (0.6, 0.8)]
    assert (0.5, 0.7) in whiskers(right)


CROSSED = [[0, 2, 0.2, 2], [1, 3, 0.4, 2], [4, 5, 0.9, 4]]  # Leaves 0, 2, 1, 3.


def test_interdependence_shows_tree_cut_and_clusters():
    values = plotting.numbers(INTERDEPENDENCE["normalised"])
    figure = study_drawings.interdependence(
        values, np.array(CROSSED), NAMES, [[0, 2], [1, 3]], 0.65
    )
    tree, below = figure.axes[:2]
    cuts = [line for line in tree.lines if line.get_gid() == "cut"]
    assert [line.get_ydata()[0] for line in cuts] == [0.65]
    tops = sorted(max(l.get_ydata()) for l in tree.lines if l.get_gid() != "cut")
    assert tops == pytest.approx([0.2, 0.4, 0.9])
    assert sum(p.get_gid() == "cluster" for p in below.patches) == 2
    names = [t.get_text() for t in below.get_xticklabels()]
    assert sorted(names) == sorted(n.replace("_", " ") for n in NAMES)
    order = [names.index(n.replace("_", " ")) for n in NAMES]
    shown = below.images[0].get_array().filled(np.nan)
    assert shown[np.ix_(order, order)] == pytest.approx(values, nan_ok=True)


def test_grouping_error_points():
    figure = study_drawings.grouping_error(GROUPING["clusterings"])
    points = {
        (line.get_marker(), float(line.get_xdata()[0]), float(line.get_ydata()[0]))
        for line in figure.axes[0].lines
        if len(line.get_xdata()) == 1
    }
    assert points == {("o", 12, 0.3), ("s", 12, 0.5), ("x", 12, 0.3)}
    assert figure.axes[0].get_xscale() == "log"
    with pytest.raises(ValueError, match="no clustering"):
        study_drawings.grouping_error({})


@pytest.fixture(scope="module", autouse=True)
def coarse():
    """Small pictures: what is drawn does not depend on it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plotting, "DPI", 50)
        yield


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A workdir with everything, its explanations drawn once."""
    workdir = tmp_path_factory.mktemp("run")
    folder = write_folder(workdir / "explain" / "group_shapley-gsv-val")
    explanations.draw_folder(folder)
    return workdir


def test_everything_is_drawn_with_captions(drawn):
    folder = drawn / "explain" / "group_shapley-gsv-val"
    index = explanations.read_index(folder)
    names = [entry["file"].removesuffix(".png") for entry in index]
    people = [
        f"person-{m:04d}-{what}"
        for m in (0, 2)
        for what in ("arrows", "waterfall", "coalitions")
    ]
    assert names == [
        "influence_matrix", "gaps", "foreign", "conditional", *people,
        "interdependence", "grouping_error",
    ]  # fmt: skip
    for entry in index:
        assert len(entry["caption"]) > 40
        with Image.open(folder / "figures" / entry["file"]) as image:
            assert np.asarray(image.convert("L")).std() > 5
    assert {e["group"] for e in index} == {"", "Person 7", "Person 9"}
    said = {e["file"]: e["caption"] for e in index}
    assert "not the Shapley value" in said["person-0000-waterfall.png"]
    for name in ("influence_matrix", "foreign", "person-0000-arrows"):
        assert "must not be added or stacked" in said[f"{name}.png"]


def test_other_data_give_other_pictures(drawn, tmp_path):
    before = drawn / "explain" / "group_shapley-gsv-val" / "figures"
    folder = write_folder(tmp_path / "other", seed=5, studies=False, pictures=1)
    for other in explanations.figures(folder):
        with Image.open(before / f"{other.name}.png") as image:
            first = np.asarray(image.convert("RGB"))
        again = pixels(other.figure)
        assert first.shape != again.shape or (first != again).any(), other.name


def test_missing_studies_and_fields_are_not_drawn(tmp_path):
    folder = write_folder(tmp_path / "plain", studies=False, pictures=1)
    with np.load(folder / "explanations.npz") as stored:
        arrays = {k: stored[k] for k in stored.files if k != "coalitions"}
    arrays["hidden_values"] = np.full((3, 4, 4), np.nan)
    np.savez(folder / "explanations.npz", **arrays)
    names = {path.stem for path in explanations.draw_folder(folder)}
    assert not names & {"interdependence", "grouping_error", "person-0000-coalitions"}
    assert {"influence_matrix", "conditional", "person-0000-waterfall"} <= names
    (folder / "explanations.npz").unlink()
    (folder / "pictures.npz").unlink()
    names = {path.stem for path in explanations.draw_folder(folder)}
    assert names == {"influence_matrix", "gaps", "foreign"}


def test_players_that_are_no_joints(tmp_path):
    """Limbs: no own region, no conditional values."""
    folder = write_folder(
        tmp_path / "limbs", studies=False, pictures=1, kind="decoupled"
    )
    record = json.loads((folder / "explanations.json").read_text())
    record["players"] |= {"own": [-1] * 4, "names": ["a", "b", "c", "d"]}
    write(folder / "explanations.json", record)
    names = {path.stem for path in explanations.draw_folder(folder)}
    assert "conditional" not in names and "person-0000-arrows" in names


def test_no_clusters_found_still_shows_the_influence(tmp_path):
    folder = write_folder(tmp_path / "flat", pictures=0)
    found = {k: INTERDEPENDENCE[k] for k in ("keypoints", "normalised")}
    write(folder / "interdependence.json", found | {"no_clusters": "W is 0"})
    drawn = {d.name: d for d in explanations.figures(folder)}
    assert "no clusters were found" in drawn["interdependence"].caption


def test_folders_that_cannot_be_drawn(tmp_path):
    with pytest.raises(ValueError, match="run the task 'explain'"):
        explanations.draw_folder(tmp_path)
    folder = write_folder(tmp_path / "broken")
    (folder / "explanations.npz").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="damaged"):
        explanations.draw_folder(folder)


class Checker(html.parser.HTMLParser):
    """Open tags, ids, links, sources; fails on a wrong end tag."""

    VOID = {"meta", "img", "br", "input"}

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.links, self.words = [], [], [], []
        self.images, self.tags = [], []

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.tags.append(tag)
        self.ids += [given["id"]] if "id" in given else []
        self.links += [given["href"]] if "href" in given else []
        if tag == "img":
            self.images.append(given)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, tag

    def handle_data(self, data):
        self.words.append(data)


def check(text):
    """A valid page that needs nothing else."""
    found = Checker()
    found.feed(text)
    found.close()
    assert found.open == []
    assert len(set(found.ids)) == len(found.ids)
    assert {"html", "head", "title", "body", "main", "h1"} <= set(found.tags)
    assert not {"script", "link", "iframe"} & set(found.tags)
    assert not re.search(r"https?://|//[a-z]|url\(|@import|\son\w+=", outside(text))
    for image in found.images:
        assert image["alt"] and image["src"].startswith("data:image/")
    for link in found.links:
        assert link.startswith("#") and link[1:] in found.ids
    return found


def words_of(text):
    """What is read on the page."""
    return " ".join(" ".join(check(text).words).split())


def outside(text):
    """The page without the bytes of its pictures."""
    return re.sub(r"data:image/\w+;base64,[A-Za-z0-9+/=]+", "", text)


def headings(text):
    return re.findall(r"<h2[^>]*>(.*?)</h2>", text)


def fill_workdir(workdir, *, pck=(0.4, 0.6)):
    c = config.to_plain(config.default())
    write(workdir / "config.json", c)
    run = {
        "command": "main --workdir=<script>alert(1)</script>",
        "time": "2026-01-01T00:00:00Z",
        "python": "3.11",
        "packages": {"jax": "0.10.2", "none": None},
        "devices": ["cpu", "cpu"],
    }
    write(workdir / "manifest.json", {"runs": [run]})
    rate = {"thresholds": [0.1, 0.2], "micro": list(pck), "labels": 1234}
    rate |= {"name": "PCK box", "interval_95": [[0.35, 0.45], [0.5, 0.7]]}
    rate["joints"] = {"left_hip": {"count": 3, "pck": [0.25, None]}}
    base = {"thresholds": [0.1, 0.2], "micro": [0.3, 0.5]}
    results = {
        "val-<b>gt</b>": {
            "protocol": "data x; 12 people; flip test on",
            "pck": rate,
            "mean_pose": base,
            "ap": {"AP": 0.5, "AP50": float("nan"), "notes": [], "count": 3},
            "occlusion": [{"removed": 1, "hidden": {"pck": None, "joints": 0}}],
        }
    }
    write(workdir / "results.json", results)
    (workdir / "figures").mkdir(exist_ok=True)
    Image.new("RGB", (40, 30), "white").save(workdir / "figures" / "learning_curve.png")


def test_page_with_everything(drawn):
    fill_workdir(drawn)
    (drawn / "predict").mkdir(exist_ok=True)
    write(drawn / "predict" / "poses.json", {})
    Image.new("RGB", (64, 48), "red").save(drawn / "predict" / "sheet.png")
    text = page.build(drawn, "A <script>title</script> & more")
    found = check(text)
    assert headings(text) == [
        "What was run", "Learning curve", "Results", "Explanations", "Predictions",
    ]  # fmt: skip
    assert "<script" not in text and "&lt;script&gt;alert(1)" in text
    words = " ".join(found.words)
    for said in (
        "data x; 12 people; flip test on", "data nowhere; 3 people", "2 x cpu", "jax 0.10.2",
        "[0.350, 0.450]", "PCK@0.1 0.250 on the 9 labelled joints", "1,234 joints",
        "Person 7", "val-<b>gt</b>", "must not be added or stacked",
    ):  # fmt: skip
        assert said in words, said
    assert "NaN" not in words and "None" not in words and "nan" not in words.split()
    assert text.count("<figcaption>") == len(found.images) == 14
    assert len(text) < 3_000_000


def test_fills_that_disagree_are_flagged(drawn):
    words = " ".join(check(page.build(drawn)).words)
    assert "disagree (below 0.8)" in words and "mean against blur)" in words
    assert "against blur, noise" not in words


def test_page_without_explanations(tmp_path):
    fill_workdir(tmp_path)
    (tmp_path / "figures" / "learning_curve.png").unlink()
    text = page.build(tmp_path)
    check(text)
    assert headings(text) == ["What was run", "Results"]
    assert f"<h1>{tmp_path.name}</h1>" in text
    assert "does not beat the mean pose" not in text
    fill_workdir(tmp_path, pck=(0.3, 0.5))
    assert "does not beat the mean pose" in page.build(tmp_path)


def test_overlays_belong_to_results(tmp_path):
    fill_workdir(tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())
    results["val"] = next(iter(results.values()))
    write(tmp_path / "results.json", results)
    for name in ("val", "other"):
        Image.new("RGB", (30, 30)).save(tmp_path / "figures" / f"{name}.png")
    text = page.build(tmp_path)
    assert "Overlays of val" in text and "Overlays of other" not in text


def test_comparison_tables(tmp_path):
    difference = {
        "estimate": 0.01,
        "low": -0.02,
        "high": 0.04,
        "smallest_effect": 0.037,
    }
    record = {
        "protocol": "2 seeds",
        "baseline": "none",
        "arms": {
            "none": {"all": {"mean": 0.5, "per_seed": [0.4, 0.6]}},
            "gkr": {
                "all": {"mean": 0.51, "per_seed": [0.4, None]},
                "odd": [1, {"a": 2}],
            },
        },
        "differences": {"gkr": {"all": difference}},
        "strange": {"a": {"b": {"c": [1.5, None]}}, "empty": {}},
    }
    write(tmp_path / "comparison.json", record)
    text = page.build(tmp_path)
    check(text)
    assert headings(text) == ["Comparison of arms"]
    row = re.search(r'<tr><th scope="row">all</th>(.*?)</tr>', text)
    assert row and re.findall(r"<td>(.*?)</td>", row[1]) == ["0.500", "0.510"]
    words = words_of(text)
    assert "Differences from none" in words
    assert "0.010 [−0.020, 0.040] smallest effect 0.037" in words
    assert "1.500, –" in words
    write(tmp_path / "comparison.json", [1, 2])
    check(page.build(tmp_path))
    # Named comparisons are the same one again, and more.
    write(tmp_path / "comparison-a.json", record)
    write(tmp_path / "comparison-b.json", record)
    assert page.build(tmp_path).count("Arms, mean over seeds</caption>") == 2


def test_config_values_are_no_estimates(tmp_path):
    fill_workdir(tmp_path)
    words = words_of(page.build(tmp_path))
    assert "mean: 0.485, 0.456, 0.406" in words and "std: 0.229" in words


def test_pictures_stop_at_the_budget(tmp_path, generator):
    noise = generator.integers(0, 255, (120, 160, 3)).astype(np.uint8)
    path = tmp_path / "noise.png"
    Image.fromarray(noise).save(path)
    pictures = markup.Pictures(budget=40_000)
    first = pictures.figure(path, "a", "b")
    spent = 40_000 - pictures.left
    assert "data:image/jpeg" in first and 0 < spent < path.stat().st_size
    rest = [pictures.figure(path, "a", "b") for _ in range(4)]
    assert "data:" not in rest[-1] and "left out" in rest[-1]
    assert pictures.left >= 0


def test_charts_stay_png_and_large_pictures_shrink(tmp_path):
    buffer = io.BytesIO()
    Image.new("RGB", (400, 300), "white").save(buffer, "PNG")
    kind, data = markup.compress(buffer.getvalue())
    assert kind == "png" and data == buffer.getvalue()
    buffer = io.BytesIO()
    Image.new("RGB", (4000, 1000), "white").save(buffer, "PNG")
    kind, data = markup.compress(buffer.getvalue())
    with Image.open(io.BytesIO(data)) as image:
        assert kind == "jpeg" and image.size == (1600, 400)


def run_report(workdir, title=""):
    c = config.default()
    c.report.title = title
    report.run(c, str(workdir))


def test_task_draws_what_is_new_and_writes_the_page(tmp_path, monkeypatch, capsys):
    fill_workdir(tmp_path)
    place = tmp_path / "explain" / "group_shapley-gsv-val"
    folder = write_folder(place, studies=False, pictures=0)
    run_report(tmp_path, "Mine")
    text = (tmp_path / "report.html").read_text()
    check(text)
    assert "<h1>Mine</h1>" in text and "Who influences whom" in text
    assert "report.html" in capsys.readouterr().out
    calls = []
    monkeypatch.setattr(explanations, "draw_folder", calls.append)
    run_report(tmp_path)
    assert calls == []
    record = folder / "explanations.json"
    index = folder / "figures" / explanations.INDEX
    later = index.stat().st_mtime + 5
    os.utime(record, (later, later))
    run_report(tmp_path)
    assert [str(path) for path in calls] == [str(folder)]


def test_empty_workdir_is_one_clear_error(tmp_path):
    with pytest.raises(UserError, match="holds nothing to report; run a task"):
        run_report(tmp_path)
    assert not (tmp_path / "report.html").exists()
