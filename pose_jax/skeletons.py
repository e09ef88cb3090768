"""Skeletons: keypoint names, mirrored pairs, limbs, sigmas and clusters.

Left and right are the *person's*. Mirrored pairs are derived from the names, so a flip can
never use a stale index table. Sigmas are the per-keypoint constants of COCO's object keypoint
similarity; each skeleton says where its numbers come from.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
from collections.abc import Sequence

import numpy as np

_COCO_SIGMA = dict(
    nose=0.026, eye=0.025, ear=0.035, shoulder=0.079, elbow=0.072, wrist=0.062,
    hip=0.107, knee=0.087, ankle=0.089,
)  # fmt: skip
# COCO has no constant for these. CrowdPose (its evaluation kit) uses .079 for head top and
# neck; pelvis takes COCO's hip, thorax the neck's.
_OTHER_SIGMA = dict(head_top=0.079, neck=0.079, pelvis=0.107, thorax=0.079)


@dataclasses.dataclass(frozen=True)
class Skeleton:
    """An ordered set of named keypoints.

    Attributes:
      name: registry name.
      keypoints: names in file order; sides are prefixes `left_` and `right_`.
      limbs: pairs of names that are drawn and used as body segments.
      clusters: named body parts that partition the keypoints (for grouped explanations).
      sigmas: OKS constants in keypoint order (COCO's definition, kappa = 2 sigma).
      sigmas_source: where the constants come from.
      torso: names of two opposite joints (shoulder, hip) whose distance is the torso.
    """

    name: str
    keypoints: tuple[str, ...]
    limbs: tuple[tuple[str, str], ...]
    clusters: tuple[tuple[str, tuple[str, ...]], ...]
    sigmas: tuple[float, ...]
    sigmas_source: str
    torso: tuple[str, str] = ("left_shoulder", "right_hip")

    def __post_init__(self):
        known = set(self.keypoints)
        if len(known) != len(self.keypoints):
            raise ValueError(f"skeleton {self.name!r} names a keypoint twice")
        if len(self.sigmas) != len(self.keypoints):
            raise ValueError(
                f"skeleton {self.name!r} has {len(self.keypoints)} keypoints but "
                f"{len(self.sigmas)} sigmas; give one sigma per keypoint"
            )
        members = [k for _, names in self.clusters for k in names]
        for word in [*members, *(e for limb in self.limbs for e in limb)]:
            if word not in known:
                raise ValueError(f"skeleton {self.name!r} has no keypoint {word!r}")
        if members and sorted(members) != sorted(self.keypoints):
            raise ValueError(
                f"the clusters of skeleton {self.name!r} must hold every keypoint once"
            )

    @property
    def num_keypoints(self) -> int:
        return len(self.keypoints)

    @functools.cached_property
    def mirrored(self) -> np.ndarray:
        """`[k]` permutation: index of each keypoint's mirrored twin (itself on the axis)."""
        return np.array([self.index(_other_side(k)) for k in self.keypoints])

    @functools.cached_property
    def limb_indices(self) -> np.ndarray:
        """`[limbs, 2]` keypoint indices."""
        return np.array([[self.index(a), self.index(b)] for a, b in self.limbs])

    def index(self, keypoint: str) -> int:
        """Index of a keypoint by name.

        Raises:
          KeyError: no such keypoint; the message suggests the nearest name.
        """
        try:
            return self.keypoints.index(keypoint)
        except ValueError:
            near = difflib.get_close_matches(keypoint, self.keypoints, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise KeyError(
                f"skeleton {self.name!r} has no keypoint {keypoint!r}{hint}"
            ) from None

    def cluster_indices(self) -> tuple[tuple[int, ...], ...]:
        """Keypoint indices of every cluster, in cluster order."""
        return tuple(tuple(self.index(k) for k in names) for _, names in self.clusters)


@dataclasses.dataclass(frozen=True)
class Mapping:
    """Joints that two skeletons share, by name.

    Attributes:
      names: the shared names, in the target's order.
      source, target: indices of the shared joints in each skeleton, `[shared]`.
      missing: names of the target that the source does not have.
    """

    names: tuple[str, ...]
    source: np.ndarray
    target: np.ndarray
    missing: tuple[str, ...]


def mapping(source: str | Skeleton, target: str | Skeleton) -> Mapping:
    """Shared joints of two skeletons, by name.

    Raises:
      ValueError: the skeletons share no joint.
    """
    a, b = get(source), get(target)
    names = tuple(k for k in b.keypoints if k in a.keypoints)
    if not names:
        raise ValueError(f"skeletons {a.name!r} and {b.name!r} share no joint")
    return Mapping(
        names=names,
        source=np.array([a.index(k) for k in names]),
        target=np.array([b.index(k) for k in names]),
        missing=tuple(k for k in b.keypoints if k not in a.keypoints),
    )


def get(skeleton: str | Skeleton) -> Skeleton:
    """A skeleton by registry name (a `Skeleton` passes through).

    Raises:
      KeyError: unknown name; the message lists what exists.
    """
    if isinstance(skeleton, Skeleton):
        return skeleton
    if skeleton not in SKELETONS:
        raise KeyError(
            f"unknown skeleton {skeleton!r}; known: {', '.join(sorted(SKELETONS))}"
        )
    return SKELETONS[skeleton]


def from_names(keypoints: Sequence[str], name: str = "custom", limbs=()) -> Skeleton:
    """A skeleton for any list of names (COCO-format files of other bodies).

    Known joint names take the usual sigma; the others take 0.079, COCO's mean-sized joint.
    """
    return Skeleton(
        name=name,
        keypoints=tuple(keypoints),
        limbs=tuple(tuple(limb) for limb in limbs),
        clusters=(),
        sigmas=tuple(_sigma(k, 0.079) for k in keypoints),
        sigmas_source="COCO by joint name, 0.079 elsewhere",
    )


def _other_side(name: str) -> str:
    if name.startswith("left_"):
        return "right_" + name.removeprefix("left_")
    if name.startswith("right_"):
        return "left_" + name.removeprefix("right_")
    return name


def _sigma(name: str, default: float | None = None) -> float:
    word = name.removeprefix("left_").removeprefix("right_")
    value = _COCO_SIGMA.get(word, _OTHER_SIGMA.get(word, default))
    if value is None:
        raise KeyError(f"no sigma is known for keypoint {name!r}")
    return value


def _sides(*words: str) -> tuple[str, ...]:
    return tuple(f"{side}_{word}" for word in words for side in ("left", "right"))


_BODY_LIMBS = tuple(
    (f"{side}_{a}", f"{side}_{b}")
    for side in ("left", "right")
    for a, b in (
        ("shoulder", "elbow"), ("elbow", "wrist"), ("hip", "knee"), ("knee", "ankle"),
    )
)  # fmt: skip
_TRUNK = tuple((f"{s}_shoulder", f"{s}_hip") for s in ("left", "right")) + (
    ("left_shoulder", "right_shoulder"),
    ("left_hip", "right_hip"),
)
# XPose's clusters: head, arms, legs; COCO 5+3+3+3+3, LSP/AIC 3+3+3+3+2.
_ARMS_LEGS = tuple(
    (f"{side}_{limb}", tuple(f"{side}_{joint}" for joint in joints))
    for limb, joints in (
        ("arm", ("shoulder", "elbow", "wrist")), ("leg", ("hip", "knee", "ankle")),
    )
    for side in ("left", "right")
)  # fmt: skip
_COCO_SOURCE = "COCO evaluation kit"
_MIXED_SOURCE = "COCO evaluation kit; head top, neck, thorax .079 (CrowdPose kit)"


def _make(name, keypoints, limbs, head, sigmas_source, extra_clusters=()):
    return Skeleton(
        name=name,
        keypoints=tuple(keypoints),
        limbs=tuple(limbs),
        clusters=(("head", tuple(head)), *extra_clusters, *_ARMS_LEGS),
        sigmas=tuple(_sigma(k) for k in keypoints),
        sigmas_source=sigmas_source,
    )


_COCO_NAMES = ("nose",) + _sides(
    "eye", "ear", "shoulder", "elbow", "wrist", "hip", "knee", "ankle"
)
_FACE_LIMBS = (
    ("nose", "left_eye"), ("nose", "right_eye"), ("left_eye", "right_eye"),
    ("left_eye", "left_ear"), ("right_eye", "right_ear"),
    ("left_ear", "left_shoulder"), ("right_ear", "right_shoulder"),
)  # fmt: skip
_LEGS_RIGHT_FIRST = (
    "right_ankle", "right_knee", "right_hip", "left_hip", "left_knee", "left_ankle",
)  # fmt: skip
_ARMS_RIGHT_FIRST = (
    "right_wrist", "right_elbow", "right_shoulder",
    "left_shoulder", "left_elbow", "left_wrist",
)  # fmt: skip
_NECK_LIMBS = (
    ("head_top", "neck"), ("neck", "left_shoulder"), ("neck", "right_shoulder"),
)  # fmt: skip

COCO = _make(
    "coco", _COCO_NAMES, _BODY_LIMBS + _TRUNK + _FACE_LIMBS,
    _COCO_NAMES[:5], _COCO_SOURCE,
)  # fmt: skip
MPII = _make(
    "mpii",
    (*_LEGS_RIGHT_FIRST, "pelvis", "thorax", "neck", "head_top", *_ARMS_RIGHT_FIRST),
    _BODY_LIMBS + (
        ("left_hip", "pelvis"), ("right_hip", "pelvis"), ("pelvis", "thorax"),
        ("thorax", "neck"), ("neck", "head_top"),
        ("thorax", "left_shoulder"), ("thorax", "right_shoulder"),
    ),
    ("neck", "head_top"), _MIXED_SOURCE,
    (("trunk", ("pelvis", "thorax")),),
)  # fmt: skip
LSP = _make(
    "lsp", (*_LEGS_RIGHT_FIRST, *_ARMS_RIGHT_FIRST, "neck", "head_top"),
    _BODY_LIMBS + _TRUNK + _NECK_LIMBS, ("neck", "head_top"), _MIXED_SOURCE,
)  # fmt: skip
_AIC_BODY = tuple(
    f"{side}_{joint}"
    for joints in (("shoulder", "elbow", "wrist"), ("hip", "knee", "ankle"))
    for side in ("right", "left")
    for joint in joints
)
AIC = _make(
    "aic", (*_AIC_BODY, "head_top", "neck"),
    _BODY_LIMBS + _TRUNK + _NECK_LIMBS, ("head_top", "neck"), _MIXED_SOURCE,
)  # fmt: skip
# The author of the public mobile networks stores the same joints head first.
MOBILE = _make(
    "mobile", ("head_top", "neck", *_AIC_BODY),
    _BODY_LIMBS + _TRUNK + _NECK_LIMBS, ("head_top", "neck"), _MIXED_SOURCE,
)  # fmt: skip
CROWDPOSE = Skeleton(
    name="crowdpose",
    keypoints=_sides("shoulder", "elbow", "wrist", "hip", "knee", "ankle")
    + ("head_top", "neck"),
    limbs=_BODY_LIMBS + _TRUNK + _NECK_LIMBS,
    clusters=(("head", ("head_top", "neck")), *_ARMS_LEGS),
    sigmas=(0.079, 0.079, 0.072, 0.072, 0.062, 0.062, 0.107, 0.107, 0.087, 0.087,
            0.089, 0.089, 0.079, 0.079),
    sigmas_source="CrowdPose evaluation kit",
)  # fmt: skip
POSETRACK17 = _make(
    "posetrack17",
    (*_LEGS_RIGHT_FIRST, *_ARMS_RIGHT_FIRST, "neck", "nose", "head_top"),
    _BODY_LIMBS + _TRUNK + (("neck", "nose"), ("nose", "head_top"), *_NECK_LIMBS[1:]),
    ("neck", "nose", "head_top"), _MIXED_SOURCE,
)  # fmt: skip
POSETRACK18 = _make(
    "posetrack18",
    ("nose", "neck", "head_top", "left_ear", "right_ear", *_COCO_NAMES[5:]),
    _BODY_LIMBS + _TRUNK + (("neck", "nose"), ("nose", "head_top"), *_NECK_LIMBS[1:]),
    ("nose", "neck", "head_top", "left_ear", "right_ear"), _MIXED_SOURCE,
)  # fmt: skip

SKELETONS = {
    "coco": COCO,
    "mpii": MPII,
    "lsp": LSP,
    "aic": AIC,
    "mobile": MOBILE,
    "crowdpose": CROWDPOSE,
    "posetrack17": POSETRACK17,
    "posetrack18": POSETRACK18,
}
