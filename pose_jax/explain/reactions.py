"""What a network answers when one region of a world's picture is drawn differently.

The renderer is the intervention: a region redrawn from other latents, or left out, and not
one pixel changed elsewhere (`data.worlds`). The reactions are the truth that explanations
are scored against (`explain.planted`), and `DrawnGame` is the game of the same regions.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, UInt8

from pose_jax import answers, heatmaps
from pose_jax.arrays import Array, PyTree
from pose_jax.data.world_layers import EMPTY
from pose_jax.data.worlds import REGIONS, WorldSource, composite
from pose_jax.explain.scores import Reference, centre, make_score
from pose_jax.heatmaps import Codec
from pose_jax.pixels import InputSpec, normalise
from pose_jax.recipe import Recipe


class Pictures(NamedTuple):
    """One picture of a world and its variants; r regions, d donors.

    Attributes:
      images: `[1 + r * d + r + 1, h, w, 3]` the picture; every region redrawn by every donor;
        every region left out; the face turned round.
      labels: `[1 + r * d + r + 1, k, 2]` crop pixels.
      present: `[r]` regions that are drawn.
      owners: `[h, w]` region of every pixel.
      layers: `[r, h, w, 4]`. gain: `[3]`.
      line: `[1 + r * d + r + 1]` height of the line, crop pixels.
    """

    images: UInt8[np.ndarray, "m h w 3"]
    labels: Float[np.ndarray, "m k 2"]
    present: Bool[np.ndarray, "r"]
    owners: Any
    layers: UInt8[np.ndarray, "r h w 4"]
    gain: Any
    line: Any


def variants(source: WorldSource, index: int, donors: int) -> Pictures:
    """Draws a picture and everything that may be done to it."""
    scene = source.scene(index)
    layers, gain = source.layers(scene), source.gain(scene)
    clean = composite(layers, gain=gain)
    images, scenes = [clean], [scene]
    for r, region in enumerate(REGIONS):
        for donor in range(donors):
            other = source.redraw(scene, region, donor)
            scenes.append(other)
            if not scene.present[r]:
                images.append(clean)
                continue
            changed = layers.copy()
            changed[r] = source.layer(other, region)
            images.append(composite(changed, gain=gain))
    for r in range(len(REGIONS)):
        left = layers.copy()
        left[r] = 0
        images.append(composite(left, gain=gain))
        scenes.append(scene)
    turned = source.turn(scene)
    changed, head = layers.copy(), REGIONS.index("head")
    if scene.present[head]:
        changed[head] = source.layer(turned, "head")
    images.append(composite(changed, gain=gain))
    scenes.append(turned)
    return Pictures(
        np.stack(images),
        np.stack([source.keypoints(s) for s in scenes]),
        scene.present,
        source.owners(scene),
        layers,
        gain,
        np.array([source.line_height(s) for s in scenes]),
    )


class Answers(NamedTuple):
    """Of one picture's variants; row 0 is the picture itself.

    Attributes:
      centres: `[m, k, 2]` centre of mass of every map, crop pixels.
      moved_mass: `[m, k]` total variation from row 0, 0..1.
      heights: `[m, k]` the maps at the peaks of row 0.
      points: `[k, 2]` decoded keypoints of row 0, crop pixels.
    """

    centres: Any
    moved_mass: Any
    heights: Any
    points: Any


@functools.lru_cache(maxsize=8)
def reaction_program(
    module: nn.Module, spec: InputSpec, codec: Codec
) -> Callable[[PyTree, Any], Answers]:
    """Compiled (variables, images `[m, h, w, 3]`) -> `Answers`; one program per network."""

    def react(variables, images):
        outputs: Any = module.apply(variables, normalise(images, spec))
        maps = answers.maps(outputs, codec, spec.size)
        size = maps.shape[1], maps.shape[2]
        step = jnp.asarray(heatmaps.stride(codec, spec.size, size), jnp.float32)
        mass = jnp.maximum(maps, 0)
        mass = mass / jnp.maximum(mass.sum((1, 2), keepdims=True), 1e-12)
        found, _ = answers.locate(outputs, codec, spec.size)
        cells = jnp.round(found[0]).astype(int)
        x, y = cells[:, 0].clip(0, size[1] - 1), cells[:, 1].clip(0, size[0] - 1)
        return Answers(
            jax.vmap(centre)(maps) * step,
            0.5 * jnp.abs(mass - mass[:1]).sum((1, 2)),
            maps[:, y, x, jnp.arange(maps.shape[-1])],
            found[0] * step,
        )

    return jax.jit(react)


class Reaction(NamedTuple):
    """Effects on one picture; regions that are not drawn are NaN.

    Attributes:
      shift: `[r, d, k]` distance that the centre of mass moved, pixels, per donor.
      moves, labels: `[r, d, k, 2]` by how much the centre and the label moved.
      mass: `[r, k]` mean total variation. removal: `[r, k]` V.
      turned: `[k]` distance moved when the face turns round, and `turned_mass` `[k]`.
      line: `[r, d]` how far the line moved, pixels.
      points, truth: `[k, 2]` answer and label on the picture. centres: `[k, 2]`.
    """

    shift: Any
    moves: Any
    labels: Any
    mass: Any
    removal: Any
    turned: Any
    turned_mass: Any
    line: Any
    points: Any
    centres: Any
    truth: Any


def react(described: Recipe, variables: PyTree, pictures: Pictures) -> Reaction:
    """The effects of everything in `variants`.

    Raises:
      ValueError: the answer is not finite.
    """
    program = reaction_program(described.module, described.spec, described.codec)
    found = jax.tree.map(np.asarray, program(variables, jnp.asarray(pictures.images)))
    if not all(np.isfinite(leaf).all() for leaf in found):
        raise ValueError("the prediction is not finite: the weights hold NaN")
    regions, k = len(REGIONS), pictures.labels.shape[1]
    donors = (len(pictures.images) - regions - 2) // regions
    changed = slice(1, 1 + regions * donors)
    removed = slice(changed.stop, changed.stop + regions)

    def by_donor(array):
        return array.reshape(regions, donors, *array.shape[1:])

    hidden = ~pictures.present
    moves = by_donor(found.centres[changed] - found.centres[0])
    moves[hidden] = np.nan
    labels = by_donor(pictures.labels[changed] - pictures.labels[0])
    mass = by_donor(found.moved_mass[changed]).mean(1)
    clean = np.maximum(found.heights[0], 1e-12)
    removal = 1 - found.heights[removed] / clean
    mass[hidden], removal[hidden] = np.nan, np.nan
    return Reaction(
        np.linalg.norm(moves, axis=-1),
        moves,
        labels.reshape(regions, donors, k, 2),
        mass,
        removal,
        np.linalg.norm(found.centres[-1] - found.centres[0], axis=-1),
        found.moved_mass[-1],
        by_donor(pictures.line[changed] - pictures.line[0]),
        found.points,
        found.centres[0],
        pictures.labels[0],
    )


class Drawn(NamedTuple):
    """One game whose players are drawn or not. A pytree of arrays.

    Attributes:
      layers: `[r, h, w, 4]` colour and opacity, 0..255. gain: `[3]`.
      reference: where the joints are taken to be, see `scores`.
    """

    layers: Float[Array, "*m r h w 4"]
    gain: Float[Array, "*m 3"]
    reference: Reference


@dataclasses.dataclass(frozen=True)
class DrawnGame:
    """Value of a coalition of regions: the others are not drawn at all, so that nothing but
    pictures of the world is ever shown. Hashable; a value function of `shapley`.

    Attributes:
      module, spec, codec: network, its input, its heatmaps.
      score: a name of `scores.SCORES`.
    """

    module: nn.Module
    spec: InputSpec
    codec: Codec
    score: str = "value"

    def __call__(
        self, coalition: Bool[Array, "r"], variables: PyTree, drawn: Drawn
    ) -> Float[Array, "k"]:
        image = jnp.full((*drawn.layers.shape[-3:-1], 3), EMPTY, jnp.float32)
        for shown, layer in zip(coalition, drawn.layers):
            share = layer[..., 3:] / 255 * shown
            image = image * (1 - share) + layer[..., :3] * share
        image = jnp.round(jnp.clip(image * drawn.gain, 0, 255))
        outputs: Any = self.module.apply(variables, normalise(image[None], self.spec))
        maps = answers.maps(outputs, self.codec, self.spec.size)[0]
        return make_score(self.score, self.codec)(maps, drawn.reference)
