"""Phase 1 of the thesis's modification: the autoencoder alone, on stored latents."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from pose_jax.arrays import Array, Batch, PyTree
from pose_jax.models.autoencoder import PROJECTION, Autoencoder
from pose_jax.models.hourglass import autoencoder_name
from pose_jax.models.initialise import fresh
from pose_jax.models.outputs import Outputs
from pose_jax.pixels import InputSpec
from pose_jax.training.state import Mean


@dataclasses.dataclass(frozen=True)
class LatentObjective:
    """Mean squared error between the reconstruction of a noisy latent and the clean one.

    The state holds the whole network, of which only the autoencoders are trained: what comes
    out is the network with its autoencoders plugged in.

    Attributes:
      module, spec: the network and its input.
      noise: z + noise * z * n with n ~ N(0, 1), in training only (0.1 in the thesis).
    """

    module: Any
    spec: InputSpec
    noise: float = 0.1

    def init(self, key: jax.Array, example: Batch) -> PyTree:
        """Fresh variables of the whole network."""
        images = jnp.zeros((1, *self.spec.size, 3))
        return fresh(self.module, images, key=key)

    def loss(
        self, variables: PyTree, batch: Batch, *, key: jax.Array
    ) -> tuple[Mean, tuple[dict[str, Mean], PyTree]]:
        """(loss as sum and count, (metrics, statistics)) of `latent [b, s, y, x, c]`."""
        clean = batch["latent"]
        noisy = clean * (1 + self.noise * jax.random.normal(key, clean.shape))
        restored = self.restore(variables, noisy, train=True)
        return self._compare(clean, restored, batch, variables)

    def restore(
        self, variables: PyTree, latents: Float[Array, "b s *z"], *, train: bool = False
    ) -> Float[Array, "b s *z"]:
        """Every stack's latent through its own autoencoder."""
        squeeze: nn.Module = Autoencoder(self.module.config.squeeze)
        found = []
        for stack in range(latents.shape[1]):
            params = variables["params"][autoencoder_name(stack)]
            one: Any = squeeze.apply({"params": params}, latents[:, stack], train)
            found.append(one[1])
        return jnp.stack(found, axis=1)

    def metrics(self, outputs: Outputs, batch: Batch) -> dict[str, Mean]:
        """Losses of reconstructions that were computed elsewhere, `taps["restored"]`."""
        restored = outputs.taps["restored"]
        return self._compare(batch["latent"], restored, batch, {})[1][0]

    def trainable(self, path: str) -> bool:
        """The autoencoders, except fitted projections."""
        parts = path.split("/")
        return (
            any(p.endswith("_autoencoder") for p in parts) and PROJECTION not in parts
        )

    def _compare(self, clean, restored, batch, variables):
        mask = batch["mask"].astype(jnp.float32)
        axes = tuple(range(1, clean.ndim))
        error = (jnp.square(restored - clean).mean(axes) * mask).sum()
        zero = (jnp.square(clean).mean(axes) * mask).sum()
        loss = Mean(error, mask.sum())
        metrics = {"loss": loss, "zero_map_loss": Mean(zero, mask.sum())}
        return loss, (metrics, variables.get("batch_stats", {}))


def make(section: Any, module, spec: InputSpec, *_: Any) -> LatentObjective:
    """The objective of a config section.

    Raises:
      ValueError: the network has no autoencoder that could be trained.
    """
    squeeze = getattr(getattr(module, "config", None), "squeeze", None)
    if squeeze is None or squeeze.kind == "none":
        raise ValueError(
            "objective.name='latent' trains an autoencoder; set "
            "model.autoencoder='convolutional'"
        )
    if squeeze.kind == "pca":
        raise ValueError(
            "a PCA projection is fitted, not trained; use the task pretrain"
        )
    return LatentObjective(module, spec, float(section.noise))
