"""Starting from other weights: keypoints are matched by name, not by position."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from pose_jax.skeletons import Skeleton, mapping
from pose_jax.trees import flat_names


class Transfer(NamedTuple):
    """Merged leaves by name, and lists of names for the report."""

    leaves: dict[str, np.ndarray]
    copied: list[str]
    mapped: list[str]
    fresh: list[str]


MIXED = -1
"""Stands for an axis that holds keypoints among other channels."""


def keypoint_axes(
    shapes: Any, shapes_with_one_more: Any, num_keypoints: int
) -> dict[str, tuple[int, ...]]:
    """Axes of every leaf that count keypoints: those that grow with their number.

    An axis that grows but has another length (a concatenation of maps and features) cannot
    be matched by joint; such a leaf gets `MIXED`.
    """
    small, large = flat_names(shapes), flat_names(shapes_with_one_more)

    def axes(a, b):
        grown = [i for i, (m, n) in enumerate(zip(a, b)) if m != n]
        exact = all(a[i] == num_keypoints and b[i] == num_keypoints + 1 for i in grown)
        return tuple(grown) if exact else (MIXED,)

    return {name: axes(leaf.shape, large[name].shape) for name, leaf in small.items()}


def transfer(
    fresh: Mapping[str, np.ndarray],
    loaded: Mapping[str, np.ndarray],
    axes: Mapping[str, tuple[int, ...]],
    source: Skeleton,
    target: Skeleton,
    *,
    backbone_only: bool = False,
) -> Transfer:
    """Loaded weights in the place of fresh ones.

    Joints that both skeletons have are copied along the keypoint axes; joints that only the
    target has keep their fresh weights.

    Args:
      fresh, loaded: {name: array} of the new and the old model.
      axes: keypoint axes by name, see `keypoint_axes`.
      backbone_only: leave everything with a keypoint axis fresh.

    Raises:
      ValueError: nothing fits, or a shape differs outside the keypoint axes.
    """
    shared = mapping(source, target)
    same = source.keypoints == target.keypoints
    leaves, copied, mapped, kept = {}, [], [], []
    for name, value in fresh.items():
        old, where = loaded.get(name), axes[name]
        if old is None or (where and backbone_only) or (MIXED in where and not same):
            leaves[name] = value
            kept.append(name)
            continue
        fixed = () if MIXED in where else where
        if [n for i, n in enumerate(old.shape) if i not in fixed] != [
            n for i, n in enumerate(value.shape) if i not in fixed
        ]:
            raise ValueError(
                f"init_from: {name} has shape {old.shape} there and {value.shape} here; "
                "config.model must describe the same network"
            )
        if not where or same:
            leaves[name] = np.asarray(old, value.dtype)
            copied.append(name)
        else:
            leaves[name] = _by_joint(value, old, where, shared)
            mapped.append(name)
    if not copied and not mapped:
        raise ValueError("init_from: no weight of that model fits this one")
    return Transfer(leaves, copied, mapped, kept)


def _by_joint(value, old, where, shared) -> np.ndarray:
    result = np.array(value)
    to = [np.arange(n) for n in result.shape]
    of = [np.arange(n) for n in old.shape]
    for axis in where:
        to[axis], of[axis] = shared.target, shared.source
    result[np.ix_(*to)] = old[np.ix_(*of)]
    return result


def summary(result: Transfer) -> str:
    """One line for the log."""
    text = (
        f"{len(result.copied)} arrays copied, {len(result.mapped)} mapped by joint name"
    )
    if result.fresh:
        roots = sorted({re.sub(r"/[^/]+$", "", name) for name in result.fresh})
        text += f", {len(result.fresh)} fresh ({', '.join(roots[:4])})"
    return text
