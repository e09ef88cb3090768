"""What closing a skip gate does to the features of the decoder and to the heatmaps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from pose_jax.report import analysis_panels as panels
from pose_jax.report.analysis_panels import SMALL, TEXT, WIDTH
from pose_jax.report.plotting import new_figure
from pose_jax.report.skip_drawings import STYLES, short, styles_of


def singles(opened: Sequence[Sequence[bool]], gates: Sequence[str]) -> dict[str, int]:
    """Label -> number of the subset: each gate closed alone, then all of them."""
    rows = [tuple(map(bool, row)) for row in opened]
    g = len(gates)
    found = {
        f"{name} closed": rows.index(tuple(j != i for j in range(g)))
        for i, name in enumerate(short(gates))
    }
    return found | {"all closed": rows.index((False,) * g)} if g > 1 else found


def effects(record: Mapping[str, Any], split: str) -> Figure:
    """1 - CKA and relative change of the decoder outputs, a row of panels per style."""
    styles, decoders = styles_of(record), record["decoders"]
    shown = singles(record["opened"], record["gates"])
    figure = new_figure(WIDTH, 0.9 + len(styles) * (0.5 + 0.36 * len(shown)))
    axes: Any = figure.subplots(
        len(styles), 2, sharey=True, sharex="col", squeeze=False
    )
    columns = (("cka_change", "1 − CKA"), ("relative_change", "relative L2 change"))
    for line, style in zip(axes, styles):
        found = record["splits"][split]["styles"][style]["subsets"]
        for side, (field, _) in zip(line, columns):
            for y, n in enumerate(shown.values()):
                _decoder_marks(side, found[n].get(field) or [], y)
            panels.tidy(side)
        panels.rows(line[0], list(shown))
        line[0].set_title(STYLES.get(style, style), fontsize=TEXT, loc="left")
        line[1].tick_params(axis="y", length=0)
    for side, (_, title) in zip(axes[-1], columns):
        side.set_xlabel(title, fontsize=SMALL)
    for side in axes.T:
        panels.from_zero(*side)
    for number, name in enumerate(short(decoders)):
        panels.name_point(axes[0, 0], name, number)
    panels.legend(figure, axes[0, 0], columns=min(4, len(decoders)))
    return figure


def _decoder_marks(axes, values, y: float) -> None:
    for number, (shift, value) in enumerate(
        zip(panels.spread(len(values), 0.4), values)
    ):
        if value is not None:
            axes.plot(
                [value], [y + shift], panels.MARKS[number % len(panels.MARKS)],
                color=panels.colour(number), markersize=5.5,
            )  # fmt: skip


def answers(record: Mapping[str, Any]) -> Figure:
    """Peak and entropy of the heatmaps with gates closed; a mark per split and style."""
    styles, splits = styles_of(record), record["splits"]
    shown = {"all open": len(record["opened"]) - 1}
    shown |= singles(record["opened"], record["gates"])
    series = [(name, style) for name in splits for style in styles]
    figure = new_figure(WIDTH, 1.0 + 0.22 * -(-len(series) // 2) + 0.4 * len(shown))
    axes: Any = figure.subplots(1, 2, sharey=True)
    for side, field, title in (
        (axes[0], "peak", "peak of the heatmap"),
        (axes[1], "entropy", "entropy (nats)"),
    ):
        for number, (name, style) in enumerate(series):
            found = splits[name]["styles"][style]["subsets"]
            shift = panels.spread(len(series))[number]
            for y, n in enumerate(shown.values()):
                value = panels.estimate({"value": found[n].get(field)})
                panels.point(side, value, y + shift, number)
        panels.tidy(side, title=title)
        panels.from_zero(side)
        side.tick_params(axis="y", length=0)
    panels.rows(axes[0], list(shown))
    for number, (name, style) in enumerate(series):
        panels.name_point(axes[0], f"{name}, {STYLES.get(style, style)}", number)
    panels.legend(figure, axes[0])
    return figure
