"""The explainer of a name, whatever its kind: games over regions, or maps over pixels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from pose_jax import partitions, regions
from pose_jax.arrays import PyTree
from pose_jax.explain import explainer as games_
from pose_jax.explain import games
from pose_jax.explain.explainer import Explainer
from pose_jax.explain.maps import MapExplainer
from pose_jax.explain.methods import METHODS as MAPS
from pose_jax.recipe import Recipe

METHODS = (*games_.METHODS, *MAPS)
"""Values of `method` in `Estimator.explain` and `config.explain`."""


def make_explainer(
    described: Recipe,
    variables: PyTree,
    *,
    method: str = "group_shapley",
    kind: str = "gsv",
    clusters: Any = None,
    score: str | None = None,
    removal: str = "mean",
    tap: str | None = None,
    players: str = "disc",
    side: float = regions.SIDE,
    options: Mapping[str, Any] | None = None,
    key: jax.Array | None = None,
) -> Explainer | MapExplainer:
    """See `Estimator.explain` for the arguments.

    Raises:
      ValueError: a name that is unknown, a method that does not apply to this network, or
        arguments that do not fit together.
    """
    if method not in METHODS:
        raise ValueError(f"method {method!r} is unknown; use {', '.join(METHODS)}")
    if method in MAPS:
        return MapExplainer(
            described, variables, method=method, score=score or "auto", removal=removal,
            tap=tap, key=jax.random.key(0) if key is None else key, **(options or {}),
        )  # fmt: skip
    if tap is not None or options:
        raise ValueError(
            f"method {method!r} looks at the picture; tap has no meaning, and there are no options"
        )
    skeleton = described.skeleton
    if isinstance(clusters, partitions.Partition):
        partition = clusters
    elif isinstance(clusters, str) or clusters is None:
        partition = partitions.get(clusters or "limbs-v1", skeleton)
    else:
        partition = partitions.from_lists("custom", clusters, skeleton)
    if players == "masks":
        raise ValueError(
            "players='masks' need masks: call explain.explainer.Explainer with "
            "games.mask_players"
        )
    if players == "limbs":
        playing = games.limb_players(skeleton, partition, side=side)
    else:
        playing = games.keypoint_players(skeleton, partition, kind=players, side=side)
    return Explainer(
        described, variables, playing,
        method=method, kind=kind, score=score or "auto", removal=removal, key=key,
    )  # fmt: skip
