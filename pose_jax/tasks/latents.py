"""Collecting latents: taps of a trained network over a source, into stores on disk."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from pose_jax import checkpoint, sharding
from pose_jax.analysis import taps
from pose_jax.config import UserError, to_plain
from pose_jax.data.latents import LatentStore, part_size
from pose_jax.data.pipeline import to_skeleton
from pose_jax.data.sources import Source
from pose_jax.estimator import fit_variables
from pose_jax.recipe import Recipe, recipe
from pose_jax.trees import fingerprint
from pose_jax.writer import ProgressBar, read_json, say


def folder_of(workdir: Any, section: Mapping[str, Any], weights: int, tap: str) -> Any:
    """Where a run keeps the latents of a tap over the people of a source section: a folder
    per set of people, checkpoint and tap."""
    people = "-".join(str(section[name]) for name in ("name", "path", "part"))
    asked = json.dumps([to_plain(section), weights], sort_keys=True).encode()
    folder = epath.Path(workdir) / "latents"
    return folder / f"{_slug(people)}-{zlib.crc32(asked):08x}" / _slug(tap)


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")


class Trained(NamedTuple):
    """A trained network ready to be looked into.

    Attributes:
      recipe, variables: its faster inference copy, see `Recipe.inference`.
      weights: fingerprint of the weights as they were saved. step: of the checkpoint.
    """

    recipe: Recipe
    variables: Any
    weights: int
    step: int


def load_trained(workdir: Any, which: str | int) -> Trained:
    """The network of a workdir.

    Raises:
      UserError: no run at the path.
      CheckpointError: it has no such checkpoint.
    """
    stored = read_json(epath.Path(workdir) / "config.json")
    if stored is None:
        raise UserError(
            f"{workdir} holds no config.json; give the workdir of a training or conversion"
        )
    described = recipe(stored)
    tree, step = checkpoint.load_variables(workdir, which)
    model = described.inference(fit_variables(described, tree))
    return Trained(*model, fingerprint(tree), step)


def collect(
    trained: Trained,
    source: Source,
    folders: Mapping[str, Any],
    *,
    batch: int,
    rows: Sequence[int] | None = None,
    part_rows: int = 0,
) -> dict[str, LatentStore]:
    """Latents of people of a source, by default of everybody: {tap: its complete store}.

    Parts that exist are kept, so the same call resumes; processes share the parts, each on its
    own devices.

    Args:
      folders: {tap: folder of its store}.

    Raises:
      DataError: a folder holds latents of another network.
      ValueError: a tap that does not exist, or a value that is not finite.
    """
    described = trained.recipe
    chosen = list(range(len(source)) if rows is None else rows)
    count = len(chosen)
    names = [taps.require_tap(described, name) for name in folders]
    shapes = taps.tap_shapes(described)
    people = [
        to_skeleton(source.person(row), source.skeleton, described.skeleton)
        for row in chosen
    ]
    spec = described.spec
    shared: dict[str, Any] = dict(
        weights=trained.weights,
        step=trained.step,
        source=source.name,
        input={"size": list(spec.size), "padding": spec.padding, "area": spec.area},
        ids=[p.id for p in people],
        image_ids=[p.image_id for p in people],
        labelled=np.array([(p.visible > 0).sum() for p in people]),
        joints=described.skeleton.num_keypoints,
    )
    # Parts of all taps hold the same rows.
    size = max((int(np.prod(shapes[n])) for n in names), default=1)
    shared["part_rows"] = part_rows or part_size((size,))
    stores = {
        name: LatentStore.create(folder, tap=name, shape=shapes[name], **shared)
        for name, folder in zip(names, folders.values())
    }
    first = stores[names[0]]
    mesh = sharding.local_mesh()
    batch = sharding.round_up(batch, mesh)
    compiled = taps.compile_over(taps.make_reader(described, names), mesh)
    variables = jax.device_put(trained.variables, sharding.replicated(mesh))
    missing = [
        number
        for number in range(jax.process_index(), first.num_parts, jax.process_count())
        if not all(store.part(number).exists() for store in stores.values())
    ]
    if missing:
        gigabytes = sum(s.size for s in stores.values()) * 4 * count / 1e9
        say(f"collecting {', '.join(names)} of {count} people: {gigabytes:.2g} GB")
    with ProgressBar(sum(len(first.part_rows(n)) for n in missing), "collect") as bar:
        done = 0
        for number in missing:
            here = first.part_rows(number)
            found = taps.read_taps(
                described, variables, source, [chosen[n] for n in here], names,
                mesh=mesh, batch=batch, compiled=compiled,
            )  # fmt: skip
            for name, store in stores.items():
                store.write_part(number, found[name])
            done += len(here)
            bar.update(done)
    sharding.wait_for_processes("latents are collected")
    return {name: LatentStore.open(s.path) for name, s in stores.items()}
