"""What the explanations of a data set say: interdependence, cost of grouping, other fills.

Every study leaves its arrays as it goes and a JSON record, and is resumed like the explanations:
`interdependence.json` and `clusters.json` (Perturbation Influence and the clusters found in
it), `grouping_error.json` (grouped against exact values), `removals.json` (agreement of
explanations under another fill).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from scipy import stats

from pose_jax import partitions
from pose_jax.config import UserError, to_plain
from pose_jax.explain import games, interdependence, shapley
from pose_jax.explain.explainer import Crops, Explainer
from pose_jax.explain.explanation import Explanation
from pose_jax.explain.games import BoxGame
from pose_jax.explain.grouping import grouping_error
from pose_jax.explain.perturbation import hidden_scores
from pose_jax.intervals import mean_interval
from pose_jax.partitions import Partition
from pose_jax.tasks.arrays import load_arrays, plain, save_arrays
from pose_jax.tasks.explain_people import People
from pose_jax.writer import ProgressBar, read_json, say, write_json

_MOST_PLAYERS = 16
AGREE = 0.8
"""Kendall's tau below which two fills are said to disagree."""


def check(section: Any) -> None:
    """Refuse now what a study would refuse after hours.

    Raises:
      UserError: a number or a name of the section that cannot be.
    """
    if section.batch < 1:
        raise UserError(f"explain.batch={section.batch}: at least one person at a time")
    for name in ("count", "chunk", "figures", "masks", "exact_people", "check_people"):
        if section[name] < 0:
            raise UserError(f"explain.{name}={section[name]} is a number from 0 on")
    for name in section.check_removals:
        if name not in games.REMOVALS:
            raise UserError(
                f"explain.check_removals holds {name!r}; use {', '.join(games.REMOVALS)}"
            )


def check_players(section: Any, players: games.Players) -> None:
    """The same for what the people are split into.

    Raises:
      UserError: too many players for the exact study.
    """
    if section.exact_people and players.count > _MOST_PLAYERS and min(players.own) >= 0:
        raise UserError(
            f"explain.exact_people needs 2**{players.count} = {2**players.count:,} forward "
            f"passes per person; it goes to {_MOST_PLAYERS} joints. Set it to 0"
        )


def run(
    section: Any, folder, explainer: Explainer, people: People, partition: Partition
) -> None:
    """The studies that `config.explain` asks for, on keypoint players."""
    if min(explainer.players.own) < 0:
        return  # Limbs and masks are no joints that could be clustered.
    found = None
    if section.masks:
        found = study_influence(section, folder, explainer, people, partition)
    if section.exact_people:
        study_grouping(section, folder, explainer, people, partition, found)
    if section.check_removals and section.check_people:
        study_removals(section, folder, explainer, people)


def study_influence(section, folder, explainer, people, partition) -> Partition | None:
    """Perturbation Influence, its clusters, and how they compare with the given partition."""
    recipe = explainer.recipe
    # Thresholded similarity to the labels, or to the model's own clean answer.
    game = BoxGame(recipe.module, recipe.spec, recipe.codec, "thresholded")
    scored = explainer.with_score("thresholded")
    if explainer.removal == "inpaint":  # It paints the regions only, not these boxes.
        scored = scored.with_removal("mean")
    first_key = jax.random.key(0)

    def part(crops: Crops, numbers: list[int]) -> dict[str, np.ndarray]:
        room = min(section.batch, len(people))
        persons, seen = scored.people(crops, room=room)
        clean, masked = hidden_scores(
            game, explainer.variables, persons, seen["centres"], seen["present"],
            masks=section.masks, chunk_size=section.chunk or None,
            room=room, sharding=explainer.sharding,
            key=jax.random.fold_in(first_key, numbers[0]),
        )  # fmt: skip
        drop = interdependence.influence(clean, masked, seen["present"], seen["valid"])
        clean = np.where(seen["valid"], clean, np.nan)
        return {"influence": drop.astype(np.float32), "clean": clean}

    asked = {"masks": section.masks}
    arrays = _in_parts(folder / "influence", people, section, part, asked, "influence")
    measured = interdependence.influence_matrix(arrays["influence"], people.groups)
    skeleton = recipe.skeleton
    record = {
        "protocol": f"{len(people)} people of {people.name}; {section.masks} boxes per joint, "
        "area .8-3 % of the crop, aspect .5-2, filled by "
        f"{scored.removal}; mean drop of the thresholded keypoint similarity to the "
        f"{scored.asks(people.labelled)[1]} joints",
        "keypoints": list(skeleton.keypoints),
        "influence": plain(measured.matrix),
        "low": plain(measured.low),
        "high": plain(measured.high),
        "counts": measured.counts.tolist(),
        "normalised": plain(measured.normalised),
        "clean": plain(_mean(arrays["clean"])),
    }
    found = None
    try:
        # Rows in units of the joint's own patch: wrists and ankles would dominate. Where
        # that does no harm that could be measured, there is no unit and no influence.
        harmed = np.diagonal(measured.low) > 0
        units = np.where(harmed[:, None], measured.normalised, 0.0)
        weights = interdependence.affinity(units, skeleton.mirrored)
        clusters, cut = _clusters(weights, skeleton.mirrored)
        found = partitions.from_lists(f"found-{section.split}", clusters, skeleton)
        spectral = interdependence.spectral_clusters(weights, len(clusters))
        rand = interdependence.adjusted_rand
        record |= {
            "affinity": plain(weights),
            **cut,
            "clusters": found.record(skeleton)["clusters"],
            "spectral_clusters": [
                [skeleton.keypoints[i] for i in members] for members in spectral
            ],
            "adjusted_rand": {
                "spectral": rand(clusters, spectral),
                partition.name: rand(clusters, partition.clusters),
            },
        }
        write_json(folder / "clusters.json", found.record(skeleton))
    except ValueError as error:
        record["no_clusters"] = str(error)
    write_json(folder / "interdependence.json", record)
    words = record.get("no_clusters") or "; ".join(
        ", ".join(members) for members in record["clusters"].values()
    )
    say(f"clusters found in the influence of {len(people)} people: {words}")
    return found


def _clusters(weights: np.ndarray, mirrored: np.ndarray) -> tuple[Any, dict[str, Any]]:
    """Clusters of an affinity and how they were found.

    Raises:
      ValueError: there is nothing to cluster, or nothing within the limits.
    """
    find = interdependence.find_clusters
    try:
        found = find(weights, mirrored)
    except interdependence.NoClusters as error:
        return find(weights, mirrored, capped=True).clusters, {"capped": str(error)}
    tree = {"linkage": found.linkage.tolist(), "cut": found.cut, "gap": found.gap}
    return found.clusters, tree


def study_grouping(section, folder, explainer, people, partition, found) -> None:
    """Grouped values against exact Shapley values of all joints, for a few people."""
    players = explainer.players
    chosen = _some(len(people), section.exact_people)
    game = explainer.game(people.labelled)
    every = shapley.all_coalitions(players.count)

    def part(crops: Crops, numbers: list[int]) -> dict[str, np.ndarray]:
        persons, seen = explainer.people(crops)
        null = games.null_players(np.asarray(persons.owners), players.count)
        table, _ = shapley.coalition_table(
            game, every, args=(explainer.variables,), games=persons,
            null_players=null, chunk_size=section.chunk or None,
            sharding=explainer.sharding,
        )  # fmt: skip
        return {"table": np.asarray(table), "null": null, "valid": seen["valid"]}

    arrays = _in_parts(
        folder / "exact", people, section, part, {}, "exact", numbers=chosen, batch=1
    )
    named = {}
    skeleton = explainer.recipe.skeleton
    for name in partitions.PARTITIONS:
        if name != "joints-v1":  # That is the exact value itself.
            named[name] = partitions.get(name, skeleton).clusters
    named[partition.name] = partition.clusters
    if found is not None:
        named[found.name] = found.clusters
    errors = grouping_error(arrays["table"], named, arrays["valid"], arrays["null"])
    groups = [people.groups[n] for n in chosen]
    record: dict[str, Any] = {
        "protocol": f"{len(chosen)} people of {people.name}; error of a value relative to the "
        "mean |exact Shapley value| of the person; score "
        + " against ".join(explainer.asks(people.labelled)),
        "exact_evaluations": 2**players.count,
        "clusterings": {},
    }
    for name, kinds in errors.items():
        record["clusterings"][name] = {
            "sizes": [len(c) for c in named[name]],
            "kinds": {
                kind: {
                    "evaluations": error.evaluations,
                    **{
                        field: _interval(getattr(error, field), groups)
                        for field in (
                            "member_error", "player_error", "sampled_member_error",
                            "sampled_player_error",
                        )
                        if getattr(error, field) is not None
                    },
                }
                for kind, error in kinds.items()
            },
        }  # fmt: skip
    write_json(folder / "grouping_error.json", record)
    own = record["clusterings"][partition.name]["kinds"]
    say(
        f"error of grouping by {partition.name} against {2**players.count:,} coalitions: "
        + ", ".join(f"{k} {_shown(v['member_error']['mean'])}" for k, v in own.items())
    )


def _shown(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3f}"


def study_removals(section, folder, explainer, people) -> None:
    """Do explanations survive another fill? Kendall's tau of the players' influence."""
    chosen = _some(len(people), section.check_people)
    groups = [people.groups[n] for n in chosen]
    known = load_arrays(folder / "explanations.npz")["influence"]
    record = {}
    for name in section.check_removals:
        if name == explainer.removal:
            continue
        other = explainer.with_removal(name)

        def part(
            crops: Crops, numbers: list[int], other=other
        ) -> dict[str, np.ndarray]:
            found = other(crops, room=min(section.batch, len(chosen)))
            taus = [_agreement(known[n], e) for n, e in zip(numbers, found)]
            return {"tau": np.array(taus, np.float32)}

        arrays = _in_parts(
            folder / f"removal-{name}", people, section, part, {}, f"removal {name}",
            numbers=chosen, batch=min(section.batch, len(chosen)),
            other=name == "other",
        )  # fmt: skip
        found = _interval(arrays["tau"], groups)
        agree = found["mean"] is not None and found["mean"] >= AGREE
        record[name] = {**found, "people": len(chosen), "agree": agree}
        if found["mean"] is not None and not agree:
            say(
                f"explanations depend on the fill: Kendall's tau of {explainer.removal} and "
                f"{name} is {found['mean']:.2f} (flagged below {AGREE})"
            )
    write_json(
        folder / "removals.json", {"removal": explainer.removal, "against": record}
    )


def _agreement(influence: np.ndarray, second: Explanation) -> np.ndarray:
    """`[K]` tau over the players with a place; NaN where there is nothing to rank."""
    taus = np.full(len(second.target_valid), np.nan)
    there = second.player_present
    for t in np.flatnonzero(second.target_valid):
        a, b = influence[there, t], second.influence[there, t]
        if len(a) > 2 and np.ptp(a) > 0 and np.ptp(b) > 0:
            tau: Any = stats.kendalltau(a, b)
            taus[t] = tau.statistic
    return taus


def _interval(values: np.ndarray, groups: list[str]) -> dict[str, Any]:
    """Mean over people of their mean over targets, with its interval."""
    each = _mean(values.T)
    low, high = mean_interval(each, groups)
    # JSON has no NaN: None where there was nothing to average.
    return {"mean": plain(_mean(each)), "low": plain(low), "high": plain(high)}


def _mean(values: np.ndarray) -> np.ndarray:
    """Over the first axis, of what is not NaN; NaN without any."""
    there = ~np.isnan(values)
    count = np.asarray(there.sum(0))
    total = np.where(there, values, 0).sum(0, dtype=np.float64)
    return np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0)


def _some(total: int, wanted: int) -> list[int]:
    count = min(wanted, total)
    return np.linspace(0, total - 1, count).round().astype(int).tolist()


def _in_parts(
    stem,
    people: People,
    section: Any,
    function: Callable[[Crops, list[int]], Mapping[str, np.ndarray]],
    asked: Mapping[str, Any],
    title: str,
    *,
    numbers: list[int] | None = None,
    batch: int = 0,
    other: bool | None = None,
) -> dict[str, np.ndarray]:
    """Arrays of `function` over people, kept part by part so that a stop loses one part."""
    numbers = list(range(len(people))) if numbers is None else numbers
    batch = batch or section.batch
    index = {**asked, "numbers": numbers, "batch": batch}
    index = to_plain(index)
    if read_json(stem / "index.json", index) != index:
        raise UserError(
            f"{stem} was made with other settings of this study; delete that folder to run "
            "it anew"
        )
    write_json(stem / "index.json", index)
    with_other = section.removal == "other" if other is None else other
    parts = []
    with ProgressBar(len(numbers), title) as bar:
        for start in range(0, len(numbers), batch):
            path = stem / f"part-{start // batch:04d}.npz"
            if not path.exists():
                some = numbers[start : start + batch]
                crops = people.crops(some, other=with_other)
                save_arrays(path, dict(function(crops, some)))
            parts.append(load_arrays(path))
            bar.update(min(start + batch, len(numbers)))
    return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
