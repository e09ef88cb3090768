"""Crops per second on the host: this pipeline and a torch DataLoader, side by side.

    POSE_JAX_DATA=... python tests/benchmarks/host_pipeline.py [--samples 400] [--repeats 3]

Prints one JSON object. Both sides draw the same rows and the same augmentation matrices; the
torch side then does what pose toolboxes usually do on the host (`cv2.imread`, one affine
warp, float32 normalisation, a Gaussian target per joint), while this pipeline hands uint8
crops and keypoints to the device, which does the rest inside the training step.

- `per_core`: samples per CPU second of one thread, without any loader. `crops` reads the
  crops store, `raw` the COCO photos, `torch` the photos by the toolbox way.
- `end_to_end`: samples per second of wall time through `train_iterator` and `DataLoader`.

The sides take turns; the median of the repeats is reported.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import cv2
import numpy as np
import torch
from absl import flags

from pose_jax import config, data, skeletons
from pose_jax.data import pipeline
from pose_jax.data.augment import Augment, sample_matrix, transform_person
from pose_jax.pixels import IMAGENET_MEAN, IMAGENET_STD, InputSpec
from pose_jax.tasks import prepare

AUGMENT = Augment(flip=0.5, rotation_deg=30, scale=0.25, shift=0.05, half_body=0.2)
BATCH = 32


class Toolbox(torch.utils.data.Dataset):
    """A top-down pose data set as the usual toolboxes write it."""

    def __init__(self, source, size: int):
        self.source, self.size = source, size
        self.spec = InputSpec(size=(size, size))
        self.mean = torch.tensor(IMAGENET_MEAN)[:, None, None]
        self.std = torch.tensor(IMAGENET_STD)[:, None, None]

    def __len__(self):
        return len(self.source)

    def __getitem__(self, row):
        return self.sample(row, np.random.default_rng(row))

    def sample(self, row, generator):
        person, skeleton = self.source.person(row), self.source.skeleton
        matrix, flip = sample_matrix(
            person, skeleton, self.spec, AUGMENT, unit=True, generator=generator
        )
        flags_ = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
        image = cv2.imread(str(self.source.path(row)), flags_)
        image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
        image = cv2.warpAffine(
            image, matrix[:2], (self.size, self.size), flags=cv2.INTER_LINEAR
        )
        pixels = torch.from_numpy(image.transpose(2, 0, 1)).float().div(255)
        pixels = (pixels - self.mean) / self.std
        points, visible = transform_person(
            person, skeleton, matrix, (self.size, self.size), flip=flip
        )
        target, weight = msra_target(points / 4, visible > 0, self.size // 4)
        return pixels, torch.from_numpy(target), torch.from_numpy(weight)


def msra_target(points, labelled, side: int, sigma: float = 2.0):
    """A Gaussian around the nearest cell, 3 sigma wide (Xiao et al. 2018)."""
    target = np.zeros((len(points), side, side), np.float32)
    weight = labelled.astype(np.float32)
    reach = int(3 * sigma)
    for joint, (x, y) in enumerate(points):
        x, y = int(x + 0.5), int(y + 0.5)
        if not weight[joint] or not (-reach <= x < side + reach > y >= -reach):
            weight[joint] = 0
            continue
        grid = np.arange(2 * reach + 1, dtype=np.float32) - reach
        patch = np.exp(-(grid**2 + grid[:, None] ** 2) / (2 * sigma**2))
        x0, x1 = max(0, x - reach), min(side, x + reach + 1)
        y0, y1 = max(0, y - reach), min(side, y + reach + 1)
        target[joint, y0:y1, x0:x1] = patch[
            y0 - y + reach : y1 - y + reach, x0 - x + reach : x1 - x + reach
        ]
    return target, weight


def view(size: int) -> pipeline.View:
    return pipeline.View(InputSpec(size=(size, size)), True, skeletons.COCO)


def cpu_rate(sample, people: int, count: int) -> float:
    """Samples per CPU second."""
    generator = np.random.default_rng(0)
    rows = generator.integers(0, people, count)
    start = time.process_time()
    for row in rows:
        sample(int(row), generator)
    return count / (time.process_time() - start)


def wall_rate(batches, count: int) -> float:
    """Samples per second, after a warm-up."""
    for _ in range(4):
        next(batches)
    start = time.perf_counter()
    for _ in range(count // BATCH):
        next(batches)
    return count // BATCH * BATCH / (time.perf_counter() - start)


def endless(loader):
    while True:
        yield from loader


def per_core(sources, size: int, count: int):
    ours, toolbox = view(size), Toolbox(sources["raw"], size)

    def make(source):
        return lambda row, g: pipeline.make_sample(source, row, ours, AUGMENT, g)

    sides = {name: make(source) for name, source in sources.items()}
    sides["torch"] = toolbox.sample
    return {
        name: (lambda s=sample: cpu_rate(s, len(sources["raw"]), count))
        for name, sample in sides.items()
    }


def end_to_end(sources, size: int, count: int):
    runs = {}
    for name, source in sources.items():
        for threads, workers in ((1, 0), (2, 0), (4, 0), (1, 2)):

            def run(source=source, threads=threads, workers=workers):
                batches = pipeline.train_iterator(
                    source, view(size), AUGMENT,
                    batch=BATCH, seed=0, threads=threads, workers=workers,
                )  # fmt: skip
                return wall_rate(batches, count)

            runs[f"{name}, threads {threads}, workers {workers}"] = run
    for workers in (0, 2):

        def torch_run(workers=workers):
            loader = torch.utils.data.DataLoader(
                Toolbox(sources["raw"], size),
                batch_size=BATCH, shuffle=True, drop_last=True, num_workers=workers,
                persistent_workers=workers > 0,
            )  # fmt: skip
            return wall_rate(endless(loader), count)

        runs[f"torch, workers {workers}"] = torch_run
    return runs


def measure(runs, repeats: int) -> dict[str, int]:
    """Median of runs that take turns."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            found[name].append(run())
    return {name: round(statistics.median(values)) for name, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=400)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 256])
    parser.add_argument("--crop-side", type=int, default=300)
    arguments = parser.parse_args()
    if not os.environ.get("POSE_JAX_DATA"):
        parser.error("set POSE_JAX_DATA to the folder of data sets")
    flags.FLAGS.mark_as_parsed()  # Grain's workers read absl flags.
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    root = Path(os.environ["POSE_JAX_DATA"])
    coco = config.source(
        "coco", path="coco17/person_keypoints_train.json", images="coco17/images"
    )
    with tempfile.TemporaryDirectory() as folder:
        c = config.default()
        c.prepare.update(
            source=coco, path=f"{folder}/store", crop_side_px=arguments.crop_side
        )
        start = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):
            prepare.run(c, folder)
        seconds = time.perf_counter() - start
        stored = config.source("crops", path=c.prepare.path)
        sources = {
            name: data.open_source(section, root=root, skeleton="coco")
            for name, section in (("crops", stored), ("raw", coco))
        }
        result = {
            "people": len(sources["raw"]),
            "crop_side_px": arguments.crop_side,
            "prepare_seconds": round(seconds, 2),
            "cpus": os.cpu_count(),
            "load": [round(v, 1) for v in os.getloadavg()],
            "opencv": cv2.__version__,
            "torch": torch.__version__,
            "per_core": {},
            "end_to_end": {},
        }
        for size in arguments.sizes:
            cores = measure(
                per_core(sources, size, arguments.samples), arguments.repeats
            )
            cores |= {
                f"{name} / torch": round(cores[name] / cores["torch"], 2)
                for name in sources
            }
            result["per_core"][size] = cores
            result["end_to_end"][size] = measure(
                end_to_end(sources, size, arguments.samples), arguments.repeats
            )
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
