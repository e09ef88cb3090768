"""Trees of arrays by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

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
