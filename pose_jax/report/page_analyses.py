"""The part of the page about the inside of the network: the thesis's questions, answered."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from pose_jax.report import analyses, attention_figures, markup, page_beside
from pose_jax.report import analysis_sentences as sentences
from pose_jax.report.cluster_drawings import attribute
from pose_jax.report.markup import Pictures, details, folded, paragraph, table, text
from pose_jax.report.skip_drawings import short
from pose_jax.writer import read_json

_QUESTIONS = {
    "skips": "What do the skip connections carry?",
    "latent": "What do the principal components mean, and do those beyond 50 carry nothing?",
    "clusters": "What does the latent space group together?",
    "redundancy": "How much of it can be spared?",
    "weights": "Weights for poses that the clusters misplace",
    "attention": "Does attention tell the truth?",
}


_MORE = {
    "skips_shapley_": "Shapley values with other replacements",
    "skips_people_": "people of the other split",
    "skips_effects_": "features on the other split",
    "clusters_view_": "views of single clusters",
    "attention_layers_": "layers of other people",
    "attention_evidence_": "evidence for other people's joints",
}
"""Figures of one kind, of which the first is shown and the others are behind a click."""


def section(workdir: Any, pictures: Pictures, beside: Sequence[str] = ()) -> str:
    """Every folder of `analysis/`, one after the other, then other runs beside this one.

    Args:
      beside: workdirs whose key numbers stand beside this one's.

    Raises:
      ValueError: a file is no JSON or not whole, or a workdir beside has no analysis.
    """
    folders = [p.parent for p in sorted(workdir.glob("analysis/*/index.json"))]
    if not folders:
        return ""
    parts = []
    if len(folders) > 1:
        items = "".join(
            f'<li><a href="#{_anchor(f)}">{html.escape(f.name)}</a></li>'
            for f in folders
        )
        parts.append(f"<ul>{items}</ul>\n")
    parts += [_folder(folder, pictures) for folder in folders]
    if beside:
        runs = [epath.Path(path) for path in beside]
        parts.append(page_beside.runs([workdir, *runs]))
    return "".join(parts)


def _anchor(folder) -> str:
    return f"analysis-{markup.slug(folder.name)}"


def _folder(folder, pictures: Pictures) -> str:
    index = read_json(folder / "index.json")
    parts = [f'<h3 id="{_anchor(folder)}">{html.escape(folder.name)}</h3>\n']
    try:
        if problem := analyses.problem(index):
            return "".join([*parts, paragraph(f"Not analysed: {problem}", "flag")])
        parts.append(_about(index))
        shown = _figures(folder)
        for study, question in _QUESTIONS.items():
            record = read_json(folder / f"{study}.json")
            if record is not None:
                parts.append(f"<h4>{html.escape(question)}</h4>\n")
                parts += _study(study, record, folder, shown.get(study, []), pictures)
        parts.append(page_beside.thesis(folder, index))
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{folder} holds a record that is not whole ({error!r}); delete it and run "
            "'analyse' again"
        ) from None
    return "".join(parts)


def _about(index: Mapping[str, Any]) -> str:
    health = index["health"]
    splits = "; ".join(
        f"{name}: {s['people']:,} people of {s['source']}"
        for name, s in index["splits"].items()
    )
    said = (
        f"Step {index['step']}, skeleton {index['skeleton']}; {splits}. The network reaches "
        f"PCK@0.1 {sentences.number(health['pck'])} on {health['people']:,} people of "
        f"{health['split']}, the mean pose {sentences.number(health['mean_pose_pck'])}."
    )
    return paragraph(said, "protocol")


def _figures(folder) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for entry in analyses.read_index(folder):
        if (folder / "figures" / str(entry.get("file"))).exists():
            found.setdefault(str(entry.get("study")), []).append(entry)
    return found


def _study(study: str, record, folder, entries, pictures: Pictures) -> Iterator[str]:
    maker = _SENTENCES.get(study)
    if maker is not None:
        for said in maker(record):
            yield paragraph(said)
    hidden: dict[str, list[str]] = {}
    seen: set[str] = set()
    for entry in entries:
        name = str(entry["file"])
        kind = next((k for k in _MORE if name.startswith(k)), "")
        drawn = _figure(folder / "figures" / name, entry, pictures)
        if kind in seen:
            hidden.setdefault(kind, []).append(drawn)
        else:
            yield drawn
        seen |= {kind} - {""}
    for kind, drawn in hidden.items():
        yield details(f"{len(drawn)} more: {_MORE[kind]}", "".join(drawn))
    yield from _TABLES[study](record)


def _figure(path, entry: Mapping[str, Any], pictures: Pictures) -> str:
    title = str(entry.get("title", path.stem))
    heading = f'<h5 style="font-size:1rem">{html.escape(title)}</h5>\n'
    return heading + pictures.figure(path, str(entry.get("caption", "")), title)


def _cell(record: Mapping[str, Any] | None, key: str = "value") -> str:
    if not record:
        return ""
    ends = [record.get("low"), record.get("high")]
    return f"{text(record.get(key))} {markup.interval(ends)}"


def _skip_tables(record: Mapping[str, Any]) -> Iterator[str]:
    if record.get("controls"):
        rows = [
            [
                text(name), text(c["step"]), text(c["pck"]),
                _cell(c.get("minus_whole")), _cell(c.get("minus_all_closed")),
            ]
            for name, c in record["controls"].items()
        ]  # fmt: skip
        heads = ("retrained", "step", "PCK", "minus this one, whole",
                 "minus this one, all closed")  # fmt: skip
        split = list(record["splits"])[-1]
        yield table(heads, rows, f"Networks trained without skips ({split})")
        yield paragraph(
            "A network that was trained without a skip is the fair control: it could learn "
            "to do without. 95 % intervals of differences paired by picture; one training "
            "each, so chance between trainings is not in them.", "note"
        )  # fmt: skip
    folds = [
        fold
        for split, found in record["splits"].items()
        for style, values in found["styles"].items()
        for fold in _numbers(record, values, f"{split}, {style}")
    ]
    yield details("All numbers of the skips as tables", "".join(folds))


def _numbers(record, values: Mapping[str, Any], name: str) -> Iterator[str]:
    """Shapley values and subsets of one split and style."""
    gates, labels = record["gates"], values.get("joints") or {}
    whole = values["subsets"][-1]["pck"]
    rows = [
        [
            text(part.replace("_", " ")), text(labels.get(part)), _cell(empty),
            *(_cell(values["shapley"][g].get(part)) for g in gates),
            _cell(whole.get(part)),
        ]
        for part, empty in values["shapley_empty"].items()
    ]  # fmt: skip
    heads = ["joints", "labels", "all closed", *short(gates), "all open"]
    yield folded(heads, rows, f"Shapley values of the skips, {name}")
    yield folded(*_subset_rows(record, values), f"All subsets, {name}")


def _subset_rows(record, values) -> tuple[list[str], list[list[str]]]:
    decoders = short(record["decoders"])
    heads = ["open", "PCK", "heatmap PCK", "peak", "entropy"]
    heads += [f"1 − CKA {d}" for d in decoders] + [f"L2 change {d}" for d in decoders]
    rows = []
    for opened, found in zip(record["opened"], values["subsets"]):
        names = [g for g, is_open in zip(short(record["gates"]), opened) if is_open]
        changes = [*found["cka_change"], *found["relative_change"]] if decoders else []
        rows.append([
            text(" + ".join(names) or "none"), _cell(found["pck"]["all"]),
            *(text(found[k]) for k in ("heatmap_pck", "peak", "entropy")),
            *map(text, changes),
        ])  # fmt: skip
    return heads, rows


def _latent_tables(record: Mapping[str, Any]) -> Iterator[str]:
    found = record["names"]
    by: dict[tuple[int, str], list[Mapping[str, Any]]] = {}
    for entry in found["correlations"]:
        if entry["value"] is not None:
            by.setdefault((entry["component"], entry["statistic"]), []).append(entry)
    rows = []
    for component in sorted({c for c, _ in by}):
        cells = []
        for statistic in ("spearman", "circular"):
            entries = by.get((component, statistic), [])
            strongest = sorted(entries, key=lambda e: -abs(e["value"]))[:2]
            cells.append("<br>".join(
                f"{text(attribute(e['attribute']))} {_cell(e)} ({e['count']:,})"
                for e in strongest
            ))  # fmt: skip
        rows.append([text(component), *cells])
    if rows:
        heads = ("component", "numbers: Spearman (people)",
                 "angles: circular-linear R, no sign (people)")  # fmt: skip
        yield table(heads, rows, "Strongest correlations of every component")
        yield paragraph(
            f"The two strongest of each kind out of {found['tests']:,} tests on "
            f"{found['people']:,} people; 95 % intervals by picture, not corrected for the "
            "number of tests. R is never negative and above 0 by chance.", "note"
        )  # fmt: skip
    moved = record["displacement"]
    for name, words in (("own_skips", "own skips"), ("skips_closed", "skips closed")):
        entries = moved.get(name)
        if entries:
            joints = list(entries[0]["joints"])
            rows = [
                [text(c), _cell(e), *(text(e["joints"].get(j)) for j in joints)]
                for c, e in zip(moved["components"], entries)
            ]
            heads = ["component", "all joints", *(j.replace("_", " ") for j in joints)]
            yield folded(
                heads, rows, f"Shares of the crop's side per unit step, {words}"
            )


def _cluster_tables(record: Mapping[str, Any]) -> Iterator[str]:
    sizes = record["counts"][str(record["best"])]["sizes"]
    rows = []
    for name, means in record["profiles"].items():
        angle = name.endswith("_angle")
        values = [means.get(str(g)) for g in range(len(sizes))]
        if angle:
            values = [None if v is None else float(np.degrees(v)) for v in values]
        shown = [f"{v:.0f}°" if angle and v is not None else text(v) for v in values]
        rows.append([text(attribute(name)), *(s.replace("-", "−") for s in shown)])
    heads = ["mean of", *(f"cluster {g} ({n:,})" for g, n in enumerate(sizes))]
    yield table(heads, rows, f"Profile of the K = {record['best']} clusters")
    yield paragraph(
        "Means over labelled people; angles are directions of mean vectors (0° to the "
        "picture's right, 90° down). No intervals: the clusters were made from the same "
        "people.", "note"
    )  # fmt: skip


def _weight_tables(record: Mapping[str, Any]) -> Iterator[str]:
    rows = [
        ["people", text(record["people"])],
        ["misplaced (silhouette below 0)", text(record["misplaced"])],
        ["mean error of the misplaced, box sides", _cell(record["error_misplaced"])],
        ["mean error of the others", _cell(record["error_others"])],
        *(
            [f"standard deviation of the factors, {text(name)}", text(value)]
            for name, value in record["spread"].items()
        ),
    ]
    yield markup.facts(rows, "Factors in the loss")
    yield paragraph(f"Protocol: {record['protocol']}", "protocol")


_SENTENCES = {
    "skips": sentences.skips,
    "latent": sentences.latent,
    "clusters": sentences.clusters,
    "redundancy": sentences.redundancy,
    "attention": attention_figures.sentences,
}
_TABLES = {
    "skips": _skip_tables,
    "latent": _latent_tables,
    "clusters": _cluster_tables,
    "redundancy": lambda record: iter(()),
    "weights": _weight_tables,
    "attention": attention_figures.tables,
}
