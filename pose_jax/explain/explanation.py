"""The record of one explained person: why was every joint placed where it was placed?"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from pose_jax.explain.games import Players
from pose_jax.skeletons import Skeleton


@dataclasses.dataclass(frozen=True)
class Explanation:
    """Values of players (n, in G clusters) for targets (K keypoints) of one person.

    Efficiency, for every target: members + foreign clusters = full - empty (`gsv`, `owen`),
    members = full - baseline (`decoupled`), the columns of `influence` = full - empty.
    Values of targets in different clusters are of different games and must not be stacked.

    Attributes:
      method, kind, score, removal: what was asked; the score's reference is `reference`,
        `labels` or `predicted`.
      skeleton, players: names and clusters.
      member_values: `[n, K]` zero outside the target's cluster.
      cluster_values: `[G, K]` foreign clusters. quotient_values: `[G, K]` clusters alone.
      influence: `[n, K]` every player for every target: Owen values (exact Shapley values
        where the method is `shapley`).
      hidden_values, visible_values: `[n, K]` member values when the target's own region is
        never or always seen; NaN where targets are no players.
      empty, full, baseline: `[K]` score of the context alone, of the whole picture, and
        where member bars start. residual, quotient_residual: `[K]`, rounding only.
      player_present: `[n]` False for players that own no pixel.
      target_valid: `[K]` False where there is no label: the values mean nothing.
      evaluations: forward passes that this person took.
      table: `[C, K]` scores of the coalitions `players.coalitions` (`shapley`: of all 2^n).
      keypoints: `[K, 2]` predicted, image pixels. keypoint_scores: `[K]` peaks.
      centres: `[K, 2]` of the regions, crop pixels. present: `[K]` whether there is one.
      box: xywh, image pixels. matrix: image -> crop.
      whole_image: no box was given, so the whole picture counted as one person.
      image, fill: `[h, w, 3]` crop and what hidden pixels show. owners: `[h, w]`.
    """

    method: str
    kind: str
    score: str
    reference: str
    removal: str
    skeleton: Skeleton
    players: Players
    member_values: Float[np.ndarray, "n k"]
    cluster_values: Float[np.ndarray, "g k"]
    quotient_values: Float[np.ndarray, "g k"]
    influence: Float[np.ndarray, "n k"]
    hidden_values: Float[np.ndarray, "n k"]
    visible_values: Float[np.ndarray, "n k"]
    empty: Float[np.ndarray, "k"]
    full: Float[np.ndarray, "k"]
    baseline: Float[np.ndarray, "k"]
    residual: Float[np.ndarray, "k"]
    quotient_residual: Float[np.ndarray, "k"]
    player_present: Bool[np.ndarray, "n"]
    target_valid: Bool[np.ndarray, "k"]
    evaluations: int
    table: Float[np.ndarray, "c k"]
    keypoints: Float[np.ndarray, "k 2"]
    keypoint_scores: Float[np.ndarray, "k"]
    centres: Float[np.ndarray, "k 2"]
    present: Bool[np.ndarray, "k"]
    box: Float[np.ndarray, "4"]
    matrix: Float[np.ndarray, "3 3"]
    image: UInt8[np.ndarray, "h w 3"]
    fill: UInt8[np.ndarray, "h w 3"]
    owners: Int[np.ndarray, "h w"]
    whole_image: bool = False

    @property
    def gap(self) -> Float[np.ndarray, "k"]:
        """`[K]` full - empty: what there is to be shared out."""
        return self.full - self.empty

    def contributions(self, target: str) -> dict[str, float]:
        """Who put this joint where it is: members of its cluster, then foreign clusters,
        largest first; they add up to full - empty (`decoupled`: members to full - baseline).

        Raises:
          KeyError: the skeleton has no such keypoint.
          ValueError: the joint has no label, so nothing was explained.
        """
        t = self.skeleton.index(target)
        if not self.target_valid[t]:
            raise ValueError(
                f"{target} has no label in this picture: nothing to explain"
            )
        own = self.players.target_cluster[t]
        values = {
            self.players.names[i]: float(self.member_values[i, t])
            for i in self.players.clusters[own]
        }
        for g, name in enumerate(self.players.cluster_names):
            if g != own:
                values[f"[{name}]"] = float(self.cluster_values[g, t])
        return dict(sorted(values.items(), key=lambda item: -item[1]))


ARRAYS = tuple(
    f.name
    for f in dataclasses.fields(Explanation)
    if f.name
    not in ("method", "kind", "score", "reference", "removal", "skeleton", "players")
)
PICTURES = ("image", "fill", "owners")
"""Fields that take most of the space; a data-set run keeps them for a few people."""


def stack(
    explanations: Sequence[Explanation], names: Sequence[str] = ARRAYS
) -> dict[str, Any]:
    """`{field: [m, ...]}` of explanations of one run."""
    return {
        name: np.stack([np.asarray(getattr(e, name)) for e in explanations])
        for name in names
    }
