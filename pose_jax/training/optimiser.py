"""Optimisers and schedules by name; regular expressions freeze parameters.

Layer-wise learning rate decay (Clark et al., ICLR 2020; Bao et al., ICLR 2022): the update of
a parameter of layer `l` is multiplied by `layer_decay ** (layers + 1 - l)`, weight decay
included. Layer 0 is the embedding, `layers + 1` the head.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from pose_jax.arrays import PyTree
from pose_jax.models.vit import POSITIONS
from pose_jax.trees import path_name

OPTIMISERS = ("adam", "adamw", "rmsprop", "sgd", "adagrad")
SCHEDULES = ("constant", "cosine", "milestones", "plateau")


def make_schedule(section: Any, steps: int) -> optax.Schedule:
    """Learning rate by step.

    `constant`; `cosine` to `end_scale`; `milestones` (fractions of the run below 1, else
    steps) times `factor` each; `plateau` is constant here, its factor lives in the state.
    """
    if section.schedule not in SCHEDULES:
        raise ValueError(
            f"optimiser.schedule is {section.schedule!r}; use {', '.join(SCHEDULES)}"
        )
    rate, warmup = float(section.learning_rate), int(section.warmup_steps)
    if section.schedule == "cosine":
        after = optax.cosine_decay_schedule(
            rate, max(steps - warmup, 1), float(section.end_scale)
        )
    elif section.schedule == "milestones":
        at = [int(m * steps) if m < 1 else int(m) for m in section.milestones]
        after = optax.piecewise_constant_schedule(
            rate, {m - warmup: float(section.factor) for m in at}
        )
    else:
        after = optax.constant_schedule(rate)
    if not warmup:
        return after
    rise = optax.linear_schedule(0.0, rate, warmup)
    return optax.join_schedules([rise, after], [warmup])


def make_optimiser(
    section: Any, steps: int, trainable: Callable[[str], bool], *, module: Any = None
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """(transformation, schedule).

    Args:
      module: the network, whose `layer_index(path)` and `num_layers` `layer_decay` needs.

    Raises:
      ValueError: unknown names, or layer decay of a network without layers.
    """
    schedule = make_schedule(section, steps)
    name = section.name
    if name == "adam":
        rule = optax.adam(schedule)
    elif name == "adamw":
        rule = optax.adamw(schedule, weight_decay=section.weight_decay, mask=_decayed)
    elif name == "rmsprop":
        # PyTorch's rule: accumulator from zero, epsilon outside the root. With optax's
        # default (inside) small gradients are damped a thousandfold.
        rule = optax.rmsprop(
            schedule,
            decay=section.decay,
            eps=1e-8,
            initial_scale=0.0,
            eps_in_sqrt=False,
            momentum=section.momentum or None,
        )
    elif name == "sgd":
        rule = optax.sgd(schedule, momentum=section.momentum or None)
    elif name == "adagrad":
        # PyTorch's and the paper's rule: the sum of squares starts at zero.
        rule = optax.adagrad(schedule, initial_accumulator_value=0.0, eps=1e-10)
    else:
        raise ValueError(f"optimiser.name is {name!r}; use {', '.join(OPTIMISERS)}")
    if section.weight_decay and name != "adamw":
        rule = optax.chain(
            optax.add_decayed_weights(section.weight_decay, _decayed), rule
        )
    # Before clipping is chained in front: gradients are clipped as they come.
    decay = float(getattr(section, "layer_decay", 0.0))
    if decay:
        rule = optax.chain(rule, scale_by_layer(decay, module))
    if section.clip:
        rule = optax.chain(optax.clip_by_global_norm(section.clip), rule)
    patterns = tuple(section.freeze)

    def labels(params: PyTree) -> PyTree:
        return jax.tree_util.tree_map_with_path(
            lambda path, _: (
                "train"
                if trainable(path_name(path)) and not frozen(path_name(path), patterns)
                else "freeze"
            ),
            params,
        )

    return optax.multi_transform(
        {"train": rule, "freeze": optax.set_to_zero()}, labels
    ), schedule


def scale_by_layer(decay: float, module: Any) -> optax.GradientTransformation:
    """Updates times `decay ** (module.num_layers + 1 - module.layer_index(path))`.

    Raises:
      ValueError: not in (0, 1], or the network names no layers.
    """
    if not 0 < decay <= 1:
        raise ValueError(
            f"optimiser.layer_decay is {decay}; use a factor in (0, 1], or 0 for none"
        )
    if not hasattr(module, "layer_index"):
        raise ValueError(
            f"optimiser.layer_decay={decay} needs a network with layers (vitpose); "
            f"{type(module).__name__} has none: set optimiser.layer_decay=0"
        )
    top = module.num_layers + 1

    def scale(updates: PyTree, _params: PyTree = None) -> PyTree:
        return jax.tree_util.tree_map_with_path(
            lambda path, u: u * decay ** (top - module.layer_index(path_name(path))),
            updates,
        )

    return optax.stateless(scale)


def frozen(path: str, patterns: Sequence[str]) -> bool:
    """Whether a parameter's name (`a/b/kernel`) matches one of the expressions."""
    return any(re.search(pattern, path) for pattern in patterns)


def _decayed(params: PyTree) -> PyTree:
    """Weight decay is for kernels, not for biases, scales and position tables."""

    def decayed(path, p) -> bool:
        return jnp.ndim(p) > 1 and path_name(path).split("/")[-1] != POSITIONS

    return jax.tree_util.tree_map_with_path(decayed, params)
