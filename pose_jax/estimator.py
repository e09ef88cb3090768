"""The Python face: load a run or a converted model, predict, explain."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cv2
import jax
import numpy as np
from etils import epath
from jaxtyping import Float, UInt8

from pose_jax import (
    checkpoint,
    geometry,
    inference,
    regions,
    sharding,
)
from pose_jax.arrays import PyTree
from pose_jax.data.images import read_image
from pose_jax.explain.explainer import Crops
from pose_jax.explain.making import make_explainer
from pose_jax.recipe import Recipe, recipe
from pose_jax.skeletons import Skeleton
from pose_jax.trees import flat_names, unflatten_names
from pose_jax.writer import read_json

Detector = Callable[[UInt8[np.ndarray, "h w 3"]], Float[np.ndarray, "n 4"]]
"""Picture (RGB) -> person boxes xywh."""


@dataclasses.dataclass(frozen=True)
class Pose:
    """People of one picture.

    Attributes:
      keypoints: `[n, k, 2]` (x, y) image pixels.
      keypoint_scores: `[n, k]` peak heights, 0..1.
      score: `[n]` mean of the keypoint scores.
      boxes: `[n, 4]` xywh image pixels that were used.
      skeleton: names of the keypoints.
      whole_image: no boxes were given, so the whole picture counted as one person.
    """

    keypoints: Float[np.ndarray, "n k 2"]
    keypoint_scores: Float[np.ndarray, "n k"]
    score: Float[np.ndarray, "n"]
    boxes: Float[np.ndarray, "n 4"]
    skeleton: Skeleton
    whole_image: bool = False

    def __len__(self) -> int:
        return len(self.keypoints)


class Estimator:
    """A trained or converted model.

    Usage: `Estimator.load("runs/quickstart").predict("photo.jpg", boxes=[[x, y, w, h]])`.

    Attributes:
      recipe, variables: the model as it was saved.
      inference: (recipe, variables) of its faster copy, see `Recipe.inference`; predictions
        come from it.
      step: of the checkpoint. flip_test: whether predictions average the mirrored crop.
    """

    def __init__(
        self,
        recipe: Recipe,
        variables: PyTree,
        *,
        flip_test: bool = True,
        batch: int = 32,
        step: int = 0,
    ):
        self.recipe, self.variables, self.step = recipe, variables, step
        self.flip_test, self._batch = flip_test, batch
        self.inference = recipe.inference(variables)
        predict = inference.make_predict(self.inference[0], flip_test=flip_test)
        self._predict = jax.jit(predict)

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        checkpoint_name: str | int = "last",
        flip_test: bool = True,
        batch: int = 32,
    ) -> Estimator:
        """A workdir, one of its `checkpoints/<step>` folders, or a converted model.

        Args:
          checkpoint_name: `last`, `best` or a step (ignored when the path names a step).

        Raises:
          FileNotFoundError: there is no run at the path.
          CheckpointError: it has no usable checkpoint.
        """
        folder = epath.Path(path)
        if folder.name.isdigit() and folder.parent.name == "checkpoints":
            checkpoint_name, folder = int(folder.name), folder.parent.parent
        stored = read_json(folder / "config.json")
        if stored is None:
            raise FileNotFoundError(
                f"{folder} holds no config.json; give the --workdir of a training or "
                "conversion"
            )
        described = recipe(stored)
        tree, step = checkpoint.load_variables(folder, checkpoint_name)
        return cls(
            described,
            fit_variables(described, tree),
            flip_test=flip_test,
            batch=batch,
            step=step,
        )

    @property
    def skeleton(self) -> Skeleton:
        return self.recipe.skeleton

    def predict(
        self,
        images: Any,
        boxes: Any = None,
        *,
        detector: Detector | None = None,
    ) -> Pose | list[Pose]:
        """Keypoints of the people in one picture, or in each of a list of pictures.

        Args:
          images: RGB array `[h, w, 3]` uint8, or a path (EXIF orientation is honoured), or
            a list of either.
          boxes: `[n, 4]` xywh in image pixels (a list of those for a list of pictures).
            Without boxes and detector the whole picture is one person.
          detector: function picture -> boxes, asked where no boxes are given.

        Raises:
          ImageError: a picture cannot be read.
          ValueError: boxes of wrong shape or size.
        """
        if isinstance(images, list | tuple):
            each = [None] * len(images) if boxes is None else list(boxes)
            if len(each) != len(images):
                raise ValueError(
                    f"{len(images)} pictures but {len(each)} lists of boxes; give one list "
                    "of boxes per picture"
                )
            return [self._one(image, b, detector) for image, b in zip(images, each)]
        return self._one(images, boxes, detector)

    def _one(self, image: Any, boxes: Any, detector: Detector | None) -> Pose:
        image = _picture(image)
        if boxes is None and detector is not None:
            boxes = detector(image)
        whole = boxes is None
        if whole:
            boxes = [[0, 0, image.shape[1], image.shape[0]]]
        boxes = check_boxes(boxes)
        return self.predict_crops(image, boxes, whole_image=whole)

    def explain(
        self,
        images: Any,
        boxes: Any = None,
        *,
        method: str = "group_shapley",
        kind: str = "gsv",
        clusters: Any = None,
        score: str | None = None,
        removal: str = "mean",
        tap: str | None = None,
        keypoints: Any = None,
        visible: Any = None,
        other: Any = None,
        players: str = "disc",
        side: float = regions.SIDE,
        options: Mapping[str, Any] | None = None,
        key: jax.Array | None = None,
    ) -> list[Any]:
        """Why every joint was placed where it was placed: one record per person, an
        `Explanation` from games, a `MapExplanation` from the methods of `explain.methods`.

        Usage: `estimator.explain("photo.jpg")[0].contributions("left_wrist")`.

        Args:
          images, boxes: one picture and its people, or a list of pictures with a list of
            boxes each, as in `predict`; a list gives a list per picture.
          method: `group_shapley`, `shapley` (all keypoints as players, at most 16), or a map:
            a name of `explain.methods.METHODS`, such as `saliency` or `grad_cam`.
          kind: `gsv`, `owen` or `decoupled`.
          clusters: name of a partition (`partitions.PARTITIONS`; default `limbs-v1`), a
            `Partition`, or lists of keypoint names or numbers.
          score: a name of `explain.scores.SCORES`; default `value` (the map at the model's own
            answer), with labels `similarity`.
          removal: what hidden pixels show, a name of `explain.games.REMOVALS`.
          tap: where class activation maps look; by default a coarse one near the end.
          keypoints: labels `[n, k, 2]`, image pixels, where there are any; regions lie there.
          visible: `[n, k]` their visibility (0: no label); default all labelled.
          other: RGB picture whose pixels replace hidden ones (`removal='other'`).
          players: `disc` or `box` around keypoints, or `limbs`.
          side: diameter of the regions as a share of the crop's height.
          options: of a map's method, such as `{"steps": 100}`.
          key: of the noise fill, and of methods that draw (default `jax.random.key(0)`).

        Raises:
          ImageError: a picture cannot be read.
          ValueError: a name that is unknown, a method that does not apply to this network, or
            arguments that do not fit together.
        """
        explainer = make_explainer(
            *self.inference, method=method, kind=kind, clusters=clusters, score=score,
            removal=removal, tap=tap, players=players, side=side, options=options, key=key,
        )  # fmt: skip
        if not isinstance(images, list | tuple):
            return self._explain_one(
                explainer, images, boxes, keypoints, visible, other
            )
        given = (boxes, keypoints, visible)
        each = [[None] * len(images) if x is None else list(x) for x in given]
        if any(len(x) != len(images) for x in each):
            raise ValueError(
                f"{len(images)} pictures need as many lists of boxes and of keypoints"
            )
        return [
            self._explain_one(explainer, image, b, k, v, other)
            for image, b, k, v in zip(images, *each)
        ]

    def _explain_one(self, explainer, image, boxes, keypoints, visible, other):
        image = _picture(image)
        whole = boxes is None
        if whole:
            boxes = [[0, 0, image.shape[1], image.shape[0]]]
        boxes = check_boxes(boxes)
        if not len(boxes):
            return []
        size = self.recipe.spec.size
        matrices = self._matrices(boxes)
        crops = np.stack([geometry.warp(image, m, size) for m in matrices])
        labels: dict[str, Any] = {}
        if keypoints is not None:
            shape = (len(boxes), self.skeleton.num_keypoints)
            keypoints = np.asarray(keypoints, float)
            visible = np.full(shape, 2) if visible is None else np.asarray(visible)
            if keypoints.shape != (*shape, 2) or visible.shape != shape:
                raise ValueError(
                    f"keypoints have shape {list(keypoints.shape)} and visible "
                    f"{list(visible.shape)}; {shape[0]} boxes need {[*shape, 2]} and "
                    f"{list(shape)}"
                )
            labels["keypoints"] = geometry.transform(keypoints, np.stack(matrices))
            labels["visible"] = visible
        if other is not None:
            resized = cv2.resize(
                _picture(other), size[::-1], interpolation=cv2.INTER_AREA
            )
            labels["others"] = np.repeat(
                resized[None].astype(np.float32), len(boxes), 0
            )
        given = Crops(crops, np.stack(matrices), boxes, whole_image=whole, **labels)
        # Powers of two, as in `predict`: few programs, whatever number of people comes.
        return explainer(given, room=1 << (len(boxes) - 1).bit_length())

    def _matrices(self, boxes) -> list[np.ndarray]:
        spec = self.recipe.spec
        return [
            geometry.crop_matrix(
                box,
                spec.size,
                padding=spec.padding,
                unit=self.recipe.codec.unit,
                area=spec.area,
            )
            for box in boxes
        ]

    def predict_crops(
        self,
        image: UInt8[np.ndarray, "h w 3"],
        boxes: Float[np.ndarray, "n 4"],
        *,
        whole_image: bool = False,
    ) -> Pose:
        """Keypoints of the people in the given boxes of one picture."""
        spec, k = self.recipe.spec, self.skeleton.num_keypoints
        matrices = self._matrices(boxes)
        points, scores = [np.zeros((0, k, 2))], [np.zeros((0, k))]
        for start in range(0, len(boxes), self._batch):
            part = matrices[start : start + self._batch]
            crops = np.stack([geometry.warp(image, m, spec.size) for m in part])
            found = self._run(crops)
            points.append(geometry.invert(found["keypoints"], np.stack(part)))
            scores.append(found["scores"])
        keypoint_scores = np.concatenate(scores)
        return Pose(
            keypoints=np.concatenate(points),
            keypoint_scores=keypoint_scores,
            score=keypoint_scores.mean(1),
            boxes=np.asarray(boxes, float).reshape(-1, 4),
            skeleton=self.skeleton,
            whole_image=whole_image,
        )

    def _run(self, crops: UInt8[np.ndarray, "n h w 3"]) -> dict[str, np.ndarray]:
        # Powers of two: at most log2(batch) programs, whatever number of people comes.
        count = len(crops)
        size = 1 << (count - 1).bit_length()
        padded = np.concatenate([crops, np.repeat(crops[-1:], size - count, 0)])
        _, variables = self.inference
        found = sharding.to_host(self._predict(variables, {"image": padded}))
        keypoints = found["keypoints"][:count].astype(np.float64)
        if not np.isfinite(found["scores"]).all() or not np.isfinite(keypoints).all():
            raise ValueError("the prediction is not finite: the weights hold NaN")
        return {"keypoints": keypoints, "scores": found["scores"][:count]}


def _picture(image: Any) -> UInt8[np.ndarray, "h w 3"]:
    """A picture from a path or an array."""
    if isinstance(image, str | Path):
        return read_image(image, honour_exif=True)
    image = np.asarray(image)
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(
            f"a picture is a uint8 RGB array [h, w, 3], not {image.dtype} "
            f"{list(image.shape)}"
        )
    return image


def check_boxes(boxes: Any) -> Float[np.ndarray, "n 4"]:
    """Boxes as `[n, 4]` xywh.

    Raises:
      ValueError: wrong shape, non-finite numbers or sides that are not positive.
    """
    array = np.asarray(boxes, float)
    if array.size == 0:
        return np.zeros((0, 4))
    if array.ndim == 1 and array.shape == (4,):
        array = array[None]
    if array.ndim != 2 or array.shape[1] != 4:
        raise ValueError(f"boxes are [n, 4] xywh in pixels, not {list(array.shape)}")
    if not np.isfinite(array).all() or (array[:, 2:] <= 0).any():
        raise ValueError(
            "boxes need finite numbers and positive width and height; the format is x, y, "
            "width, height (not two corners)"
        )
    return array


def fit_variables(described: Recipe, tree: PyTree) -> PyTree:
    """Loaded weights checked against the network that the config describes.

    Raises:
      CheckpointError: names or shapes differ.
    """
    shapes = described.shapes()
    merged = checkpoint.merge(flat_names(shapes), flat_names(tree))
    return unflatten_names(shapes, merged)
