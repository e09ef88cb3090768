"""The answers in plain sentences, made from the numbers of an analysis and from nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pose_jax.report.cluster_drawings import attribute
from pose_jax.report.skip_drawings import short
from pose_jax.report.skip_feature_drawings import singles
from pose_jax.report.thesis_numbers import NOTHING_BEYOND

_WEAK = 0.25
"""Silhouettes below are read as no substantial structure (Kaufman and Rousseeuw 1990)."""

_STATISTICS = {"spearman": "Spearman", "circular": "circular-linear R"}
_REPLACED = {
    "zero": "replaced by zero",
    "mean": "replaced by the data set's mean",
    "other": "replaced by another picture's",
}


def number(value: Any) -> str:
    """`0.123`, with a true minus; a dash where there is none."""
    return "–" if value is None else f"{value:.3f}".replace("-", "−")


def ends(record: Mapping[str, Any]) -> str:
    """`[low, high]`."""
    return f"[{number(record.get('low'))}, {number(record.get('high'))}]"


def _with(record: Mapping[str, Any], key: str = "value") -> str:
    return f"{number(record.get(key))} {ends(record)}"


def skips(record: Mapping[str, Any]) -> list[str]:
    """What the skips carry: closing all, each one's share, which joints."""
    said = []
    for name, split in record["splits"].items():
        style = next(iter(split["styles"]))
        found = split["styles"][style]
        whole, closed = (found["subsets"][n]["pck"] for n in (-1, 0))
        others = [
            f"{_with(s['subsets'][0]['pck']['all'])} {_REPLACED.get(other, other)}"
            for other, s in split["styles"].items()
            if other != style
        ]
        said.append(
            f"On {name} ({split['people']:,} people) PCK is {_with(whole['all'])} with all "
            f"skips open and {_with(closed['all'])} with all closed "
            f"({_REPLACED.get(style, style)})"
            + (f"; {', '.join(others)}" if others else "")
            + "."
        )
    said += _shares(name, found, record)
    said += _classes(whole, closed, record["classes"])
    return said


def _shares(
    split: str, found: Mapping[str, Any], record: Mapping[str, Any]
) -> list[str]:
    labels = dict(zip(record["gates"], short(record["gates"])))
    values = {labels[g]: v["all"] for g, v in found["shapley"].items()}
    order = sorted(values, key=lambda g: -values[g]["value"])
    total = sum(v["value"] for v in values.values())
    parts = ", ".join(f"{g} {_with(values[g])}" for g in order)
    alone = singles(record["opened"], record["gates"])
    whole = found["subsets"][-1]["pck"]["all"]["value"]
    cost = {
        label: whole - found["subsets"][n]["pck"]["all"]["value"]
        for label, n in alone.items()
        if label != "all closed"
    }
    worst = max(cost, key=lambda label: cost[label])
    return [
        f"Shared out by exact Shapley values on {split}, the {number(total)} that the skips "
        f"add to PCK are: {parts}. The loss by closing just one is largest with {worst}: "
        f"{number(cost[worst])}."
    ]


def _classes(whole, closed, classes: Mapping[str, Any]) -> list[str]:
    kept = {
        name: closed[name]["value"] / whole[name]["value"]
        for name in classes
        if name in whole and whole[name]["value"]
    }
    if len(kept) < 2:
        return []
    parts = ", ".join(f"{share:.0%} of {name} joints" for name, share in kept.items())
    shares = list(kept.values())
    rising = all(a < b for a, b in zip(shares, shares[1:]))
    missing = "" if "small" in kept else " This skeleton labels no small joints."
    return [
        f"Of what is right with all skips open there is left with all closed: {parts}. The "
        "thesis says that the smaller a joint, the more it needs the skips; these numbers "
        f"{'agree' if rising else 'do not agree'} (shares without an interval).{missing}"
    ]


def latent(record: Mapping[str, Any]) -> list[str]:
    """What the components mean, and whether those beyond 50 carry anything."""
    found = record["pca"]
    first = found["shares"][0] if found["shares"] else None
    said = [
        f"{found['components_for_95']:,} components hold 95 % of the variance of "
        f"{record['tap']} ({found['values']:,} values, {found['samples']:,} people); the "
        f"first alone holds {'–' if first is None else f'{first:.1%}'}."
    ]
    said += _names(record.get("names") or {})
    said += _beyond(record["projection"])
    said += _nearest(record["walk"])
    return said


def _names(found: Mapping[str, Any]) -> list[str]:
    best: dict[tuple[int, str], Mapping[str, Any]] = {}
    for entry in found.get("correlations") or []:
        place = entry["component"], entry["statistic"]
        now = best.get(place)
        if entry["value"] is not None and (
            now is None or abs(entry["value"]) > abs(now["value"])
        ):
            best[place] = entry
    parts = []
    for n in sorted({n for n, _ in best})[:3]:
        both = [best[n, k] for k in ("spearman", "circular") if (n, k) in best]
        named = [
            f"{attribute(e['attribute'])} ({_STATISTICS[e['statistic']]} {_with(e)})"
            for e in both
        ]
        parts.append(f"component {n} with {' and '.join(named)}")
    if not parts:
        return ["No component could be named: nobody has the labels that it takes."]
    return [
        f"Strongest correlations: {'; '.join(parts)}. They are the largest of "
        f"{found['tests']:,} tests, so their size flatters."
    ]


def _beyond(found: Mapping[str, Any]) -> list[str]:
    """The thesis's claim, judged by what the network answers without those components."""
    ranks = [r for r in found["ranks"] if r <= NOTHING_BEYOND]
    rank = ranks[-1]
    if rank >= found["ranks"][-1]:
        return [f"No component beyond {rank} was looked at."]
    at = found["ranks"].index(rank)
    said = []
    for name, words in (("own_skips", "skips open"), ("skips_closed", "skips closed")):
        if name not in found:
            continue
        entry = found[name]["only"][at]
        change = f"{number(entry['minus_whole'])} {ends(entry)}"
        if entry["high"] is not None and entry["high"] < 0:
            verdict = "they carry something"
        elif entry["low"] is not None and entry["low"] > 0:
            verdict = "without them the answers are better"
        else:
            effect = number(entry.get("smallest_effect"))
            verdict = f"no loss is shown (one below about {effect} may exist unseen)"
        said.append(f"{words}: PCK changes by {change}, {verdict}")
    return [
        f"Do components beyond {rank} carry nothing, as the thesis concludes from "
        f"{NOTHING_BEYOND} on? Without them, {'; '.join(said)}."
    ]


def _nearest(found: Mapping[str, Any]) -> list[str]:
    still = [n for n, stays in zip(found["components"], found["stays"]) if stays == 1]
    if not still:
        return []
    lengths = dict(zip(found["components"], found["step_length"]))
    reach = max(lengths[n] for n in still) * max(map(abs, found["steps"]))
    why = (
        " So short a way hardly changes who is nearest, whatever a component means: this "
        "reading alone does not show that they are noise."
        if reach < found["mean_distance"]
        else ""
    )
    return [
        "The nearest real person stays the same along the whole walk of component "
        f"{', '.join(map(str, still))}: the longest way there is {reach:.3g}, and the mean is "
        f"{found['mean_distance']:.3g} from its nearest person.{why}"
    ]


def clusters(record: Mapping[str, Any]) -> list[str]:
    """What the latent groups, how firmly, and what the groups agree with."""
    best = record["best"]
    found = record["counts"][str(best)]
    people = sum(found["sizes"])
    said = [
        f"The silhouette is best at K = {best}: {number(found['silhouette'])} (sizes "
        f"{', '.join(f'{n:,}' for n in found['sizes'])}; stability over seeds "
        f"{number(found.get('stability'))}; {found['below_zero']:,} of {people:,} people "
        "nearer to another cluster)."
    ]
    if found["silhouette"] < _WEAK:
        said.append(
            f"A silhouette below {_WEAK} is usually read as no substantial structure: the "
            "groups are a cut through one cloud rather than separate poses."
        )
    above = {
        n: e for n, e in found["agreement"].items()
        if e.get("nmi") is not None and e["nmi"] > (e.get("null_high") or 0)
    }  # fmt: skip
    order = sorted(above, key=lambda n: -above[n]["nmi"])[:3]
    parts = [
        f"{attribute(n)} ({number(above[n]['nmi'])}, shuffled "
        f"{number(above[n]['null_high'])})"
        for n in order
    ]
    said.append(
        f"They agree most with {', '.join(parts)} (normalised mutual information)."
        if parts
        else "They agree with no attribute more than shuffled clusters do."
    )
    return said


def redundancy(record: Mapping[str, Any]) -> list[str]:
    """Channels that hold the variance, and what losing half of them costs."""
    found = record["pruning"]
    said = []
    if (tap := record["taps"].get(found["tap"])) is not None:
        said.append(
            f"{tap['channel_axes_for_95']} axes of the {tap['channels']} channels of "
            f"{found['tap']} hold 95 % of their variance."
        )
    halves = [
        (name, entry)
        for name in ("energy", "variance")
        for entry in found["rankings"].get(name, [])
        if entry["kept"] == round(found["channels"] / 2)
    ]
    parts = [
        f"{number(e['minus_whole'])} {ends(e)} by the ranking {name}"
        for name, e in halves
    ]
    if parts:
        said.append(f"Without half of them PCK changes by {', '.join(parts)}.")
    return said
