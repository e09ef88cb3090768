"""The command line: help, overrides, and one clear line for every mistake."""

import json
import subprocess
import sys

import pytest
from tiny import write_config


@pytest.fixture(scope="module")
def run(environment, repository):
    def call(*arguments, **variables):
        return subprocess.run(
            [sys.executable, "-m", "pose_jax.main", *arguments],
            env={**environment, **variables},
            cwd=repository,
            capture_output=True,
            text=True,
            timeout=300,
        )

    return call


def test_help_explains(run):
    done = run("--help")
    text = done.stdout + done.stderr
    assert "--config.train.steps=500" in text and "--workdir" in text
    assert "distributed" in text and "POSE_JAX_DATA" in text


@pytest.mark.parametrize(
    "arguments,message",
    [
        ([], "both needed"),
        (["--config=configs/quickstart.py"], "both needed"),
        (["--config=configs/quickstat.py", "--workdir=w"], "configs/quickstat.py"),
        (["--config=configs/hourglass.py:lspt", "--workdir=w"], "use lspet, coco"),
        (
            ["--config=configs/quickstart.py", "--workdir=w", "--config.train.stesp=3"],
            'Did you mean "steps"',
        ),
        (
            ["--config=configs/quickstart.py", "--workdir=w", "--config.train.steps=x"],
            "steps",
        ),
        (
            ["--config=configs/quickstart.py", "--workdir=w", "more"],
            "unexpected argument",
        ),
        (
            [
                "--config=configs/quickstart.py",
                "--workdir=w",
                "--config.tasks=('trian',)",
            ],
            "unknown task 'trian'",
        ),
        (
            ["--config=configs/quickstart.py", "--workdir=w", "--config.mesh.data=64"],
            "asks for 64 devices but 1 cpu device",
        ),
        (
            ["--config=configs/quickstart.py", "--workdir=w", "--config.train.batch=0"],
            "train.batch=0",
        ),
        (
            ["--config=configs/quickstart.py", "--workdir=w", "--config.skeleton=koko"],
            "unknown skeleton",
        ),
    ],
)
def test_mistakes_are_one_line(run, tmp_path, arguments, message):
    arguments = [a.replace("--workdir=w", f"--workdir={tmp_path}") for a in arguments]
    done = run(*arguments)
    assert done.returncode == 2, done.stdout + done.stderr
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("error: ") and message in line, done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "checkpoints").exists()


def test_missing_data_says_where_to_point(run, tmp_path):
    done = run(
        "--config=configs/hourglass.py:lspet", f"--workdir={tmp_path}",
        POSE_JAX_DATA=str(tmp_path / "nowhere"),
    )  # fmt: skip
    assert done.returncode == 2
    assert "lspet_train.json does not exist" in done.stderr
    assert "POSE_JAX_DATA" in done.stderr


def test_run_override_resume_and_refuse(run, tmp_path):
    config = write_config(tmp_path / "tiny_main.py")
    common = [f"--config={config}", f"--workdir={tmp_path / 'run'}"]
    tasks = "--config.tasks=('train','evaluate','predict')"
    done = run(*common, tasks, "--config.train.steps=2")
    assert done.returncode == 0, done.stdout + done.stderr
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    assert stored["train"]["steps"] == 2
    again = run(*common, tasks, "--config.train.steps=2")
    assert again.returncode == 0 and "nothing to do" in again.stdout
    other = run(*common, tasks)
    assert other.returncode == 2
    assert "train.steps: the workdir has 2, the command asks for 6" in other.stderr
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    record = results["val-gt-flip-2"]
    assert "boxes: ground truth" in record["protocol"]
    rows = json.loads((tmp_path / "run" / "predictions.json").read_text())
    assert len(rows) == 16 and len(rows[0]["keypoints"]) == 51
    assert (tmp_path / "run" / "predict" / "poses.json").exists()


def test_evaluate_without_a_model(run, tmp_path):
    config = write_config(tmp_path / "tiny_empty.py")
    done = run(
        f"--config={config}", f"--workdir={tmp_path / 'run'}",
        "--config.tasks=('evaluate',)",
    )  # fmt: skip
    assert done.returncode == 2
    assert "holds no checkpoint; train first" in done.stderr
