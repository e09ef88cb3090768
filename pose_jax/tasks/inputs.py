"""Pictures and boxes that a command names: files, folders, globs, JSON."""

from __future__ import annotations

import glob
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pose_jax import video
from pose_jax.config import UserError
from pose_jax.data.images import SUFFIXES
from pose_jax.estimator import check_boxes
from pose_jax.tasks.workdir import data_root


def files(inputs: Any, task: str) -> Iterator[Path]:
    """Files of a tuple of files, folders and globs, in order.

    Raises:
      UserError: nothing there, or a folder without pictures.
    """
    known = (*SUFFIXES, *video.SUFFIXES)
    for name in (inputs,) if isinstance(inputs, str) else inputs:
        path = Path(name)
        if path.is_dir():
            found = sorted(p for p in path.iterdir() if p.suffix.lower() in known)
            if not found:
                raise UserError(
                    f"{name} holds no pictures or videos ({', '.join(known)})"
                )
        elif path.exists():
            found = [path]
        else:
            found = [Path(p) for p in sorted(glob.glob(name, recursive=True))]
            if not found:
                raise UserError(f"{task}.inputs: {name} does not exist")
        yield from found


def read_boxes(path: str, task: str) -> Mapping[str, Any] | None:
    """{file name: boxes} from JSON: such a mapping, or a COCO file with annotations."""
    if not path:
        return None
    root = data_root()
    full = Path(path) if root is None or Path(path).exists() else root / path
    try:
        content = json.loads(full.read_text())
    except FileNotFoundError:
        raise UserError(f"{task}.boxes={path}: no such file") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{task}.boxes={path} is not valid JSON ({error})") from None
    if isinstance(content, Mapping) and "annotations" in content:
        try:
            return _annotated(content)
        except (KeyError, TypeError) as error:
            raise UserError(
                f"{task}.boxes={path} is no COCO annotation file: an entry lacks {error}"
            ) from None
    if not isinstance(content, Mapping):
        raise UserError(
            f"{task}.boxes={path} must be an object {{file name: [[x, y, w, h], ...]}} or "
            "a COCO annotation file"
        )
    return content


def _annotated(content: Mapping[str, Any]) -> dict[str, list]:
    names = {row["id"]: row["file_name"] for row in content["images"]}
    boxes: dict[str, list] = {name: [] for name in names.values()}
    for row in content["annotations"]:
        if not row.get("iscrowd"):
            boxes[names[row["image_id"]]].append(row["bbox"])
    return boxes


def boxes_of(boxes: Mapping[str, Any] | None, path: Path) -> Any:
    """Boxes of one file; a picture that the file does not name has nobody."""
    if boxes is None:
        return None
    for name in (path.name, str(path), path.stem):
        if name in boxes:
            given = boxes[name]
            try:
                return given if isinstance(given, Mapping) else check_boxes(given)
            except (ValueError, TypeError) as error:
                raise UserError(f"boxes of {name}: {error}") from None
    return np.zeros((0, 4))
