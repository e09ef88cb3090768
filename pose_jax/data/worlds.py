"""Worlds with planted causes: figures of which we know what decides every joint.

A picture is a stack of layers, one per region and each drawn from latents of its own.
Changing one latent therefore changes one layer and not one pixel elsewhere, so that "what if
the marker had pointed there?" has an exact answer: the network's reaction to the redrawn
picture. The labels follow from the same latents by the rule of the world (`WORLDS`).

All worlds share their pictures' ingredients: a figure of ten limbs, two dials with a dot (the
red *marker* and the blue *decoy*, on sides that swap at random), a line across the background,
textured halves of a background with clutter in the colours of everything else. They differ in
what is drawn and what the labels obey. Optional parts are left out of some training
pictures while the label stays, so that a picture without them is nothing new to the network.
"""

from __future__ import annotations

import dataclasses
import zlib
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

from pose_jax.data import world_figures, world_layers
from pose_jax.data.world_figures import Latents, Scene
from pose_jax.data.world_layers import composite
from pose_jax.data.world_rules import (
    BACKGROUND,
    GROUPS,
    PLANTED,
    REGIONS,
    SKELETON,
    WORLDS,
    World,
)

__all__ = [
    "BACKGROUND", "GROUPS", "PLANTED", "REGIONS", "SKELETON", "WORLDS", "Scene", "World",
    "WorldSource", "composite",
]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class WorldSource:
    """A random-access source of the pictures of one world.

    The same seed and index give the same picture bit for bit. Two worlds with one seed draw
    the same figures as far as their rules allow.

    Attributes:
      count: number of pictures.
      world: a name of `WORLDS`.
      seed: non-negative.
      size: side of the square pictures in pixels, at least 32.
      test: everything is drawn but what the world always hides (the head keeps its share where
        the world says more than a tenth), and the line agrees with no joint.

    Raises:
      ValueError: a field is out of range.
    """

    count: int
    _: dataclasses.KW_ONLY
    world: str = "composite"
    seed: int = 0
    size: int = 64
    test: bool = False

    def __post_init__(self):
        if self.world not in WORLDS:
            raise ValueError(
                f"world {self.world!r} is unknown; use one of {', '.join(WORLDS)}"
            )
        if self.count < 0 or self.seed < 0:
            raise ValueError(
                f"count={self.count} and seed={self.seed} must not be negative"
            )
        if self.size < 32:
            raise ValueError(f"size={self.size} is too small; give at least 32")

    def __len__(self) -> int:
        return self.count

    @property
    def rules(self) -> World:
        return WORLDS[self.world]

    def scene(self, index: int) -> Scene:
        """The latents of one picture.

        Raises:
          IndexError: the index is not in 0 .. count - 1.
        """
        if not 0 <= index < self.count:
            raise IndexError(f"no picture {index}: give 0 .. {self.count - 1}")
        layout = world_figures.layout(self._stream(index, "layout"))
        latents: Latents = {name: self._latents(index, name) for name in REGIONS}
        chance, world = self._stream(index, "coupling"), self.rules
        agrees = chance.random() < world.agreement and not self.test
        draws = chance.random(len(REGIONS))
        if world.wrist == "redundant":
            latents["decoy"]["angle"] = latents["marker"]["angle"]
        shares = np.array([world.absent.get(name, 0.0) for name in REGIONS])
        if self.test:
            shares = np.where(shares > 0.1, shares, 0.0)
            if world.wrist == "redundant":
                shares[:] = 0.0
        found = Scene(index, layout, latents, draws >= shares)
        if agrees:
            place = world_figures.places(self.rules, found)[world.line]
            latents["line"]["height"] = float(place[1])
        return found

    def redraw(self, scene: Scene, region: str, donor: int) -> Scene:
        """The same picture with one region drawn from other latents, and nothing else changed.

        Args:
          donor: number of the replacement, from 0; the same number, the same latents.
        """
        fresh = self._latents(scene.index, region, donor + 1)
        return dataclasses.replace(scene, latents={**scene.latents, region: fresh})

    def turn(self, scene: Scene) -> Scene:
        """The same picture with the face where the back of the head was, or the reverse."""
        head = {**scene.latents["head"], "front": not scene.latents["head"]["front"]}
        return dataclasses.replace(scene, latents={**scene.latents, "head": head})

    def keypoints(self, scene: Scene) -> Float[np.ndarray, "14 2"]:
        """The labels: (x, y) pixels by the rule of the world, whether drawn or not."""
        places = world_figures.places(self.rules, scene)
        names = SKELETON.keypoints
        if not scene.latents["head"]["front"]:
            names = tuple(names[i] for i in SKELETON.mirrored)
        found = np.array([places[name] for name in names])
        return (found + 0.5) * (self.size / 96) - 0.5

    def line_height(self, scene: Scene) -> float:
        """Pixels from the top to the line across the background."""
        return float((scene.latents["line"]["height"] + 0.5) * self.size / 96 - 0.5)

    def layer(self, scene: Scene, region: str) -> UInt8[np.ndarray, "h w 4"]:
        """One region alone: colour and opacity."""
        return self._paint(scene, region, world_figures.places(self.rules, scene))

    def _paint(self, scene: Scene, region: str, places) -> np.ndarray:
        pen = world_layers.Pen(self.size)
        world_layers.PAINT[region](pen, scene, places, self.rules)
        return pen.finish()

    def layers(self, scene: Scene) -> UInt8[np.ndarray, "r h w 4"]:
        """All regions in the order of painting; absent ones are transparent."""
        empty = np.zeros((self.size, self.size, 4), np.uint8)
        places = world_figures.places(self.rules, scene)
        return np.stack([
            self._paint(scene, name, places) if present else empty
            for name, present in zip(REGIONS, scene.present)
        ])  # fmt: skip

    def gain(self, scene: Scene) -> Float[np.ndarray, "3"]:
        """Factors of the three colours of the whole picture."""
        tint = scene.layout["tint"]
        if self.rules.wrist != "tint":
            return np.ones(3, np.float32)
        return np.array([1 + 0.35 * tint, 1, 1 - 0.35 * tint], np.float32)

    def render(self, scene: Scene) -> UInt8[np.ndarray, "h w 3"]:
        """The picture."""
        return composite(self.layers(scene), gain=self.gain(scene))

    def owners(self, scene: Scene) -> Int[np.ndarray, "h w"]:
        """The region of every pixel: the nearest drawn part within three pixels (of 96),
        else half of the background. Absent regions own nothing."""
        return world_layers.owners(self.layers(scene))

    def _latents(self, index: int, region: str, donor: int = 0) -> dict[str, Any]:
        """What one region looks like, within the rules of the world."""
        found = world_figures.DRAW[region](self._stream(index, region, donor))
        if region == "head" and not self.rules.turned:
            found["front"] = True
        if region == "decoy" and self.rules.wrist == "suppressor":
            # Eight steps, so that the reference can be read off.
            found["angle"] = np.pi / 4 * int(found["angle"] / (np.pi / 4))
        if region == "line":
            low, high = self.rules.line_range
            found["height"] = low + (high - low) * found["height"]
        return found

    def _stream(self, index: int, name: str, donor: int = 0) -> np.random.Generator:
        key = (self.seed, index, zlib.crc32(name.encode()), donor)
        return np.random.default_rng(key)
