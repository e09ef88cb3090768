"""The study `latent`: principal components of a tap, the walk along them, their names."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from pose_jax import geometry
from pose_jax.analysis import attributes, latent, pca, taps
from pose_jax.config import UserError
from pose_jax.tasks import analyse_interventions
from pose_jax.tasks.analyse_context import (
    Context,
    Split,
    people_attributes,
    select,
    spread,
)
from pose_jax.tasks.arrays import plain, save_arrays
from pose_jax.writer import is_main_process, say, write_json

MEAN_IMAGE_PEOPLE = 512
STORED = 200
"""Components that `latent.npz` keeps."""


def run(context: Context) -> None:
    """Write `latent.json` and `latent.npz`; the components come from the first split, the
    network's answers from the last.

    Raises:
      ValueError: a tap that does not exist, fewer people than components.
      UserError: none of the components asked for is there.
    """
    section, trained = context.section, context.trained
    tap = taps.require_tap(trained.recipe, section.tap)
    fitted_on, judged_on = context.splits[0], context.splits[-1]
    gates = context.gates()
    question = context.question(
        "labelled", "components", "steps", "ranks", "displaced",
        tap=tap, gates=list(gates),
    )  # fmt: skip
    if context.finished("latent", question, "latent.npz"):
        say("latent: finished before")
        return
    store = context.latents(fitted_on, tap)  # Every process collects its parts.
    if not is_main_process():
        return
    index = store.rows(section.labelled)
    parts = store.selected_parts(index)
    say(f"latent: PCA of {len(index)} x {store.size} values of {tap}")
    fitted = pca.fit(parts, seed=section.seed)
    numbers, dropped = _numbers(section.components, len(fitted.components))
    if dropped:
        say(
            f"latent: components {', '.join(map(str, dropped))} are left out; {len(index)} "
            f"people and {store.size} values have {len(fitted.components)}"
        )
    record: dict[str, Any] = {
        "question": question,
        "tap": tap,
        "shape": list(store.shape),
        "protocol": (
            f"PCA (centred, not scaled) of {len(index)} people of "
            f"{fitted_on.source.name}, {section.labelled} labelled; answers on "
            f"{len(judged_on.rows)} people of {judged_on.source.name}: {context.protocol}"
        ),
        "pca": _spectrum(fitted),
        "walk": {
            "components": numbers,
            "left_out": dropped,
            "steps": list(section.steps),
            **_nearest(context, fitted_on, fitted, parts, index, numbers),
        },
    }
    arrays = _walk_arrays(context, fitted_on, fitted, record["walk"], tap, gates)
    record["displacement"] = analyse_interventions.displacement(
        context, judged_on, fitted, numbers, tap, gates
    )
    record["projection"] = analyse_interventions.projection(
        context, judged_on, fitted, tap, gates
    )
    record["names"] = _names(context, fitted_on, fitted, parts, index, numbers)
    save_arrays(context.folder / "latent.npz", arrays)
    write_json(context.folder / "latent.json", record)
    say(
        f"latent: {record['pca']['components_for_95']} of {store.size} components hold 95 % "
        f"of the variance of {tap}"
    )


def _numbers(asked: tuple[int, ...], kept: int) -> tuple[list[int], list[int]]:
    """(components by number from 1, those that are not there); -1 is the last one.

    Raises:
      UserError: none is there.
    """
    found = [kept if n == -1 else n for n in asked]
    there = list(dict.fromkeys(n for n in found if 1 <= n <= kept))
    if not there:
        raise UserError(
            f"analyse.components={tuple(asked)}: there are components 1 to {kept}"
        )
    return there, [n for n in asked if n != -1 and n not in there]


def _spectrum(fitted: pca.PCA) -> dict[str, Any]:
    shares = fitted.shares
    return {
        "method": fitted.method,
        "samples": fitted.count,
        "values": len(fitted.mean),
        "shares": plain(shares[:STORED]),
        "cumulative": plain(np.cumsum(shares)[:1000]),
        "components_for_95": fitted.components_for(0.95),
        "components_for_99": fitted.components_for(0.99),
    }


def _points(fitted: pca.PCA, numbers, steps) -> np.ndarray:
    return pca.walk(fitted, numbers, tuple(steps)).reshape(-1, len(fitted.mean))


def _nearest(context, split: Split, fitted, parts, index, numbers) -> dict[str, Any]:
    """The thesis's reading: whose latent is nearest to each point of the walk."""
    steps = context.section.steps
    found, distances = pca.nearest(parts, _points(fitted, numbers, steps))
    at_mean, mean_distance = pca.nearest(parts, fitted.mean[None])
    shape = (len(numbers), len(steps))
    ids = np.array([str(split.people.people[i].id) for i in index[found]])
    return {
        "nearest_rows": index[found].reshape(shape).tolist(),
        "nearest_ids": ids.reshape(shape).tolist(),
        "nearest_distance": plain(distances.reshape(shape)),
        "nearest_to_mean": int(index[int(at_mean[0])]),
        "mean_distance": float(mean_distance[0]),
        "step_length": plain(np.sqrt(fitted.variance[np.array(numbers) - 1])),
        "stays": plain((found == at_mean[0]).reshape(shape).mean(1)),
    }


def _walk_arrays(context, split: Split, fitted, walk, tap, gates):
    """Skeletons of the walk: the nearest people's labels, and what the network decodes."""
    recipe = context.trained.recipe
    points = _points(fitted, walk["components"], context.section.steps)
    rows = np.array(walk["nearest_rows"])
    people = select(split.people, rows.ravel())
    k = recipe.skeleton.num_keypoints
    mean_image = _mean_image(context, split)
    true = geometry.transform(people.true, people.matrices)
    arrays = {
        "nearest_keypoints": true.reshape(*rows.shape, k, 2),
        "nearest_visible": people.visible.reshape(*rows.shape, k),
        "mean_image": mean_image.astype(np.uint8),
        "size": np.array(recipe.spec.size),
        "mean": fitted.mean.astype(np.float32),
        "components": fitted.components[:STORED].astype(np.float32),
        "variance": fitted.variance,
    }
    for name, closed in analyse_interventions.readings(gates, "mean_image"):
        decode = jax.jit(latent.make_decode(recipe, tap, closed))
        found = decode(context.trained.variables, mean_image, points.astype(np.float32))
        for field in ("keypoints", "peak"):
            value = np.asarray(found[field])
            arrays[f"{name}_{field}"] = value.reshape(*rows.shape, *value.shape[1:])
    return arrays


def _mean_image(context: Context, split: Split) -> np.ndarray:
    rows = spread(split.rows, MEAN_IMAGE_PEOPLE).tolist()
    recipe = context.trained.recipe
    total = np.zeros((*recipe.spec.size, 3))
    for sent, real in taps.batches(split.source, recipe, rows, context.batch):
        total += sent["image"][:real].sum(0, dtype=np.float64)
    return (total / len(rows)).astype(np.float32)


def _names(context, split: Split, fitted, parts, index, numbers) -> dict[str, Any]:
    """Correlations of people's coordinates with what their labels say."""
    found = people_attributes(context, split, index)
    wanted = [n for n in numbers if n <= STORED]
    kept = np.array(wanted, int) - 1
    few = dataclasses.replace(
        fitted, components=fitted.components[kept], variance=fitted.variance[kept]
    )
    scores = few.project(parts)
    records = attributes.correlate(
        np.asarray(scores, np.float64),
        found,
        groups=[split.people.groups[i] for i in index],
        resamples=min(context.section.resamples, 500),
        seed=context.section.seed,
    )
    for entry in records:
        entry["component"] = wanted[entry["component"] - 1]
    return {
        "people": len(index),
        "tests": len(wanted) * len(found),
        "correlations": [
            {k: v if isinstance(v, str) else _number(v) for k, v in r.items()}
            for r in records
        ],
    }


def _number(value: Any) -> Any:
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not np.isfinite(value) else value
