"""Who is explained: people of a data set, or of pictures that the command names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from pose_jax import data, geometry, video
from pose_jax.config import UserError
from pose_jax.data.images import read_image
from pose_jax.data.pipeline import crop_matrix, to_skeleton
from pose_jax.explain.explainer import Crops
from pose_jax.recipe import Recipe
from pose_jax.tasks import inputs
from pose_jax.tasks.workdir import data_root


class Subject(NamedTuple):
    """One person to explain.

    Attributes:
      id: unique within the run. image: what groups people of one picture. row: of the source.
      name: of the picture, for readers.
    """

    id: str
    image: str
    name: str
    row: int
    box: Any


class People:
    """People by number; `labelled` says whether keypoints and areas come along."""

    def __init__(self, recipe: Recipe, subjects: list[Subject], source: Any, name: str):
        self._recipe, self._source = recipe, source
        self.subjects, self.name = subjects, name
        self.labelled = source is not None

    def __len__(self) -> int:
        return len(self.subjects)

    @property
    def groups(self) -> list[str]:
        """The picture of every person: the unit of resampling."""
        return [s.image for s in self.subjects]

    def labels(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Keypoints `[k, 2]` (image pixels) and visibility `[k]` of a labelled person."""
        person = self._source.person(self.subjects[number].row)
        person = to_skeleton(person, self._source.skeleton, self._recipe.skeleton)
        return person.keypoints, person.visible

    def crops(self, numbers: Sequence[int], *, other: bool = False) -> Crops:
        """The crops of these people.

        Args:
          other: with the crop of somebody half the list away, for `removal='other'`.
        """
        cut = [self._one(n) for n in numbers]
        images, matrices, boxes, points, visible, areas = zip(*cut)
        others = None
        if other:
            if len(self) < 2:
                raise UserError("removal 'other' takes its pixels from somebody else")
            half = max(len(self) // 2, 1)
            others = np.stack([self._one((n + half) % len(self))[0] for n in numbers])
            others = others.astype(np.float32)
        labels: dict[str, Any] = {}
        if self.labelled:
            labels = dict(
                keypoints=np.stack(points),
                visible=np.stack(visible),
                areas=np.array(areas),
            )
        return Crops(
            np.stack(images),
            np.stack(matrices),
            np.stack(boxes),
            others=others,
            whole_image=not self.labelled
            and all(self.subjects[n].box is None for n in numbers),
            **labels,
        )

    def _one(self, number: int):
        subject, view = self.subjects[number], self._recipe.view
        size = view.spec.size
        if self._source is None:
            image = read_image(subject.name, honour_exif=True)
            box = subject.box
            if box is None:
                box = np.array([0.0, 0.0, image.shape[1], image.shape[0]])
            matrix = geometry.crop_matrix(
                box,
                size,
                padding=view.spec.padding,
                unit=view.unit,
                area=view.spec.area,
            )
            return geometry.warp(image, matrix, size), matrix, box, None, None, None
        person = self._source.person(subject.row)
        person = to_skeleton(person, self._source.skeleton, view.skeleton)
        matrix = crop_matrix(person, view)
        crop = geometry.warp(self._source.image(subject.row), matrix, size)
        points = geometry.transform(person.keypoints, matrix)
        return crop, matrix, person.box, points, person.visible, person.area


def open_people(config: Any, recipe: Recipe) -> People:
    """The people of `config.explain`: its pictures, else people evenly spread over data.eval.

    Raises:
      UserError: no people, no such picture, boxes that cannot be read.
    """
    section = config.explain
    if section.inputs:
        return _from_pictures(section, recipe)
    source = data.open_source(
        config.data.eval, root=data_root(), skeleton=config.skeleton
    )
    labelled = [
        row
        for row in range(len(source))
        if (
            to_skeleton(source.person(row), source.skeleton, recipe.skeleton).visible
            > 0
        ).any()
    ]
    if not labelled:
        raise UserError(
            f"nobody in {source.name} has a keypoint of skeleton {recipe.skeleton.name!r}"
        )
    count = min(section.count or len(labelled), len(labelled))
    picked = np.linspace(0, len(labelled) - 1, count).round().astype(int)
    subjects = []
    for row in (labelled[i] for i in picked):
        person = source.person(row)
        subjects.append(
            Subject(str(person.id), str(person.image_id), person.file_name, row, None)
        )
    return People(recipe, subjects, source, source.name)


def _from_pictures(section: Any, recipe: Recipe) -> People:
    boxes = inputs.read_boxes(section.boxes, "explain")
    subjects = []
    for path in inputs.files(section.inputs, "explain"):
        if path.suffix.lower() in video.SUFFIXES:
            raise UserError(f"explain.inputs: {path} is a video; name pictures")
        given = inputs.boxes_of(boxes, path)
        listed = [None] if given is None else list(given)
        for n, box in enumerate(listed):
            subjects.append(Subject(f"{path}#{n}", str(path), str(path), -1, box))
    if not subjects:
        raise UserError(
            "explain.boxes names nobody in these pictures: nothing to explain"
        )
    return People(recipe, subjects, None, "pictures")
