"""Fixtures and switches of the test suite."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
import pytest
from absl import flags
from jaxtyping import install_import_hook

# Shapes of public functions are checked while testing; users pay nothing.
install_import_hook("pose_jax", "typechecking.check")

# grain reads absl flags, which no main() has parsed here.
flags.FLAGS.mark_as_parsed()

CACHE = os.environ.get(
    "JAX_COMPILATION_CACHE_DIR",
    str(Path.home() / ".cache" / "pose_jax" / "compilation"),
)
jax.config.update("jax_compilation_cache_dir", CACHE)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


def pytest_addoption(parser):
    parser.addoption(
        "--all",
        action="store_true",
        help="run the slow, parity and notebook tests too",
    )


def pytest_collection_modifyitems(config, items):
    if config.getoption("--all"):
        return
    skip = pytest.mark.skip(reason="runs with --all")
    for item in items:
        if {"slow", "parity", "notebook"} & set(item.keywords):
            item.add_marker(skip)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real data sets; tests that need it skip without."""
    value = os.environ.get("POSE_JAX_DATA")
    if not value or not Path(value).is_dir():
        pytest.skip("POSE_JAX_DATA is not set: real data needed")
    return Path(value)


@pytest.fixture
def generator() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def x64():
    """Double precision for exactness tests."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.fixture(scope="session")
def repository() -> Path:
    return Path(__file__).parent.parent


@pytest.fixture(scope="session")
def environment(repository) -> dict[str, str]:
    """Environment of child processes that run the package from this tree."""
    return {
        **os.environ,
        "PYTHONPATH": str(repository),
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": CACHE,
    }
