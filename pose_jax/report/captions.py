"""How to read every figure, and what must not be concluded from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

AGREE = 0.8
"""Kendall's tau of two fills below which they are said to disagree."""

KINDS = {
    "gsv": "Group Shapley values take every other cluster as one player; they are not the "
    "Shapley values of single joints unless only pairs interact",
    "owen": "Owen values order players inside clusters and clusters among each other; they "
    "are the Shapley values of single joints only where just pairs interact",
    "decoupled": "Decoupled values share out the target's own cluster with all other parts "
    "visible; they say nothing about those other parts",
    "exact": "These are exact Shapley values of single players",
}

UNSTACKED = (
    "Every target is a game of its own: values of targets in different clusters must not be "
    "added or stacked."
)


def _value(record: Mapping[str, Any]) -> str:
    return "exact Shapley" if record["kind"] == "exact" else "Owen"


def matrix(record: Mapping[str, Any]) -> str:
    return (
        f"Read a row from left to right: by how much seeing each region raises (orange) or "
        f"lowers (blue) the score of that joint, mean {_value(record)} value over people; "
        "dots mark entries whose 95 % interval excludes 0, without correction for their "
        "number, and frames are clusters. The colour range is that of the other joints: a "
        "target's own region may lie beyond it. " + UNSTACKED
    )


def gaps(record: Mapping[str, Any]) -> str:
    return (
        "Left: score with all regions hidden and with the whole picture; right: their "
        "difference, which the values of a joint share out (95 % intervals over pictures, "
        "grey where they hold 0). Where the difference is near 0 there is little to explain, "
        "and the context alone places the joint."
    )


def foreign(record: Mapping[str, Any], count: int) -> str:
    return (
        f"For every joint the {count} players outside its own cluster with the largest mean "
        f"{_value(record)} value, with 95 % intervals (grey where they hold 0); they were "
        "picked for their size, so single intervals flatter them. " + UNSTACKED
    )


def conditional(record: Mapping[str, Any], count: int) -> str:
    return (
        f"For every joint the {count} strongest members of its own cluster: their value when "
        "the joint's own region plays along, is always hidden (what the model falls back on "
        "when the joint is occluded), or is always visible. The three are different games "
        "and must not be added."
    )


def arrows(record: Mapping[str, Any]) -> str:
    return (
        "Yellow ring: where the model puts the joint; arrows come from the five players with "
        f"the largest |{_value(record)} value|, orange where seeing them raises the score, "
        "blue where it lowers it, width on one scale for the person. " + UNSTACKED
    )


def waterfall(record: Mapping[str, Any]) -> str:
    start = (
        "the score with the own cluster hidden"
        if record["kind"] == "decoupled"
        else "the score of the context alone, v(∅)"
    )
    return (
        f"From {start} to that of the whole picture, v(all): members of the joint's cluster "
        f"in full colour, other clusters as wholes hatched. {KINDS[record['kind']]}. "
        + UNSTACKED
    )


def coalitions(record: Mapping[str, Any]) -> str:
    return (
        "The very pictures that were scored, the score above each (ring: the answer on the "
        "whole picture): nothing hidden, all "
        "regions hidden, the best with at most three regions shown and the worst with at "
        "most three hidden, among the coalitions that were evaluated. Hidden pixels show the "
        f"fill ({record['removal']}), which the network never saw in training."
    )


def interdependence(found: Mapping[str, Any]) -> str:
    text = (
        "How far hiding a patch at one joint (column) hurts another (row), in units of what "
        "hiding its own patch does; "
    )
    if "linkage" in found:
        text += (
            "the tree joins joints that hurt each other (average linkage, both directions "
            "and both sides of the body averaged), and frames are the clusters below the "
            "dashed cut. "
        )
    elif "capped" in found:
        text += (
            "no cut of the tree of joints gives few small clusters; frames are what merging "
            "the closest under a cap of six joints leaves. "
        )
    else:
        text += "no clusters were found in it. "
    return text + (
        "It measures this model on this data; it does not say that joints cause each other."
    )


def grouping_error(found: Mapping[str, Any]) -> str:
    return (
        "Mean absolute error of grouped values against the exact Shapley values "
        f"({found.get('exact_evaluations', 0):,} forward passes per person), per clustering "
        "and kind, with 95 % intervals; crosses of the same colour are sampling "
        "with as many passes (points of equal "
        "cost are moved apart a little). A grouped "
        "value above the crosses is no cheaper way to the Shapley value: choose it for its "
        "question, about body parts, not as an approximation."
    )
