"""Decoding pictures, strictly: a damaged file is named, never half used."""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image as PillowImage
from PIL import ImageOps

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


class ImageError(Exception):
    """A picture that cannot be used; the message names it and the reason."""


def decode_image(
    data: bytes, name: str = "image", *, honour_exif: bool = False
) -> UInt8[np.ndarray, "h w 3"]:
    """Encoded bytes -> RGB.

    Args:
      data: a JPEG, PNG, ... file's bytes.
      name: how the picture is called in errors.
      honour_exif: turn the picture as its EXIF orientation says. Data sets are annotated on
        the stored pixels (COCO), so only predictions on photos honour it.

    Raises:
      ImageError: empty, truncated or not a picture.
    """
    if not data:
        raise ImageError(f"{name}: the file is empty")
    if _complete_jpeg(data) and not honour_exif:
        flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
        if picture is not None:
            return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
    # Pillow refuses truncated files, which OpenCV silently pads with grey.
    try:
        with PillowImage.open(io.BytesIO(data)) as opened:
            opened.load()
            turned = ImageOps.exif_transpose(opened) if honour_exif else opened
            return np.asarray(turned.convert("RGB"))
    except Exception as error:  # Pillow raises many kinds on damaged data.
        raise ImageError(f"{name}: not a readable picture ({error})") from None


def read_image(
    path: str | Path, *, honour_exif: bool = False
) -> UInt8[np.ndarray, "h w 3"]:
    """A picture file -> RGB; see `decode_image`."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror or error}") from None
    return decode_image(data, str(path), honour_exif=honour_exif)


def _complete_jpeg(data: bytes) -> bool:
    """Whether the data are a JPEG that ends with its end marker."""
    return data[:2] == b"\xff\xd8" and data[-64:].rstrip(b"\0").endswith(b"\xff\xd9")
