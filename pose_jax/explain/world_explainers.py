"""Every explainer of a world's pictures as one number per region and joint.

Pixel maps are pooled over the regions (`planted.pool`), games have the regions as players, and
the baselines say what can be had without looking into the network at all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from pose_jax.arrays import PyTree
from pose_jax.data.worlds import GROUPS, REGIONS
from pose_jax.explain import games, methods, planted, scores, shapley
from pose_jax.explain.games import PoseGame
from pose_jax.explain.layouts import laid_out
from pose_jax.explain.reactions import Drawn, DrawnGame, Pictures
from pose_jax.pixels import normalise
from pose_jax.recipe import Recipe

BASELINES = ("random", "centre", "disc", "edges")
GAMES = ("mean", "drawn")
VALUES = ("shapley", "owen", "gsv", "decoupled", "removal")
"""What is read from one table of all coalitions; `removal` leaves out one region at a time."""

CLUSTERS = tuple(
    tuple(REGIONS.index(name) for name in names) for names in GROUPS.values()
)
_CENTRE_PX, _DISC_PX = 20.0, 6.0  # Widths of the priors, pixels of a 96-pixel crop.


@dataclasses.dataclass(frozen=True)
class Shown:
    """Some pictures to explain, with the network's own answer on each.

    Attributes:
      images: `[m, h, w, 3]`. owners: `[m, h, w]`. layers: `[m, r, h, w, 4]`. gain: `[m, 3]`.
      points: `[m, k, 2]` decoded keypoints, crop pixels.
      targets: keypoints that are explained.
    """

    images: Any
    owners: Any
    layers: Any
    gain: Any
    points: Any
    targets: tuple[int, ...]

    @classmethod
    def of(
        cls, pictures: Sequence[Pictures], points: Any, targets: Sequence[int]
    ) -> Shown:
        """The clean pictures of these."""
        return cls(
            np.stack([p.images[0] for p in pictures]),
            np.stack([p.owners for p in pictures]),
            np.stack([p.layers for p in pictures]),
            np.stack([p.gain for p in pictures]),
            np.asarray(points),
            tuple(targets),
        )


def references(described: Recipe, variables: PyTree, images: Any) -> scores.Reference:
    """The answer on the clean pictures, stacked: where every score is read."""
    program = games.clean_program(
        PoseGame(described.module, described.spec, described.codec)
    )
    points, _, _ = program(variables, jnp.asarray(images, jnp.float32))
    area = jnp.float32(1.0)

    def one(place):
        valid = np.ones(len(place), bool)
        return scores.from_points(place, valid, described.skeleton, area)

    return jax.tree.map(lambda *x: jnp.stack(x), *[one(p) for p in points])


def map_explainer(
    described: Recipe, method: str, score: str, options: dict[str, Any]
) -> Callable[[PyTree, Any, Any, Any], Any]:
    """Compiled (variables, images `[m, h, w, 3]`, references, key) -> maps `[m, k, h, w]`.

    Weights are arguments: networks of one architecture share the program.
    """
    spec, codec, size = described.spec, described.codec, described.spec.size

    def one(variables, image, reference, key):
        bound = methods.bound_score(score, reference, codec, size)
        pixels = normalise(image[None], spec)[0]
        keyed = key if "key" in methods.METHODS[method].needs else None
        return methods.explain_maps(
            method,
            described.module.apply,
            variables,
            pixels,
            bound,
            key=keyed,
            **options,
        )

    def every(variables, images, given, key):
        keys = jax.random.split(key, len(images))
        return jax.lax.map(
            laid_out(lambda x: one(variables, *x)), (images, given, keys)
        )

    return jax.jit(every)


def explain_with_maps(
    described: Recipe, variables: PyTree, shown: Shown, method: str, *, score: str,
    options: dict[str, Any], batch: int, key: jax.Array,
) -> dict[str, Float[np.ndarray, "m r t"]]:  # fmt: skip
    """A method's maps, pooled: `{"density": ..., "mass": ...}`."""
    run = map_explainer(described, method, score, options)
    count, found = len(shown.images), {"density": [], "mass": []}
    for start in range(0, count, batch):
        index = np.minimum(np.arange(start, start + batch), count - 1)
        images = jnp.asarray(shown.images[index], jnp.float32)
        given = references(described, variables, images)
        maps = np.asarray(run(variables, images, given, jax.random.fold_in(key, start)))
        for n in range(min(batch, count - start)):
            mass, density = planted.pool(
                maps[n, list(shown.targets)], shown.owners[start + n], len(REGIONS)
            )
            found["density"].append(density)
            found["mass"].append(mass)
    return {name: np.stack(values) for name, values in found.items()}


def explain_with_games(
    described: Recipe, variables: PyTree, shown: Shown, game: str, *, score: str,
    target_clusters: Sequence[int], batch: int, chunk: int | None = None,
) -> dict[str, Float[np.ndarray, "m r t"]]:  # fmt: skip
    """Exact games with the regions as players: one table of all 2^r coalitions, every value
    of `VALUES` from it, divided by the score of the whole picture.

    Args:
      game: `mean` (a hidden region shows the mean colour) or `drawn` (it is not drawn).
      target_clusters: of the targets, an index into `CLUSTERS`.

    Raises:
      ValueError: an unknown game.
    """
    if game not in GAMES:
        raise ValueError(f"game {game!r} is unknown; use {' or '.join(GAMES)}")
    kind = PoseGame if game == "mean" else DrawnGame
    value = kind(described.module, described.spec, described.codec, score)
    every = shapley.all_coalitions(len(REGIONS))
    fill = np.broadcast_to(
        np.asarray(described.spec.colour, np.float32), shown.images.shape[1:]
    )
    found: dict[str, list] = {name: [] for name in VALUES}
    for start in range(0, len(shown.images), batch):
        part = slice(start, start + batch)
        images = shown.images[part].astype(np.float32)
        given = jax.tree.map(np.asarray, references(described, variables, images))
        if game == "mean":
            fills = np.broadcast_to(fill, images.shape)
            people: Any = games.Person(images, fills, shown.owners[part], given)
        else:
            layers = shown.layers[part].astype(np.float32)
            people = Drawn(layers, shown.gain[part].astype(np.float32), given)
        absent = games.null_players(shown.owners[part], len(REGIONS))
        table, _ = shapley.coalition_table(
            value, every, args=(variables,), games=people, chunk_size=chunk,
            null_players=absent, room=min(batch, len(shown.images)),
        )  # fmt: skip
        table = np.asarray(table)[..., list(shown.targets)]
        table = table / np.maximum(table[:, -1:], 1e-12)
        for name in VALUES:
            found[name].append(read_table(table, name, target_clusters))
    return {name: np.concatenate(values) for name, values in found.items()}


def read_table(
    table: Float[np.ndarray, "m c t"], name: str, target_clusters: Sequence[int]
) -> Float[np.ndarray, "m r t"]:
    """Values of all regions from the scores of all coalitions.

    `gsv` and `decoupled` have one value for every foreign cluster; its members share it
    equally, for want of anything better.
    """
    players = len(REGIONS)
    if name == "shapley":
        found = jax.vmap(lambda t: shapley.shapley_values(t, players).values)
        return np.asarray(found(jnp.asarray(table)))
    if name == "removal":
        full = table.shape[1] - 1
        return table[:, -1:] - table[:, [full ^ (1 << r) for r in range(players)]]
    kind = "gsv" if name == "owen" else name
    rows = shapley.grouped_coalitions(CLUSTERS, "gsv")
    index = [int(c @ (1 << np.arange(players))) for c in rows]
    grouped = shapley.group_values(
        jnp.asarray(table[:, index]), CLUSTERS, kind="gsv",
        target_cluster=tuple(target_clusters),
        target_valid=np.ones((len(table), table.shape[2]), bool),
    )  # fmt: skip
    if name == "owen":
        return np.asarray(shapley.reweight(grouped, "owen").player_values)
    grouped = shapley.reweight(grouped, kind)
    values = np.array(grouped.member_values)
    foreign = np.asarray(
        grouped.cluster_values if kind == "gsv" else grouped.quotient_values
    )
    for g, members in enumerate(CLUSTERS):
        for t, own in enumerate(target_clusters):
            if g != own:
                share = foreign[:, g, t] / len(members)
                values[:, list(members), t] = share[:, None]
    return values


def baseline(
    name: str, shown: Shown, *, seed: int = 0
) -> dict[str, Float[np.ndarray, "m r t"]]:
    """Maps that never saw the network: noise, a Gaussian at the crop's centre, a disc at the
    joint, the picture's edges; pooled like the others.

    Raises:
      ValueError: an unknown name.
    """
    if name not in BASELINES:
        raise ValueError(f"baseline {name!r} is unknown; use {', '.join(BASELINES)}")
    rng = np.random.default_rng(seed)
    height, width = shown.images.shape[1:3]
    y, x = np.mgrid[:height, :width].astype(float)
    scale = height / 96
    found: dict[str, list] = {"density": [], "mass": []}
    for n, image in enumerate(shown.images):
        maps = []
        for t in shown.targets:
            if name == "random":
                maps.append(rng.random((height, width)))
                continue
            if name == "edges":
                grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
                maps.append(
                    np.hypot(cv2.Sobel(grey, -1, 1, 0), cv2.Sobel(grey, -1, 0, 1))
                )
                continue
            if name == "centre":
                place, sigma = ((width - 1) / 2, (height - 1) / 2), _CENTRE_PX * scale
            else:
                place, sigma = shown.points[n, t], _DISC_PX * scale
            squared = (x - place[0]) ** 2 + (y - place[1]) ** 2
            inside = squared <= sigma**2
            bump = np.exp(-squared / (2 * sigma**2))
            maps.append(inside.astype(float) if name == "disc" else bump)
        mass, density = planted.pool(np.stack(maps), shown.owners[n], len(REGIONS))
        if name == "random":
            # Pooled noise is the area; regions get numbers of their own.
            mass = density = rng.random(mass.shape)
        found["density"].append(density)
        found["mass"].append(mass)
    return {key: np.stack(values) for key, values in found.items()}
