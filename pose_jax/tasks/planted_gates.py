"""Did the network learn what was planted? Read from its reactions, target by target.

A target that fails is "not learned": its explanations have no truth to be scored against. The
rules follow the accuracy, follow, null and necessity gates of the planted-cause design; their
pixels are of a 96-pixel crop. Where the planted region is the background's line, which decides
no label, nothing is demanded: how far the network follows it is the result.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from pose_jax.data.worlds import BACKGROUND, REGIONS, SKELETON, World, WorldSource
from pose_jax.explain import planted
from pose_jax.intervals import ratio_interval
from pose_jax.tasks.arrays import plain

MEDIAN_PX, WITHIN_PX, WITHIN = 3.0, 4.0, 0.8
OTHERS_PX = 1.5
DECOY_PX, DECOY_MASS = 0.5, 0.05
NECESSITY = 0.5
LOWER = 0.1
"""How far the lower end of the interval of F may lie below the demanded value."""

_DECOY = REGIONS.index("decoy")


def null_regions(world: World) -> np.ndarray:
    """`[r]` regions whose redrawing should do nothing: halves of the background, the torso's
    colour, and the decoy where it says nothing."""
    means = {name for causes in world.causes.values() for name in causes}
    names = {*BACKGROUND, "torso", "decoy"} - means
    return np.array([name in names for name in REGIONS])


def check(arrays: dict[str, np.ndarray], source: WorldSource) -> dict[str, Any]:
    """The gates of every target of the world, plain numbers and reasons.

    Args:
      arrays: of `planted.measure`.
    """
    world, scale = source.rules, source.size / 96
    error = np.linalg.norm(arrays["points"] - arrays["truth"], axis=-1)
    names = SKELETON.keypoints
    targets = {
        name: _target(arrays, name, error[:, SKELETON.index(name)], source)
        for name in world.causes
    }
    others = [k for k, name in enumerate(names) if name not in world.causes]
    median = float(np.median(error[:, others]))
    record: dict[str, Any] = {
        "targets": targets,
        "others_median_px": round(median, 4),
        "others_limit_px": round(OTHERS_PX * scale, 4),
    }
    seen = median <= OTHERS_PX * scale
    if not seen:
        for gate in targets.values():
            gate["failed"].append(
                f"the other joints are {median:.2f} px off (at most {OTHERS_PX * scale:.2f})"
            )
    for gate in targets.values():
        gate["learned"] = not gate["failed"] and not gate["control"]
    record["learned"] = any(gate["learned"] for gate in targets.values())
    return record


def _target(arrays, name: str, error, source: WorldSource) -> dict[str, Any]:
    world, scale = source.rules, source.size / 96
    k = SKELETON.index(name)
    found: dict[str, Any] = {
        "control": name not in world.planted,
        "planted": world.planted.get(name),
        "median_px": round(float(np.median(error)), 4),
        "within": round(float((error <= WITHIN_PX * scale).mean()), 4),
        "failed": [],
    }
    shift = planted.defined_mean(arrays["shift"][..., k], 2)
    found["shift_px"] = dict(zip(REGIONS, plain(planted.defined_mean(shift))))
    for key in ("mass", "removal"):
        found[key] = dict(
            zip(REGIONS, plain(planted.defined_mean(arrays[key][..., k])))
        )
    if found["control"]:
        return found
    region = REGIONS.index(world.planted[name])
    line = world.planted[name] == "line"
    value, interval = _follow(arrays, region, k, line)
    found.update(follow=round(value, 4), follow_interval=plain(np.array(interval)))
    if line:
        return found
    failed = found["failed"]
    if found["median_px"] > MEDIAN_PX * scale or found["within"] < WITHIN:
        failed.append(
            f"{found['median_px']:.2f} px off in the middle and {found['within']:.0%} within "
            f"{WITHIN_PX * scale:.2f} px (wanted {MEDIAN_PX * scale:.2f} px, {WITHIN:.0%})"
        )
    if value < world.follow or interval[0] < world.follow - LOWER:
        failed.append(
            f"follows the {world.planted[name]} by {value:.2f} "
            f"({interval[0]:.2f}-{interval[1]:.2f}; wanted {world.follow:.2f})"
        )
    if null_regions(world)[_DECOY]:
        decoy = found["shift_px"]["decoy"], found["mass"]["decoy"]
        if decoy[0] > DECOY_PX * scale * 2 or decoy[1] > DECOY_MASS:
            failed.append(
                f"moves by {decoy[0]:.2f} px, mass {decoy[1]:.3f}, with the decoy (at most "
                f"{DECOY_PX * scale * 2:.2f} px, {DECOY_MASS})"
            )
    necessary = found["removal"][world.planted[name]]
    if necessary < NECESSITY and world.follow >= 0.5 and not world.turned:
        failed.append(
            f"loses {necessary:.2f} of its score without the {world.planted[name]} (wanted "
            f"{NECESSITY})"
        )
    return found


def _follow(arrays, region: int, k: int, line: bool):
    moves = arrays["moves"][:, region, :, k][:, :, None]
    labels = arrays["labels"][:, region, :, k][:, :, None]
    if line:  # Up and down with the line, whatever the label says.
        labels = np.stack([np.zeros_like(arrays["line"]), arrays["line"]], -1)
        labels = labels[:, region][:, :, None]
    top, bottom = planted.follow(moves, labels)
    value = float(top.sum() / max(bottom.sum(), 1e-12))
    interval = ratio_interval(top[:, 0], bottom[:, 0], list(range(len(top))))
    return value, interval


def show(record: dict[str, Any]) -> None:
    """Prints the gates as a table."""
    table = Table("joint", "planted", "median px", "follows", "gate")
    for name, gate in record["targets"].items():
        follows = "" if "follow" not in gate else f"{gate['follow']:.2f}"
        state = "learned" if gate["learned"] else "; ".join(gate["failed"]) or "control"
        table.add_row(
            name, gate["planted"] or "", f"{gate['median_px']:.2f}", follows, state
        )
    Console(width=110, stderr=False).print(table)
