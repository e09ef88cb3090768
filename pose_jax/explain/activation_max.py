"""The picture that a network would like best: class models of joints and whole poses.

Simonyan, Vedaldi, Zisserman (2014) maximise an un-normalised class score minus a penalty on the
picture. For poses the score is a raw heatmap at a fixed place, of one joint or summed over a
template pose: what must a picture show for the network to see a wrist *here*? The answer moves
with the place, so show several. Without jitter, smoothing and blur it is high-frequency noise
(Yosinski et al., 2015); what they leave is partly their own taste.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Float

from pose_jax import answers, heatmaps, regions
from pose_jax.arrays import Array, PyTree
from pose_jax.explain.attention import Apply
from pose_jax.explain.layouts import laid_out
from pose_jax.heatmaps import Codec
from pose_jax.models.outputs import Outputs
from pose_jax.pixels import InputSpec


class Maximised(NamedTuple):
    """A pytree of arrays.

    Attributes:
      image: the picture, RGB 0..255.
      scores: `[steps + 1]` score without penalties, before every step (of the shifted
        picture) and of the result.
    """

    image: Float[Array, "h w 3"]
    scores: Float[Array, "n"]


def template_score(
    points: Float[Array, "k 2"],
    weights: Float[Array, "k"],
    codec: Codec,
    image_size: tuple[int, int],
) -> Callable[[Outputs], Any]:
    """Sum over joints of weight times heatmap at the joint's point, un-normalised.

    Maps are the last stage's before any activation, read bilinearly; regressors' are drawn.

    Args:
      points: (x, y) crop pixels, kept inside of the map.
      weights: one joint: a row of `jnp.eye(k)`; a pose: ones.
    """

    def score(outputs: Outputs):
        if outputs.heatmaps is None:
            maps = answers.maps(outputs, codec, image_size)[0]
        else:
            maps = outputs.heatmaps[-1, 0].astype(jnp.float32)
        step = heatmaps.stride(codec, image_size, (maps.shape[0], maps.shape[1]))
        place = jnp.asarray(points) / jnp.asarray(step, jnp.float32)
        rows, columns = (
            _between(place[:, axis], length)
            for axis, length in ((1, maps.shape[0]), (0, maps.shape[1]))
        )
        return jnp.einsum("k,ky,kx,yxk->", jnp.asarray(weights), rows, columns, maps)

    return score


def maximise(
    apply: Apply,
    variables: PyTree,
    points: Float[Array, "k 2"],
    weights: Float[Array, "k"],
    *,
    spec: InputSpec,
    codec: Codec,
    key: jax.Array,
    steps: int = 200,
    learning_rate: float = 0.05,
    decay: float = 0.1,
    variation: float = 1.0,
    jitter_px: int = 8,
    blur_sigma_px: float = 0.6,
    blur_every: int = 8,
) -> Maximised:
    """Ascends from the picture of zeros (the mean colour) with Adam, inside of the range of
    pixels. Pure: jit it, and vmap it over `points`, `weights` or keys.

    Args:
      points, weights: what is asked, see `template_score`.
      decay: of the mean square of normalised pixels (Simonyan's L2 penalty).
      variation: of the mean square difference between neighbours.
      jitter_px: before every step the picture is shifted by up to so many pixels, and what
        is asked with it; it wraps around.
      blur_sigma_px: of the Gaussian that smooths the picture every `blur_every` steps; 0: none.

    Raises:
      ValueError: numbers out of range.
    """
    if steps < 1 or learning_rate <= 0 or blur_every < 1:
        raise ValueError(
            f"steps={steps}, learning_rate={learning_rate:g} and blur_every={blur_every} "
            "must be positive"
        )
    if min(decay, variation, jitter_px, blur_sigma_px) < 0:
        raise ValueError(
            "decay, variation, jitter_px and blur_sigma_px must not be negative"
        )
    points = jnp.asarray(points, jnp.float32)
    low, high = (_normalised(jnp.full(3, v, jnp.float32), spec) for v in (0, 255))
    rule = optax.adam(learning_rate)

    def ask(image, shift):
        moved = jnp.roll(image, (shift[1], shift[0]), (0, 1))
        score = template_score(points + shift, weights, codec, spec.size)
        return score(apply(variables, moved[None]))

    def loss(image, shift):
        score = ask(image, shift)
        rough = sum((jnp.diff(image, axis=axis) ** 2).mean() for axis in (0, 1))
        return decay * (image**2).mean() + variation * rough - score, score

    def step(carry, found):
        image, state = carry
        number, key = found
        shift = jax.random.randint(key, (2,), -jitter_px, jitter_px + 1)
        slope, score = laid_out(jax.grad(loss, has_aux=True))(image, shift)
        update, state = rule.update(slope, state)
        image = image + jnp.asarray(update)
        if blur_sigma_px:
            soft = regions.blur_fill(image, sigma_px=blur_sigma_px)
            image = jnp.where(number % blur_every == blur_every - 1, soft, image)
        return (jnp.clip(image, low, high), state), score

    image = jnp.zeros((*spec.size, 3), jnp.float32)
    numbered = jnp.arange(steps), jax.random.split(key, steps)
    (image, _), scores = jax.lax.scan(step, (image, rule.init(image)), numbered)
    last = ask(image, jnp.zeros(2, jnp.int32))
    return Maximised(_pixels(image, spec), jnp.append(scores, last))


def _between(place, length: int):
    """`[k, length]` weights that read a line bilinearly at a place, kept on the line."""
    place = jnp.clip(place, 0, length - 1)[:, None]
    return jnp.maximum(1 - jnp.abs(place - jnp.arange(length)), 0)


def _normalised(colour, spec: InputSpec):
    found = (colour / 255 - jnp.asarray(spec.mean)) / jnp.asarray(spec.std)
    return found[::-1] if spec.channel_order == "bgr" else found


def _pixels(image, spec: InputSpec):
    """The way back from normalised pixels to RGB 0..255."""
    image = image[..., ::-1] if spec.channel_order == "bgr" else image
    image = (image * jnp.asarray(spec.std) + jnp.asarray(spec.mean)) * 255
    return jnp.clip(image, 0, 255)
