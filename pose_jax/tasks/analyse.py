"""`analyse`: what happens inside a trained network, over people of its data.

Writes `analysis/<name>/`: `index.json` (network, people, settings), one JSON record and one npz
per study (`skips`, `latent`, `clusters`, `redundancy`, `weights`, `attention`) and `figures/`;
stored latents lie in `latents/` of the workdir. A finished study is kept while its question is
the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from etils import epath

from pose_jax import evaluation, inference, sharding
from pose_jax.config import UserError, to_plain
from pose_jax.tasks import (
    analyse_attention,
    analyse_clusters,
    analyse_latent,
    analyse_redundancy,
    analyse_skips,
    analyse_weights,
)
from pose_jax.tasks.analyse_context import (
    Context,
    open_split,
    pck,
    people_of,
    spread,
)
from pose_jax.tasks.latents import load_trained
from pose_jax.writer import is_main_process, say, write_json

HEALTH_PEOPLE = 500

STUDIES: dict[str, Callable[[Context], None]] = {
    "skips": analyse_skips.run,
    "latent": analyse_latent.run,
    "clusters": analyse_clusters.run,
    "redundancy": analyse_redundancy.run,
    "weights": analyse_weights.run,
    "attention": analyse_attention.run,
}
"""Name in `config.analyse.studies` -> what it does."""


def run(config: Any, workdir: str) -> None:
    """Run `config.analyse.studies`.

    Raises:
      UserError: an unknown study or split, or nobody to look at.
    """
    section = config.analyse
    unknown = [s for s in section.studies if s not in STUDIES]
    if unknown or not section.studies:
        raise UserError(
            f"analyse.studies holds {unknown[0] if unknown else 'nothing'!r}; use some of "
            f"{', '.join(STUDIES)}"
        )
    if not section.splits:
        raise UserError("analyse.splits is empty; use 'train', 'eval' or both")
    trained = load_trained(workdir, section.checkpoint)
    splits = tuple(open_split(config, trained, name) for name in section.splits)
    folder = epath.Path(workdir) / "analysis" / (section.name or config.evaluate.name)
    context = Context(config, section, trained, splits, workdir, folder)
    health = _health(context)
    if is_main_process():
        write_json(folder / "index.json", _index(context, health))
    if health["problem"]:
        say(f"not analysed: {health['problem']}")
        return
    for study in section.studies:
        STUDIES[study](context)
        sharding.wait_for_processes(study)
    say(f"analyses: {folder}")


def _index(context: Context, health: dict[str, Any]) -> dict[str, Any]:
    skeleton = context.trained.recipe.skeleton
    return {
        "weights": context.trained.weights,
        "step": context.trained.step,
        "skeleton": skeleton.name,
        "keypoints": list(skeleton.keypoints),
        "limbs": [list(limb) for limb in skeleton.limbs],
        "splits": {
            s.name: {"source": s.source.name, "people": len(s.rows)}
            for s in context.splits
        },
        "health": health,
        "settings": to_plain(context.section),
    }


def _health(context: Context) -> dict[str, Any]:
    """Whether the network answers anything: PCK beside the mean pose's, on the last split.

    A network that answers "nothing", or that does not clearly beat the mean pose (lower end of
    the 95 % interval of the difference above 0), is reported and not analysed: what its inside
    does would explain nothing.
    """
    split, trained = context.splits[-1], context.trained
    rows = spread(split.rows, HEALTH_PEOPLE)
    mesh = sharding.local_mesh()
    found = inference.predict_source(
        trained.recipe, trained.variables, split.source,
        mesh=mesh, batch=sharding.round_up(context.batch, mesh), flip_test=False,
        rows=rows.tolist(), alone=True,
    )  # fmt: skip
    people = people_of(trained, split.source, rows)
    mean = evaluation.mean_pose(context.splits[0].people.people)
    boxes = np.stack([p.box for p in people.people])
    guesses = boxes[:, None, :2] + mean * boxes[:, None, 2:]

    def right(points: np.ndarray) -> np.ndarray:
        error = np.linalg.norm(points - people.true, axis=-1) / people.sides[:, None]
        return (error <= context.section.threshold) & people.labelled

    answered, guessed = right(found.keypoints), right(guesses)
    gain = context.difference(answered, guessed, people)
    reached, base = pck(answered, people), pck(guessed, people)
    peak = float(np.median(found.scores))
    problem = ""
    if not gain["low"] > 0:
        problem = (
            f"PCK@{context.section.threshold:g} {reached:.3f} on {len(rows)} people of "
            f"{split.source.name} does not beat the mean pose's {base:.3f} (median peak of "
            f"its maps {peak:.3f}); train it longer, this network has not learned to look"
        )
    return {
        "pck": reached, "mean_pose_pck": base, "gain": gain, "median_peak": peak,
        "people": len(rows), "split": split.name, "problem": problem,
    }  # fmt: skip
