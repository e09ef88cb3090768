"""What the network answers when its latent is moved, or cut down to a few components."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from pose_jax import sharding
from pose_jax.analysis import latent, pca, taps
from pose_jax.intervals import ratio_intervals
from pose_jax.tasks.analyse_context import Context, Split, pck, people_of, spread
from pose_jax.writer import ProgressBar


def readings(gates: tuple[str, ...], open_name: str) -> list[tuple[str, tuple]]:
    """(name, gates that are closed): with the skips as they are, and without."""
    closed = [("skips_closed", gates)] if gates else []
    return [(open_name, ()), *closed]


def displacement(
    context: Context,
    split: Split,
    fitted: pca.PCA,
    numbers: list[int],
    tap: str,
    gates: tuple[str, ...],
) -> dict[str, Any]:
    """How far joints go per unit step (one standard deviation) along each component, in
    shares of the crop's side; mean of both directions."""
    trained, mesh = context.trained, sharding.local_mesh()
    recipe, rows = trained.recipe, spread(split.rows, context.section.displaced)
    index = np.array(numbers) - 1
    unit = np.sqrt(fitted.variance[index])[:, None] * fitted.components[index]
    moves = np.concatenate([unit, -unit]).astype(np.float32)
    people = people_of(trained, split.source, rows)
    batch = sharding.round_up(min(16, len(rows)), mesh)
    names = recipe.skeleton.keypoints
    record: dict[str, Any] = {"components": numbers, "people": len(rows)}
    labelled = people.labelled
    asked = np.tile(labelled.sum(1)[:, None], (1, len(numbers)))
    for name, closed in readings(gates, "own_skips"):
        displace = latent.make_displacement(recipe, tap, closed)
        compiled = taps.compile_over(displace, mesh)
        found = [
            sharding.to_host(compiled(trained.variables, sent, moves))[:, :real]
            for sent, real in taps.batches(split.source, recipe, rows.tolist(), batch)
        ]
        moved = np.concatenate(found, 1) / max(recipe.spec.size)
        both = moved.reshape(2, len(numbers), *moved.shape[1:]).mean(0) * labelled
        tops = both.sum(2).T
        low, high = ratio_intervals(
            tops, asked, people.groups, resamples=context.section.resamples
        )
        record[name] = [
            {
                "value": float(tops[:, n].sum() / labelled.sum()),
                "low": float(low[n]),
                "high": float(high[n]),
                "joints": {
                    joint: float(both[n, :, j].sum() / labelled[:, j].sum())
                    for j, joint in enumerate(names)
                    if labelled[:, j].any()
                },
            }
            for n in range(len(numbers))
        ]
    return record


def projection(
    context: Context,
    split: Split,
    fitted: pca.PCA,
    tap: str,
    gates: tuple[str, ...],
) -> dict[str, Any]:
    """PCK from the first r components alone, and without them."""
    trained, mesh = context.trained, sharding.local_mesh()
    recipe, total = trained.recipe, len(fitted.components)
    ranks = sorted({min(r, total) for r in context.section.ranks} | {total})
    kept = np.arange(total)[None] < np.array(ranks)[:, None]
    replicated = sharding.replicated(mesh)
    variables = jax.device_put(trained.variables, replicated)
    mean, components = fitted.mean.astype("f4"), fitted.components.astype("f4")
    pack = jax.device_put((mean, components, kept), replicated)
    batch = sharding.round_up(min(8, len(split.rows)), mesh)
    record: dict[str, Any] = {"ranks": ranks, "complete": total >= len(fitted.mean)}
    for name, closed in readings(gates, "own_skips"):
        compiled = taps.compile_over(latent.make_projection(recipe, tap, closed), mesh)
        parts: list[Any] = []
        with ProgressBar(len(split.rows), f"projection, {name}") as bar:
            for sent, real in taps.batches(
                split.source, recipe, split.rows.tolist(), batch
            ):
                found = sharding.to_host(compiled(variables, sent, *pack))
                parts.append({k: v[..., :real, :, :] for k, v in found.items()})
                bar.update(sum(p["whole"].shape[0] for p in parts))
        right = {
            field: context.right(
                np.concatenate([p[field] for p in parts], -3), split.people
            )
            for field in ("whole", "only", "without")
        }
        record[name] = {"whole": pck(right["whole"], split.people)} | {
            field: [
                {
                    "pck": pck(each, split.people),
                    **_against(context, each, right, split),
                }
                for each in right[field]
            ]
            for field in ("only", "without")
        }
    return record


def _against(
    context: Context, each: np.ndarray, right, split: Split
) -> dict[str, float]:
    found = context.difference(each, right["whole"], split.people)
    return {"minus_whole": found.pop("value"), **found}
