"""The study `skips`: every subset of the skip gates closed, on the splits asked for."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np

from pose_jax import geometry, inference, sharding
from pose_jax.analysis import skips, taps
from pose_jax.config import to_plain
from pose_jax.data.pipeline import crop_matrix
from pose_jax.explain.shapley import all_coalitions
from pose_jax.intervals import paired_difference, ratio_interval
from pose_jax.metrics import pck as pck_
from pose_jax.tasks.analyse import Context, Split, finished
from pose_jax.tasks.arrays import plain, save_arrays
from pose_jax.tasks.latents import load_trained
from pose_jax.writer import ProgressBar, is_main_process, say, write_json

_MEANS_OF = 512
"""People whose activations make the mean."""


class Found(NamedTuple):
    """Of one split and style: `[s, n, k]` right at the box threshold, right on the grid, peak,
    entropy; `[s, d, n]` relative change and `[s, d]` CKA of the decoder outputs; `[s, n, k, 2]`
    keypoints in image pixels."""

    correct: np.ndarray
    grid_correct: np.ndarray
    peak: np.ndarray
    entropy: np.ndarray
    change: np.ndarray
    cka: np.ndarray
    keypoints: np.ndarray
    drawn: np.ndarray


def run(context: Context) -> None:
    """Write `skips.json`, `skips.npz` (per person) and the pictures' arrays.

    Raises:
      ValueError: a model without skips, a gate that does not exist.
    """
    section, trained = context.section, context.trained
    gates = taps.skip_taps(trained.recipe, tuple(section.gates))
    question = {
        "weights": trained.weights,
        "gates": gates,
        "styles": section.styles,
        "threshold": section.threshold,
        "controls": to_plain(section.controls),
        "skeletons": section.skeletons,
        "people": {s.name: [s.source.name, len(s.rows)] for s in context.splits},
    }
    if finished(context, "skips", question):
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
        "decoders": list(taps.decoder_taps(trained.recipe)),
        "opened": all_coalitions(len(gates)).tolist(),
        "classes": _class_names(context),
        "protocol": _protocol(context),
        "splits": {},
    }
    arrays: dict[str, np.ndarray] = {}
    for split in context.splits:
        styles = {}
        for style in section.styles:
            found = _ablate(context, split, gates, means, style)
            styles[style] = _summary(context, split, gates, found)
            if style == "zero":
                arrays |= _pictures(context, split, found)
        record["splits"][split.name] = {"people": len(split.rows), "styles": styles}
    record["controls"] = _controls(context, gates, means)
    save_arrays(context.folder / "skips.npz", arrays)
    write_json(context.folder / "skips.json", record)
    say(f"skips: {2 ** len(gates)} subsets of {len(gates)} gates, see skips.json")


def _protocol(context: Context) -> str:
    spec = context.trained.recipe.spec
    return (
        f"PCK@{context.section.threshold:g} of the longer box side, ground-truth boxes x "
        f"{spec.padding:g}, input {spec.size[0]}x{spec.size[1]}, no flip test, decode "
        f"{context.trained.recipe.codec.decode}, step {context.trained.step}; heatmap PCK: "
        "strictly nearer than a twentieth of the map's side, mean over people (macro); the "
        "mean replacement is that of the first split; intervals 95 %, by picture"
    )


def _class_names(context: Context) -> dict[str, list[str]]:
    skeleton = context.trained.recipe.skeleton
    return {
        name: [skeleton.keypoints[j] for j in joints]
        for name, joints in skips.size_classes(skeleton).items()
    }


def _means(context: Context, split: Split, gates) -> dict[str, np.ndarray]:
    """Mean activation of every gate over people of a split."""
    trained, mesh = context.trained, sharding.local_mesh()
    picked = np.linspace(0, len(split.rows) - 1, min(_MEANS_OF, len(split.rows)))
    rows = split.rows[picked.astype(int)].tolist()
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
    batch = sharding.round_up(min(batch, len(rows)), mesh)
    order = np.random.default_rng(context.section.seed).permutation(len(rows))
    # The last batch is filled with people from the front, so that nobody's donor is himself.
    filled = np.concatenate([order, order[: -len(order) % batch]])
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

    people, true, visible = context.people(split)
    matrices = np.stack([crop_matrix(p, recipe.view) for p in people])
    subsets = 2 ** len(gates)
    keypoints = geometry.invert(
        joined("keypoints", 1).astype(np.float64),
        np.broadcast_to(matrices, (subsets, *matrices.shape)),
    )
    sides = pck_.box_longer_side(np.stack([p.box for p in people]))
    error = np.linalg.norm(keypoints - true, axis=-1) / sides[:, None]
    shape = taps.tap_shapes(recipe)
    side = max(shape[t][0] for t in shape if t.endswith("heatmaps"))
    cells = np.linalg.norm(joined("grid", 1) - joined("true_grid", 0), axis=-1)
    hsic = np.sum([p["hsic"] for p in parts], 0) if decoders else np.zeros((1, 0, 3))
    return Found(
        correct=error <= context.section.threshold,
        grid_correct=cells / (side / 10) < 0.5,
        peak=joined("peak", 1),
        entropy=joined("entropy", 1),
        change=joined("changes", 2) if decoders else np.zeros((1, 0, len(rows))),
        cka=skips.cka(hsic),
        keypoints=keypoints,
        drawn=joined("drawn", 0) & (visible > 0),
    )


def _summary(context: Context, split: Split, gates, found: Found) -> dict[str, Any]:
    """Everything of one split and style as plain numbers."""
    people, _, visible = context.people(split)
    labelled, groups = visible > 0, [p.image_id for p in people]
    names = context.trained.recipe.skeleton.keypoints
    classes = skips.size_classes(context.trained.recipe.skeleton)
    parts = {"all": list(range(len(names)))} | classes
    parts |= {name: [j] for j, name in enumerate(names) if labelled[:, j].any()}
    resamples = context.section.resamples

    def share(right: np.ndarray, joints: list[int]) -> dict[str, Any]:
        top = (right * labelled)[:, joints].sum(1)
        bottom = labelled[:, joints].sum(1)
        ends = ratio_interval(top, bottom, groups, resamples=resamples)
        return {
            "value": float(top.sum() / max(bottom.sum(), 1)),
            "low": ends[0],
            "high": ends[1],
        }

    values, empty, residual = skips.skip_values(found.correct, labelled)
    subsets = []
    for row, right in enumerate(found.correct):
        grid = skips.person_pck(found.grid_correct[row], found.drawn)
        kept = np.where(labelled, found.peak[row], np.nan)
        spread = np.where(labelled, found.entropy[row], np.nan)
        subsets.append(
            {
                "pck": {name: share(right, joints) for name, joints in parts.items()},
                "heatmap_pck": float(np.nanmean(grid)),
                "peak": float(np.nanmean(kept)),
                "entropy": float(np.nanmean(spread)),
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
        "shapley": {
            gate: {name: share(values[g], joints) for name, joints in parts.items()}
            for g, gate in enumerate(gates)
        },
        "shapley_empty": {name: share(empty, joints) for name, joints in parts.items()},
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
    recipe = context.trained.recipe
    people, true, visible = context.people(split, split.rows[order])
    crops, on, off, truth = [], [], [], []
    for n, (person, row) in enumerate(zip(people, split.rows[order])):
        matrix = crop_matrix(person, recipe.view)
        crops.append(
            geometry.warp(split.source.image(int(row)), matrix, recipe.spec.size)
        )
        on.append(geometry.transform(found.keypoints[-1, order[n]], matrix))
        off.append(geometry.transform(found.keypoints[0, order[n]], matrix))
        truth.append(geometry.transform(true[n], matrix))
    p = split.name
    return {
        f"{p}_crops": np.stack(crops),
        f"{p}_on": np.stack(on),
        f"{p}_off": np.stack(off),
        f"{p}_true": np.stack(truth),
        f"{p}_visible": visible,
        f"{p}_score": score[order],
    }


def _controls(context: Context, gates, means) -> dict[str, Any]:
    """Retrained networks beside the whole one and the one with every gate closed, on the last
    split: differences in PCK, paired by picture."""
    split, threshold = context.splits[-1], context.section.threshold
    named = context.section.controls.to_dict()
    if not named:
        return {}
    base = _ablate(context, split, gates, means, "zero").correct
    people, true, visible = context.people(split)
    labelled, groups = visible > 0, [p.image_id for p in people]
    sides = pck_.box_longer_side(np.stack([p.box for p in people]))

    def counts(right):
        return (right & labelled).sum(1)[None].astype(float)

    asked = labelled.sum(1)[None].astype(float)
    found = {}
    for name, path in named.items():
        other = load_trained(path, context.section.checkpoint)
        mesh = sharding.local_mesh()
        answer = inference.predict_source(
            other.recipe, other.variables, split.source,
            mesh=mesh, batch=sharding.round_up(context.batch, mesh), flip_test=False,
            rows=split.rows.tolist(),
        )  # fmt: skip
        error = np.linalg.norm(answer.keypoints - true, axis=-1) / sides[:, None]
        right = error <= threshold
        found[name] = {
            "workdir": str(path),
            "step": other.step,
            "pck": float(counts(right).sum() / asked.sum()),
        }
        for title, row in (("whole", -1), ("all_closed", 0)):
            d = paired_difference(
                counts(right), asked, counts(base[row]), asked, groups,
                resamples=context.section.resamples,
            )  # fmt: skip
            found[name][f"minus_{title}"] = {
                "value": d.estimate, "low": d.low, "high": d.high,
            }  # fmt: skip
    return found
