"""Multi-head attention and what a transformer layer is made of.

Vaswani et al., NeurIPS 2017. The softmax weights are an output beside the result: a network
that nobody asks for them does not compute them (`jit` removes what is not read), and an edit
of them takes the path that multiplies by the weights themselves. Both paths agree up to
rounding.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from pose_jax.arrays import Array
from pose_jax.models import products
from pose_jax.models.layers import stored
from pose_jax.models.outputs import Edit, Taps, apply_edit
from pose_jax.models.rectifier import rectify

IMPLEMENTATIONS = ("xla", "cudnn")
"""`xla`: plain products, on every machine. `cudnn`: flash attention on NVIDIA GPUs in
bfloat16; a network that computes in float32, and training with dropout of the weights
(TransPose), take `xla` all the same."""

truncated_normal = nn.initializers.truncated_normal(
    0.02, lower=-2 / 0.02, upper=2 / 0.02
)
"""timm's `trunc_normal_(std=0.02)`: cut at +-2, not at two standard deviations."""

pytorch_kernel = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
"""PyTorch's default for linear layers and convolutions: uniform in +-1 / sqrt(fan_in)."""


def pytorch_bias(fan_in: int):
    """PyTorch's default for biases: uniform in +-1 / sqrt(fan_in)."""
    bound = fan_in**-0.5

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def check_attention(config: Any) -> None:
    """Refuse fields that no attention can have.

    Raises:
      ValueError: see the message.
    """
    for field in ("width", "heads", "layers", "mlp", "patch"):
        if np.min(getattr(config, field, 1)) < 1:
            raise ValueError(f"model.{field} must be at least 1")
    if config.width % config.heads:
        raise ValueError(
            f"model.width={config.width} does not split into model.heads={config.heads}; "
            "make width a multiple of heads"
        )
    if config.attention not in IMPLEMENTATIONS:
        raise ValueError(
            f"model.attention is {config.attention!r}; use one of {IMPLEMENTATIONS}"
        )
    for field in ("dropout", "drop_path"):
        if not 0 <= getattr(config, field, 0.0) < 1:
            raise ValueError(f"model.{field} is a probability in [0, 1)")


def attend(
    query: Float[Array, "b n a d"],
    key: Float[Array, "b m a d"],
    value: Float[Array, "b m a d"],
    scale: float,
) -> Float[Array, "b n a d"]:
    """softmax(`scale` query key') value per head; logits and sums in float32.

    Heads come before tokens and the division comes after the second product: usually faster
    than `jax.nn.dot_product_attention` on a CPU, forward and backward.
    """
    logits = _logits(query, key, scale)
    mass = jnp.exp(logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True)))
    mixed = jnp.einsum(
        "banm,bmad->band",
        mass.astype(value.dtype),
        value,
        preferred_element_type=jnp.float32,
    )
    mixed = mixed / mass.sum(-1, keepdims=True)
    return mixed.astype(value.dtype).swapaxes(1, 2)


def attention_weights(
    query: Float[Array, "b n a d"], key: Float[Array, "b m a d"], scale: float
) -> Float[Array, "b a n m"]:
    """The weights of `attend`, float32; every row sums to one."""
    return jax.nn.softmax(_logits(query, key, scale), axis=-1)


def _logits(query, key, scale: float):
    return jnp.einsum(
        "bnad,bmad->banm", query * scale, key, preferred_element_type=jnp.float32
    )


class Attention(nn.Module):
    """Attention with its four linear layers `query`, `key`, `value` and `output`.

    Head `i` reads columns `i * d .. (i + 1) * d` of the first three, d = width / heads.

    Attributes:
      width: of the result. heads: `a`.
      scale: of the logits; None = d ** -0.5.
      bias: whether `query`, `key` and `value` have one (`output` has).
      dropout: of the weights, in training.
      implementation: see `IMPLEMENTATIONS`.
      kernel_init: of `query`, `key` and `value`. output_init: of `output`.
    """

    width: int
    heads: int
    scale: float | None = None
    bias: bool = True
    dropout: float = 0.0
    implementation: str = "xla"
    dtype: Any = jnp.float32
    kernel_init: Any = truncated_normal
    output_init: Any = truncated_normal

    @nn.compact
    def __call__(
        self,
        queries: Float[Array, "b n c"],
        keys: Float[Array, "b m c"],
        values: Float[Array, "b m c"],
        train: bool,
        edit: Edit | None = None,
    ) -> tuple[Float[Array, "b n width"], Float[Array, "b a n m"]]:
        """(result, softmax weights after `edit` and before dropout)."""

        def heads(x, name: str):
            layer = dense(
                self.width, name, self.dtype, train, self.kernel_init, bias=self.bias
            )
            return layer(x).reshape(*x.shape[:-1], self.heads, -1)

        query, key = heads(queries, "query"), heads(keys, "key")
        value = heads(values, "value")
        scale = query.shape[-1] ** -0.5 if self.scale is None else self.scale
        weights = apply_edit(attention_weights(query, key, scale), edit)
        if edit is not None or (train and self.dropout):
            kept = nn.Dropout(self.dropout, deterministic=not train)(weights)
            mixed = jnp.einsum("banm,bmad->bnad", kept.astype(value.dtype), value)
        elif self.implementation == "cudnn" and value.dtype != jnp.float32:
            mixed = jax.nn.dot_product_attention(
                query, key, value, scale=scale, implementation="cudnn"
            )
        else:
            mixed = attend(query, key, value, scale)
        mixed = mixed.reshape(*mixed.shape[:-2], self.width)
        output = dense(self.width, "output", self.dtype, train, self.output_init)
        return output(mixed), weights


def dense(
    features: int,
    name: str,
    dtype: Any,
    train: bool,
    kernel_init: Any = truncated_normal,
    *,
    bias: bool = True,
    bias_init: Any = nn.initializers.zeros,
) -> nn.Dense:
    """A linear layer; `train` picks the form with fast weight gradients (`products`)."""
    return nn.Dense(
        features,
        use_bias=bias,
        dtype=dtype,
        dot_general=products.dot_general if train else jax.lax.dot_general,
        kernel_init=kernel_init,
        bias_init=bias_init,
        name=name,
    )


def layer_norm(epsilon: float, dtype: Any, name: str) -> nn.LayerNorm:
    """Layer normalisation with two-pass float32 statistics: a ViT's few channels of large
    values would cost the one-pass form its digits."""
    return nn.LayerNorm(
        epsilon=epsilon, dtype=dtype, use_fast_variance=False, name=name
    )


class MLP(nn.Module):
    """Linear, activation, linear: parameters `hidden` and `output`.

    Attributes:
      width: of the result. hidden: between the two.
      activation: `gelu` (exact) or `relu`.
      dropout: of the result. hidden_dropout: after the activation. Both in training.
      pytorch_biases: start them as PyTorch does, instead of at zero.
    """

    width: int
    hidden: int
    activation: str = "gelu"
    dropout: float = 0.0
    hidden_dropout: float = 0.0
    dtype: Any = jnp.float32
    kernel_init: Any = truncated_normal
    pytorch_biases: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b n c"], train: bool):
        def layer(features: int, name: str, fan_in: int):
            init = pytorch_bias(fan_in) if self.pytorch_biases else None
            return dense(
                features,
                name,
                self.dtype,
                train,
                self.kernel_init,
                bias_init=init or nn.initializers.zeros,
            )

        x = layer(self.hidden, "hidden", x.shape[-1])(x)
        x = rectify(x, self.activation)
        x = nn.Dropout(self.hidden_dropout, deterministic=not train)(x)
        x = layer(self.width, "output", self.hidden)(x)
        return nn.Dropout(self.dropout, deterministic=not train)(x)


class PreNormBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)) (Dosovitskiy et al., ICLR 2021).

    Parameters: `attention_norm`, `attention`, `mlp_norm`, `mlp`.

    Attributes:
      mlp: hidden width. epsilon: of the normalisations. scale, bias: see `Attention`.
      dropout: of both branches. drop_path: probability that a picture skips a branch
        (stochastic depth, Huang et al., ECCV 2016). Both in training.
    """

    width: int
    heads: int
    mlp: int
    epsilon: float
    scale: float | None = None
    bias: bool = True
    dropout: float = 0.0
    hidden_dropout: float = 0.0
    drop_path: float = 0.0
    attention: str = "xla"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b n c"], train: bool, edit: Edit | None = None):
        """(tokens, attention weights)."""

        def branch(y):
            y = nn.Dropout(self.dropout, deterministic=not train)(y)
            path = nn.Dropout(self.drop_path, (1, 2), deterministic=not train)
            return path(y)

        def keep(y):
            return stored(y) if train else y

        h = layer_norm(self.epsilon, self.dtype, "attention_norm")(x)
        attention = Attention(
            self.width,
            self.heads,
            self.scale,
            self.bias,
            implementation=self.attention,
            dtype=self.dtype,
            name="attention",
        )
        h, weights = attention(h, h, h, train, edit)
        x = keep(x + branch(h))
        h = layer_norm(self.epsilon, self.dtype, "mlp_norm")(x)
        mlp = MLP(
            self.width,
            self.mlp,
            hidden_dropout=self.hidden_dropout,
            dtype=self.dtype,
            name="mlp",
        )
        return keep(x + branch(mlp(h, train))), weights


def run_layer(
    block: nn.Module, x: Any, name: str, taps: Taps, train: bool, *args: Any
) -> Any:
    """One layer with its taps `{name}/attention` `[b, a, n, n]` and `{name}/tokens`.

    `block(x, train, edit, *args)` gives (tokens, weights) and applies the edit itself, so
    that it may be rematerialised.
    """
    call: Any = block
    x, weights = call(x, train, taps.edit(f"{name}/attention"), *args)
    taps.record(f"{name}/attention", weights)
    return taps(f"{name}/tokens", x)


def rematerialised(block: Any, remat: bool) -> Any:
    """The block's class, recomputed in the backward pass if asked."""
    return nn.remat(block, static_argnums=(2,)) if remat else block
