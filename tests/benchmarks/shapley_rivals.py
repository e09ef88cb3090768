"""The small network of `shapley_networks.py`, and shapiq, shap and captum around it."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from pose_jax import regions
from pose_jax.explain import exact_shapley, group_shapley

SKIPPED: dict[str, str] = {}
"""What could not be measured -> why."""


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


# --- the small network

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


def make_images(coalitions, image, fill, owners) -> np.ndarray:
    """[r, n] bool -> [r, h, w, 3]. numpy, as a wrapper around somebody's model would."""
    owners = np.asarray(owners)
    shown = np.asarray(coalitions)[:, owners] | (owners == regions.FREE)
    return np.where(shown[..., None], np.asarray(image), np.asarray(fill))


# --- rivals


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
