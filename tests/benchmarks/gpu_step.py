"""Training throughput on the accelerator found: images/s and model FLOPs utilisation.

    python tests/benchmarks/gpu_step.py [--budget_s=510] [--rival]

Peak: a bfloat16 matrix product of 8192 x 8192 on random data, measured in this run. Model FLOPs:
3 x forward of the published multiply-adds. One JSON line per row, flushed as it comes, so that a
cut-off run loses nothing.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
from compiled_step import compile_step


def say(**row):
    print(json.dumps(row), flush=True)


def median_seconds(call, repeats=10, warm=3):
    import jax

    for _ in range(warm):
        jax.block_until_ready(call())
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - began)
    return float(np.median(times))


def matmul_peak(side):
    """FLOP/s of a bf16 product (random data: zeros run faster than real work)."""
    import jax
    import jax.numpy as jnp

    a, b = jax.random.normal(jax.random.key(0), (2, side, side), jnp.bfloat16)
    product = jax.jit(lambda a, b: a @ b)
    return 2 * side**3 / median_seconds(lambda: product(a, b), 20)


def train_row(member, batch, precision):
    import optax

    from pose_jax.pixels import InputSpec

    section = {**member.section, "dtype": precision}
    spec = InputSpec(member.input_size)
    adam = optax.adam(1e-4)
    made = compile_step(section, spec, member.num_keypoints, batch, adam, 1e-4)
    state = made.state

    def one():
        nonlocal state
        state, metrics = made.step(state, made.batch)
        return metrics

    return batch / median_seconds(one), made.seconds


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--budget_s", type=float, default=510)
    parser.add_argument("--batches", default="16,64,128,256")
    parser.add_argument("--names", default="")
    parser.add_argument("--precision", default="bfloat16")
    parser.add_argument("--matmul", type=int, default=8192)
    parser.add_argument("--rival", action="store_true")
    a = parser.parse_args()
    began = time.perf_counter()
    import jax

    from pose_jax.models import zoo

    peak = matmul_peak(a.matmul)
    say(
        device=str(jax.devices()[0].device_kind),
        jax=jax.__version__,
        peak_tflops=peak / 1e12,
    )
    names = a.names.split(",") if a.names else [
        "hourglass-thesis", "hourglass-2", "hourglass-1", "hourglass-8",
    ]  # fmt: skip
    members = {m.name: m for m in zoo.list_models()}
    for batch in (int(b) for b in a.batches.split(",")):
        for name in names:
            if time.perf_counter() - began > a.budget_s:
                say(stopped="budget spent")
                return
            try:
                rate, seconds = train_row(members[name], batch, a.precision)
            except Exception as error:  # Out of memory at the largest batches.
                say(network=name, batch=batch, error=str(error)[:200])
                continue
            say(
                network=name, batch=batch, precision=a.precision, images_per_s=rate,
                utilisation=3 * members[name].gflops * 1e9 * rate / peak,
                compile_s=seconds,
            )  # fmt: skip
    if a.rival:
        from torch_gpu import rival_rows

        for row in rival_rows([int(b) for b in a.batches.split(",")]):
            say(**row)


if __name__ == "__main__":
    main()
