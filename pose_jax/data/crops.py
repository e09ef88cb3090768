"""The crops store: a small JPEG per person with room for augmentation, and its labels.

A folder of three files: `people.array_record` (a msgpack record per person), `people.npy`
(the labels as a table, so that nobody is decoded to be counted) and `index.json` (origin,
skeleton, settings, who was left out). Training decodes a few hundred pixels instead of a
whole photograph.

Everything that the source hands out is in pixels of the *stored crop*. A crop is a cut-out
that was scaled down uniformly, so PCK, PCKh and OKS (whose area goes with the square of the
scale) are the same numbers as on the original; COCO AP is not defined, because people of
one picture no longer share a frame.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import cv2
import msgpack
import numpy as np
from jaxtyping import Float, UInt8

from pose_jax import geometry
from pose_jax.data.checks import NO_AP, DataError
from pose_jax.data.images import ImageError, decode_image
from pose_jax.data.people_table import TableSource
from pose_jax.data.sources import Filters, Person, Source

FORMAT, VERSION = "pose_jax crops", 1
RECORDS, TABLE, INDEX = "people.array_record", "people.npy", "index.json"
WRITER_OPTIONS = "group_size:1,uncompressed"
"""One record per group, for random access; JPEG data do not compress further."""


@dataclasses.dataclass(frozen=True)
class CropSettings:
    """How people are cut out.

    Attributes:
      side_px: side of the stored square; smaller people are never enlarged. A network with
        input side n and padding p loses no detail from `side_px = n x margin / p` on.
      margin: side of the square in longer sides of the person's box. 1.8 leaves room for
        padding 1.25 with scale 1.25 and a shift of 0.1.
      quality: JPEG quality, 1 to 100.
    """

    side_px: int = 300
    margin: float = 1.8
    quality: int = 90

    def __post_init__(self):
        if self.side_px < 16 or self.margin < 1 or not 1 <= self.quality <= 100:
            raise ValueError(
                f"{self}: give side_px of 16 or more, margin of 1 or more and quality 1 to 100"
            )


def cut(
    image: UInt8[np.ndarray, "h w 3"],
    box: Float[np.ndarray, "4"],
    settings: CropSettings,
) -> tuple[UInt8[np.ndarray, "crop_h crop_w 3"], Float[np.ndarray, "3 3"]] | None:
    """The person's surroundings and the matrix from image to crop pixels.

    The square around the box is cut at whole pixels, clipped to the picture and scaled down
    by one factor, so points move by a translation and a scale, exactly. None when the
    square lies outside the picture (less than one pixel is left).
    """
    side = settings.margin * float(box[2:].max())
    centre = box[:2] + box[2:] / 2
    scale = min(1.0, settings.side_px / side)
    low = np.floor(centre - side / 2).astype(int).clip(0)
    high = np.ceil(centre + side / 2).astype(int).clip(None, image.shape[1::-1])
    if ((high - low) * scale < 1).any():
        return None
    crop = image[low[1] : high[1], low[0] : high[0]]
    if scale < 1:
        # Given factors keep both axes alike; a given size would round them apart, which
        # moves points by up to half a pixel.
        crop = cv2.resize(crop, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    # Scaling keeps the outer edges, which lie half a pixel before the first centre.
    corner = scale * (0.5 - low) - 0.5
    matrix = np.array([[scale, 0, corner[0]], [0, scale, corner[1]], [0, 0, 1]])
    return crop, matrix


def move(person: Person, matrix: Float[np.ndarray, "3 3"]) -> Person:
    """The person in the pixels that a uniformly scaling matrix leads to."""
    scale = float(matrix[0, 0])
    points = geometry.transform(person.keypoints, matrix)
    corner = geometry.transform(person.box[None, :2], matrix)[0]
    return dataclasses.replace(
        person,
        box=np.concatenate([corner, person.box[2:] * scale]),
        keypoints=np.where(person.visible[:, None] > 0, points, 0.0),
        area=person.area * scale**2,
        head_size=person.head_size * scale,
    )


def pack(
    crop: UInt8[np.ndarray, "h w 3"],
    person: Person,
    matrix: Float[np.ndarray, "3 3"],
    quality: int,
) -> bytes:
    """A record: the crop as JPEG, the person in crop pixels, the matrix image -> crop."""
    bgr = cv2.cvtColor(crop, cv2.COLOR_RGB2BGR)
    written, jpeg = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert written
    record = msgpack.packb(
        {
            "jpeg": jpeg.tobytes(),
            "keypoints": person.keypoints.ravel().tolist(),
            "visible": person.visible.tolist(),
            "box": person.box.tolist(),
            "area": person.area,
            "id": person.id,
            "image_id": person.image_id,
            "file_name": person.file_name,
            "head_size": person.head_size,
            "matrix": matrix.ravel().tolist(),
        }
    )
    assert record is not None
    return record


def person_of(fields: dict[str, Any]) -> Person:
    """The person of an unpacked record, in crop pixels."""
    names = {f.name for f in dataclasses.fields(Person)}
    return Person(**{name: value for name, value in fields.items() if name in names})


def unpack(record: bytes) -> dict[str, Any]:
    """The fields that `pack` wrote; arrays in their shapes."""
    fields = msgpack.unpackb(record)
    fields["keypoints"] = np.reshape(fields["keypoints"], (-1, 2))
    fields["matrix"] = np.reshape(fields["matrix"], (3, 3))
    for name in ("box", "visible"):
        fields[name] = np.array(fields[name])
    return fields


class CropsSource(TableSource):
    """People of a crops store, by row; pictures are read when asked for. Labels are in
    pixels of the crop, `image_id` is the original picture's.

    Attributes:
      index: what `index.json` holds.
    """

    def __init__(
        self,
        path: str | Path,
        filters: Filters | None = None,
        area_source: str = "annotation",
    ):
        """Opens a store.

        Raises:
          DataError: no store, a damaged or newer one, or nobody left after the filters.
        """
        super().__init__(path, filters, area_source)
        self.path = Path(path)
        self.index = read_index(self.path)
        self.name = f"crops of {self.index['source']}"
        described, people = self.index, self.index["people"]
        self._open(
            self.path / TABLE, described["skeleton"], described["dropped"], people
        )
        self._records = _open_records(self.path / RECORDS)
        if len(self._records) != people:
            raise DataError(
                f"{path} is damaged: {people} people are promised, {len(self._records)} "
                "are recorded; delete it and run the prepare task again"
            )

    def image(self, row: int) -> UInt8[np.ndarray, "h w 3"]:
        """The stored crop.

        Raises:
          ImageError: the record is damaged.
        """
        return decode_image(self.record(row)["jpeg"], f"{self.path} row {row}")

    def record(self, row: int) -> dict[str, Any]:
        """Everything stored of a person; `matrix` leads from image to crop pixels.

        Raises:
          ImageError: the record is damaged.
        """
        try:
            return unpack(self._records[int(self.rows[row])])
        except (RuntimeError, ValueError, msgpack.UnpackException) as error:
            raise ImageError(f"{self.path} row {row}: damaged ({error})") from None

    @property
    def ground_truth(self) -> Any:
        raise DataError(NO_AP)


def make_index(source: Source, **fields: Any) -> dict[str, Any]:
    """What `index.json` holds: where the people come from, their skeleton, and `fields`
    (`people`, `dropped`, `unreadable`, `settings`)."""
    skeleton = source.skeleton
    return {
        "format": FORMAT,
        "version": VERSION,
        "source": source.name,
        "skeleton": {
            "name": skeleton.name,
            "keypoints": skeleton.keypoints,
            "limbs": skeleton.limbs,
        },
        **fields,
    }


def read_index(path: Path) -> dict[str, Any]:
    """What `index.json` of a store holds.

    Raises:
      DataError: not a store, or one of another version.
    """
    try:
        index = json.loads((path / INDEX).read_text())
        known = index["format"] == FORMAT
    except (OSError, ValueError, TypeError, KeyError):
        known = False
    if not known:
        raise DataError(
            f"{path} is no crops store; make one with config.tasks=('prepare',) and "
            "config.prepare.path"
        )
    if index["version"] != VERSION:
        raise DataError(
            f"{path} has format version {index['version']}, this program reads {VERSION}; "
            "delete it and run the prepare task again"
        )
    return index


def _open_records(path: Path):
    try:
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        return ArrayRecordDataSource(str(path))
    except ImportError:
        raise DataError(
            "a crops store needs the package array_record, which this system lacks; train "
            "from the original data set instead"
        ) from None
    except RuntimeError as error:
        raise DataError(
            f"{path} cannot be read ({error}); delete the store and run the prepare task "
            "again"
        ) from None
