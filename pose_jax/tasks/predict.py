"""`predict`: keypoints of people in pictures, folders, globs or videos, with overlays."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from pose_jax import data, video
from pose_jax.data.images import read_image
from pose_jax.estimator import Estimator, Pose
from pose_jax.report import drawings
from pose_jax.tasks import inputs
from pose_jax.tasks.workdir import data_root
from pose_jax.writer import ProgressBar, is_main_process, say, write_json


def run(config: Any, workdir: str) -> None:
    """Predict `config.predict.inputs`; without inputs, a few people of `config.data.eval`.

    Writes `predict/<name>/poses.json`, an overlay per picture or video, and a sheet.
    """
    section = config.predict
    estimator = Estimator.load(
        workdir,
        checkpoint_name=section.checkpoint,
        flip_test=section.flip_test,
        batch=section.batch,
    )
    if not is_main_process():  # Every process may load; one writes.
        return
    folder = epath.Path(workdir) / section.name
    folder.mkdir(parents=True, exist_ok=True)
    boxes = inputs.read_boxes(section.boxes, "predict")
    if not section.inputs:
        records = _examples(config, estimator, folder)
    else:
        files = list(inputs.files(section.inputs, "predict"))
        records, used = [], set()
        with ProgressBar(len(files), "predict") as bar:
            for n, path in enumerate(files):
                if path.suffix.lower() in video.SUFFIXES:
                    records.append(
                        _video(estimator, path, boxes, folder, section, used)
                    )
                else:
                    records.append(
                        _picture(estimator, path, boxes, folder, section, used)
                    )
                bar.update(n + 1)
    write_json(
        folder / "poses.json",
        {"skeleton": list(estimator.skeleton.keypoints), "files": records},
    )
    people = sum(len(r.get("people", ())) for r in records)
    if any(r.get("whole_image") for r in records):
        say(
            "no boxes were given for some pictures: each was taken as one person filling "
            "the picture (predict.boxes=FILE.json gives boxes)"
        )
    say(f"{people} people in {len(records)} files: {folder}")


def _examples(config: Any, estimator: Estimator, folder) -> list[dict[str, Any]]:
    """A few people of the evaluation data, with their ground-truth boxes."""
    source = data.open_source(
        config.data.eval, root=data_root(), skeleton=config.skeleton
    )
    rows = np.linspace(0, len(source) - 1, min(config.predict.count, len(source)))
    records, tiles = [], []
    for row in rows.astype(int):
        person, image = source.person(int(row)), source.image(int(row))
        pose = estimator.predict_crops(image, person.box[None])
        records.append({"file": person.file_name, **to_record(pose)})
        tiles.append(overlay(image, pose, config.predict.threshold))
    drawings.write_image(folder / "sheet.png", drawings.contact_sheet(tiles))
    return records


def _picture(estimator, path: Path, boxes, folder, section, used) -> dict[str, Any]:
    image = read_image(path, honour_exif=True)
    given = inputs.boxes_of(boxes, path)
    pose = estimator.predict(image, given)
    target = _fresh(folder, path, ".png", used)
    drawings.write_image(target, overlay(image, pose, section.threshold))
    return {"file": str(path), "overlay": target.name, **to_record(pose)}


def _video(estimator, path: Path, boxes, folder, section, used) -> dict[str, Any]:
    """One list of people per frame, and the video with its skeletons."""
    given = inputs.boxes_of(boxes, path)
    frames: list[dict[str, Any]] = []
    people = 0

    def drawn() -> Iterator[np.ndarray]:
        nonlocal people
        for number, frame in enumerate(video.read_frames(path)):
            per_frame = (
                given.get(str(number), []) if isinstance(given, Mapping) else given
            )
            pose = estimator.predict(frame.image, per_frame)
            people += len(pose)
            frames.append({"time": frame.time, **to_record(pose)})
            yield overlay(frame.image, pose, section.threshold)

    target = _fresh(folder, path, ".mp4", used)
    rate = video.frame_rate(path)
    if "://" not in str(target):
        video.write_frames(Path(target), drawn(), rate=rate)
    else:  # Containers are written with seeks, which buckets lack: made here, then copied.
        with tempfile.TemporaryDirectory() as scratch:
            local = Path(scratch) / target.name
            video.write_frames(local, drawn(), rate=rate)
            with local.open("rb") as made, target.open("wb") as kept:
                shutil.copyfileobj(made, kept)
    return {
        "file": str(path),
        "overlay": target.name,
        "frames": frames,
        "whole_image": given is None,
    }


def _fresh(folder, path: Path, suffix: str, used: set[str]):
    """A name for an overlay that no other file of this run has taken."""
    name, number = path.stem + suffix, 1
    while name in used:
        number += 1
        name = f"{path.stem}-{number}{suffix}"
    used.add(name)
    return folder / name


def overlay(image: np.ndarray, pose: Pose, threshold: float) -> np.ndarray:
    """The picture with skeletons; boxes where they were given.

    Opacity is a joint's score relative to the surest one of the picture, and never less than
    a third: how high a sure peak is differs from network to network.
    """
    scores = pose.keypoint_scores
    shade = scores / max(float(scores.max(initial=0.0)), 1e-6)
    return drawings.draw_pose(
        image,
        pose.keypoints,
        pose.skeleton,
        scores=np.where(scores >= threshold, 0.35 + 0.65 * shade, -1.0),
        boxes=None if pose.whole_image else pose.boxes,
        threshold=0.0,
    )


def to_record(pose: Pose) -> dict[str, Any]:
    """People of one picture as JSON: keypoints (x, y, score), score, box."""
    return {
        "whole_image": pose.whole_image,
        "people": [
            {
                "keypoints": np.concatenate(
                    [pose.keypoints[n], pose.keypoint_scores[n][:, None]], axis=1
                )
                .round(3)
                .tolist(),
                "score": round(float(pose.score[n]), 4),
                "box": pose.boxes[n].round(2).tolist(),
            }
            for n in range(len(pose))
        ],
    }
