"""`init_from`: start from another run's or a converted model's weights."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath

from pose_jax import checkpoint, sharding
from pose_jax.config import UserError
from pose_jax.recipe import Recipe, recipe
from pose_jax.training import transfer
from pose_jax.training.state import TrainState
from pose_jax.trees import flat_names, unflatten_names
from pose_jax.writer import read_json, say


def from_model(config: Any, described: Recipe, state: TrainState) -> TrainState:
    """The state with weights taken over, joints mapped by name.

    Raises:
      UserError: no run at the path, or its network is another one.
    """
    section = config.init_from
    stored = read_json(epath.Path(section.path) / "config.json")
    if stored is None:
        raise UserError(
            f"init_from.path={section.path} holds no config.json; give the workdir of a "
            "run or of a converted model"
        )
    source = recipe(stored)
    loaded, step = checkpoint.load_variables(section.path, section.checkpoint)
    if not sharding.same_on_all_processes(step):
        raise UserError(
            f"the processes found different newest steps in init_from.path={section.path}; "
            "give init_from.checkpoint one of its steps"
        )
    k = described.skeleton.num_keypoints
    axes = transfer.keypoint_axes(described.shapes(k), described.shapes(k + 1), k)
    fresh = {"params": state.params, "batch_stats": state.batch_stats}
    try:
        result = transfer.transfer(
            flat_names(sharding.gather(fresh)),
            flat_names(loaded),
            axes,
            source.skeleton,
            described.skeleton,
            backbone_only=section.backbone_only,
        )
    except ValueError as error:
        raise UserError(str(error)) from None
    say(f"init_from {section.path} step {step}: {transfer.summary(result)}")
    tree = unflatten_names(fresh, result.leaves)
    placed = sharding.place_like(tree, fresh)
    average = state.average
    if jax.tree.leaves(average):
        average = jax.tree.map(jnp.copy, placed["params"])
    return dataclasses.replace(
        state,
        params=placed["params"],
        batch_stats=placed["batch_stats"],
        average=average,
    )
