"""Video files by PyAV: frames with their times, and back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from jaxtyping import UInt8

SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v")


class Frame(NamedTuple):
    """One picture of a video: RGB and its presentation time in seconds."""

    image: UInt8[np.ndarray, "h w 3"]
    time: float


class VideoError(ValueError):
    """A video that cannot be used; the message names it."""


def read_frames(path: str | Path) -> Iterator[Frame]:
    """Frames in order of presentation, turned as the container says.

    Container frame counts are often wrong, so the stream is read to its end.

    Raises:
      VideoError: not a readable video.
    """
    try:
        with av.open(str(path)) as container:
            for frame in container.decode(video=0):
                image = frame.to_ndarray(format="rgb24")
                turns = round((getattr(frame, "rotation", 0) or 0) / 90) % 4
                if turns:
                    image = np.ascontiguousarray(np.rot90(image, turns))
                yield Frame(image, float(frame.time or 0.0))
    except (av.FFmpegError, IndexError) as error:
        raise VideoError(f"{path}: not a readable video ({error})") from None


def frame_rate(path: str | Path) -> float:
    """Average frames per second (25 where the file does not say)."""
    try:
        with av.open(str(path)) as container:
            return float(container.streams.video[0].average_rate or 25)
    except (av.FFmpegError, IndexError) as error:
        raise VideoError(f"{path}: not a readable video ({error})") from None


def write_frames(
    path: str | Path, frames: Iterable[UInt8[np.ndarray, "h w 3"]], *, rate: float
) -> None:
    """RGB frames of one size -> MPEG-4 file (odd sides lose a pixel).

    Raises:
      VideoError: no frames.
    """
    stream = None
    with av.open(str(path), "w") as container:
        for image in frames:
            height, width = image.shape[0] // 2 * 2, image.shape[1] // 2 * 2
            if stream is None:
                stream = container.add_stream(
                    "mpeg4", rate=Fraction(rate).limit_denominator(1000)
                )
                stream.width, stream.height = width, height
                stream.pix_fmt, stream.bit_rate = "yuv420p", 4_000_000
            cut = np.ascontiguousarray(image[:height, :width])
            frame = av.VideoFrame.from_ndarray(cut, format="rgb24")
            container.mux(stream.encode(frame))
        if stream is None:
            raise VideoError(f"{path}: no frames to write")
        container.mux(stream.encode())
