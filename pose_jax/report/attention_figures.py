"""The study `attention` on the page: figures with captions, sentences, tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from pose_jax.report import attention_drawings as drawings
from pose_jax.report import markup
from pose_jax.report.analysis_sentences import ends, number
from pose_jax.report.attention_drawings import NAMES, SERIES
from pose_jax.report.markup import folded, paragraph, table, text
from pose_jax.report.plotting import numbers, words

_CAUTION = (
    "Attention is not attribution: it says how values are mixed, not what they hold; residual "
    "paths and MLPs are ignored or, in rollout, assumed"
)

Made = Iterator[tuple[str, str, str, Figure | np.ndarray]]
"""File stem, title, caption, figure."""


def figures(record, arrays: Mapping[str, np.ndarray], index) -> Made:
    yield (
        "attention_agreement",
        "Does attention order body parts as the measured influence does?",
        f"{record['protocol']}. “{SERIES['untrained']}”: the same network, never trained; "
        f"“{SERIES['shuffled']}”: this person's attention against the influence of somebody in "
        "another picture. Occlusion hides a disc in the very rows that the Shapley "
        "values are read from, so as a ceiling it is generous.",
        drawings.agreement(record),
    )
    yield (
        "attention_matrices",
        "Attention beside measured influence",
        "Rows: the joint that is asked about; columns: the discs. Means over people; every "
        "panel has its own scale (shares of a map, changes of the score), and a joint's own disc "
        f"is left out (grey). {_CAUTION}. {record['protocol']}.",
        drawings.matrices(
            means(record, arrays), record["keypoints"], record["clusters"]
        ),
    )
    above = index["settings"]["attention"]["show_above"]
    shown = (
        "none is cut off"
        if not above
        else f"weights up to {above:g} are not shown in it and in single layers"
    )
    for n, image in enumerate(arrays["picture_image"]):
        there = arrays["picture_targets"][n] >= 0
        titles = [record["keypoints"][t] for t in arrays["picture_targets"][n][there]]
        points = arrays["picture_points"][n][there]
        yield (
            f"attention_layers_{n}",
            f"What the joints' tokens read, layer by layer (person {n + 1})",
            "Softmax weights of the token of each joint (star), averaged over heads "
            "(TransPose's dependency areas; the last row is the dependency, earlier ones show "
            "how it forms). Every tile is scaled to its own maximum; of upsampled weights "
            f"{shown}. {_CAUTION}.",
            drawings.layers(
                image, arrays["picture_layers"][n][:, there], points, titles,
                above=above,
            ),
        )  # fmt: skip
        maps = {
            name: arrays[f"picture_map_{name}"][n][there]
            for name in record["kinds"]
            if f"picture_map_{name}" in arrays
        }
        yield (
            f"attention_evidence_{n}",
            f"Four kinds of evidence for the same joints (person {n + 1})",
            "The last layer's weights, attention rollout and gradient × attention, each "
            "scaled to its own maximum (rollout to its 99th percentile: half of each of its "
            "layers leads back to the joint's own token); right the measured Owen value of "
            "every disc (orange raises the score, blue lowers it). Of the last layer's "
            f"weights {shown}. {_CAUTION}.",
            drawings.evidence(
                image, maps, arrays["picture_influence"][n][there],
                arrays["picture_owners"][n], points, titles, above=above,
            ),
        )  # fmt: skip


def means(
    record: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Mean matrices `[k, n]` over the people who have target and player."""
    there = arrays["valid"][:, :, None] & arrays["present"][:, None, :]
    players = there.shape[-1]
    found = {}
    for name in ("influence", "occlusion", *record["kinds"]):
        values = arrays[name][..., :players]
        known = there & np.isfinite(values)
        total, count = np.where(known, values, 0).sum(0), known.sum(0)
        unknown = np.full(count.shape, np.nan)
        found[name] = np.divide(total, count, out=unknown, where=count > 0)
    return found


def _rows(record: Mapping[str, Any]) -> dict[tuple[str, str], Mapping[str, Any]]:
    return {(row["group"], row["name"]): row for row in record["rows"]}


def _with(record: Mapping[str, Any]) -> str:
    return f"{number(record['value'])} {ends(record)}"


def sentences(record: Mapping[str, Any]) -> list[str]:
    """Does attention tell the truth? From the numbers and from nothing else."""
    rows = _rows(record)
    ceiling = rows["ceiling", "occlusion"]["spearman"]["influence"]
    said = []
    for kind in record["kinds"]:
        found = rows["attention", kind]["spearman"]["influence"]
        minus = record["minus"][kind]
        beaten = [words for name, words in _AGAINST.items() if _positive(minus[name])]
        behind = [words for name, words in _AGAINST.items() if _negative(minus[name])]
        said.append(
            f"{NAMES[kind].capitalize()}: Spearman {_with(found)} with the Shapley influence "
            f"on {found['people']:,} people; "
            + (
                f"clearly above {_listed(beaten)}"
                if beaten
                else "clearly above no baseline"
            )
            + (f", clearly below {_listed(behind)}" if behind else "")
            + "."
        )
    distance = rows["baseline", "distance"]["spearman"]["influence"]
    said.append(
        f"For comparison, “nearer = more” reaches {_with(distance)} without any network, and "
        f"hiding single discs {_with(ceiling)}. Clearly: the 95 % interval of the paired "
        "difference excludes 0; the comparisons are not corrected for their number."
    )
    shares = record["shares"]["last_layer"]
    said.append(
        f"Of the last layer's maps {number(shares['background']['value'])} lie outside of all "
        f"discs and {number(shares['own']['value'])} in the joint's own, where the comparison "
        "does not look."
    )
    return said


_AGAINST = {
    "distance": "“nearer = more”",
    "uniform": "the size of the discs",
    "untrained": "random weights",
    "shuffled": "another person's influence",
}


def _positive(found: Mapping[str, Any]) -> bool:
    return found["low"] is not None and found["low"] > 0


def _negative(found: Mapping[str, Any]) -> bool:
    return found["high"] is not None and found["high"] < 0


def _listed(parts: list[str]) -> str:
    return ", ".join(parts[:-1]) + (" and " if parts[1:] else "") + parts[-1]


def tables(record: Mapping[str, Any]) -> Iterator[str]:
    heads = [
        "evidence",
        "of",
        "ρ influence",
        "ρ occlusion",
        "τ influence",
        "τ occlusion",
    ]
    lines = [
        [
            text(NAMES[row["name"]]), text(SERIES[row["group"]]),
            *(
                _cell(row[statistic].get(reference))
                for statistic in ("spearman", "kendall")
                for reference in ("influence", "occlusion")
            ),
        ]
        for row in record["rows"]
    ]  # fmt: skip
    yield table(
        heads, lines, "Rank correlation over players, Spearman ρ and Kendall τ-b"
    )
    yield paragraph(f"{_CAUTION}. 95 % intervals by picture.", "note")
    lines = [
        [text(NAMES[kind]), *(_cell(found.get(name)) for name in _AGAINST)]
        for kind, found in record["minus"].items()
    ]
    heads = ["ρ influence minus that of", *_AGAINST.values()]
    yield table(heads, lines, "Differences, paired by person")
    lines = [
        [text(words(name)), *(text(record["joints"][k][t]) for k in record["kinds"])]
        for t, name in enumerate(record["keypoints"])
    ]
    heads = ["joint", *(NAMES[k] for k in record["kinds"])]
    yield folded(heads, lines, "ρ with influence, joint by joint")
    lines = [
        [text(NAMES[k]), *(_cell(v) for v in s.values())]
        for k, s in record["shares"].items()
    ]
    heads = ["map", "own disc", "other discs", "background"]
    yield folded(heads, lines, "Where the maps lie")


def _cell(found: Mapping[str, Any] | None) -> str:
    if not found:
        return ""
    low_high = numbers([found["low"], found["high"]]).tolist()
    return f"{text(found['value'])} {markup.interval(low_high)}"
