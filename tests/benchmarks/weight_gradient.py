"""Gradients of kernels in `models/products.py` against XLA's own rule, on this CPU.

    source launch/environment.sh; python tests/benchmarks/weight_gradient.py

Each side is the gradient of `norm -> product -> norm` in one program, as it stands in a
network: alone, XLA's rule looks better than it is there. One JSON object.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

SHAPES = [(8, 64, 128, 3), (8, 128, 64, 3), (8, 32, 128, 3), (8, 64, 256, 1)]


def make(batch: int, side: int, width: int, size: int, fast: bool):
    import flax.linen as nn

    from pose_jax.models import layers

    class Block(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = layers.NormRelu(name="before")(x, train=True)
            if size == 1:
                x = layers.conv1x1(width, "product", x.dtype, train=fast)(x)
            else:
                x = layers.conv(width, size, "product", x.dtype, train=fast)(x)
            return layers.NormRelu(name="after")(x, train=True)

    x = jax.random.normal(jax.random.key(0), (batch, side, side, width))
    g = jax.random.normal(jax.random.key(1), x.shape)
    variables = Block().init(jax.random.key(2), x)

    def loss(variables, x):
        y, _ = Block().apply(variables, x, mutable=["batch_stats"])
        return (y * g).sum()

    compiled = jax.jit(jax.grad(loss, (0, 1))).lower(variables, x).compile()
    return lambda: jax.block_until_ready(compiled(variables, x))


def main():
    rows = []
    for batch, side, width, size in SHAPES:
        runs = {
            name: make(batch, side, width, size, name == "ours")
            for name in ("ours", "xla")
        }
        times: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(12):
            for name, run in runs.items():
                began = time.perf_counter()
                run()
                times[name].append((time.perf_counter() - began) * 1e3)
        median = {name: float(np.median(values[2:])) for name, values in times.items()}
        rows.append(
            {
                "maps": [batch, side, side, width],
                "kernel": size,
                "milliseconds": median,
                "ratio": median["xla"] / median["ours"],
            }
        )
    print(json.dumps({"jax": jax.__version__, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
