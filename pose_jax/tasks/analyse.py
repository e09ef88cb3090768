"""`analyse`: what happens inside a trained network, over people of its data.

Writes `analysis/<name>/`: `index.json` (network, people, settings), one JSON record and one npz
per study (`skips`, `latent`, `clusters`, `redundancy`) and `figures/`; stored latents lie in
`latents/` of the workdir. A finished study is kept while its question is the same.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import numpy as np
from etils import epath

from pose_jax import data, evaluation, inference, sharding
from pose_jax.config import UserError, to_plain
from pose_jax.data.pipeline import to_skeleton
from pose_jax.data.sources import Source
from pose_jax.metrics import pck as pck_
from pose_jax.tasks.latents import Trained, collect, folder_of, load_trained
from pose_jax.tasks.workdir import data_root
from pose_jax.writer import is_main_process, read_json, say, write_json

HEALTH_PEOPLE = 500
_SECTIONS: dict[str, Callable[[Any], Any]] = {
    "train": lambda config: config.data.train.source,
    "eval": lambda config: config.data.eval,
}
"""Name in `config.analyse.splits` -> its data section."""


@dataclasses.dataclass(frozen=True)
class Split:
    """People that a study looks at.

    Attributes:
      name: as in `config.analyse.splits`. rows: of the source, evenly spread.
    """

    name: str
    source: Source
    rows: np.ndarray


@dataclasses.dataclass(frozen=True)
class Context:
    """What every study gets.

    Attributes:
      config, section: everything and `config.analyse`. workdir, folder: where to write.
      batch: people per program call.
    """

    config: Any
    section: Any
    trained: Trained
    splits: tuple[Split, ...]
    workdir: Any
    folder: Any

    @property
    def batch(self) -> int:
        return self.section.batch or min(self.config.evaluate.batch, 32)

    def latents(self, split: Split, tap: str):
        """The store of a tap over a whole split, collected if it is not there."""
        folder = folder_of(self.workdir, _SECTIONS[split.name](self.config), tap)
        batch = self.section.batch or self.config.evaluate.batch
        return collect(self.trained, split.source, {tap: folder}, batch=batch)[tap]

    def people(self, split: Split, rows: np.ndarray | None = None):
        """(people, keypoints, visible) in the model's skeleton, rows of the source."""
        rows = split.rows if rows is None else rows
        return evaluation.people_arrays(
            split.source, rows.tolist(), self.trained.recipe
        )


def run(config: Any, workdir: str) -> None:
    """Run `config.analyse.studies`.

    Raises:
      UserError: an unknown study or split, or nobody to look at.
    """
    section = config.analyse
    unknown = [s for s in section.studies if s not in _STUDIES]
    if unknown or not section.studies:
        raise UserError(
            f"analyse.studies holds {unknown[0] if unknown else 'nothing'!r}; use some of "
            f"{', '.join(_STUDIES)}"
        )
    trained = load_trained(workdir, section.checkpoint, config)
    splits = tuple(_open_split(config, trained, name) for name in section.splits)
    if not splits:
        raise UserError("analyse.splits is empty; use 'train', 'eval' or both")
    name = section.name or config.evaluate.name
    folder = epath.Path(workdir) / "analysis" / name
    context = Context(config, section, trained, splits, workdir, folder)
    health = _health(context)
    if is_main_process():
        write_json(folder / "index.json", _index(context, health))
    if health["problem"]:
        say(f"not analysed: {health['problem']}")
        return
    for study in section.studies:
        _STUDIES[study](context)
        sharding.wait_for_processes(study)
    say(f"analyses: {folder}")


def _index(context: Context, health: dict[str, Any]) -> dict[str, Any]:
    section = to_plain(context.section)
    return {
        "weights": context.trained.weights,
        "step": context.trained.step,
        "skeleton": context.trained.recipe.skeleton.name,
        "keypoints": list(context.trained.recipe.skeleton.keypoints),
        "limbs": [list(limb) for limb in context.trained.recipe.skeleton.limbs],
        "splits": {
            s.name: {"source": s.source.name, "people": len(s.rows)}
            for s in context.splits
        },
        "health": health,
        "settings": section,
    }


def _open_split(config: Any, trained: Trained, name: str) -> Split:
    if name not in _SECTIONS:
        raise UserError(f"analyse.splits holds {name!r}; use {' or '.join(_SECTIONS)}")
    section = _SECTIONS[name](config)
    source = data.open_source(section, root=data_root(), skeleton=config.skeleton)
    count = min(config.analyse.count or len(source), len(source))
    rows = np.linspace(0, len(source) - 1, count).round().astype(int)
    skeleton = trained.recipe.skeleton
    labelled = [
        (to_skeleton(source.person(r), source.skeleton, skeleton).visible > 0).any()
        for r in rows.tolist()
    ]
    rows = rows[np.array(labelled, bool)]
    if not len(rows):
        raise UserError(
            f"nobody in {source.name} has a keypoint of skeleton {skeleton.name!r}"
        )
    return Split(name, source, rows)


def _health(context: Context) -> dict[str, Any]:
    """Whether the network answers anything: PCK@0.1 beside the mean pose's, on the last split.

    A network that answers "nothing", or that does not beat the mean pose, is reported and not
    analysed: what its inside does would explain nothing.
    """
    split, trained = context.splits[-1], context.trained
    picked = np.linspace(0, len(split.rows) - 1, min(HEALTH_PEOPLE, len(split.rows)))
    rows = split.rows[picked.astype(int)]
    mesh = sharding.local_mesh()
    found = inference.predict_source(
        trained.recipe, trained.variables, split.source,
        mesh=mesh, batch=sharding.round_up(context.batch, mesh), flip_test=False,
        rows=rows.tolist(),
    )  # fmt: skip
    people, true, visible = context.people(split, rows)
    boxes = np.stack([p.box for p in people])
    names = trained.recipe.skeleton.keypoints
    all_people, _, _ = context.people(context.splits[0])
    mean = evaluation.mean_pose(all_people)
    guesses = boxes[:, None, :2] + mean * boxes[:, None, 2:]
    sides = pck_.box_longer_side(boxes)

    def pck(points):
        record = pck_.pck(points, true, visible, sides, (0.1,), names)
        return float((record.compute()["micro"] or [0.0])[0])

    reached, base = pck(found.keypoints), pck(guesses)
    peak = float(np.median(found.scores))
    problem = ""
    if reached <= base:
        problem = (
            f"PCK@0.1 {reached:.3f} on {len(rows)} people of {split.source.name} does not "
            f"beat the mean pose's {base:.3f} (median peak of its maps {peak:.3f}); train "
            "it longer, this network has not learned to look"
        )
    return {
        "pck": reached, "mean_pose_pck": base, "median_peak": peak, "people": len(rows),
        "split": split.name, "problem": problem,
    }  # fmt: skip


def finished(context: Context, study: str, question: dict[str, Any]) -> bool:
    """Whether a study's record answers the same question already."""
    stored = read_json(context.folder / f"{study}.json", {})
    return stored.get("question") == json.loads(json.dumps(to_plain(question)))


def _skips(context: Context) -> None:
    from pose_jax.tasks import analyse_skips

    analyse_skips.run(context)


def _latent(context: Context) -> None:
    from pose_jax.tasks import analyse_latent

    analyse_latent.run(context)


def _clusters(context: Context) -> None:
    from pose_jax.tasks import analyse_clusters

    analyse_clusters.run(context)


def _redundancy(context: Context) -> None:
    from pose_jax.tasks import analyse_redundancy

    analyse_redundancy.run(context)


def _weights(context: Context) -> None:
    from pose_jax.tasks import analyse_weights

    analyse_weights.run(context)


_STUDIES: dict[str, Callable[[Context], None]] = {
    "skips": _skips,
    "latent": _latent,
    "clusters": _clusters,
    "redundancy": _redundancy,
    "weights": _weights,
}
"""Name in `config.analyse.studies` -> what it does."""
