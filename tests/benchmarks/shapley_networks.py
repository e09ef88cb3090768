"""Exact Shapley values on networks: the engine against the forwards that it must pay for.

    source launch/environment.sh; python tests/benchmarks/shapley_networks.py \
        [--repeats 5] [--only small,mobile,trained] [--workdir runs/lspet] [--cores 1]

Prints one JSON object. Per network: wall milliseconds of the engine and of as many plain
batched forwards at the best batch size, rounds interleaved, best and median; their ratio
(target <= 1.1). The plain forwards find their masked pictures ready in memory; the engine
makes its own.

| part | network | game |
|---|---|---|
| `small` | four 3x3 convolutions, 64 px, fresh weights | 8 regions, 17 targets (peak of the map), 256 coalitions; shapiq, shap and captum around the same JAX network |
| `mobile` | public mobile hourglass (POSE_JAX_DATA/pretrained), 192 px | 14 keypoint discs in five clusters, gsv, 448 coalitions, mean fill, map at the clean peak |
| `trained` | hourglass of `--workdir`, normalisation folded | the same |

`stem`: share of the first convolution in the forward, the most that computing it once per
player could save (it is linear in the masked picture: conv(x0) + sum of s_i conv(d_i)).
What is not at hand is named in `skipped`.
"""  # noqa: E501

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib
import json
import os
import sys
import time
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

from pose_jax import data, geometry, heatmaps, regions
from pose_jax import recipe as recipe_
from pose_jax.config import default, source
from pose_jax.convert import mobile
from pose_jax.data.pipeline import crop_matrix
from pose_jax.estimator import Estimator
from pose_jax.explain import exact_shapley, group_shapley, scores
from pose_jax.pixels import normalise
from pose_jax.tasks.workdir import data_root

BATCHES = (1, 2, 4, 8, 16, 32, 64)
SKIPPED: dict[str, str] = {}


# --- timing -----------------------------------------------------------------------------


def interleaved(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, dict]:
    """Best and median wall milliseconds; every round runs each call once, after a warm one."""
    spent: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        jax.block_until_ready(call())
    for _ in range(repeats):
        for name, call in calls.items():
            began = time.perf_counter()
            jax.block_until_ready(call())
            spent[name].append(1e3 * (time.perf_counter() - began))
    return {
        name: {"ms": round(min(t), 3), "median_ms": round(float(np.median(t)), 3)}
        for name, t in spent.items()
    }


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

WIDTHS = ((3, 16, 2), (16, 32, 2), (32, 32, 1), (32, 17, 1))
HALVES = [[0, 1, 2, 3], [4, 5, 6, 7]]


def small_weights():
    keys = jax.random.split(jax.random.key(0), len(WIDTHS))
    return [
        jax.random.normal(k, (3, 3, a, b)) / np.sqrt(9 * a)
        for k, (a, b, _) in zip(keys, WIDTHS)
    ]


def small_forward(kernels, images):
    """[b, 64, 64, 3] -> [b, 17], the peaks of 16 x 16 maps."""
    x = images
    for index, (kernel, (_, _, stride)) in enumerate(zip(kernels, WIDTHS)):
        x = jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # fmt: skip
        x = jax.nn.relu(x) if index + 1 < len(WIDTHS) else x
    return x.max((1, 2))


def masked(coalition, image, fill, owners):
    return regions.remove(image, fill, regions.hidden(owners, coalition))


def small_value(coalition, kernels, image, fill, owners):
    return small_forward(kernels, masked(coalition, image, fill, owners)[None])[0]


def block_owners(rows: int, columns: int) -> np.ndarray:
    y, x = np.mgrid[:64, :64]
    return (columns * (y * rows // 64) + x * columns // 64).astype(np.int32)


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


def make_images(coalitions, image, fill, owners) -> np.ndarray:
    """[r, n] bool -> [r, h, w, 3]. numpy, as a wrapper around somebody's model would."""
    owners = np.asarray(owners)
    shown = np.asarray(coalitions)[:, owners] | (owners == regions.FREE)
    return np.where(shown[..., None], np.asarray(image), np.asarray(fill))


class Predictor:
    """The network as rivals call it: numpy in, numpy out, in batches of at most 64.

    `images` and `calls` count what went through it.
    """

    def __init__(self, forward):
        self.forward, self.images, self.calls = forward, 0, 0

    def __call__(self, images: np.ndarray) -> np.ndarray:
        images = np.asarray(images, np.float32)
        self.images += len(images)
        found = []
        for start in range(0, len(images), 64):
            part = images[start : start + 64]
            # Powers of two, so that odd numbers of pictures compile no program of their own.
            room = (1 << (len(part) - 1).bit_length()) - len(part)
            padded = np.pad(part, ((0, room), (0, 0), (0, 0), (0, 0)))
            found.append(np.asarray(self.forward(padded))[: len(part)])
            self.calls += 1
        return np.concatenate(found)


@dataclasses.dataclass
class Rival:
    """One line of the table.

    Attributes:
      run: () -> values; what it found is compared with `truth` (of the same shape).
      value: what it computes. exact: whether it enumerates.
    """

    run: Callable[[], np.ndarray]
    truth: np.ndarray
    value: str
    targets: int
    exact: bool = True


def rivals(forward, args, repeats: int) -> list[dict[str, Any]]:
    """One table: time, evaluations, model calls and difference to our values."""
    predictor = Predictor(forward)
    quarters = (*args[:3], block_owners(2, 2))
    entries: dict[str, Rival] = {}
    truth = np.asarray(exact_shapley(small_value, 8, args=args).values)
    owen = np.asarray(halves(args).player_values)
    four = np.asarray(exact_shapley(small_value, 4, args=quarters).values)
    for name, add in (
        ("shapiq", functools.partial(shapiq_entries, truth=truth)),
        ("shap", functools.partial(shap_entries, truth=truth, owen=owen)),
        ("captum.attr", functools.partial(captum_entries, truth=truth, four=four)),
    ):
        try:
            entries |= add(importlib.import_module(name), predictor, args)
        except Exception as error:  # A rival that cannot be loaded is a note.
            SKIPPED[name] = f"{type(error).__name__}: {error}"[:160]
    ours = {
        "ours, exact": lambda: exact_shapley(small_value, 8, args=args).values,
        "ours, Owen": lambda: halves(args).player_values,
        "ours, exact, 4 players": (
            lambda: exact_shapley(small_value, 4, args=quarters).values
        ),
    }
    rows, calls = {}, dict(ours)
    for name, entry in entries.items():
        try:
            predictor.images = predictor.calls = 0
            found = entry.run()
        except Exception as error:  # Interfaces change between versions.
            SKIPPED[name] = f"{type(error).__name__}: {error}"[:160]
            continue
        rows[name] = {
            "value": entry.value,
            "targets": entry.targets,
            "exact": entry.exact,
            "evaluations": predictor.images,
            "model_calls": predictor.calls,
            "largest_difference": float(abs(np.asarray(found) - entry.truth).max()),
        }
        calls[name] = entry.run
    for name, value, count in zip(
        ours,
        ("Shapley, 8 players", "Owen, 4 + 4 players", "Shapley, 4 players"),
        (256, halves(args).evaluations, 16),
    ):
        rows[name] = dict(
            value=value, targets=17, exact=True, evaluations=count, model_calls=1
        )
    timed = interleaved(calls, repeats)
    return [{"engine": n, **rows[n], **timed[n]} for n in calls]


def halves(args):
    return group_shapley(
        small_value, HALVES, kind="owen", target_cluster=[0] * 17, args=args
    )


def shapiq_entries(shapiq, predictor, args, *, truth) -> dict[str, Rival]:
    _, image, fill, owners = args

    def values(target: int) -> list[float]:
        def game(coalitions):
            return predictor(make_images(coalitions, image, fill, owners))[:, target]

        found = shapiq.ExactComputer(game, n_players=8)("SV")
        return [found[(player,)] for player in range(8)]

    kind = "Shapley, 8 players"
    return {
        "shapiq ExactComputer": Rival(
            lambda: np.array(values(0)), truth[:, 0], kind, 1
        ),
        "shapiq ExactComputer, target by target": Rival(
            lambda: np.array([values(t) for t in range(17)]).T, truth, kind, 17
        ),
    }


def shap_entries(shap, predictor, args, *, truth, owen) -> dict[str, Rival]:
    _, image, fill, owners = args

    def model(rows):
        present = np.asarray(rows) > 0.5
        return predictor(make_images(present, image, fill, owners))

    plain = shap.maskers.Independent(np.zeros((1, 8)), max_samples=1)
    exact = shap.explainers.Exact(model, plain)
    # The masker must hold some binary tree, which the coalition explainer does not read.
    chain = [[i - 1 if i == 1 else 7 + i - 1, i, i, i + 1] for i in range(1, 8)]
    masker = shap.maskers.Partition(
        np.zeros((1, 8)), max_samples=1, clustering=np.array(chain, float)
    )
    masker.feature_names = [f"p{p}" for p in range(8)]
    tree = {f"c{i}": {f"p{p}": f"p{p}" for p in c} for i, c in enumerate(HALVES)}
    coalition = shap.CoalitionExplainer(model, masker, partition_tree=tree)
    ones = np.ones((1, 8))
    return {
        "shap ExactExplainer": Rival(
            lambda: exact(ones, max_evals=256, silent=True).values[0],
            truth, "Shapley, 8 players", 17,
        ),
        "shap CoalitionExplainer": Rival(
            lambda: coalition(ones, silent=True).values[0],
            owen, "Owen, 4 + 4 players", 17,
        ),
    }  # fmt: skip


def captum_entries(attr, predictor, args, *, truth, four) -> dict[str, Rival]:
    """Torch tensors only carry the numbers. captum is given the players as its input: from a
    picture with a feature mask it would read the mask pixel by pixel, once per order."""
    torch: Any = importlib.import_module("torch")
    torch.set_num_threads(1)
    _, image, fill, owners = args

    def entry(method, owners, truth, exact, **options):
        def model(rows):
            present = rows.numpy() > 0.5
            return torch.from_numpy(
                predictor(make_images(present, image, fill, owners))
            )

        def run():
            ones = torch.ones(1, len(truth))
            explainer = getattr(attr, method)(model)
            return explainer.attribute(ones, target=0, **options).numpy()[0]

        return Rival(run, truth[:, 0], f"Shapley, {len(truth)} players", 1, exact)

    return {
        "captum ShapleyValues": entry(
            "ShapleyValues", block_owners(2, 2), four, True, perturbations_per_eval=16
        ),
        "captum ShapleyValueSampling, 32 orders": entry(
            "ShapleyValueSampling", owners, truth, False,
            n_samples=32, perturbations_per_eval=8,
        ),
        "captum KernelShap, 256 samples": entry(
            "KernelShap", owners, truth, False, n_samples=256, perturbations_per_eval=64
        ),
    }  # fmt: skip


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


def pose_game(described, variables, repeats: int) -> Game:
    """Exact gsv of 14 keypoint discs for all keypoints on one person."""
    spec, codec, skeleton = described.spec, described.codec, described.skeleton
    crop = person(described).astype(np.float32)
    image = normalise(crop, spec)
    fill = normalise(regions.mean_fill(crop, spec.mean), spec)
    clean = jax.jit(described.module.apply)(variables, image[None]).heatmaps[-1][0]
    clean = heatmaps.activate(clean, codec)
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
    result["largest_residual"] = float(abs(np.asarray(first.residual)).max())
    values = np.asarray(first.member_values).sum(0) + np.asarray(
        first.cluster_values
    ).sum(0)
    result["explained"] = [round(float(v), 4) for v in values]
    return Game(forward, images, first.coalitions, reference, result)


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
