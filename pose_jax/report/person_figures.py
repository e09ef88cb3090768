"""Arrays of explained people -> three figures per person of whom the picture was kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from matplotlib.figure import Figure

from pose_jax import skeletons
from pose_jax.report import captions, person_drawings
from pose_jax.report.person_drawings import Bars, Tile
from pose_jax.report.plotting import words

TARGETS = 4


def person_figures(
    record: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    pictures: Mapping[str, np.ndarray],
) -> Iterator[tuple[str, str, str, Figure, str]]:
    """File stem, title, caption, figure and the person's name.

    Args:
      record: `explanations.json`. arrays: `explanations.npz`. pictures: `pictures.npz`.
    """
    for number, m in enumerate(pictures.get("of", np.zeros(0, int)).tolist()):
        one = {k: v[m] for k, v in arrays.items() if k != "coalitions" and len(v) > m}
        one |= {k: pictures[k][number] for k in ("image", "fill", "owners")}
        targets = choose_targets(
            one["full"] - one["empty"], one["target_valid"],
            record["players"]["target_cluster"],
        )  # fmt: skip
        if not targets:
            continue
        group = f"Person {one['id']}" if "id" in one else f"Person {m}"
        stem = f"person-{m:04d}"
        yield (
            f"{stem}-arrows", "Who put the joint there", captions.arrows(record),
            _arrows(record, one, targets), group,
        )  # fmt: skip
        games = [bars(record, one, t) for t in targets]
        yield (
            f"{stem}-waterfall", "How the score is made up", captions.waterfall(record),
            person_drawings.waterfalls(games, record["score"]), group,
        )  # fmt: skip
        coalitions = arrays.get("coalitions")
        if coalitions is not None and len(coalitions) == len(one["table"]):
            rows = [_strip(record, one, coalitions.astype(bool), t) for t in targets]
            yield (
                f"{stem}-coalitions", "What the model saw", captions.coalitions(record),
                person_drawings.coalition_strips(rows), group,
            )  # fmt: skip


def choose_targets(
    gap: Float[np.ndarray, "k"],
    valid: Bool[np.ndarray, "k"],
    cluster: Any,
    count: int = TARGETS,
) -> list[int]:
    """Joints with most to explain, from different clusters as long as there are any."""
    size = np.where(valid & np.isfinite(gap), np.abs(gap), -1.0)
    order = [int(t) for t in np.argsort(-size, kind="stable") if size[t] >= 0]
    first, used = [], set()
    for t in order:
        if cluster[t] not in used:
            used.add(cluster[t])
            first.append(t)
    return (first + [t for t in order if t not in first])[:count]


def player_places(
    centres: Float[np.ndarray, "k 2"],
    present: Bool[np.ndarray, "k"],
    owners: Int[np.ndarray, "h w"],
    own: Any,
    count: int,
) -> Float[np.ndarray, "n 2"]:
    """Where players are, in crop pixels: the joint, or the middle of the pixels; NaN: nowhere."""
    places = np.full((count, 2), np.nan)
    for player in range(count):
        y, x = np.nonzero(owners == player)
        if len(x):
            places[player] = x.mean(), y.mean()
    for joint, player in enumerate(own):
        if player >= 0 and present[joint]:
            places[player] = centres[joint]
    return places


def bars(record: Mapping[str, Any], one: Mapping[str, Any], target: int) -> Bars:
    """The waterfall of one target: members of its cluster first, then foreign clusters."""
    players = record["players"]
    cluster = players["target_cluster"][target]
    values: list[tuple[str, float, bool]] = [
        (players["names"][i], float(one["member_values"][i, target]), False)
        for i in players["clusters"][cluster]
    ]
    decoupled = record["kind"] == "decoupled"
    if not decoupled:  # Its foreign clusters belong to another game.
        values += [
            (f"{name}, whole", float(one["cluster_values"][g, target]), True)
            for g, name in enumerate(players["cluster_names"])
            if g != cluster
        ]
    values.sort(key=lambda bar: (bar[2], -abs(bar[1])))
    names, numbers, foreign = zip(*values)
    start = one["baseline"] if decoupled else one["empty"]
    place = "own cluster hidden" if decoupled else "context alone, v(∅)"
    return Bars(
        record["keypoints"][target], names, numbers, foreign, float(start[target]),
        float(one["full"][target]), place,
    )  # fmt: skip


def in_crop(
    points: Float[np.ndarray, "k 2"], matrix: Float[np.ndarray, "3 3"]
) -> Float[np.ndarray, "k 2"]:
    """Image pixels -> crop pixels."""
    moved = np.c_[points, np.ones(len(points))] @ matrix.T
    return moved[:, :2] / moved[:, 2:]


def _limbs(record: Mapping[str, Any]):
    try:
        return skeletons.get(record["skeleton"]).limb_indices.tolist()
    except (KeyError, ValueError):  # Made from names: lines are only an aid.
        return []


def _arrows(record, one, targets) -> Figure:
    players = record["players"]
    return person_drawings.influence_arrows(
        one["image"],
        _places(record, one),
        in_crop(one["keypoints"], one["matrix"]),
        one["influence"],
        targets,
        player_names=players["names"],
        joint_names=record["keypoints"],
        own=players["own"],
        limbs=_limbs(record),
    )


def _places(record, one) -> np.ndarray:
    players = record["players"]
    return player_places(
        one["centres"].astype(float), one["present"], one["owners"], players["own"],
        len(players["names"]),
    )  # fmt: skip


def _strip(record, one, coalitions: np.ndarray, target: int):
    names = record["players"]["names"]
    present = np.isin(np.arange(len(names)), one["owners"])
    scores = one["table"][:, target]
    found = person_drawings.pick_coalitions(coalitions, scores, present)
    titles = {
        "full": "whole picture",
        "empty": "context alone",
        "best": f"best, ≤ {person_drawings.FEW} shown",
        "worst": f"worst, ≤ {person_drawings.FEW} hidden",
    }
    tiles = []
    for name, row in found.items():
        who = coalitions[row] if name == "best" else ~coalitions[row]
        listed = ", ".join(words(names[i]) for i in np.flatnonzero(who & present))
        notes = {"best": f"shown: {listed}", "worst": f"hidden: {listed}"}
        picture = person_drawings.composite(
            one["image"], one["fill"], one["owners"], coalitions[row]
        )
        tiles.append(
            Tile(titles[name], picture, float(scores[row]), notes.get(name, ""))
        )
    place = in_crop(one["keypoints"], one["matrix"])[target]
    return record["keypoints"][target], place, tiles
