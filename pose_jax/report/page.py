"""A workdir on one page: `report.html` needs no other file, no network and no script."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from pose_jax.report import markup, page_analyses, page_explanations, page_results
from pose_jax.report.markup import Pictures, at, details, facts, folded, paragraph, text
from pose_jax.report.style import STYLE
from pose_jax.writer import read_json

_HIGHLIGHTS = (
    "skeleton", "seed", "model", "input", "codec", "objective", "optimiser", "train",
    "data", "init_from",
)  # fmt: skip


def build(workdir: Any, title: str = "", beside: Sequence[str] = ()) -> str:
    """The page of a workdir; what is not there is left out.

    Args:
      workdir: its path. title: of the page; by default the folder's name.
      beside: other workdirs whose analyses stand beside this one's.

    Raises:
      ValueError: nothing there to report, a file is no JSON or not whole, or a workdir
        beside has no analysis.
    """
    workdir, pictures = epath.Path(workdir), Pictures()
    parts = [
        ("run", "What was run", _run(workdir)),
        ("curve", "Learning curve", _curve(workdir, pictures)),
        ("results", "Results", page_results.results(workdir)),
        ("comparison", "Comparison of arms", page_results.comparison(workdir)),
        ("explanations", "Explanations", page_explanations.section(workdir, pictures)),
        ("inside", "Inside the network",
         page_analyses.section(workdir, pictures, beside)),
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
    model, data = config.get("model", {}), at(config, "data", "train", "source")
    said = [
        str(model["name"]) if "name" in model else "",
        f"trained on {data.get('path') or data['name']}" if data.get("name") else "",
        f"skeleton {config['skeleton']}" if "skeleton" in config else "",
    ]
    line = ", ".join(part for part in said if part)
    return paragraph(line, "subtitle") if line else ""


def _run(workdir) -> str:
    config = read_json(workdir / "config.json", {})
    runs = at({"m": read_json(workdir / "manifest.json", {})}, "m").get("runs") or []
    parts = []
    if runs:
        last, packages = runs[-1], at(runs[-1], "packages")
        rows = [
            ["command", f"<code>{text(last.get('command'))}</code>"],
            ["time", text(last.get("time"))],
            ["versions", text(", ".join(f"{k} {v}" for k, v in packages.items() if v))],
            ["Python", text(last.get("python"))],
            ["platform", text(last.get("platform"))],
            ["devices", _devices(last)],
            ["revision", text(last.get("git"))],
        ]
        parts.append(facts(rows, "Latest command"))
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
        parts.append(details("Configuration", facts(rows, "")))
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
