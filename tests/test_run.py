"""Whole runs through the entry point: resume, kill, fall back, refuse."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
from tiny import tiny_config, write_config

from pose_jax import checkpoint
from pose_jax.config import UserError, source
from pose_jax.skeletons import get
from pose_jax.tasks import train
from pose_jax.tasks.workdir import claim
from pose_jax.trees import flat_names


def command(config, workdir, *more):
    return [
        sys.executable, "-m", "pose_jax.main",
        f"--config={config}", f"--workdir={workdir}", *more,
    ]  # fmt: skip


def weights(workdir, step=None):
    tree, found = checkpoint.load_variables(workdir, step or "last")
    return flat_names(tree), found


def same(a, b):
    assert a.keys() == b.keys()
    return all(np.array_equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """An uninterrupted run of six steps."""
    workdir = tmp_path_factory.mktemp("straight")
    c = tiny_config()
    claim(c, str(workdir))
    train.run(c, str(workdir))
    return workdir


def test_resume_equals_uninterrupted(straight, tmp_path, capsys):
    """Four steps, then the same command again: bit for bit the run of six."""

    c = tiny_config()
    loop = train.Loop(c, str(tmp_path))
    original = loop.train_step
    count = 0

    def step(state, batch):
        nonlocal count
        count += 1
        if count == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return original(state, batch)

    loop.train_step = step
    with pytest.raises(UserError, match="stopped by SIGINT at step 4, saved"):
        loop.run()
    train.run(tiny_config(), str(tmp_path))
    assert "resuming" in capsys.readouterr().out
    a, step_a = weights(straight)
    b, step_b = weights(tmp_path)
    assert step_a == step_b == 6
    assert same(a, b)
    rows = [
        json.loads(r) for r in (tmp_path / "metrics.jsonl").read_text().splitlines()
    ]
    steps = [r["step"] for r in rows if "train/loss" in r]
    assert steps == sorted(set(steps))


def test_a_finished_run_does_nothing(straight, capsys):
    before, _ = weights(straight)
    train.run(tiny_config(), str(straight))
    assert "nothing to do" in capsys.readouterr().out
    assert same(before, weights(straight)[0])


def test_damaged_checkpoint_falls_back(straight, tmp_path, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(straight, workdir)
    steps = checkpoint.Checkpoints(workdir).steps()
    newest = workdir / "checkpoints" / str(steps[-1])
    for file in (newest / "training").rglob("*"):
        if file.is_file() and file.stat().st_size > 64:
            file.write_bytes(file.read_bytes()[:40])
    train.run(tiny_config(), str(workdir))
    said = capsys.readouterr().out
    assert f"checkpoint {steps[-1]}" in said and "trying the one before" in said
    assert (workdir / "damaged_checkpoints" / str(steps[-1])).exists()
    assert same(weights(straight)[0], weights(workdir)[0])


def test_no_readable_checkpoint_is_left_alone(straight, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(straight, workdir)
    for file in (workdir / "checkpoints").rglob("*"):
        if file.is_file() and "metrics" not in str(file) and file.stat().st_size > 64:
            file.write_bytes(b"")
    with pytest.raises(checkpoint.CheckpointError, match="could be read|holds no"):
        train.run(tiny_config(), str(workdir))
    assert list((workdir / "checkpoints").iterdir())


def test_non_finite_loss_stops_and_saves_nothing(tmp_path):
    c = tiny_config(steps=4, save_every=1)
    loop = train.Loop(c, str(tmp_path))
    original = loop.train_step
    count = 0

    def step(state, batch):
        nonlocal count
        count += 1
        state, metrics = original(state, batch)
        if count == 3:
            metrics = dict(metrics, loss=metrics["loss"] * float("nan"))
        return state, metrics

    loop.train_step = step
    with pytest.raises(UserError, match=r"loss nan.*at step 3; sample ids \[\d+"):
        loop.run()
    assert checkpoint.Checkpoints(tmp_path).steps()[-1] == 2


def test_another_config_is_refused_with_every_difference(straight):
    c = tiny_config()
    c.seed = 5
    c.model.features = 16
    c.evaluate.batch = 4  # Not part of the identity.
    with pytest.raises(UserError) as error:
        claim(c, str(straight))
    text = str(error.value)
    assert "seed: the workdir has 0, the command asks for 5" in text
    assert "model.features" in text and "evaluate" not in text
    assert json.loads((straight / "config.json").read_text())["seed"] == 0


def test_workdir_files(straight):
    names = {p.name for p in straight.iterdir()}
    assert {"config.json", "manifest.json", "metrics.jsonl", "checkpoints"} <= names
    manifest = json.loads((straight / "manifest.json").read_text())["runs"][0]
    assert manifest["packages"]["jax"] and manifest["devices"] and manifest["command"]
    assert list((straight / "tensorboard").iterdir())
    assert (straight / "figures" / "learning_curve.png").stat().st_size > 1000
    steps = checkpoint.Checkpoints(straight).steps()
    best = checkpoint.best_step(straight / "checkpoints", steps)
    assert steps[-1] == 6 and best in (3, 6)
    assert len([s for s in steps if s != best]) <= 2


@pytest.mark.slow
def test_kill_at_random_moments(straight, tmp_path, environment):
    """`kill -9` again and again, wherever it hits; the end is that of the quiet run."""
    config = write_config(tmp_path / "tiny_kill.py", save_every=1)
    workdir = tmp_path / "run"
    generator = np.random.default_rng(0)
    first = time.monotonic()
    subprocess.run(
        command(config, tmp_path / "warm"), env=environment, check=True,
        capture_output=True,
    )  # fmt: skip
    usual = time.monotonic() - first
    for _ in range(6):
        process = subprocess.Popen(
            command(config, workdir), env=environment,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        time.sleep(generator.uniform(0.5, 1.0) * usual)
        process.kill()
        process.wait()
    done = subprocess.run(
        command(config, workdir), env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert same(weights(tmp_path / "warm")[0], weights(workdir)[0])
    assert same(weights(straight)[0], weights(workdir)[0])


def test_overfits_four_figures(tmp_path):
    """The network, the loss and the decoder together can learn: four pictures by heart."""
    from pose_jax import data, evaluation, inference, sharding
    from pose_jax.recipe import recipe

    c = tiny_config(steps=220, batch=4, save_every=0, eval_every=0, log_every=0)
    c.model.update(features=24, stem=(8, 16, 24))
    c.optimiser.update(learning_rate=5e-3, schedule="cosine")
    c.data.train.source.count = 4
    for name in c.data.train.augment:
        c.data.train.augment[name] = 0.0
    loop = train.Loop(c, str(tmp_path))
    loop.run()
    source = data.open_source(c.data.train.source, root=None, skeleton="coco")
    described = recipe(c)
    found = inference.predict_source(
        described, loop.state.variables, source,
        mesh=sharding.make_mesh(), batch=4, flip_test=False,
    )  # fmt: skip
    score = evaluation.score(found, source, described, c.evaluate)["pck"]["micro"]
    assert score[1] > 0.9


def test_init_from_another_skeleton(straight, tmp_path, capsys):
    """A COCO-17 run's weights start an LSP-14 run: shared joints keep their maps."""
    c = tiny_config(steps=1, save_every=0, eval_every=0)
    c.skeleton = "lsp"
    c.init_from.path = str(straight)
    loop = train.Loop(c, str(tmp_path))
    said = capsys.readouterr().out
    assert "2 mapped by joint name" in said
    old, _ = weights(straight)
    old, new = old["params/stack0_heatmaps/bias"], loop.state.params["stack0_heatmaps"]
    new = np.asarray(new["bias"])
    for name in ("left_knee", "right_wrist"):
        assert new[get("lsp").index(name)] == old[get("coco").index(name)]
    c.init_from.path = str(tmp_path / "nothing")
    with pytest.raises(UserError, match="holds no config.json"):
        train.Loop(c, str(tmp_path / "other"))


def people_on_disk(folder, count, broken):
    """A COCO-format set of figures whose first pictures are cut off."""
    from pose_jax.data.figures import FigureSource

    figures = FigureSource(count, size=(48, 48))
    images, annotations = [], []
    for n in range(count):
        figure = figures.render(n)
        ok, data = cv2.imencode(".jpg", figure.image[:, :, ::-1])
        data = data.tobytes()
        (folder / f"{n}.jpg").write_bytes(
            data[: len(data) // 2] if n < broken else data
        )
        images.append(dict(id=n, file_name=f"{n}.jpg"))
        points = np.concatenate([figure.keypoints, figure.visible[:, None]], 1)
        annotations.append(
            dict(id=n, image_id=n, category_id=1, bbox=figure.box.tolist(),
                 area=float(figure.area), keypoints=points.ravel().tolist())
        )  # fmt: skip
    category = dict(id=1, name="person", keypoints=list(get("coco").keypoints))
    content = dict(images=images, annotations=annotations, categories=[category])
    (folder / "people.json").write_text(json.dumps(content))
    return source("coco", path=str(folder / "people.json"), images=str(folder))


def test_unreadable_pictures_in_training(tmp_path, capsys):
    """Named and skipped below the limit, refused above it."""
    c = tiny_config(steps=3, eval_every=0)
    c.data.train.source = people_on_disk(tmp_path, 24, broken=2)
    c.train.max_bad_images = 0.2
    train.run(c, str(tmp_path / "run"))
    said = capsys.readouterr().out
    assert "unreadable picture skipped: 0.jpg" in said
    assert "unreadable picture skipped: 1.jpg" in said
    c.train.max_bad_images = 0.01
    with pytest.raises(UserError, match="unreadable pictures among 24 people"):
        train.run(c, str(tmp_path / "refused"))
