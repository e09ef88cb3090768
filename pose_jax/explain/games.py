"""The pose game: what is the place of a joint worth when only some joints can be seen?

Players own pixels (`regions`), a coalition shows the pixels of its players and the fill
elsewhere, and the value is a score of every keypoint's heatmap (`scores`), so one forward pass
serves all targets. The background, which nobody owns, is always visible: the value of
the empty coalition is that of the context, not zero.

`PoseGame` is the value function of `shapley.group_shapley`, one `Person` one game:

    game = PoseGame(module, spec, codec, score="value")
    result = group_shapley(game, clusters, args=(variables,), games=people)
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from pose_jax import answers, regions
from pose_jax.arrays import Array, PyTree
from pose_jax.explain import shapley
from pose_jax.explain.players import (
    Players,
    keypoint_players,
    limb_players,
    make_owners,
    mask_players,
    null_players,
)
from pose_jax.explain.scores import Reference, make_score
from pose_jax.explain.shapley import GroupShapleyResult
from pose_jax.heatmaps import Codec
from pose_jax.pixels import InputSpec, normalise

__all__ = [
    "REMOVALS", "TARGETS", "BoxGame", "Person", "Players", "PoseGame", "clean_program",
    "conditional", "explain_people", "keypoint_players", "limb_players", "make_fill",
    "make_owners", "mask_players", "null_players", "stack_people",
]  # fmt: skip

REMOVALS = ("mean", "blur", "noise", "inpaint", "other")
TARGETS = ("hidden", "visible")


class Person(NamedTuple):
    """One game: a pytree of arrays; many people lead with `[m]`.

    Attributes:
      image: `[h, w, 3]` crop, 0..255.
      fill: `[h, w, 3]` what a hidden pixel shows instead; the same for every coalition.
      owners: `[h, w]` player of every pixel, `regions.FREE` where always visible.
      reference: where the joints are taken to be, see `scores`.
    """

    image: Float[Array, "*m h w 3"]
    fill: Float[Array, "*m h w 3"]
    owners: Int[Array, "*m h w"]
    reference: Reference


@dataclasses.dataclass(frozen=True)
class PoseGame:
    """Value of a coalition of body parts, for all keypoints at once.

    Hashable, so that programs are compiled once per network and score.

    Attributes:
      module, spec, codec: network, its input, its heatmaps; the last stack counts.
      score: a name of `scores.SCORES`.
    """

    module: nn.Module
    spec: InputSpec
    codec: Codec
    score: str = "value"

    def __post_init__(self):
        make_score(self.score, self.codec)

    def __call__(
        self, coalition: Bool[Array, "n"], variables: PyTree, person: Person
    ) -> Float[Array, "k *out"]:
        hidden = regions.hidden(person.owners, coalition)
        return self._of(hidden, variables, person)

    def _of(self, hidden, variables: PyTree, person: Person):
        seen = regions.remove(person.image, person.fill, hidden)
        outputs: Any = self.module.apply(variables, normalise(seen[None], self.spec))
        maps = answers.maps(outputs, self.codec, self.spec.size)[0]
        return make_score(self.score, self.codec)(maps, person.reference)


@dataclasses.dataclass(frozen=True)
class BoxGame(PoseGame):
    """The same score with one box hidden: input `(centre, half sides)`, crop pixels."""

    def __call__(self, box: Any, variables: PyTree, person: Person):
        size = person.image.shape[0], person.image.shape[1]
        return self._of(regions.box_mask(box[0], box[1], size), variables, person)


def make_fill(
    removal: str,
    image: Float[np.ndarray, "h w 3"],
    owners: Int[np.ndarray, "h w"],
    mean: Sequence[float],
    *,
    side: float = regions.SIDE,
    other: np.ndarray | None = None,
    key: jax.Array | None = None,
) -> Float[np.ndarray, "h w 3"]:
    """What a hidden pixel of one crop shows, whatever the coalition.

    Args:
      removal: `mean` colour of the data set, `blur` of the crop (sigma: half a region's side),
        `noise` of a fixed key, `inpaint` (all regions at once, OpenCV), `other` (the pixels of
        another crop).
      side: of the regions, as a share of the crop's height.

    Raises:
      ValueError: unknown removal, or `other` without a crop of the same size.
    """
    image = np.asarray(image, np.float32)
    if removal == "mean":
        fill = regions.mean_fill(image, mean)
    elif removal == "blur":
        sigma = max(side, 0.02) * image.shape[0] / 2
        fill = regions.blur_fill(image, sigma_px=sigma)
    elif removal == "noise":
        key = jax.random.key(0) if key is None else key
        fill = regions.noise_fill(image, key=key)
    elif removal == "inpaint":
        fill = regions.inpaint_fill(image.round().astype(np.uint8), np.asarray(owners))
    elif removal == "other":
        if other is None or np.shape(other) != image.shape:
            raise ValueError(
                f"removal='other' needs another crop of shape {list(image.shape)}"
            )
        fill = other
    else:
        raise ValueError(f"removal {removal!r} is unknown; use {', '.join(REMOVALS)}")
    return np.asarray(fill, np.float32)


def stack_people(people: Sequence[Person]) -> Person:
    """Single people -> one pytree that leads with `[m]`."""
    return jax.tree.map(
        lambda *leaves: np.stack([np.asarray(x) for x in leaves]), *people
    )


def explain_people(
    game: PoseGame,
    variables: PyTree,
    people: Person,
    players: Players,
    *,
    kind: str = "gsv",
    chunk_size: int | None = None,
    sharding: Any = None,
    room: int = 0,
) -> tuple[GroupShapleyResult, Int[np.ndarray, "m"]]:
    """Grouped values of people in one compiled batch, and how many forward passes each took.

    Coalitions that differ in null players only show the same picture and are evaluated once
    (not for whole heatmaps, which are summed up without a table). `sharding` says how the
    rows are split over devices; `room` is the number of people to compile for, at least.
    """
    valid = np.asarray(people.reference.valid)
    coalitions = shapley.grouped_coalitions(players.clusters, kind)
    if game.score == "heatmap":
        result = shapley.group_shapley(
            game, players.clusters, kind=kind, target_cluster=players.target_cluster,
            target_valid=valid, args=(variables,), games=people,
            chunk_size=chunk_size, sharding=sharding,
        )  # fmt: skip
        return result, np.full(len(valid), result.evaluations)
    table, taken = shapley.coalition_table(
        game, coalitions, args=(variables,), games=people,
        null_players=null_players(np.asarray(people.owners), players.count),
        chunk_size=chunk_size, room=room, sharding=sharding,
    )  # fmt: skip
    result = shapley.group_values(
        table, players.clusters, kind=kind,
        target_cluster=players.target_cluster, target_valid=valid,
    )  # fmt: skip
    return result, taken


def conditional(
    result: GroupShapleyResult, own: Sequence[int], target: str
) -> GroupShapleyResult:
    """The values when every target's own region is always `hidden` or always `visible`.

    Read from the table at no further evaluations. `hidden` says what the model falls back
    on when the joint itself cannot be seen. The target's own value is zero. Values of
    single foreign players (`player_values`) are not in the table: they are None.

    Args:
      own: `[k]` the player that is the target itself.

    Raises:
      ValueError: unknown name, a result without table, or targets that are no players.
    """
    if target not in TARGETS:
        raise ValueError(f"target={target!r} is none of {', '.join(TARGETS)}")
    if result.table is None or not result.has_union:
        raise ValueError("conditional values need the table of a gsv or owen game")
    if min(own) < 0:
        raise ValueError("targets that are no players cannot be hidden or shown")
    index = _changed_rows(result.clusters, tuple(own), target == "visible")
    games = (slice(None),) * (result.target_valid.ndim - 1)
    picked = (*games, index, np.arange(len(own)))
    table = jax.tree.map(lambda t: t[picked], result.table)
    found = shapley.group_values(
        table, result.clusters, kind=result.kind,
        target_cluster=result.target_cluster, target_valid=result.target_valid,
    )  # fmt: skip
    return dataclasses.replace(found, player_values=None)


@functools.lru_cache(maxsize=32)
def _changed_rows(clusters, own: tuple[int, ...], shown: bool) -> np.ndarray:
    """`[C, K]` the row of each coalition with each target's own player set."""
    rows = shapley.grouped_coalitions(clusters, "gsv")
    place = {row.tobytes(): i for i, row in enumerate(rows)}
    index = np.empty((len(rows), len(own)), int)
    for t, player in enumerate(own):
        changed = rows.copy()
        changed[:, player] = shown
        # Rows outside of the union belong to other clusters' games and weigh nothing here.
        index[:, t] = [place.get(row.tobytes(), i) for i, row in enumerate(changed)]
    return index


@functools.lru_cache(maxsize=16)
def clean_program(game: PoseGame) -> Callable[..., tuple[Array, Array, Array]]:
    """Compiled (variables, images `[m, h, w, 3]`) -> the model's own answer on untouched crops:
    keypoints `[m, k, 2]` in heatmap pixels, the heights of their peaks `[m, k]`, and the size
    of the map `[m, 2]` (height, width)."""

    def one(variables, image):
        pixels = normalise(image[None], game.spec)
        outputs: Any = game.module.apply(variables, pixels)
        maps = answers.maps(outputs, game.codec, game.spec.size)[0]
        points, peaks = answers.locate(outputs, game.codec, game.spec.size)
        return points[0], peaks[0], jnp.array(maps.shape[:2])

    return jax.jit(jax.vmap(one, (None, 0)))
