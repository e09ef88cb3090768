"""Batch normalisation folded into the convolution before it, for inference.

With fixed statistics the normalisation of a convolution's output is the same convolution
with other weights (Jacob et al., CVPR 2018, section 3.2):

    factor = scale / sqrt(var + epsilon)
    kernel * factor,    (bias - mean) * factor + offset
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from pose_jax.arrays import PyTree
from pose_jax.models import (
    hourglass,
    hourglass52,
    hrnet,
    ief,
    regression,
    simple_baseline,
    tokenpose,
    transpose,
    vitpose,
)
from pose_jax.models.layers import EPSILON

FOLDABLE: dict[type, Callable[[Any], dict[str, str]]] = {
    hourglass.Hourglass: hourglass.folded_norms,
    hourglass52.Hourglass52: hourglass52.folded_norms,
    hrnet.HRNetPose: hrnet.folded_norms,
    ief.Ief: ief.folded_norms,
    regression.Regression: regression.folded_norms,
    simple_baseline.SimpleBaseline: simple_baseline.folded_norms,
    tokenpose.TokenPose: tokenpose.folded_norms,
    transpose.TransPose: transpose.folded_norms,
    vitpose.ViTPose: vitpose.folded_norms,
}
"""Family -> (its config -> {normalisation: convolution before it}), neighbours by name."""


def fold(module: nn.Module, variables: PyTree) -> tuple[nn.Module, PyTree]:
    """An inference copy without the normalisations that follow a convolution.

    Heatmaps and taps are equal up to rounding, edits mean the same. Networks without
    normalisation, and folded ones, come back as they are.

    Args:
      variables: `params` and `batch_stats` of the module, concrete arrays.

    Returns:
      The module with `config.folded`, and its variables as numpy arrays; sums are taken in
      float64, types are those of `variables`.

    Raises:
      ValueError: variables of another network.
    """
    pairs_of = FOLDABLE.get(type(module))
    config = getattr(module, "config", None)
    if pairs_of is None or config is None or config.folded:
        return module, variables
    pairs = pairs_of(config)
    if not pairs:
        return module, variables
    flat = {
        path: np.asarray(leaf) for path, leaf in flatten_dict(dict(variables)).items()
    }
    norms = [path[1:-1] for path in flat if path[-1] == "scale" and path[-2] in pairs]
    if not norms:
        raise ValueError(
            f"the variables hold none of the normalisations {', '.join(sorted(pairs))}; give "
            "the unfolded variables of this network"
        )
    try:
        for norm in norms:
            _fold_one(flat, norm, (*norm[:-1], pairs[norm[-1]]))
    except KeyError as error:
        name = "/".join(error.args[0])
        raise ValueError(
            f"the variables have no {name}; give params and batch_stats of this network"
        ) from None
    copy = module.clone(config=dataclasses.replace(config, folded=True))
    return copy, unflatten_dict(flat)


def _fold_one(flat: dict[tuple[str, ...], np.ndarray], norm, convolution) -> None:
    """Move one normalisation, in place; both are paths below the collection."""

    def take(collection: str, name: str) -> np.ndarray:
        return flat.pop((collection, *norm, name)).astype(np.float64)

    scale, offset = take("params", "scale"), take("params", "bias")
    mean, variance = take("batch_stats", "mean"), take("batch_stats", "var")
    factor = scale / np.sqrt(variance + EPSILON)
    kernel = flat[("params", *convolution, "kernel")]
    # A convolution before a normalisation needs no bias and may have none.
    bias = flat.get(("params", *convolution, "bias"), np.zeros(kernel.shape[-1:]))
    # Output channels come last in kernels of nn.Dense and nn.Conv alike.
    flat[("params", *convolution, "kernel")] = (kernel * factor).astype(kernel.dtype)
    flat[("params", *convolution, "bias")] = ((bias - mean) * factor + offset).astype(
        kernel.dtype
    )
