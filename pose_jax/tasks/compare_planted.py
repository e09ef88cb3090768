"""`compare` of planted causes: which explainer can be trusted, for what?

Reads `planted/` of every cell of the sweep (arms are worlds) and writes `planted.json`: per
world, target and explainer the mean over seeds with an interval (seeds, then pictures), the
plain values of every seed, and how much was undefined. Networks that did not learn their
world are counted and not scored.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from etils import epath
from rich.console import Console
from rich.table import Table

from pose_jax.config import UserError
from pose_jax.explain import planted
from pose_jax.intervals import hierarchical_interval
from pose_jax.tasks import planted as planted_task
from pose_jax.tasks.arrays import load_arrays, plain
from pose_jax.tasks.planted_scores import score_all
from pose_jax.tasks.sweep import make_cells
from pose_jax.writer import is_main_process, read_json, say, write_json

SCORES = (
    "recovery", "rank_correlation", "top", "foreign_top", "share_error",
    "calibrated_error_px", "false_cause", "marker_over_decoy",
)  # fmt: skip
CHANCE = {
    "recovery": 0.5, "rank_correlation": 0.0, "false_cause": 0.5, "marker_over_decoy": 0.5,
}  # fmt: skip


def run(config: Any, workdir: str) -> None:
    """Write `planted.json` and print its tables.

    Raises:
      UserError: no cell is finished yet.
    """
    cells: dict[str, dict[int, Any]] = {}
    missing = []
    for cell in make_cells(config, workdir):
        folder = epath.Path(cell.workdir) / "planted"
        stored = read_json(folder / "planted.json")
        if stored is None:
            missing.append(f"{cell.arm}, seed {cell.seed}")
            continue
        cells.setdefault(cell.arm, {})[cell.seed] = read_cell(cell, folder, stored)
    if not cells:
        raise UserError("no world is finished yet; run the task sweep first")
    if missing:
        say(f"not finished yet and left out: {'; '.join(missing)}")
    record = {
        "worlds": {
            arm: summarise(found, config.compare.resamples)
            for arm, found in cells.items()
        },
        "protocol": next(iter(next(iter(cells.values())).values()))["protocol"],
        "chance": CHANCE,
    }
    if not is_main_process():
        return
    write_json(epath.Path(workdir) / "planted.json", record)
    show(record)
    say(f"which explanation can be trusted: {workdir}/planted.json")


def read_cell(cell: Any, folder: Any, stored: dict[str, Any]) -> dict[str, Any]:
    """Gates and `{explainer: {score: [m, t]}}` of one network.

    Raises:
      UserError: a damaged file.
    """
    source = planted_task.open_world(
        read_json(epath.Path(cell.workdir) / "config.json"), cell.config.planted
    )
    found = {
        f"{path.stem}-{way}": values
        for path in sorted((folder / "explainers").glob("*.npz"))
        for way, values in load_arrays(path).items()
    }
    gates = stored["gates"]
    scores: dict[str, Any] = {}
    if gates["learned"] and found:
        scores = score_all(found, load_arrays(folder / "truth.npz"), source, gates)
    return {
        "gates": gates, "scores": scores, "joints": list(source.rules.causes),
        "title": stored["title"], "protocol": stored["protocol"],
    }  # fmt: skip


def summarise(cells: dict[int, dict[str, Any]], resamples: int) -> dict[str, Any]:
    """One world: gates of every seed, and every explainer's scores over seeds."""
    first = next(iter(cells.values()))
    joints = first["joints"]
    learned = {
        joint: [s for s, c in cells.items() if c["gates"]["targets"][joint]["learned"]]
        for joint in joints
    }
    scored = {seed: cell["scores"] for seed, cell in cells.items() if cell["scores"]}
    table: dict[str, Any] = {}
    names = sorted(
        set.intersection(*(set(s) for s in scored.values())) if scored else []
    )
    for name in names:
        table[name] = {}
        for score in SCORES:
            values = np.stack([scored[seed][name][score] for seed in scored])
            low, high = hierarchical_interval(values, resamples=resamples)
            count = np.isfinite(values).sum(1)
            per_seed = planted.defined_mean(values, 1)
            mean = planted.defined_mean(per_seed)
            table[name][score] = {
                joint: {
                    "mean": plain(mean)[t], "low": plain(low)[t], "high": plain(high)[t],
                    "per_seed": plain(per_seed[:, t]),
                    "undefined": round(float(1 - count[:, t].mean() / values.shape[1]), 4),
                }
                for t, joint in enumerate(joints)
            }  # fmt: skip
    gates = {str(seed): cell["gates"] for seed, cell in cells.items()}
    return {
        "title": first["title"], "seeds": list(cells), "learned": learned,
        "gates": gates, "explainers": table,
    }  # fmt: skip


def show(record: dict[str, Any]) -> None:
    """Prints one table per world: recovery AUC per target, best first."""
    for name, world in record["worlds"].items():
        joints = [joint for joint, seeds in world["learned"].items() if seeds]
        total = len(world["seeds"])
        states = ", ".join(
            f"{joint} {len(seeds)} of {total}"
            for joint, seeds in world["learned"].items()
        )
        title = f"{name}: {world['title']}\nlearned: {states}"
        if not joints or not world["explainers"]:
            say(f"{title}\nnothing to score")
            continue
        table = Table(
            "explainer", *(f"{j}: AUC" for j in joints), "false cause", title=title
        )

        ranked = sorted(
            world["explainers"].items(), key=lambda item: -_average(item[1], joints)
        )
        for explainer, scores in ranked:
            cells = [_cell(scores["recovery"][joint]) for joint in joints]
            fooled = [scores["false_cause"][j]["mean"] for j in joints]
            fooled = [v for v in fooled if v is not None]
            cells.append(f"{np.mean(fooled):.2f}" if fooled else "")
            table.add_row(explainer, *cells)
        Console(width=140).print(table)


def _average(scores: dict[str, Any], joints: list[str]) -> float:
    """Recovery over the targets that have one; -1 without any."""
    found = [scores["recovery"][joint]["mean"] for joint in joints]
    found = [v for v in found if v is not None]
    return float(np.mean(found)) if found else -1.0


def _cell(entry: dict[str, Any]) -> str:
    if entry["mean"] is None:
        return "undefined"
    ends = "" if entry["low"] is None else f" ({entry['low']:.2f}-{entry['high']:.2f})"
    return f"{entry['mean']:.2f}{ends}"
