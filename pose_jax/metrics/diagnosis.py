"""What kind of error every keypoint is, and where it would lie without that error.

Following Ronchi & Perona, "Benchmarking and error diagnosis in multi-instance pose
estimation", ICCV 2017. With KS(p, q) = exp(-|p - q|^2 / (2 area (2 sigma)^2)), where
area belongs to the person who owns q, every labelled keypoint of a person with a
prediction p gets one label:

  miss       no candidate reaches .5
  good       its own place is the nearest candidate, KS >= .85
  jitter     its own place is the nearest candidate, .5 <= KS < .85
  inversion  the mirrored joint of the same person is nearer
  swap       the same joint, or its mirror, of another person of the picture is nearer
  absent     the network gave no keypoint (score <= 0), whatever the coordinates are
  confusion  option `any_part`: those misses that lie on another joint of the person

Candidates that are not labelled cannot win. Equal ones rank own, others, twin, others
mirrored. At exactly .85 a keypoint is good; the authors' code gives it no label.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int, Num, Shaped

from pose_jax import skeletons
from pose_jax.arrays import Array
from pose_jax.metrics.points import check_points

__all__ = [
    "GOOD", "ERRORS", "LABELS", "TOLERANCE", "UNLABELLED", "KeypointErrors", "People",
    "box_area", "corrected", "in_same_image", "label_keypoints",
]  # fmt: skip

LABELS = ("good", "jitter", "inversion", "swap", "miss", "absent", "confusion")
"""Names of the codes 0, 1, ..."""
UNLABELLED = -1
GOOD, JITTER, INVERSION, SWAP, MISS, ABSENT, CONFUSION = range(len(LABELS))
ERRORS = ("miss", "confusion", "absent", "swap", "inversion", "jitter")
"""Labels that can be corrected, in the published order of the cumulative figure
(confusion and absent, which are misses there, follow the misses)."""
NEAR, HUMAN = 0.5, 0.85
"""Similarity that counts as near, and the margin of human annotators."""
TOLERANCE = 1e-9
"""Rounding of coordinates decides neither ties nor thresholds."""


@dataclasses.dataclass(frozen=True, eq=False)
class People:
    """Labelled people of a data set, all that may stand in a picture.

    Attributes:
      points: image pixels; read where labelled only.
      visible: 0 not labelled, 1 occluded, 2 visible.
      area: square pixels, in the frame of the points.
      image: the picture of every person (numbers or words).
    """

    points: Float[np.ndarray, "m k 2"]
    visible: Int[np.ndarray, "m k"]
    area: Float[np.ndarray, "m"]
    image: Shaped[np.ndarray, "m"]


@dataclasses.dataclass(frozen=True, eq=False)
class KeypointErrors:
    """Labels of n predicted people, with what they rest on.

    Attributes:
      label: code of `LABELS`, `UNLABELLED` where there is no ground truth.
      own, twin, others: similarity to the right place, the mirrored joint, the best
        place on other people; -1 where there is none.
      source: row of `People` that holds the best place on other people, -1 for none.
      source_distance: pixels from there, NaN for none.
      strict: inversion that is not also near its own place (twin >= .5, own < .5).
        Where two joints are close, the nearer one wins by a pixel.
      untestable: the mirrored joint is not labelled: an inversion would look like a
        miss.
      predicted, true, area, sigmas, person: what was compared; `person` are rows of
        `People`.
      lonely: no picture holds two labelled people, so that nothing can be a swap.
      any_part: whether confusions were asked for.
      scored: whether keypoint scores were given (else nothing can be absent).
    """

    label: Int[np.ndarray, "n k"]
    own: Float[np.ndarray, "n k"]
    twin: Float[np.ndarray, "n k"]
    others: Float[np.ndarray, "n k"]
    source: Int[np.ndarray, "n k"]
    source_distance: Float[np.ndarray, "n k"]
    strict: Bool[np.ndarray, "n k"]
    untestable: Bool[np.ndarray, "n k"]
    predicted: Float[np.ndarray, "n k 2"]
    true: Float[np.ndarray, "n k 2"]
    area: Float[np.ndarray, "n"]
    sigmas: Float[np.ndarray, "k"]
    person: Int[np.ndarray, "n"]
    lonely: bool
    any_part: bool
    scored: bool

    def where(self, name: str) -> Bool[np.ndarray, "n k"]:
        """Keypoints with that label.

        Raises:
          ValueError: no such label.
        """
        if name not in LABELS:
            raise ValueError(f"unknown label {name!r}; use one of {', '.join(LABELS)}")
        return self.label == LABELS.index(name)

    @property
    def labelled(self) -> Bool[np.ndarray, "n k"]:
        return self.label != UNLABELLED


def label_keypoints(
    predicted: Num[Array, "n k 2"],
    people: People,
    skeleton: str | skeletons.Skeleton,
    *,
    person: Int[np.ndarray, "n"] | None = None,
    scores: Num[Array, "n k"] | None = None,
    sigmas: Sequence[float] | Num[np.ndarray, "k"] | None = None,
    any_part: bool = False,
) -> KeypointErrors:
    """One label for every labelled keypoint of the matched people.

    Args:
      predicted: image pixels, finite.
      people: everybody labelled in the pictures, also who has no prediction: swaps go
        to them. Who has no area or no label is nobody's candidate.
      skeleton: mirrored joints by name; one without a partner is never inverted.
      person: row of `people` that prediction i was matched to. None: prediction i
        belongs to person i (boxes were given).
      scores: of the keypoints; 0 and below means "not predicted". None: all were.
      sigmas: constants; None takes the skeleton's (by joint name, see
        `Skeleton.sigmas_source`).
      any_part: name the misses that lie within .5 of another joint of the same person
        (by that joint's sigma) confusions. All other labels stay as they are.

    Raises:
      ValueError: shapes disagree, a number is not finite, or a matched person has no
        positive area; the message names the row.
    """
    skeleton = skeletons.get(skeleton)
    constants = np.asarray(skeleton.sigmas if sigmas is None else sigmas, np.float64)
    names = skeleton.keypoints
    if constants.shape != (len(names),) or not (constants > 0).all():
        raise ValueError(
            f"{constants.size} sigmas for the {len(names)} keypoints of "
            f"{skeleton.name!r}; give one positive sigma per keypoint"
        )
    person = np.arange(len(predicted)) if person is None else person
    if (
        len(person) != len(predicted)
        or not np.isin(person, range(len(people.area))).all()
    ):
        raise ValueError(
            f"{len(predicted)} predictions need as many rows of the {len(people.area)} "
            "people; match them first and give `person`"
        )
    points, true, visible = check_points(
        predicted, people.points[person], people.visible[person], names
    )
    labelled, area = visible > 0, people.area[person].astype(np.float64)
    bad = np.flatnonzero(labelled.any(1) & ~((area > 0) & (area < np.inf)))
    if bad.size:
        raise ValueError(
            f"the person of row {bad[0]} has area {area[bad[0]]}; give square pixels "
            "(box_area when there is no segmentation)"
        )
    area = np.where(labelled.any(1), area, 1.0)
    if scores is not None and np.shape(scores) != labelled.shape:
        raise ValueError(f"scores {np.shape(scores)} must be {labelled.shape}")

    mirrored = skeleton.mirrored
    paired = mirrored != np.arange(len(names))
    own = _similarity(points, true, labelled, area, constants)
    partner = labelled[:, mirrored] & paired
    twin = _similarity(points, true[:, mirrored], partner, area, constants)
    same, other, source, distance, lonely = _others(
        points, person, people, mirrored, paired, constants
    )
    label, strict = _decide(own, same, twin, other)
    if any_part:
        part = _other_part(points, true, labelled, area, constants)
        label[(label == MISS) & (part >= NEAR - TOLERANCE)] = CONFUSION
    if scores is not None:
        label[np.asarray(scores) <= 0] = ABSENT
    label[~labelled] = UNLABELLED
    return KeypointErrors(
        label=label, own=own, twin=twin, others=np.maximum(same, other),
        source=source, source_distance=distance,
        strict=strict & (label == INVERSION),
        untestable=labelled & ~labelled[:, mirrored],
        predicted=points, true=true, area=area, sigmas=constants,
        person=np.asarray(person), lonely=lonely, any_part=any_part,
        scored=scores is not None,
    )  # fmt: skip


def corrected(
    errors: KeypointErrors, types: Collection[str], *, compatible: bool = False
) -> Float[np.ndarray, "n k 2"]:
    """The predictions with the errors of some types taken away, as floats.

    Jitter moves to similarity .85 with the right place, miss (confusion, absent) to .5,
    inversion and swap to the similarity they had with the wrong place; everything else
    stays. The bearing from the right place is kept. All thresholds are reached by 1e-9,
    so that AP at .50 and .85 does not depend on rounding.

    Args:
      types: names of `ERRORS`.
      compatible: the distance of the authors' code, which has sigma in place of
        2 sigma: similarity t becomes t^(1/4) (.960 for .85, .841 for .5), and gains
        come out too large. For comparisons with published figures only.

    Raises:
      ValueError: a type cannot be corrected.
    """
    unknown = sorted(set(types) - set(ERRORS))
    if unknown:
        raise ValueError(f"cannot correct {unknown}; choose among {', '.join(ERRORS)}")
    goal = np.full(errors.label.shape, NEAR)
    goal[errors.label == JITTER] = HUMAN
    wrong = np.maximum(errors.twin, errors.others)
    moved = np.isin(errors.label, (INVERSION, SWAP))
    goal = np.minimum(np.where(moved, wrong, goal) + TOLERANCE, 1.0)
    chosen = np.isin(errors.label, [LABELS.index(t) for t in types])
    # An absent keypoint may lie well by chance; nothing is ever made worse.
    chosen &= errors.own < goal
    spread = 2.0 * errors.sigmas * np.sqrt(errors.area)[:, None]
    distance = spread * np.sqrt(-2.0 * np.log(goal)) * (0.5 if compatible else 1.0)
    offset = errors.predicted - errors.true
    # What moves lies somewhere else than in the right place, so its length is above 0.
    length = np.linalg.norm(offset, axis=-1, keepdims=True)
    bearing = offset / np.where(length > 0, length, 1.0)
    place = errors.true + distance[..., None] * bearing
    return np.where(chosen[..., None], place, errors.predicted)


def box_area(boxes: Num[Array, "n 4"]) -> Float[np.ndarray, "n"]:
    """.53 x width x height of xywh boxes: the area where nobody drew a segmentation
    (CrowdPose's evaluation kit)."""
    boxes = np.asarray(boxes, np.float64)
    return 0.53 * boxes[:, 2] * boxes[:, 3]


def in_same_image(
    image: Shaped[np.ndarray, "n"], people: People
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All (row, person) pairs that share a picture, as (rows, people): in every step
    each row occurs at most once."""
    order = np.argsort(people.image, kind="stable")
    ordered = people.image[order]
    start = np.searchsorted(ordered, image, "left")
    count = np.searchsorted(ordered, image, "right") - start
    for step in range(int(count.max(initial=0))):
        rows = np.flatnonzero(count > step)
        yield rows, order[start[rows] + step]


def _similarity(points, places, there, area, sigmas) -> np.ndarray:
    """KS of points to places, -1 where no place is."""
    offset = np.where(there[..., None], points - places, 0.0)
    squared = (offset**2).sum(-1)
    return np.where(
        there, np.exp(-squared / (2.0 * area[:, None] * (2.0 * sigmas) ** 2)), -1.0
    )


def _others(points, person, people, mirrored, paired, sigmas):
    """The best places on other people: same joint, mirrored joint; whose; pixels; and
    whether there was nobody else at all."""
    same, other = np.full((2, *points.shape[:2]), -1.0)
    source = np.full(same.shape, -1)
    distance = np.full(same.shape, np.nan)
    usable = (people.area > 0) & (people.area < np.inf)
    usable &= (people.visible > 0).any(1)
    lonely = True
    for rows, who in in_same_image(people.image[person], people):
        keep = (who != person[rows]) & usable[who]
        rows, who = rows[keep], who[keep]
        lonely = lonely and not len(rows)
        for best, order, allowed in (
            (same, np.arange(len(mirrored)), np.ones_like(paired)),
            (other, mirrored, paired),
        ):
            places = people.points[who][:, order]
            there = (people.visible[who][:, order] > 0) & allowed
            found = _similarity(points[rows], places, there, people.area[who], sigmas)
            nearer = found > np.maximum(same, other)[rows]
            source[rows] = np.where(nearer, who[:, None], source[rows])
            pixels = np.linalg.norm(points[rows] - places, axis=-1)
            distance[rows] = np.where(nearer, pixels, distance[rows])
            best[rows] = np.maximum(best[rows], found)
    return same, other, source, distance, lonely


def _decide(own, same, twin, other) -> tuple[np.ndarray, np.ndarray]:
    """Labels by the nearest candidate, in the order of the arguments among equals."""
    candidates = np.stack([own, same, twin, other])
    best = candidates.max(0)
    winner = (candidates >= best - TOLERANCE).argmax(0)
    label = np.choose(winner, [JITTER, SWAP, INVERSION, SWAP])
    label[(winner == 0) & (own >= HUMAN - TOLERANCE)] = GOOD
    label[best < NEAR - TOLERANCE] = MISS
    return label, own < NEAR - TOLERANCE


def _other_part(points, true, labelled, area, sigmas) -> np.ndarray:
    """Similarity to the best joint of the same person, by that joint's sigma."""
    best = np.full(labelled.shape, -1.0)
    for j in range(len(sigmas)):
        found = _similarity(
            points, true[:, j : j + 1], labelled[:, j : j + 1], area, sigmas[j]
        )
        best = np.maximum(best, found)
    return best
