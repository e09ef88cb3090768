"""Explainable human pose estimation in JAX/Flax."""

from pose_jax import models, skeletons
from pose_jax.estimator import Estimator, Pose
from pose_jax.models.zoo import list_models

__version__ = "0.1.0"
__all__ = ["Estimator", "Pose", "list_models", "models", "skeletons"]
