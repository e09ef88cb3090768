"""Training regimes: one file each, never a forked loop."""

from pose_jax.training.objectives import heatmap, latent

OBJECTIVES = {"heatmap": heatmap.make, "latent": latent.make}
"""Name in `config.objective.name` -> maker."""
