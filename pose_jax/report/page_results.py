"""The part of the page that shows results of evaluations and comparisons of arms."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

from pose_jax.report import markup
from pose_jax.report.markup import at, details, folded, interval, paragraph, table, text
from pose_jax.writer import read_json


def results(workdir: Any) -> str:
    """Every record of `results.json` with its protocol.

    Raises:
      ValueError: the file is no JSON.
    """
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
    base = at(record, "mean_pose")
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
    headings = ["threshold", "PCK, 95 % interval" if any(ends) else "PCK"]
    headings += ["mean pose"] * bool(other)
    rows = [
        [f"{limit:g}", f"{text(value)} {interval(end)}", *map(text, other[n : n + 1])]
        for n, (limit, value, end) in enumerate(zip(limits, micro, ends))
    ]
    name = str(found.get("name", "PCK"))
    parts = [table(headings, rows, f"{name}, {text(found.get('labels'))} joints")]
    # The usual place to look: the middle threshold.
    middle = len(limits) // 2
    reached = micro[middle] if len(other) == len(limits) else None
    if None not in (reached, *other) and reached <= other[middle]:
        parts.append(paragraph(
            "This network does not beat the mean pose: it has not learned to look, and "
            "explanations of it mean nothing.", "flag"
        ))  # fmt: skip
    joints = at(found, "joints")
    rows = [
        [text(joint.replace("_", " ")), text(at(joints, joint).get("count")),
         *map(text, at(joints, joint).get("pck") or [])]
        for joint in joints
    ]  # fmt: skip
    if rows:
        heads = ["joint", "labels", *(f"@{limit:g}" for limit in limits)]
        parts.append(folded(heads, rows, f"{name} per joint"))
    return "".join(parts)


def comparison(workdir: Any) -> str:
    """Comparisons of the arms of a sweep: values, differences, whatever else is recorded.

    Raises:
      ValueError: a file is no JSON.
    """
    paths = sorted(workdir.glob("comparison-*.json")) or [workdir / "comparison.json"]
    parts = []
    for path in paths:
        record = read_json(path, {})
        if not isinstance(record, Mapping):
            record = {"record": record}
        if len(paths) > 1:
            parts.append(f"<h3>{html.escape(path.stem)}</h3>\n")
        if record.get("protocol"):
            parts.append(paragraph(f"Protocol: {record['protocol']}", "protocol"))
        rest = {k: v for k, v in record.items() if k != "protocol"}
        base = f" from {record['baseline']}" if record.get("baseline") else ""
        for key, name, said in (
            ("arms", "Arms, mean over seeds", ""),
            ("differences", f"Differences{base}, 95 % intervals", _DIFFERENCES),
        ):
            if at(rest, key):
                parts.append(markup.crossed(rest.pop(key), name))
                parts.append(paragraph(said, "note") if said else "")
        if rest:
            parts.append(markup.nested(rest, ""))
    return "".join(parts)


_DIFFERENCES = (
    "An interval that holds 0 does not show a difference; the smallest effect is what such runs "
    "show in four of five repetitions, and a smaller one may exist unseen. Measures are many "
    "and intervals are not corrected for that."
)
