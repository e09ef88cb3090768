"""What looking inside costs: all subsets of skip gates, and collecting latents.

    python tests/benchmarks/inside.py [--people=256] [--latents=10000]

Skips: the program of all 2^4 subsets (keypoints, peaks, CKA sums and all) over a set of people,
against as many plain evaluations of the same people in the fastest batch. Latents: collecting
4,096 values per person into a store, against plain forward passes over the same people, and the
host memory that it adds.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time

import jax
import numpy as np
from absl import flags

from pose_jax import config, inference, sharding
from pose_jax.analysis import skips, taps
from pose_jax.data.sources import Person
from pose_jax.models import THESIS
from pose_jax.recipe import recipe
from pose_jax.skeletons import COCO
from pose_jax.tasks.analyse_skips import batch_size
from pose_jax.tasks.latents import Trained, collect


class Noise:
    """People whose pictures cost nothing to read."""

    def __init__(self, count: int, side: int):
        self.name, self.skeleton, self.dropped = "noise", COCO, {}
        self._count, self._side = count, side
        self._image = np.random.default_rng(0).integers(
            0, 255, (side, side, 3), np.uint8
        )

    def __len__(self) -> int:
        return self._count

    def person(self, row: int) -> Person:
        points = np.random.default_rng(row).uniform(0, self._side, (17, 2))
        box = np.array([0.0, 0.0, self._side, self._side])
        return Person(row, row, "", box, points, np.full(17, 2), float(self._side**2))

    def image(self, row: int) -> np.ndarray:
        return self._image


def trained(side: int, **model) -> Trained:
    c = config.default()
    c.input.size = (side, side)
    c.model = dict(name="hourglass", **model)
    described = recipe(c)
    init = jax.jit(described.module.init)
    key = jax.random.key(0, impl="unsafe_rbg")
    variables = init(key, np.zeros((1, side, side, 3), np.float32))
    return Trained(*described.inference(variables), 1, 0)


def best(run, repeats: int) -> float:
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return min(times)


def gates(people: int) -> dict[str, float]:
    """The small thesis network at 128 px: four gates."""
    model = {**THESIS, "features": 64, "stem": (64, 64, 64)}
    network, source, mesh = (
        trained(128, **model),
        Noise(people, 160),
        sharding.local_mesh(),
    )
    names = taps.skip_taps(network.recipe)
    decoders = taps.decoder_taps(network.recipe)
    batch = batch_size(network.recipe, names)
    ablate = taps.compile_over(
        skips.make_ablation(network.recipe, names, decoders, "zero"), mesh
    )
    rows = list(range(people))

    def subsets():
        for sent, _ in taps.batches(source, network.recipe, rows, batch):
            sharding.to_host(ablate(network.variables, sent, {}))

    predict = inference.make_predict(network.recipe, flip_test=False)
    compiled = inference.compile_predict(predict, mesh)

    def plain(size):
        inference.predict_source(
            network.recipe, network.variables, source,
            mesh=mesh, batch=size, flip_test=False, compiled=compiled,
        )  # fmt: skip

    subsets()
    once = {}
    for size in (8, 16, 32, 64):
        plain(size)
        once[size] = best(lambda size=size: plain(size), 2)
    fastest = min(once.values())
    mine = best(subsets, 2)
    return {
        "people": people,
        "subsets": 2 ** len(names),
        "batch": batch,
        "all_subsets_s": mine,
        "one_evaluation_s": fastest,
        "of_as_many_evaluations": mine / (fastest * 2 ** len(names)),
    }


def latents(count: int) -> dict[str, float]:
    """A narrow network whose latent has 4,096 values."""
    network = trained(128, stacks=1, depth=1, features=16, stem=(4, 8, 16))
    source, mesh = Noise(count, 160), sharding.local_mesh()
    predict = inference.make_predict(network.recipe, flip_test=False)
    compiled = inference.compile_predict(predict, mesh)

    def plain(people):
        inference.predict_source(
            network.recipe, network.variables, people,
            mesh=mesh, batch=64, flip_test=False, compiled=compiled,
        )  # fmt: skip

    plain(Noise(64, 160))
    forward = best(lambda: plain(source), 1)
    with tempfile.TemporaryDirectory() as folder:
        place = {"stack0/bottleneck": f"{folder}/first"}
        collect(network, Noise(64, 160), place, batch=64)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        place = {"stack0/bottleneck": f"{folder}/all"}
        began = time.perf_counter()
        store = collect(network, source, place, batch=64)["stack0/bottleneck"]
        took = time.perf_counter() - began
        assert store.size == 4096 and len(store) == count
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "latents": count,
        "collect_s": took,
        "plain_forward_s": forward,
        "speed_of_forward": forward / took,
        "peak_memory_mib": after / 1024,
        "added_memory_mib": (after - before) / 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--people", type=int, default=256)
    parser.add_argument("--latents", type=int, default=10_000)
    options = parser.parse_args()
    flags.FLAGS.mark_as_parsed()
    # Latents first: the peak of memory is the process's.
    found = {"latents": latents(options.latents), "skips": gates(options.people)}
    print(json.dumps({"jax": jax.__version__, **found}, indent=1))


if __name__ == "__main__":
    main()
