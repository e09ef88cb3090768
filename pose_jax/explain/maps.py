"""From crops to maps: one method asked of one model for any number of people, in one compiled
program. The methods themselves, as functions of one picture, are in `methods`.
"""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, UInt8

from pose_jax import answers, geometry, partitions
from pose_jax.arrays import PyTree
from pose_jax.explain import attention, grad_cam
from pose_jax.explain.explainer import Crops, Explainer
from pose_jax.explain.games import Person, keypoint_players
from pose_jax.explain.layouts import laid_out
from pose_jax.explain.methods import (
    METHODS,
    NEEDS,
    Method,
    applicable,
    bound_score,
    check_method,
    check_number,
    check_options,
    explain_maps,
)
from pose_jax.explain.shapley.listed import extend
from pose_jax.heatmaps import Codec
from pose_jax.pixels import InputSpec, normalise
from pose_jax.recipe import Recipe
from pose_jax.skeletons import Skeleton

__all__ = [
    "METHODS", "NEEDS", "MapExplainer", "MapExplanation", "Method", "applicable",
    "bound_score", "check_method", "explain_maps",
]  # fmt: skip

_OF_DECODER = ("similarity", "thresholded")
"""Scores that go through the decoder, whose maximum has no slope."""


@dataclasses.dataclass(frozen=True)
class MapExplanation:
    """Maps of one person.

    Attributes:
      method, score, reference, removal, tap, options: what was asked.
      skeleton: names of the joints.
      maps: signed but where the method says otherwise, at the size of the crop.
      full, empty: score of the crop, and of a crop where everything is removed.
      target_valid: False where there is no label: the map means nothing.
      constant: True where the map is the same everywhere: it is undefined, not "nothing
        matters".
      repeats_heatmap: True where the map is the joint's own heatmap (methods with a tap).
      keypoints: predicted, image pixels. keypoint_scores: peaks.
      box: xywh, image pixels. matrix: image -> crop. image: the crop.
      whole_image: no box was given, so the whole picture counted as one person.
    """

    method: str
    score: str
    reference: str
    removal: str
    tap: str | None
    options: Mapping[str, Any]
    skeleton: Skeleton
    maps: Float[np.ndarray, "k h w"]
    full: Float[np.ndarray, "k"]
    empty: Float[np.ndarray, "k"]
    target_valid: Bool[np.ndarray, "k"]
    constant: Bool[np.ndarray, "k"]
    repeats_heatmap: Bool[np.ndarray, "k"]
    keypoints: Float[np.ndarray, "k 2"]
    keypoint_scores: Float[np.ndarray, "k"]
    box: Float[np.ndarray, "4"]
    matrix: Float[np.ndarray, "3 3"]
    image: UInt8[np.ndarray, "h w 3"]
    whole_image: bool = False


@dataclasses.dataclass(frozen=True)
class _Asked:
    """What a compiled program answers; hashable."""

    module: nn.Module
    spec: InputSpec
    codec: Codec
    method: str
    score: str
    options: tuple[tuple[str, Any], ...]
    at_once: int


class MapExplainer:
    """One method asked of one model; call it on any number of people.

    Args:
      recipe, variables: the model; a copy with folded normalisation is faster and equal.
      method: a name of `METHODS`.
      score, reference, removal: as in `explain.Explainer`, but `auto` is `value` where
        gradients are asked: a decoder's maximum has none.
      tap: of methods that need one; None: `grad_cam.default_tap`.
      key: of methods that draw, and of the noise fill.
      people_at_once: people whose maps are made side by side.
      options: of the method. Fill and baseline are what `removal` says.

    Raises:
      ValueError: a name that is unknown, a method that does not apply to this model, a
        missing key, a score without gradient.
    """

    def __init__(
        self,
        recipe: Recipe,
        variables: PyTree,
        *,
        method: str = "integrated_gradients",
        score: str = "auto",
        reference: str = "auto",
        removal: str = "mean",
        tap: str | None = None,
        key: jax.Array | None = None,
        people_at_once: int = 4,
        **options: Any,
    ):
        found = check_method(method, recipe.module)
        if "key" in found.needs and key is None:
            raise ValueError(f"{method} draws; give key=jax.random.key(0)")
        if "gradients" in found.needs:
            score = _with_gradient(score, method, recipe)
        if people_at_once < 1:
            raise ValueError(f"people_at_once={people_at_once} must be at least 1")
        check_number(score)
        self.recipe, self.method, self.removal = recipe, method, removal
        self.tap = self._tap(found, recipe, tap)
        self.options = dict(options)
        given = {**options, **({"tap": self.tap} if self.tap else {})}
        self._given = _hashable(method, found, given)
        self._people_at_once = people_at_once
        self._key = jax.random.key(0) if key is None else key
        players = keypoint_players(
            recipe.skeleton, partitions.get("joints-v1", recipe.skeleton)
        )
        self._explainer = Explainer(
            recipe, variables, players,
            score=score, reference=reference, removal=removal, key=key,
        )  # fmt: skip

    @staticmethod
    def _tap(found: Method, recipe: Recipe, tap: str | None) -> str | None:
        if "tap" not in found.needs:
            if tap is not None:
                raise ValueError(
                    f"tap={tap!r}: this method reads no tap; use grad_cam or hires_cam"
                )
            return None
        shape = jax.ShapeDtypeStruct((*recipe.spec.size, 3), jnp.float32)
        taps = grad_cam.taps_of(recipe.module.apply, _shapes(recipe), shape)
        tokens = None
        if hasattr(recipe.module, "token_grid"):
            tokens = attention.tokens_of(recipe.module, recipe.spec.size)
        if tap is not None and tap not in taps:
            raise ValueError(
                f"tap {tap!r} is no map of this network; use one of {', '.join(taps)}"
            )
        return tap or grad_cam.default_tap(taps, tokens)

    def asks(self, labelled: bool) -> tuple[str, str]:
        """The score and its reference (`labels` or `predicted`), see `Explainer.asks`."""
        return self._explainer.asks(labelled)

    def __call__(self, crops: Crops, *, room: int = 0) -> list[MapExplanation]:
        """One record per person.

        Args:
          room: people to compile for, at least; the next power of two is. Calls with fewer
            share the program.

        Raises:
          ValueError: labels are needed and there are none, a prediction is not finite.
        """
        count = len(crops.images)
        if count == 0:
            return []
        room = 1 << (max(room, count) - 1).bit_length()
        people, found = self._explainer.people(crops, room=room)
        score, reference = self.asks(crops.keypoints is not None)
        program = _program(self._asked(score))
        padded = jax.tree.map(lambda leaf: extend(leaf, room), people)
        fields = program(self._explainer.variables, padded, self._key)
        fields = {name: np.asarray(value)[:count] for name, value in fields.items()}
        fields["constant"] = _constant(fields["maps"])
        self._warn(fields["repeats_heatmap"])
        return [
            self._record(crops, n, found, fields, score, reference)
            for n in range(count)
        ]

    def _asked(self, score: str) -> _Asked:
        recipe = self.recipe
        return _Asked(
            recipe.module, recipe.spec, recipe.codec, self.method, score, self._given,
            self._people_at_once,
        )  # fmt: skip

    def _warn(self, repeats: np.ndarray) -> None:
        if repeats.size and repeats.all():
            warnings.warn(
                f"{self.method} at tap {self.tap!r} repeats the heatmaps and explains "
                "nothing; choose an earlier tap",
                stacklevel=3,
            )

    def _record(self, crops, n, found, fields, score, reference) -> MapExplanation:
        points = np.asarray(found["predicted"][n : n + 1], np.float64)
        return MapExplanation(
            method=self.method,
            score=score,
            reference=reference,
            removal=self.removal,
            tap=self.tap,
            options=self.options,
            skeleton=self.recipe.skeleton,
            **{name: value[n] for name, value in fields.items()},
            target_valid=found["valid"][n],
            keypoints=geometry.invert(points, crops.matrices[n : n + 1])[0],
            keypoint_scores=found["peaks"][n],
            box=np.asarray(crops.boxes[n], np.float32),
            matrix=np.asarray(crops.matrices[n], np.float64),
            image=np.asarray(crops.images[n]),
            whole_image=crops.whole_image,
        )


@functools.lru_cache(maxsize=32)
def _program(asked: _Asked) -> Callable[..., dict[str, Any]]:
    """Compiled (variables, people, key) -> maps and scores of every person."""
    found, size = METHODS[asked.method], asked.spec.size
    options = dict(asked.options)
    if "attention" in found.needs:
        options["codec"] = asked.codec

    def one(variables, person: Person, key):
        pixels, fill = (normalise(x, asked.spec) for x in (person.image, person.fill))
        score = bound_score(asked.score, person.reference, asked.codec, size)
        given = {**options, **({found.start: fill} if found.start else {})}
        apply = asked.module.apply
        maps = explain_maps(
            asked.method, apply, variables, pixels, score, key=key, **given
        )

        def look(pixels):
            outputs: Any = apply(variables, pixels[None])
            return score(outputs), answers.maps(outputs, asked.codec, size)[0]

        (full, empty), (heatmaps, _) = jax.vmap(look)(jnp.stack([pixels, fill]))
        repeats = jnp.zeros(len(maps), bool)
        if "tap" in found.needs:
            repeats = grad_cam.repeats_heatmap(maps, heatmaps)
        return {
            "maps": maps, "full": full, "empty": empty, "repeats_heatmap": repeats
        }  # fmt: skip

    def every(variables, people: Person, key):
        count = len(people.image)
        keys = jax.vmap(lambda n: jax.random.fold_in(key, n))(jnp.arange(count))
        return jax.lax.map(
            laid_out(lambda person: one(variables, *person)), (people, keys),
            batch_size=min(asked.at_once, count),
        )  # fmt: skip

    return jax.jit(every)


def _with_gradient(score: str, method: str, recipe: Recipe) -> str:
    """A score that has a slope.

    Raises:
      ValueError: the one that was asked has none.
    """
    smooth = recipe.codec.decode == "soft_argmax" and score == "similarity"
    if score in _OF_DECODER and not smooth:
        raise ValueError(
            f"score {score!r} goes through the decoder and has no gradient for {method}; "
            "use likelihood, matched_filter or value"
        )
    return "value" if score == "auto" else score


def _hashable(method: str, found: Method, options: dict[str, Any]):
    """Options as a key of the cache.

    Raises:
      ValueError: an option that the method does not have or that is given by other means.
    """
    check_options(method, options)
    for name, value in options.items():
        if name in (found.start, "codec") and name:
            raise ValueError(f"{name} of {method} is what removal and recipe say")
        try:
            hash(value)
        except TypeError:
            raise ValueError(f"{name} of {method} must be a number or a name") from None
    return tuple(sorted(options.items()))


def _shapes(recipe: Recipe) -> Any:
    """Abstract variables of this very module (a folded one has fewer)."""
    images = jnp.zeros((1, *recipe.spec.size, 3))
    return jax.eval_shape(recipe.module.init, jax.random.key(0), images)


def _constant(maps: np.ndarray) -> np.ndarray:
    """`[m, k]` whether a map has one value."""
    low, high = maps.min((2, 3)), maps.max((2, 3))
    return high - low <= 1e-12 * np.maximum(np.abs(low), np.abs(high))
