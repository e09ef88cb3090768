"""Optimisers and schedules by name; regular expressions freeze parameters."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from pose_jax.arrays import PyTree
from pose_jax.trees import path_name

OPTIMISERS = ("adam", "adamw", "rmsprop", "sgd")
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
    section: Any, steps: int, trainable: Callable[[str], bool]
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """(transformation, schedule).

    Raises:
      ValueError: unknown names.
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
    else:
        raise ValueError(f"optimiser.name is {name!r}; use {', '.join(OPTIMISERS)}")
    if section.weight_decay and name != "adamw":
        rule = optax.chain(
            optax.add_decayed_weights(section.weight_decay, _decayed), rule
        )
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


def frozen(path: str, patterns: Sequence[str]) -> bool:
    """Whether a parameter's name (`a/b/kernel`) matches one of the expressions."""
    return any(re.search(pattern, path) for pattern in patterns)


def _decayed(params: PyTree) -> PyTree:
    """Weight decay is for kernels, not for biases and scales."""
    return jax.tree.map(lambda p: jnp.ndim(p) > 1, params)
