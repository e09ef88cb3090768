"""Attention of transformers as evidence: from which tokens a keypoint was mixed.

| kind | what it follows | source |
|---|---|---|
| `dependency` | row of the keypoint's token: what it reads in one layer | TransPose, ICCV 2021 |
| `affect` | column of the same token: who reads it in one layer | TransPose, ICCV 2021 |
| `rollout` | product over layers of (A + I) / 2 | Abnar, Zuidema, ACL 2020 |
| `gradient` | product over layers of I + (dS/dA * A)+ | Chefer, Gur, Wolf, ICCV 2021 |

Attention is not attribution: the weights say how values are mixed, not what the values hold nor
what later layers make of them. The residual paths are ignored by the first two kinds and
counted as one half by `rollout`; the MLPs are ignored by all. Only `gradient` asks the score.

A keypoint's token is its own where the network has keypoint tokens (TokenPose), else the one
under the predicted joint: a convolutional head reads a few tokens around, only this one
is followed. Affect maps of keypoint tokens say which patches read them.

Functions take one example (`[l, a, n, n]`: layers, heads, tokens); batch with `jax.vmap`.
`make_explainer` gives the form that explanations of maps share:
`explain(apply, variables, image, score, *, key) -> [k, h, w]`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from pose_jax import answers
from pose_jax.arrays import Array, PyTree
from pose_jax.heatmaps import Codec
from pose_jax.models.outputs import Edit

FAMILIES = ("transpose", "vitpose", "tokenpose")
"""Families of `models` that attend."""

KINDS = ("dependency", "affect", "rollout", "gradient")

Apply: TypeAlias = Callable[..., Any]
"""`apply(variables, pixels [b, h, w, 3], edits=...) -> Outputs`: a module's `apply`."""
Score: TypeAlias = Callable[[Any], Any]
"""`score(outputs) -> [k]`, of outputs with b = 1."""
Explain: TypeAlias = Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Where the tokens of a network lie.

    Attributes:
      image_size: (height, width) of the crop, pixels.
      grid: (rows, columns) of patches; they run along the rows.
      keypoints: tokens in front of the patches that stand for keypoints.
      offset: pixels by which the first patch begins outside of the crop (ViTPose pads).
    """

    image_size: tuple[int, int]
    grid: tuple[int, int]
    keypoints: int = 0
    offset: int = 0

    @property
    def count(self) -> int:
        """n, all tokens."""
        return self.keypoints + self.grid[0] * self.grid[1]

    def of(self, points: Float[Array, "k 2"]) -> Int[Array, "k"]:
        """The token that stands for every keypoint.

        Under a joint lies token int(p / stride) with p = pixel + 0.5, as TransPose's authors
        take it (heatmap location x 4 + 0.5 where the codec's stride is 4). Joints outside of
        the crop have the nearest token.

        Args:
          points: predicted (x, y), crop pixels.

        Raises:
          ValueError: as many keypoint tokens as points are needed, or none.
        """
        if self.keypoints:
            if len(points) != self.keypoints:
                raise ValueError(
                    f"{len(points)} keypoints for {self.keypoints} keypoint tokens; give one "
                    "point per token"
                )
            return jnp.arange(self.keypoints)
        (height, width), (rows, columns) = self.image_size, self.grid
        strides = jnp.array([width / columns, height / rows])
        cell = jnp.floor((jnp.asarray(points) + 0.5 + self.offset) / strides).astype(
            int
        )
        x, y = cell[:, 0].clip(0, columns - 1), cell[:, 1].clip(0, rows - 1)
        return y * columns + x

    def patches(self, rows: Float[Array, "*b n"]) -> Float[Array, "*b y x"]:
        """What goes to the patches, as maps; keypoint tokens are left out."""
        return rows[..., self.keypoints :].reshape(*rows.shape[:-1], *self.grid)

    def upsample(self, maps: Float[Array, "*b y x"]) -> Float[Array, "*b h w"]:
        """Bilinear with half-pixel centres to the size of the crop."""
        (height, width), (rows, columns) = self.image_size, self.grid
        lead = maps.shape[:-2]
        if not self.offset:
            return jax.image.resize(maps, (*lead, height, width), "bilinear")
        # One patch more at the end, so that the shifted window stays inside.
        edges = [(0, 0)] * len(lead) + [(0, 1), (0, 1)]
        size = (*lead, height + height // rows, width + width // columns)
        wide = jax.image.resize(jnp.pad(maps, edges, mode="edge"), size, "bilinear")
        at = self.offset
        return wide[..., at : at + height, at : at + width]


def tokens_of(module: Any, image_size: tuple[int, int]) -> Tokens:
    """The tokens of a network.

    Raises:
      ValueError: it does not attend.
    """
    if not hasattr(module, "token_grid"):
        raise ValueError(
            f"{type(module).__name__} computes no attention; use a network of the families "
            f"{', '.join(FAMILIES)}"
        )
    grid = module.token_grid(image_size)
    offset = getattr(module, "patch_offset", 0)
    return Tokens(image_size, grid, module.keypoint_tokens, offset)


def attention_taps(taps: Mapping[str, Any]) -> tuple[str, ...]:
    """The names `layer{i}/attention`, first layer first.

    Raises:
      ValueError: there is none.
    """
    found = {t: re.fullmatch(r"layer(\d+)/attention", t) for t in taps}
    numbers = {tap: int(match[1]) for tap, match in found.items() if match}
    if not numbers:
        raise ValueError(
            "the outputs hold no tap layer0/attention; use a network of the families "
            f"{', '.join(FAMILIES)}"
        )
    return tuple(sorted(numbers, key=lambda tap: numbers[tap]))


def read(taps: Mapping[str, Any]) -> Float[Array, "l a n n"]:
    """Softmax weights of all layers and heads from the taps of one example (b = 1).

    Raises:
      ValueError: there is none, or more than one example.
    """
    weights = [taps[name] for name in attention_taps(taps)]
    if len(weights[0]) != 1:
        raise ValueError(
            f"the taps hold {len(weights[0])} examples; give one and use jax.vmap"
        )
    return jnp.concatenate(weights)


def dependency(
    weights: Float[Array, "*b n n"], tokens: Int[Array, "k"]
) -> Float[Array, "*b k n"]:
    """What every keypoint's token reads; TransPose's maps where heads were averaged."""
    return weights[..., tokens, :]


def affect(
    weights: Float[Array, "*b n n"], tokens: Int[Array, "k"]
) -> Float[Array, "*b k n"]:
    """Who reads every keypoint's token; TransPose's maps where heads were averaged."""
    return jnp.swapaxes(weights[..., tokens], -1, -2)


def joint_to_joint(
    weights: Float[Array, "*b n n"], tokens: Tokens
) -> Float[Array, "*b k k"]:
    """What keypoint tokens (rows) read from each other; rows sum to less than one.

    Raises:
      ValueError: the network has no keypoint tokens.
    """
    if not tokens.keypoints:
        raise ValueError(
            "this network has no keypoint tokens; joint to joint attention needs tokenpose"
        )
    return weights[..., : tokens.keypoints, : tokens.keypoints]


def rollout(
    weights: Float[Array, "l n n"], tokens: Int[Array, "k"]
) -> Float[Array, "k n"]:
    """Attention rollout of some tokens: rows of A'_l ... A'_1 with A' = (A + I) / 2, rows
    divided by their sums (Abnar and Zuidema, ACL 2020). Rows sum to one.

    Args:
      weights: averaged over heads, first layer first.
    """

    def back(rows, layer):
        scaled = rows / (layer.sum(-1) + 1)
        return jnp.matmul(scaled, layer, precision="highest") + scaled, None

    first = jax.nn.one_hot(tokens, weights.shape[-1], dtype=weights.dtype)
    return jax.lax.scan(back, first, weights, reverse=True)[0]


def relevance_rollout(
    relevance: Float[Array, "l n n"], token: Int[Array, ""]
) -> Float[Array, "n"]:
    """Row of (I + R_l) ... (I + R_1) - I: equation 6 of Chefer et al. (ICCV 2021), unrolled.

    The identity, the token's own start, is taken off, as it says nothing about the picture.
    The product is not linear: the unit of the score changes how much longer paths count.
    """

    def back(row, layer):
        return row + jnp.matmul(row, layer, precision="highest"), None

    first = jax.nn.one_hot(token, relevance.shape[-1], dtype=relevance.dtype)
    return jax.lax.scan(back, first, relevance, reverse=True)[0] - first


def gradient_rollout(
    apply: Apply,
    variables: PyTree,
    image: Float[Array, "h w 3"],
    score: Score,
    tokens: Int[Array, "k"],
    *,
    at_once: int = 0,
) -> Float[Array, "k n"]:
    """Gradient times attention of every joint, rolled out.

    R_l = mean over heads of the positive part of dS_t/dA_l * A_l (equation 5 of Chefer et al.,
    ICCV 2021, self-attention alone). Gradients are those of an addition to the softmax
    weights, which need not sum to one then; later layers answer to it.

    Args:
      image: normalised pixels.
      tokens: whose row is read, for every joint that is scored.
      at_once: joints whose gradients (l a n n numbers each) are held together; 0: all.

    Raises:
      ValueError: no attention, or not one score per token.
    """
    shapes = jax.eval_shape(apply, variables, image[None]).taps
    zeros = {
        t: jnp.zeros(shapes[t].shape, shapes[t].dtype) for t in attention_taps(shapes)
    }

    def scored(shifts):
        edits = {name: Edit(shift=shift) for name, shift in shifts.items()}
        outputs = apply(variables, image[None], edits=edits)
        return score(outputs), read(outputs.taps)

    scores, pull, weights = jax.vjp(scored, zeros, has_aux=True)
    if scores.shape != tokens.shape:
        raise ValueError(
            f"score gives {list(scores.shape)} numbers for {len(tokens)} keypoints; it has "
            "to give one per keypoint"
        )

    def row(asked):
        seed, token = asked
        slopes = read(pull(seed)[0])
        return relevance_rollout(jax.nn.relu(slopes * weights).mean(1), token)

    seeds = jnp.eye(len(scores), dtype=scores.dtype)
    at_once = at_once or len(scores)
    return jax.lax.map(row, (seeds, tokens), batch_size=at_once)


def make_explainer(
    kind: str,
    module: Any,
    codec: Codec,
    image_size: tuple[int, int],
    *,
    layer: int = -1,
    head: int | None = None,
    at_once: int = 0,
) -> Explain:
    """`explain(apply, variables, image, score, *, key) -> [k, h, w]` of one kind of map.

    Maps are not negative. `score` is asked by `gradient` alone, `key` by none; the joints'
    tokens are those of the answer on `image` (normalised pixels, `[h, w, 3]`).

    Args:
      layer, head: of `dependency` and `affect`; None averages the heads, as published.
      at_once: see `gradient_rollout`.

    Raises:
      ValueError: an unknown kind, a network that does not attend; when called, a layer or
        head that it does not have.
    """
    if kind not in KINDS:
        raise ValueError(f"kind {kind!r} is unknown; use one of {', '.join(KINDS)}")
    places = tokens_of(module, image_size)

    def explain(
        apply: Apply,
        variables: PyTree,
        image: Float[Array, "h w 3"],
        score: Score,
        *,
        key: Any = None,
    ) -> Float[Array, "k h w"]:
        del key
        outputs = apply(variables, image[None])
        tokens = places.of(answers.read(outputs, codec, image_size).keypoints[0])
        if kind == "gradient":
            rows = gradient_rollout(
                apply, variables, image, score, tokens, at_once=at_once
            )
        elif kind == "rollout":
            rows = rollout(read(outputs.taps).mean(1), tokens)
        else:
            pick = dependency if kind == "dependency" else affect
            rows = pick(_one(read(outputs.taps), layer, head), tokens)
        return places.upsample(places.patches(rows))

    return explain


def _one(weights, layer: int, head: int | None):
    """`[n, n]` of one layer and head, or of the heads' mean."""
    layers, heads = weights.shape[:2]
    if not -layers <= layer < layers or not 0 <= (head or 0) < heads:
        raise ValueError(
            f"layer={layer}, head={head}; this network has {layers} layers of {heads} heads"
        )
    return weights[layer].mean(0) if head is None else weights[layer, head]
