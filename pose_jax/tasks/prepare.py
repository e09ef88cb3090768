"""`prepare`: a data set once through, into a form that trains faster.

`crops` cuts every person out of any source (see `pose_jax.data.crops`); `tfds` packs a COCO
data set with TensorFlow Datasets (see `pose_jax.data.tfds_coco`). Both write beside and
rename, so what stands at `prepare.path` is complete. An interrupted `crops` continues.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from pose_jax import data
from pose_jax.config import UserError, flatten, to_plain
from pose_jax.data import crops
from pose_jax.data.people_table import load_table
from pose_jax.tasks.crops_store import write_store
from pose_jax.tasks.workdir import data_root
from pose_jax.writer import ProgressBar, read_json, say


def run(config: Any, workdir: str) -> None:
    """Prepare `config.prepare.source` at `config.prepare.path`.

    Raises:
      UserError: no path or unknown format, or another data set at that path.
      DataError: faulty annotations, or more than 1 % unreadable pictures.
    """
    section = config.prepare
    if section.format not in ("crops", "tfds"):
        raise UserError(f"prepare.format is {section.format!r}; use crops or tfds")
    if not section.path:
        raise UserError("set config.prepare.path to the folder that shall be written")
    if jax.process_count() > 1:
        raise UserError("prepare data in one process, before the distributed run")
    path = data.under(data_root(), section.path)
    if section.format == "tfds":
        _tfds(config, path)
    else:
        _crops(config, path)


def _settings(config: Any, *names: str) -> dict[str, Any]:
    """What makes a prepared data set what it is, as JSON holds it."""
    section = config.prepare
    settings = {name: section[name] for name in names}
    settings["source"] = to_plain(section.source)
    if section.source.name == "figures":  # The others have their own.
        settings["skeleton"] = config.skeleton
    annotations = data.under(data_root(), section.source.path)
    if section.source.path and annotations.is_file():
        digest = hashlib.sha256(annotations.read_bytes()).hexdigest()
        settings["annotations_sha256"] = digest
    return json.loads(json.dumps(settings))


def _already(path: Path, stored: Any, settings: dict[str, Any], people: int) -> None:
    """Say that it is done, or refuse to replace it by something else.

    Raises:
      UserError: prepared with other settings (every difference is listed).
    """
    old, new = flatten(stored), flatten(settings)
    lines = [
        f"  {key}: stored {old.get(key)!r}, asked for {new.get(key)!r}"
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
    ]
    if lines:
        raise UserError(
            f"{path} was prepared with other settings:\n"
            + "\n".join(lines)
            + "\nuse another prepare.path, or delete that folder"
        )
    say(f"already prepared: {people} people at {path}")


def _crops(config: Any, path: Path) -> None:
    section = config.prepare
    cutting = crops.CropSettings(section.crop_side_px, section.margin, section.quality)
    settings = _settings(config, "crop_side_px", "margin", "quality")
    if path.exists():
        index = crops.read_index(path)
        _already(path, index["settings"], settings, index["people"])
        return
    _note_detail(config, cutting)
    source = data.open_source(
        section.source, root=data_root(), skeleton=config.skeleton
    )
    count = write_store(source, path, cutting, settings)
    size = sum(file.stat().st_size for file in path.iterdir()) / 2**20
    say(f"prepared: {count} people, {size:.1f} MiB at {path}")


def _note_detail(config: Any, cutting: crops.CropSettings) -> None:
    """Tell when the crops hold less detail than the network of this config would see."""
    needed = max(config.input.size) * cutting.margin / config.input.padding
    if cutting.side_px < needed:
        say(
            f"note: input.size={tuple(config.input.size)} can show more detail than crops "
            f"of {cutting.side_px} px hold; prepare.crop_side_px={int(np.ceil(needed))} "
            "keeps all of it"
        )


def _tfds(config: Any, path: Path) -> None:
    section = config.prepare.source
    if section.name != "coco":
        raise UserError(
            f"prepare.format='tfds' packs a COCO-format data set, not {section.name!r}; "
            "use prepare.source.name='coco', or prepare.format='crops'"
        )
    if section.crop or section.weights:
        raise UserError(
            "prepare.format='tfds' keeps whole pictures, without prepare.source.crop and "
            ".weights; give these to data.train.source instead"
        )
    # Slow to import, and needed here alone.
    import tensorflow_datasets as tfds

    from pose_jax.data import tfds_coco

    settings = _settings(config)
    folder = tfds_coco.dataset_folder(path)
    if folder.exists():
        stored = read_json(folder / "metadata.json", {}).get("settings", {})
        people = len(load_table(folder / tfds_coco.TABLE))
        _already(path, stored, settings, people)
        return
    tfds.disable_progress_bar()
    builder = tfds_coco.CocoKeypoints(
        data.under(data_root(), section.path),
        data.under(data_root(), section.images),
        filters=data.filters_of(section),
        settings=settings,
        data_dir=str(path),
    )
    with ProgressBar(len(builder.pictures), "prepare") as bar:
        builder.report = bar.update
        builder.download_and_prepare()
    for reason in builder.unreadable.values():
        say(f"left out: {reason}")
    say(f"prepared: {len(builder.table())} people at {folder}")
