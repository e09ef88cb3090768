"""Figures and page of the analyses, on records and arrays made by hand."""

import html
import json
import os
import re
import zipfile

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.offsetbox import AnnotationBbox
from PIL import Image

from pose_jax import config, skeletons
from pose_jax.config import UserError
from pose_jax.report import (
    analyses,
    analysis_captions,
    analysis_figures,
    analysis_panels,
    analysis_sentences,
    cluster_drawings,
    latent_drawings,
    page,
    page_beside,
    skip_drawings,
    skip_feature_drawings,
    thesis_numbers,
)
from pose_jax.tasks import report

LSP = skeletons.get("lsp").keypoints
K = len(LSP)
GATES = ["stack0/skip0", "stack0/skip1"]
OPENED = [[False, False], [True, False], [False, True], [True, True]]
PARTS = ["all", "medium", "large", "right_ankle", "left_wrist"]


def around(value, width=0.02):
    return {"value": value, "low": value - width, "high": value + width}


def make_style(levels=(0.2, 0.4, 0.5, 0.7)):
    """PCK of the subsets; every part has the same one, large joints keep more."""
    return {
        "subsets": [
            {
                "pck": {
                    p: around(level + 0.1 * (p == "large" and n == 0)) for p in PARTS
                },
                "heatmap_pck": level / 2,
                "peak": level,
                "entropy": 6 - level,
                "relative_change": [0.7 - level, 0.71 - level],
                "cka_change": [0.1, None],
            }
            for n, level in enumerate(levels)
        ],
        "shapley": {
            GATES[0]: {p: around(0.2) for p in PARTS},
            GATES[1]: {p: around(0.3) for p in PARTS},
        },
        "shapley_empty": {p: around(levels[0]) for p in PARTS},
        "largest_residual": 1e-7,
        "joints": dict.fromkeys(PARTS, 12),
        "histogram": {
            "edges": np.linspace(0, 1, 11).tolist(),
            "on": [0] * 5 + [1, 2, 3, 4, 0],
            "off": [10] + [0] * 9,
        },
    }


def make_skips(splits=("train", "eval"), styles=("zero", "mean"), controls=True):
    control = {
        "workdir": "somewhere",
        "step": 7,
        "pck": 0.6,
        "minus_whole": around(-0.1),
        "minus_all_closed": around(0.4),
    }
    return {
        "gates": GATES,
        "decoders": ["stack0/decoder1", "stack0/decoder0"],
        "opened": OPENED,
        "classes": {"medium": ["left_wrist"], "large": ["right_ankle"]},
        "protocol": "PCK@0.1, made up",
        "splits": {
            s: {"people": 10, "styles": {t: make_style() for t in styles}}
            for s in splits
        },
        "controls": {"<i>retrained</i>": control} if controls else {},
    }


def make_skip_arrays(splits=("train", "eval"), people=3):
    draw = np.random.default_rng(0)
    points = draw.uniform(2, 22, (people, K, 2))
    arrays = {}
    for name in splits:
        arrays |= {
            f"{name}_crops": draw.integers(0, 255, (people, 24, 24, 3)).astype(
                np.uint8
            ),
            f"{name}_on": points,
            f"{name}_off": points[:, ::-1].copy(),
            f"{name}_true": points,
            f"{name}_visible": np.full((people, K), 2),
            f"{name}_score": np.array([1.0, 1.0, 0.5]),
        }
    return arrays


def make_latent():
    step = {"low": -0.03, "high": -0.01, "smallest_effect": 0.02}
    ranks = [0, 1, 50, 60]
    entries = {
        "whole": 0.7,
        "only": [{"pck": 0.68, "minus_whole": -0.02, **step} for _ in ranks],
        "without": [{"pck": 0.68, "minus_whole": -0.02, **step} for _ in ranks],
    }
    moved = [{**around(0.05), "joints": {"right_ankle": 0.1}} for _ in range(2)]
    shares = [0.6, 0.3, 0.06, 0.03, 0.01]
    return {
        "question": {"labelled": "all"},
        "tap": "stack0/bottleneck",
        "protocol": "PCA, made up",
        "pca": {
            "samples": 6,
            "values": 20,
            "shares": shares,
            "cumulative": np.cumsum(shares).tolist(),
            "components_for_95": 3,
            "components_for_99": 4,
        },
        "walk": {
            "components": [1, 3],
            "steps": [-2.0, 0.0, 2.0],
            "nearest_rows": [[5, 4, 4], [4, 4, 4]],
            "nearest_to_mean": 4,
            "mean_distance": 9.0,
            "step_length": [3.0, 1.0],
            "stays": [2 / 3, 1.0],
        },
        "displacement": {
            "components": [1, 3],
            "people": 6,
            "own_skips": moved,
            "skips_closed": moved,
        },
        "projection": {
            "ranks": ranks,
            "complete": False,
            "own_skips": entries,
            "skips_closed": entries,
        },
        "names": {
            "people": 6,
            "tests": 4,
            "correlations": [
                entry(1, "posture", "spearman", -0.8),
                entry(1, "scale_px", "spearman", 0.1),
                entry(1, "left_hip_to_left_knee_angle", "circular", 0.5),
                entry(3, "facing", "spearman", None),
            ],
        },
    }


def entry(component, attribute, statistic, value):
    ends = around(value) if value is not None else {"low": None, "high": None}
    return {
        **ends, "component": component, "attribute": attribute, "statistic": statistic,
        "value": value, "count": 6,
    }  # fmt: skip


def make_latent_arrays():
    points = np.random.default_rng(1).uniform(2, 22, (2, 3, K, 2))
    return {
        "nearest_keypoints": points,
        "nearest_visible": np.full((2, 3, K), 2),
        "size": np.array([24, 24]),
        "mean_image_keypoints": points.astype(np.float32),
        "mean_image_peak": np.full((2, 3, K), 0.2, np.float32),
        "skips_closed_keypoints": points.astype(np.float32),
        "skips_closed_peak": np.full((2, 3, K), 0.4, np.float32),
    }


def make_clusters():
    nmi = {"nmi": 0.3, "null": 0.01, "null_high": 0.02, "count": 12}
    agreement = {"posture": nmi, "facing": {**nmi, "nmi": 0.015}}
    return {
        "question": {"labelled": "full"},
        "tap": "stack0/bottleneck",
        "protocol": "k-means, made up",
        "best": 3,
        "counts": {
            str(k): {
                "sizes": sizes,
                "stability": 0.9,
                "silhouette": 0.1 * k,
                "below_zero": 1,
                "agreement": agreement,
            }
            for k, sizes in ((2, [6, 6]), (3, [4, 4, 4]))
        },
        "profiles": {
            "posture": {"0": 0.1, "1": None, "2": 0.3},
            "left_hip_to_left_knee_angle": {"0": -np.pi / 2, "1": 0.0, "2": 1.0},
        },
        "view_shares": {"all": [0.4, 0.2]},
    }


def make_cluster_arrays():
    """Twelve people; a view's members, positions and thumbnails in an order of their own."""
    draw = np.random.default_rng(2)
    labels = np.array([0, 1, 2] * 4)
    arrays = {"chosen_labels": labels}
    arrays["nearest_crops"] = draw.integers(0, 255, (3, 2, 32, 32, 3)).astype(np.uint8)
    for name, members in (
        ("all", draw.permutation(12)),
        ("1", np.array([10, 1, 7, 4])),
    ):
        picked = np.array([3, 0, 2])
        thumbnails = np.zeros((3, 8, 8, 3), np.uint8)
        # The colour says whose picture it is.
        thumbnails[:] = 20 * members[picked][:, None, None, None]
        places = draw.permutation(len(members))[:, None] * np.array([1.0, -2.0])
        arrays |= {
            f"view_{name}": places.astype(np.float32),
            f"view_{name}_members": members,
            f"view_{name}_picked": picked,
            f"view_{name}_thumbnails": thumbnails,
        }
    return arrays


def make_redundancy():
    def arm(drop):
        return [
            {
                "kept": n,
                "pck": p,
                "minus_whole": p - 0.7,
                "low": p - 0.72,
                "high": p - 0.68,
            }
            for n, p in ((8, 0.7), (4, 0.7 - drop), (0, 0.2))
        ]

    return {
        "protocol": "channels, made up",
        "taps": {
            "stack0/bottleneck": {
                "shape": [3, 3, 8], "channels": 8, "channel_axes_for_95": 4,
                "values": 72, "people": 10, "axes_for_95": 5,
            },
            "stem": {"shape": [24, 24, 8], "channels": 8, "channel_axes_for_95": 2},
        },
        "pruning": {
            "tap": "stack0/bottleneck",
            "channels": 8,
            "parameters": 1000,
            "idle_parameters": [0, 100, 300],
            "rankings": {"energy": arm(0.1), "random_0": arm(0.2), "random_1": arm(0.3)},
        },
    }  # fmt: skip


WEIGHTS = {
    "people": 12,
    "misplaced": 3,
    "error_misplaced": around(0.3),
    "error_others": around(0.1),
    "spread": {"misplaced": 0.5},
    "protocol": "errors, made up",
}


def make_index(problem=""):
    return {
        "step": 40,
        "skeleton": "lsp",
        "splits": {
            "train": {"source": "train.json", "people": 10},
            "eval": {"source": "eval.json", "people": 10},
        },
        "health": {
            "pck": 0.7, "mean_pose_pck": 0.2, "people": 10, "split": "eval",
            "problem": problem,
        },
    }  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "run" / "analysis" / "val")


def write(folder, problem=""):
    folder.mkdir(parents=True)
    for name, record in {
        "index": make_index(problem),
        "skips": make_skips(),
        "latent": make_latent(),
        "clusters": make_clusters(),
        "redundancy": make_redundancy(),
        "weights": WEIGHTS,
    }.items():
        (folder / f"{name}.json").write_text(json.dumps(record))
    for name, arrays in {
        "skips": make_skip_arrays(),
        "latent": make_latent_arrays(),
        "clusters": make_cluster_arrays(),
    }.items():
        np.savez_compressed(folder / f"{name}.npz", **arrays)
    return folder


def run(workdir, **settings):
    c = config.default()
    for key, value in settings.items():
        c.report[key] = value
    report.run(c, str(workdir))
    return (workdir / "report.html").read_text()


def plain_text(page_text):
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page_text)))


STEMS = [
    "skips_subsets", "skips_shapley_zero", "skips_shapley_mean", "skips_histogram",
    "skips_people_train", "skips_effects_train", "skips_people_eval",
    "skips_effects_eval", "skips_answers", "latent_spectrum", "latent_walk_0001",
    "latent_walk_0003", "latent_displacement", "latent_projection", "clusters_counts",
    "clusters_view_all", "clusters_view_1", "clusters_nearest", "clusters_agreement",
    "redundancy_taps", "redundancy_pruning",
]  # fmt: skip


def test_a_whole_folder_is_drawn_shown_and_kept(folder):
    workdir = folder.parent.parent
    made = run(workdir)
    index = analyses.read_index(folder)
    assert [e["file"] for e in index] == [f"{stem}.png" for stem in STEMS]
    for e in index:
        with Image.open(folder / "figures" / e["file"]) as image:
            assert image.width <= 1200  # What a phone shows has to be narrow.
        assert len(e["caption"]) > 40 and e["title"]
    said = plain_text(made)
    assert made.count("<img") == len(STEMS)
    assert "Networks trained without skips" in said and "Factors in the loss" in said
    assert "<i>retrained" not in made and "&lt;i&gt;retrained" in made
    assert "−90°" in said  # Profiles show angles in degrees.
    drawn = (folder / "figures" / "index.json").stat().st_mtime_ns
    run(workdir)
    assert (folder / "figures" / "index.json").stat().st_mtime_ns == drawn
    for name in ("skips", "clusters", "redundancy"):  # One study is quick to redraw.
        (folder / f"{name}.json").unlink()
    later = drawn / 1e9 + 5
    os.utime(folder / "latent.json", (later, later))
    run(workdir)
    assert (folder / "figures" / "index.json").stat().st_mtime_ns != drawn


def test_a_network_that_was_not_analysed_is_flagged_and_nothing_else(tmp_path):
    workdir = tmp_path / "run"
    folder = write(
        workdir / "analysis" / "val", problem="does not beat <b>the mean</b>"
    )
    made = run(workdir)
    assert analyses.read_index(folder) == []
    assert 'class="flag">Not analysed: does not beat &lt;b&gt;' in made
    assert "<img" not in made and "Thesis beside" not in made


def test_missing_files_are_figures_that_are_not_drawn(folder):
    for name in ("skips", "clusters", "redundancy", "weights"):
        (folder / f"{name}.json").unlink()
    (folder / "latent.npz").unlink()
    names = [d.name for d in analyses.figures(folder)]
    assert names == ["latent_spectrum", "latent_displacement", "latent_projection"]
    (folder / "latent.json").unlink()
    assert list(analyses.figures(folder)) == []
    assert "lsp" in run(folder.parent.parent)
    (folder / "index.json").unlink()
    with pytest.raises(ValueError, match="no index.json; run the task 'analyse'"):
        list(analyses.figures(folder))


@pytest.mark.parametrize("damage", ["cut", "stream", "text"])
def test_a_damaged_npz_is_one_line(folder, damage):
    path = folder / "clusters.npz"
    data = bytearray(path.read_bytes())
    if damage == "stream":  # No block of deflate begins like this.
        with zipfile.ZipFile(path) as stored:
            start = stored.infolist()[0].header_offset
        lengths = data[start + 26 : start + 30]
        data[start + 30 + sum(lengths[::2]) + 256 * sum(lengths[1::2])] = 255
    path.write_bytes({"cut": data[:300], "text": b"no npz"}.get(damage, bytes(data)))
    for name in ("skips", "latent"):
        (folder / f"{name}.json").unlink()
    with pytest.raises(UserError, match="clusters.npz is damaged") as error:
        run(folder.parent.parent)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "study", ["skips", "latent", "clusters", "redundancy", "weights"]
)
def test_a_record_that_is_not_whole_is_one_line(folder, study):
    for other in ("skips", "latent", "clusters", "redundancy", "weights"):
        if other != study:
            (folder / f"{other}.json").unlink()
    (folder / f"{study}.json").write_text('{"protocol": "x"}')
    with pytest.raises(UserError, match="not whole .* run 'analyse' again") as error:
        run(folder.parent.parent)
    assert "\n" not in str(error.value)


def test_a_missing_array_is_one_line(folder):
    arrays = make_cluster_arrays()
    del arrays["view_all_picked"]
    np.savez_compressed(folder / "clusters.npz", **arrays)
    with pytest.raises(ValueError, match="clusters.* not whole"):
        list(analyses.figures(folder))


@pytest.mark.parametrize("name", ["all", "1"])
def test_thumbnails_stand_at_their_own_position(name):
    """The thesis's helper paired positions with other people's pictures (D3)."""
    arrays = make_cluster_arrays()
    made = {m[0]: m[3] for m in analysis_figures.clusters(make_clusters(), arrays, {})}
    figure = made[f"clusters_view_{name}"]
    axes = figure.axes[0]
    found = [a for a in axes.get_children() if isinstance(a, AnnotationBbox)]
    assert len(found) == 3
    places, members = arrays[f"view_{name}"], arrays[f"view_{name}_members"]
    for artist in found:
        here = int(np.flatnonzero((places == artist.xy).all(1)).item())
        person = int(members[here])
        assert (artist.offsetbox.get_data() == 20 * person).all()
        label = int(arrays["chosen_labels"][person])
        frame = to_hex(artist.patch.get_edgecolor())
        assert frame == to_hex(analysis_panels.colour(label))
    assert all(a.boxcoords == "data" or a.boxcoords is None for a in found)


def test_a_view_refuses_thumbnails_of_others():
    a = make_cluster_arrays()
    with pytest.raises(ValueError, match="3 thumbnails for 3 of 2 people"):
        cluster_drawings.view(
            a["view_all"][:2], a["chosen_labels"][:2], a["view_all_picked"],
            a["view_all_thumbnails"], "x",
        )  # fmt: skip


def test_thumbnails_do_not_hide_each_other():
    # The last one is above another, not on it.
    places = np.array([[0.0, 0], [0.001, 0], [1, 1], [1, 0.5]])
    assert cluster_drawings.apart(places, np.array([1, 0, 2, 3])) == [0, 2, 3]


def test_subsets_are_ordered_by_open_gates_and_thinned():
    opened = [[bool(n >> i & 1) for i in range(3)] for n in range(8)]
    order = skip_drawings.subset_order(opened)
    assert [sum(opened[n]) for n in order] == [0, 1, 1, 1, 2, 2, 2, 3]
    many = [[bool(n >> i & 1) for i in range(6)] for n in range(64)]
    assert len(skip_drawings.subset_order(many)) == 14
    shown = skip_feature_drawings.singles(OPENED, GATES)
    assert shown == {"skip0 closed": 2, "skip1 closed": 1, "all closed": 0}
    assert skip_drawings.short(["stack0/skip0", "stack1/skip0"])[1] == "stack1/skip0"


def test_subsets_are_drawn_where_they_are():
    figure = skip_drawings.subsets(make_skips(styles=("zero",)))
    axes = figure.axes[1]
    marks = [
        line.get_xydata()[0] for line in axes.get_lines() if len(line.get_xdata()) == 1
    ]
    x = np.array(sorted(marks, key=lambda m: m[1]))[:, 0]
    np.testing.assert_allclose(x, np.repeat([0.2, 0.4, 0.5, 0.7], 2))
    assert axes.get_xlim()[1] > 0.7
    discs = [line for line in figure.axes[0].get_lines()]
    filled = [line.get_markerfacecolor() != "white" for line in discs]
    assert np.array(filled).reshape(4, 2).tolist() == OPENED


def test_scales_hold_every_mark():
    record = make_skips()
    record["splits"]["eval"]["styles"]["mean"]["subsets"][0]["cka_change"] = [3.0, 1.0]
    axes = skip_feature_drawings.effects(record, "eval").axes
    assert all(side.get_xlim()[1] > 3 for side in axes[::2])
    answers = skip_feature_drawings.answers(record).axes
    assert answers[1].get_xlim()[1] > 5.8


def test_the_sum_of_shapley_values_is_said_beside_what_it_shares_out():
    said = analysis_captions.shapley(make_skips(), "zero")
    assert "sum 0.500, whole 0.700 minus all closed 0.200 is 0.500" in said


def test_pairs_show_both_answers():
    arrays = [make_skip_arrays()[f"eval_{f}"] for f in
              ("crops", "on", "off", "true", "visible", "score")]  # fmt: skip
    sheet = skip_drawings.sheet(*arrays, "lsp")
    assert sheet.shape == (2 * 156, 560, 3)
    left, right = sheet[16:156, :140], sheet[16:156, 140:280]
    assert (left != right).any()
    arrays[2] = arrays[1]
    sheet = skip_drawings.sheet(*arrays, "lsp")
    np.testing.assert_array_equal(sheet[16:156, :140], sheet[16:156, 140:280])


def test_the_walk_says_who_stays_and_how_sure_it_is():
    arrays = make_latent_arrays()
    made = {
        m[0]: m for m in analysis_figures.latent(make_latent(), arrays, make_index())
    }
    first, third = (made[f"latent_walk_000{n}"][3] for n in (1, 3))

    def same(figure):
        return [side.get_xlabel() for side in figure.axes[:3]]

    assert same(first) == ["", "same", "same"] and same(third) == ["same"] * 3
    assert len(first.axes) == 9

    def ink(column):
        return (255 - first.axes[column].images[0].get_array().astype(float)).mean()

    # Same points: what is less sure is fainter.
    assert ink(0) == ink(6) > ink(3) > 6
    caption = made["latent_walk_0003"][2]
    assert "100% of the steps" in caption and "shorter than that distance" in caption


def test_a_network_without_skips_has_no_closed_strip(folder):
    arrays = {k: v for k, v in make_latent_arrays().items() if "closed" not in k}
    record = make_latent()
    for part in ("displacement", "projection"):
        del record[part]["skips_closed"]
    made = {m[0]: m[3] for m in analysis_figures.latent(record, arrays, make_index())}
    assert len(made["latent_walk_0001"].axes) == 6
    assert "skips closed" not in " ".join(analysis_sentences.latent(record))


def test_the_spectrum_marks_its_counts():
    figure = latent_drawings.spectrum(make_latent()["pca"])
    marks = {line.get_gid(): line.get_xydata()[0].tolist() for line in
             figure.axes[1].get_lines() if line.get_gid()}  # fmt: skip
    assert marks == {"components_for_95": [3, 0.95], "components_for_99": [4, 0.99]}


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (-0.03, -0.01, "they carry something"),
        (-0.03, 0.01, "no loss is shown (one below about 0.020"),
        (0.01, 0.03, "answers are better"),
    ],
)
def test_the_claim_about_later_components_is_judged_by_the_interval(low, high, said):
    record = make_latent()
    for name in ("own_skips", "skips_closed"):
        record["projection"][name]["only"][2] |= {"low": low, "high": high}
    sentence = next(s for s in analysis_sentences.latent(record) if "beyond 50" in s)
    assert sentence.count(said) == 2


def test_no_claim_about_components_that_were_not_looked_at():
    record = make_latent()
    record["projection"]["ranks"] = [0, 1, 20, 40]
    assert "No component beyond 40 was looked at." in analysis_sentences.latent(record)


def test_short_steps_are_named_as_such():
    record = make_latent()
    said = " ".join(analysis_sentences.latent(record))
    assert "walk of component 3: the longest way there is 2" in said
    assert "does not show that they are noise" in said
    record["walk"]["step_length"][1] = 5.0
    assert "noise" not in " ".join(analysis_sentences.latent(record))
    assert "posture (Spearman −0.800" in said and "circular-linear R 0.500" in said


def test_size_classes_are_judged_by_what_is_left():
    record = make_skips()
    said = analysis_sentences.skips(record)
    assert "29% of medium joints, 43% of large joints" in said[-1]
    assert "these numbers agree" in said[-1] and "no small joints" in said[-1]
    for split in record["splits"].values():
        split["styles"]["zero"]["subsets"][0]["pck"]["large"] = around(0.1)
    assert "do not agree" in analysis_sentences.skips(record)[-1]
    assert "skip1 0.300 [0.280, 0.320], skip0 0.200" in said[2]
    # Closing skip1 leaves the subset where skip0 alone is open.
    assert "largest with skip1 closed: 0.300" in said[2]


def test_clusters_are_judged_beside_shuffled_ones():
    record = make_clusters()
    said = " ".join(analysis_sentences.clusters(record))
    assert "K = 3" in said and "posture (0.300, shuffled 0.020)" in said
    assert "facing" not in said and "no substantial" not in said
    record["counts"]["3"]["silhouette"] = 0.1
    record["counts"]["3"]["agreement"]["posture"]["nmi"] = 0.01
    said = " ".join(analysis_sentences.clusters(record))
    assert "no substantial structure" in said and "agree with no attribute" in said


def test_the_thesis_stands_beside_with_both_protocols(folder):
    made = page_beside.thesis(folder, make_index())
    rows = re.findall(r"<tr>(<th scope=\"row\">.*?)</tr>", made)
    cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in rows]
    assert all(len(c) == 5 and all(c) for c in cells)
    by = {c[0]: c[1:3] for c in cells}
    assert by["PCK, all skips open"] == ["0.493", "0.350"]
    assert by["PCK, all skips closed (zero)"] == ["0.179", "0.100"]
    assert by["components for 95 % of the variance"] == ["542", "3"]
    assert by["share of the first component"] == ["0.534", "0.600"]
    assert by["K of the best silhouette"] == ["2", "3"]
    assert sum(c[0].startswith("silhouette, K = ") for c in cells) == 4
    assert "train.json" in cells[0][4] and "123,520" in cells[0][3]
    record = make_skips(splits=("eval",))
    (folder / "skips.json").write_text(json.dumps(record))
    assert "eval, not the training split" in page_beside.thesis(folder, make_index())


def test_published_silhouettes_are_whole():
    for values in thesis_numbers.SILHOUETTES.values():
        assert list(values) == list(range(2, 11)) and max(values, key=values.get) == 2


def test_runs_stand_beside_each_other(folder, tmp_path):
    other = write(tmp_path / "repaired" / "analysis" / "<v>al")
    third = write(tmp_path / "silent" / "analysis" / "val", problem="answers zero")
    pck = {
        "name": "PCK box",
        "thresholds": [0.05, 0.1, 0.2],
        "micro": [0.1, 0.432, 0.5],
    }
    results = {"other": {"pck": {**pck, "micro": [0, 0, 0]}, "protocol": "no"},
               "val-1": {"pck": pck, "protocol": "boxes ground truth"}}  # fmt: skip
    workdir = folder.parent.parent
    for name in ("skips", "clusters", "redundancy"):
        (folder / f"{name}.json").unlink()
    (workdir / "results.json").write_text(json.dumps(results))
    beside = tuple(str(f.parent.parent) for f in (other, third))
    made = run(workdir, beside=beside)
    start = made.index("Runs beside each other")
    said = plain_text(made[start - 400 :])
    assert "run: val repaired: <v>al silent: val" in said
    assert "PCK box@0.1, results 0.432 – –" in said
    assert "components for 95 %, of values 3 of 20 3 of 20 –" in said
    assert "boxes ground truth" in said and "not analysed: answers zero" in said
    with pytest.raises(UserError, match="has no analysis; run the task 'analyse'"):
        run(workdir, beside=(str(tmp_path),))


def test_two_analyses_of_a_workdir_come_one_after_the_other(folder):
    write(folder.parent / "a-code")
    made = page.build(folder.parent.parent)
    places = [made.index(f'<h3 id="analysis-{name}"') for name in ("a-code", "val")]
    assert places == sorted(places)
    assert '<a href="#analysis-val">' in made
