"""Who plays: regions of keypoints, limbs or masks; which pixels each player owns."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from pose_jax import regions
from pose_jax.arrays import Array
from pose_jax.explain import shapley
from pose_jax.partitions import Partition
from pose_jax.skeletons import Skeleton

PLAYERS = ("disc", "box", "limbs", "masks")


@dataclasses.dataclass(frozen=True)
class Players:
    """Who plays: regions of keypoints, limbs, or masks.

    Attributes:
      kind: `disc` or `box` around every keypoint, `limbs` (capsules around bones) or `masks`.
      side: diameter of a region or width of a limb, as a share of the crop's height.
      names: of the players.
      clusters: partition of the players.
      cluster_names: in the same order.
      target_cluster: `[k]` in which cluster every keypoint lies.
      own: `[k]` the player that is the keypoint itself, -1 where there is none.
    """

    kind: str
    side: float
    names: tuple[str, ...]
    clusters: tuple[tuple[int, ...], ...]
    cluster_names: tuple[str, ...]
    target_cluster: tuple[int, ...]
    own: tuple[int, ...]

    @property
    def count(self) -> int:
        return len(self.names)

    @property
    def coalitions(self) -> np.ndarray:
        """`[c, n]` the rows that every kind of grouped value is read from."""
        return shapley.grouped_coalitions(self.clusters, "gsv")


def keypoint_players(
    skeleton: Skeleton,
    partition: Partition,
    *,
    kind: str = "disc",
    side: float = regions.SIDE,
) -> Players:
    """Every keypoint's region is a player; clusters are those of the partition.

    Raises:
      ValueError: unknown kind, or a side that is not between 0 and 1.
    """
    if kind not in regions.SHAPES:
        raise ValueError(f"players {kind!r} are unknown; use one of {PLAYERS}")
    _check_side(side)
    return Players(
        kind=kind,
        side=side,
        names=skeleton.keypoints,
        clusters=partition.clusters,
        cluster_names=partition.cluster_names,
        target_cluster=tuple(int(c) for c in partition.owner),
        own=tuple(range(skeleton.num_keypoints)),
    )


def limb_players(
    skeleton: Skeleton, partition: Partition, *, side: float = regions.SIDE
) -> Players:
    """Limbs are the players; a limb between two clusters belongs to the cluster `trunk`.

    Keypoints whose cluster has no limb count as targets of the trunk.

    Raises:
      ValueError: the skeleton has no limbs, or no limb joins two clusters or misses one.
    """
    _check_side(side)
    ends = skeleton.limb_indices
    if not len(ends):
        raise ValueError(f"skeleton {skeleton.name!r} has no limbs; use players='disc'")
    owner = partition.owner
    trunk = len(partition.clusters)
    home = np.where(owner[ends[:, 0]] == owner[ends[:, 1]], owner[ends[:, 0]], trunk)
    used = [c for c in range(trunk + 1) if (home == c).any()]
    names = (*partition.cluster_names, "trunk")
    place = {c: i for i, c in enumerate(used)}
    homeless = [c for c in set(owner.tolist()) if c not in place]
    if homeless and trunk not in used:
        raise ValueError(
            f"cluster {partition.cluster_names[homeless[0]]!r} of {partition.name} holds no "
            "limb and no limb joins two clusters; use another partition or players='disc'"
        )
    return Players(
        kind="limbs",
        side=side,
        names=tuple("-".join(limb) for limb in skeleton.limbs),
        clusters=tuple(tuple(np.flatnonzero(home == c).tolist()) for c in used),
        cluster_names=tuple(names[c] for c in used),
        target_cluster=tuple(place.get(int(c), len(used) - 1) for c in owner),
        own=(-1,) * skeleton.num_keypoints,
    )


def mask_players(
    clusters: Sequence[Sequence[int]],
    target_cluster: Sequence[int],
    *,
    names: Sequence[str] = (),
) -> Players:
    """Any stack of masks; the caller says where the keypoints lie."""
    count = sum(map(len, clusters))
    return Players(
        kind="masks",
        side=0.0,
        names=tuple(names) or tuple(f"mask{n}" for n in range(count)),
        clusters=tuple(tuple(int(i) for i in c) for c in clusters),
        cluster_names=tuple(f"group{n}" for n in range(len(clusters))),
        target_cluster=tuple(int(c) for c in target_cluster),
        own=(-1,) * len(target_cluster),
    )


def _check_side(side: float) -> None:
    if not 0 < side <= 1:
        raise ValueError(f"side={side:g} is a share of the crop's height in (0, 1]")


def make_owners(
    players: Players,
    keypoints: Float[Array, "k 2"],
    present: Bool[Array, "k"],
    size: tuple[int, int],
    skeleton: Skeleton,
    masks: Bool[Array, "n h w"] | None = None,
) -> Int[Array, "h w"]:
    """Who owns which pixel of one crop; keypoints without a place own none.

    Raises:
      ValueError: masks are missing, or not one per player.
    """
    present = jnp.asarray(present) & regions.inside(jnp.asarray(keypoints), size)
    side_px = players.side * size[0]
    if players.kind == "masks":
        if masks is None or masks.shape != (players.count, *size):
            found = None if masks is None else list(masks.shape)
            raise ValueError(
                f"masks have shape {found}; needed is one per player at the size of the "
                f"crop, {[players.count, *size]}"
            )
        return regions.mask_owners(masks)
    if players.kind == "limbs":
        ends = [(int(a), int(b)) for a, b in skeleton.limb_indices]
        return regions.limb_owners(keypoints, present, ends, size, width_px=side_px)
    return regions.keypoint_owners(
        keypoints, present, size, side_px=side_px, shape=players.kind
    )


def null_players(
    owners: Int[np.ndarray, "m h w"], count: int
) -> Bool[np.ndarray, "m n"]:
    """Players that own no pixel: showing or hiding them changes nothing."""
    owned = (np.asarray(owners)[..., None] == np.arange(count)).any((1, 2))
    return ~owned
