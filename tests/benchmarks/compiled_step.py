"""The training step that the benchmarks time, compiled for the devices present."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))


class Compiled(NamedTuple):
    """`step(state, batch) -> state, metrics`; the state is given away."""

    step: Any
    state: Any
    batch: Any
    objective: Any
    seconds: float


def random_batch(size: tuple[int, int], num_keypoints: int, batch: int):
    """Noise with keypoints anywhere, all labelled."""
    from pose_jax.training import step as step_

    generator = np.random.default_rng(0)
    example = step_.example_batch(size, num_keypoints, batch)
    rows = {n: np.array(v) for n, v in example.items()}
    rows["image"] = generator.integers(0, 256, rows["image"].shape, np.uint8)
    points = generator.uniform(0, min(size) - 1, rows["keypoints"].shape)
    rows["keypoints"] = points.astype(np.float32)
    rows["visible"][:], rows["weight"][:], rows["mask"][:] = 2, 1, True
    return rows


def compile_step(
    section, spec, num_keypoints: int, batch: int, transform, rate: float
) -> Compiled:
    """Squared error on unbiased heatmaps of sigma 1, one device.

    Args:
      section: `config.model`.
      spec: `InputSpec`.
      transform: optax transformation; `rate` is its constant learning rate.
    """
    import jax
    import optax

    from pose_jax import config, models, sharding
    from pose_jax.heatmaps import Codec
    from pose_jax.pixels import ColourJitter
    from pose_jax.training import step as step_
    from pose_jax.training.objectives import heatmap

    module = models.build(section, num_keypoints=num_keypoints)
    codec = Codec("unbiased", "quarter", 1.0)
    objective = heatmap.make(
        config.default().objective, module, spec, codec, ColourJitter()
    )
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    state, shardings = step_.create_state(
        step_.make_init(objective, transform, average=False),
        jax.random.key(0, impl="unsafe_rbg"),
        step_.example_batch(spec.size, num_keypoints),
        mesh,
        fsdp=False,
    )
    step = step_.make_train_step(
        objective, transform, optax.constant_schedule(rate), seed=0
    )
    placed = sharding.put_batch(random_batch(spec.size, num_keypoints, batch), mesh)
    began = time.perf_counter()
    compiled = step_.compile_step(step, shardings, mesh).lower(state, placed).compile()
    return Compiled(compiled, state, placed, objective, time.perf_counter() - began)
