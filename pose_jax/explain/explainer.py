"""From crops to explanations: who plays, what is hidden, what is scored, all in one batch."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, UInt8

from pose_jax import geometry, heatmaps, regions
from pose_jax.arrays import PyTree
from pose_jax.data.sources import AREA_OF_BOX
from pose_jax.explain import games, scores, shapley
from pose_jax.explain.explanation import Explanation
from pose_jax.explain.games import Person, Players, PoseGame
from pose_jax.explain.shapley.listed import extend
from pose_jax.recipe import Recipe

METHODS = ("group_shapley", "shapley")
REFERENCES = ("auto", "labels", "predicted")
# Scores whose reference is the label where there is one; the others read the map where
# the model itself put the joint.
_OF_LABELS = (
    "similarity",
    "thresholded",
    "log_likelihood",
    "likelihood",
    "displacement",
)
_MOST_PLAYERS = 16


class Crops(NamedTuple):
    """People to explain, cut out; `m` of them.

    Attributes:
      images: crops. matrices: image -> crop. boxes: xywh, image pixels.
      keypoints: `[m, k, 2]` labels in crop pixels, or None. visible: `[m, k]`; None: all are
        labelled.
      areas: `[m]` of the people, square image pixels; None: 0.53 of the box.
      others: `[m, h, w, 3]` crops of other people, for `removal='other'`.
      masks: `[m, n, h, w]` for players that are masks.
      whole_image: the boxes are the whole pictures, for want of others.
    """

    images: UInt8[np.ndarray, "m h w 3"]
    matrices: Float[np.ndarray, "m 3 3"]
    boxes: Float[np.ndarray, "m 4"]
    keypoints: Float[np.ndarray, "m k 2"] | None = None
    visible: Int[np.ndarray, "m k"] | None = None
    areas: Float[np.ndarray, "m"] | None = None
    others: np.ndarray | None = None
    masks: np.ndarray | None = None
    whole_image: bool = False


class Explainer:
    """One question asked of one model; call it on any number of people.

    Args:
      recipe, variables: the model; a copy with folded normalisation is faster and equal.
      players: who plays, see `games`.
      method: `group_shapley`, or `shapley`: exact values of all players (at most 16).
      kind: `gsv`, `owen` or `decoupled`; see `shapley.group_shapley`.
      score: a name of `scores.SCORES`, or `auto`: `similarity` with labels, `value` without.
      reference: what the score holds for the joints' places: `labels`, `predicted` (the answer
        on the clean crop), or `auto`: labels for distances, the prediction for heights.
      centres: where regions lie, with the same choices; `auto`: labels where there are any.
      removal: a name of `games.REMOVALS`.
      chunk_size: forward passes done together; by default from the size of the maps.
      sharding: how coalitions are split over devices.
      key: of the noise fill.

    Raises:
      ValueError: a name that is unknown, or more players than `shapley` can enumerate.
    """

    def __init__(
        self,
        recipe: Recipe,
        variables: PyTree,
        players: Players,
        *,
        method: str = "group_shapley",
        kind: str = "gsv",
        score: str = "auto",
        reference: str = "auto",
        centres: str = "auto",
        removal: str = "mean",
        chunk_size: int | None = None,
        sharding: Any = None,
        key: jax.Array | None = None,
    ):
        if method not in METHODS:
            raise ValueError(f"method {method!r} is unknown; use {', '.join(METHODS)}")
        if method == "shapley" and players.count > _MOST_PLAYERS:
            raise ValueError(
                f"method='shapley' would take 2**{players.count} = {2**players.count:,} forward "
                f"passes per person; use method='group_shapley' "
                f"({len(players.coalitions):,} passes)"
            )
        if removal not in games.REMOVALS:
            raise ValueError(
                f"removal {removal!r} is unknown; use {', '.join(games.REMOVALS)}"
            )
        for name, value in (("reference", reference), ("centres", centres)):
            if value not in REFERENCES:
                raise ValueError(
                    f"{name}={value!r}; use one of {', '.join(REFERENCES)}"
                )
        if score == "heatmap":
            raise ValueError(
                "whole heatmaps are explained with explain.PoseGame(score='heatmap') and "
                "explain.group_shapley; an Explanation holds one number per joint"
            )
        if score != "auto":
            scores.make_score(score, recipe.codec)
        if kind not in ("gsv", "owen", "decoupled"):
            raise ValueError(f"kind {kind!r} is unknown; use gsv, owen or decoupled")
        self.recipe, self.players = recipe, players
        # On the device once, not at every call (folded weights are NumPy arrays).
        self.variables = jax.device_put(variables)
        self.method, self.kind, self.score, self.removal = method, kind, score, removal
        self._reference, self._centres = reference, centres
        self._arguments = dict(
            method=method, kind=kind, score=score, reference=reference, centres=centres,
            removal=removal, chunk_size=chunk_size, sharding=sharding, key=key,
        )  # fmt: skip
        self._chunk, self.sharding = chunk_size, sharding
        self._key = jax.random.key(0) if key is None else key

    def with_removal(self, removal: str) -> Explainer:
        """The same question with another fill."""
        return self._changed(removal=removal)

    def with_score(self, score: str) -> Explainer:
        """The same people and fills with another score."""
        return self._changed(score=score)

    def _changed(self, **changes: Any) -> Explainer:
        arguments: dict[str, Any] = {**self._arguments, **changes}
        return Explainer(self.recipe, self.variables, self.players, **arguments)

    def asks(self, labelled: bool) -> tuple[str, str]:
        """The score and its reference (`labels` or `predicted`) for crops of this sort.

        Raises:
          ValueError: labels are needed and there are none.
        """
        score = self.score
        if score == "auto":
            score = "similarity" if labelled else "value"
        reference = self._reference
        if reference == "auto":
            of_labels = labelled and score in _OF_LABELS
            reference = "labels" if of_labels else "predicted"
        if not labelled and "labels" in (reference, self._centres):
            raise ValueError("reference and centres 'labels' need labelled people")
        return score, reference

    def centres_of(self, labelled: bool) -> str:
        """Where regions lie: `labels` or `predicted`."""
        from_labels = labelled and self._centres != "predicted"
        return "labels" if from_labels else "predicted"

    def game(self, labelled: bool) -> PoseGame:
        """The value function of one coalition of one person."""
        described = self.recipe
        score = self.asks(labelled)[0]
        return PoseGame(described.module, described.spec, described.codec, score)

    def people(
        self, crops: Crops, *, room: int = 0
    ) -> tuple[Person, dict[str, np.ndarray]]:
        """The games of these crops, and what was found on the way: predicted keypoints
        `[m, k, 2]` and centres in crop pixels, peaks, which keypoints are present.

        Args:
          room: people to compile for, at least.

        Raises:
          ValueError: the clean answer is not finite.
        """
        codec, size = self.recipe.codec, self.recipe.spec.size
        labelled = crops.keypoints is not None
        _, reference = self.asks(labelled)
        images = np.asarray(crops.images, np.float32)
        answer = games.clean_program(self.game(labelled))
        padded = jnp.asarray(extend(images, max(room, len(images))))
        found = answer(self.variables, padded)
        points, peaks, sizes = (np.asarray(x)[: len(images)] for x in found)
        if not np.isfinite(points).all() or not np.isfinite(peaks).all():
            raise ValueError("the prediction is not finite: the weights hold NaN")
        step = heatmaps.stride(codec, size, (int(sizes[0, 0]), int(sizes[0, 1])))
        predicted = points * step
        valid = np.ones(points.shape[:2], bool)
        centres = labels = predicted
        if crops.keypoints is not None:
            if crops.visible is not None:
                valid = np.asarray(crops.visible) > 0
            # Files hold anything where there is no label.
            labels = np.where(valid[..., None], crops.keypoints, 0.0)
            if self.centres_of(True) == "labels":
                centres = labels
        here = points
        if reference == "labels":
            here = labels / step
        found = {
            "predicted": predicted,
            "peaks": peaks,
            "centres": centres,
            "present": self._present(centres, valid),
            "valid": valid,
        }
        areas = self._areas(crops) / np.prod(step)
        people = [
            self._person(crops, n, here[n], valid[n], areas[n], found)
            for n in range(len(images))
        ]
        return games.stack_people(people), found

    def _present(self, centres, valid):
        where = jnp.asarray(centres, jnp.float32)
        inside = jax.vmap(lambda p: regions.inside(p, self.recipe.spec.size))(where)
        # A region at the model's own answer is there, label or not.
        known = valid if self._centres != "predicted" else np.ones_like(valid)
        return known & np.asarray(inside)

    def _areas(self, crops: Crops) -> np.ndarray:
        """[m] square crop pixels."""
        areas = crops.areas
        if areas is None:
            areas = AREA_OF_BOX * crops.boxes[:, 2] * crops.boxes[:, 3]
        return np.asarray(areas) * np.abs(np.linalg.det(crops.matrices))

    def _person(self, crops: Crops, n: int, here, valid, area, found) -> Person:
        recipe, size = self.recipe, self.recipe.spec.size
        owners = np.asarray(
            games.make_owners(
                self.players,
                jnp.asarray(found["centres"][n], jnp.float32),
                jnp.asarray(found["present"][n]),
                size,
                recipe.skeleton,
                None if crops.masks is None else jnp.asarray(crops.masks[n]),
            )
        )
        image = np.asarray(crops.images[n], np.float32)
        fill = games.make_fill(
            self.removal, image, owners, recipe.spec.colour,
            side=self.players.side, key=self._key,
            other=None if crops.others is None else crops.others[n],
        )  # fmt: skip
        reference = scores.from_points(here, valid, recipe.skeleton, area)
        return Person(image, fill, owners, reference)

    def __call__(self, crops: Crops, *, room: int = 0) -> list[Explanation]:
        """One explanation per person.

        Args:
          room: people to compile for, at least; calls with fewer share the program.
        """
        count = len(crops.images)
        if count == 0:
            return []
        people, found = self.people(crops, room=room)
        labelled = crops.keypoints is not None
        fields, evaluations = self._values(people, labelled, room)
        return [
            self._explanation(crops, n, people, found, fields, int(evaluations[n]))
            for n in range(count)
        ]

    def _values(self, people: Person, labelled: bool, room: int):
        game = self.game(labelled)
        if self.method == "shapley":
            return self._exact(game, people, room)
        result, evaluations = games.explain_people(
            game, self.variables, people, self.players,
            kind="gsv" if self.kind == "decoupled" else self.kind,
            chunk_size=self._chunk, sharding=self.sharding, room=room,
        )  # fmt: skip
        fields = {"influence": shapley.reweight(result, "owen").player_values}
        result = shapley.reweight(result, self.kind)
        for target in games.TARGETS:
            values = np.full(np.shape(result.member_values), np.nan)
            if min(self.players.own) >= 0:
                values = games.conditional(
                    result, self.players.own, target
                ).member_values
            fields[f"{target}_values"] = values
        for name in (
            "member_values", "cluster_values", "quotient_values", "empty", "full",
            "baseline", "residual", "quotient_residual", "table",
        ):  # fmt: skip
            fields[name] = getattr(result, name)
        return {k: np.asarray(v) for k, v in fields.items()}, evaluations

    def _exact(self, game, people: Person, room: int):
        """Shapley values of all players, in the fields of grouped ones."""
        n = self.players.count
        every = shapley.all_coalitions(n)
        table, evaluations = shapley.coalition_table(
            game, every, args=(self.variables,), games=people, chunk_size=self._chunk,
            null_players=games.null_players(np.asarray(people.owners), n), room=room,
            sharding=self.sharding,
        )  # fmt: skip
        table = jnp.where(people.reference.valid[:, None], table, 0)
        found = jax.vmap(lambda t: shapley.shapley_values(t, n))(table)
        rows = np.array([int(c @ (1 << np.arange(n))) for c in self.players.coalitions])
        grouped = shapley.group_values(
            table[:, rows], self.players.clusters, kind="gsv",
            target_cluster=self.players.target_cluster,
            target_valid=np.asarray(people.reference.valid),
        )  # fmt: skip
        owner = np.zeros(n, int)
        for g, members in enumerate(self.players.clusters):
            owner[list(members)] = g
        own = owner[:, None] == np.asarray(self.players.target_cluster)
        foreign = np.stack([(owner == g) for g in range(len(self.players.clusters))])
        values = np.asarray(found.values)
        fields = {
            "influence": values,
            "member_values": np.where(own, values, 0),
            # Plain Shapley values of single players do add up.
            "cluster_values": np.einsum(
                "gn,mnk->mgk", foreign, np.where(own, 0, values)
            ),
            "quotient_values": grouped.quotient_values,
            **self._exact_conditional(table, n),
            "empty": found.empty,
            "full": found.full,
            "baseline": found.empty,
            "residual": found.residual,
            "quotient_residual": grouped.quotient_residual,
            "table": table,
        }
        return {k: np.asarray(v) for k, v in fields.items()}, evaluations

    def _exact_conditional(self, table, n: int) -> dict[str, Any]:
        own = np.asarray(self.players.own)
        if own.min() < 0:
            nothing = np.full((len(table), n, len(own)), np.nan)
            return {"hidden_values": nothing, "visible_values": nothing}
        rows, bit = np.arange(2**n)[:, None], 1 << own
        fields = {}
        for name, index in (("hidden", rows & ~bit), ("visible", rows | bit)):
            changed = table[:, index, np.arange(len(own))]
            found = jax.vmap(lambda t: shapley.shapley_values(t, n))(changed)
            fields[f"{name}_values"] = found.values
        return fields

    def _explanation(self, crops, n, people, found, fields, evaluations) -> Explanation:
        score, reference = self.asks(crops.keypoints is not None)
        image_points = geometry.invert(
            np.asarray(found["predicted"][n : n + 1], np.float64),
            crops.matrices[n : n + 1],
        )[0]
        return Explanation(
            method=self.method,
            kind="exact" if self.method == "shapley" else self.kind,
            score=score,
            reference=reference,
            removal=self.removal,
            skeleton=self.recipe.skeleton,
            players=self.players,
            **{name: values[n] for name, values in fields.items()},
            player_present=~games.null_players(
                people.owners[n : n + 1], self.players.count
            )[0],
            target_valid=found["valid"][n],
            whole_image=crops.whole_image,
            evaluations=evaluations,
            keypoints=image_points,
            keypoint_scores=found["peaks"][n],
            centres=np.asarray(found["centres"][n], np.float32),
            present=found["present"][n],
            box=np.asarray(crops.boxes[n], np.float32),
            matrix=np.asarray(crops.matrices[n], np.float64),
            image=np.asarray(crops.images[n]),
            fill=np.asarray(people.fill[n]).round().clip(0, 255).astype(np.uint8),
            owners=np.asarray(people.owners[n]).astype(np.int16),
        )
