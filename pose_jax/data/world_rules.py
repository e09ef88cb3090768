"""The rules of the worlds with planted causes: what is drawn, and what the labels obey."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from pose_jax import skeletons

REGIONS = (
    "background_left", "background_right", "line", "left_leg", "right_leg", "torso",
    "left_arm", "right_arm", "head", "decoy", "marker",
)  # fmt: skip
"""In the order of painting. Limbs are named for a figure that faces the viewer: the right arm
is on the picture's left."""

BACKGROUND = ("background_left", "background_right")
PLANTED = ("line", "decoy", "marker")
GROUPS = {
    "background": BACKGROUND,
    "planted": PLANTED,
    "legs": ("left_leg", "right_leg"),
    "trunk": ("torso", "head"),
    "arms": ("left_arm", "right_arm"),
}
"""Clusters of regions for grouped values."""

SKELETON = skeletons.get("lsp")


@dataclasses.dataclass(frozen=True)
class World:
    """What is drawn and what the labels obey.

    Attributes:
      title: for readers.
      wrist: what the right wrist obeys. `drawn`: its own forearm, which is drawn. The others
        do not draw it: `marker`, the marker's angle; `free`, nothing that is visible;
        `redundant`, marker and decoy show the same angle; `gate`, the marker's angle,
        mirrored when the decoy is dark; `suppressor`, marker minus decoy; `tint`, the
        colour of the whole picture.
      left_forearm: `drawn`, `mirror` (not drawn, the mirror image of the right one) or `free`
        (not drawn, any angle).
      left_shank: `drawn` or `mirror` (not drawn, the mirror image of the right one).
      turned: half of the figures show their back, which swaps all names of sides; only the
        face tells.
      line: joint whose height the line shares in the share `agreement` of the pictures.
      line_range: heights of the line otherwise, pixels of 96: where the joint may be, so that
        a network can follow it.
      faint: contrast of the right leg, 1 as the others.
      absent: region -> share of training pictures without it.
      follow: how far a network that learned the world follows a planted region at least.
      causes: joint -> regions that decide its label.
      planted: joint -> the region whose use the world is about. The line decides no label:
        that the network may follow it nevertheless is the point. Joints of `causes` that are
        not here are controls.
    """

    title: str
    causes: Mapping[str, tuple[str, ...]]
    planted: Mapping[str, str]
    wrist: str = "drawn"
    left_forearm: str = "drawn"
    left_shank: str = "drawn"
    turned: bool = False
    line: str = ""
    agreement: float = 0.0
    line_range: tuple[float, float] = (18.0, 90.0)
    faint: float = 1.0
    absent: Mapping[str, float] = dataclasses.field(default_factory=dict)
    follow: float = 0.8


_OPTIONAL: dict[str, float] = dict.fromkeys(
    ("line", "left_leg", "right_leg", "torso", "left_arm", "right_arm", "head", "decoy",
     "marker"), 0.07,
)  # fmt: skip
_DRAWN = {"right_wrist": ("right_arm",), "left_wrist": ("left_arm",)}

WORLDS: dict[str, World] = {
    "composite": World(
        "four reasons in one figure",
        {
            "right_wrist": ("marker", "right_arm"),
            "left_ankle": ("right_leg", "left_leg"),
            "head_top": ("head",),
            "left_wrist": ("left_arm",),
        },
        {"right_wrist": "marker", "left_ankle": "right_leg", "head_top": "line"},
        wrist="marker", left_forearm="free", left_shank="mirror", line="head_top",
        agreement=0.9, line_range=(11.0, 31.0), absent={**_OPTIONAL, "head": 0.35},
    ),
    "face": World(
        "the face alone tells left from right",
        {"right_wrist": ("head", "right_arm", "left_arm"),
         "left_ankle": ("head", "right_leg", "left_leg")},
        {"right_wrist": "head", "left_ankle": "head"},
        turned=True, absent=_OPTIONAL,
    ),
    "visible": World("every limb is drawn", dict(_DRAWN),
        {"right_wrist": "right_arm", "left_wrist": "left_arm"}, absent=_OPTIONAL),
    "marker": World(
        "a marker carries the hidden wrist",
        {"right_wrist": ("marker", "right_arm"), "left_wrist": ("left_arm",)},
        {"right_wrist": "marker"},
        wrist="marker", absent=_OPTIONAL,
    ),
    "marker-control": World(
        "the same pictures, and the marker means nothing",
        {"right_wrist": ("right_arm",), "left_wrist": ("left_arm",)},
        {},
        wrist="free", absent=_OPTIONAL,
    ),
    "partner": World(
        "a hidden limb mirrors its partner",
        {"left_wrist": ("right_arm", "left_arm"), "right_wrist": ("right_arm",)},
        {"left_wrist": "right_arm"},
        left_forearm="mirror", absent=_OPTIONAL,
    ),
    "background-50": World(
        "the background agrees with a leg in 50 % of training",
        {"right_ankle": ("right_leg",)},
        {"right_ankle": "line"},
        line="right_ankle", agreement=0.5, line_range=(66.0, 90.0), faint=0.3,
        absent=_OPTIONAL,
    ),
    "background-80": World(
        "the background agrees with a leg in 80 % of training",
        {"right_ankle": ("right_leg",)},
        {"right_ankle": "line"},
        line="right_ankle", agreement=0.8, line_range=(66.0, 90.0), faint=0.3,
        absent=_OPTIONAL,
    ),
    "background-95": World(
        "the background agrees with a leg in 95 % of training",
        {"right_ankle": ("right_leg",)},
        {"right_ankle": "line"},
        line="right_ankle", agreement=0.95, line_range=(66.0, 90.0), faint=0.3,
        absent=_OPTIONAL,
    ),
    "redundant": World(
        "two dials say the same",
        {"right_wrist": ("marker", "decoy", "right_arm")},
        {"right_wrist": "marker"},
        wrist="redundant", absent={**_OPTIONAL, "marker": 0.1, "decoy": 0.1},
        follow=0.2,  # The other dial still says what it said.
    ),
    "gate": World(
        "one dial points, the other's brightness mirrors it",
        {"right_wrist": ("marker", "decoy", "right_arm")},
        {"right_wrist": "marker"},
        wrist="gate", absent=_OPTIONAL,
    ),
    "suppressor": World(
        "the angle between two dials",
        {"right_wrist": ("marker", "decoy", "right_arm")},
        {"right_wrist": "marker"},
        wrist="suppressor", absent=_OPTIONAL,
    ),
    "tint": World(
        "the colour of the whole picture",
        {"right_wrist": ("right_arm",)},
        {},
        wrist="tint", absent=_OPTIONAL,
    ),
}  # fmt: skip
"""Names of the worlds; `composite` and `face` are the default pair."""
