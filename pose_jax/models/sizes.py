"""Picture sizes that a network can take."""

from __future__ import annotations

from collections.abc import Sequence


def check_divisible(size: Sequence[int], multiple: int | Sequence[int]) -> None:
    """Refuse pictures whose sides the network cannot divide.

    Args:
      size: (height, width), pixels. multiple: of both sides, or of (height, width).

    Raises:
      ValueError: naming the nearest size that fits.
    """
    parts = (multiple, multiple) if isinstance(multiple, int) else tuple(multiple)
    if all(side % part == 0 for side, part in zip(size, parts)):
        return
    near = tuple(
        max(part, round(side / part) * part) for side, part in zip(size, parts)
    )
    wanted = parts[0] if parts[0] == parts[1] else parts
    raise ValueError(
        f"this network takes pictures whose sides are multiples of {wanted}, not "
        f"{size[0]}x{size[1]}; the nearest input.size is {near}"
    )
