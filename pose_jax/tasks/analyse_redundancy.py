"""The study `redundancy`: axes for 95 % of every tap, and channels of one tap taken away."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from pose_jax import geometry, sharding
from pose_jax.analysis import pca, redundancy, taps
from pose_jax.data.pipeline import crop_matrix
from pose_jax.intervals import paired_difference
from pose_jax.metrics import pck as pck_
from pose_jax.tasks.analyse import Context, Split, finished
from pose_jax.writer import ProgressBar, is_main_process, say, write_json

PEOPLE, WHOLE_PEOPLE, WHOLE_VALUES = 256, 1000, 8192
"""People for channel moments; people and values of taps that are analysed as a whole."""

KEPT = (1.0, 0.9, 0.75, 0.5, 0.25, 0.1, 0.05, 0.0)
RANDOM_SEEDS = 3


def run(context: Context) -> None:
    """Write `redundancy.json`: moments from the first split, answers from the last."""
    section, trained = context.section, context.trained
    tap = taps.require_tap(trained.recipe, section.tap)
    question = {
        "weights": trained.weights,
        "tap": tap,
        "threshold": section.threshold,
        "people": {s.name: [s.source.name, len(s.rows)] for s in context.splits},
    }
    if finished(context, "redundancy", question):
        say("redundancy: finished before")
        return
    if not is_main_process():
        return
    moments = _moments(context, context.splits[0])
    record = {
        "question": question,
        "protocol": (
            f"channels: positions of {min(PEOPLE, len(context.splits[0].rows))} people of "
            f"{context.splits[0].source.name} pooled; pruning judged on "
            f"{len(context.splits[-1].rows)} people of {context.splits[-1].source.name}, "
            f"PCK@{section.threshold:g} of the longer box side, pruned channels carry their "
            f"mean, no training after, step {trained.step}"
        ),
        "taps": _every_tap(context, context.splits[0], moments),
        "pruning": _pruning(context, context.splits[-1], tap, moments[tap]),
    }
    write_json(context.folder / "redundancy.json", record)
    say(f"redundancy: {len(record['taps'])} taps, pruning of {tap}")


def _spread(rows: np.ndarray, count: int) -> list[int]:
    picked = np.linspace(0, len(rows) - 1, min(count, len(rows)))
    return rows[picked.astype(int)].tolist()


def _moments(context: Context, split: Split) -> dict[str, Any]:
    trained, mesh = context.trained, sharding.local_mesh()
    names = list(taps.tap_shapes(trained.recipe))
    compiled = taps.compile_over(redundancy.make_moments(trained.recipe, names), mesh)
    total: dict[str, Any] = {}
    batch = sharding.round_up(16, mesh)
    for sent, _ in taps.batches(
        split.source, trained.recipe, _spread(split.rows, PEOPLE), batch
    ):
        found = sharding.to_host(compiled(trained.variables, sent))
        for name, parts in found.items():
            new = [np.asarray(p, np.float64) for p in parts]
            old = total.get(name)
            total[name] = new if old is None else [a + b for a, b in zip(old, new)]
    return total


def _every_tap(context, split: Split, moments) -> dict[str, Any]:
    """Axes for 95 % over channels, and over all values where these are few enough."""
    recipe = context.trained.recipe
    shapes = taps.tap_shapes(recipe)
    small = [n for n, s in shapes.items() if np.prod(s) <= WHOLE_VALUES]
    whole = taps.read_taps(
        recipe, context.trained.variables, split.source,
        _spread(split.rows, WHOLE_PEOPLE), small,
        mesh=sharding.local_mesh(), batch=sharding.round_up(16, sharding.local_mesh()),
    )  # fmt: skip
    record = {}
    for name, (count, sums, products) in moments.items():
        variance = redundancy.spectrum(float(count), sums, products)
        entry: dict[str, Any] = {
            "shape": list(shapes[name]),
            "channels": len(variance),
            "channel_axes_for_95": redundancy.axes_for(variance),
        }
        if name in whole:
            values = whole[name].reshape(len(whole[name]), -1)
            fitted = _fit(values)
            entry |= {
                "values": values.shape[1],
                "people": len(values),
                "axes_for_95": None if fitted is None else fitted.components_for(0.95),
            }
        record[name] = entry
    return record


def _fit(values: np.ndarray) -> pca.PCA | None:
    try:
        return pca.fit(values)
    except ValueError:  # Nothing varies (a dead tap), or one person alone.
        return None


def _pruning(context, split: Split, tap: str, moments) -> dict[str, Any]:
    """PCK against channels kept, for every ranking; parameters that fall idle."""
    trained, mesh = context.trained, sharding.local_mesh()
    recipe, section = trained.recipe, context.section
    count, sums, products = moments
    mean = sums / count
    variance = np.diagonal(products) / count - mean**2
    channels = len(mean)
    arms = [(r, 0) for r in redundancy.RANKINGS if r != "random"]
    arms += [("random", seed) for seed in range(RANDOM_SEEDS)]
    keep = [int(round(share * channels)) for share in KEPT]
    masks = []
    for ranking, seed in arms:
        order = redundancy.rank_channels(mean, variance, ranking, seed=seed)
        for number in keep:
            mask = np.zeros(channels, bool)
            mask[order[channels - number :]] = True
            masks.append(mask)
    kept = np.stack(masks)
    compiled = taps.compile_over(redundancy.make_pruned(recipe, tap), mesh)
    variables = jax.device_put(trained.variables, sharding.replicated(mesh))
    batch = sharding.round_up(min(4, len(split.rows)), mesh)
    parts = []
    with ProgressBar(len(split.rows), "pruning") as bar:
        for sent, real in taps.batches(
            split.source, recipe, split.rows.tolist(), batch
        ):
            found = compiled(variables, sent, kept, mean.astype(np.float32))
            parts.append(sharding.to_host(found)["keypoints"][:, :real])
            bar.update(sum(p.shape[1] for p in parts))
    people, true, visible = context.people(split)
    labelled, groups = visible > 0, [p.image_id for p in people]
    sides = pck_.box_longer_side(np.stack([p.box for p in people]))
    matrices = np.stack([crop_matrix(p, recipe.view) for p in people])
    points = geometry.invert(
        np.concatenate(parts, 1).astype(np.float64),
        np.broadcast_to(matrices, (len(kept), *matrices.shape)),
    )
    error = np.linalg.norm(points - true, axis=-1) / sides[:, None]
    right = ((error <= section.threshold) & labelled).sum(-1).astype(float)
    asked = labelled.sum(1)[None].astype(float)
    entries: dict[str, Any] = {}
    for n, (ranking, seed) in enumerate(arms):
        rows = right[n * len(keep) : (n + 1) * len(keep)]
        whole = rows[0][None]
        entries[ranking if ranking != "random" else f"random_{seed}"] = [
            {
                "kept": number,
                "pck": float(row.sum() / asked.sum()),
                **_difference(row[None], whole, asked, groups, section.resamples),
            }
            for number, row in zip(keep, rows)
        ]
    return {
        "tap": tap,
        "channels": channels,
        "parameters": int(
            sum(x.size for x in jax.tree.leaves(trained.variables["params"]))
        ),
        "idle_parameters": _idle(context, split, tap, kept[: len(keep)]),
        "rankings": entries,
    }


def _difference(row, whole, asked, groups, resamples) -> dict[str, float]:
    d = paired_difference(row, asked, whole, asked, groups, resamples=resamples)
    return {"minus_whole": d.estimate, "low": d.low, "high": d.high}


def _idle(context, split: Split, tap: str, kept: np.ndarray) -> list[int]:
    """Parameters without influence when channels of the `energy` ranking carry nothing."""
    trained = context.trained
    images = next(
        taps.batches(split.source, trained.recipe, _spread(split.rows, 12), 12)
    )[0]["image"]
    count = jax.jit(redundancy.make_idle_parameters(trained.recipe, tap))
    key = jax.random.key(0)
    return [int(count(trained.variables, images, mask, key=key)) for mask in kept]
