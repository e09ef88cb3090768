"""The study `redundancy`: axes for 95 % of every tap, and channels of one tap taken away."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from pose_jax import sharding
from pose_jax.analysis import pca, redundancy, taps
from pose_jax.tasks.analyse_context import Context, Split, pck, spread
from pose_jax.writer import ProgressBar, is_main_process, say, write_json

PEOPLE, WHOLE_PEOPLE, WHOLE_VALUES = 256, 1000, 8192
"""People for channel moments; people and values of taps that are analysed as a whole."""

KEPT = (1.0, 0.9, 0.75, 0.5, 0.25, 0.1, 0.05, 0.0)
RANDOM_SEEDS = 3


def run(context: Context) -> None:
    """Write `redundancy.json`: moments from the first split, answers from the last."""
    section, trained = context.section, context.trained
    tap = taps.require_tap(trained.recipe, section.tap)
    question = context.question(tap=tap)
    if context.finished("redundancy", question):
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
            f"{context.protocol}; pruned channels carry their mean, no training after; "
            "parameters are those of the copy with folded normalisations, idle ones produce "
            "nothing but pruned channels (what reads a constant could be folded as well)"
        ),
        "taps": _every_tap(context, context.splits[0], moments),
        "pruning": _pruning(context, context.splits[-1], tap, moments[tap]),
    }
    write_json(context.folder / "redundancy.json", record)
    say(f"redundancy: {len(record['taps'])} taps, pruning of {tap}")


def _moments(context: Context, split: Split) -> dict[str, Any]:
    trained, mesh = context.trained, sharding.local_mesh()
    names = list(taps.tap_shapes(trained.recipe))
    compiled = taps.compile_over(redundancy.make_moments(trained.recipe, names), mesh)
    total: dict[str, Any] = {}
    batch = sharding.round_up(16, mesh)
    for sent, _ in taps.batches(
        split.source, trained.recipe, spread(split.rows, PEOPLE).tolist(), batch
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
        spread(split.rows, WHOLE_PEOPLE).tolist(), small,
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
    recipe = trained.recipe
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
    right = context.right(np.concatenate(parts, 1), split.people)
    entries: dict[str, Any] = {}
    for n, (ranking, seed) in enumerate(arms):
        rows = right[n * len(keep) : (n + 1) * len(keep)]
        entries[ranking if ranking != "random" else f"random_{seed}"] = [
            {
                "kept": number,
                "pck": pck(row, split.people),
                **_against(context, row, rows[0], split),
            }
            for number, row in zip(keep, rows)
        ]
    return {
        "tap": tap,
        "channels": channels,
        "parameters": int(
            sum(x.size for x in jax.tree.leaves(trained.variables["params"]))
        ),
        "idle_parameters": _idle(context, split, tap, kept[: len(keep)], mean),
        "rankings": entries,
    }


def _against(context: Context, row, whole, split: Split) -> dict[str, float]:
    found = context.difference(row, whole, split.people)
    return {
        "pck": pck(row, split.people),
        "minus_whole": found["value"],
        "low": found["low"],
        "high": found["high"],
    }


def _idle(context, split: Split, tap: str, kept: np.ndarray, mean) -> list[int]:
    """Parameters without influence when channels of the `energy` ranking are constant."""
    trained = context.trained
    rows = spread(split.rows, 12).tolist()
    sent, _ = next(taps.batches(split.source, trained.recipe, rows, 12))
    count = jax.jit(redundancy.make_idle_parameters(trained.recipe, tap))
    instead, key = mean.astype(np.float32), jax.random.key(0)
    return [
        int(count(trained.variables, sent["image"], mask, instead, key=key))
        for mask in kept
    ]
