"""The figures of every study, from its JSON record and its arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
from matplotlib.figure import Figure

from pose_jax.report import analysis_captions as captions
from pose_jax.report import (
    attention_figures,
    cluster_drawings,
    latent_drawings,
    skip_drawings,
    skip_feature_drawings,
    thesis_numbers,
)

_FAINTEST = 0.3
_STRIPS = {
    "mean_image": "decoded,\nmean's skips",
    "skips_closed": "decoded,\nclosed",
}

Made = Iterator[tuple[str, str, str, Figure | np.ndarray]]
"""File stem, title, caption, figure or RGB picture."""


def skips(record, arrays: Mapping[str, np.ndarray], index) -> Made:
    styles = skip_drawings.styles_of(record)
    if not styles:
        return
    drawn = len(skip_drawings.subset_order(record["opened"]))
    yield (
        "skips_subsets",
        "PCK with some skips closed",
        captions.subsets(record, drawn),
        skip_drawings.subsets(record),
    )
    for style in styles:
        yield (
            f"skips_shapley_{style}",
            f"Who carries which joint ({skip_drawings.STYLES.get(style, style)})",
            captions.shapley(record, style),
            skip_drawings.shapley(record, style),
        )
    yield (
        "skips_histogram",
        "Every person, with skips and without",
        captions.histogram(record),
        skip_drawings.histogram(record),
    )
    for split in record["splits"]:
        if f"{split}_crops" in arrays:
            fields = ("crops", "on", "off", "true", "visible", "score")
            parts = {field: arrays[f"{split}_{field}"] for field in fields}
            yield (
                f"skips_people_{split}",
                f"The same people with skips open and closed ({split})",
                captions.sheet(
                    record, split, len(parts["crops"]), float(parts["score"].min())
                ),
                skip_drawings.sheet(**parts, skeleton=index["skeleton"]),
            )
        if record["decoders"]:
            yield (
                f"skips_effects_{split}",
                f"What closing does to the features ({split})",
                captions.effects(record, split),
                skip_feature_drawings.effects(record, split),
            )
    yield (
        "skips_answers",
        "How sure the answers are",
        captions.answers(record),
        skip_feature_drawings.answers(record),
    )


def latent(record, arrays: Mapping[str, np.ndarray], index) -> Made:
    yield (
        "latent_spectrum",
        "How many components hold the variance",
        captions.spectrum(record),
        latent_drawings.spectrum(record["pca"]),
    )
    if arrays:
        yield from _walk(record, arrays, index)
    yield (
        "latent_displacement",
        "How far a step moves the joints",
        captions.displacement(record),
        latent_drawings.displacement(record["displacement"]),
    )
    yield (
        "latent_projection",
        "What the first components are enough for",
        captions.projection(record),
        latent_drawings.projection(record["projection"]),
    )


def _walk(record, arrays: Mapping[str, np.ndarray], index) -> Made:
    found, shares = record["walk"], record["pca"]["shares"]
    there = {f: name for f, name in _STRIPS.items() if f"{f}_peak" in arrays}
    top = max((float(arrays[f"{field}_peak"].max()) for field in there), default=1.0)
    same = np.array(found["nearest_rows"]) == found["nearest_to_mean"]
    for n, component in enumerate(found["components"]):
        strips = {"nearest\nperson": arrays["nearest_keypoints"][n]}
        strips |= {name: arrays[f"{f}_keypoints"][n] for f, name in there.items()}
        opacity = {
            name: np.clip(arrays[f"{f}_peak"][n] / max(top, 1e-9), _FAINTEST, 1)
            for f, name in there.items()
        }
        share = (
            f", {shares[component - 1]:.2%} of the variance"
            if component <= len(shares)
            else ""
        )
        yield (
            f"latent_walk_{component:04d}",
            f"Walk along component {component}",
            captions.walk(record, n, top),
            latent_drawings.walk(
                strips, opacity, arrays["nearest_visible"][n], same[n], found["steps"],
                tuple(arrays["size"].tolist()), index["skeleton"],
                f"component {component}{share}",
            ),
        )  # fmt: skip


def clusters(record, arrays: Mapping[str, np.ndarray], index) -> Made:
    yield (
        "clusters_counts",
        "How many clusters there are",
        captions.counts(record),
        cluster_drawings.counts(record["counts"], thesis_numbers.SILHOUETTES),
    )
    views = [
        n[len("view_") : -len("_members")] for n in arrays if n.endswith("_members")
    ]
    for name in sorted(views, key=lambda v: (v != "all", len(v), v)):
        yield _view(record, arrays, name)
    if "nearest_crops" in arrays:
        yield (
            "clusters_nearest",
            "Nearest to the centres",
            captions.NEAREST,
            cluster_drawings.nearest(arrays["nearest_crops"]),
        )
    best = record["best"]
    yield (
        "clusters_agreement",
        "What the clusters agree with",
        captions.agreement(record),
        cluster_drawings.agreement(record["counts"][str(best)]["agreement"], best),
    )


def _view(record, arrays: Mapping[str, np.ndarray], name: str):
    places, members, picked, thumbnails = (
        arrays[f"view_{name}{part}"]
        for part in ("", "_members", "_picked", "_thumbnails")
    )
    # Positions, members and labels carry one order; `members` are numbers of all people.
    labels = arrays["chosen_labels"][members]
    title = "all people" if name == "all" else f"cluster {name} by itself"
    drawn = len(cluster_drawings.apart(places, picked))
    return (
        f"clusters_view_{name}",
        f"Where people lie: {title}",
        captions.view(record, name, drawn, len(places)),
        cluster_drawings.view(
            places, labels, picked, thumbnails, title,
            (record.get("view_shares") or {}).get(name),
        ),
    )  # fmt: skip


def redundancy(record, arrays: Mapping[str, np.ndarray], index) -> Made:
    if record["taps"]:
        yield (
            "redundancy_taps",
            "Components for 95 % at every tap",
            captions.taps(record),
            cluster_drawings.taps(record["taps"]),
        )
    yield (
        "redundancy_pruning",
        "Channels that can be spared",
        captions.pruning(record),
        cluster_drawings.pruning(record["pruning"]),
    )


MAKERS: dict[str, Callable[..., Made]] = {
    "skips": skips,
    "latent": latent,
    "clusters": clusters,
    "redundancy": redundancy,
    "attention": attention_figures.figures,
}
"""Study -> (record, arrays, index) -> its figures; in the order of the page."""
