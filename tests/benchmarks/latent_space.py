"""Seconds and memory of the studies of a latent space: PCA, k-means, silhouettes.

    python tests/benchmarks/latent_space.py [--samples=10000] [--values=4096] [--rivals]

Prints one JSON object. The samples are clustered float32 noise on a falling spectrum, in a
memory-mapped file of several parts as collected activations are. Every row runs in a process
of its own, whose peak is that of nothing else; `base_mib` has the libraries and the samples in
it and no study. `--rivals` runs plain scikit-learn beside (`PCA()`, `KMeans(K, n_init=10)` for
every K, `silhouette_samples` for every K).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
COUNTS = range(2, 11)
PARTS = 4


def write(folder: Path, samples: int, values: int) -> None:
    """Ten Gaussian clusters that overlap, a spectrum as 1 / sqrt(i), parts on disk."""
    generator = np.random.default_rng(0)
    scale = (1 / np.sqrt(1 + np.arange(values))).astype(np.float32)
    centres = generator.standard_normal((10, values), np.float32) * scale
    for part, rows in enumerate(np.array_split(np.arange(samples), PARTS)):
        x = generator.standard_normal((len(rows), values), np.float32) * scale
        np.save(
            folder / f"{part}.npy", x + centres[generator.integers(10, size=len(rows))]
        )


def load(folder: Path) -> list[np.ndarray]:
    return [np.load(folder / f"{part}.npy", mmap_mode="r") for part in range(PARTS)]


def labelings(samples: int) -> dict[int, np.ndarray]:
    generator = np.random.default_rng(1)
    return {count: generator.integers(count, size=samples) for count in COUNTS}


def pca(parts):
    from pose_jax.analysis import pca

    found = pca.fit(parts)
    return {"method": found.method, "for_95_percent": found.components_for(0.95)}


def kmeans(parts):
    from pose_jax.analysis import clusters

    found = clusters.kmeans(np.concatenate(parts), COUNTS)
    return {"inertia": [round(found[count].inertia, 3) for count in COUNTS]}


def silhouettes(parts):
    from pose_jax.analysis import clusters

    x = np.concatenate(parts)
    found = clusters.silhouettes(x, labelings(len(x)))
    return {"mean": [round(float(found[count].mean()), 6) for count in COUNTS]}


def sklearn_pca(parts):
    from sklearn.decomposition import PCA

    found = PCA().fit(np.concatenate(parts))
    total = np.cumsum(found.explained_variance_ratio_)
    return {"for_95_percent": int(np.searchsorted(total, 0.95)) + 1}


def sklearn_kmeans(parts):
    from sklearn.cluster import KMeans

    x = np.concatenate(parts)
    fits = [
        KMeans(count, n_init=10, max_iter=1000, random_state=0).fit(x)
        for count in COUNTS
    ]
    return {"inertia": [round(float(fit.inertia_), 3) for fit in fits]}


def sklearn_silhouettes(parts):
    from sklearn.metrics import silhouette_samples

    x = np.concatenate(parts)
    means = [silhouette_samples(x, v).mean() for v in labelings(len(x)).values()]
    return {"mean": [round(float(m), 6) for m in means]}


def base(parts):
    import sklearn.cluster  # noqa: F401
    import sklearn.decomposition
    import sklearn.metrics  # noqa: F401

    from pose_jax.analysis import clusters, pca  # noqa: F401

    return {"bytes": int(np.concatenate(parts).nbytes)}


OURS = {"pca": pca, "kmeans": kmeans, "silhouettes": silhouettes}
RIVALS = {
    "sklearn_pca": sklearn_pca,
    "sklearn_kmeans": sklearn_kmeans,
    "sklearn_silhouettes": sklearn_silhouettes,
}


def row(name: str, folder: str) -> dict:
    """One study, in the process that measures it."""
    function = {"base": base, **OURS, **RIVALS}[name]
    parts = load(Path(folder))
    function([part[:64] for part in parts] if name != "base" else parts)  # Imports.
    start = time.perf_counter()
    result = function(parts)
    seconds = round(time.perf_counter() - start, 2)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return dict(seconds=seconds, peak_mib=peak, **result)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--values", type=int, default=4096)
    parser.add_argument("--rivals", action="store_true")
    parser.add_argument("--row", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.row:
        print(json.dumps(row(*args.row)))
        return
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), args.samples, args.values)
        rows = {}
        for name in ["base", *OURS, *(RIVALS if args.rivals else ())]:
            done = subprocess.run(
                [sys.executable, __file__, "--row", name, folder],
                env=environment, capture_output=True, text=True,
            )  # fmt: skip
            rows[name] = json.loads(done.stdout) if done.stdout else done.stderr[-300:]
    import sklearn

    print(
        json.dumps(
            {
                "benchmark": "latent_space",
                "samples": args.samples,
                "values": args.values,
                "cores": os.cpu_count(),
                "scikit_learn": sklearn.__version__,
                "base_mib": rows.pop("base")["peak_mib"],
                **rows,
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
