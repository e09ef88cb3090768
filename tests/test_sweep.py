"""Sweeps and their comparison: cells, resuming, failures, planted differences."""

import fcntl
import json
import subprocess
import sys
import time

import numpy as np
import pytest
from ml_collections import ConfigDict
from tiny import tiny_config, write_config

from pose_jax.config import Interrupted, UserError
from pose_jax.tasks import TASKS, compare, sweep
from pose_jax.tasks.arrays import save_arrays
from pose_jax.tasks.workdir import claim


def study(seeds=(0, 1), **arms):
    c = tiny_config()
    c.sweep.seeds = seeds
    c.sweep.arms = arms or {
        "none": {"data": {"train": {"removal": {"kind": "none"}}}},
        "gkr": {"data": {"train": {"removal": {"kind": "gkr"}}}},
    }
    c.compare.resamples = 400
    return c


@pytest.fixture
def ran(monkeypatch):
    """Tasks that only say that they ran."""
    calls = []

    def fake(name):
        return lambda config, workdir: calls.append((name, config, workdir))

    for name in ("train", "evaluate"):
        monkeypatch.setitem(TASKS, name, fake(name))
    return calls


def cells_of(calls):
    return [("/".join(w.split("/")[-2:]), name) for name, _, w in calls]


# --- sweep ------------------------------------------------------------------------------


def test_cells_are_arms_by_seeds(tmp_path):
    c = study(seeds=(3, 5))
    c.sweep.tasks = ("train",)
    cells = list(sweep.make_cells(c, str(tmp_path)))
    assert [(x.arm, x.seed) for x in cells] == [
        ("gkr", 3), ("none", 3), ("gkr", 5), ("none", 5),
    ]  # fmt: skip
    for cell in cells:
        assert cell.config.seed == cell.seed and cell.config.tasks == ("train",)
        assert cell.config.data.train.removal.kind == cell.arm
        assert cell.workdir == str(tmp_path / "cells" / cell.arm / f"seed{cell.seed}")
    assert c.seed == 0 and c.data.train.removal.kind == "none"  # Copies were changed.


def test_finished_cells_are_skipped_and_changed_ones_run_again(tmp_path, ran, capsys):
    sweep.run(study(), str(tmp_path))
    assert cells_of(ran) == [
        (f"{arm}/seed{seed}", task)
        for seed in (0, 1)
        for arm in ("gkr", "none")
        for task in ("train", "evaluate")
    ]
    assert "sweep of 4 cells is complete" in capsys.readouterr().out
    ran.clear()
    sweep.run(study(), str(tmp_path))
    assert not ran and capsys.readouterr().out.count("finished before") == 4
    # A changed arm runs again, alone.
    changed = study()
    changed.sweep.arms.gkr.evaluate = ConfigDict(dict(batch=4))
    sweep.run(changed, str(tmp_path))
    assert {cell for cell, _ in cells_of(ran)} == {"gkr/seed0", "gkr/seed1"}
    assert ran[0][1].evaluate.batch == 4
    ran.clear()
    # More arms, more seeds, another comparison: what is finished stays finished.
    more = study(seeds=(0, 1, 2))
    more.sweep.arms.gkr.evaluate = ConfigDict(dict(batch=4))
    more.sweep.arms.strong = ConfigDict(
        {"data": {"train": {"removal": {"kind": "gkr_strong"}}}}
    )
    more.compare.baseline = "gkr"
    sweep.run(more, str(tmp_path))
    assert {cell for cell, _ in cells_of(ran)} == {
        "gkr/seed2", "none/seed2", "strong/seed0", "strong/seed1", "strong/seed2",
    }  # fmt: skip


@pytest.mark.parametrize("error", [UserError, ValueError, KeyError, RuntimeError])
def test_a_failing_cell_is_named_and_the_others_go_on(
    tmp_path, ran, monkeypatch, error
):
    good = TASKS["train"]

    def train(config, workdir):
        if config.seed == 1 and config.data.train.removal.kind == "gkr":
            raise error("the disk is full")
        good(config, workdir)

    monkeypatch.setitem(TASKS, "train", train)
    with pytest.raises(UserError) as caught:
        sweep.run(study(), str(tmp_path))
    text = str(caught.value)
    assert "1 of 4 cells failed" in text and "the disk is full" in text
    assert "cell 3/4: gkr, seed 1" in text
    assert ("none/seed1", "evaluate") in cells_of(ran)
    ran.clear()
    monkeypatch.setitem(TASKS, "train", good)
    sweep.run(study(), str(tmp_path))
    assert {cell for cell, _ in cells_of(ran)} == {"gkr/seed1"}


def test_an_interruption_stops_the_sweep(tmp_path, ran, monkeypatch):
    def train(config, workdir):
        raise Interrupted("stopped by SIGINT")

    good = TASKS["train"]
    monkeypatch.setitem(TASKS, "train", train)
    with pytest.raises(Interrupted):
        sweep.run(study(), str(tmp_path))
    assert not ran
    monkeypatch.setitem(TASKS, "train", good)
    sweep.run(study(), str(tmp_path))  # The lock is free again.
    assert len(ran) == 8


def test_the_identity_of_a_trained_cell_is_kept(tmp_path, ran, monkeypatch):
    """An arm that now means another training is refused in its cell, not mixed in."""
    from pose_jax import checkpoint

    sweep.run(study(), str(tmp_path))
    monkeypatch.setattr(checkpoint, "saved_steps", lambda workdir: [6])
    changed = study()
    changed.sweep.arms.gkr.model = ConfigDict(dict(features=16))
    with pytest.raises(
        UserError, match="model.features: the workdir has 8.*asks for 16"
    ):
        sweep.run(changed, str(tmp_path))


@pytest.mark.parametrize(
    "arms,fields,message",
    [
        ({"a": {"data": {"trian": {}}}}, {}, "arm 'a' of the sweep: .*trian"),
        ({"a": {"train": {"stpes": 3}}}, {}, "arm 'a'.*stpes"),
        ({"a": 3}, {}, "arms = {name: {section: {field: value}}}"),
        ({"a/b": {"seed": 3}}, {}, "names are those of folders"),
        ({}, dict(seeds=()), "sweep.arms and sweep.seeds are needed"),
        ({}, dict(arms=ConfigDict()), "sweep.arms and sweep.seeds are needed"),
        (
            {},
            dict(tasks=("train", "sweep")),
            "'sweep', which is no task of a single run",
        ),
        ({}, dict(tasks=("trian",)), "'trian', which is no task"),
    ],
)
def test_impossible_sweeps(tmp_path, ran, arms, fields, message):
    c = study(**arms)
    for name, value in fields.items():
        c.sweep[name] = value
    c.lock()
    with pytest.raises(UserError, match=message):
        sweep.run(c, str(tmp_path))
    assert not ran


def test_a_second_sweep_is_refused(tmp_path, ran, monkeypatch):
    started = []
    with open(tmp_path / "sweep.lock", "w") as file, monkeypatch.context() as patch:
        fcntl.flock(file, fcntl.LOCK_EX)
        patch.setattr(subprocess, "Popen", lambda *a, **k: started.append(a))
        for background in (False, True):
            c = study()
            c.sweep.background = background
            with pytest.raises(UserError, match="a sweep is running in"):
                sweep.run(c, str(tmp_path))
    assert not ran and not started
    sweep.run(study(), str(tmp_path))
    assert len(ran) == 8


@pytest.mark.slow
def test_in_the_background_through_the_command_line(tmp_path, environment, repository):
    """Returns at once; the child sweeps and compares, log and table are there."""
    config = write_config(tmp_path / "tiny_sweep.py")
    text = (tmp_path / "tiny_sweep.py").read_text()
    (tmp_path / "tiny_sweep.py").write_text(
        text.replace("return tiny_config()", "c = tiny_config(steps=1, eval_every=0)\n"
        "    c.tasks = ('sweep', 'compare')\n"
        "    c.evaluate.update(metrics=('pck',), flip_test=False)\n"
        "    c.compare.resamples = 50\n"
        "    c.sweep.update(seeds=(0,), arms={'none': {}, 'slow': "
        "{'optimiser': {'learning_rate': 0}}})\n    return c")
    )  # fmt: skip
    workdir = tmp_path / "study"
    done = subprocess.run(
        [sys.executable, "-m", "pose_jax.main", f"--config={config}",
         f"--workdir={workdir}", "--config.sweep.background=True"],
        env=environment, cwd=repository, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "started in the background as process" in done.stdout
    assert not (workdir / "comparison.json").exists()
    number = int(done.stdout.partition("as process ")[2].partition(";")[0])
    for _ in range(600):
        if (workdir / "comparison.json").exists():
            break
        time.sleep(0.5)
    log = (workdir / "sweep.log").read_text()
    assert "sweep of 2 cells is complete" in log, log
    record = json.loads((workdir / "comparison.json").read_text())
    assert record["people"] == 16 and record["seeds"] == [0]
    assert "step 1 of every run" in record["protocol"]
    assert number > 0


# --- compare ----------------------------------------------------------------------------


def errors_of(generator, rate, people=60):
    """Errors with a share of right joints; two people per picture."""
    visible = np.tile([2, 1, 2, 0], (people, 1))
    right = generator.random((people, 4)) < rate
    return {
        "id": np.array([f"p{n}" for n in range(people)]),
        "image_id": np.array([f"i{n // 2}" for n in range(people)]),
        "visible": visible,
        "error": np.where(right, 0.02, 0.3).astype(np.float32),
    }


def plant(c, workdir, rates, name="val-gt-flip-6", leave=()):
    for cell in sweep.make_cells(c, str(workdir)):
        if (cell.arm, cell.seed) in leave:
            continue
        generator = np.random.default_rng([cell.seed, 7])
        path = workdir / "cells" / cell.arm / f"seed{cell.seed}" / "errors"
        save_arrays(path / f"{name}.npz", errors_of(generator, rates[cell.arm]))
        claim(cell.config, cell.workdir)
    return c


def planted(seeds=(0, 1, 2)):
    return study(seeds, none={}, better={"train": {"batch": 8}}, null={})


RATES = {"none": 0.5, "better": 0.8, "null": 0.5}


def test_a_planted_difference_is_found_and_a_null_arm_covers_zero(tmp_path, capsys):
    c = plant(planted(), tmp_path, RATES)
    # The null arm is right as often, at other places.
    for seed in (0, 1, 2):
        generator = np.random.default_rng([seed, 99])
        save_arrays(
            tmp_path
            / "cells"
            / "null"
            / f"seed{seed}"
            / "errors"
            / "val-gt-flip-6.npz",
            errors_of(generator, 0.5),
        )
    compare.run(c, str(tmp_path))
    record = json.loads((tmp_path / "comparison.json").read_text())
    better = record["differences"]["better"]["all joints"]
    assert 0.2 < better["estimate"] < 0.4 and 0.1 < better["low"] < better["estimate"]
    assert better["estimate"] < better["high"]
    null = record["differences"]["null"]["all joints"]
    assert null["low"] < 0 < null["high"] and null["smallest_effect"] > 0
    arms = record["arms"]
    np.testing.assert_allclose(
        better["estimate"],
        arms["better"]["all joints"]["mean"] - arms["none"]["all joints"]["mean"],
    )
    assert arms["none"]["all joints"]["joints"] == 180
    assert arms["none"]["labelled occluded"]["joints"] == 60
    assert "differences" in record and "none" not in record["differences"]
    assert "3 seeds (0, 1, 2), step 6 of every run" in record["protocol"]
    assert (tmp_path / "comparison-val.json").exists()
    said = capsys.readouterr().out
    assert (
        "difference from 'none'" in said and f"{100 * better['estimate']:+.2f}" in said
    )


def test_identical_arms_differ_by_nothing(tmp_path):
    c = plant(planted(), tmp_path, {**RATES, "better": 0.5})
    compare.run(c, str(tmp_path))
    record = json.loads((tmp_path / "comparison.json").read_text())
    for arm in ("better", "null"):
        found = record["differences"][arm]["all joints"]
        assert found["estimate"] == found["low"] == found["high"] == 0


def test_seeds_that_are_not_finished_are_left_out_and_named(tmp_path, capsys):
    c = plant(planted(), tmp_path, RATES, leave=[("better", 1)])
    compare.run(c, str(tmp_path))
    record = json.loads((tmp_path / "comparison.json").read_text())
    assert record["seeds"] == [0, 2]
    assert len(record["arms"]["none"]["all joints"]["per_seed"]) == 2
    assert "left out with their seeds: better, seed 1" in capsys.readouterr().out
    with pytest.raises(
        UserError, match=r"no seed is evaluated.*9 of 9.*val-gt-flip-\*"
    ):
        compare.run(c, str(tmp_path / "empty"))


def test_the_evaluation_that_the_config_names_is_read(tmp_path):
    """Not another name that begins alike, not without flip test; the last step."""
    c = plant(planted(), tmp_path, {**RATES, "better": 0.5})
    wrong = {"none": 0.1, "better": 0.9, "null": 0.2}
    for name in (
        "val-hard-gt-flip-9",
        "val-gt-noflip-8",
        "val-gt-flip-4",
        "other-gt-flip-9",
    ):
        plant(c, tmp_path, wrong, name)
    compare.run(c, str(tmp_path))
    record = json.loads((tmp_path / "comparison.json").read_text())
    assert record["differences"]["better"]["all joints"]["estimate"] == 0
    # Steps that differ are said.
    plant(c, tmp_path, RATES, "val-gt-flip-9", leave=[("none", s) for s in (0, 1, 2)])
    compare.run(c, str(tmp_path))
    record = json.loads((tmp_path / "comparison.json").read_text())
    assert "UNEQUAL steps 6, 9" in record["protocol"]
    c.evaluate.update(name="val-hard")
    compare.run(c, str(tmp_path))
    record = json.loads((tmp_path / "comparison.json").read_text())
    assert record["differences"]["better"]["all joints"]["estimate"] > 0.7


def test_refusals_of_compare(tmp_path):
    c = plant(planted(), tmp_path, RATES)
    c.compare.baseline = "nothing"
    with pytest.raises(
        UserError, match="'nothing' is no arm of the sweep: better, none"
    ):
        compare.run(c, str(tmp_path))
    c.compare.baseline = "none"
    path = tmp_path / "cells" / "better" / "seed1" / "errors" / "val-gt-flip-6.npz"
    other = errors_of(np.random.default_rng(0), 0.5)
    other["id"] = other["id"][::-1]
    save_arrays(path, other)
    with pytest.raises(
        UserError, match="'better', seed 1 was evaluated on other people"
    ):
        compare.run(c, str(tmp_path))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="val-gt-flip-6.npz is damaged"):
        compare.run(c, str(tmp_path))


def test_measures_counted_by_hand():
    errors = {
        "visible": np.array([[2, 1, 0], [1, 2, 2]]),
        "error": np.array([[0.05, 0.2, 0.0], [0.09, 0.11, 0.0]]),
        "occluded_count": np.array([1, 2]),
        "occluded_error": np.array([
            [[0.05, 0.2, 0.0], [0.5, 0.0, 0.0]],
            [[0.5, 0.01, 0.0], [0.5, 0.5, 0.0]],
        ]),
        "occluded_hidden": np.array([
            [[1, 0, 0], [1, 0, 0]],
            [[1, 1, 0], [1, 1, 0]],
        ], bool),
    }  # fmt: skip
    found = {
        name: (count.right.tolist(), count.asked.tolist())
        for name, count in compare.measures(errors, 0.1).items()
    }
    assert found == {
        "all joints": ([1, 2], [2, 3]),
        "labelled occluded": ([0, 1], [1, 1]),
        "hidden joints": ([2, 0], [3, 3]),
        "joints beside hidden ones": ([0, 3], [1, 3]),
        "hidden, 1 at a time": ([1, 0], [1, 1]),
        "hidden, 2 at a time": ([1, 0], [2, 2]),
    }
