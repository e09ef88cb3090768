"""The residual log-likelihood's normalising flow: a small RealNVP over the plane.

Li et al., "Human Pose Regression with Residual Log-likelihood Estimation", ICCV 2021;
couplings of Dinh et al., "Density estimation using Real NVP", ICLR 2017. It is read by the
loss alone: a network that answers never runs it.
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float

from pose_jax.arrays import Array
from pose_jax.models.rectifier import rectify


class Mlp(nn.Module):
    """Two hidden layers with leaky ReLU; starts near zero, so that the flow starts near the
    identity."""

    hidden: int
    bounded: bool

    @nn.compact
    def __call__(self, x: Float[Array, "*b 2"]) -> Float[Array, "*b 2"]:
        # Glorot's uniform rule with gain 0.01, as the authors start the flow.
        init = nn.initializers.variance_scaling(1e-4, "fan_avg", "uniform")
        for layer in range(2):
            x = nn.Dense(self.hidden, kernel_init=init, name=f"hidden{layer}")(x)
            x = rectify(x, "leaky_relu")
        x = nn.Dense(2, kernel_init=init, name="out")(x)
        return jnp.tanh(x) if self.bounded else x


class RealNVP(nn.Module):
    """Density of points in the plane; couplings keep x and y in turn.

    Attributes:
      couplings: affine couplings in a row. hidden: width of their networks.
    """

    couplings: int = 6
    hidden: int = 64

    @nn.compact
    def __call__(self, points: Float[Array, "*b 2"]) -> Float[Array, "*b"]:
        """Log-density at the points, float32: the base normal's where the inverse flow
        brings them, plus the logarithm of the change of area on the way."""
        z = points.astype(jnp.float32)
        area = jnp.zeros(z.shape[:-1], jnp.float32)
        for i in reversed(range(self.couplings)):
            kept = jnp.asarray([i % 2, 1 - i % 2], jnp.float32)
            scale = Mlp(self.hidden, True, name=f"scale{i}")(z * kept) * (1 - kept)
            shift = Mlp(self.hidden, False, name=f"shift{i}")(z * kept) * (1 - kept)
            z = z * kept + (1 - kept) * (z - shift) * jnp.exp(-scale)
            area = area - scale.sum(-1)
        return area - 0.5 * (z**2).sum(-1) - math.log(2 * math.pi)
