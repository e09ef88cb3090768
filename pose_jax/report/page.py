"""A workdir on one page: `report.html` needs no other file, no network and no script."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

from etils import epath

from pose_jax.report import markup, page_explanations
from pose_jax.report.markup import (
    Pictures,
    details,
    folded,
    interval,
    paragraph,
    table,
    text,
)
from pose_jax.report.style import STYLE
from pose_jax.writer import read_json

_HIGHLIGHTS = (
    "skeleton", "seed", "model", "input", "codec", "objective", "optimiser", "train",
    "data", "init_from",
)  # fmt: skip


def build(workdir: Any, title: str = "") -> str:
    """The page of a workdir; what is not there is left out.

    Args:
      workdir: its path. title: of the page; by default the folder's name.

    Raises:
      ValueError: nothing there to report, or a file is no JSON.
    """
    workdir, pictures = epath.Path(workdir), Pictures()
    parts = [
        ("run", "What was run", _run(workdir)),
        ("curve", "Learning curve", _curve(workdir, pictures)),
        ("results", "Results", _results(workdir)),
        ("comparison", "Comparison of arms", _comparison(workdir)),
        ("explanations", "Explanations", page_explanations.section(workdir, pictures)),
        ("overlays", "Predictions on evaluation pictures", _overlays(workdir, pictures)),
        ("predictions", "Predictions", _sheets(workdir, pictures)),
    ]  # fmt: skip
    parts = [part for part in parts if part[2]]
    if not parts:
        raise ValueError(
            f"{workdir} holds nothing to report; run a task there first, for example train"
        )
    title = title or workdir.name or str(workdir)
    links = "".join(
        f'<li><a href="#{a}">{html.escape(h)}</a></li>' for a, h, _ in parts
    )
    body = "".join(
        f'<section id="{anchor}" aria-labelledby="{anchor}-title">\n'
        f'<h2 id="{anchor}-title">{html.escape(heading)}</h2>\n{content}</section>\n'
        for anchor, heading, content in parts
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<header><h1>{html.escape(title)}</h1>\n{_subtitle(workdir)}"
        f'<nav aria-label="Sections"><ul>{links}</ul></nav></header>\n'
        f"<main>\n{body}</main>\n</body>\n</html>\n"
    )


def _subtitle(workdir) -> str:
    config = read_json(workdir / "config.json", {})
    model, data = config.get("model", {}), _at(config, "data", "train", "source")
    said = [
        str(model["name"]) if "name" in model else "",
        f"trained on {data.get('path') or data['name']}" if data.get("name") else "",
        f"skeleton {config['skeleton']}" if "skeleton" in config else "",
    ]
    line = ", ".join(part for part in said if part)
    return paragraph(line, "subtitle") if line else ""


def _at(tree: Any, *keys: str) -> Mapping[str, Any]:
    for key in keys:
        tree = tree.get(key, {}) if isinstance(tree, Mapping) else {}
    return tree if isinstance(tree, Mapping) else {}


def _run(workdir) -> str:
    config = read_json(workdir / "config.json", {})
    runs = _at({"m": read_json(workdir / "manifest.json", {})}, "m").get("runs") or []
    parts = []
    if runs:
        last, packages = runs[-1], _at(runs[-1], "packages")
        rows = [
            ["command", f"<code>{text(last.get('command'))}</code>"],
            ["time", text(last.get("time"))],
            ["versions", text(", ".join(f"{k} {v}" for k, v in packages.items() if v))],
            ["Python, platform", text(f"{last.get('python')}, {last.get('platform')}")],
            ["devices", _devices(last)],
            ["revision", text(last.get("git"))],
        ]
        parts.append(table(("", "latest command"), rows, "Latest command"))
        rows = [
            [text(r.get("time")), f"<code>{text(r.get('command'))}</code>"]
            for r in runs
        ]
        parts.append(folded(("time", "command"), rows, f"All {len(runs)} commands"))
    rows = [
        [text(name), markup.inline(_shortened(config[name]))]
        for name in _HIGHLIGHTS
        if config.get(name) not in (None, "", {})
    ]
    if rows:
        parts.append(folded(("section", "values"), rows, "Configuration"))
    return "".join(parts)


def _devices(run: Mapping[str, Any]) -> str:
    kinds = [str(d) for d in run.get("devices") or []]
    counted = ", ".join(f"{kinds.count(k)} x {k}" for k in dict.fromkeys(kinds))
    return text(f"{counted or '–'}; {run.get('processes', 1)} process(es)")


def _shortened(value: Any) -> Any:
    """Settings that are off (empty, 0, False) say little."""
    if isinstance(value, Mapping):
        inner = {k: _shortened(v) for k, v in value.items()}
        return {k: v for k, v in inner.items() if v not in ("", 0, 0.0, None, {}, [])}
    return value


def _curve(workdir, pictures: Pictures) -> str:
    path = workdir / "figures" / "learning_curve.png"
    if not path.exists():
        return ""
    return pictures.figure(
        path,
        "Blue, left scale: training loss, as a share of the loss of empty heatmaps (1 would be "
        "a network that answers nothing). Orange, right scale: the metric on the selection "
        "split, which is not the split of the results.",
        "Loss and evaluation metric against the training step",
    )


def _results(workdir) -> str:
    results = read_json(workdir / "results.json", {})
    parts = []
    for name, record in results.items():
        parts.append(f'<h3 id="result-{markup.slug(name)}">{html.escape(name)}</h3>\n')
        parts.append(_record(record) if isinstance(record, Mapping) else "")
    return "".join(parts)


def _record(record: Mapping[str, Any]) -> str:
    parts, rest = [], {}
    if record.get("protocol"):
        parts.append(paragraph(f"Protocol: {record['protocol']}", "protocol"))
    base = _at(record, "mean_pose")
    for key, value in record.items():
        if key in ("protocol", "mean_pose"):
            continue
        if isinstance(value, Mapping) and "thresholds" in value:
            parts.append(_pck(value, base if key == "pck" else {}))
        elif key == "ap" and isinstance(value, Mapping):
            numbers = {k: v for k, v in value.items() if isinstance(v, float)}
            shown = numbers or value
            cells = [[markup.inline(v) for v in shown.values()]]
            parts.append(table(list(shown), cells, "COCO keypoint AP"))
            rest |= {k: v for k, v in value.items() if k not in numbers and v}
        else:
            rest[key] = value
    rest = {k: v for k, v in rest.items() if v not in (None, "", {}, [])}
    if rest:
        tables = markup.nested(rest, "Record")
        parts.append(details("Everything else in this record", tables))
    return "".join(parts)


def _pck(found: Mapping[str, Any], base: Mapping[str, Any]) -> str:
    """PCK per threshold with interval, the mean pose beside, joints behind a click."""
    limits = found["thresholds"]
    micro = found.get("micro") or [None] * len(limits)
    ends = found.get("interval_95") or [None] * len(limits)
    other = base.get("micro") or []
    headings = ["threshold", "PCK", "95 % interval"] + ["mean pose"] * bool(other)
    rows = [
        [text(limit), text(value), interval(end), *map(text, other[n : n + 1])]
        for n, (limit, value, end) in enumerate(zip(limits, micro, ends))
    ]
    name = str(found.get("name", "PCK"))
    parts = [table(headings, rows, f"{name}, {text(found.get('labels'))} joints")]
    # The usual place to look: the middle threshold.
    middle = len(limits) // 2
    pair = (micro[middle], other[middle]) if len(other) == len(limits) else (1, 0)
    if None not in pair and pair[0] <= pair[1]:
        parts.append(paragraph(
            "This network does not beat the mean pose: it has not learned to look, and "
            "explanations of it mean nothing.", "flag"
        ))  # fmt: skip
    joints = _at(found, "joints")
    rows = [
        [text(joint.replace("_", " ")), text(_at(joints, joint).get("count")),
         *map(text, _at(joints, joint).get("pck") or [])]
        for joint in joints
    ]  # fmt: skip
    if rows:
        heads = ["joint", "labels", *(f"@{limit:g}" for limit in limits)]
        parts.append(folded(heads, rows, f"{name} per joint"))
    return "".join(parts)


def _comparison(workdir) -> str:
    parts = []
    for path in sorted(workdir.glob("comparison*.json")):
        record = read_json(path, {})
        if isinstance(record, Mapping) and record.get("protocol"):
            parts.append(paragraph(f"Protocol: {record['protocol']}", "protocol"))
            record = {k: v for k, v in record.items() if k != "protocol"}
        if record:
            parts.append(markup.nested(record, ""))
    return "".join(parts)


def _overlays(workdir, pictures: Pictures) -> str:
    names = set(read_json(workdir / "results.json", {}))
    paths = [p for p in sorted(workdir.glob("figures/*.png")) if p.stem in names]
    caption = (
        "Truth thin and white, prediction in colour: the person's left orange, right blue, "
        "middle purple; the fainter, the lower the score. A sample, not chosen by quality."
    )
    return "".join(
        pictures.figure(p, f"{p.stem}. {caption}", f"Overlays of {p.stem}")
        for p in paths
    )


def _sheets(workdir, pictures: Pictures) -> str:
    folders = sorted(path.parent for path in workdir.glob("*/poses.json"))
    caption = (
        "Predicted skeletons: the person's left orange, right blue, middle purple; opacity is "
        "the score relative to the surest joint of the picture."
    )
    return "".join(
        pictures.figure(f / "sheet.png", f"{f.name}. {caption}", f"Sheet of {f.name}")
        for f in folders
        if (f / "sheet.png").exists()
    )
