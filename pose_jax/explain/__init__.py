"""Why a model answered what it answered.

`explain.shapley` holds the vmapped Shapley engine for any function; its calls are
re-exported here (the resumable accumulator start, add, finish is at `explain.shapley`).
For poses: `games` (who plays, what is hidden), `scores` (what is asked of the heatmaps),
`explainer` (crops -> `Explanation`), `perturbation` and `interdependence` (which joints hang
together, and what grouping them costs), `attention` (maps of a transformer's attention: what
it mixed, not what caused the answer).
"""

from pose_jax.explain import shapley
from pose_jax.explain.explainer import Explainer
from pose_jax.explain.explanation import Explanation
from pose_jax.explain.games import Person, PoseGame
from pose_jax.explain.shapley import (
    GroupShapleyResult,
    ShapleyResult,
    exact_shapley,
    group_shapley,
    group_values,
    interactions,
    reweight,
    sampled_shapley,
    semivalue,
    shapley_values,
)

__all__ = [
    "Explainer", "Explanation", "GroupShapleyResult", "Person", "PoseGame", "ShapleyResult",
    "exact_shapley", "group_shapley", "group_values", "interactions", "reweight",
    "sampled_shapley", "semivalue", "shapley", "shapley_values",
]  # fmt: skip
