"""COCO keypoints as a TensorFlow Datasets builder that never needs TensorFlow.

An example is a picture: `image_id`, `file_name`, `jpeg` (the file's bytes, any format) and
its labelled people `id, box, keypoints, visible, area`. No feature decodes, so preparing
(into ArrayRecord files) and random access work without TensorFlow. Beside the records lie
`metadata.json` (skeleton, origin, settings) and `people.npy`, the labels as a table.

This module imports `tensorflow_datasets`, which takes a second; import it where needed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import UInt8

from pose_jax.data.checks import DataError, check_unreadable
from pose_jax.data.images import ImageError, decode_image
from pose_jax.data.people_table import TableSource, to_table
from pose_jax.data.sources import Filters, PeopleSource, Person, coco

TABLE, SPLIT = "people.npy", "people"


class _Metadata(tfds.core.MetadataDict):
    """The metadata of a builder, with the table of its people as a second file."""

    def __init__(self, *args: Any, builder: Any):
        super().__init__(*args)
        self._builder = builder

    def save_metadata(self, data_dir: Any) -> None:
        self.update(self._builder.summary())
        super().save_metadata(data_dir)
        np.save(Path(data_dir) / TABLE, self._builder.table())


class CocoKeypoints(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """One annotation file in COCO format as one split, `people`.

        builder = CocoKeypoints(annotations, images, data_dir=folder)
        builder.download_and_prepare()

    People without labelled keypoints and crowds are left out, so are pictures without
    anybody. Pictures that cannot be read are left out and listed in the metadata, up to 1 %.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}
    url_infos = {}  # Nothing is downloaded; looking for a list of checksums can fail.

    def __init__(
        self,
        annotations: str | Path,
        images: str | Path,
        *,
        filters: Filters | None = None,
        settings: dict[str, Any] | None = None,
        report: Callable[[int], None] = lambda done: None,
        **options: Any,
    ):
        """Reads the annotations.

        Args:
          annotations, images: COCO-format file and folder of pictures.
          filters: who is used.
          settings: stored in the metadata as they are.
          report: told how many pictures are done.
          options: of `tfds.core.GeneratorBasedBuilder`, `data_dir` above all.

        Raises:
          DataError: faulty annotations, or nobody left.
        """
        self.source: PeopleSource = coco(annotations, images, filters=filters)
        self.settings, self.report = settings or {}, report
        self.pictures: dict[int, list[Person]] = {}
        for person in self.source.people:
            self.pictures.setdefault(person.image_id, []).append(person)
        self.unreadable: dict[int, str] = {}
        super().__init__(**{"file_format": "array_record", **options})

    def _info(self) -> tfds.core.DatasetInfo:
        k = self.source.skeleton.num_keypoints
        tensor = tfds.features.Tensor
        features = {
            "image_id": tfds.features.Scalar(np.int64),
            "file_name": tfds.features.Text(),
            "jpeg": tensor(shape=(), dtype=np.object_),
            "people": tfds.features.Sequence(
                {
                    "id": tfds.features.Scalar(np.int64),
                    "box": tensor(shape=(4,), dtype=np.float32),
                    "keypoints": tensor(shape=(k, 2), dtype=np.float32),
                    "visible": tensor(shape=(k,), dtype=np.int64),
                    "area": tfds.features.Scalar(np.float32),
                }
            ),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description="COCO-format keypoints of people.",
            features=tfds.features.FeaturesDict(features),
            metadata=_Metadata(builder=self),
            disable_shuffling=True,  # The table counts records in this order.
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {SPLIT: self._generate_examples()}

    def _generate_examples(self):
        for done, (image_id, people) in enumerate(self.pictures.items(), start=1):
            name = people[0].file_name
            self.report(done)
            try:
                jpeg = (self.source.images / name).read_bytes()
                decode_image(jpeg, name)
            except (OSError, ImageError) as error:
                self.unreadable[image_id] = str(error)
                reasons = list(self.unreadable.values())
                check_unreadable(reasons, len(self.pictures), self.source.name)
                continue
            example = {"image_id": image_id, "file_name": name, "jpeg": jpeg}
            yield done, {**example, "people": [_features(p) for p in people]}

    def table(self) -> np.ndarray:
        """The people that were written, with the number of their picture's record."""
        kept = [i for i in self.pictures if i not in self.unreadable]
        rows = [(n, p) for n, i in enumerate(kept) for p in self.pictures[i]]
        return to_table([p for _, p in rows], (n for n, _ in rows), np.ones(len(rows)))

    def summary(self) -> dict[str, Any]:
        """What `metadata.json` holds."""
        skeleton, dropped = self.source.skeleton, Counter(self.source.dropped)
        lost = sum(len(self.pictures[i]) for i in self.unreadable)
        if lost:
            dropped["with unreadable pictures"] = lost
        return {
            "source": self.source.name,
            "skeleton": {
                "name": skeleton.name,
                "keypoints": list(skeleton.keypoints),
                "limbs": [list(limb) for limb in skeleton.limbs],
            },
            "dropped": dict(dropped),
            "unreadable": {str(i): why for i, why in self.unreadable.items()},
            "settings": self.settings,
        }


def _features(person: Person) -> dict[str, Any]:
    return {
        "id": person.id,
        "box": person.box.astype(np.float32),
        "keypoints": person.keypoints.astype(np.float32),
        "visible": person.visible.astype(np.int64),
        "area": np.float32(person.area),
    }


class TfdsSource(TableSource):
    """People of a prepared `CocoKeypoints`, by row, in pixels of the original pictures."""

    def __init__(
        self,
        path: str | Path,
        filters: Filters | None = None,
        area_source: str = "annotation",
    ):
        """Opens a data set.

        Args:
          path: the `data_dir` that it was prepared in.

        Raises:
          DataError: nothing prepared there, damaged, or nobody left after the filters.
        """
        super().__init__(path, filters, area_source)
        folder = dataset_folder(Path(path))
        if not (folder / "dataset_info.json").is_file():
            raise DataError(
                f"{path} holds no {CocoKeypoints.name}; make it with config.tasks="
                "('prepare',), config.prepare.format='tfds' and config.prepare.path"
            )
        builder: Any = tfds.builder_from_directory(str(folder))
        metadata: Any = builder.info.metadata
        self.name = f"tfds {metadata['source']}"
        self._open(folder / TABLE, metadata["skeleton"], metadata["dropped"])
        self._examples = builder.as_data_source(SPLIT)

    def image(self, row: int) -> UInt8[np.ndarray, "h w 3"]:
        record = int(self._table["record"][self.rows[row]])
        return decode_image(self._examples[record]["jpeg"], self.person(row).file_name)


def dataset_folder(path: Path) -> Path:
    """Where a `data_dir` holds the data set."""
    return path / CocoKeypoints.name / str(CocoKeypoints.VERSION)
