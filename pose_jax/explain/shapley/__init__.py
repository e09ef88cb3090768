"""Shapley values of any JAX function, exactly, in one compiled batch.

You write what *one* coalition is worth; the engine does all coalitions, chunked, sharded,
for many games at once, and knows nothing of images. A tabular toy, three features, one
row explained against a background:

>>> import jax, jax.numpy as jnp
>>> from pose_jax.explain import exact_shapley, group_shapley, interactions
>>> def model(x):
...     return 2 * x[0] + x[1] * x[2]
>>> def value(coalition, row, background):
...     return model(jnp.where(coalition, row, background))
>>> row, background = jnp.array([1.0, 2.0, 3.0]), jnp.zeros(3)
>>> result = exact_shapley(value, 3, args=(row, background))
>>> result.values.round(4).tolist(), float(result.full - result.empty)
([2.0, 3.0, 3.0], 8.0)
>>> interactions(result.table, 3)[2][1, 2].item()  # x[1] and x[2] act together
6.0

A small network on an image; players are the four quarters, the targets are its three
output maps, which lie in the clusters "upper half", "lower half", "upper half":

>>> kernel = jax.random.normal(jax.random.key(0), (3, 3, 1, 3))
>>> def network(image):
...     maps = jax.lax.conv_general_dilated(
...         image[None], kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
...     return jax.nn.relu(maps[0])
>>> y, x = jnp.mgrid[:16, :16]
>>> player = 2 * (y // 8) + x // 8
>>> def peaks(coalition, image, fill):
...     seen = jnp.where(coalition[player][..., None], image, fill)
...     return network(seen).max((0, 1))
>>> image = jax.random.uniform(jax.random.key(1), (16, 16, 1))
>>> result = group_shapley(peaks, [[0, 1], [2, 3]], kind="owen", args=(image, 0.5),
...                        target_cluster=[0, 1, 0])
>>> result.player_values.shape, result.evaluations, bool(abs(result.residual).max() < 1e-5)
((4, 3), 12, True)

Modules: coalitions (rows and weights), sweep and evaluate (the engine), exact, groups, sampled
(orders, regression), interactions, listed (distinct rows of many games), accumulator, result.
Nothing outside is imported.
"""

from pose_jax.explain.shapley.accumulator import Accumulator, add, finish, start
from pose_jax.explain.shapley.coalitions import (
    all_coalitions,
    grouped_coalitions,
    union_size,
)
from pose_jax.explain.shapley.exact import (
    exact_shapley,
    semivalue,
    shapley_values,
)
from pose_jax.explain.shapley.groups import group_shapley, group_values, reweight
from pose_jax.explain.shapley.interactions import interactions
from pose_jax.explain.shapley.listed import coalition_table, evaluate_rows
from pose_jax.explain.shapley.result import GroupShapleyResult, ShapleyResult
from pose_jax.explain.shapley.sampled import sampled_shapley

__all__ = [
    "Accumulator", "GroupShapleyResult", "ShapleyResult", "add", "all_coalitions",
    "coalition_table", "evaluate_rows", "exact_shapley", "finish", "group_shapley",
    "group_values", "grouped_coalitions", "interactions", "reweight", "sampled_shapley",
    "semivalue", "shapley_values", "start", "union_size",
]  # fmt: skip
