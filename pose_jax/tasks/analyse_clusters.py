"""The study `clusters`: what a tap groups together, and whether the groups mean anything."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from pose_jax import geometry
from pose_jax.analysis import attributes, clusters, taps
from pose_jax.data.pipeline import crop_matrix
from pose_jax.tasks.analyse_context import Context, Split, people_attributes
from pose_jax.tasks.arrays import plain, save_arrays
from pose_jax.writer import is_main_process, say, write_json

LIMIT = 10_000
"""People that are clustered; more are thinned evenly, as in the thesis."""

NEAREST = 6
THUMBNAIL_PX = 48


def run(context: Context) -> None:
    """Write `clusters.json`, `clusters.npz` (labels, views, thumbnails) for the first split.

    Raises:
      ValueError: a tap that does not exist, fewer people than clusters.
    """
    section, trained, split = context.section, context.trained, context.splits[0]
    tap = taps.require_tap(trained.recipe, section.tap)
    clusters.check_view(section.view)
    question = context.question(
        "labelled", "clusters", "restarts", "view", "thumbnails", tap=tap
    )
    if context.finished("clusters", question, "clusters.npz"):
        say("clusters: finished before")
        return
    store = context.latents(split, tap)
    if not is_main_process():
        return
    index = store.rows(section.labelled)
    if len(index) > LIMIT:
        index = index[np.linspace(0, len(index) - 1, LIMIT).astype(int)]
    rows = split.rows[index]
    x = store.read(index)
    say(f"clusters: k-means on {len(x)} x {x.shape[1]} values of {tap}")
    found = clusters.kmeans(
        x, section.clusters, restarts=section.restarts, seed=section.seed
    )
    silhouettes = clusters.silhouettes(
        x, {k: c.labels for k, c in found.items()}, seed=section.seed
    )
    described = people_attributes(context, split, index)
    binned = attributes.binned(described)
    means = {k: float(np.nanmean(s)) for k, s in silhouettes.items()}
    best = max(means, key=lambda k: means[k])
    record: dict[str, Any] = {
        "question": question,
        "tap": tap,
        "protocol": (
            f"k-means, {section.restarts} restarts, on the raw values of {tap} "
            f"({x.shape[1]}) of {len(x)} people of {split.source.name}, "
            f"{section.labelled} labelled, step {trained.step}; silhouette Euclidean"
        ),
        "best": best,
        "counts": {
            str(k): {
                "sizes": np.bincount(c.labels).tolist(),
                "inertia": c.inertia,
                "stability": plain(np.array(c.stability)),
                "silhouette": means[k],
                "below_zero": int((silhouettes[k] < 0).sum()),
                "agreement": clusters.agreement(c.labels, binned, seed=section.seed),
            }
            for k, c in found.items()
        },
    }
    chosen = found[best]
    record["profiles"] = _profiles(chosen.labels, described)
    smallest = int(np.bincount(chosen.labels).min())
    nearest = clusters.nearest_to_centres(x, chosen, min(NEAREST, smallest))
    record["nearest_ids"] = [
        [str(split.source.person(int(rows[i])).id) for i in row] for row in nearest
    ]
    arrays = {f"labels_{k}": c.labels for k, c in found.items()}
    arrays |= {f"silhouette_{k}": s for k, s in silhouettes.items()}
    people = [split.people.people[i] for i in index]
    arrays["id"] = np.array([str(p.id) for p in people])
    arrays["image_id"] = np.array([str(p.image_id) for p in people])
    arrays["misplaced"] = clusters.misplaced(silhouettes[best], chosen.labels)
    arrays["nearest_crops"] = np.stack(
        [_crops(context, split, rows[np.asarray(row)], 96) for row in nearest]
    )
    views, shares = _views(context, split, x, rows, chosen)
    record["view_shares"] = shares
    save_arrays(context.folder / "clusters.npz", arrays | views)
    write_json(context.folder / "clusters.json", record)
    say(
        f"clusters: best silhouette {means[best]:.3f} at K = {best}, stability "
        f"{chosen.stability:.2f}"
    )


def _profiles(labels, described) -> dict[str, dict[str, Any]]:
    """Mean of every attribute per cluster; angles as the direction of the mean vector."""
    result = {}
    for name, values in described.items():
        means = []
        for g in range(labels.max() + 1):
            mine = values[(labels == g) & ~np.isnan(values)]
            if name.endswith(attributes.ANGLE) and len(mine):
                mean = float(np.arctan2(np.sin(mine).mean(), np.cos(mine).mean()))
            else:
                mean = float(mine.mean()) if len(mine) else None
            means.append(mean)
        result[name] = {str(g): m for g, m in enumerate(means)}
    return result


def _views(context, split: Split, x, rows, chosen):
    """2-D views, of everybody and of each cluster by itself, with thumbnails of some people:
    positions and thumbnails carry the same numbers (the thesis's helper mixed them)."""
    section = context.section
    generator = np.random.default_rng(section.seed)
    arrays, shares = {}, {}
    groups = {"all": np.arange(len(x))}
    groups |= {
        str(g): np.flatnonzero(chosen.labels == g) for g in range(len(chosen.centres))
    }
    for name, members in groups.items():
        if len(members) < 3:
            continue
        places, explained = clusters.view(x[members], method=section.view)
        shares[name] = None if explained is None else plain(np.asarray(explained))
        count = min(section.thumbnails, len(members))
        picked = np.sort(generator.choice(len(members), count, replace=False))
        arrays[f"view_{name}"] = places.astype(np.float32)
        arrays[f"view_{name}_members"] = members
        arrays[f"view_{name}_picked"] = picked
        arrays[f"view_{name}_thumbnails"] = _crops(
            context, split, rows[members[picked]], THUMBNAIL_PX
        )
    arrays["chosen_labels"] = chosen.labels
    return arrays, shares


def _crops(context, split: Split, rows, side: int) -> np.ndarray:
    """Square pictures of people, `[n, side, side, 3]` uint8."""
    recipe, size = context.trained.recipe, context.trained.recipe.spec.size
    found = []
    for row in rows:
        matrix = crop_matrix(split.source.person(int(row)), recipe.view)
        crop = geometry.warp(split.source.image(int(row)), matrix, size)
        found.append(cv2.resize(crop, (side, side), interpolation=cv2.INTER_AREA))
    return np.stack(found)
