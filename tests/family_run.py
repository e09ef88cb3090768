"""One family on eight emulated devices (data 4 x model 2) and on one: a training step, the
flip test's prediction, exact group Shapley values. Prints one line of JSON per family.

    JAX_NUM_CPU_DEVICES=8 python tests/family_run.py vitpose hrnet ...
"""

from __future__ import annotations

import json
import sys
import traceback

import jax
import numpy as np
from families import TINY, config_of

from pose_jax import inference, partitions, sharding
from pose_jax import recipe as recipe_
from pose_jax.explain import games
from pose_jax.explain.explainer import Crops, Explainer
from pose_jax.pixels import ColourJitter
from pose_jax.sharding import MeshConfig
from pose_jax.training import optimiser
from pose_jax.training import step as step_
from pose_jax.training.objectives import OBJECTIVES

PEOPLE = 8


def batch_of(c, generator) -> dict[str, np.ndarray]:
    height, width = c.input.size
    k = 17
    points = generator.uniform(4, min(height, width) - 4, (PEOPLE, k, 2))
    return {
        "image": generator.integers(0, 255, (PEOPLE, height, width, 3)).astype(
            np.uint8
        ),
        "keypoints": points.astype(np.float32),
        "visible": np.full((PEOPLE, k), 2, np.int32),
        "weight": np.ones((PEOPLE, k), np.float32),
        "id": np.arange(PEOPLE, dtype=np.int32),
        "mask": np.ones(PEOPLE, bool),
    }


def train_step(c, mesh, batch):
    """(recipe, state after one step, loss, names of leaves split over `model`)."""
    described = recipe_.recipe(c)
    objective = OBJECTIVES[c.objective.name](
        c.objective, described.module, described.spec, described.codec, ColourJitter()
    )
    transform, schedule = optimiser.make_optimiser(
        c.optimiser, 9, objective.trainable, module=described.module
    )
    init = step_.make_init(objective, transform, average=False)
    example = step_.example_batch(described.spec.size, 17)
    key = jax.random.key(0, impl="unsafe_rbg")
    state, shardings = step_.create_state(init, key, example, mesh, fsdp=False)
    start = sharding.to_host(state.variables)
    step = step_.compile_step(
        step_.make_train_step(objective, transform, schedule, seed=0), shardings, mesh
    )
    state, metrics = step(state, sharding.put_batch(batch, mesh))
    split = [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, leaf in jax.tree_util.tree_leaves_with_path(state.params)
        if sharding.MODEL in jax.tree.leaves(tuple(leaf.sharding.spec))
    ]
    after = sharding.to_host(state.variables)
    return described, start, after, float(metrics["loss"]), split


def predict(described, variables, batch, mesh) -> np.ndarray:
    program = inference.compile_predict(
        inference.make_predict(described, flip_test=True), mesh
    )
    found = program(variables, sharding.put_batch({"image": batch["image"]}, mesh))
    return np.asarray(found["keypoints"])


def explain(described, variables, batch, devices) -> np.ndarray:
    """`[2, players, k]` influence of three clusters' members, two people."""
    skeleton = described.skeleton
    partition = partitions.from_lists(
        "three", [range(5), range(5, 11), range(11, 17)], skeleton
    )
    split = sharding.coalition_sharding() if devices > 1 else None
    explainer = Explainer(
        *described.inference(variables),
        games.keypoint_players(skeleton, partition, kind="disc", side=0.2),
        method="group_shapley", kind="gsv", score="auto", removal="mean", sharding=split,
    )  # fmt: skip
    boxes = np.array([[0.0, 0.0, *described.spec.size[::-1]]] * 2)
    crops = Crops(batch["image"][:2], np.stack([np.eye(3)] * 2), boxes)
    found = explainer(crops)
    assert max(np.abs(e.residual).max() for e in found) < 1e-3
    return np.stack([e.influence for e in found])


def run(family: str) -> dict:
    c = config_of(family)
    batch = batch_of(c, np.random.default_rng(0))
    eight = sharding.make_mesh(MeshConfig(data=4, model=2))
    one = sharding.make_mesh(devices=jax.devices()[:1])
    described, start, wide, loss, split = train_step(c, eight, batch)
    _, _, narrow, loss_one, _ = train_step(c, one, batch)
    # Where the network started: a step along noise would compare rounding.
    points = [predict(described, start, batch, mesh) for mesh in (eight, one)]
    influence = [explain(described, start, batch, n) for n in (8, 1)]
    changed = jax.tree.map(
        lambda a, b: np.abs(a - b).max(), start["params"], wide["params"]
    )
    # Statistics of wide maps are far above one: rounding grows with the numbers.
    differ = jax.tree.map(
        lambda a, b: np.abs(a - b).max() / max(np.abs(b).max(), 1.0), wide, narrow
    )
    return {
        "family": family,
        "loss": [loss, loss_one],
        "step_difference": float(max(jax.tree.leaves(differ))),
        "unchanged": float(min(jax.tree.leaves(changed))),
        "split": split,
        "points": float(np.abs(points[0] - points[1]).max()),
        "influence": float(np.abs(influence[0] - influence[1]).max()),
        "influence_size": float(np.abs(influence[1]).max()),
        "finite": bool(all(np.isfinite(a).all() for a in (*points, *influence))),
    }


if __name__ == "__main__":
    sharding._SMALL = 64  # Tiny weights are split as large ones are.
    for name in sys.argv[1:] or TINY:
        try:
            print(json.dumps(run(name)), flush=True)
        except Exception:  # One family's failure is reported as its own.
            print(
                json.dumps({"family": name, "error": traceback.format_exc()}),
                flush=True,
            )
