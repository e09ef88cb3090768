"""The study `weights`: factors of people in the loss, from what the clusters misplace.

The thesis's future work: go on training with more weight on poses that the latent groups
wrongly. `configs/reweighting.py` trains with them and with their controls.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pose_jax import inference, sharding
from pose_jax.config import UserError
from pose_jax.intervals import mean_interval
from pose_jax.tasks.analyse_context import Context, select
from pose_jax.tasks.arrays import load_arrays, plain, save_arrays
from pose_jax.writer import is_main_process, read_json, say, write_json

CLIP = 0.5
"""Errors beyond half the box's longer side count as that: one lost limb is enough."""


def run(context: Context) -> None:
    """Write `weights-<kind>.npz` (`id`, `weight`; mean 1) for the first split:

      misplaced           1 + error / mean error for misplaced people, 1 for others,
      misplaced_shuffled  the same factors dealt out at random,
      error_all           by error for everybody, with the same standard deviation as long as
                          no factor would be negative (`spread` in weights.json says).

    Raises:
      UserError: the study `clusters` was not run before.
    """
    path = context.folder / "clusters.npz"
    if not path.exists():
        raise UserError(
            "the study 'weights' reads the clusters; put 'clusters' before it in "
            "analyse.studies"
        )
    if not is_main_process():
        return
    clusters = read_json(context.folder / "clusters.json", {}).get("question", {})
    if clusters.get("weights") != context.trained.weights:
        raise UserError(
            f"{path} is of another checkpoint; run the study 'clusters' again before 'weights'"
        )
    found = load_arrays(path)
    split, trained = context.splits[0], context.trained
    by_id = {str(p.id): n for n, p in enumerate(split.people.people)}
    missing = [i for i in found["id"].tolist() if i not in by_id]
    if missing:
        raise UserError(
            f"{path} names {len(missing)} people that are not in {split.source.name}; run "
            "the study 'clusters' again"
        )
    index = np.array([by_id[i] for i in found["id"].tolist()])
    error = _errors(context, index)
    misplaced = found["misplaced"]
    factors = make_weights(error, misplaced, seed=context.section.seed)
    for name, weight in factors.items():
        save_arrays(
            context.folder / f"weights-{name}.npz",
            {"id": found["id"], "weight": weight},
        )
    low, high = mean_interval(
        np.stack([np.where(misplaced, error, np.nan), np.where(~misplaced, error, np.nan)], 1),
        found["image_id"].tolist(),
    )  # fmt: skip
    record = {
        "people": len(index),
        "question": context.question(clusters=clusters),
        "misplaced": int(misplaced.sum()),
        "error_misplaced": _mean(error[misplaced], low[0], high[0]),
        "error_others": _mean(error[~misplaced], low[1], high[1]),
        "spread": {n: float(w.std()) for n, w in factors.items()},
        "protocol": (
            f"mean error / longer box side (at most {CLIP}) of {len(index)} people of "
            f"{split.source.name}, step {trained.step}; misplaced: silhouette below 0"
        ),
    }
    write_json(context.folder / "weights.json", record)
    say(
        f"weights: {record['misplaced']} of {len(index)} people are misplaced, see "
        "weights-*.npz"
    )


def make_weights(
    error: np.ndarray, misplaced: np.ndarray, *, seed: int
) -> dict[str, np.ndarray]:
    """Factors with mean 1.

    Raises:
      UserError: nobody is misplaced.
    """
    if not misplaced.any():
        raise UserError(
            "nobody is misplaced by these clusters: there is nothing to weigh"
        )
    relative = error / max(float(error.mean()), 1e-12)
    aimed = 1 + np.where(misplaced, relative, 0)
    aimed = aimed / aimed.mean()
    order = np.random.default_rng(seed).permutation(len(aimed))
    # The same standard deviation, so that only the aim differs.
    everybody = relative - relative.mean()
    scale = aimed.std() / max(float(everybody.std()), 1e-12)
    everybody = np.maximum(1 + scale * everybody, 0)
    return {
        "misplaced": aimed,
        "misplaced_shuffled": aimed[order],
        "error_all": everybody / everybody.mean(),
    }


def _errors(context: Context, index: np.ndarray) -> np.ndarray:
    """Mean error over labelled joints, in longer box sides."""
    split, trained = context.splits[0], context.trained
    people, mesh = select(split.people, index), sharding.local_mesh()
    answer = inference.predict_source(
        trained.recipe, trained.variables, split.source,
        mesh=mesh, batch=sharding.round_up(context.batch, mesh), flip_test=False,
        rows=split.rows[index].tolist(), alone=True,
    )  # fmt: skip
    error = np.linalg.norm(answer.keypoints - people.true, axis=-1)
    error = np.minimum(error / people.sides[:, None], CLIP)
    labelled = people.labelled
    return np.where(labelled, error, 0).sum(1) / np.maximum(labelled.sum(1), 1)


def _mean(values: np.ndarray, low: Any, high: Any) -> dict[str, Any]:
    mean = float(values.mean()) if len(values) else None
    return {"value": mean, "low": plain(np.array(low)), "high": plain(np.array(high))}
