"""Maps from gradients: how much does a joint's score change with each pixel?

| method | map | source |
|---|---|---|
| `saliency` | max over channels of abs(dS/dI) | Simonyan, Vedaldi, Zisserman, 2014 |
| `gradient` | sum over channels of dS/dI | |
| `gradient_x_input` | sum over channels of I dS/dI | Shrikumar et al., 2016 |
| `smooth_grad` | `gradient`, mean over noisy pictures | Smilkov et al., 2017 |
| `integrated_gradients` | (I - B) times the mean of dS/dI from B to I | Sundararajan et al., ICML 2017 |
| `blur_integrated_gradients` | sum of dS/dI dI from a blurred picture to the sharp one | Xu et al., CVPR 2020; PoseIG |
| `deconvnet` | backward pass whose ReLUs cut negative signals | Zeiler, Fergus, ECCV 2014 |
| `guided_backprop` | ReLUs cut both | Springenberg et al., 2015 |

Every method is `method(apply, variables, image, score, *, key=None, ...) -> [k, h, w]` of one
picture, for all joints: one forward pass, then one backward pass per joint, side by side.
`image` is what the network reads; a pixel of 0 has the mean colour where the network subtracts
it. Only `saliency` is never negative.

The last two are pictures of what a network reacts to, not evidence: they change little when
the upper layers are made random (Adebayo et al., NeurIPS 2018). They exchange the rule of the
activations (`models.rectifier`), nothing else: max-pooling sends the signal back to where the
maximum was ("switches"; equal maxima share it), upsampling sums, sums send it to both arms, so
that shortcuts pass it by the activations.
"""  # noqa: E501

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from pose_jax.arrays import Array, PyTree
from pose_jax.explain.attention import Apply, Score
from pose_jax.explain.layouts import laid_out
from pose_jax.models import rectifier

RULES = ("midpoint", "gauss_legendre")
PLACES = ("middle", "start")


def joint_gradients(
    function: Callable[[Any], Any], at: PyTree, *, chunk: int = 0, has_aux: bool = False
) -> Any:
    """All rows of a Jacobian from one forward pass.

    Args:
      function: of `at`, gives `[k]` scores; with `has_aux` also something else.
      chunk: rows whose backward passes run side by side; 0: all.

    Returns:
      (scores `[k]`, gradients like `at` with a leading `[k]`), and the other thing.

    Raises:
      ValueError: the scores are no vector.
    """
    scores, pull, *rest = jax.vjp(function, at, has_aux=has_aux)
    if scores.ndim != 1:
        raise ValueError(
            f"score gives an array of shape {list(scores.shape)}; it has to give one number "
            "per keypoint, [k]"
        )
    seeds = jnp.eye(len(scores), dtype=scores.dtype)

    def row(seed):
        return pull(seed)[0]

    if 0 < chunk < len(seeds):
        rows = jax.lax.map(laid_out(row), seeds, batch_size=chunk)
    else:
        rows = jax.vmap(row)(seeds)
    return scores, rows, *rest


def of_image(apply: Apply, variables: PyTree, score: Score) -> Callable[[Any], Any]:
    """The scores `[k]` as a function of one picture."""
    return lambda image: score(apply(variables, image[None]))


def saliency(
    apply: Apply,
    variables: PyTree,
    image: Float[Array, "h w 3"],
    score: Score,
    *,
    key: Any = None,
    chunk: int = 0,
) -> Float[Array, "k h w"]:
    """Largest of the channels' absolute gradients; not negative.

    Args:
      image: normalised pixels.
      score: `score(outputs) -> [k]`, of outputs with b = 1; see `maps.bound_score`.
      chunk: joints whose backward passes run side by side; 0: all.
    """
    del key
    slopes = _slopes(apply, variables, image, score, chunk)
    return jnp.abs(slopes).max(-1)


def gradient(
    apply: Apply,
    variables: PyTree,
    image: Float[Array, "h w 3"],
    score: Score,
    *,
    key: Any = None,
    chunk: int = 0,
) -> Float[Array, "k h w"]:
    """Sum of the channels' gradients, signed: what making a pixel brighter does."""
    del key
    return _slopes(apply, variables, image, score, chunk).sum(-1)


def gradient_x_input(
    apply: Apply,
    variables: PyTree,
    image: Float[Array, "h w 3"],
    score: Score,
    *,
    key: Any = None,
    chunk: int = 0,
) -> Float[Array, "k h w"]:
    """Gradient times pixel, summed over channels: the first-order effect of the whole pixel
    against 0."""
    del key
    return (_slopes(apply, variables, image, score, chunk) * image).sum(-1)


def deconvnet(
    apply: Apply,
    variables: PyTree,
    image: Float[Array, "h w 3"],
    score: Score,
    *,
    key: Any = None,
    chunk: int = 0,
) -> Float[Array, "k h w"]:
    """`gradient` with the deconvnet's rule at every activation."""
    with rectifier.rule("deconvnet"):
        return gradient(apply, variables, image, score, key=key, chunk=chunk)


def guided_backprop(
    apply: Apply,
    variables: PyTree,
    image: Float[Array, "h w 3"],
    score: Score,
    *,
    key: Any = None,
    chunk: int = 0,
) -> Float[Array, "k h w"]:
    """`gradient` with the rule of guided backpropagation at every activation."""
    with rectifier.rule("guided"):
        return gradient(apply, variables, image, score, key=key, chunk=chunk)


def smooth_grad(
    apply: Apply,
    variables: PyTree,
    image: Float[Array, "h w 3"],
    score: Score,
    *,
    key: Any = None,
    samples: int = 50,
    sigma: float = 0.15,
    chunk: int = 0,
    at_once: int = 1,
) -> Float[Array, "k h w"]:
    """Mean `gradient` over pictures with Gaussian noise.

    Args:
      sigma: of the noise, as a share of the picture's range of values.
      at_once: noisy pictures held together.

    Raises:
      ValueError: no key, or nothing to average.
    """
    if key is None:
        raise ValueError("smooth_grad draws noise; give key=jax.random.key(0)")
    if samples < 1 or sigma < 0:
        raise ValueError(f"samples={samples} and sigma={sigma:g} must be positive")
    scale = sigma * (image.max() - image.min())

    def one(key):
        noisy = image + scale * jax.random.normal(key, image.shape, image.dtype)
        return _slopes(apply, variables, noisy, score, chunk).sum(-1)

    weights = np.full(samples, 1 / samples, np.float32)
    return weighted_sum(one, jax.random.split(key, samples), weights, at_once)


def integrated_gradients(
    apply: Apply,
    variables: PyTree,
    image: Float[Array, "h w 3"],
    score: Score,
    *,
    key: Any = None,
    baseline: Any = 0.0,
    steps: int = 50,
    rule: str = "gauss_legendre",
    chunk: int = 0,
    at_once: int = 1,
) -> Float[Array, "k h w"]:
    """Gradients integrated on the straight way from a baseline, times that way, summed over
    channels. A joint's map sums to score(image) - score(baseline) (completeness), up to the
    error of the quadrature.

    Args:
      baseline: a number (0 is the mean colour) or `[h, w, 3]`.
      steps: gradients on the way.
      rule: `midpoint` or `gauss_legendre`.
      at_once: points of the way held together.

    Raises:
      ValueError: an unknown rule or no steps.
    """
    del key
    nodes, weights = quadrature(rule, steps)
    start = jnp.broadcast_to(jnp.asarray(baseline, image.dtype), image.shape)
    way = image - start

    def one(share):
        return _slopes(apply, variables, start + share * way, score, chunk)

    return (weighted_sum(one, nodes, weights, at_once) * way).sum(-1)


def blur_integrated_gradients(
    apply: Apply,
    variables: PyTree,
    image: Float[Array, "h w 3"],
    score: Score,
    *,
    key: Any = None,
    sigma_px: float = 19.0,
    taps: int = 31,
    steps: int = 50,
    at: str = "middle",
    chunk: int = 0,
    at_once: int = 1,
) -> Float[Array, "k h w"]:
    """Gradients integrated from a blurred picture to the sharp one, following PoseIG: sum
    over steps of gradient times the change of the picture, over channels too. Signed (PoseIG
    shows absolute values divided by their maximum). A joint's map sums to score(image) -
    score(blurred image), up to the error of the steps.

    Args:
      sigma_px: of the first Gaussian; it falls to 0 in equal steps. taps: width of the
        kernels; a sigma of 19 makes one of 31 nearly a box. Borders are mirrored.
      at: where a step's gradient is taken: `middle` (error of second order), or `start` as
        the public code has it.
      at_once: steps held together.

    Raises:
      ValueError: no steps, an even kernel, an unknown place.
    """
    del key
    if at not in PLACES:
        raise ValueError(f"at={at!r} is unknown; use {' or '.join(PLACES)}")
    if steps < 1 or taps % 2 == 0 or sigma_px <= 0:
        raise ValueError(
            f"steps={steps} and sigma_px={sigma_px:g} must be positive, taps={taps} odd"
        )
    sigmas = jnp.linspace(sigma_px, 0.0, steps + 1)

    def one(pair):
        before, after = (blurred(image, sigma, taps) for sigma in (pair[0], pair[1]))
        place = before if at == "start" else (before + after) / 2
        slopes = _slopes(apply, variables, place, score, chunk)
        return (slopes * (after - before)).sum(-1)

    pairs = jnp.stack([sigmas[:-1], sigmas[1:]], 1)
    return weighted_sum(one, pairs, np.ones(steps, np.float32), at_once)


def blurred(
    image: Float[Array, "h w c"], sigma_px: Any, taps: int
) -> Float[Array, "h w c"]:
    """A Gaussian of `taps` pixels, mirrored at borders; sigma may be traced, 0 blurs nothing."""
    offsets = jnp.arange(taps) - taps // 2
    kernel = jnp.exp(-(offsets**2) / (2 * (sigma_px + 1e-5) ** 2)).astype(image.dtype)
    kernel = kernel / kernel.sum()
    for axis in (0, 1):
        edges = [(taps // 2,) * 2 if i == axis else (0, 0) for i in range(3)]
        wide = jnp.pad(image, edges, mode="reflect")
        length = image.shape[axis]
        moved = [
            kernel[i] * jax.lax.slice_in_dim(wide, i, i + length, axis=axis)
            for i in range(taps)
        ]
        image = functools.reduce(jnp.add, moved)
    return image


def quadrature(rule: str, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights on 0..1; weights sum to one.

    Raises:
      ValueError: an unknown rule or no steps.
    """
    if rule not in RULES:
        raise ValueError(f"rule={rule!r} is unknown; use {' or '.join(RULES)}")
    if steps < 1:
        raise ValueError(f"steps={steps} must be at least 1")
    if rule == "midpoint":
        nodes, weights = (np.arange(steps) + 0.5) / steps, np.full(steps, 1 / steps)
    else:
        nodes, weights = np.polynomial.legendre.leggauss(steps)
        nodes, weights = (nodes + 1) / 2, weights / 2
    return nodes.astype(np.float32), weights.astype(np.float32)


def weighted_sum(
    function: Callable[[Any], Any], xs: Array, weights: Array, at_once: int
) -> Array:
    """Sum over i of weights[i] function(xs[i]), `at_once` terms held together.

    Raises:
      ValueError: `at_once` is less than one.
    """
    if at_once < 1:
        raise ValueError(f"at_once={at_once} must be at least 1")
    count, size = len(weights), min(at_once, len(weights))
    # Whole groups: the last one is filled with terms of weight 0.
    index = np.minimum(np.arange(-(-count // size) * size), count - 1)
    weights = np.where(np.arange(len(index)) < count, np.asarray(weights)[index], 0)
    groups = jnp.asarray(xs)[index].reshape(-1, size, *np.shape(xs)[1:])

    def add(total, group):
        x, weight = group
        terms = laid_out(jax.vmap(function))(x)
        return total + jnp.tensordot(weight.astype(terms.dtype), terms, 1), None

    shape = jax.eval_shape(function, groups[0, 0])
    zero = jnp.zeros(shape.shape, shape.dtype)
    parts = groups, jnp.asarray(weights, jnp.float32).reshape(-1, size)
    return jax.lax.scan(add, zero, parts)[0]


def _slopes(apply, variables, image, score, chunk) -> Float[Array, "k h w 3"]:
    function = of_image(apply, variables, score)
    return joint_gradients(function, image, chunk=chunk)[1]
