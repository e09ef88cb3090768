"""Small data sets written to a folder: shared by the tests of sources and stores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from pose_jax import skeletons
from pose_jax.data.sources import Person


def picture(generator, size=(240, 320)) -> np.ndarray:
    """Smooth colours, so that JPEG and resampling lose little."""
    small = generator.integers(0, 255, (6, 8, 3)).astype(np.uint8)
    return cv2.resize(small, size[::-1], interpolation=cv2.INTER_CUBIC)


def jpeg(image: np.ndarray, quality: int = 95) -> bytes:
    bgr = np.ascontiguousarray(image[..., ::-1])
    return cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def annotation(
    number: int, image: int, box, points, visible, **fields
) -> dict[str, Any]:
    return {
        "id": number,
        "image_id": image,
        "category_id": 1,
        "iscrowd": 0,
        "bbox": [float(v) for v in box],
        "area": float(0.4 * box[2] * box[3]),
        "keypoints": np.c_[points, visible].ravel().tolist(),
        "num_keypoints": int(np.sum(np.asarray(visible) > 0)),
        **fields,
    }


def dataset(pictures=4, people=2, *, seed=0, size=(240, 320)) -> dict[str, Any]:
    """A COCO-format object with random people inside their boxes."""
    generator = np.random.default_rng(seed)
    height, width = size
    images, annotations = [], []
    for number in range(1, pictures + 1):
        name = f"{number:04d}.jpg"
        images.append(
            {"id": 10 * number, "file_name": name, "width": width, "height": height}
        )
        for _ in range(people):
            sides = generator.uniform(60, 200, 2)
            corner = generator.uniform(0, (width, height) - sides)
            points = corner + generator.random((17, 2)) * sides
            visible = generator.choice(3, 17, p=(0.2, 0.2, 0.6))
            visible[0] = 2
            points[visible == 0] = 0
            box = np.r_[corner, sides]
            annotations.append(
                annotation(len(annotations) + 1, 10 * number, box, points, visible)
            )
    categories = [
        {"id": 1, "name": "person", "keypoints": list(skeletons.COCO.keypoints)}
    ]
    return {"images": images, "annotations": annotations, "categories": categories}


def write_coco(folder: Path, content: dict[str, Any] | None = None, **fields) -> Path:
    """`people.json` and `images/` in a folder; returns the annotation file."""
    content = content or dataset(**fields)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(99)
    for row in content["images"]:
        image = picture(generator, (row["height"], row["width"]))
        (folder / "images" / row["file_name"]).write_bytes(jpeg(image))
    path = folder / "people.json"
    path.write_text(json.dumps(content))
    return path


def same_person(a: Person, b: Person, *, exact: bool = True) -> None:
    """Assert that two people are equal, to float32 where not exact."""
    tolerance = 0 if exact else 1e-4
    assert (a.id, a.image_id, a.file_name) == (b.id, b.image_id, b.file_name)
    np.testing.assert_array_equal(a.visible, b.visible)
    np.testing.assert_allclose(a.keypoints, b.keypoints, rtol=0, atol=tolerance)
    np.testing.assert_allclose(a.box, b.box, rtol=0, atol=tolerance)
    np.testing.assert_allclose(
        [a.area, a.head_size, a.box_score],
        [b.area, b.head_size, b.box_score],
        rtol=tolerance,
    )
