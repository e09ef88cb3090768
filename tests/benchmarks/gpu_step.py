"""Training throughput on the accelerator found: images/s and model FLOPs utilisation.

    python tests/benchmarks/gpu_step.py [--budget_s=510] [--rival]
        [--names=vitpose-b,vitpose-l] [--attention=cudnn,xla]

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


def train_row(member, batch, precision, more):
    import optax

    from pose_jax.pixels import InputSpec

    section = {**member.section, "dtype": precision, **more}
    spec = InputSpec(member.input_size)
    adam = optax.adam(1e-4)
    made = compile_step(section, spec, member.num_keypoints, batch, adam, 1e-4)
    state = made.state

    def one():
        nonlocal state
        state, metrics = made.step(state, made.batch)
        return metrics

    return batch / median_seconds(one), made.seconds


TINY_VIT = dict(width=96, heads=3, layers=2, mlp=384)


def variants(a, names):
    """(network, further fields of its section): transformers once per attention."""
    for name in names:
        if not name.startswith("vitpose"):
            yield name, {}
            continue
        for attention in a.attention.split(","):
            yield name, {"attention": attention, **(TINY_VIT if a.tiny else {})}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--budget_s", type=float, default=510)
    parser.add_argument("--batches", default="16,64,128,256")
    parser.add_argument("--names", default="")
    parser.add_argument("--precision", default="bfloat16")
    parser.add_argument("--matmul", type=int, default=8192)
    parser.add_argument("--attention", default="cudnn,xla", help="of transformers")
    parser.add_argument("--rival", action="store_true")
    parser.add_argument("--tiny", action="store_true", help="to try it: small ViTs")
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
        "hourglass-thesis", "vitpose-b", "vitpose-l", "hourglass-2", "hourglass-1",
        "hourglass-8",
    ]  # fmt: skip
    members = {m.name: m for m in zoo.list_models()}
    batches = [int(b) for b in a.batches.split(",")]
    rows = (
        (batch, name, more) for batch in batches for name, more in variants(a, names)
    )
    for batch, name, more in rows:
        if time.perf_counter() - began > a.budget_s:
            say(stopped="budget spent")
            return
        row = dict(network=name, batch=batch, precision=a.precision, **more)
        try:
            rate, seconds = train_row(members[name], batch, a.precision, more)
        except Exception as error:  # Out of memory at the largest batches.
            say(**row, error=str(error)[:200])
            continue
        work = 3 * members[name].gflops * 1e9
        say(
            **row, images_per_s=rate, utilisation=work * rate / peak, compile_s=seconds,
        )  # fmt: skip
    if a.rival:
        from torch_gpu import rival_rows

        for row in rival_rows(names, batches, tiny=TINY_VIT if a.tiny else {}):
            work = 3 * members[row["network"]].gflops * 1e9
            say(**row, utilisation=work * row["images_per_s"] / peak)


if __name__ == "__main__":
    main()
