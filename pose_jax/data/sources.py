"""Random-access sources of people: a record per person, its picture on demand."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int, UInt8

from pose_jax import skeletons
from pose_jax.data import checks
from pose_jax.data.images import read_image

AREA_OF_BOX = 0.53
"""Median ratio of segmentation to box area of COCO people; used where no area is given."""

NO_VISIBLE = "without visible keypoints"
"""Why people are dropped under `Filters.labels = "visible"`."""

_ALIASES = {
    "upper_neck": "neck", "head_bottom": "neck", "top_head": "head_top",
    "head": "head_top",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Person:
    """One annotated person.

    Attributes:
      id, image_id: as in the annotation file.
      file_name: the picture's name, for messages.
      box: x, y, width, height in image pixels.
      keypoints: `[k, 2]` (x, y); zeros where not labelled.
      visible: `[k]` 0 not labelled, 1 occluded, 2 visible.
      area: segmentation area in square pixels (or its estimate), for OKS.
      box_score: confidence of a detected box, 1 for ground truth.
      head_size: 0.6 x diagonal of the head rectangle in pixels (MPII), else NaN.
      weight: factor of the person in the loss.
    """

    id: int
    image_id: int
    file_name: str
    box: Float[np.ndarray, "4"]
    keypoints: Float[np.ndarray, "k 2"]
    visible: Int[np.ndarray, "k"]
    area: float
    box_score: float = 1.0
    head_size: float = float("nan")
    weight: float = 1.0


@runtime_checkable
class Source(Protocol):
    """People by row. `dropped` counts who was left out, by reason."""

    name: str
    skeleton: skeletons.Skeleton

    @property
    def dropped(self) -> Mapping[str, int]: ...

    def __len__(self) -> int: ...

    def person(self, row: int) -> Person: ...

    def image(self, row: int) -> UInt8[np.ndarray, "h w 3"]: ...


@dataclasses.dataclass(frozen=True)
class Filters:
    """Who is used.

    Attributes:
      min_keypoints: labelled keypoints at least.
      min_side_px: longer side of the box at least, pixels.
      min_height_px: height of the box at least, pixels.
      limit: at most this many people (0 = all).
      part: `all`, or `train`/`held_out` of a carved split.
      holdout: share of pictures (or people) in `held_out`.
      holdout_unit: what the split shares out, `image` or `person`. By `person`, other
        people of the same picture lie on the other side, with overlapping crops.
      labels: `all`, or `visible`: occluded joints (v = 1) count as not labelled.
    """

    min_keypoints: int = 1
    min_side_px: float = 0.0
    min_height_px: float = 0.0
    limit: int = 0
    part: str = "all"
    holdout: float = 0.0
    holdout_unit: str = "image"
    labels: str = "all"

    def __post_init__(self):
        for field, known in (
            ("holdout_unit", ("image", "person")),
            ("labels", ("all", "visible")),
        ):
            if getattr(self, field) not in known:
                raise ValueError(
                    f"{field} is {getattr(self, field)!r}; use {' or '.join(known)}"
                )
        if self.part not in ("all", "train", "held_out"):
            raise ValueError(f"part is {self.part!r}; use all, train or held_out")
        if self.part != "all" and not 0 < self.holdout < 1:
            raise ValueError(f"part={self.part!r} needs 0 < holdout < 1")

    def in_part(self, image_id: Any, person_id: Any = None) -> bool:
        """Whether a person of a picture belongs to the part; depends on one id alone:
        the picture's, or with `holdout_unit="person"` the person's."""
        if self.part == "all":
            return True
        unit = person_id if self.holdout_unit == "person" else image_id
        digest = hashlib.sha256(str(unit).encode()).digest()
        held_out = int.from_bytes(digest[:4], "big") / 2**32 < self.holdout
        return held_out == (self.part == "held_out")

    def usable(self, visible: Int[np.ndarray, "*b"]) -> Int[np.ndarray, "*b"]:
        """Visibility (0, 1, 2) of the labels that are used."""
        return np.where(visible == 2, 2, 0) if self.labels == "visible" else visible

    def reason(self, keypoints: int, side_px: float, height_px: float) -> str | None:
        """Why somebody with so many labelled keypoints and such a box is left out."""
        if keypoints == 0 and self.labels == "visible":
            return NO_VISIBLE
        if keypoints < self.min_keypoints:
            return f"with fewer than {self.min_keypoints} keypoints"
        if side_px < self.min_side_px:
            return f"smaller than {self.min_side_px:g} px"
        if height_px < self.min_height_px:
            return f"less than {self.min_height_px:g} px high"
        return None

    def relabel(self, person: Person) -> Person:
        """The person with the labels that are used; the others are zero."""
        if self.labels == "all":
            return person
        visible = self.usable(person.visible)
        keypoints = np.where(visible[:, None] > 0, person.keypoints, 0.0)
        return dataclasses.replace(person, keypoints=keypoints, visible=visible)

    def select(
        self, people: Iterable[Person], dropped: Counter[str], name: str
    ) -> list[Person]:
        """The people that pass; the others are counted in `dropped`.

        Raises:
          DataError: nobody is left.
        """
        kept = []
        for person in people:
            person = self.relabel(person)
            labelled = int((person.visible > 0).sum())
            height = float(person.box[3])
            reason = self.reason(labelled, float(person.box[2:].max()), height)
            if reason:
                dropped[reason] += 1
            else:
                kept.append(person)
        if self.limit:
            kept = kept[: self.limit]
        checks.require_some(len(kept), dropped, name)
        return kept


@dataclasses.dataclass
class PeopleSource:
    """People in memory, pictures on disk."""

    name: str
    skeleton: skeletons.Skeleton
    people: Sequence[Person]
    images: Path
    dropped: Mapping[str, int]
    ground_truth: Mapping[str, Any] | None = None
    """The COCO-format file, when there is one: scores count its ignored people too."""

    def __len__(self) -> int:
        return len(self.people)

    def person(self, row: int) -> Person:
        return self.people[row]

    def path(self, row: int) -> Path:
        return self.images / self.people[row].file_name

    def image(self, row: int) -> UInt8[np.ndarray, "h w 3"]:
        return read_image(self.path(row))

    def with_detections(self, detections: Sequence[Mapping[str, Any]]) -> PeopleSource:
        """The same pictures with detected boxes: one row per detection, no labels.

        Args:
          detections: COCO result rows `image_id, bbox (xywh), score`.

        Raises:
          DataError: a row without box or of an unknown picture; nothing detected.
        """
        truth = self.ground_truth or {}
        names = {i["id"]: i["file_name"] for i in truth.get("images", ())}
        k, people = self.skeleton.num_keypoints, []
        for row, found in enumerate(detections):
            if found.get("category_id", 1) != 1:
                continue
            box = np.asarray(found.get("bbox", ()), float)
            if box.shape != (4,) or not np.isfinite(box).all():
                raise checks.DataError(
                    f"detection {row} has no finite bbox [x, y, width, height]"
                )
            if found.get("image_id") not in names:
                raise checks.DataError(
                    f"detection {row} is of image {found.get('image_id')}, which "
                    f"{self.name} does not list"
                )
            if box[2] <= 0 or box[3] <= 0:
                continue
            people.append(
                Person(
                    id=row,
                    image_id=found["image_id"],
                    file_name=names[found["image_id"]],
                    box=box,
                    keypoints=np.zeros((k, 2)),
                    visible=np.zeros(k, int),
                    area=float(AREA_OF_BOX * box[2] * box[3]),
                    box_score=float(found.get("score", 1.0)),
                )
            )
        checks.require_some(len(people), {}, "the detections file")
        return dataclasses.replace(self, people=people)


def coco(
    path: str | Path,
    images: str | Path,
    *,
    filters: Filters | None = None,
    area_source: str = "annotation",
    need_area: bool = False,
) -> PeopleSource:
    """COCO-format keypoints of any skeleton.

    Crowds and people without labelled keypoints are dropped and counted. `area_source` is
    `annotation` (segmentation area) or `box` (0.53 x width x height).

    Raises:
      DataError: a fault in the file, named with its ids, or nobody left.
    """
    filters = filters or Filters()
    name = str(path)
    dataset = _read(path)
    checks.check_coco(dataset, name)
    skeleton = skeleton_of(dataset, name)
    files = {row["id"]: row["file_name"] for row in dataset["images"]}
    people: list[Person] = []
    dropped: Counter[str] = Counter()
    for annotation in dataset["annotations"]:
        if not filters.in_part(annotation["image_id"], annotation["id"]):
            continue
        labels = annotation.get("keypoints") or ()
        if annotation.get("iscrowd"):
            dropped["crowd"] += 1
        elif not any(v > 0 for v in labels[2::3]):
            dropped["without labelled keypoints"] += 1
        else:
            need = need_area and area_source == "annotation"
            checks.check_person(annotation, skeleton, name, need_area=need)
            people.append(_person(annotation, files, area_source))
    people = filters.select(people, dropped, name)
    dataset = _restrict(dataset, filters)
    return PeopleSource(name, skeleton, people, Path(images), dropped, dataset)


def narrow(source: PeopleSource, filters: Filters) -> PeopleSource:
    """The people of an opened source that pass further filters, with the labels that these
    use, in its file too. Boxes stay; `part` is for openers.

    Raises:
      DataError: nobody is left; the reasons are counted in `dropped`.
    """
    dropped, truth = Counter(source.dropped), source.ground_truth
    people = filters.select(source.people, dropped, source.name)
    if truth is not None:
        truth = _restrict(truth, dataclasses.replace(filters, part="all"))
    return dataclasses.replace(
        source, people=people, dropped=dropped, ground_truth=truth
    )


def skeleton_of(dataset: Mapping[str, Any], name: str) -> skeletons.Skeleton:
    """The registered skeleton whose names the file's category lists, or a new one.

    Raises:
      DataError: the category lists no keypoint names.
    """
    for category in dataset["categories"]:
        words = category.get("keypoints")
        if words:
            # AI Challenger writes "Right Shoulder"; everybody else right_shoulder.
            plain = [str(w).strip().lower().replace(" ", "_") for w in words]
            names = tuple(_ALIASES.get(w, w) for w in plain)
            pairs = category.get("skeleton") or ()
            # CrowdPose's file lists the limbs of COCO, beyond its own 14 joints.
            inside = all(1 <= n <= len(names) for pair in pairs for n in pair)
            limbs = [(names[a - 1], names[b - 1]) for a, b in pairs] if inside else []
            return named_skeleton(names, Path(name).stem, limbs)
    raise checks.DataError(
        f"{name}: no category lists keypoint names; add categories[0]['keypoints']"
    )


def named_skeleton(
    keypoints: Sequence[str], name: str, limbs: Sequence[Sequence[str]] = ()
) -> skeletons.Skeleton:
    """The registered skeleton with these keypoints in this order, or a new one."""
    for known in skeletons.SKELETONS.values():
        if known.keypoints == tuple(keypoints):
            return known
    return skeletons.from_names(keypoints, name=name, limbs=limbs)


def _person(annotation, files, area_source: str) -> Person:
    numbers = np.asarray(annotation["keypoints"], float).reshape(-1, 3)
    visible = numbers[:, 2].astype(int)
    box = np.asarray(annotation["bbox"], float)
    area = float(annotation.get("area") or 0.0)
    if area_source == "box" or not area > 0:
        area = float(AREA_OF_BOX * box[2] * box[3])
    return Person(
        id=annotation["id"],
        image_id=annotation["image_id"],
        file_name=files[annotation["image_id"]],
        box=box,
        keypoints=np.where(visible[:, None] > 0, numbers[:, :2], 0.0),
        visible=visible,
        area=area,
    )


def _restrict(dataset, filters: Filters):
    """The part of a COCO file that a carved split holds, with the labels that are used.

    A split by person keeps the other people of its pictures: nobody predicts them, so scores
    ignore them.
    """
    images, rows = dataset["images"], dataset["annotations"]
    if filters.part != "all":
        inside = {
            a["image_id"] for a in rows if filters.in_part(a["image_id"], a["id"])
        }
        if filters.holdout_unit == "image":
            inside = {row["id"] for row in images if filters.in_part(row["id"])}
        images = [row for row in images if row["id"] in inside]
        rows = [a for a in rows if a["image_id"] in inside]
    if filters.labels == "visible":
        rows = [_visible_only(a) for a in rows]
    return {**dataset, "images": images, "annotations": rows}


def _visible_only(annotation: Mapping[str, Any]) -> dict[str, Any]:
    numbers = np.reshape(annotation.get("keypoints") or (), (-1, 3))
    kept = np.where(numbers[:, 2:] == 2, numbers, 0)
    return {
        **annotation,
        "keypoints": kept.ravel().tolist(),
        "num_keypoints": int((kept[:, 2] == 2).sum()),
    }


def _read(path: str | Path) -> Any:
    try:
        return json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise checks.DataError(
            f"annotation file {path} does not exist; set POSE_JAX_DATA to the folder that "
            "holds the data sets, or give an absolute path"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise checks.DataError(f"{path} is not valid JSON ({error})") from None
