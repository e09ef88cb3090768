"""`evaluate`: scores of a run (or converted model) on a data set, into `results.json`."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath
from rich.console import Console
from rich.table import Table

from pose_jax import (
    checkpoint,
    data,
    evaluation,
    geometry,
    inference,
    occlusion,
    sharding,
)
from pose_jax.config import UserError, to_plain
from pose_jax.data.sources import PeopleSource, Source
from pose_jax.estimator import fit_variables
from pose_jax.recipe import Recipe, recipe
from pose_jax.report import drawings
from pose_jax.tasks.arrays import save_arrays
from pose_jax.tasks.workdir import data_root
from pose_jax.writer import (
    ProgressBar,
    is_main_process,
    read_json,
    say,
    update_results,
    write_json,
)


def run(config: Any, workdir: str) -> None:
    """Evaluate and store: a record in `results.json`, rows in `predictions/<name>.json`."""
    section = config.evaluate
    stored = read_json(epath.Path(workdir) / "config.json")
    described = recipe(stored or config)
    tree, step = checkpoint.load_variables(workdir, section.checkpoint)
    variables = fit_variables(described, tree)
    mesh = sharding.make_mesh(sharding.MeshConfig(**to_plain(config.mesh)))
    opened: dict[str, Any] = dict(root=data_root(), skeleton=config.skeleton)
    source = data.open_source(
        config.data.eval,
        area_source=section.area_source,
        need_area="ap" in section.metrics,
        **opened,
    )
    labelled = source
    detected = section.boxes != "ground_truth"
    if detected:
        source = _detections(source, section.boxes)
        if set(section.metrics) != {"ap"}:
            raise UserError(
                "evaluate.boxes names detections, which have no labels of their own; set "
                "evaluate.metrics='(\"ap\",)'"
            )
    batch = sharding.round_up(min(section.batch, len(source)), mesh)
    with ProgressBar(len(source), "evaluate") as bar:
        found = inference.predict_source(
            *described.inference(variables), source,
            mesh=mesh, batch=batch, flip_test=section.flip_test, report=bar.update,
        )  # fmt: skip
    rows = evaluation.results_rows(
        found, source, described,
        detected=detected, nms=section.nms, score_threshold=section.score_threshold,
    )  # fmt: skip
    hash_ = _hash(section.boxes) if detected else None
    name = record_name(section, step, hash_)
    record: dict[str, Any] = {
        "protocol": evaluation.protocol(
            source, described, section, count=len(source), step=step
        ),
        "boxes": section.boxes,
        "boxes_sha256": hash_,
        "step": step,
        "people": len(source),
    }
    if "ap" in section.metrics:
        record["ap"] = evaluation.average_precision(
            labelled, rows, described, section.area_source
        )
    if not detected:
        record.update(
            evaluation.score(
                found, source, described, section,
                mean_pose_of=_mean_pose(config, described, labelled, opened),
            )
        )  # fmt: skip
    errors = None if detected else _errors(found, source, described)
    if "occlusion" in section.metrics and errors is not None:
        swept = occlusion.occlusion_sweep(
            *described.inference(variables), source,
            mesh=mesh, batch=batch, flip_test=section.flip_test,
            counts=section.occlusion,
        )  # fmt: skip
        record["occlusion"] = swept.record(section.bootstrap or 1000)
        errors.update(
            occluded_count=np.array(swept.counts),
            occluded_error=swept.error.astype(np.float32),
            occluded_hidden=swept.hidden,
        )
    if not is_main_process():
        return
    if errors is not None:
        save_arrays(epath.Path(workdir) / "errors" / f"{name}.npz", errors)
    write_json(epath.Path(workdir) / "predictions" / f"{name}.json", rows)
    write_json(epath.Path(workdir) / "predictions.json", rows)
    update_results(workdir, name, record)
    show(name, record, described)
    if section.overlays and not detected:
        path = _overlays(found, source, described, section.overlays, workdir, name)
        say(f"overlays: {path}")
    say(f"results: {epath.Path(workdir) / 'results.json'} ({name})")


def _errors(found, source: Source, described: Recipe) -> dict[str, np.ndarray]:
    """What `compare` reads: distance / longer box side of every joint of every person."""
    people, true, visible = evaluation.people_arrays(
        source, found.rows.tolist(), described
    )
    longer = np.stack([p.box for p in people])[:, 2:].max(1)
    error = np.linalg.norm(found.keypoints - true, axis=-1) / longer[:, None]
    return {
        "id": np.array([str(p.id) for p in people]),
        "image_id": np.array([str(p.image_id) for p in people]),
        "visible": visible,
        "error": error.astype(np.float32),
    }


def record_name(section: Any, step: int, boxes_sha256: str | None) -> str:
    """split-boxes-flip-step; two files of boxes of one name differ by their hash."""
    boxes = "gt"
    if boxes_sha256:
        boxes = f"{Path(section.boxes).stem}_{boxes_sha256[:8]}"
    flip = "flip" if section.flip_test else "noflip"
    return f"{section.name}-{boxes}-{flip}-{step}"


def show(name: str, record: dict[str, Any], described: Recipe) -> None:
    """Tables on the terminal; the protocol stands above them."""
    console = Console(width=100)
    console.print(f"[bold]{name}[/]  {record['protocol']}", highlight=False)
    if "ap" in record:
        table = Table(title=f"COCO keypoints (area: {record['ap']['area_source']})")
        values = {k: v for k, v in record["ap"].items() if k[:2] in ("AP", "AR")}
        for key in values:
            table.add_column(key)
        table.add_row(*("-" if v is None else f"{v:.4f}" for v in values.values()))
        console.print(table)
    if "pck" in record:
        console.print(_pck_table(record))
    if "occlusion" in record:
        console.print(_occlusion_table(record["occlusion"]))
    for key, title in (
        ("pck_torso", "PCK@0.2 torso"),
        ("heatmap_pck_labelled", "heatmap PCK (macro, strict)"),
        ("pckh", "PCKh@0.5"),
    ):
        if key in record:
            which = "macro" if "heatmap" in key else "micro"
            value = (record[key][which] or [float("nan")])[0]
            console.print(f"{title}: {value:.4f}", highlight=False)


def _pck_table(record: dict[str, Any]) -> Table:
    result = record["pck"]
    table = Table(title="PCK, error / longer box side")
    table.add_column("joint")
    for threshold in result["thresholds"]:
        table.add_column(f"@{threshold:g}", justify="right")
    table.add_column("labels", justify="right")

    def add(label, values, count=""):
        table.add_row(label, *(f"{v:.3f}" for v in values), str(count))

    for joint, entry in result["joints"].items():
        if entry["count"]:
            add(joint, entry["pck"], entry["count"])
    table.add_section()
    add("all points", result["micro"], result["labels"])
    if "interval_95" in result:
        ends = [f"{low:.3f}-{high:.3f}" for low, high in result["interval_95"]]
        table.add_row("95 % interval", *ends, "")
    for part in ("visible", "occluded"):
        if result[part]["count"]:
            add(part, result[part]["pck"], result[part]["count"])
    if "mean_pose" in record:
        add("mean pose in box (baseline)", record["mean_pose"]["micro"])
    return table


def _occlusion_table(record: dict[str, Any]) -> Table:
    table = Table(title=f"PCK@{record['threshold']:g} with joints hidden")
    for title in ("hidden per person", "hidden joints", "95 %", "seen joints", "95 %"):
        table.add_column(title, justify="right")
    for row in record["rows"]:
        cells = [str(row["removed"])]
        for name in ("hidden", "seen"):
            if row[name]["pck"] is None:
                cells += ["-", "-"]
                continue
            low, high = row[name]["interval_95"]
            cells += [f"{row[name]['pck']:.3f}", f"{low:.3f}-{high:.3f}"]
        table.add_row(*cells)
    return table


def _mean_pose(config, described, labelled: Source, opened) -> np.ndarray:
    """From the training labels where they are at hand, else from the evaluated ones."""
    try:
        source = data.open_source(config.data.train.source, **opened)
    except (ValueError, KeyError, OSError):
        source = labelled
    rows = range(min(len(source), 500 if source.name.startswith("figures") else 10**6))
    people, _, _ = evaluation.people_arrays(source, list(rows), described)
    return evaluation.mean_pose(people)


def _detections(source: Source, path: str) -> PeopleSource:
    if not isinstance(source, PeopleSource):
        raise UserError("evaluate.boxes needs a data source with pictures on disk")
    try:
        rows = json.loads(data.under(data_root(), path).read_text())
    except FileNotFoundError:
        raise UserError(
            f"evaluate.boxes={path}: no such file; use ground_truth or a COCO result file"
        ) from None
    except json.JSONDecodeError as error:
        raise UserError(f"evaluate.boxes={path} is not valid JSON ({error})") from None
    return source.with_detections(rows)


def _hash(path: str) -> str:
    return hashlib.sha256(data.under(data_root(), path).read_bytes()).hexdigest()


def _overlays(found, source, described, count: int, workdir: str, name: str):
    """A sheet of crops with prediction and truth, evenly spread over the data set."""
    picked = np.linspace(0, len(found.rows) - 1, min(count, len(found.rows)))
    tiles = []
    for n in picked.astype(int):
        row = int(found.rows[n])
        person = evaluation.people_arrays(source, [row], described)[0][0]
        matrix = geometry.crop_matrix(
            person.box, (256, 256), padding=described.spec.padding
        )
        crop = geometry.warp(source.image(row), matrix, (256, 256))
        tiles.append(
            drawings.compare(
                crop,
                geometry.transform(found.keypoints[n : n + 1], matrix[None]),
                geometry.transform(person.keypoints[None], matrix[None]),
                described.skeleton,
                scores=found.scores[n : n + 1],
                visible=person.visible[None],
            )
        )
    path = epath.Path(workdir) / "figures" / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    drawings.write_image(path, drawings.contact_sheet(tiles, tile=(256, 256)))
    return path
