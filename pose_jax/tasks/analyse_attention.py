"""The study `attention`: is what a transformer attends to what its answer rests on?"""

from __future__ import annotations

import operator
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from pose_jax import sharding
from pose_jax.analysis import attention as statistics
from pose_jax.config import UserError, to_plain
from pose_jax.explain import games
from pose_jax.explain.attention import tokens_of
from pose_jax.explain.explainer import Explainer
from pose_jax.explain.explanation import Explanation
from pose_jax.recipe import recipe
from pose_jax.tasks.analyse_context import Context, Split, spread
from pose_jax.tasks.arrays import save_arrays
from pose_jax.tasks.explain_people import People, Subject
from pose_jax.tasks.removal import load_partition
from pose_jax.writer import ProgressBar, is_main_process, read_json, say, write_json

MOST_JOINTS = 5
"""Joints per drawn person: at most one of each cluster."""

_NO_SLOPE = ("similarity", "thresholded", "heatmap")
_SHOWN = "show_above"
REFERENCES = ("influence", "occlusion")
BASELINES = ("distance", "uniform")


def run(context: Context) -> None:
    """Write `attention.json` and `attention.npz` (matrices of all people, maps of a few).

    Raises:
      ValueError: a network that does not attend, names that are unknown.
      UserError: numbers that cannot be, a score without gradient.
    """
    asked, described = context.section.attention, context.trained.recipe
    _check(asked)
    places = tokens_of(described.module, described.spec.size)
    # How maps are drawn changes no number.
    question = context.question(
        attention={k: v for k, v in to_plain(asked).items() if k != _SHOWN}
    )
    if context.finished("attention", question, "attention.npz"):
        say("attention: finished before")
        return
    if not is_main_process():
        return
    split = context.splits[-1]
    people, explainer = _people(context, split), _explainer(context)
    arrays = _collect(context, people, explainer)
    record = {
        "question": question,
        "protocol": _protocol(context, people, explainer),
        "family": described.model["name"],
        "split": split.name,
        "people": len(people),
        "grid": list(places.grid),
        "layers": int(arrays["picture_layers"].shape[1]),
        "keypoint_tokens": places.keypoints,
        "keypoints": list(described.skeleton.keypoints),
        "clusters": [list(c) for c in explainer.players.clusters],
        **compare(
            arrays, explainer.players.own, people.groups,
            resamples=context.section.resamples, seed=context.section.seed,
        ),
    }  # fmt: skip
    save_arrays(context.folder / "attention.npz", arrays)
    write_json(context.folder / "attention.json", record)
    say(f"attention: {len(people)} people, {len(record['kinds'])} kinds of evidence")


def _check(asked: Any) -> None:
    for name in ("people", "batch", "figures"):
        if asked[name] < 1:
            raise UserError(f"analyse.attention.{name}={asked[name]}: at least 1")
    if asked.score in _NO_SLOPE:
        raise UserError(
            f"analyse.attention.score={asked.score!r} has no gradient for every joint; use "
            "'matched_filter', 'value' or another smooth score"
        )
    for name in ("chunk", "joints_at_once", _SHOWN):
        if asked[name] < 0:
            raise UserError(f"analyse.attention.{name}={asked[name]} is 0 or more")


def _people(context: Context, split: Split) -> People:
    subjects = []
    for row in spread(split.rows, context.section.attention.people).tolist():
        p = split.source.person(row)
        subjects.append(Subject(str(p.id), str(p.image_id), p.file_name, row, None))
    return People(context.trained.recipe, subjects, split.source, split.source.name)


def _explainer(context: Context) -> Explainer:
    """Everything is asked with one score, at the joints that the network itself predicts."""
    asked, trained = context.section.attention, context.trained
    skeleton = trained.recipe.skeleton
    partition = load_partition(asked.clusters, skeleton)
    return Explainer(
        trained.recipe,
        trained.variables,
        games.keypoint_players(skeleton, partition, side=asked.side),
        kind="owen",
        score=asked.score,
        reference="predicted",
        removal=asked.removal,
        chunk_size=asked.chunk or None,
        sharding=sharding.coalition_sharding(),
    )


def _protocol(context: Context, people: People, explainer: Explainer) -> str:
    asked = context.section.attention
    return (
        f"{len(people)} people of {people.name}; influence: |Owen values| (clusters "
        f"{asked.clusters}, score {asked.score} at the predicted joints, discs of "
        f"{asked.side:g} x crop height at the {explainer.centres_of(people.labelled)}, removal "
        f"{asked.removal}); occlusion: |fall of the same score| with one disc hidden; "
        f"attention: shares of the maps in the same discs; step {context.trained.step}; "
        "rank correlation over the other joints' discs, mean over joints, then people; "
        "intervals 95 %, by picture"
    )


def _untrained(context: Context) -> Any:
    """Random weights of the same network, others than those that its training began with."""
    fresh = recipe(read_json(epath.Path(context.workdir) / "config.json"))
    images = jnp.zeros((1, *fresh.spec.size, 3))
    key = jax.random.key(context.section.seed, impl="unsafe_rbg")
    key = jax.random.fold_in(key, zlib.crc32(b"untrained"))
    return fresh.inference(jax.jit(fresh.module.init)(key, images))[1]


def _collect(
    context: Context, people: People, explainer: Explainer
) -> dict[str, np.ndarray]:
    """Evidence of all people, stacked; pictures of a few."""
    asked, described = context.section.attention, context.trained.recipe
    program = jax.jit(
        statistics.make_evidence(
            described, asked.score, explainer.players.count,
            at_once=asked.joints_at_once,
        )
    )  # fmt: skip
    weights = {"": explainer.variables, "untrained_": _untrained(context)}
    drawn = set(spread(np.arange(len(people)), asked.figures).tolist())
    rows, pictures = [], []
    with ProgressBar(len(people), "attention") as bar:
        for start in range(0, len(people), asked.batch):
            numbers = range(start, min(start + asked.batch, len(people)))
            crops = people.crops(numbers)
            persons, seen = explainer.people(crops, room=asked.batch)
            explained = explainer(crops, room=asked.batch)
            for i, explanation in enumerate(explained):
                person = jax.tree.map(operator.itemgetter(i), persons)
                points = jnp.asarray(seen["predicted"][i], jnp.float32)
                given = (person.image, person.reference, points, person.owners)
                found = {
                    name: jax.device_get(program(variables, *given))
                    for name, variables in weights.items()
                }
                rows.append(_row(explanation, found, explainer))
                if numbers[i] in drawn:
                    pictures.append(_picture(explanation, found[""], points))
            bar.update(numbers[-1] + 1)
    stacked = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    few = {f"picture_{n}": np.stack([p[n] for p in pictures]) for n in pictures[0]}
    return {**stacked, **few, "id": np.array([s.id for s in people.subjects])}


def _row(
    explanation: Explanation, found: dict[str, Any], explainer: Explainer
) -> dict[str, np.ndarray]:
    """Matrices of one person, targets by players."""
    alone = statistics.without_one(explainer.players.coalitions)
    centres, players = explanation.centres, explainer.players.count
    area = np.bincount(
        np.where(explanation.owners < 0, players, explanation.owners).ravel(),
        minlength=players + 1,
    )
    row = {
        "influence": np.abs(explanation.influence.T),
        "occlusion": np.abs(explanation.full - explanation.table[alone]).T,
        "distance": np.linalg.norm(centres[:, None] - centres, axis=-1),
        "area": area / area.sum(),
        "valid": explanation.target_valid,
        "present": explanation.player_present,
    }
    for prefix, evidence in found.items():
        for name, matrix in evidence["matrices"].items():
            row[f"{prefix}{name}"] = matrix
    return row


def _picture(explanation: Explanation, found, points) -> dict[str, np.ndarray]:
    """The crop and maps of a few joints: of each cluster the one with the most to explain."""
    gap = np.where(explanation.target_valid, np.abs(explanation.gap), -1.0)
    cluster = np.array(explanation.players.target_cluster)
    best = [
        int(np.flatnonzero(cluster == g)[gap[cluster == g].argmax()])
        for g in np.unique(cluster)
    ]
    best = sorted([t for t in best if gap[t] >= 0] or [int(gap.argmax())])[:MOST_JOINTS]
    # Everybody has as many rows; -1 where there are fewer joints.
    picked = np.array([*best, *[-1] * (MOST_JOINTS - len(best))])
    return {
        "image": explanation.image,
        "owners": explanation.owners,
        "targets": picked,
        "points": np.asarray(points)[picked],
        "layers": found["layers"][:, picked].astype(np.float32),
        "influence": explanation.influence.T[picked],
        **{f"map_{name}": m[picked] for name, m in found["maps"].items()},
    }


def compare(
    arrays: dict[str, np.ndarray],
    own: Any,
    groups: list[str],
    *,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """How well each evidence orders the players as influence and occlusion do.

    Args:
      arrays: `influence`, `occlusion`, `distance` `[m, k, n]`, `area [m, n + 1]`, matrices
        `[m, k, n + 1]` per kind with and without `untrained_`, `valid`, `present`.

    Returns:
      `kinds`; `rows`: `name`, `group` (attention, baseline, untrained, shuffled, ceiling) and
      per statistic and reference a mean with interval; `minus`: Spearman correlation with
      influence of each kind minus that of its baselines, paired by person; `joints`: the
      same correlation per target; `shares`: where the maps lie.
    """
    options = dict(resamples=resamples, seed=seed)
    players = arrays["present"].shape[1]
    compared = statistics.comparable(arrays["valid"], arrays["present"], own)
    names = (*statistics.MAPS, statistics.JOINT_TOKENS)
    kinds = [name for name in names if name in arrays]
    pairs = statistics.partners(groups, seed=seed)
    uniform = np.broadcast_to(arrays["area"][:, None, :players], compared.shape)
    evidence = {
        **{("attention", k): arrays[k][..., :players] for k in kinds},
        ("baseline", "distance"): -arrays["distance"],
        ("baseline", "uniform"): uniform,
        **{("untrained", k): arrays[f"untrained_{k}"][..., :players] for k in kinds},
        **{("shuffled", k): arrays[k][..., :players] for k in kinds},
        ("ceiling", "occlusion"): arrays["occlusion"],
    }

    def correlation(group, matrix, reference, statistic):
        other = arrays[reference]
        if group == "shuffled":
            return statistics.shuffled(matrix, other, compared, pairs, statistic)
        return statistics.agreement(matrix, other, compared, statistic)

    rows, of_people, joints = [], {}, {}
    for (group, name), matrix in evidence.items():
        row: dict[str, Any] = {"name": name, "group": group}
        for statistic in statistics.STATISTICS:
            row[statistic] = {}
            for reference in REFERENCES:
                if group == "ceiling" and reference == name:
                    continue
                found = correlation(group, matrix, reference, statistic)
                means = statistics.per_person(found)
                row[statistic][reference] = statistics.summary(means, groups, **options)
                if (statistic, reference) == ("spearman", "influence"):
                    of_people[group, name] = means
                    joints[group, name] = statistics.per_person(found.T)
        rows.append(row)
    return {
        "kinds": kinds,
        "rows": rows,
        "minus": {k: _minus(k, of_people, groups, options) for k in kinds},
        "joints": {k: _listed(joints["attention", k]) for k in kinds},
        "shares": {k: _shares(arrays, k, own, groups, options) for k in kinds},
    }


def _minus(kind: str, of_people, groups, options) -> dict[str, Any]:
    mine = of_people["attention", kind]
    against = {
        **{name: of_people["baseline", name] for name in BASELINES},
        **{g: of_people[g, kind] for g in ("untrained", "shuffled")},
    }
    return {
        name: statistics.summary(mine - other, groups, **options)
        for name, other in against.items()
    }


def _shares(arrays, kind: str, own, groups, options) -> dict[str, Any]:
    """Of a map: in the own region, in those of other joints, in the background."""
    matrix = np.where(arrays["valid"][..., None], arrays[kind], np.nan)
    targets = np.arange(matrix.shape[1])
    mine, rest = matrix[:, targets, np.asarray(own)], matrix[..., -1]
    parts = {"own": mine, "others": 1 - mine - rest, "background": rest}
    return {
        name: statistics.summary(statistics.per_person(part), groups, **options)
        for name, part in parts.items()
    }


def _listed(values: np.ndarray) -> list[float | None]:
    """JSON has no NaN."""
    return [float(v) if np.isfinite(v) else None for v in values]
