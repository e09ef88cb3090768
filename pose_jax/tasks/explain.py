"""`explain`: why was every joint placed where it was placed, over people of a data set.

Writes `explain/<method>-<kind>-<split>/`: `part-*.npz` as it goes (the same command resumes),
then `explanations.npz` (every array of every person), `pictures.npz` (a few people's crops),
`explanations.json` (settings, protocol, means with intervals), the studies of
`explain_studies` and `figures/`.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from etils import epath

from pose_jax import checkpoint, sharding
from pose_jax.config import UserError, to_plain
from pose_jax.estimator import fit_variables
from pose_jax.explain import games, shapley
from pose_jax.explain.explainer import Explainer
from pose_jax.explain.explanation import ARRAYS, PICTURES, stack
from pose_jax.explain.making import METHODS
from pose_jax.explain.methods import METHODS as MAPS
from pose_jax.intervals import mean_interval
from pose_jax.partitions import Partition
from pose_jax.recipe import Recipe, recipe
from pose_jax.tasks import explain_studies
from pose_jax.tasks.arrays import load_arrays, plain, save_arrays
from pose_jax.tasks.explain_people import People, open_people
from pose_jax.tasks.removal import load_partition
from pose_jax.trees import fingerprint
from pose_jax.writer import ProgressBar, is_main_process, read_json, say, write_json

_OF_RUN = (
    "method", "kind", "clusters", "players", "side", "centres", "score", "reference",
    "removal", "count", "inputs", "boxes", "batch", "figures",
)  # fmt: skip


def run(config: Any, workdir: str) -> None:
    """Explain `config.explain.count` people and study what the explanations say.

    Raises:
      UserError: nobody to explain, or the folder holds answers to another question.
    """
    section = config.explain
    if section.method in MAPS:
        from pose_jax.tasks import explain_maps  # The other kind of answer.

        explain_maps.run(config, workdir)
        return
    if section.method not in METHODS:
        raise UserError(
            f"method {section.method!r} is unknown; use {', '.join(METHODS)}"
        )
    explain_studies.check(section)
    described = recipe(read_json(epath.Path(workdir) / "config.json") or config)
    tree, step = checkpoint.load_variables(workdir, section.checkpoint)
    model = described.inference(fit_variables(described, tree))
    people = open_people(config, described)
    partition = load_partition(section.clusters, described.skeleton)
    explainer = make_explainer(section, model, partition)
    explain_studies.check_players(section, explainer.players)
    # Which data and which weights: with these, and what was asked, the answer is fixed.
    asked = {
        **{name: to_plain(section[name]) for name in _OF_RUN},
        "step": step,
        "data": people.name,
        "people": [
            [s.id, None if s.box is None else [float(v) for v in s.box]]
            for s in people.subjects
        ],
        "cluster_members": [list(c) for c in partition.clusters],
        "weights": fingerprint(tree),
    }
    kind = "exact" if section.method == "shapley" else section.kind
    folder = (
        epath.Path(workdir) / "explain" / f"{section.method}-{kind}-{section.split}"
    )
    _claim(folder, asked)
    count = _parts(folder, explainer, people, section)
    _barrier()  # All parts are there.
    if is_main_process():
        _finish(folder, count, section, explainer, people, partition, step)
    _barrier()  # A process that left now would end the others.


def _finish(folder, count, section, explainer, people, partition, step) -> None:
    """Everything that one process does: merge, means, studies, figures."""
    arrays = _merge(folder, count, people)
    record = summarise(arrays, explainer, people, partition, step)
    write_json(folder / "explanations.json", record)
    say(
        f"{len(people)} people of {people.name}: {record['evaluations']:,} forward passes, "
        f"largest residual {record['largest_residual']:.1e}; {folder}/explanations.npz"
    )
    explain_studies.run(section, folder, explainer, people, partition)
    _draw(folder)


def make_explainer(
    section: Any, model: tuple[Recipe, Any], partition: Partition
) -> Explainer:
    """The explainer of a config section, over the local devices.

    Raises:
      ValueError: names that are unknown.
    """
    described, variables = model
    if section.players == "limbs":
        players = games.limb_players(described.skeleton, partition, side=section.side)
    elif section.players == "masks":
        raise UserError(
            "explain.players='masks' needs masks, which a config cannot hold; call "
            "explain.explainer.Explainer with games.mask_players from Python"
        )
    else:
        players = games.keypoint_players(
            described.skeleton, partition, kind=section.players, side=section.side
        )
    return Explainer(
        described,
        variables,
        players,
        method=section.method,
        kind=section.kind,
        score=section.score,
        reference=section.reference,
        centres=section.centres,
        removal=section.removal,
        chunk_size=section.chunk or None,
        sharding=sharding.coalition_sharding(),
    )


def _claim(folder, asked: dict[str, Any]) -> None:
    """One question per folder."""
    stored = read_json(folder / "index.json")
    # A field that a later version added is taken as asked.
    names = [k for k in asked if k in (stored or {}) and stored[k] != asked[k]]
    if names:
        raise UserError(
            f"{folder} answers another question ({', '.join(names)} differ); choose another "
            "explain.split, or delete the folder"
        )
    if stored is None and is_main_process():
        write_json(folder / "index.json", asked)


def _parts(folder, explainer: Explainer, people: People, section: Any) -> int:
    """Explain what is not explained yet, part by part; returns the number of parts."""
    numbers = list(range(len(people)))
    parts = [
        numbers[i : i + section.batch] for i in range(0, len(people), section.batch)
    ]
    kept = set(
        np.linspace(0, len(people) - 1, min(section.figures, len(people))).astype(int)
    )
    mine = range(jax.process_index(), len(parts), jax.process_count())
    passes = 0
    with ProgressBar(len(people), "explain") as bar:
        for part in mine:
            path = folder / f"part-{part:04d}.npz"
            if not path.exists():
                crops = people.crops(parts[part], other=section.removal == "other")
                found = explainer(crops, room=min(section.batch, len(people)))
                arrays = stack(found, [n for n in ARRAYS if n not in PICTURES])
                drawn = np.flatnonzero([n in kept for n in parts[part]])
                pictures = stack(found, PICTURES)
                for name in PICTURES:  # Of a part without any: none, of their shape.
                    arrays[f"picture_{name}"] = pictures[name][drawn]
                arrays["picture_of"] = np.array(parts[part])[drawn]
                arrays["coalitions"] = _coalitions(explainer)
                save_arrays(path, arrays)
                passes += int(arrays["evaluations"].sum())
            bar.update(parts[part][-1] + 1, f"{passes:,} forward passes")
    return len(parts)


def _barrier() -> None:
    """All processes have written their parts."""
    sharding.any_over_processes(np.array(True))


def _merge(folder, count: int, people: People) -> dict[str, np.ndarray]:
    parts = [load_arrays(folder / f"part-{n:04d}.npz") for n in range(count)]
    rows = [part.pop("coalitions") for part in parts]
    merged = {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
    pictures = {k: merged.pop(k) for k in list(merged) if k.startswith("picture_")}
    merged["id"] = np.array([s.id for s in people.subjects])
    merged["image_id"] = np.array(people.groups)
    if not all(np.array_equal(rows[0], other) for other in rows):
        raise UserError(
            f"parts of {folder} were made by different versions of this program; delete "
            "that folder and run again"
        )
    merged["coalitions"] = rows[0]
    save_arrays(folder / "explanations.npz", merged)
    names = {k.removeprefix("picture_"): v for k, v in pictures.items()}
    save_arrays(folder / "pictures.npz", names)
    return merged


def _coalitions(explainer: Explainer) -> np.ndarray:
    """`[c, n]` who is seen in every row of `table`, alike for all people."""
    if explainer.method == "shapley":
        return shapley.all_coalitions(explainer.players.count)
    return explainer.players.coalitions


def summarise(
    arrays: dict[str, np.ndarray],
    explainer: Explainer,
    people: People,
    partition: Partition,
    step: int,
) -> dict[str, Any]:
    """Settings, protocol and means over people; intervals resample pictures."""
    players, described = explainer.players, explainer.recipe
    score, reference = explainer.asks(people.labelled)
    valid = arrays["target_valid"]
    both = valid[:, :, None] & arrays["player_present"][:, None, :]
    influence = np.where(both, np.swapaxes(arrays["influence"], 1, 2), np.nan)
    kind = "exact" if explainer.method == "shapley" else explainer.kind
    regions = f"{players.kind} regions of {players.side:g} x crop height"
    protocol = [
        f"data {people.name}", f"{len(people)} people", f"method {explainer.method} ({kind})",
        f"clusters {partition.name}", f"score {score} against {reference}", regions,
        f"centres {explainer.centres_of(people.labelled)}",
        f"removal {explainer.removal}", "no flip test", f"step {step}",
    ]  # fmt: skip
    record = {
        "protocol": "; ".join(protocol),
        "method": explainer.method,
        "kind": kind,
        "score": score,
        "reference": reference,
        "removal": explainer.removal,
        "step": step,
        "people": len(people),
        "keypoints": list(described.skeleton.keypoints),
        "skeleton": described.skeleton.name,
        "partition": partition.record(described.skeleton),
        "players": {
            "kind": players.kind,
            "side": players.side,
            "names": list(players.names),
            "clusters": [list(c) for c in players.clusters],
            "cluster_names": list(players.cluster_names),
            "target_cluster": list(players.target_cluster),
            "own": list(players.own),
        },
        "evaluations": int(arrays["evaluations"].sum()),
        "rows": int(arrays["table"].shape[1]),
        "largest_residual": float(np.abs(arrays["residual"]).max()),
        "influence": _mean(influence, people.groups),
    }
    for name in ("empty", "full"):
        values = np.where(valid, arrays[name], np.nan)
        record[name] = _mean(values, people.groups)
    gap = np.where(valid, arrays["full"] - arrays["empty"], np.nan)
    record["gap"] = _mean(gap, people.groups)
    if people.labelled:
        record["quality"] = _quality(arrays, people)
    return record


def _mean(values: np.ndarray, groups: list[str]) -> dict[str, Any]:
    """Means over people, how many there were, and 95 % intervals."""
    counts = (~np.isnan(values)).sum(0)
    total = np.nansum(values, axis=0)
    mean = np.divide(total, counts, out=np.full(counts.shape, np.nan), where=counts > 0)
    low, high = mean_interval(values, groups)
    named = dict(mean=mean, low=low, high=high)
    rounded = {k: plain(v) for k, v in named.items()}
    return {**rounded, "counts": counts.tolist()}


def _quality(arrays: dict[str, np.ndarray], people: People) -> dict[str, Any]:
    """How good the explained answers are: PCK@0.1 of the longer box side, no flip test."""
    labels = np.stack([people.labels(n)[0] for n in range(len(people))])
    error = np.linalg.norm(arrays["keypoints"] - labels, axis=-1)
    error = error / arrays["box"][:, 2:].max(1)[:, None]
    valid = arrays["target_valid"]
    return {
        "pck@0.1": float((error[valid] < 0.1).mean()),
        "joints": int(valid.sum()),
        "per_joint": plain(
            np.array([
                (error[valid[:, t], t] < 0.1).mean() if valid[:, t].any() else np.nan
                for t in range(valid.shape[1])
            ])
        ),
    }  # fmt: skip


def _draw(folder) -> None:
    from pose_jax.report import explanations

    paths = explanations.draw_folder(folder)
    say(f"figures: {', '.join(p.name for p in paths)} in {folder}/figures")
