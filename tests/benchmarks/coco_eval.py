"""Time and agreement of `coco_ap` and pycocotools on a set the size of COCO val2017.

    python tests/benchmarks/coco_eval.py [--images 5000] [--results 104125]

Prints one JSON object. Both evaluators get the same parsed rows in one process; copying
the rows for pycocotools (it writes into them) is not timed, its own loading is.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import time

import numpy as np
from faster_coco_eval import __version__ as faster_version
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pose_jax import skeletons
from pose_jax.metrics.coco_ap import coco_ap

KEYS = ("AP", "AP50", "AP75", "AP_M", "AP_L", "AR", "AR50", "AR75", "AR_M", "AR_L")


def synthetic(images: int, results: int, *, seed: int = 0) -> tuple[dict, list[dict]]:
    """People in images and results around and beside them, as parsed JSON."""
    rng = np.random.default_rng(seed)
    k = skeletons.COCO.num_keypoints
    people = rng.poisson(2.2, images)
    annotations, rows = [], []
    extra = rng.multinomial(results, np.full(images, 1 / images))
    for image in range(1, images + 1):
        poses = []
        for _ in range(people[image - 1]):
            box = np.append(rng.uniform(0, 300, 2), rng.uniform(20, 300, 2))
            points = np.round(box[:2] + rng.random((k, 2)) * box[2:])
            seen = rng.choice(3, k, p=(0.35, 0.1, 0.55)) * (rng.random() < 0.7)
            poses.append((points, box))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": 1,
                    "keypoints": np.c_[points, seen].astype(int).ravel().tolist(),
                    "num_keypoints": int(np.sum(seen > 0)),
                    "bbox": box.tolist(),
                    "area": float(0.5 * box[2] * box[3]),
                    "iscrowd": int(rng.random() < 0.02),
                }
            )
        for _ in range(extra[image - 1]):
            near = poses and rng.random() < 0.3
            if near:
                points, box = poses[rng.integers(len(poses))]
                spread = rng.uniform(0.001, 0.1) * np.sqrt(box[2] * box[3])
            else:
                points, spread = rng.uniform(0, 500, (k, 2)), 1.0
            moved = points + rng.normal(0, spread, (k, 2))
            triples = np.c_[moved, rng.random(k)].round(3).ravel().tolist()
            score = float(rng.random() ** (1 if near else 6))
            rows.append(
                {"image_id": image, "category_id": 1, "keypoints": triples,
                 "score": score}
            )  # fmt: skip
    categories = [{"id": 1, "name": "person", "keypoints": skeletons.COCO.keypoints}]
    shapes = [{"id": i, "height": 640, "width": 640} for i in range(1, images + 1)]
    truth = {"images": shapes, "annotations": annotations, "categories": categories}
    return truth, rows


def by_pycocotools(truth: dict, rows: list[dict]) -> list[float]:
    with contextlib.redirect_stdout(io.StringIO()):
        ground = COCO()
        ground.dataset = truth
        ground.createIndex()
        evaluator = COCOeval(ground, ground.loadRes(rows), "keypoints")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return [float(x) for x in evaluator.stats]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--results", type=int, default=104_125)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    truth, rows = synthetic(args.images, args.results)
    ours, theirs, largest = [], [], 0.0
    for _ in range(args.repeats):
        start = time.perf_counter()
        result = coco_ap(truth, rows, sigmas=skeletons.COCO.sigmas)
        ours.append(time.perf_counter() - start)
        copies = copy.deepcopy(truth), copy.deepcopy(rows)
        start = time.perf_counter()
        stats = by_pycocotools(*copies)
        theirs.append(time.perf_counter() - start)
        largest = max(largest, *(abs(result[k] - x) for k, x in zip(KEYS, stats)))
    print(
        json.dumps(
            {
                "benchmark": "coco_eval",
                "images": args.images,
                "annotations": len(truth["annotations"]),
                "results": len(rows),
                "repeats": args.repeats,
                "faster_coco_eval": faster_version,
                "coco_ap_s": round(float(np.median(ours)), 3),
                "pycocotools_s": round(float(np.median(theirs)), 3),
                "ratio": round(float(np.median(theirs) / np.median(ours)), 2),
                "max_abs_difference": largest,
                "AP": result["AP"],
            }
        )
    )


if __name__ == "__main__":
    main()
