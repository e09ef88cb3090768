"""`planted`: what a network trained in a world uses, and which explanations find it.

Writes `planted/`: `truth.npz` (reactions to every intervention), `gates.json` (whether the
network learned what was planted), `explainers/*.npz` (one number per picture, region and
target; the same command resumes), `planted.json` (scores with intervals over pictures). A
network that fails a gate is reported as "not learned" and its explanations are not scored.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from etils import epath

from pose_jax import checkpoint
from pose_jax.config import UserError, to_plain
from pose_jax.data.worlds import REGIONS, SKELETON, World, WorldSource, composite
from pose_jax.estimator import fit_variables
from pose_jax.explain import reactions, world_explainers
from pose_jax.explain.world_explainers import CLUSTERS, Shown
from pose_jax.recipe import Recipe, recipe
from pose_jax.tasks import planted_gates
from pose_jax.tasks.arrays import load_arrays, save_arrays
from pose_jax.tasks.planted_scores import summarise
from pose_jax.trees import fingerprint
from pose_jax.writer import ProgressBar, is_main_process, read_json, say, write_json

_OF_TRUTH = ("pictures", "donors", "seed")


def run(config: Any, workdir: str) -> None:
    """Intervene, check the gates, explain, score.

    Raises:
      UserError: the run was not trained in a world, or the folder holds other results.
    """
    if not is_main_process():
        return
    section = config.planted
    stored = read_json(epath.Path(workdir) / "config.json") or to_plain(config)
    source = open_world(stored, section)
    described = recipe(stored)
    tree, step = checkpoint.load_variables(workdir, section.checkpoint)
    described, variables = described.inference(fit_variables(described, tree))
    variables = jax.device_put(variables)
    folder = epath.Path(workdir) / "planted"
    _claim(folder, {
        **{name: section[name] for name in _OF_TRUTH},
        "world": source.world, "step": step, "weights": fingerprint(tree),
    })  # fmt: skip
    truth = measure(described, variables, source, section, folder)
    gates = planted_gates.check(truth, source)
    write_json(folder / "gates.json", gates)
    planted_gates.show(gates)
    found = {}
    if gates["learned"]:
        found = explain(described, variables, source, section, folder, truth)
    record = summarise(
        found, truth, source, gates, resamples=section.resamples
    ) | {
        "world": source.world, "title": source.rules.title, "step": step, "gates": gates,
        "protocol": protocol(source, section),
    }  # fmt: skip
    write_json(folder / "planted.json", record)
    what = f"{len(found)} explainers scored" if found else "not learned, nothing scored"
    say(f"world {source.world!r}: {what}; {folder}/planted.json")


def open_world(stored: Any, section: Any) -> WorldSource:
    """The test pictures of the world that the run was trained in: nothing is left out and the
    background agrees with nothing.

    Raises:
      UserError: the run was trained on something else.
    """
    trained = stored["data"]["train"]["source"]
    if trained["name"] != "worlds":
        raise UserError(
            "the task planted needs a network that was trained in a world "
            f"(data.train.source.name='worlds'), not on {trained['name']!r}"
        )
    return WorldSource(
        section.pictures, world=trained["world"], seed=section.seed,
        size=trained["size"][0], test=True,
    )  # fmt: skip


def targets_of(world: World) -> list[int]:
    """Numbers of the joints whose cause was planted."""
    return [SKELETON.index(name) for name in world.causes]


def measure(
    described: Recipe, variables: Any, source: WorldSource, section: Any, folder: Any
) -> dict[str, np.ndarray]:
    """The reactions to every intervention on every picture, `{name: [n, ...]}`.

    Raises:
      UserError: a damaged file.
    """
    path = folder / "truth.npz"
    if path.exists():
        return load_arrays(path)
    rows: list[reactions.Reaction] = []
    with ProgressBar(len(source), "intervene") as bar:
        for index in range(len(source)):
            pictures = reactions.variants(source, index, section.donors)
            rows.append(reactions.react(described, variables, pictures))
            bar.update(index + 1)
    arrays = {
        name: np.stack([np.asarray(getattr(row, name)) for row in rows])
        for name in reactions.Reaction._fields
    }
    save_arrays(path, arrays)
    return arrays


def explain(
    described: Recipe, variables: Any, source: WorldSource, section: Any, folder: Any,
    truth: dict[str, np.ndarray],
) -> dict[str, np.ndarray]:  # fmt: skip
    """Every explainer's values `{name: [m, r, t]}`; games on the first `section.games`."""
    targets = targets_of(source.rules)
    homes = [_home(SKELETON.keypoints[t]) for t in targets]
    pictures = [_clean(source, index) for index in range(len(source))]
    shown = Shown.of(pictures, truth["points"], targets)
    few = Shown.of(pictures[: section.games], truth["points"][: section.games], targets)
    jobs: dict[str, Any] = {}
    for name in world_explainers.BASELINES:
        jobs[name] = lambda name=name: world_explainers.baseline(name, shown, seed=1)
    for name in section.methods:
        # A tap behind an @: grad_cam@stack0/encoder0.
        method, _, tap = name.partition("@")
        options = dict(to_plain(section.options).get(name, {}))
        options.update({"tap": tap} if tap else {})
        jobs[name.replace("/", ".")] = (
            lambda method=method, options=options: world_explainers.explain_with_maps(
                described, variables, shown, method, score=section.score,
                options=options, batch=section.batch,
                key=jax.random.key(section.seed),
            )
        )  # fmt: skip
    for kind in section.game_kinds:
        jobs[f"game-{kind}"] = lambda kind=kind: world_explainers.explain_with_games(
            described, variables, few, kind, score=section.score, target_clusters=homes,
            batch=section.batch, chunk=section.chunk or None,
        )  # fmt: skip
    asked = {
        name: to_plain(section[name])
        for name in ("score", "options", "games", "pictures")
    }
    found: dict[str, np.ndarray] = {}
    with ProgressBar(len(jobs), "explain") as bar:
        for number, (name, job) in enumerate(jobs.items()):
            bar.update(number, name)
            path = folder / "explainers" / f"{name}.npz"
            note = folder / "explainers" / f"{name}.json"
            if not path.exists() or read_json(note) != asked:
                save_arrays(path, job())
                write_json(note, asked)
            for way, values in load_arrays(path).items():
                found[f"{name}-{way}"] = values
        bar.update(len(jobs))
    return found


def _clean(source: WorldSource, index: int) -> reactions.Pictures:
    """A picture without its variants."""
    scene = source.scene(index)
    layers, gain = source.layers(scene), source.gain(scene)
    return reactions.Pictures(
        composite(layers, gain=gain)[None], source.keypoints(scene)[None],
        scene.present, source.owners(scene), layers, gain,
        np.array([source.line_height(scene)]),
    )  # fmt: skip


def _home(joint: str) -> int:
    """The cluster of regions that a joint belongs to."""
    limb = "head"
    for word, region in (
        ("wrist", "arm"), ("elbow", "arm"), ("shoulder", "arm"), ("ankle", "leg"),
        ("knee", "leg"), ("hip", "leg"),
    ):  # fmt: skip
        if joint.endswith(word):
            limb = f"{joint.split('_')[0]}_{region}"
    number = REGIONS.index(limb)
    return next(g for g, members in enumerate(CLUSTERS) if number in members)


def protocol(source: WorldSource, section: Any) -> dict[str, Any]:
    """What the numbers were measured on."""
    return {
        "pictures": len(source), "games": int(section.games), "size": source.size,
        "donors": int(section.donors), "seed": int(section.seed),
        "score": section.score, "regions": list(REGIONS),
        "targets": list(source.rules.causes),
        "options": to_plain(section.options),
    }  # fmt: skip


def _claim(folder, asked: dict[str, Any]) -> None:
    """One set of weights and one protocol per folder."""
    stored = read_json(folder / "index.json")
    if stored is None:
        write_json(folder / "index.json", asked)
    elif stored != asked:
        names = [k for k in asked if stored.get(k) != asked[k]]
        raise UserError(
            f"{folder} was measured differently ({', '.join(names)} differ); delete the folder "
            "to measure anew"
        )
