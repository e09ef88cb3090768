"""Exact Shapley values on networks: the engine against the forwards that it must pay for.

    source launch/environment.sh; python tests/benchmarks/shapley_networks.py \
        [--repeats 5] [--only small,mobile,trained,vitpose] [--workdir runs/lspet] [--cores 1]

Prints one JSON object. Per network: wall milliseconds of the engine and of as many plain
batched forwards at the best batch size, rounds interleaved, best and median; their ratio
(target <= 1.1). The plain forwards find their masked pictures ready in memory; the engine
makes its own.

| part | network | game |
|---|---|---|
| `small` | four 3x3 convolutions, 64 px, fresh weights | 8 regions, 17 targets (peak of the map), 256 coalitions; shapiq, shap and captum around the same JAX network |
| `mobile` | public mobile hourglass (POSE_JAX_DATA/pretrained), 192 px | 14 keypoint discs in five clusters, gsv, 448 coalitions, mean fill, map at the clean peak |
| `trained` | hourglass of `--workdir`, normalisation folded | the same |
| `vitpose` | ViTPose-S, 256x192, fresh weights, folded, on noise | 17 discs on a grid in COCO's five clusters, gsv, 896 coalitions |

`stem`: share of the first convolution in the forward, the most that computing it once per
player could save (it is linear in the masked picture: conv(x0) + sum of s_i conv(d_i)).
`memory`: what the engine's program takes besides its inputs, beside what one evaluation holds at
most at one time (`explain.memory.peak_bytes`) times the rows of a chunk. What is not at hand is named in `skipped`.
"""  # noqa: E501

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# The rivals' own threads would spin beside the network's; it keeps all cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import jax
import jax.numpy as jnp
import numpy as np
from shapley_rivals import (
    SKIPPED,
    block_owners,
    interleaved,
    make_images,
    masked,
    rivals,
    small_forward,
    small_value,
    small_weights,
)

from pose_jax import data, geometry, heatmaps, regions
from pose_jax import recipe as recipe_
from pose_jax.config import default, load_config, source
from pose_jax.convert import mobile
from pose_jax.data.pipeline import crop_matrix
from pose_jax.estimator import Estimator
from pose_jax.explain import exact_shapley, group_shapley, scores
from pose_jax.explain.memory import peak_bytes
from pose_jax.explain.shapley import sweep
from pose_jax.pixels import normalise
from pose_jax.tasks.workdir import data_root

BATCHES = (1, 2, 4, 8, 16, 32, 64)


# --- timing -----------------------------------------------------------------------------


def in_batches(forward, images: Any, size: int):
    """Calls of a jitted forward on ready pictures, one after the other."""
    parts = [jax.device_put(images[i : i + size]) for i in range(0, len(images), size)]
    return lambda: [forward(part) for part in parts]


def in_one_program(forward, images: Any, size: int):
    """The same as one program with a loop inside."""
    parts = jax.device_put(images.reshape(-1, size, *images.shape[1:]))
    run = jax.jit(lambda parts: jax.lax.map(forward, parts))
    return lambda: run(parts)


FORMS = {"calls": in_batches, "program": in_one_program}


def against_forwards(
    forward, images: Any, engine: Callable[[int | None], Any], repeats: int
) -> dict[str, Any]:
    """The engine beside plain forwards of the same pictures.

    The sweep over batch sizes runs on the first 64 pictures; the two best candidates and
    the engine (default chunks, chunks of the best batch) then meet on all of them.
    """
    forms = {f"{n} of {b}": (f, b) for b in BATCHES for n, f in FORMS.items()}
    few = images[:64]
    sweep = interleaved(
        {n: f(forward, few, b) for n, (f, b) in forms.items()}, min(repeats, 2)
    )
    best = sorted(forms, key=lambda n: sweep[n]["ms"])[:2]
    chunk = forms[best[0]][1]
    calls = {n: forms[n][0](forward, images, forms[n][1]) for n in best}
    engines = {"engine": None, f"engine, chunks of {chunk}": chunk}
    calls |= {n: functools.partial(engine, size) for n, size in engines.items()}
    timed = interleaved(calls, repeats)
    floor = min(timed[n]["ms"] for n in best)
    plain = np.concatenate([np.asarray(v) for v in in_batches(forward, images, 64)()])
    table = np.asarray(engine(None).table)
    return {
        "coalitions": len(images),
        "sweep_ms_per_image": {
            n: round(t["ms"] / len(few), 4) for n, t in sweep.items()
        },
        "all": timed,
        "forwards_ms": floor,
        "forwards_form": min(best, key=lambda n: timed[n]["ms"]),
        "ratio": {n: round(timed[n]["ms"] / floor, 3) for n in engines},
        "largest_difference_to_forwards": float(abs(plain - table).max()),
    }


# --- the small network ------------------------------------------------------------------


def small(repeats: int, arguments: argparse.Namespace) -> dict[str, Any]:
    del arguments
    kernels, owners = small_weights(), block_owners(2, 4)
    image = jax.random.uniform(jax.random.key(1), (64, 64, 3))
    fill = jnp.full_like(image, 0.5)
    args = (kernels, image, fill, owners)

    def engine(chunk):
        return exact_shapley(small_value, 8, args=args, chunk_size=chunk)

    forward = jax.jit(functools.partial(small_forward, kernels))
    images = make_images(engine(None).coalitions, image, fill, owners)
    result = against_forwards(forward, images, engine, repeats)
    result["rivals"] = rivals(forward, args, repeats)
    result["largest_value"] = float(abs(np.asarray(engine(None).values)).max())
    return result


# --- pose networks ----------------------------------------------------------------------


def mobile_hourglass(repeats: int, arguments: argparse.Namespace) -> dict[str, Any]:
    del arguments
    root = data_root()
    path = None if root is None else root / "pretrained/hourglass_model_tensors.npz"
    if path is None or not path.is_file():
        raise FileNotFoundError("POSE_JAX_DATA/pretrained is not at hand")
    family, variables = mobile.load(path)
    c, sections = default(), mobile.model_section(family)
    c.skeleton, c.model = sections["skeleton"], sections["model"]
    c.input.update(sections["input"])
    c.codec.update(sections["codec"])
    found = pose_game(recipe_.recipe(c), variables, repeats)
    kernel = variables["params"]["stem"]["kernel"]
    return found.result | {"stem": stem_share(kernel, "SAME", found, repeats)}


def trained_hourglass(repeats: int, arguments: argparse.Namespace) -> dict[str, Any]:
    estimator = Estimator.load(arguments.workdir)
    found = pose_game(*estimator.inference, repeats)
    variables = estimator.inference[1]
    kernel = variables["params"]["stem_conv"]["kernel"]
    pad = kernel.shape[0] // 2
    stem = stem_share(kernel, ((pad, pad), (pad, pad)), found, repeats)
    plain = make_forward(estimator.recipe, estimator.variables, found.reference)
    few = found.images[:64]
    folding = interleaved(
        {
            "folded": in_batches(found.forward, few, 32),
            "not_folded": in_batches(plain, few, 32),
        },
        repeats,
    )
    difference = float(abs(plain(few) - found.forward(few)).max())
    folding = {"of_64_images": folding, "largest_difference": difference}
    return found.result | {"folding": folding, "stem": stem}


def fresh_vitpose(repeats: int, arguments: argparse.Namespace) -> dict[str, Any]:
    del arguments
    root = Path(__file__).resolve().parents[2]
    described = recipe_.recipe(load_config(root / "configs/vitpose.py", "s"))
    height, width = described.spec.size
    key = jax.random.key(0, impl="unsafe_rbg")
    variables = jax.jit(described.module.init)(key, jnp.zeros((1, height, width, 3)))
    described, variables = described.inference(variables)
    generator = np.random.default_rng(0)
    crop = generator.integers(0, 256, (height, width, 3)).astype(np.uint8)
    y, x = np.mgrid[:5, :4]
    cells = np.stack([(x + 0.5) * width / 4, (y + 0.5) * height / 5], -1)
    centres = cells.reshape(-1, 2)[: described.skeleton.num_keypoints]
    centres = jnp.asarray(centres, jnp.float32)
    return pose_game(described, variables, repeats, crop, centres).result


def person(described) -> np.ndarray:
    """A crop of the first person of the LSPET validation labels, uint8."""
    labels = source("coco", path="lspet/lspet_val.json", images="lspet/images")
    people = data.open_source(
        labels, root=data_root(), skeleton=described.skeleton.name
    )
    matrix = crop_matrix(people.person(0), described.view)
    return geometry.warp(people.image(0), matrix, described.spec.size)


def make_forward(described, variables, reference):
    """Normalised pictures [b, h, w, 3] -> [b, k], the maps at the reference points."""
    score = scores.make_score("value", described.codec)

    def forward(variables, images):
        maps = described.module.apply(variables, images).heatmaps[-1]
        maps = heatmaps.activate(maps, described.codec)
        return jax.vmap(score, (0, None))(maps, reference)

    run = jax.jit(forward)
    given = jax.device_put(variables)
    return lambda images: run(given, images)


@dataclasses.dataclass
class Game:
    """A pose game that was timed: its masked pictures, their forward, the figures."""

    forward: Callable
    images: np.ndarray
    coalitions: np.ndarray
    reference: Any
    result: dict[str, Any]


def pose_game(described, variables, repeats: int, crop=None, centres=None) -> Game:
    """Exact gsv of all keypoints' discs for all keypoints on one person of LSPET, or on
    `crop` with the discs at `centres` [k, 2]."""
    spec, codec, skeleton = described.spec, described.codec, described.skeleton
    crop = (person(described) if crop is None else crop).astype(np.float32)
    image = normalise(crop, spec)
    fill = normalise(regions.mean_fill(crop, spec.mean), spec)
    clean = jax.jit(described.module.apply)(variables, image[None]).heatmaps[-1][0]
    clean = heatmaps.activate(clean, codec)
    if centres is None:
        centres, _ = heatmaps.decode(clean, codec, spec.size)
    k = skeleton.num_keypoints
    owners = regions.keypoint_owners(
        centres, jnp.ones(k, bool), spec.size, side_px=regions.SIDE * spec.size[0]
    )
    reference = scores.from_clean(clean, codec, skeleton, 1.0)
    score = scores.make_score("value", codec)

    def value(coalition, variables, image, fill, owners, reference):
        picture = masked(coalition, image, fill, owners)
        maps = described.module.apply(variables, picture[None]).heatmaps[-1][0]
        return score(heatmaps.activate(maps, codec), reference)

    args = (jax.device_put(variables), image, fill, owners, reference)

    def engine(chunk):
        clusters = skeleton.cluster_indices()
        return group_shapley(value, clusters, kind="gsv", args=args, chunk_size=chunk)

    first = engine(None)
    images = make_images(first.coalitions, image, fill, owners)
    forward = make_forward(described, variables, reference)
    result = against_forwards(forward, images, engine, repeats)
    result["input"], result["players"] = list(spec.size), k
    result["memory"] = memory(value, skeleton.cluster_indices(), args)
    result["largest_residual"] = float(abs(np.asarray(first.residual)).max())
    values = np.asarray(first.member_values).sum(0) + np.asarray(
        first.cluster_values
    ).sum(0)
    result["explained"] = [round(float(v), 4) for v in values]
    return Game(forward, images, first.coalitions, reference, result)


def memory(value, clusters, args) -> dict[str, Any]:
    """MiB of the engine's program with its default chunks."""

    def program(*args):
        found = group_shapley(value, clusters, kind="gsv", args=args)
        return found.member_values, found.cluster_values

    players = sum(map(len, clusters))
    one = jax.make_jaxpr(value)(jnp.ones(players, bool), *args).jaxpr
    rows, largest = sweep.chunk_rows(one), sweep.largest_array(one)
    compiled = jax.jit(program).lower(*args).compile()
    analysis: Any = compiled.memory_analysis()
    return {
        "chunk": rows,
        "largest_array_mib": round(largest / 2**20, 2),
        "estimate_mib": round(rows * peak_bytes(one) / 2**20, 2),
        "program_mib": round(analysis.temp_size_in_bytes / 2**20, 2),
    }


def stem_share(kernel, padding, game: Game, repeats: int) -> dict[str, Any]:
    """The first convolution alone, and what sharing it between coalitions would cost."""
    form, size = game.result["forwards_form"].split(" of ")
    size, coalitions = int(size), jnp.asarray(game.coalitions, jnp.float32)
    few = game.images[: max(64, size)]

    def stem(images):
        return jax.lax.conv_general_dilated(
            images, kernel, (2, 2), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    def forward(images):
        return game.forward(images)

    parts = jax.jit(stem)(game.images[: coalitions.shape[1] + 1])
    combine = jax.jit(lambda chosen, maps: jnp.einsum("bn,nyxc->byxc", chosen, maps))
    chosen = jnp.pad(coalitions, ((0, 0), (0, 1)), constant_values=1.0)[: len(few)]
    timed = interleaved(
        {
            "stem": FORMS[form](jax.jit(stem), few, size),
            "forward": FORMS[form](forward, few, size),
            "combine": lambda: [
                combine(chosen[i : i + size], parts) for i in range(0, len(few), size)
            ],
        },
        repeats,
    )
    share = timed["stem"]["ms"] / timed["forward"]["ms"]
    rest = timed["combine"]["ms"] / timed["forward"]["ms"]
    return {
        "images": len(few),
        **timed,
        "share_of_forward": round(share, 4),
        "shared_prefix_saves_at_most": round(share, 4),
        "shared_prefix_saves_after_combining": round(share - rest, 4),
    }


# --- command line -----------------------------------------------------------------------

PARTS = {
    "small": small,
    "mobile": mobile_hourglass,
    "trained": trained_hourglass,
    "vitpose": fresh_vitpose,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--workdir", default="runs/lspet", help="for `trained`")
    parser.add_argument("--cores", type=int, default=0, help="0: all")
    arguments = parser.parse_args()
    if arguments.cores and hasattr(os, "sched_setaffinity"):
        allowed = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, allowed[: arguments.cores])
    found = {}
    for name in arguments.only.split(","):
        try:
            found[name] = PARTS[name](arguments.repeats, arguments)
        except FileNotFoundError as error:
            SKIPPED[name] = str(error)
    print(
        json.dumps(
            {
                "backend": jax.default_backend(),
                "cores": arguments.cores or os.cpu_count(),
                "versions": {"jax": jax.__version__, "python": sys.version.split()[0]},
                "glibc_tunables": os.environ.get("GLIBC_TUNABLES", ""),
                "repeats": arguments.repeats,
                "skipped": SKIPPED,
                **found,
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
