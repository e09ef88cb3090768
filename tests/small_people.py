"""Synthetic people as arrays, and training on them without files: for tests of learning."""

from __future__ import annotations

import functools

import jax
import numpy as np
from tiny import tiny_config

from pose_jax import evaluation, inference
from pose_jax import recipe as recipe_
from pose_jax.data import FigurePeople, pipeline
from pose_jax.data.figures import FigureSource
from pose_jax.pixels import ColourJitter
from pose_jax.training import optimiser
from pose_jax.training import step as step_
from pose_jax.training.objectives import OBJECTIVES

TRAINING, HELD_OUT = 1500, 96


def regression_config(model, *, objective="regression", loss="mse", side=32, **train):
    """The tiny run with a network that regresses coordinates."""
    c = tiny_config(**train)
    c.input.size = (side, side)
    c.codec.update(sigma_px=2.0, activation="none")
    c.model = model
    c.objective.update(name=objective, loss=loss)
    return c


def source(count: int, seed: int) -> FigurePeople:
    """Whole people in front of plain backgrounds: hundreds of steps learn something."""
    figures = FigureSource(
        count, seed=seed, size=(48, 48), clutter=0, occlusion=0, truncation=0
    )
    return FigurePeople(figures)


@functools.lru_cache(maxsize=2)
def crops(view, count: int, seed: int) -> dict[str, np.ndarray]:
    """A whole split as one batch."""
    people = source(count, seed)
    (batch,) = pipeline.eval_batches(people, view, batch=count, rows=range(count))
    return {n: np.asarray(batch[n]) for n in batch}


def learn(c, *, steps: int, batch: int = 32):
    """Train in memory. Returns the recipe, the variables and the metrics of every step."""
    described = recipe_.recipe(c)
    objective = OBJECTIVES[c.objective.name](
        c.objective, described.module, described.spec, described.codec, ColourJitter()
    )
    transform, schedule = optimiser.make_optimiser(
        c.optimiser, steps, objective.trainable
    )
    everybody = crops(described.view, TRAINING, 1)
    example = step_.example_batch(described.spec.size, 17)
    state = jax.jit(step_.make_init(objective, transform, average=False))(
        jax.random.key(0, impl="unsafe_rbg"), example
    )
    step = jax.jit(
        step_.make_train_step(objective, transform, schedule, seed=0),
        donate_argnums=(0,),
    )
    generator, rows = np.random.default_rng(0), []
    for _ in range(steps):
        chosen = generator.choice(TRAINING, batch, replace=False)
        state, metrics = step(state, {n: everybody[n][chosen] for n in example})
        rows.append(metrics)
    rows = {n: np.array([float(row[n]) for row in rows]) for n in rows[0]}
    return described, jax.device_get(state.variables), rows


def held_out(described, variables) -> tuple[float, float]:
    """PCK@.1 of the longer side of the box over people never seen: the network's and that of
    the mean pose of the training people in their boxes."""
    people = source(HELD_OUT, 3)
    mean = evaluation.mean_pose([source(TRAINING, 1).person(i) for i in range(200)])
    batch = crops(described.view, HELD_OUT, 3)
    predict = jax.jit(inference.make_predict(described, flip_test=False))
    found = np.asarray(predict(variables, {"image": batch["image"]})["keypoints"])
    right = guessed = labelled = 0
    for row in range(HELD_OUT):
        person = people.person(row)
        matrix = np.asarray(pipeline.crop_matrix(person, described.view))
        x, y, width, height = person.box
        guess = np.array([x, y]) + mean * np.array([width, height])
        guess = guess @ matrix[:2, :2].T + matrix[:2, 2]
        within = 0.1 * max(width, height) * np.sqrt(abs(np.linalg.det(matrix[:2, :2])))
        known = batch["visible"][row] > 0
        truth = batch["keypoints"][row]
        labelled += known.sum()
        for points, add in ((found[row], True), (guess, False)):
            hits = (np.linalg.norm(points - truth, axis=-1) < within)[known].sum()
            right, guessed = (right + hits, guessed) if add else (right, guessed + hits)
    return right / labelled, guessed / labelled
