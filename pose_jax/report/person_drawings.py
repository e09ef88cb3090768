"""One explained person: arrows on the picture, waterfalls, pictures of coalitions.

Every panel is one target, hence one game: panels lie side by side and are never summed.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from matplotlib import patheffects
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch

from pose_jax import regions
from pose_jax.report import plotting
from pose_jax.report.plotting import FAINT, INK, hue, new_figure, signed, words

STRONGEST = 5
FEW = 3


class Bars(NamedTuple):
    """A waterfall: `start + sum(values) = end` up to rounding.

    Attributes:
      title: name of the target.
      names, values: of the bars, in the order in which they are drawn.
      foreign: whether a bar is a whole other cluster.
      start, end: score where the bars start and end.
      start_name: what is seen at the start.
    """

    title: str
    names: Sequence[str]
    values: Sequence[float]
    foreign: Sequence[bool]
    start: float
    end: float
    start_name: str = "context alone, v(∅)"


class Tile(NamedTuple):
    """One coalition of a strip: its picture, its score, and who is seen or hidden."""

    title: str
    picture: UInt8[np.ndarray, "h w 3"]
    score: float
    note: str = ""


def influence_arrows(
    image: UInt8[np.ndarray, "h w 3"],
    players: Float[np.ndarray, "n 2"],
    joints: Float[np.ndarray, "k 2"],
    influence: Float[np.ndarray, "n k"],
    targets: Sequence[int],
    *,
    player_names: Sequence[str],
    joint_names: Sequence[str],
    own: Sequence[int],
    limbs: Sequence[Sequence[int]] = (),
    strongest: int = STRONGEST,
) -> Figure:
    """Arrows from the strongest players to each target; width and opacity are |influence|.

    Args:
      image: the crop. players, joints: places in crop pixels; players without a place (NaN)
        get no arrow.
      influence: of every player on every target, in units of the score.
      targets: joints to draw, one panel each; one scale serves all panels.
      own: `[k]` the player that is the joint itself (-1: none); it is named, not drawn.
      limbs: pairs of joints, drawn thin.

    Raises:
      ValueError: no target.
    """
    figure, panels = _panels(len(targets), 3.3, 3.2 * len(image) / image.shape[1] + 1)
    shown = influence[:, list(targets)][np.isfinite(players).all(1)]
    largest = max(float(np.nanmax(np.abs(shown), initial=0.0)), 1e-9)
    for axes, target in zip(panels, targets):
        values = influence[:, target].astype(float)
        order = [
            i
            for i in np.argsort(-np.abs(np.nan_to_num(values)), kind="stable")
            if i != own[target] and np.isfinite(players[i]).all() and values[i]
        ][:strongest]
        _backdrop(axes, image, joints, limbs)
        axes.set_title(words(joint_names[target]), fontsize=12, weight="bold")
        for rank, i in reversed(list(enumerate(order, 1))):
            share = abs(values[i]) / largest
            arrow = f"{player_names[i]} -> {joint_names[target]}"
            _arrow(
                axes, players[i], joints[target], values[i], share, len(image), arrow
            )
            _disc(axes, players[i], str(rank), hue(float(values[i])))
        _ring(axes, joints[target], len(image) / 32)
        _ranking(axes, order, values, player_names, int(own[target]))
    return figure


def _backdrop(axes, image, joints, limbs) -> None:
    pale = np.rint(image * 0.75 + 255 * 0.25).astype(np.uint8)
    axes.imshow(pale, interpolation="bicubic")
    for a, b in limbs:
        ends = joints[[a, b]]
        if np.isfinite(ends).all():
            axes.plot(*ends.T, color="white", linewidth=1.2, alpha=0.8, zorder=2)
    axes.set(xlim=(-0.5, image.shape[1] - 0.5), ylim=(image.shape[0] - 0.5, -0.5))
    axes.set(xticks=[], yticks=[])


def _arrow(axes, start, end, value, share, height, name: str) -> None:
    if not np.isfinite(end).all() or np.hypot(*(end - start)) < height / 50:
        return
    arrow = FancyArrowPatch(
        tuple(start), tuple(end), arrowstyle="-|>", mutation_scale=8 + 14 * share,
        connectionstyle="arc3,rad=0.18", linewidth=1.2 + 5 * share, color=hue(value),
        alpha=0.4 + 0.6 * share, shrinkA=6, shrinkB=8, zorder=3 + share, gid=name,
    )  # fmt: skip
    seam = patheffects.Stroke(linewidth=2.6 + 5 * share, foreground="white", alpha=0.6)
    arrow.set_path_effects([seam, patheffects.Normal()])
    axes.add_patch(arrow)


def _disc(axes, place, text, colour) -> None:
    look = dict(boxstyle="circle,pad=0.18", facecolor=colour, edgecolor="white")
    axes.text(
        *place, text, color="white", fontsize=8, weight="bold", ha="center", va="center",
        bbox=look, zorder=6, clip_on=True,
    )  # fmt: skip


def _ring(axes, place, radius) -> None:
    if np.isfinite(place).all():
        for width, colour in ((4.5, "black"), (2.5, plotting.TARGET)):
            ring = Circle(
                tuple(place), radius, fill=False, linewidth=width, edgecolor=colour
            )
            axes.add_patch(ring)
            ring.set_zorder(5)


def _ranking(axes, order, values, names, own: int) -> None:
    """What the numbered discs are, below the picture, in two columns."""
    lines = [
        (f"{rank}  {words(names[i])} {signed(values[i])}", hue(values[i]))
        for rank, i in enumerate(order, 1)
    ]
    if own >= 0:
        lines.append((f"own region {signed(values[own])}", INK))
    for number, (text, colour) in enumerate(lines):
        row, column = number % 3, number // 3
        axes.annotate(
            text, (0.01 + 0.5 * column, 0), (0, -5 - 12.5 * row), fontsize=8.5,
            xycoords="axes fraction", textcoords="offset points", va="top",
            color=colour, weight="bold" if number == 0 else "normal",
            annotation_clip=False,
        )  # fmt: skip


def waterfalls(games: Sequence[Bars], score: str) -> Figure:
    """One panel per target: from the context alone to the whole picture, player by player.

    Raises:
      ValueError: no target.
    """
    rows = max((len(game.values) for game in games), default=0) + 2
    figure, panels = _panels(len(games), 4.4, 0.27 * rows + 0.75)
    ends = [s for game in games for s in _stations(game)]
    low, high = min([0.0, *ends]), max(ends)
    room = 0.16 * max(high - low, 1e-3)
    for axes, game in zip(panels, games):
        _waterfall(axes, game, room / 8)
        axes.set_xlim(low - room, high + room)
        axes.set_xlabel(f"score ({score})", fontsize=9)
    return figure


def _stations(game: Bars) -> list[float]:
    values = np.nan_to_num(np.asarray(game.values, float))
    stations = game.start + np.concatenate([[0.0], np.cumsum(values)])
    return [float(s) for s in (*stations, game.end) if np.isfinite(s)]


def _waterfall(axes, game: Bars, gap: float) -> None:
    level, last = float(game.start), len(game.values) + 1
    names = [game.start_name, *map(words, game.names), "whole picture, v(all)"]
    _total(axes, 0, game.start, gap)
    for row, (value, foreign) in enumerate(zip(game.values, game.foreign), 1):
        value = float(np.nan_to_num(value))
        axes.barh(
            row, value, left=level, height=0.72, color=hue(value), edgecolor="white",
            alpha=0.55 if foreign else 1.0, hatch="///" if foreign else None,
        )  # fmt: skip
        axes.plot([level, level], [row - 1, row], color=FAINT, linewidth=0.8, zorder=0)
        right = max(level, level + value) + gap
        axes.text(right, row, signed(value), va="center", fontsize=8.5, color=INK)
        level += value
    axes.plot([level, level], [last - 1, last], color=FAINT, linewidth=0.8, zorder=0)
    _total(axes, last, game.end, gap)
    axes.set_title(words(game.title), fontsize=12, weight="bold", loc="left")
    axes.set_yticks(range(last + 1), names, fontsize=9)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=8.5)
    axes.set_ylim(last + 0.6, -0.6)
    plotting.bare(axes, "bottom")


def _total(axes, row, value, gap) -> None:
    axes.plot([value], [row], "D", color=INK, markersize=6, clip_on=False)
    text = f"{value:.2f}".replace("-", "−")
    axes.text(value + 1.6 * gap, row, text, va="center", fontsize=9, weight="bold")


def coalition_strips(
    rows: Sequence[tuple[str, Float[np.ndarray, "2"], Sequence[Tile]]],
) -> Figure:
    """The masked pictures themselves with their scores.

    Args:
      rows: name of a target, its place in crop pixels (ringed) and its tiles.

    Raises:
      ValueError: no row.
    """
    if not rows:
        raise ValueError("no target to draw; give at least one")
    columns = max(len(tiles) for _, _, tiles in rows)
    height, width = rows[0][2][0].picture.shape[:2]
    figure = new_figure(1.8 * columns, (1.65 * height / width + 0.95) * len(rows))
    grid: Any = figure.subplots(len(rows), columns, squeeze=False)
    for axes, (name, place, tiles) in zip(grid, rows):
        for cell in axes:
            cell.set(xticks=[], yticks=[])
            cell.set_axis_off()
        for cell, tile in zip(axes, tiles):
            cell.set_axis_on()
            cell.imshow(tile.picture, interpolation="bicubic")
            _ring(cell, place, height / 28)
            plotting.bare(cell)
            cell.set_title(f"{tile.title}\n{tile.score:.2f}", fontsize=9.5)
            note = textwrap.fill(tile.note, 27, break_long_words=False)
            cell.set_xlabel(note, fontsize=7.5, color=INK)
        axes[0].set_ylabel(words(name), fontsize=11, weight="bold")
    return figure


def composite(
    image: UInt8[np.ndarray, "h w 3"],
    fill: UInt8[np.ndarray, "h w 3"],
    owners: Int[np.ndarray, "h w"],
    coalition: Bool[np.ndarray, "n"],
) -> UInt8[np.ndarray, "h w 3"]:
    """What the model saw: the fill where a player outside the coalition owns the pixel."""
    hidden = (owners != regions.FREE) & ~coalition[owners]
    return np.where(hidden[..., None], fill, image)


def pick_coalitions(
    coalitions: Bool[np.ndarray, "c n"],
    scores: Float[np.ndarray, "c"],
    present: Bool[np.ndarray, "n"],
    *,
    few: int = FEW,
) -> dict[str, int]:
    """Rows that say most: `full`, `empty`, `best` with 1..few players, `worst` with 1..few hidden.

    Args:
      coalitions: rows that were evaluated. scores: of one target. present: players that own
        pixels; the others count neither as seen nor as hidden.
    """
    seen = (coalitions & present).sum(1)
    hidden = present.sum() - seen
    scores = np.asarray(scores, float)
    found = {}
    for name, where, best in (
        ("full", hidden == 0, True),
        ("empty", seen == 0, True),
        ("best", (seen >= 1) & (seen <= few) & (hidden > 0), True),
        ("worst", (hidden >= 1) & (hidden <= few) & (seen > 0), False),
    ):
        rows = np.flatnonzero(where & np.isfinite(scores))
        if len(rows):
            # Of equal scores the fewest players tell it most simply.
            effort = seen[rows] if best else hidden[rows]
            key = -scores[rows] if best else scores[rows]
            found[name] = int(rows[np.lexsort((effort, key))[0]])
    return found


def _panels(count: int, width: float, height: float) -> tuple[Figure, list[Any]]:
    if not count:
        raise ValueError("no target to draw; give at least one")
    columns = min(2, count)
    lines = -(-count // columns)
    figure = new_figure(width * columns, height * lines)
    grid: Any = figure.subplots(lines, columns, squeeze=False)
    panels = list(grid.ravel())
    for spare in panels[count:]:
        spare.set_axis_off()
    return figure, panels[:count]
