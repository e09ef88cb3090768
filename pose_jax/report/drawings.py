"""Poses on pictures, contact sheets, learning curves (numpy, OpenCV, matplotlib's Agg).

Three hues of the Okabe-Ito palette, which colour-blind readers tell apart: the person's
left is orange, the right sky blue, the middle purple. Opacity is the score.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from etils import epath
from jaxtyping import Float, Int, UInt8

from pose_jax import skeletons
from pose_jax.arrays import Array

LEFT, RIGHT, MIDDLE = (230, 159, 0), (86, 180, 233), (204, 121, 167)
WHITE, BLACK, YELLOW = (255, 255, 255), (0, 0, 0), (240, 228, 66)
_SHIFT = 4  # OpenCV's fixed-point bits: drawing to 1/16 pixel
_FAR = 30_000.0  # beyond any picture, still a 32-bit number after the shift
_FAINTEST = 0.15
_GROUND = 24
_STRIP = 16


def draw_pose(
    image: UInt8[Array, "h w 3"],
    keypoints: Float[Array, "n k 2"],
    skeleton: str | skeletons.Skeleton,
    *,
    scores: Float[Array, "n k"] | None = None,
    boxes: Float[Array, "n 4"] | None = None,
    visible: Int[Array, "n k"] | None = None,
    threshold: float = 0.0,
    thickness: int | None = None,
) -> UInt8[np.ndarray, "h w 3"]:
    """A copy of the picture with skeletons on it.

    Args:
      keypoints: (x, y) pixels, centres at integers; non-finite ones are not drawn.
      scores: opacity, clipped to 0.15 .. 1; a limb takes the lower of its two ends.
      boxes: x, y, width, height in pixels.
      visible: COCO's flags; 0 is not drawn, 1 becomes a ring.
      threshold: points with a lower score are not drawn, nor are their limbs.
      thickness: of limbs in pixels; by default 1/100 of the picture's shorter side.

    Raises:
      ValueError: the picture is no uint8 RGB, or the keypoints are not the skeleton's.
    """
    canvas, skeleton = _canvas(image), skeletons.get(skeleton)
    thickness = thickness or _thickness(canvas)
    for x, y, width, height in [] if boxes is None else np.asarray(boxes, float):
        corners = np.array([(x, y), (x + width - 1, y + height - 1)])
        if np.isfinite(corners).all():
            start, end = np.rint(corners.clip(-_FAR, _FAR)).astype(int).tolist()
            cv2.rectangle(canvas, start, end, YELLOW, 1)
    points, shown = _points(keypoints, skeleton, visible)
    alpha = np.ones(shown.shape)
    if scores is not None:
        shown &= np.asarray(scores) >= threshold
        alpha = np.clip(np.asarray(scores, float), _FAINTEST, 1)
    colours = [_hue(name) for name in skeleton.keypoints]
    for person in range(len(points)):
        _limbs(
            canvas, points[person], shown[person], alpha[person], skeleton, thickness
        )
        for k in np.flatnonzero(shown[person]):
            ring = visible is not None and int(visible[person][k]) == 1
            _dot(
                canvas, points[person, k], alpha[person, k], colours[k], thickness, ring
            )
    return canvas


def compare(
    image: UInt8[Array, "h w 3"],
    predicted: Float[Array, "n k 2"],
    true: Float[Array, "m k 2"],
    skeleton: str | skeletons.Skeleton,
    *,
    scores: Float[Array, "n k"] | None = None,
    visible: Int[Array, "m k"] | None = None,
    threshold: float = 0.0,
    thickness: int | None = None,
) -> UInt8[np.ndarray, "h w 3"]:
    """The truth thin and white, the prediction in colour above it.

    Args:
      visible: flags of the truth; 0 is not drawn.
      others: as in `draw_pose`, for the prediction.

    Raises:
      ValueError: as `draw_pose`.
    """
    canvas, skeleton = _canvas(image), skeletons.get(skeleton)
    thickness = thickness or _thickness(canvas)
    points, shown = _points(true, skeleton, visible)
    thin = max(1, thickness // 2)
    for body, drawn in zip(points, shown):
        alpha = np.ones(len(body))
        _limbs(canvas, body, drawn, alpha, skeleton, thin, only=WHITE)
        for k in np.flatnonzero(drawn):
            _dot(canvas, body[k], 1.0, WHITE, thin)
    return draw_pose(
        canvas, predicted, skeleton, scores=scores, threshold=threshold,
        thickness=thickness,
    )  # fmt: skip


def contact_sheet(
    images: Sequence[Any],
    columns: int = 6,
    tile: tuple[int, int] = (192, 160),
    titles: Sequence[str] | None = None,
) -> UInt8[np.ndarray, "h w 3"]:
    """Pictures of any size in a grid, each fitted into a tile without distortion.

    Args:
      images: uint8 RGB pictures `[h w 3]`.
      columns: tiles in a row (fewer when there are fewer pictures).
      tile: height and width of a tile in pixels.
      titles: one short line (ASCII) per picture in a strip of 16 pixels above it; cut
        when it does not fit.

    Raises:
      ValueError: no picture, no uint8 RGB, or another number of titles than pictures.
    """
    if not len(images) or columns < 1 or min(tile) < 1:
        raise ValueError("a contact sheet needs a picture, a column and a tile")
    if titles is not None and len(titles) != len(images):
        raise ValueError(
            f"{len(titles)} titles for {len(images)} pictures; give one per picture"
        )
    columns, strip = min(columns, len(images)), _STRIP if titles is not None else 0
    rows, (height, width) = -(-len(images) // columns), tile
    shape = rows * (height + strip), columns * width, 3
    sheet = np.full(shape, _GROUND, np.uint8)
    for number, image in enumerate(images):
        row, column = divmod(number, columns)
        place = sheet[row * (height + strip) :, column * width : (column + 1) * width]
        if titles is not None:
            _title(place[:strip], titles[number])
        picture = _canvas(image)
        scale = min(height / picture.shape[0], width / picture.shape[1])
        h, w = (max(1, round(side * scale)) for side in picture.shape[:2])
        way = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        top, left = strip + (height - h) // 2, (width - w) // 2
        place[top : top + h, left : left + w] = cv2.resize(
            picture, (w, h), interpolation=way
        )
    return sheet


def learning_curve(
    rows: Sequence[Mapping[str, Any]],
    path,
    *,
    loss: str = "train/loss_ratio",
    metric: str | None = None,
    title: str = "",
) -> None:
    """Loss and evaluation metric against the step, as a PNG.

    Args:
      rows: of `metrics.jsonl`: dicts with `step` and scalars; missing ones and None are
        left out.
      path: where the PNG goes; folders are made.
      loss: name of the loss; a ratio of 1 is the loss of empty heatmaps.
      metric: name of the metric; by default the first one that starts with `select/` or
        `eval/`, and none when there is none.

    Raises:
      ValueError: no row has that loss or metric; the message lists what there is.
      OSError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure  # no pyplot: it keeps every figure alive

    names = list(dict.fromkeys(name for row in rows for name in row if name != "step"))
    if metric is None:
        chosen = [name for name in names if name.startswith(("select/", "eval/"))]
        metric = chosen[0] if chosen else None
    figure = Figure(figsize=(6.4, 3.6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set(xlabel="step", ylabel=loss, title=title)
    axes.plot(*_series(rows, loss, names), color="#0072b2", label=loss)
    if loss.endswith("loss_ratio"):
        axes.axhline(1.0, color="0.6", linewidth=0.8, linestyle=":")
    axes.set_ylim(bottom=0)
    if metric is not None:
        right = axes.twinx()
        right.plot(*_series(rows, metric, names), "o-", color="#d55e00", label=metric)
        right.set_ylabel(metric)
        figure.legend(loc="outside upper right", ncols=2, fontsize="small")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    _write(path, buffer.getvalue())


def write_image(path, rgb: UInt8[Array, "h w 3"]) -> None:
    """Writes a picture; the suffix chooses the format, missing folders are made.

    Raises:
      OSError: unknown format, or the place cannot be written.
    """
    bgr, suffix = _canvas(rgb)[:, :, ::-1], epath.Path(path).suffix
    try:
        data = cv2.imencode(suffix, bgr)[1].tobytes()
    except cv2.error:
        raise OSError(
            f"cannot write {path}: no picture format {suffix!r}; use .png or .jpg"
        ) from None
    _write(path, data)


def _write(path, data: bytes) -> None:
    path = epath.Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    except OSError as error:
        raise OSError(
            f"cannot write {path}: {error.strerror or error}; choose another place"
        ) from error


def _series(rows, name: str, names: Sequence[str]):
    pairs = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
    if not pairs:
        raise ValueError(f"no row has {name!r}; the rows have {sorted(names)}")
    return zip(*sorted(pairs))


def _canvas(image) -> np.ndarray:
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(
            f"a picture is uint8 RGB [h, w, 3], not {image.dtype} {list(image.shape)}; "
            "convert it first"
        )
    return np.array(image, order="C")


def _thickness(canvas: np.ndarray) -> int:
    return max(1, round(min(canvas.shape[:2]) / 100))


def _points(keypoints, skeleton, visible) -> tuple[np.ndarray, np.ndarray]:
    """Points that OpenCV can take, and which of them are drawn."""
    points = np.asarray(keypoints, float)
    if points.shape[1] != skeleton.num_keypoints:
        raise ValueError(
            f"{points.shape[1]} keypoints but skeleton {skeleton.name!r} has "
            f"{skeleton.num_keypoints}; pass the skeleton they were made for"
        )
    shown = np.asarray(np.isfinite(points).all(axis=-1))
    if visible is not None:
        shown &= np.asarray(visible) > 0
    return np.clip(np.where(shown[..., None], points, 0), -_FAR, _FAR), shown


def _hue(*names: str) -> tuple[int, int, int]:
    for side, colour in (("left_", LEFT), ("right_", RIGHT)):
        if all(name.startswith(side) for name in names):
            return colour
    return MIDDLE


def _fixed(points: np.ndarray) -> list:
    clipped = np.clip(points, -_FAR, _FAR)
    return np.rint(clipped * (1 << _SHIFT)).astype(int).tolist()


def _limbs(canvas, points, shown, alpha, skeleton, thickness, only=None):
    for (a, b), names in zip(skeleton.limb_indices, skeleton.limbs):
        if shown[a] and shown[b]:
            opacity, ends = float(min(alpha[a], alpha[b])), points[[a, b]]
            colour = only or _hue(*names)
            # A dark seam keeps the line readable on a background of its own colour.
            for ink, width, share in ((BLACK, 2, 0.5), (colour, 0, 1.0)):
                line = functools.partial(_line, ink=ink, width=thickness + width)
                _blend(canvas, ends, thickness + 3, opacity * share, line)


def _dot(canvas, point, alpha, colour, thickness, ring=False):
    width = max(1, thickness // 2) if ring else -1
    disc = functools.partial(_disc, ink=colour, radius=1.3 * thickness, width=width)
    _blend(canvas, point[None], 2.3 * thickness + 2, float(alpha), disc)


def _line(patch, ends, ink, width):
    start, end = _fixed(ends)
    cv2.line(patch, start, end, ink, width, cv2.LINE_AA, _SHIFT)


def _disc(patch, centre, ink, radius, width):
    size = round(radius * (1 << _SHIFT))
    cv2.circle(patch, _fixed(centre)[0], size, ink, width, cv2.LINE_AA, _SHIFT)


def _blend(canvas, points, reach, alpha, paint) -> None:
    """Paints on a copy of the part of the canvas around the points and mixes it in."""
    limit = np.array(canvas.shape[1::-1])
    low = np.floor(points.min(axis=0) - reach).clip(0, limit).astype(int)
    high = np.ceil(points.max(axis=0) + reach + 1).clip(0, limit).astype(int)
    patch = canvas[low[1] : high[1], low[0] : high[0]]
    if patch.size:
        painted = patch.copy()
        paint(painted, points - low)
        patch[:] = cv2.addWeighted(painted, alpha, patch, 1 - alpha, 0)


def _title(strip, text: str) -> None:
    font, size = cv2.FONT_HERSHEY_SIMPLEX, 0.36
    while text and cv2.getTextSize(text, font, size, 1)[0][0] > strip.shape[1] - 4:
        text = text[:-1]
    label = strip.copy()
    cv2.putText(label, text, (2, 11), font, size, WHITE, 1, cv2.LINE_AA)
    strip[:] = label
