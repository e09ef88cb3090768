"""Time and memory of the Shapley engine beside shapiq, shap and captum.

    python tests/benchmarks/shapley_engine.py [--repeats 5] [--only free,grouped,...]

Prints one JSON object. The process is pinned to one core; times are CPU milliseconds, the
median of warm runs, the first call (with compilation) beside it. Rivals that are not
installed are named in `skipped`. Every rival gets a vectorised game where it takes one.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import time
from pathlib import Path

if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import jax
import jax.numpy as jnp
import numpy as np

from pose_jax.explain import (
    exact_shapley,
    group_shapley,
    interactions,
    sampled_shapley,
)

CLUSTERS = [list(range(5)), [5, 7, 9], [6, 8, 10], [11, 13, 15], [12, 14, 16]]
MIXING = np.cos(np.arange(17.0)[:, None] * (1 + np.arange(17.0))).astype(np.float32)
SKIPPED: dict[str, str] = {}


def timed(call, repeats: int) -> dict[str, float]:
    began = time.perf_counter()
    jax.block_until_ready(call())
    first = time.perf_counter() - began
    spent = []
    for _ in range(repeats):
        began = time.process_time()
        jax.block_until_ready(call())
        spent.append(time.process_time() - began)
    return {"ms": 1e3 * float(np.median(spent)), "first_ms": 1e3 * first}


def rival(name: str):
    try:
        return importlib.import_module(name)
    except (
        Exception
    ) as error:  # A rival that cannot be loaded is a note, not a failure.
        SKIPPED[name] = f"{type(error).__name__}: {error}"[:120]
        return None


def draw(n: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=n).astype(np.float32)


def game(coalition, weight):
    return jnp.tanh(jnp.sum(jnp.where(coalition, weight, 0.0)))


def rows_game(weight):
    return lambda rows: np.tanh(np.atleast_2d(np.asarray(rows, float)) @ weight)


def free_games(repeats: int) -> dict:
    """A game that costs nothing: what remains is the engine."""
    result = {}
    shapiq, shap = rival("shapiq"), rival("shap")
    for n in (8, 12, 16, 20):
        weight, few = draw(n), repeats if n < 20 else min(repeats, 3)
        row = {}
        for name, keep in (("ours", None), ("ours_streaming", False)):
            row[name] = timed(
                lambda keep=keep, w=weight, n=n: (
                    exact_shapley(game, n, args=(w,), keep_table=keep).values
                ),
                few,
            )
        values = np.asarray(exact_shapley(game, n, args=(weight,)).values)
        if shapiq and n <= 12:

            def run(w=weight, n=n):
                return shapiq.ExactComputer(rows_game(w), n_players=n)("SV")

            row["shapiq"] = timed(run, 1)
            theirs = np.array([run()[(i,)] for i in range(n)])
            row["difference_to_shapiq"] = float(abs(theirs - values).max())
        if shap and n <= 16:
            masker = shap.maskers.Independent(np.zeros((1, n)), max_samples=1)
            explainer = shap.explainers.Exact(rows_game(weight), masker)

            def run(explainer=explainer, n=n):
                return explainer(np.ones((1, n)), max_evals=2**n, silent=True).values

            row["shap"] = timed(run, 1)
            row["difference_to_shap"] = float(abs(run()[0] - values).max())
        result[f"n={n}"] = row
    return result


def heads(coalition, weight):
    return jnp.tanh(MIXING @ jnp.where(coalition, weight, 0.0))


def grouped(repeats: int) -> dict:
    """COCO-17, 896 coalitions, 17 targets."""
    weight = draw(17)

    def run(kind):
        return group_shapley(heads, CLUSTERS, kind=kind, args=(weight,)).member_values

    result: dict = {
        kind: timed(lambda k=kind: run(k), 10 * repeats)
        for kind in ("gsv", "owen", "decoupled")
    }
    games = np.random.default_rng(1).normal(size=(32, 17)).astype(np.float32)
    many = timed(
        lambda: group_shapley(heads, CLUSTERS, kind="owen", games=games).member_values,
        repeats,
    )
    result["owen_per_game_of_32"] = {"ms": many["ms"] / 32}
    if shap := rival("shap"):
        tree = {f"c{i}": {f"p{p}": f"p{p}" for p in c} for i, c in enumerate(CLUSTERS)}
        names = [f"p{p}" for p in range(17)]
        try:
            # Its own tree is not used, but wanted; one row of zeros has no correlations.
            nested = np.array(
                [[i - 1 if i > 1 else 0, i, i, i + 1] for i in range(1, 17)]
            )
            nested[1:, 0] = np.arange(17, 32)
            masker = shap.maskers.Partition(
                np.zeros((1, 17)), max_samples=1, clustering=nested.astype(float)
            )
            masker.feature_names = names
            explainer = shap.CoalitionExplainer(
                lambda rows: np.tanh((np.asarray(rows) * weight) @ MIXING.T),
                masker,
                partition_tree=tree,
            )
            found = []
            result["shap_coalition"] = timed(
                lambda: found.append(explainer(np.ones((1, 17))).values), 1
            )
            ours = group_shapley(heads, CLUSTERS, kind="owen", args=(weight,))
            result["difference_to_shap"] = float(
                abs(found[-1][0] - np.asarray(ours.player_values)).max()
            )
        except Exception as error:  # Its interface changes between versions.
            SKIPPED["shap.CoalitionExplainer"] = f"{type(error).__name__}: {error}"[
                :200
            ]
    return result


def pair_interactions(repeats: int) -> dict:
    n, indices = 12, ("SII", "STII", "FSII", "FBII", "BII")
    table = np.random.default_rng(0).normal(size=2**n)
    result = {
        "ours_all_five": timed(
            lambda: [interactions(table, n, index=i) for i in indices], repeats
        )
    }
    if shapiq := rival("shapiq"):
        codes = 1 << np.arange(n)

        def run(index):
            values = shapiq.ExactComputer(
                lambda rows: table[np.asarray(rows, int) @ codes], n_players=n
            )(index, order=2)
            return values

        for index in ("SII", "STII"):
            result[f"shapiq_{index}"] = timed(lambda i=index: run(i), 1)
            theirs, ours = run(index), interactions(table, n, index=index)[2]
            result[f"difference_{index}"] = float(
                max(
                    abs(theirs[(i, j)] - ours[i, j]) for i in range(n) for j in range(i)
                )
            )
    return result


def sampled(repeats: int) -> dict:
    n, budget, weight = 16, 4096, draw(16)
    truth = np.asarray(exact_shapley(game, n, args=(weight,)).values)
    result = {}
    for name in ("antithetic", "leverage"):

        def run(name=name):
            return sampled_shapley(
                game, n, budget=budget, args=(weight,), estimator=name,
                key=jax.random.key(0),
            ).values  # fmt: skip

        result[name] = timed(run, repeats)
        result[name]["largest_error"] = float(abs(run() - truth).max())
    shapiq = rival("shapiq")
    for name in ("PermutationSamplingSV", "KernelSHAP", "LeverageSHAP"):
        if shapiq and hasattr(shapiq, name):
            approximator = getattr(shapiq, name)(n=n, random_state=0)

            def run(approximator=approximator):
                return approximator.approximate(budget, rows_game(weight))

            result[f"shapiq_{name}"] = timed(run, 1)
            theirs = run()
            result[f"shapiq_{name}"]["largest_error"] = float(
                max(abs(theirs[(i,)] - truth[i]) for i in range(n))
            )
    return result


def network(repeats: int) -> dict:
    """Four 3x3 convolutions on 64 px, 8 region players, 17 targets: 256 forwards."""
    shapes = [(3, 16, 2), (16, 32, 2), (32, 32, 1), (32, 17, 1)]
    keys = jax.random.split(jax.random.key(0), 4)
    kernels = [
        jax.random.normal(k, (3, 3, a, b)) / np.sqrt(9 * a)
        for k, (a, b, _) in zip(keys, shapes)
    ]
    y, x = np.mgrid[:64, :64]
    player = jnp.asarray(4 * (y // 32) + x // 16)
    image = np.asarray(jax.random.uniform(jax.random.key(1), (64, 64, 3)))

    def forward(images, kernels):
        for index, (kernel, (_, _, stride)) in enumerate(zip(kernels, shapes)):
            images = jax.lax.conv_general_dilated(
                images, kernel, (stride, stride), "SAME",
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )  # fmt: skip
            images = jax.nn.relu(images) if index < 3 else images
        return images.max((1, 2))

    def value(coalition, kernels, image):
        seen = jnp.where(coalition[player][..., None], image, 0.5)
        return forward(seen[None], kernels)[0]

    result: dict = {}
    images = np.repeat(image[None], 256, 0)
    for batch in (16, 32, 64, 128, 256):
        plain = jax.jit(
            lambda x, k, b=batch: jax.lax.map(
                lambda part: forward(part, k), x.reshape(-1, b, 64, 64, 3)
            )
        )
        result[f"forward_256_by_{batch}"] = timed(
            lambda p=plain: p(images, kernels), repeats
        )
    result["exact_shapley"] = timed(
        lambda: exact_shapley(value, 8, args=(kernels, image)).values, repeats
    )
    best = min(v["ms"] for k, v in result.items() if k.startswith("forward"))
    result["ratio_to_best_forward"] = result["exact_shapley"]["ms"] / best
    if rival("captum") and rival("torch"):
        result["captum_sampling"] = captum_sampling(kernels, image, np.asarray(player))
    return result


def captum_sampling(kernels, image, player) -> dict:
    """captum's exact class needs n x n! evaluations; this is its sampler, 32 orders."""
    import torch
    from captum.attr import ShapleyValueSampling

    torch.set_num_threads(1)
    weights = [torch.tensor(np.asarray(k).transpose(3, 2, 0, 1)) for k in kernels]

    def forward(x):
        for index, (weight, stride) in enumerate(zip(weights, (2, 2, 1, 1))):
            x = torch.nn.functional.conv2d(x, weight, stride=stride, padding=1)
            x = torch.relu(x) if index < 3 else x
        return x.amax((2, 3))[:, 0]

    x = torch.tensor(image.transpose(2, 0, 1)[None])
    mask = torch.tensor(np.array(player))[None, None]
    with torch.no_grad():
        return timed(
            lambda: ShapleyValueSampling(forward).attribute(
                x, baselines=0.5, feature_mask=mask, n_samples=32, perturbations_per_eval=8
            ).numpy(),
            1,
        )  # fmt: skip


def memory(repeats: int) -> dict:
    """Temporary bytes of the streaming program."""
    result = {}
    for n in (16, 18, 20, 22):
        run = jax.jit(
            lambda w, n=n: exact_shapley(game, n, args=(w,), keep_table=False).values
        )
        analysis = run.lower(draw(n)).compile().memory_analysis()
        result[f"n={n}"] = int(analysis.temp_size_in_bytes)
    return result


PARTS = {
    "free": free_games,
    "grouped": grouped,
    "interactions": pair_interactions,
    "sampled": sampled,
    "network": network,
    "streaming_bytes": memory,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", default=",".join(PARTS))
    flags = parser.parse_args()
    found = {name: PARTS[name](flags.repeats) for name in flags.only.split(",")}
    versions = {"jax": jax.__version__, "python": sys.version.split()[0]}
    print(json.dumps(dict(versions=versions, skipped=SKIPPED, **found), indent=1))


if __name__ == "__main__":
    main()
