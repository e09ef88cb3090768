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

STAGE = "pretrain"
"""Folder of the first stage in a workdir."""


def start(config: Any, workdir: Any) -> tuple[str, str | int]:
    """(workdir, checkpoint) that a training starts from: its own first stage where one was
    asked for, else `init_from`; an empty path is a fresh start.

    Raises:
      UserError: the first stage was asked for and is not complete.
    """
    kind = config.model.get("autoencoder", "none")
    staged = kind == "pca" or (kind == "convolutional" and config.pretrain.steps)
    if not staged or config.objective.name == "latent":
        return config.init_from.path, config.init_from.checkpoint
    folder = epath.Path(workdir) / STAGE
    steps = checkpoint.saved_steps(folder)
    needed = config.pretrain.steps if kind == "convolutional" else 0
    if needed not in steps:
        raise UserError(
            f"{folder} holds no complete first stage; put 'pretrain' before 'train' in "
            "config.tasks (or set pretrain.steps=0 to start the autoencoder at random)"
        )
    return str(folder), needed


def from_model(
    config: Any, described: Recipe, state: TrainState, workdir: Any
) -> TrainState:
    """The state with weights taken over, joints mapped by name; unchanged where nothing is to
    be taken.

    Raises:
      UserError: no run at the path, or its network is another one.
    """
    path, which = start(config, workdir)
    if not path:
        return state
    fresh = {"params": state.params, "batch_stats": state.batch_stats}
    leaves = _transferred(config, described, sharding.gather(fresh), path, which)
    tree = unflatten_names(fresh, leaves)
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


def variables(config: Any, described: Recipe) -> Any:
    """Variables of a network on the host, taken over from `init_from` where it has them."""
    images = jnp.zeros((1, *described.spec.size, 3))
    key = jax.random.key(config.seed, impl="unsafe_rbg")
    fresh = sharding.to_host(jax.jit(described.module.init)(key, images))
    section = config.init_from
    leaves = _transferred(config, described, fresh, section.path, section.checkpoint)
    return unflatten_names(fresh, leaves)


def _transferred(config, described: Recipe, fresh, path, which) -> dict[str, Any]:
    stored = read_json(epath.Path(path) / "config.json")
    if stored is None:
        raise UserError(
            f"init_from.path={path} holds no config.json; give the workdir of a run or of "
            "a converted model"
        )
    source = recipe(stored)
    loaded, step = checkpoint.load_variables(path, which)
    if not sharding.same_on_all_processes(step):
        raise UserError(
            f"the processes found different newest steps in init_from.path={path}; "
            "give init_from.checkpoint one of its steps"
        )
    k = described.skeleton.num_keypoints
    axes = transfer.keypoint_axes(described.shapes(k), described.shapes(k + 1), k)
    try:
        result = transfer.transfer(
            flat_names(fresh),
            flat_names(loaded),
            axes,
            source.skeleton,
            described.skeleton,
            backbone_only=config.init_from.backbone_only,
        )
    except ValueError as error:
        raise UserError(str(error)) from None
    say(f"starting from {path} step {step}: {transfer.summary(result)}")
    return result.leaves
