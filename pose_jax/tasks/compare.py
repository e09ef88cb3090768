"""`compare`: the arms of a sweep against a baseline, paired by picture and seed, in one table."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from rich.console import Console
from rich.table import Table

from pose_jax.config import UserError
from pose_jax.intervals import paired_difference
from pose_jax.tasks.arrays import load_arrays
from pose_jax.tasks.evaluate import record_name
from pose_jax.tasks.sweep import Cell, make_cells
from pose_jax.writer import is_main_process, read_json, say, write_json


class Counts(NamedTuple):
    """Right joints and joints asked for, per person, `[m]`."""

    right: np.ndarray
    asked: np.ndarray


def run(config: Any, workdir: str) -> None:
    """Write `comparison.json` and print its table.

    Raises:
      UserError: the baseline is no arm, nothing is evaluated yet, or cells were evaluated on
        different people.
    """
    section = config.compare
    if section.kind == "planted":
        from pose_jax.tasks import compare_planted

        compare_planted.run(config, workdir)
        return
    if section.kind != "accuracy":
        raise UserError(f"compare.kind={section.kind!r}; use 'accuracy' or 'planted'")
    cells = list(make_cells(config, workdir))
    arms = list(dict.fromkeys(cell.arm for cell in cells))
    if section.baseline not in arms:
        raise UserError(
            f"compare.baseline={section.baseline!r} is no arm of the sweep: {', '.join(arms)}"
        )
    steps = {(c.arm, c.seed): _last_step(c) for c in cells}
    found = {(c.arm, c.seed): _errors(c, steps[c.arm, c.seed]) for c in cells}
    seeds = [
        seed
        for seed in dict.fromkeys(c.seed for c in cells)
        if all(found[arm, seed] is not None for arm in arms)
    ]
    missing = [f"{arm}, seed {seed}" for (arm, seed), e in found.items() if e is None]
    if not seeds:
        raise UserError(
            f"no seed is evaluated for every arm yet ({len(missing)} of {len(cells)} cells "
            f"lack errors/{record_name(config.evaluate, 0, None)[:-1]}*.npz); run the task sweep "
            "first"
        )
    if missing:
        say(f"not evaluated yet and left out with their seeds: {'; '.join(missing)}")
    record = compare(
        {key: e for key, e in found.items() if key[1] in seeds and e is not None},
        arms, seeds, section,
    )  # fmt: skip
    used = [c for c in cells if c.seed in seeds]
    record["protocol"] = _protocol(
        used[0], sorted({steps[c.arm, c.seed] for c in used}), seeds, section
    )
    if is_main_process():
        name = config.evaluate.name
        write_json(epath.Path(workdir) / f"comparison-{name}.json", record)
        write_json(epath.Path(workdir) / "comparison.json", record)
        show(record)
        say(f"comparison: {workdir}/comparison.json")


def compare(
    found: dict[tuple[str, int], dict[str, np.ndarray]],
    arms: list[str],
    seeds: list[int],
    section: Any,
) -> dict[str, Any]:
    """Every measure of every arm, and its difference from the baseline.

    Raises:
      UserError: two cells hold different people.
    """
    first = found[arms[0], seeds[0]]
    for (arm, seed), errors in found.items():
        if not np.array_equal(errors["id"], first["id"]):
            raise UserError(
                f"arm {arm!r}, seed {seed} was evaluated on other people; run the task "
                "evaluate of all cells with one data.eval"
            )
    groups = first["image_id"].tolist()
    measured = {key: measures(e, section.threshold) for key, e in found.items()}
    names = [
        name
        for name in measured[arms[0], seeds[0]]
        if all(name in m and m[name].asked.sum() for m in measured.values())
    ]

    def stacked(arm: str, name: str) -> tuple[np.ndarray, np.ndarray]:
        counts = [measured[arm, seed][name] for seed in seeds]
        return np.stack([c.right for c in counts]), np.stack([c.asked for c in counts])

    table: dict[str, Any] = {arm: {} for arm in arms}
    differences: dict[str, Any] = {arm: {} for arm in arms if arm != section.baseline}
    for name in names:
        base = stacked(section.baseline, name)
        for arm in arms:
            right, asked = stacked(arm, name)
            per_seed = right.sum(1) / asked.sum(1)
            table[arm][name] = {
                "mean": float(per_seed.mean()),
                "per_seed": per_seed.tolist(),
                "joints": int(asked[0].sum()),
            }
            if arm != section.baseline:
                difference = paired_difference(
                    right, asked, *base, groups, resamples=section.resamples
                )
                differences[arm][name] = dataclasses.asdict(difference)
    return {
        "baseline": section.baseline,
        "seeds": seeds,
        "people": len(groups),
        "arms": table,
        "differences": differences,
    }


def measures(errors: dict[str, np.ndarray], threshold: float) -> dict[str, Counts]:
    """PCK of all joints, of the occluded ones, and of joints that were hidden or left."""
    right, labelled = errors["error"] < threshold, errors["visible"] > 0
    found = {
        "all joints": _count(right, labelled),
        "labelled occluded": _count(right, errors["visible"] == 1),
    }
    if "occluded_error" in errors:
        right, hidden = errors["occluded_error"] < threshold, errors["occluded_hidden"]
        seen = labelled[None] & ~hidden
        found["hidden joints"] = _pooled(right, hidden)
        found["joints beside hidden ones"] = _pooled(right, seen)
        for number, count in enumerate(errors["occluded_count"]):
            found[f"hidden, {count} at a time"] = _count(right[number], hidden[number])
    return found


def _count(right, where) -> Counts:
    return Counts((right & where).sum(1), where.sum(1))


def _pooled(right, where) -> Counts:
    return Counts((right & where).sum((0, 2)), where.sum((0, 2)))


def _last_step(cell: Cell) -> int:
    """The last step that was evaluated as the cell's config says; -1 without any."""
    folder = epath.Path(cell.workdir) / "errors"
    if not folder.exists():
        return -1
    before = record_name(cell.config.evaluate, 0, None)[:-1]
    ends = [p.name.removeprefix(before).removesuffix(".npz") for p in folder.iterdir()]
    return max((int(end) for end in ends if end.isdigit()), default=-1)


def _errors(cell: Cell, step: int) -> dict[str, np.ndarray] | None:
    if step < 0:
        return None
    name = record_name(cell.config.evaluate, step, None)
    return load_arrays(epath.Path(cell.workdir) / "errors" / f"{name}.npz")


def _protocol(cell: Cell, steps: list[int], seeds: list[int], section: Any) -> str:
    results = read_json(epath.Path(cell.workdir) / "results.json", {})
    name = record_name(cell.config.evaluate, steps[-1], None)
    equal = f"step {steps[0]} of every run"
    if len(steps) > 1:
        equal = f"UNEQUAL steps {', '.join(map(str, steps))}"
    return (
        f"PCK@{section.threshold:g} of the longer box side; {len(seeds)} seeds "
        f"({', '.join(map(str, seeds))}), {equal}; paired hierarchical "
        f"bootstrap over pictures within seeds, {section.resamples} resamples; "
        + results.get(name, {}).get("protocol", name)
    )


def show(record: dict[str, Any]) -> None:
    """The table on the terminal, in per cent."""
    console = Console(width=120)
    console.print(record["protocol"], highlight=False)
    table = Table(title=f"difference from {record['baseline']!r}, points of PCK")
    for title in ("measure", "arm", "PCK", "difference", "95 %", "could have shown"):
        table.add_column(
            title, justify="left" if title in ("measure", "arm") else "right"
        )
    baseline = record["arms"][record["baseline"]]
    for name in baseline:
        table.add_row(name, record["baseline"], f"{100 * baseline[name]['mean']:.2f}")
        for arm, found in record["differences"].items():
            d = found[name]
            table.add_row(
                "", arm, f"{100 * record['arms'][arm][name]['mean']:.2f}",
                f"{100 * d['estimate']:+.2f}",
                f"{100 * d['low']:+.2f} to {100 * d['high']:+.2f}",
                f"{100 * d['smallest_effect']:.2f}",
            )  # fmt: skip
        table.add_section()
    console.print(table)
