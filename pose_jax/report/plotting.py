"""What all figures share: colours that colour-blind readers tell apart, names, PNG bytes.

Orange raises a score and blue lowers it, everywhere (Okabe and Ito's vermilion and blue).
"""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

RAISES, LOWERS = "#d55e00", "#0072b2"
INK, FAINT, MISSING = "0.15", "0.6", "0.85"
TARGET = "#f0e442"
OKABE_ITO = (
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000",
)  # fmt: skip
DIVERGING = LinearSegmentedColormap.from_list(
    "blue_orange", ["#003f6b", LOWERS, "#f7f7f7", RAISES, "#7a3600"]
).with_extremes(bad=MISSING)
DPI = 130


def new_figure(width: float, height: float) -> Figure:
    """An empty figure (inches) that nobody else keeps alive, on the Agg canvas."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def png(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def words(name: str) -> str:
    """`right_knee` -> `right knee`."""
    return name.replace("_", " ")


def signed(value: float) -> str:
    """`+0.12`, `-0.30`, `0.00`, with a true minus; a dash where there is no number."""
    if not math.isfinite(value):
        return "–"
    text = f"{value:+.2f}"
    return "0.00" if text in ("+0.00", "-0.00") else text.replace("-", "−")


def hue(value: float) -> str:
    """Colour of a contribution."""
    return RAISES if value >= 0 else LOWERS


def numbers(values: Any) -> np.ndarray:
    """JSON's lists as floats: None becomes NaN."""
    return np.array(values, dtype=float)


def bare(axes: Any, *keep: str) -> None:
    """Takes the spines away that carry no scale."""
    for side, spine in axes.spines.items():
        spine.set_visible(side in keep)
