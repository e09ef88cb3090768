"""One training step: gradient accumulation, update, averages, plateau; jitted once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from pose_jax import sharding
from pose_jax.arrays import Batch, PyTree
from pose_jax.training.optimiser import frozen
from pose_jax.training.state import Mean, TrainState, plateau_start
from pose_jax.trees import flat_names, unflatten_names


def make_init(
    objective: Any, transform: optax.GradientTransformation, *, average: bool
) -> Callable[[jax.Array, Batch], TrainState]:
    """Function (key, example) -> fresh state."""

    def init(key: jax.Array, example: Batch) -> TrainState:
        variables = objective.init(key, example)
        params = variables["params"]
        return TrainState(
            step=jnp.int32(0),
            params=params,
            batch_stats=variables.get("batch_stats", {}),
            opt_state=transform.init(params),
            average=jax.tree.map(jnp.copy, params) if average else {},
            plateau=plateau_start(),
        )

    return init


def make_train_step(
    objective: Any,
    transform: optax.GradientTransformation,
    schedule: optax.Schedule,
    *,
    seed: int,
    accumulation: int = 1,
    decay: float = 0.0,
    freeze: tuple[str, ...] = (),
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """Pure function (state, batch) -> (state, metrics as scalars).

    The randomness of a step depends on `seed` and the step alone, so a resumed run repeats
    an uninterrupted one. With `accumulation`, sums and counts are added over micro-batches,
    which gives the gradient of the whole batch's mean.
    """

    def gradients(params, batch_stats, batch, key):
        def total(params):
            loss, (metrics, statistics) = objective.loss(
                {"params": params, "batch_stats": batch_stats}, batch, key=key
            )
            return loss.sum, (loss, metrics, statistics)

        grads, (loss, metrics, statistics) = jax.grad(total, has_aux=True)(params)
        return grads, loss, metrics, statistics

    def accumulate(params, batch_stats, batch, key):
        if accumulation == 1:
            return gradients(params, batch_stats, batch, key)
        # Interleaved rows, so that every micro-batch is spread over all devices.
        micro = jax.tree.map(
            lambda x: jnp.swapaxes(
                x.reshape(x.shape[0] // accumulation, accumulation, *x.shape[1:]), 0, 1
            ),
            batch,
        )
        keys = jax.random.split(key, accumulation)

        def one(index, statistics):
            part = jax.tree.map(lambda x: x[index], micro)
            return gradients(params, statistics, part, keys[index])

        grads, loss, metrics, statistics = one(0, batch_stats)

        def body(carry, index):
            grads, loss, metrics, statistics = carry
            more = one(index, statistics)
            carry = (
                jax.tree.map(jnp.add, grads, more[0]),
                loss.merge(more[1]),
                {name: metrics[name].merge(more[2][name]) for name in metrics},
                more[3],
            )
            return carry, None

        carry = (grads, loss, metrics, statistics)
        return jax.lax.scan(body, carry, jnp.arange(1, accumulation))[0]

    def step(state: TrainState, batch: Batch):
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        grads, loss, metrics, statistics = accumulate(
            state.params, state.batch_stats, batch, key
        )
        count = jnp.maximum(loss.count, 1e-12)
        grads = jax.tree.map(lambda g: g / count, grads)
        updates, opt_state = transform.update(grads, state.opt_state, state.params)
        updates = jax.tree.map(lambda u: u * state.plateau.scale, updates)
        params = optax.apply_updates(state.params, updates)
        statistics = _keep_frozen(state.batch_stats, statistics, freeze)
        average = state.average
        if decay:
            average = _average(average, params, decay, state.step)
        scalars = _scalars(metrics, grads, updates, params)
        scalars["learning_rate"] = schedule(state.step) * state.plateau.scale
        new = dataclasses.replace(
            state,
            step=state.step + 1,
            params=params,
            batch_stats=statistics,
            opt_state=opt_state,
            average=average,
        )
        return new, scalars

    return step


def compile_step(step, state_shardings: PyTree, mesh: Mesh):
    """The step as one program over the mesh; the old state's memory is reused."""
    return jax.jit(
        step,
        in_shardings=(state_shardings, sharding.batch_sharding(mesh)),
        out_shardings=(state_shardings, sharding.replicated(mesh)),
        donate_argnums=(0,),
    )


def create_state(init, key: jax.Array, example: Batch, mesh: Mesh, *, fsdp: bool):
    """A fresh state, born sharded: (state, its shardings)."""
    abstract = jax.eval_shape(init, key, example)
    shardings = sharding.state_sharding(abstract, mesh, fsdp=fsdp)
    state = jax.jit(init, out_shardings=shardings)(key, example)
    return state, shardings


def example_batch(
    size: tuple[int, int], num_keypoints: int, batch: int = 1
) -> dict[str, Any]:
    """Zeros with the shapes of a batch."""
    return {
        "image": jnp.zeros((batch, *size, 3), jnp.uint8),
        "keypoints": jnp.zeros((batch, num_keypoints, 2), jnp.float32),
        "visible": jnp.zeros((batch, num_keypoints), jnp.int32),
        "weight": jnp.zeros((batch, num_keypoints), jnp.float32),
        "id": jnp.zeros((batch,), jnp.int32),
        "mask": jnp.zeros((batch,), bool),
    }


def _keep_frozen(old: PyTree, new: PyTree, freeze: tuple[str, ...]) -> PyTree:
    """Frozen layers keep their normalisation statistics too."""
    if not freeze:
        return new
    before, after = flat_names(old), flat_names(new)
    return unflatten_names(
        new, {n: before[n] if frozen(n, freeze) else after[n] for n in after}
    )


def _average(average: PyTree, params: PyTree, decay: float, step) -> PyTree:
    # A short memory at first, or the average would remember the random start.
    step = step.astype(jnp.float32)
    keep = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda a, p: keep * a + (1 - keep) * p, average, params)


def _scalars(metrics: dict[str, Mean], grads, updates, params) -> dict[str, jax.Array]:
    values = {name: mean.compute() for name, mean in metrics.items()}
    values["loss_ratio"] = values["loss"] / jnp.maximum(values["zero_map_loss"], 1e-12)
    values["gradient_norm"] = optax.global_norm(grads)
    values["update_norm"] = optax.global_norm(updates)
    values["parameter_norm"] = optax.global_norm(params)
    return values
