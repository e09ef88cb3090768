"""Training regimes: one file each, never a forked loop."""

from pose_jax.training.objectives import heatmap

OBJECTIVES = {"heatmap": heatmap.make}
"""Name in `config.objective.name` -> maker."""
