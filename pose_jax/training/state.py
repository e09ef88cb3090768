"""Training state: arrays only, so that it is born sharded, donated and saved as it is."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from pose_jax.arrays import PyTree

# Fields are `Any` because these records also hold shapes, shardings and gradients.


@flax.struct.dataclass
class Mean:
    """A mean as a sum and a count: merges over stages, devices and micro-batches."""

    sum: Any
    count: Any

    def merge(self, other: Mean) -> Mean:
        return Mean(self.sum + other.sum, self.count + other.count)

    def compute(self) -> jax.Array:
        return self.sum / jnp.maximum(self.count, jnp.finfo(jnp.float32).tiny)


@flax.struct.dataclass
class Plateau:
    """Learning-rate factor that falls when the selection metric stops rising."""

    scale: Any
    best: Any
    bad: Any


@flax.struct.dataclass
class TrainState:
    step: Any
    params: PyTree
    batch_stats: PyTree
    opt_state: Any
    average: PyTree
    """Exponential moving average of `params`; empty when averaging is off."""
    plateau: Plateau

    @property
    def variables(self) -> PyTree:
        """What `apply` needs: averaged parameters where averaging is on."""
        params = self.average if jax.tree.leaves(self.average) else self.params
        return {"params": params, "batch_stats": self.batch_stats}


def plateau_start() -> Plateau:
    return Plateau(scale=jnp.float32(1.0), best=jnp.float32(-jnp.inf), bad=jnp.int32(0))


def plateau_update(
    plateau: Plateau, metric, *, factor: float, patience: int, floor_scale: float
) -> Plateau:
    """One reading of the metric (higher is better).

    PyTorch's `ReduceLROnPlateau(mode="max")`: relative threshold 1e-4; after more than
    `patience` readings without improvement the factor is multiplied, not below the floor.
    """
    metric = jnp.asarray(metric, jnp.float32)
    threshold = jnp.where(
        jnp.isfinite(plateau.best), plateau.best * (1 + 1e-4), plateau.best
    )
    better = metric > threshold
    bad = jnp.where(better, 0, plateau.bad + 1)
    drop = bad > patience
    return Plateau(
        scale=jnp.where(
            drop, jnp.maximum(plateau.scale * factor, floor_scale), plateau.scale
        ),
        best=jnp.where(better, metric, plateau.best),
        bad=jnp.where(drop, 0, bad).astype(jnp.int32),
    )
