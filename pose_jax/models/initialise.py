"""How the weights of a network are drawn before training.

`glorot` is what the layers themselves draw: Glorot normal, which Flax truncates at two
standard deviations of the untruncated one and widens to the same variance, and biases of zero.

`pytorch` follows Andersen's thesis: `xavier_normal_` on every kernel, which is not truncated,
and PyTorch's default biases, uniform in +-1 / sqrt(fan_in). Fans are counted on the kernels
as they are here; the thesis's transposed convolutions (decoder of the autoencoder) count the
fan_in of their biases over their outputs.
"""

from __future__ import annotations

import zlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Float

from pose_jax.arrays import Array, PyTree

INITS = ("glorot", "pytorch")
"""Values of `config.model.init`."""


def fresh(
    module: nn.Module, images: Float[Array, "b h w 3"], *, key: jax.Array
) -> PyTree:
    """Variables to train `module` from, drawn as `module.config.init` says where a family
    has that field."""
    variables = module.init(key, images, train=True)
    if getattr(getattr(module, "config", None), "init", INITS[0]) != "pytorch":
        return variables
    return {**variables, "params": pytorch(variables["params"], key=key)}


def pytorch(params: PyTree, *, key: jax.Array) -> PyTree:
    """Parameters with every kernel and every bias beside one drawn anew.

    A draw depends on `key` and the parameter's own name, so networks that share a layer share
    its start. Everything else (normalisations, fitted projections) stays.

    Args:
      params: nested dicts; a `kernel` is `[*window, inputs, outputs]`.
    """
    flat: Any = traverse_util.flatten_dict(params)
    drawn = dict(flat)
    for path, kernel in flat.items():
        if path[-1] != "kernel":
            continue
        own = jax.random.fold_in(key, zlib.crc32("/".join(path).encode()))
        for_kernel, for_bias = jax.random.split(own)
        window = int(np.prod(kernel.shape[:-2]))
        fan_in, fan_out = window * kernel.shape[-2], window * kernel.shape[-1]
        deviation = np.sqrt(2 / (fan_in + fan_out))
        noise = jax.random.normal(for_kernel, kernel.shape, kernel.dtype)
        drawn[path] = noise * jnp.asarray(deviation, kernel.dtype)
        beside = (*path[:-1], "bias")
        if beside in flat:
            bias, bound = flat[beside], float(1 / np.sqrt(fan_in))
            drawn[beside] = jax.random.uniform(
                for_bias, bias.shape, bias.dtype, minval=-bound, maxval=bound
            )
    return traverse_util.unflatten_dict(drawn)
