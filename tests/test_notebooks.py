"""Notebooks: clean in git, installing only on Colab, running on this machine."""

import json
import os

import nbformat
import pytest

NOTEBOOKS = [
    "01_train_and_predict.ipynb",
    "02_group_shapley.ipynb",
    "03_inside_the_hourglass.ipynb",
]


def test_every_notebook_is_tested(repository):
    assert sorted(p.name for p in (repository / "colab").glob("*.ipynb")) == NOTEBOOKS


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_clean(repository, name):
    path = repository / "colab" / name
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = [c for c in notebook.cells if c.cell_type == "code"]
    assert all(not c.outputs and c.execution_count is None for c in cells)
    installs = [c for c in cells if "%pip" in c.source]
    assert installs == cells[:1] and "COLAB_RELEASE_TAG" in cells[0].source
    assert "/home/" not in json.dumps(notebook) and "/root/" not in json.dumps(notebook)


@pytest.mark.notebook
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_runs(repository, tmp_path, environment, monkeypatch, name):
    from nbclient import NotebookClient

    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setenv("POSE_JAX_SMOKE", "1")
    monkeypatch.setenv("POSE_JAX_NOTEBOOK_WORKDIR", str(tmp_path / "run"))
    notebook = nbformat.read(repository / "colab" / name, as_version=4)
    NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert next(iter(results.values()))["people"] == 16
    assert os.listdir(tmp_path / "run" / "checkpoints")
