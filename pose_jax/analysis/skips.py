"""What skip connections do: every subset of the gates closed, three ways, in one program.

Following Andersen's thesis (same weights, skips on and off), with what it left out: all subsets
instead of none or all, replacements that keep the statistics of the following layers,
and Shapley values of the skips, which add up to what all of them together are worth.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from pose_jax import answers, heatmaps
from pose_jax.arrays import Array, PyTree
from pose_jax.explain.shapley import all_coalitions, shapley_values
from pose_jax.models import Edit
from pose_jax.pixels import normalise
from pose_jax.recipe import Recipe
from pose_jax.skeletons import Skeleton

STYLES = ("zero", "mean", "other")
"""A closed gate carries nothing, the data set's mean, or what another picture's carries."""

MIN_ROWS = 4
"""The unbiased HSIC divides by n - 3."""

_CLASSES = (("small", 0.0, 0.05), ("medium", 0.05, 0.08), ("large", 0.08, 1.0))


def make_ablation(
    recipe: Recipe, gates: Sequence[str], decoders: Sequence[str], style: str
) -> Callable[[PyTree, dict[str, Any], Mapping[str, Any]], dict[str, Any]]:
    """Pure function (variables, batch, {gate: mean}) -> what each subset of gates gives.

    Rows of the result's first axis are the `2**gates` subsets; bit i of the row number = gate
    i open, so the last row is the whole network. The gates' edits are vmapped: what they do
    not touch, the encoder, is computed once.

    Returns (of the function): `keypoints [s, b, k, 2]` crop pixels, `grid [s, b, k, 2]` cells,
    `peak [s, b, k]`, `entropy [s, b, k]` (nats over positions), `changes [s, d, b]` relative
    L2 change of every decoder output, `hsic [s, d, 3]` (with the intact output, own, intact),
    `true_grid [b, k, 2]`, `drawn [b, k]`.

    Raises:
      ValueError: unknown style.
    """
    if style not in STYLES:
        raise ValueError(f"the style is {style!r}; use one of {', '.join(STYLES)}")
    codec, size = recipe.codec, recipe.spec.size

    def ablate(variables: PyTree, batch: dict[str, Any], means: Mapping[str, Any]):
        images = normalise(batch["image"], recipe.spec)
        plain: Any = recipe.module.apply(variables, images)

        def replacement(gate: str):
            if style == "mean":
                return jnp.asarray(means[gate])
            if style == "other":
                return jnp.roll(plain.taps[gate], 1, axis=0)
            return jnp.float32(0.0)

        instead = {gate: replacement(gate) for gate in gates}

        def one(opened: Bool[Array, "n"]) -> dict[str, Any]:
            edits = {
                gate: Edit(
                    opened[i].astype(jnp.float32),
                    jnp.where(opened[i], 0.0, 1.0) * instead[gate],
                )
                for i, gate in enumerate(gates)
            }
            outputs: Any = recipe.module.apply(variables, images, edits=edits)
            maps, keypoints, _ = answers.read(outputs, codec, size)
            found = {
                "keypoints": keypoints,
                "grid": jax.vmap(heatmaps.argmax)(maps),
                "peak": maps.max((1, 2)),
                "entropy": map_entropy(maps),
            }
            if decoders:
                pairs = [(plain.taps[d], outputs.taps[d]) for d in decoders]
                found["changes"] = jnp.stack([relative_change(a, b) for a, b in pairs])
                found["hsic"] = jnp.stack([hsics(a, b) for a, b in pairs])
            return found

        found = jax.vmap(one)(jnp.asarray(all_coalitions(len(gates))))
        intact = answers.maps(plain, codec, size)
        map_size = intact.shape[1], intact.shape[2]
        targets = jax.vmap(lambda p, v: heatmaps.render(p, v, codec, size, map_size))(
            batch["keypoints"], batch["visible"]
        )
        found["true_grid"] = jax.vmap(heatmaps.argmax)(targets)
        found["drawn"] = targets.max((1, 2)) > 0
        return found

    return ablate


def map_entropy(maps: Float[Array, "b y x k"]) -> Float[Array, "b k"]:
    """Entropy of a heatmap's positive part over positions, in nats; log(y x) where it is
    empty: nothing says where the joint is."""
    b, height, width, k = maps.shape
    mass = jnp.maximum(maps, 0).reshape(b, height * width, k)
    total = mass.sum(1, keepdims=True)
    share = jnp.where(total > 0, mass / jnp.maximum(total, 1e-30), 1 / (height * width))
    return -(share * jnp.log(jnp.maximum(share, 1e-30))).sum(1)


def relative_change(
    before: Float[Array, "b *s"], after: Float[Array, "b *s"]
) -> Float[Array, "b"]:
    """|after - before| / |before| of every example."""
    before, after = _flat(before), _flat(after)
    length = jnp.linalg.norm(before, axis=1)
    return jnp.linalg.norm(after - before, axis=1) / jnp.maximum(length, 1e-12)


def hsics(a: Float[Array, "b *s"], b: Float[Array, "b *t"]) -> Float[Array, "3"]:
    """Unbiased HSIC with linear kernels of (a, b), (b, b), (a, a); needs four examples.

    Summed over batches they give linear CKA, hsic(a, b) / sqrt(hsic(a, a) hsic(b, b))
    (Kornblith et al., ICML 2019), without holding all features at once (Nguyen, Raghu and
    Kornblith, ICLR 2021, equation 3; estimator of Song et al. 2012).
    """
    k, l = _gram(a), _gram(b)
    return jnp.stack([_hsic(k, l), _hsic(l, l), _hsic(k, k)])


def _flat(x):
    return x.reshape(len(x), -1).astype(jnp.float32)


def _gram(x):
    # Centring changes nothing in exact arithmetic and keeps float32 sums small.
    x = _flat(x)
    x = x - x.mean(0)
    return (x @ x.T) * (1 - jnp.eye(len(x)))


def _hsic(k, l):
    n = len(k)
    rows_k, rows_l = k.sum(0), l.sum(0)
    trace = (k * l).sum()
    means = rows_k.sum() * rows_l.sum() / ((n - 1) * (n - 2))
    return (trace + means - 2 / (n - 2) * rows_k @ rows_l) / (n * (n - 3))


def cka(hsic_sums: Float[np.ndarray, "*s 3"]) -> Float[np.ndarray, "*s"]:
    """Linear CKA from summed `hsics`; NaN where a side does not vary."""
    cross, own, intact = np.moveaxis(np.asarray(hsic_sums, np.float64), -1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(cross / np.sqrt(own * intact))


def size_classes(skeleton: Skeleton) -> dict[str, list[int]]:
    """Joints by their OKS sigma: small (face), medium (arms), large (hips, legs).

    Sigma is how far annotators differ in units of body size, COCO's measure of how big a
    joint is. Empty classes are left out.
    """
    sigmas = np.asarray(skeleton.sigmas)
    found = {
        name: np.flatnonzero((sigmas >= low) & (sigmas < high)).tolist()
        for name, low, high in _CLASSES
    }
    return {name: joints for name, joints in found.items() if joints}


def skip_values(
    correct: Bool[np.ndarray, "s n k"], labelled: Bool[np.ndarray, "n k"]
) -> tuple[Float[np.ndarray, "g n k"], Float[np.ndarray, "n k"], float]:
    """Exact Shapley values of the skips, of every joint of every person.

    The game of one joint: 1 where it is placed right with these gates open, else 0. Values are
    linear, so sums over people divided by their labelled joints are the Shapley values of PCK.

    Returns:
      Values per gate (0 where unlabelled), the value of no gate, the largest residual.
    """
    table = (correct & labelled).astype(np.float32)
    gates = int(np.log2(len(table)))
    result = shapley_values(table, gates)
    residual = float(np.abs(np.asarray(result.residual)).max())
    return np.asarray(result.values), table[0], residual


def person_pck(
    correct: Bool[np.ndarray, "*s n k"], labelled: Bool[np.ndarray, "n k"]
) -> Float[np.ndarray, "*s n"]:
    """Share of right joints per person; NaN without labels."""
    count = labelled.sum(-1)
    right = (correct & labelled).sum(-1)
    return np.where(count > 0, right / np.maximum(count, 1), np.nan)
