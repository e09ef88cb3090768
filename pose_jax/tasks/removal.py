"""From the section `data.train.removal` to its record: partitions and influence from files."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from etils import epath

from pose_jax import partitions
from pose_jax.config import UserError, to_plain, to_tuples
from pose_jax.data.removal import KeypointRemoval
from pose_jax.partitions import Partition
from pose_jax.skeletons import Skeleton
from pose_jax.writer import is_main_process, read_json, write_json


def load_partition(name: str, skeleton: Skeleton) -> Partition:
    """A named partition, or the clusters file at a path.

    Raises:
      UserError: neither; the file does not fit the skeleton.
    """
    if not name.endswith(".json"):
        try:
            return partitions.get(name, skeleton)
        except ValueError as error:
            raise UserError(f"{error}, or a clusters file (*.json)") from None
    record = read_json(epath.Path(name))
    if record is None:
        raise UserError(
            f"{name}: no such clusters file; the task explain writes one, or use "
            + ", ".join(partitions.PARTITIONS)
        )
    try:
        return partitions.from_record(record, skeleton)
    except ValueError as error:
        raise UserError(f"{name}: {error}") from None


def make_removal(section: Any, skeleton: Skeleton, seed: int) -> KeypointRemoval:
    """The record of a config section.

    Raises:
      UserError: a file is missing or of another skeleton.
      ValueError: fields that do not fit together.
    """
    fields = to_tuples(to_plain(section))
    partition, influence = fields.pop("clusters"), fields.pop("influence")
    if fields["kind"] == "none":
        return KeypointRemoval(**fields)
    found = load_partition(partition, skeleton)
    if fields["kind"] == "gkr_shuffled_clusters":
        # Another deal for every seed, so that the control is not one lucky partition.
        found = partitions.shuffled(found, seed)
    weights = ()
    if fields["kind"] == "gkr_value_weighted":
        weights = _weights(influence, skeleton, found)
    return KeypointRemoval(**fields, clusters=found.clusters, weights=weights)


def claim_removal(removal: KeypointRemoval, workdir: str) -> None:
    """Keep what the files said in `removal.json`: the config names them by path alone.

    Raises:
      UserError: the run was begun with other clusters or weights.
    """
    if not removal.active:
        return
    path = epath.Path(workdir) / "removal.json"
    record, stored = to_plain(dataclasses.asdict(removal)), read_json(path)
    if stored is None and is_main_process():
        write_json(path, record)
    if stored is not None and to_tuples(stored) != to_tuples(record):
        names = [name for name in record if stored.get(name) != record[name]]
        raise UserError(
            f"{workdir} was begun with other keypoint removal ({', '.join(names)} differ: the "
            "clusters or influence file has changed); restore the file or use another "
            "--workdir"
        )


def _weights(path: str, skeleton: Skeleton, partition: Partition) -> tuple[float, ...]:
    """How much the other pixels of its cluster say about a keypoint: what can be inferred
    is worth removing. A floor keeps every keypoint in the draw."""
    record = read_json(epath.Path(path)) if path else None
    if record is None:
        raise UserError(
            f"data.train.removal.influence={path!r}: no such file; give the "
            "interdependence.json that the task explain wrote"
        )
    if not isinstance(record, dict) or not {"keypoints", "influence"} <= {*record}:
        raise UserError(
            f"{path} is no interdependence.json: it lacks keypoints and influence"
        )
    if tuple(record["keypoints"]) != skeleton.keypoints:
        raise UserError(
            f"{path} was measured on other keypoints than {skeleton.name!r}"
        )
    matrix = np.nan_to_num(np.asarray(record["influence"], float))
    if matrix.shape != (skeleton.num_keypoints,) * 2:
        raise UserError(
            f"{path}: influence has shape {list(matrix.shape)}, not joints x joints"
        )
    owner = partition.owner
    partners = (owner[:, None] == owner[None]) & ~np.eye(len(owner), dtype=bool)
    mass = np.where(partners, np.maximum(matrix, 0), 0).sum(1)
    if mass.max() <= 0:
        raise UserError(f"{path} holds no positive influence inside the clusters")
    return tuple((mass / mass.max() + 0.05).tolist())
