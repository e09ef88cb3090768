"""Forward speed of the two mobile networks, shifted against native depthwise convolution.

    source launch/environment.sh; python tests/benchmarks/mobile_speed.py \
        [--batches 1 2 4 8 16] [--repeats 10] [--gradient]

Prints one JSON object: images per second (best of the repeats) and compile seconds per
network, method and batch. Crops are random uint8 of 192x192; the last stage's heatmaps are
computed in one jitted program from them, with fresh weights. Calls of different methods are
not interleaved, so a busy machine shows in the spread between `best` and `median`.
"""

from __future__ import annotations

import argparse
import json
import os
import time

import jax
import jax.numpy as jnp
import numpy as np

from pose_jax import models
from pose_jax.convert.mobile import model_section
from pose_jax.pixels import InputSpec, normalise

FAMILIES = ("mobile_pose_machine", "mobile_hourglass")


def program(family: str, method: str, gradient: bool):
    """(jitted function of variables and crops, fresh variables)."""
    spec = InputSpec(**model_section(family)["input"])
    module = models.build(dict(name=family, depthwise=method), num_keypoints=14)
    variables = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, *spec.size, 3)))

    def forward(variables, crops):
        return module.apply(variables, normalise(crops, spec)).heatmaps[-1]

    def loss(variables, crops):
        return jnp.square(forward(variables, crops)).mean()

    return jax.jit(jax.grad(loss) if gradient else forward), variables


def measure(run, variables, batch: int, repeats: int) -> dict[str, float]:
    """Images per second of the best and of the median call."""
    generator = np.random.default_rng(batch)
    crops = generator.integers(0, 256, (batch, 192, 192, 3), np.uint8)
    start = time.perf_counter()
    jax.block_until_ready(run(variables, crops))
    compiled = time.perf_counter() - start
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(run(variables, crops))
        times.append(time.perf_counter() - start)
    return {
        "best": round(batch / min(times), 1),
        "median": round(batch / float(np.median(times)), 1),
        "compile_s": round(compiled, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--methods", nargs="+", default=["shifted", "native"])
    parser.add_argument("--gradient", action="store_true", help="time the gradient")
    arguments = parser.parse_args()
    jax.config.update("jax_enable_compilation_cache", False)
    rows: dict[str, dict[str, dict[int, dict[str, float]]]] = {}
    for family in FAMILIES:
        for method in arguments.methods:
            run, variables = program(family, method, arguments.gradient)
            rows.setdefault(family, {})[method] = {
                batch: measure(run, variables, batch, arguments.repeats)
                for batch in arguments.batches
            }
    print(
        json.dumps(
            {
                "backend": jax.default_backend(),
                "cores": os.cpu_count(),
                "jax": jax.__version__,
                "glibc_tunables": os.environ.get("GLIBC_TUNABLES", ""),
                "what": "gradient" if arguments.gradient else "forward",
                "images_per_second": rows,
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
