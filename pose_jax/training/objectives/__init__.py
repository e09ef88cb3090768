"""Training regimes: one file each, never a forked loop."""

from pose_jax.training.objectives import correction, heatmap, latent, regression

OBJECTIVES = {
    "heatmap": heatmap.make,
    "latent": latent.make,
    "regression": regression.make,
    "correction": correction.make,
}
"""Name in `config.objective.name` -> maker."""
