"""How to read the figures of the analyses, and what must not be concluded from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def subsets(record: Mapping[str, Any], drawn: int) -> str:
    total = len(record["opened"])
    rows = (
        f"All {total} subsets of the skip gates"
        if drawn == total
        else f"{drawn} of the {total} subsets of the skip gates (at most one open or closed)"
    )
    return (
        f"{rows}, by how many are open (filled discs); one panel per replacement of what a "
        "closed gate carried: zero, the data set's mean, another picture's. Same weights "
        f"throughout, nothing retrained. {record['protocol']}."
    )


def shapley(record: Mapping[str, Any], style: str) -> str:
    sums = []
    for name, split in record["splits"].items():
        found = split["styles"][style]
        empty = found["shapley_empty"]["all"]["value"]
        whole = found["subsets"][-1]["pck"]["all"]["value"]
        total = sum(v["all"]["value"] for v in found["shapley"].values())
        sums.append(
            f"{name} ({split['people']:,} people): sum {total:.3f}, whole {whole:.3f} minus "
            f"all closed {empty:.3f} is {whole - empty:.3f}"
        )
    return (
        f"Exact Shapley values of the skips for PCK (style {style}), per joint and size class. "
        "First panel: from all gates closed (cross) to all open (mark); the values of the "
        f"other panels add up to that way. All joints, {'; '.join(sums)}. A value is what a "
        "gate adds on average over all orders of opening, in this network; it does not say "
        f"what a network trained without the gate would lose. {record['protocol']}."
    )


def histogram(record: Mapping[str, Any]) -> str:
    return (
        "Every person's own heatmap PCK (share of his joints strictly nearer than a twentieth "
        "of the map's side), in ten bins: the same weights with all gates open (filled) and "
        f"all closed (hatched). {_counted(record)}"
    )


def _counted(record: Mapping[str, Any]) -> str:
    said = [f"{n}: {s['people']:,} people" for n, s in record["splits"].items()]
    return "; ".join(said).capitalize() + "."


def sheet(record: Mapping[str, Any], split: str, count: int, lowest: float) -> str:
    chosen = (
        "on whom the whole network is right"
        if lowest >= 1
        else f"on whom the whole network does best (heatmap PCK {lowest:.2f} or more)"
    )
    return (
        f"{count} people of {split} {chosen}, as in the thesis: a choice that flatters the "
        "open gates. Left the answer with all skips open, right with all closed (zero); thin "
        "white: labels; orange: the person's left, blue: right, purple: middle. The number is "
        "the heatmap PCK with all gates open."
    )


def effects(record: Mapping[str, Any], split: str) -> str:
    people = record["splits"][split]["people"]
    return (
        "How far each decoder output moves when one gate, or all, are closed: 1 − linear CKA "
        "(0: same geometry of the people's features) and mean |change| / |features|. A deep "
        "decoder does not see shallow gates, so its 0 there is by construction. "
        f"{split}, {people:,} people; mean over people, no intervals."
    )


def answers(record: Mapping[str, Any]) -> str:
    return (
        "Mean peak and entropy of the heatmaps of labelled joints: a network that loses what a "
        f"gate carried answers lower and wider. {_counted(record)} No intervals."
    )


def spectrum(record: Mapping[str, Any]) -> str:
    found = record["pca"]
    limit = min(found["values"], found["samples"] - 1)
    few = (
        f" With {found['samples']:,} people at most {limit:,} components can vary, so the "
        "counts are those of this sample, not of the network alone."
        if limit < found["values"]
        else ""
    )
    return (
        f"Top: share of the variance per principal component; bottom: their sum, with the "
        f"components for 95 and 99 %.{few} {record['protocol']}."
    )


def walk(record: Mapping[str, Any], n: int, top: float) -> str:
    found = record["walk"]
    length, mean = found["step_length"][n], found["mean_distance"]
    stays = found["stays"][n]
    short = (
        " The step is shorter than that distance, so a nearest person who does not change "
        "says little about the component."
        if length < mean
        else ""
    )
    said = (
        f"The nearest person is the mean's at {stays:.0%} of the steps; one step is "
        f"{length:.3g} long, the mean is {mean:.3g} from its nearest person.{short}"
    )
    if n:
        return said
    return (
        "Columns: the mean latent moved by this many standard deviations. Nearest: labels of "
        "the real person whose latent is nearest; “same” is the one nearest to the mean. "
        "Decoded: what the network answers for the moved latent, with the skips of the mean "
        "picture and with skips closed; the fainter, the lower the peak (full ink at "
        f"{top:.2f}, the highest of all walks). {said} {record['protocol']}."
    )


def displacement(record: Mapping[str, Any]) -> str:
    people = record["displacement"]["people"]
    return (
        "How far the answer moves when a person's latent moves by one standard deviation of a "
        "component, mean of both directions and of the labelled joints: with his own skips "
        f"(filled) and with skips closed (hollow). {people:,} people, 95 % intervals by "
        "picture. Steps differ in length from component to component, as the variance does."
    )


def projection(record: Mapping[str, Any]) -> str:
    return (
        "PCK when the latent is projected on its first r components (the rest is the mean), "
        "and when these are taken out instead; the dashed line is the untouched network. "
        "Intervals are those of the paired difference from it (95 %, by picture). "
        f"{record['protocol']}."
    )


def counts(record: Mapping[str, Any]) -> str:
    return (
        f"{record['protocol']}. Stability: adjusted Rand index between restarts from other "
        "seeds. Last panel: people nearer to another cluster than to their own. The thesis's "
        "values (dashed, read off its figures) come from another network on 256x256 COCO "
        "crops with 4,096 values: reference, not target."
    )


def view(record: Mapping[str, Any], name: str, drawn: int, people: int) -> str:
    of = (
        "all people" if name == "all" else f"cluster {name} alone, with axes of its own"
    )
    return (
        f"{people:,} people, {of}: marks are people, {drawn} thumbnails are people of a random "
        "sample, each centred on its own position (those that would hide another are left "
        "out). Frame and mark are the cluster's. Two axes hold a small part of the "
        "variance: distances in the picture are not those that were clustered."
    )


NEAREST = (
    "The people whose values are nearest to each cluster's centre, nearest first. They are the "
    "most typical ones of their cluster and look alike for that reason."
)


def agreement(record: Mapping[str, Any]) -> str:
    return (
        f"Agreement of the K = {record['best']} clusters with what the labels say of people, "
        "normalised mutual information (0 none, 1 the same grouping); grey: shuffled "
        "clusters, up to their 95th percentile. Attributes are correlated with each other, "
        f"and their number is not corrected for. {record['protocol']}."
    )


def taps(record: Mapping[str, Any]) -> str:
    return (
        "Principal axes that hold 95 % of the variance of every tap: bars over its channels "
        "(positions pooled), diamonds over all its values where these are few enough (at most "
        f"people − 1 can vary). {record['protocol']}."
    )


def pruning(record: Mapping[str, Any]) -> str:
    found = record["pruning"]
    return (
        f"Channels of {found['tap']} taken away, least important first by each ranking "
        "(reversed: most energy first; random: what a ranking has to beat). Below: share of "
        f"the {found['parameters']:,} parameters that then have no influence (ranking "
        f"energy). {record['protocol']}."
    )
