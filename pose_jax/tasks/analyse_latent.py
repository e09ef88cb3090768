"""The study `latent`: principal components of a tap, what they do and what they are called."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from pose_jax import geometry, sharding
from pose_jax.analysis import attributes, latent, pca, taps
from pose_jax.config import UserError
from pose_jax.data.pipeline import crop_matrix
from pose_jax.intervals import paired_difference, ratio_interval
from pose_jax.metrics import pck as pck_
from pose_jax.tasks.analyse import Context, Split, finished
from pose_jax.tasks.arrays import plain, save_arrays
from pose_jax.writer import ProgressBar, is_main_process, say, write_json

NEAREST_MANY = 200
"""Components whose scores are named by correlation."""


def run(context: Context) -> None:
    """Write `latent.json` and `latent.npz`; the components come from the first split, the
    network's answers from the last.

    Raises:
      ValueError: a tap that does not exist, fewer people than components asked for.
    """
    section, trained = context.section, context.trained
    tap = taps.require_tap(trained.recipe, section.tap)
    fitted_on, judged_on = context.splits[0], context.splits[-1]
    question = {
        "weights": trained.weights,
        "tap": tap,
        **{
            name: section[name]
            for name in ("labelled", "components", "steps", "ranks", "displaced")
        },
        "people": {s.name: [s.source.name, len(s.rows)] for s in context.splits},
    }
    store = context.latents(fitted_on, tap)  # Every process collects its parts.
    if finished(context, "latent", question):
        say("latent: finished before")
        return
    if not is_main_process():
        return
    rows = np.intersect1d(store.rows(section.labelled), fitted_on.rows)
    parts = store.selected_parts(rows)
    say(f"latent: PCA of {len(rows)} x {store.size} values of {tap}")
    fitted = pca.fit(parts, seed=section.seed)
    numbers = _numbers(section.components, len(fitted.components))
    record: dict[str, Any] = {
        "question": question,
        "tap": tap,
        "shape": list(store.shape),
        "protocol": _protocol(context, fitted_on, judged_on, len(rows)),
        "pca": _spectrum(fitted),
        "walk": {"components": numbers, "steps": list(section.steps)},
    }
    gates = _gates(context)
    record["walk"] |= _nearest(context, fitted_on, fitted, parts, rows, numbers)
    arrays = _walk_arrays(context, fitted_on, fitted, record, tap, gates)
    record["displacement"] = _displacement(
        context, judged_on, fitted, numbers, tap, gates
    )
    record["projection"] = _projection(context, judged_on, fitted, tap, gates)
    record["names"] = _names(context, fitted_on, fitted, parts, rows, numbers)
    save_arrays(context.folder / "latent.npz", arrays)
    write_json(context.folder / "latent.json", record)
    say(
        f"latent: {record['pca']['components_for_95']} of {store.size} components hold 95 % "
        f"of the variance of {tap}"
    )


def _numbers(asked: tuple[int, ...], kept: int) -> list[int]:
    """Components by number from 1; -1 is the last one, others beyond the last are left out."""
    found = [kept if n == -1 else n for n in asked]
    return list(dict.fromkeys(n for n in found if 1 <= n <= kept))


def _gates(context: Context) -> tuple[str, ...]:
    try:
        return taps.skip_taps(context.trained.recipe, tuple(context.section.gates))
    except ValueError:
        return ()  # A network without skips has nothing to close.


def _protocol(context: Context, fitted_on: Split, judged_on: Split, count: int) -> str:
    return (
        f"PCA (centred, not scaled) of {count} people of {fitted_on.source.name}, "
        f"{context.section.labelled} labelled; answers on {len(judged_on.rows)} people of "
        f"{judged_on.source.name}: PCK@{context.section.threshold:g} of the longer box side, "
        f"ground-truth boxes, no flip test, step {context.trained.step}; intervals 95 %, by "
        "picture"
    )


def _spectrum(fitted: pca.PCA) -> dict[str, Any]:
    shares = fitted.shares
    return {
        "method": fitted.method,
        "samples": fitted.count,
        "values": len(fitted.mean),
        "shares": plain(shares[:200]),
        "cumulative": plain(np.cumsum(shares)[:1000]),
        "components_for_95": fitted.components_for(0.95),
        "components_for_99": fitted.components_for(0.99),
    }


def _points(fitted: pca.PCA, numbers, steps) -> np.ndarray:
    return pca.walk(fitted, numbers, tuple(steps)).reshape(-1, len(fitted.mean))


def _nearest(context, split: Split, fitted, parts, rows, numbers) -> dict[str, Any]:
    """The thesis's reading: whose latent is nearest to each point of the walk."""
    steps = context.section.steps
    points = _points(fitted, numbers, steps)
    found, distances = pca.nearest(parts, points)
    at_mean, mean_distance = pca.nearest(parts, fitted.mean[None])
    shape = (len(numbers), len(steps))
    people = [split.source.person(int(r)).id for r in rows[found]]
    return {
        "nearest_rows": rows[found].reshape(shape).tolist(),
        "nearest_ids": np.array([str(p) for p in people]).reshape(shape).tolist(),
        "nearest_distance": plain(distances.reshape(shape)),
        "nearest_to_mean": int(rows[int(at_mean[0])]),
        "mean_distance": float(mean_distance[0]),
        "step_length": plain(np.sqrt(fitted.variance[np.array(numbers) - 1])),
        "stays": plain((found == at_mean[0]).reshape(shape).mean(1)),
    }


def _walk_arrays(context, split: Split, fitted, record, tap, gates):
    """Skeletons of the walk: the nearest people's labels, and what the network decodes."""
    recipe = context.trained.recipe
    size = recipe.spec.size
    points = _points(fitted, record["walk"]["components"], context.section.steps)
    rows = np.array(record["walk"]["nearest_rows"])
    people, true, visible = context.people(split, rows.ravel())
    matrices = np.stack([crop_matrix(p, recipe.view) for p in people])
    k = recipe.skeleton.num_keypoints
    mean_image = _mean_image(context, split)
    arrays = {
        "nearest_keypoints": geometry.transform(true, matrices).reshape(
            *rows.shape, k, 2
        ),
        "nearest_visible": visible.reshape(*rows.shape, k),
        "mean_image": mean_image.astype(np.uint8),
        "size": np.array(size),
        "mean": fitted.mean.astype(np.float32),
        "components": fitted.components[:NEAREST_MANY].astype(np.float32),
        "variance": fitted.variance,
    }
    for name, closed in (("mean_image", ()), ("skips_closed", gates)):
        if name == "skips_closed" and not gates:
            continue
        decode = jax.jit(latent.make_decode(recipe, tap, closed))
        found = decode(context.trained.variables, mean_image, points.astype(np.float32))
        for field in ("keypoints", "peak"):
            value = np.asarray(found[field])
            arrays[f"{name}_{field}"] = value.reshape(*rows.shape, *value.shape[1:])
    return arrays


def _mean_image(context: Context, split: Split, count: int = 512) -> np.ndarray:
    picked = np.linspace(0, len(split.rows) - 1, min(count, len(split.rows)))
    rows = split.rows[picked.astype(int)].tolist()
    total = np.zeros((*context.trained.recipe.spec.size, 3))
    for sent, real in taps.batches(
        split.source, context.trained.recipe, rows, context.batch
    ):
        total += sent["image"][:real].sum(0, dtype=np.float64)
    return (total / len(rows)).astype(np.float32)


def _displacement(context, split: Split, fitted, numbers, tap, gates):
    """How far joints go per unit step (one standard deviation) along each component, in
    shares of the crop's side; both directions."""
    trained, mesh = context.trained, sharding.local_mesh()
    recipe = trained.recipe
    picked = np.linspace(
        0, len(split.rows) - 1, min(context.section.displaced, len(split.rows))
    )
    rows = split.rows[picked.astype(int)]
    index = np.array(numbers) - 1
    unit = np.sqrt(fitted.variance[index])[:, None] * fitted.components[index]
    moves = np.concatenate([unit, -unit]).astype(np.float32)
    people, _, visible = context.people(split, rows)
    labelled, groups = visible > 0, [p.image_id for p in people]
    batch = sharding.round_up(min(16, len(rows)), mesh)
    names = recipe.skeleton.keypoints
    record: dict[str, Any] = {"components": numbers, "people": len(rows)}
    for name, closed in (("own_skips", ()), ("skips_closed", gates)):
        if name == "skips_closed" and not gates:
            continue
        compiled = taps.compile_over(
            latent.make_displacement(recipe, tap, closed), mesh
        )
        found = [
            sharding.to_host(compiled(trained.variables, sent, moves))[:, :real]
            for sent, real in taps.batches(split.source, recipe, rows.tolist(), batch)
        ]
        moved = np.concatenate(found, 1) / max(recipe.spec.size)
        both = moved.reshape(2, len(numbers), *moved.shape[1:]).mean(0)
        mean = np.where(labelled, both, 0)
        entries = []
        for each in mean:
            ends = ratio_interval(
                each.sum(1),
                labelled.sum(1),
                groups,
                resamples=context.section.resamples,
            )
            entries.append(
                {
                    "value": float(each.sum() / labelled.sum()),
                    "low": ends[0],
                    "high": ends[1],
                    "joints": {
                        n: float(each[:, j].sum() / labelled[:, j].sum())
                        for j, n in enumerate(names)
                        if labelled[:, j].any()
                    },
                }
            )
        record[name] = entries
    return record


def _projection(context, split: Split, fitted, tap, gates) -> dict[str, Any]:
    """PCK from the first r components alone, and without them."""
    trained, mesh, section = context.trained, sharding.local_mesh(), context.section
    recipe, total = trained.recipe, len(fitted.components)
    ranks = sorted({min(r, total) for r in section.ranks} | {total})
    kept = np.arange(total)[None] < np.array(ranks)[:, None]
    people, true, visible = context.people(split)
    labelled, groups = visible > 0, [p.image_id for p in people]
    sides = pck_.box_longer_side(np.stack([p.box for p in people]))
    matrices = np.stack([crop_matrix(p, recipe.view) for p in people])
    batch = sharding.round_up(min(8, len(split.rows)), mesh)
    asked = labelled.sum(1)[None].astype(float)
    pack = [fitted.mean.astype(np.float32), fitted.components.astype(np.float32), kept]
    record: dict[str, Any] = {"ranks": ranks, "complete": total >= len(fitted.mean)}
    for name, closed in (("own_skips", ()), ("skips_closed", gates)):
        if name == "skips_closed" and not gates:
            continue
        compiled = taps.compile_over(latent.make_projection(recipe, tap, closed), mesh)
        variables = jax.device_put(trained.variables, sharding.replicated(mesh))
        parts: list[Any] = []
        with ProgressBar(len(split.rows), f"projection, {name}") as bar:
            for sent, real in taps.batches(
                split.source, recipe, split.rows.tolist(), batch
            ):
                found = sharding.to_host(compiled(variables, sent, *pack))
                parts.append({k: v[..., :real, :, :] for k, v in found.items()})
                bar.update(sum(p["whole"].shape[0] for p in parts))

        def right(points: np.ndarray) -> np.ndarray:
            image = geometry.invert(points.astype(np.float64), matrices)
            error = np.linalg.norm(image - true, axis=-1) / sides[:, None]
            good = (error <= section.threshold) & labelled
            return good.sum(1)[None].astype(float)

        joined = {
            field: np.concatenate([p[field] for p in parts], -3)
            for field in ("whole", "only", "without")
        }
        whole = right(joined["whole"])
        entries: dict[str, Any] = {"whole": float(whole.sum() / asked.sum())}
        for field in ("only", "without"):
            counts = [right(points) for points in joined[field]]
            entries[field] = [
                {"pck": float(c.sum() / asked.sum())}
                | _difference(c, whole, asked, groups, section.resamples)
                for c in counts
            ]
        record[name] = entries
    return record


def _difference(row, whole, asked, groups, resamples: int) -> dict[str, float]:
    d = paired_difference(row, asked, whole, asked, groups, resamples=resamples)
    return {
        "minus_whole": d.estimate, "low": d.low, "high": d.high,
        "smallest_effect": d.smallest_effect,
    }  # fmt: skip


def _names(context, split: Split, fitted, parts, rows, numbers) -> dict[str, Any]:
    """Correlations of people's coordinates with what their labels say."""
    found = people_attributes(context, split, rows)
    limit = min(NEAREST_MANY, len(fitted.components))
    wanted = [n for n in numbers if n <= limit]
    scores = fitted.project(parts)[:, np.array(wanted) - 1]
    people, _, _ = context.people(split, rows)
    records = attributes.correlate(
        np.asarray(scores, np.float64),
        found,
        groups=[p.image_id for p in people],
        resamples=min(context.section.resamples, 500),
        seed=context.section.seed,
    )
    for entry in records:
        entry["component"] = wanted[entry["component"] - 1]
    return {
        "people": len(rows),
        "tests": len(wanted) * len(found),
        "correlations": [
            {k: v if isinstance(v, str) else _number(v) for k, v in r.items()}
            for r in records
        ],
    }


def _number(value: Any) -> Any:
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not np.isfinite(value) else value


def people_attributes(context, split: Split, rows) -> dict[str, np.ndarray]:
    """Attributes of people of a source.

    Raises:
      UserError: nobody is there.
    """
    if not len(rows):
        raise UserError(f"nobody of {split.source.name} is left to be described")
    people, true, visible = context.people(split, rows)
    boxes = np.stack([p.box for p in people])
    sizes = image_sizes(split.source, rows)
    skeleton = context.trained.recipe.skeleton
    return attributes.attributes(true, visible, boxes, sizes, skeleton)


def image_sizes(source: Any, rows: np.ndarray) -> np.ndarray | None:
    """(height, width) of people's pictures where a source can tell without decoding them."""
    listed = getattr(source, "ground_truth", None)
    try:
        images = {i["id"]: (i["height"], i["width"]) for i in listed["images"]}
        return np.array([images[source.person(int(r)).image_id] for r in rows], float)
    except (TypeError, KeyError):
        return None
