"""The part of the page that shows the folders of explanations."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

from pose_jax.report import captions, explanations, markup
from pose_jax.report.markup import Pictures, details, paragraph, table, text
from pose_jax.writer import read_json


def section(workdir: Any, pictures: Pictures) -> str:
    """Every folder of `explain/` that holds explanations: settings, warnings, figures.

    Raises:
      ValueError: a file is no JSON.
    """
    found = []
    for path in sorted(workdir.glob("explain/*/explanations.json")):
        record = read_json(path)
        if isinstance(record, Mapping):
            found.append((path.parent, record))
    parts = []
    if len(found) > 1:
        items = "".join(
            f'<li><a href="#{_anchor(folder)}">{html.escape(folder.name)}</a></li>'
            for folder, _ in found
        )
        parts.append(f"<ul>{items}</ul>\n")
    return "".join(parts + [_folder(f, record, pictures) for f, record in found])


def _anchor(folder) -> str:
    return f"explain-{markup.slug(folder.name)}"


def _folder(folder, record: Mapping[str, Any], pictures: Pictures) -> str:
    parts = [f'<h3 id="{_anchor(folder)}">{html.escape(folder.name)}</h3>\n']
    parts.append(paragraph(f"Protocol: {record.get('protocol', '–')}", "protocol"))
    parts.append(_quality(record))
    kind = captions.KINDS.get(record.get("kind", ""), "")
    note = f"{kind}. {captions.UNSTACKED}" if kind else captions.UNSTACKED
    parts.append(paragraph(note, "note"))
    parts.append(_removals(read_json(folder / "removals.json", {})))
    groups: dict[str, list[str]] = {}
    for entry in explanations.read_index(folder):
        path = folder / "figures" / str(entry.get("file"))
        if path.exists():
            group = groups.setdefault(entry.get("group", ""), [])
            group.append(_figure(path, entry, pictures))
    parts += groups.pop("", [])
    for number, (name, figures) in enumerate(groups.items()):
        parts.append(details(name, "".join(figures), opened=number == 0))
    return "".join(parts)


def _figure(path, entry: Mapping[str, Any], pictures: Pictures) -> str:
    title = str(entry.get("title", path.stem))
    heading = f"<h4>{html.escape(title)}</h4>\n"
    return heading + pictures.figure(path, str(entry.get("caption", "")), title)


def _quality(record: Mapping[str, Any]) -> str:
    """What was explained: people, forward passes, and how good the model is on them."""
    rows = [
        ["people", text(record.get("people"))],
        ["forward passes", text(record.get("evaluations"))],
        ["largest residual of efficiency", text(record.get("largest_residual"))],
    ]
    quality = record.get("quality")
    if isinstance(quality, Mapping):
        value = text(quality.get("pck@0.1"))
        rows.append([
            "quality of the explained model",
            f"PCK@0.1 {value} on the {text(quality.get('joints'))} labelled joints of these "
            "people, no flip test",
        ])  # fmt: skip
    else:
        rows.append(["quality of the explained model", "unknown: no labels"])
    parts = [markup.facts(rows, "What was explained")]
    if isinstance(quality, Mapping) and record.get("keypoints"):
        parts.append(_joints(record, quality))
    return "".join(parts)


def _joints(record: Mapping[str, Any], quality: Mapping[str, Any]) -> str:
    joints = list(record["keypoints"])
    gap = record.get("gap", {})
    columns = [quality.get("per_joint"), *(gap.get(k) for k in ("mean", "low", "high"))]
    columns = [c or [None] * len(joints) for c in columns]
    rows = [
        [text(joint.replace("_", " ")), text(pck), markup.inline(dict(mean=m, low=a, high=b))]
        for joint, pck, m, a, b in zip(joints, *columns)
    ]  # fmt: skip
    heads = ("joint", "PCK@0.1", "v(all) − v(∅), 95 % interval")
    return markup.folded(heads, rows, "Quality and gap per joint")


def _removals(found: Mapping[str, Any]) -> str:
    """Agreement of explanations under another fill, flagged where it is low."""
    against = found.get("against") or {}
    if not against:
        return ""
    rows, low = [], []
    for name, record in against.items():
        tau = record.get("mean")
        agrees = tau is not None and tau >= captions.AGREE
        low += [] if agrees else [name]
        verdict = "agree" if agrees else f"disagree (below {captions.AGREE})"
        people = text(record.get("people"))
        rows.append([text(name), markup.inline(record), people, verdict])
    heads = ("other fill", "Kendall's tau, 95 % interval", "people", "")
    removal = str(found.get("removal"))
    name = f"Do explanations with the fill {removal} survive another?"
    parts = [table(heads, rows, name)]
    if low:
        parts.append(paragraph(
            f"Flagged: the ranking of players depends on the fill ({removal} against "
            f"{', '.join(low)}). What follows is about hiding by {removal}, not about the "
            "body part as such.", "flag"
        ))  # fmt: skip
    return "".join(parts)
