"""`convert`: published weights -> a workdir that every other task can use; and back.

Reads `config.convert.path` (PyTorch `.pth`, `.safetensors`, or a mobile network's file) into
step 0 of the workdir and writes `conversion.json`: where the weights came from, every key
that was not needed, and how the converted network compares with the original. With
`convert.export` the workdir's weights are written under PyTorch names.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath

from pose_jax import checkpoint
from pose_jax.config import UserError, to_plain
from pose_jax.convert import files, layout, matching, mobile, parity
from pose_jax.data import under
from pose_jax.estimator import fit_variables
from pose_jax.recipe import Recipe, recipe
from pose_jax.tasks.workdir import data_root
from pose_jax.trees import fingerprint, flat_names, unflatten_names
from pose_jax.writer import read_json, say, write_json

RECORD = "conversion.json"


def run(config: Any, workdir: str) -> None:
    """Convert `config.convert.path` into the workdir, then export where that was asked for.

    Raises:
      UserError: no such file, or weights of another network than `config.model`.
    """
    section = config.convert
    if not section.path and not section.export:
        raise UserError(
            "convert.path is empty; give the file of weights: --config.checkpoint=FILE.pth "
            "(configs/convert.py) or --config.convert.path=FILE"
        )
    if section.path:
        _read(config, workdir)
    if section.export:
        export(workdir, section.export, dialect=section.dialect)


def _read(config: Any, workdir: str) -> None:
    path = _find(config.convert.path)
    record: dict[str, Any] = {"file": path.name, "sha256": _sha256(path)}
    if checkpoint.saved_steps(workdir):
        stored = read_json(epath.Path(workdir) / RECORD) or record
        if stored["sha256"] != record["sha256"]:
            raise UserError(
                f"{workdir} holds the weights of another file ({stored['file']}); use another "
                "--workdir"
            )
        say(f"{workdir} already holds the converted weights; nothing to do")
        return
    described = recipe(config)
    published = config.model.name in mobile.SIGMA_PX
    try:
        found = (_mobile if published else _torch)(config, described, path)
    except (matching.MatchError, files.FileError) as error:
        raise UserError(str(error)) from None
    variables, more = found
    record |= more
    if not record.get("backbone_only"):
        variables = fit_variables(described, variables)
    compared = record.get("parity", {})
    if compared.get("largest_difference", 0) > 1e-3 * compared.get("largest_value", 1):
        raise UserError(
            f"{path.name}: the converted network differs from {compared['source']} by "
            f"{compared['largest_difference']:.1e} ({compared['taps']}); nothing was saved. "
            "Is config.model the network of these weights?"
        )
    info = {"source": path.name, "config": to_plain(config)}
    checkpoint.save_variables(workdir, variables, info=info)
    write_json(epath.Path(workdir) / RECORD, record)
    say(f"converted {path.name} into {workdir}: {_summary(record)}")


def _find(name: str) -> Path:
    """A path as given, or below the folder of data sets."""
    here = Path(name)
    path = here if here.is_file() else under(data_root(), name)
    if not path.is_file():
        raise UserError(
            f"convert.path={name}: no such file; give its path, absolute or below "
            "POSE_JAX_DATA"
        )
    return path


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _mobile(config: Any, described: Recipe, path: Path) -> tuple[Any, dict[str, Any]]:
    family, variables = mobile.load(path)
    if family != config.model.name:
        raise UserError(
            f"{path} holds a {family!r} but config.model.name is {config.model.name!r}"
        )
    return variables, {"dialect": "tflite", "fingerprint": fingerprint(variables)}


def _torch(config: Any, described: Recipe, path: Path) -> tuple[Any, dict[str, Any]]:
    section, keypoints = config.convert, described.skeleton.num_keypoints
    shapes = described.shapes()
    converted = matching.convert(
        files.read(path), described.model, shapes, keypoints, file=path.name,
        dialect=section.dialect, backbone=section.backbone_only,
        interpolate=section.interpolate,
    )  # fmt: skip
    record: dict[str, Any] = {
        "dialect": converted.dialect,
        "backbone_only": converted.backbone,
        "arrays": len(converted.leaves),
        "not_needed": list(converted.spare),
        "interpolated": list(converted.interpolated),
    }
    if converted.backbone:
        tree = unflatten_names(_part(shapes, converted.leaves), converted.leaves)
    else:
        tree = unflatten_names(shapes, converted.leaves)
        if section.parity:
            record["parity"] = parity.report(described, tree, converted.dialect)
    record["fingerprint"] = fingerprint(tree)
    return tree, record


def _part(shapes: Any, leaves: Any) -> Any:
    """The structure of the leaves that there are."""
    if not isinstance(shapes, dict):
        return shapes
    flat = flat_names(shapes)
    nested: dict[str, Any] = {}
    for name in flat:
        if name in leaves:
            *folders, last = name.split("/")
            place = nested
            for folder in folders:
                place = place.setdefault(folder, {})
            place[last] = flat[name]
    return nested


def _summary(record: dict[str, Any]) -> str:
    parts = [f"{record['dialect']}'s names"]
    if record.get("backbone_only"):
        parts.append("a backbone; train from it with init_from.path")
    if record.get("not_needed"):
        parts.append(f"{len(record['not_needed'])} keys not needed")
    compared = record.get("parity", {})
    if compared.get("largest_difference") is not None:
        parts.append(
            f"{compared['source']}: largest difference {compared['largest_difference']:.1e}"
        )
    return ", ".join(parts)


def export(
    workdir: str, file: str, *, dialect: str = "auto", step: Any = "last"
) -> None:
    """Weights of a workdir as a `.safetensors` file under a code base's names.

    Args:
      dialect: whose names; `auto` = those that the weights came with, else the first of the
        network's.
      step: a checkpoint: `last`, `best` or a number.

    Raises:
      UserError: no run, no public code base with this network, or not a .safetensors file.
    """
    stored = read_json(epath.Path(workdir) / "config.json")
    if stored is None or not checkpoint.saved_steps(workdir):
        raise UserError(f"{workdir} holds no weights to export")
    described = recipe(stored)
    try:
        tables = matching.dialects(described.model, described.skeleton.num_keypoints)
        record = read_json(epath.Path(workdir) / RECORD) or {}
        name = dialect
        if name == "auto":
            name = record.get("dialect") or next(iter(tables), "")
        if name not in tables:
            known = ", ".join(tables) or "no public code base"
            raise UserError(
                f"convert.dialect={name!r}: this network is known to {known}"
            )
        tree, _ = checkpoint.load_variables(workdir, step)
        leaves = flat_names(jax.tree.map(np.asarray, tree))
        tensors = layout.to_torch(tables[name], leaves)
        files.write(file, tensors, format="pt", dialect=name)
    except (files.FileError, matching.MatchError) as error:
        raise UserError(str(error)) from None
    except KeyError as error:
        raise UserError(
            f"{workdir} has no {error.args[0]}: a backbone cannot be exported as {name!r}"
        ) from None
    part = " (its trunk alone)" if tables[name].backbone else ""
    say(f"exported {len(tensors)} tensors{part} under {name}'s names to {file}")
