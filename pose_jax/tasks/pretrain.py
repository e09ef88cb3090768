"""`pretrain`: the first of two stages, an autoencoder on the stored latents of a trained base.

Writes `pretrain/` in the workdir, a run of its own whose last checkpoint is the base with the
autoencoder plugged in; `train` starts from it. The latents lie beside the base's checkpoints,
in `latents/`, so that all arms and seeds of a study share them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from etils import epath

from pose_jax import checkpoint, data, sharding
from pose_jax.analysis import pca
from pose_jax.config import UserError, source, to_plain
from pose_jax.data.latents import LatentStore
from pose_jax.models.autoencoder import PROJECTION
from pose_jax.models.hourglass import autoencoder_name
from pose_jax.recipe import recipe
from pose_jax.tasks import initialise, train
from pose_jax.tasks.latents import collect, folder_of, load_trained
from pose_jax.tasks.workdir import claim, data_root
from pose_jax.writer import say


def run(config: Any, workdir: str) -> None:
    """Collect the base's latents, then train (or fit) the autoencoder on them.

    Raises:
      UserError: no base to take latents from.
      DataError: the stored latents are another checkpoint's.
    """
    kind = config.model.get("autoencoder", "none")
    if kind == "none" or (kind == "convolutional" and not config.pretrain.steps):
        say("nothing to pretrain: no autoencoder, or pretrain.steps=0")
        return
    base = config.init_from.path
    if not base:
        raise UserError(
            "pretrain needs a trained base: set init_from.path to its workdir (for example "
            "runs/thesis-small-repaired)"
        )
    stores = _collect(config, base)
    folder = str(epath.Path(workdir) / initialise.STAGE)
    staged = stage_config(config, stores[0].path.parent)
    claim(staged, folder)
    if kind == "pca":
        _fit(staged, folder, stores)
        sharding.wait_for_processes("the projection is fitted")
        return
    train.run(staged, folder)


def stage_config(config: Any, latents: Any) -> Any:
    """The configuration of the first stage: other data, objective and recipe."""
    section, staged = config.pretrain, config.copy_and_resolve_references()
    staged.tasks = ("train",)
    full = recipe(config).skeleton.num_keypoints
    staged.data.train.source = data_section(
        latents, section.holdout, full if section.labelled == "full" else 1
    )
    staged.data.select.name = ""
    staged.objective.update(
        name="latent", noise=section.noise, file_order=section.file_order
    )
    with staged.optimiser.ignore_type():
        staged.optimiser.update(section.optimiser.to_dict())
    staged.optimiser.freeze = ()
    staged.train.update(
        steps=section.steps, batch=section.batch, ema=0.0, precision="float32",
        accumulation=1, save_every=section.steps, eval_every=section.eval_every,
    )  # fmt: skip
    return staged


def data_section(latents: Any, holdout: float, min_keypoints: int) -> Any:
    """The source of stored latents in that folder."""
    path = str(latents)
    if "://" not in path:
        path = str(latents.resolve())
    part = "train" if holdout else "all"
    return source(
        "latents", path=path, part=part, holdout=holdout, min_keypoints=min_keypoints
    )


def _collect(config: Any, base: str) -> list[LatentStore]:
    """The latents of every stack of the base, on the people of `data.train.source`."""
    trained = load_trained(base, config.init_from.checkpoint)
    people = data.open_source(
        config.data.train.source, root=data_root(), skeleton=config.skeleton
    )
    stacks = recipe(config).module.config.stacks  # type: ignore[attr-defined]
    names = [f"stack{i}/bottleneck" for i in range(stacks)]
    section = to_plain(config.data.train.source)
    folders = {n: folder_of(base, section, trained.weights, n) for n in names}
    found = collect(trained, people, folders, batch=config.evaluate.batch)
    return [found[name] for name in folders]


def _fit(config: Any, folder: str, stores: list[LatentStore]) -> None:
    """Mean and principal components in the place of the projection's parameters."""
    if checkpoint.saved_steps(folder):
        say(f"{folder} already holds the fitted projection; nothing to do")
        return
    described = recipe(config)
    code = described.module.config.code  # type: ignore[attr-defined]
    tree = initialise.variables(config, described)
    for stack, store in enumerate(stores):
        rows = store.rows(config.pretrain.labelled)
        fitted = pca.fit(store.selected_parts(rows), components=code)
        place = tree["params"][autoencoder_name(stack)][PROJECTION]
        place["mean"] = np.asarray(fitted.mean, np.float32)
        place["components"] = np.asarray(fitted.components, np.float32)
        share = float(fitted.shares[:code].sum())
        say(f"stack {stack}: {code} components hold {share:.1%} of the variance")
    checkpoint.save_variables(folder, tree, info={"config": to_plain(config)})
