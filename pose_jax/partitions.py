"""Clusters of keypoints: named anatomical partitions, partitions from a file, shuffled ones.

The names carry a version: a result that names `limbs-v1` means the same clusters for ever.

| name | clusters | source |
|---|---|---|
| `limbs-v1` | head, two arms, two legs | XPose's one published example is an arm |
| `halves-v1` | head, arms, legs | |
| `torso-v1` | head, torso (shoulders, hips), four outer limbs | |
| `pairs-v1` | left-right pairs, middle joints alone | |
| `sides-v1` | left, right, middle | |
| `joints-v1` | every keypoint alone: the grouped value is the plain Shapley value | |
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pose_jax.skeletons import Skeleton

_Groups = dict[str, list[str]]


@dataclasses.dataclass(frozen=True)
class Partition:
    """Named clusters that hold every keypoint of a skeleton once.

    Attributes:
      name: of the whole partition.
      cluster_names: in cluster order.
      clusters: keypoint numbers of every cluster.
      skeleton: name of the skeleton.
    """

    name: str
    cluster_names: tuple[str, ...]
    clusters: tuple[tuple[int, ...], ...]
    skeleton: str

    @property
    def owner(self) -> np.ndarray:
        """`[k]` the cluster of every keypoint."""
        owner = np.zeros(sum(map(len, self.clusters)), int)
        for number, members in enumerate(self.clusters):
            owner[list(members)] = number
        return owner

    def record(self, skeleton: Skeleton) -> dict[str, Any]:
        """The JSON form, by keypoint names; `from_record` reads it."""
        return {
            "name": self.name,
            "skeleton": self.skeleton,
            "clusters": {
                name: [skeleton.keypoints[i] for i in members]
                for name, members in zip(self.cluster_names, self.clusters)
            },
        }


def get(name: str, skeleton: Skeleton) -> Partition:
    """A named partition of a skeleton (table above).

    Raises:
      ValueError: no partition has the name.
    """
    if name not in PARTITIONS:
        raise ValueError(
            f"partition {name!r} is unknown; use one of {', '.join(PARTITIONS)}"
        )
    groups = PARTITIONS[name](skeleton).items()
    return _build(name, [(n, members) for n, members in groups if members], skeleton)


def from_record(record: Any, skeleton: Skeleton) -> Partition:
    """A partition from its JSON form.

    Raises:
      ValueError: the record has no clusters, or they do not hold every keypoint once.
    """
    clusters = record.get("clusters") if isinstance(record, Mapping) else None
    if (
        not isinstance(clusters, Mapping)
        or not clusters
        or not all(_words(members) for members in clusters.values())
    ):
        raise ValueError(
            'a clusters file holds {"name": ..., "clusters": {cluster: [keypoint names]}}'
        )
    groups = [(str(name), list(members)) for name, members in clusters.items()]
    return _build(str(record.get("name", "custom")), groups, skeleton)


def _words(members: Any) -> bool:
    """Whether it is a list of names."""
    return isinstance(members, list | tuple) and all(
        isinstance(k, str) for k in members
    )


def from_lists(name: str, clusters: Any, skeleton: Skeleton) -> Partition:
    """A partition from lists of keypoint numbers or names; clusters are named by their
    first keypoints.

    Raises:
      ValueError: no lists of keypoints, or they do not hold every keypoint once.
    """
    if isinstance(clusters, str | Mapping) or not all(
        isinstance(members, Sequence | np.ndarray) and not isinstance(members, str)
        for members in clusters
    ):
        raise ValueError(
            "clusters are lists of keypoint names or numbers: [[0, 1], [2, 3, 4], ...]"
        )
    groups = []
    for members in clusters:
        words = [i if isinstance(i, str) else _name_of(i, skeleton) for i in members]
        title = "+".join(words[:2]) + ("+..." if len(words) > 2 else "")
        groups.append((title, words))
    return _build(name, groups, skeleton)


def _name_of(number: Any, skeleton: Skeleton) -> str:
    if not 0 <= int(number) < skeleton.num_keypoints:
        raise ValueError(
            f"skeleton {skeleton.name!r} has no keypoint {int(number)}; numbers go from 0 "
            f"to {skeleton.num_keypoints - 1}"
        )
    return skeleton.keypoints[int(number)]


def shuffled(partition: Partition, seed: int) -> Partition:
    """Clusters of the same sizes with keypoints dealt out at random (a control)."""
    order = np.random.default_rng(seed).permutation(len(partition.owner))
    ends = np.cumsum([len(c) for c in partition.clusters])[:-1]
    clusters = tuple(tuple(sorted(part.tolist())) for part in np.split(order, ends))
    names = tuple(f"shuffled{n}" for n in range(len(clusters)))
    return Partition(
        f"{partition.name}-shuffled{seed}", names, clusters, partition.skeleton
    )


def _build(
    name: str, groups: Sequence[tuple[str, list[str]]], skeleton: Skeleton
) -> Partition:
    members = [k for _, words in groups for k in words]
    if empty := [title for title, words in groups if not words]:
        raise ValueError(f"partition {name!r} has an empty cluster {empty[0]!r}")
    missing = [k for k in skeleton.keypoints if k not in members]
    surplus = [k for k in members if k not in skeleton.keypoints]
    twice = sorted({k for k in members if members.count(k) > 1})
    if missing or surplus or twice:
        raise ValueError(
            f"partition {name!r} does not fit skeleton {skeleton.name!r}: missing {missing}, "
            f"unknown {surplus}, twice {twice}"
        )
    indices = tuple(tuple(skeleton.index(k) for k in words) for _, words in groups)
    titles = tuple(title for title, _ in groups)
    return Partition(name, titles, indices, skeleton.name)


def _limbs(skeleton: Skeleton) -> _Groups:
    if not skeleton.clusters:
        raise ValueError(
            f"skeleton {skeleton.name!r} has no anatomical clusters; give a clusters file"
        )
    return {name: list(words) for name, words in skeleton.clusters}


def _select(skeleton: Skeleton, *endings: str) -> list[str]:
    return [k for k in skeleton.keypoints if k.endswith(endings)]


_ARM, _LEG = ("shoulder", "elbow", "wrist"), ("hip", "knee", "ankle")


def _rest(skeleton: Skeleton, groups: _Groups, name: str) -> _Groups:
    """The groups with all other keypoints in front."""
    taken = {k for words in groups.values() for k in words}
    return {name: [k for k in skeleton.keypoints if k not in taken], **groups}


def _halves(skeleton: Skeleton) -> _Groups:
    groups = {"arms": _select(skeleton, *_ARM), "legs": _select(skeleton, *_LEG)}
    return _rest(skeleton, groups, "head")


def _torso(skeleton: Skeleton) -> _Groups:
    groups = {"torso": _select(skeleton, "shoulder", "hip")}
    for part, joints in (("arm", _ARM[1:]), ("leg", _LEG[1:])):
        for side in ("left", "right"):
            groups[f"{side}_{part}"] = [
                k for k in _select(skeleton, *joints) if k.startswith(side)
            ]
    return _rest(skeleton, groups, "head")


def _pairs(skeleton: Skeleton) -> _Groups:
    groups: _Groups = {}
    for k in skeleton.keypoints:
        side, _, word = k.partition("_")
        groups.setdefault(word if side in ("left", "right") else k, []).append(k)
    return groups


def _sides(skeleton: Skeleton) -> _Groups:
    groups = {
        side: [k for k in skeleton.keypoints if k.startswith(f"{side}_")]
        for side in ("left", "right")
    }
    return _rest(skeleton, groups, "middle")


PARTITIONS: dict[str, Callable[[Skeleton], _Groups]] = {
    "limbs-v1": _limbs,
    "halves-v1": _halves,
    "torso-v1": _torso,
    "pairs-v1": _pairs,
    "sides-v1": _sides,
    "joints-v1": lambda skeleton: {k: [k] for k in skeleton.keypoints},
}
