"""The study `skips`: every subset of the skip gates closed, on the splits asked for."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np

from pose_jax import geometry, inference, sharding
from pose_jax.analysis import skips, taps
from pose_jax.config import UserError, to_plain
from pose_jax.explain.shapley import all_coalitions
from pose_jax.intervals import ratio_intervals
from pose_jax.tasks.analyse_context import Context, Split, pck, select, spread
from pose_jax.tasks.arrays import plain, save_arrays
from pose_jax.tasks.latents import Trained, load_trained
from pose_jax.writer import ProgressBar, is_main_process, say, write_json

MOST_GATES = 8
"""Gates of one study: 256 subsets."""

_MEANS_OF = 512
"""People whose activations make the mean."""


class Found(NamedTuple):
    """Of one split and style: `[s, n, k]` right at the box threshold, right on the grid, peak,
    entropy; `[s, d, n]` relative change and `[s, d]` CKA of the decoder outputs; `[s, n, k, 2]`
    keypoints in crop pixels."""

    correct: np.ndarray
    grid_correct: np.ndarray
    peak: np.ndarray
    entropy: np.ndarray
    change: np.ndarray
    cka: np.ndarray
    keypoints: np.ndarray
    drawn: np.ndarray


def run(context: Context) -> None:
    """Write `skips.json` and `skips.npz` (people with both answers).

    Raises:
      ValueError: a model without skips, a gate or style that does not exist.
      UserError: too many gates, or a control that does not fit.
    """
    section, trained = context.section, context.trained
    gates = taps.skip_taps(trained.recipe, tuple(section.gates))
    if len(gates) > MOST_GATES:
        raise UserError(
            f"{len(gates)} skip gates have {2 ** len(gates):,} subsets; name at most "
            f"{MOST_GATES} of them in analyse.gates: {', '.join(gates)}"
        )
    controls = _load_controls(context)
    question = context.question(
        "styles", "skeletons", "count",
        gates=list(gates), controls={n: c.weights for n, c in controls.items()},
    )  # fmt: skip
    if context.finished("skips", question, "skips.npz"):
        say("skips: finished before")
        return
    if not is_main_process():
        return
    for style in section.styles:  # Refused before anything runs.
        skips.make_ablation(trained.recipe, gates, (), style)
    means = _means(context, context.splits[0], gates)
    record: dict[str, Any] = {
        "question": question,
        "gates": list(gates),
        "gate_shapes": [list(taps.tap_shapes(trained.recipe)[g]) for g in gates],
        "decoders": list(taps.decoder_taps(trained.recipe)),
        "opened": all_coalitions(len(gates)).tolist(),
        "classes": _class_names(context),
        "protocol": (
            f"{context.protocol}; heatmap PCK: strictly nearer than a twentieth of the map's "
            "side, mean over people (macro); the mean replacement is that of the first split"
        ),
        "splits": {},
        "controls": {},
    }
    arrays: dict[str, np.ndarray] = {}
    for split in context.splits:
        styles = {}
        for style in section.styles:
            found = _ablate(context, split, gates, means, style)
            styles[style] = _summary(context, split, gates, found)
            if style == section.styles[0]:
                arrays |= _pictures(context, split, found)
                if split is context.splits[-1]:
                    record["controls"] = _controls(context, split, controls, found)
        record["splits"][split.name] = {"people": len(split.rows), "styles": styles}
    save_arrays(context.folder / "skips.npz", arrays)
    write_json(context.folder / "skips.json", record)
    say(f"skips: {2 ** len(gates)} subsets of {len(gates)} gates, see skips.json")


def _load_controls(context: Context) -> dict[str, Trained]:
    """The retrained networks of `analyse.controls`.

    Raises:
      UserError: no run there, or a network of another skeleton.
    """
    named = to_plain(context.section.controls)
    found = {n: load_trained(p, context.section.checkpoint) for n, p in named.items()}
    skeleton = context.trained.recipe.skeleton
    for name, control in found.items():
        if control.recipe.skeleton.keypoints != skeleton.keypoints:
            raise UserError(
                f"analyse.controls: {name!r} answers skeleton "
                f"{control.recipe.skeleton.name!r}, this network {skeleton.name!r}"
            )
    return found


def _class_names(context: Context) -> dict[str, list[str]]:
    skeleton = context.trained.recipe.skeleton
    return {
        name: [skeleton.keypoints[j] for j in joints]
        for name, joints in skips.size_classes(skeleton).items()
    }


def _means(context: Context, split: Split, gates) -> dict[str, np.ndarray]:
    """Mean activation of every gate over people of a split."""
    trained, mesh = context.trained, sharding.local_mesh()
    rows = spread(split.rows, _MEANS_OF).tolist()
    batch = sharding.round_up(context.batch, mesh)
    compiled = taps.compile_over(taps.make_reader(trained.recipe, gates), mesh)
    sums: dict[str, Any] = {gate: 0.0 for gate in gates}
    for sent, count in taps.batches(split.source, trained.recipe, rows, batch):
        found = sharding.to_host(compiled(trained.variables, sent))
        for gate in gates:
            sums[gate] = sums[gate] + found[gate][:count].sum(0, dtype=np.float64)
    return {g: (total / len(rows)).astype(np.float32) for g, total in sums.items()}


def batch_size(recipe: Any, gates, *, budget: int = 2**26) -> int:
    """People per call so that the widest decoder map of all subsets stays within a budget of
    values, at least what CKA needs."""
    shapes = taps.tap_shapes(recipe)
    names = taps.decoder_taps(recipe) or tuple(gates)
    widest = max(int(np.prod(shapes[name])) for name in names)
    return int(np.clip(budget // (widest * 2 ** len(gates)), 2 * skips.MIN_ROWS, 64))


def _ablate(context: Context, split: Split, gates, means, style: str) -> Found:
    """All subsets over a split: batches of people in a shuffled order, so that the other
    picture of the style `other` is hardly ever the same photo."""
    trained, mesh = context.trained, sharding.local_mesh()
    recipe, rows = trained.recipe, split.rows
    if len(rows) < skips.MIN_ROWS:
        raise ValueError(
            f"the skip study needs {skips.MIN_ROWS} people or more; {split.source.name} "
            f"has {len(rows)}"
        )
    decoders = taps.decoder_taps(recipe)
    batch = context.section.batch or batch_size(recipe, gates)
    batch = max(min(batch, len(rows)), skips.MIN_ROWS)
    batch = sharding.round_up(batch, mesh)
    order = np.random.default_rng(context.section.seed).permutation(len(rows))
    # Filled with people from the front, so that every row is real and nobody his own donor.
    filled = np.resize(order, -(-len(order) // batch) * batch)
    compiled = taps.compile_over(
        skips.make_ablation(recipe, gates, decoders, style), mesh
    )
    variables = jax.device_put(trained.variables, sharding.replicated(mesh))
    parts: list[dict[str, np.ndarray]] = []
    with ProgressBar(len(filled), f"skips, {style}, {split.name}") as bar:
        for sent, _ in taps.batches(split.source, recipe, rows[filled].tolist(), batch):
            parts.append(sharding.to_host(compiled(variables, sent, means)))
            bar.update(len(parts) * batch)

    back = np.argsort(order)

    def joined(name: str, axis: int) -> np.ndarray:
        whole = np.concatenate([p[name] for p in parts], axis)
        return np.take(np.take(whole, np.arange(len(order)), axis), back, axis)

    keypoints = joined("keypoints", 1)
    side = max(inference.map_size(recipe))
    cells = np.linalg.norm(joined("grid", 1) - joined("true_grid", 0), axis=-1)
    hsic = np.sum([p["hsic"] for p in parts], 0) if decoders else np.zeros((1, 0, 3))
    return Found(
        correct=context.right(keypoints, split.people),
        grid_correct=cells / (side / 10) < 0.5,
        peak=joined("peak", 1),
        entropy=joined("entropy", 1),
        change=joined("changes", 2) if decoders else np.zeros((1, 0, len(rows))),
        cka=skips.cka(hsic),
        keypoints=keypoints,
        drawn=joined("drawn", 0) & split.people.labelled,
    )


def _summary(context: Context, split: Split, gates, found: Found) -> dict[str, Any]:
    """Everything of one split and style as plain numbers."""
    labelled, groups = split.people.labelled, split.people.groups
    names = context.trained.recipe.skeleton.keypoints
    classes = skips.size_classes(context.trained.recipe.skeleton)
    parts = {"all": list(range(len(names)))} | classes
    parts |= {name: [j] for j, name in enumerate(names) if labelled[:, j].any()}
    parts = {
        name: joints for name, joints in parts.items() if labelled[:, joints].any()
    }
    bottoms = np.stack([labelled[:, joints].sum(1) for joints in parts.values()], 1)

    def shares(right: np.ndarray) -> list[dict[str, Any]]:
        """`[r, n, k]` -> per row {part: value, low, high}; one draw of pictures for all."""
        tops = np.stack([right[:, :, j].sum(2) for j in parts.values()], 2)  # [r, n, p]
        flat = np.moveaxis(tops, 0, 1).reshape(len(groups), -1)
        below = np.tile(bottoms, (1, len(right)))
        low, high = ratio_intervals(
            flat, below, groups, resamples=context.section.resamples
        )
        value = flat.sum(0) / below.sum(0)
        ends = np.stack([value, low, high], 1).reshape(len(right), len(parts), 3)
        fields = ("value", "low", "high")
        return [
            {n: dict(zip(fields, map(float, e))) for n, e in zip(parts, row)}
            for row in ends
        ]

    values, empty, residual = skips.skip_values(found.correct, labelled)
    gate_shares = shares(np.concatenate([values, empty[None]]) * labelled)
    # What all gates together add, with an interval of its own.
    gain = shares((found.correct[-1] * 1.0 - found.correct[0])[None] * labelled)[0]
    subsets = []
    for row, share in enumerate(shares(found.correct * labelled)):
        grid = skips.person_pck(found.grid_correct[row], found.drawn)
        kept = np.where(labelled, found.peak[row], np.nan)
        spread_ = np.where(labelled, found.entropy[row], np.nan)
        subsets.append(
            {
                "pck": share,
                "heatmap_pck": float(np.nanmean(grid)),
                "peak": float(np.nanmean(kept)),
                "entropy": float(np.nanmean(spread_)),
                "relative_change": plain(found.change[row].mean(1)),
                "cka_change": plain(1 - found.cka[row]),
            }
        )
    edges = np.linspace(0, 1, 11)
    histograms = {}
    for name, row in (("on", -1), ("off", 0)):
        per_person = skips.person_pck(found.grid_correct[row], found.drawn)
        known = per_person[~np.isnan(per_person)]
        histograms[name] = np.histogram(known, edges)[0].tolist()
    return {
        "subsets": subsets,
        "shapley": dict(zip(gates, gate_shares)),
        "shapley_empty": gate_shares[-1],
        "whole_minus_closed": gain,
        "largest_residual": residual,
        "joints": {name: int(labelled[:, j].sum()) for name, j in parts.items()},
        "histogram": {"edges": edges.tolist(), **histograms},
    }


def _pictures(context: Context, split: Split, found: Found) -> dict[str, np.ndarray]:
    """Crops of people on whom the whole network is right, with both answers."""
    count = context.section.skeletons
    if not count:
        return {}
    score = skips.person_pck(found.grid_correct[-1], found.drawn)
    score = np.where(found.drawn.sum(1) >= 3, score, -1)
    generator = np.random.default_rng(context.section.seed)
    # Perfect answers first, as in the thesis; where they are few, the next best.
    order = np.lexsort((generator.random(len(score)), -score))[:count]
    recipe, people = context.trained.recipe, select(split.people, order)
    crops = [
        geometry.warp(split.source.image(int(row)), matrix, recipe.spec.size)
        for row, matrix in zip(split.rows[order], people.matrices)
    ]
    p = split.name
    return {
        f"{p}_crops": np.stack(crops),
        f"{p}_on": found.keypoints[-1, order],
        f"{p}_off": found.keypoints[0, order],
        f"{p}_true": geometry.transform(people.true, people.matrices),
        f"{p}_visible": people.visible,
        f"{p}_score": score[order],
    }


def _controls(
    context: Context, split: Split, controls: dict[str, Trained], base: Found
) -> dict[str, Any]:
    """Retrained networks beside the whole one and the one with every gate closed."""
    found = {}
    mesh = sharding.local_mesh()
    for name, other in controls.items():
        answer = inference.predict_source(
            other.recipe, other.variables, split.source,
            mesh=mesh, batch=sharding.round_up(context.batch, mesh), flip_test=False,
            rows=split.rows.tolist(), alone=True,
        )  # fmt: skip
        # Back into the crops of this network, which may have another input.
        points = geometry.transform(answer.keypoints, split.people.matrices)
        right = context.right(points, split.people)
        found[name] = {
            "step": other.step,
            "pck": pck(right, split.people),
            **{
                f"minus_{title}": context.difference(
                    right, base.correct[row], split.people
                )
                for title, row in (("whole", -1), ("all_closed", 0))
            },
        }
    return found
