"""Trees of arrays by name."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from pose_jax.arrays import PyTree


def path_name(path) -> str:
    """A key path of JAX -> `a/b/kernel`."""
    return "/".join(str(getattr(entry, "key", entry)) for entry in path)


def flat_names(tree: PyTree) -> Mapping[str, Any]:
    """{`a/b/kernel`: leaf}."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {path_name(path): leaf for path, leaf in leaves}


def unflatten_names(tree: PyTree, values: Mapping[str, Any]) -> PyTree:
    """The structure of `tree` with leaves taken by name."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: values[path_name(path)], tree
    )


def fingerprint(tree: PyTree) -> int:
    """Of weights, names and numbers: a step alone does not tell two networks apart."""
    total = 0
    for name, leaf in sorted(flat_names(tree).items()):
        total = zlib.crc32(name.encode() + np.asarray(leaf).tobytes(), total)
    return total
