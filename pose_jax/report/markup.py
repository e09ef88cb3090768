"""Pieces of a self-contained HTML page: escaped text, tables, pictures as data URIs."""

from __future__ import annotations

import base64
import html
import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

LARGEST_PX = 1600
QUALITY = 82
_INLINE = 8  # Longer lists hide behind a click.
_OF_MEANS = {
    "mean", "estimate", "low", "high", "smallest_effect", "standard_error", "per_seed",
    "joints", "people", "agree",
}  # fmt: skip


def text(value: Any) -> str:
    """Escaped text of a scalar: readable numbers, `–` for what is missing."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        small = value and abs(value) < 0.0005
        shown = f"{value:.2g}" if small else f"{value:,.3f}"
        return shown.replace("-", "−")
    return html.escape(str(value))


def slug(name: str) -> str:
    """A name for an anchor."""
    return re.sub(r"[^a-zA-Z0-9]+", "-", name).strip("-").lower() or "part"


def paragraph(words: str, kind: str = "") -> str:
    """A paragraph of plain text; `kind` is its class."""
    label = f' class="{kind}"' if kind else ""
    return f"<p{label}>{html.escape(words)}</p>\n"


def details(summary: str, body: str, *, opened: bool = False) -> str:
    """Markup behind a click."""
    state = " open" if opened else ""
    return (
        f"<details{state}><summary>{html.escape(summary)}</summary>\n{body}</details>\n"
    )


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], name: str) -> str:
    """A table in a box of its own that scrolls; the first cell of a row is its heading.

    Args:
      headings: plain text, one per column. rows: markup per cell, already escaped.
      name: what the table holds, for its caption.
    """
    head = "".join(
        f'<th scope="col">{html.escape(h)}</th>' if h else "<td></td>" for h in headings
    )
    lines = []
    for row in rows:
        cells = "".join(f"<td>{cell}</td>" for cell in row[1:])
        lines.append(f'<tr><th scope="row">{row[0]}</th>{cells}</tr>\n')
    name = html.escape(name)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{name}">'
        f"<table><caption>{name}</caption>\n<thead><tr>{head}</tr></thead>\n"
        f"<tbody>\n{''.join(lines)}</tbody></table></div>\n"
    )


def facts(rows: Sequence[Sequence[str]], name: str) -> str:
    """Names and values, wrapped to the width of the page; cells are markup."""
    lines = "".join(f'<tr><th scope="row">{k}</th><td>{v}</td></tr>\n' for k, v in rows)
    caption = f"<caption>{html.escape(name)}</caption>\n" if name else ""
    return f'<table class="facts">{caption}<tbody>\n{lines}</tbody></table>\n'


def folded(headings: Sequence[str], rows: Sequence[Sequence[str]], name: str) -> str:
    """A table behind a click."""
    return details(name, table(headings, rows, name))


def nested(value: Any, name: str) -> str:
    """Any JSON as tables: flat records side by side, the rest line by line."""
    if isinstance(value, Mapping) and value:
        if all(_record(inner) for inner in value.values()):
            return _matrix([(str(k), v) for k, v in value.items()], name)
        plain = [[text(k), inline(v)] for k, v in value.items() if _flat(v)]
        parts = [facts(plain, name)] if plain else []
        for key, inner in value.items():
            if not _flat(inner):
                parts.append(nested(inner, f"{name}: {key}" if name else str(key)))
        return "".join(parts)
    if isinstance(value, list) and value and all(map(_record, value)):
        return _matrix([(str(n), v) for n, v in enumerate(value, 1)], name)
    return f"<p>{html.escape(name)}: {inline(value)}</p>\n"


def crossed(value: Any, name: str) -> str:
    """A record of records as one table, outer names across and inner ones down."""
    if not all(isinstance(v, Mapping) and v for v in value.values()):
        return nested(value, name)
    inner = dict.fromkeys(str(key) for record in value.values() for key in record)
    turned = {
        key: {str(k): v[key] for k, v in value.items() if key in v} for key in inner
    }
    return _matrix(list(turned.items()), name)


def inline(value: Any) -> str:
    """Any JSON inside a table cell."""
    if isinstance(value, Mapping):
        if (mean := _estimate(value)) is not None:
            parts = [text(value[mean])]
            if {"low", "high"} <= set(value):
                parts.append(_interval(value["low"], value["high"]))
            if "smallest_effect" in value:
                effect = text(value["smallest_effect"])
                parts.append(f"<br>smallest effect {effect}")
            return " ".join(parts)
        return "<br>".join(f"{text(k)}: {inline(v)}" for k, v in value.items()) or "–"
    if isinstance(value, list | tuple):
        joined = ", ".join(inline(v) for v in value) or "–"
        if len(value) > _INLINE:
            return details(f"{len(value)} entries", f"<p>{joined}</p>")
        return joined
    return text(value)


def at(tree: Any, *keys: str) -> Mapping[str, Any]:
    """The record at a path of keys; an empty one where there is none."""
    for key in keys:
        tree = tree.get(key, {}) if isinstance(tree, Mapping) else {}
    return tree if isinstance(tree, Mapping) else {}


def interval(ends: Any) -> str:
    """`[low, high]`, or nothing."""
    return _interval(*ends) if isinstance(ends, list | tuple) and len(ends) == 2 else ""


def _interval(low: Any, high: Any) -> str:
    return f'<span class="interval">[{text(low)}, {text(high)}]</span>'


def _estimate(value: Mapping[str, Any]) -> str | None:
    """The key of the number where the record is one of a mean; its seeds stay in the file."""
    keys = {"mean", "estimate"} & set(value)
    if len(keys) != 1 or not set(value) <= _OF_MEANS:
        return None
    key = keys.pop()
    return key if isinstance(value[key], int | float | None) else None


def _record(value: Any) -> bool:
    """Whether it is a row of a table."""
    return (
        isinstance(value, Mapping)
        and bool(value)
        and _estimate(value) is None
        and all(map(_flat, value.values()))
    )


def _flat(value: Any) -> bool:
    """Whether it fits into a cell."""
    if isinstance(value, Mapping):
        return not value or _estimate(value) is not None
    if isinstance(value, list):
        return not any(isinstance(v, Mapping) for v in value)
    return True


def _matrix(rows: Sequence[tuple[str, Mapping[str, Any]]], name: str) -> str:
    columns = list(dict.fromkeys(key for _, record in rows for key in record))
    cells = [
        [text(key), *(inline(record[c]) if c in record else "" for c in columns)]
        for key, record in rows
    ]
    return table(["", *map(str, columns)], cells, name)


class Pictures:
    """Pictures as data URIs, until the page is as large as it may be.

    Attributes:
      left: bytes that may still be spent.
      count: pictures so far.
    """

    def __init__(self, budget: int = 8_000_000):
        self.left, self.count = budget, 0

    def figure(self, path: Any, caption: str, alt: str) -> str:
        """A figure with its caption; only its name when the page would grow too large."""
        kind, data = compress(path.read_bytes())
        said = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
        code = base64.b64encode(data).decode()
        if len(code) > self.left:
            missing = f"{path.parent.name}/{path.name} is left out: the page would be too large."
            return f"<figure>{paragraph(missing, 'flag')}{said}</figure>\n"
        self.left -= len(code)
        source = f"data:image/{kind};base64,{code}"
        self.count += 1
        name = f"picture-{self.count}"
        # A switch without a script: small screens show the picture small, or let it scroll.
        switch = (
            f'<input type="checkbox" class="enlarge" id="{name}">'
            f'<label for="{name}">full size</label>'
        )
        picture = f'<img src="{source}" alt="{html.escape(alt)}">'
        return f'<figure>{switch}<div class="scroll">{picture}</div>{said}</figure>\n'


def compress(data: bytes) -> tuple[str, bytes]:
    """Media type and bytes: JPEG for photographs, PNG where lines make it the smaller one."""
    with Image.open(io.BytesIO(data)) as opened:
        image = opened.convert("RGB")
    shrunk = max(image.size) > LARGEST_PX
    if shrunk:
        image.thumbnail((LARGEST_PX, LARGEST_PX), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY, optimize=True, progressive=True)
    photo = buffer.getvalue()
    if data.startswith(b"\x89PNG") and not shrunk and len(data) <= 1.3 * len(photo):
        return "png", data
    return "jpeg", photo
