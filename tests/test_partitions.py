"""Partitions of keypoints: sizes, numbers of coalitions, files, mistakes."""

import json

import numpy as np
import pytest

from pose_jax import partitions, skeletons
from pose_jax.explain.shapley import grouped_coalitions

COCO, LSP, MPII = (skeletons.get(name) for name in ("coco", "lsp", "mpii"))


@pytest.mark.parametrize(
    "skeleton,name,sizes,rows",
    [
        (COCO, "limbs-v1", [5, 3, 3, 3, 3], 896),
        (COCO, "halves-v1", [5, 6, 6], 624),
        (COCO, "torso-v1", [5, 4, 2, 2, 2, 2], 1728),
        (COCO, "pairs-v1", [1, *[2] * 8], 4608),
        (COCO, "sides-v1", [1, 8, 8], 2040),
        (COCO, "joints-v1", [1] * 17, 2**17),
        (LSP, "limbs-v1", [2, 3, 3, 3, 3], 448),
        (LSP, "halves-v1", [2, 6, 6], None),
        (LSP, "torso-v1", [2, 4, 2, 2, 2, 2], None),
        (LSP, "pairs-v1", [2] * 6 + [1, 1], None),
        (LSP, "sides-v1", [2, 6, 6], None),
        (MPII, "limbs-v1", [2, 2, 3, 3, 3, 3], None),
        (MPII, "halves-v1", [4, 6, 6], None),
        (MPII, "joints-v1", [1] * 16, 2**16),
    ],
)
def test_sizes_and_coalitions(skeleton, name, sizes, rows):
    found = partitions.get(name, skeleton)
    assert sorted(map(len, found.clusters)) == sorted(sizes)
    assert sorted(i for c in found.clusters for i in c) == list(
        range(skeleton.num_keypoints)
    )
    assert len(found.cluster_names) == len(set(found.cluster_names)) == len(sizes)
    for number, members in enumerate(found.clusters):
        assert (found.owner[list(members)] == number).all()
    sizes = np.array(sizes)
    # xpose.md 1.4: 2^(m-1) (2 + sum of 2^b - 2).
    assert rows in (None, 2 ** (len(sizes) - 1) * (2 + (2**sizes - 2).sum()))
    if rows and rows < 10**4:
        assert len(grouped_coalitions(found.clusters, "gsv")) == rows


def test_every_skeleton_has_every_partition():
    for skeleton in skeletons.SKELETONS.values():
        for name in partitions.PARTITIONS:
            found = partitions.get(name, skeleton)
            assert sum(map(len, found.clusters)) == skeleton.num_keypoints


def test_members_are_what_the_names_say():
    found = partitions.get("torso-v1", COCO)
    named = found.record(COCO)["clusters"]
    assert named["torso"] == [
        "left_shoulder", "right_shoulder", "left_hip", "right_hip",
    ]  # fmt: skip
    assert named["right_arm"] == ["right_elbow", "right_wrist"]
    assert partitions.get("pairs-v1", COCO).record(COCO)["clusters"]["knee"] == [
        "left_knee", "right_knee",
    ]  # fmt: skip
    sides = partitions.get("sides-v1", LSP).record(LSP)["clusters"]
    assert sides["middle"] == ["neck", "head_top"]
    assert all(k.startswith("right_") for k in sides["right"])


@pytest.mark.parametrize("name", partitions.PARTITIONS)
def test_json_round_trip(name):
    found = partitions.get(name, LSP)
    again = partitions.from_record(json.loads(json.dumps(found.record(LSP))), LSP)
    assert again == found
    # Another order of the same joints: the names count.
    other = partitions.from_record(found.record(LSP), skeletons.get("aic"))
    assert (
        other.record(skeletons.get("aic"))["clusters"] == found.record(LSP)["clusters"]
    )


def test_lists_of_names_and_numbers():
    chain = skeletons.from_names(["a", "b", "c", "d"])
    found = partitions.from_lists("own", [["b", 0], np.array([2, 3])], chain)
    assert found.clusters == ((1, 0), (2, 3))
    assert found.cluster_names == ("b+a", "c+d")
    three = partitions.from_lists("own", [(0, 1, 2), ["d"]], chain)
    assert three.cluster_names == ("a+b+...", "d")


def test_shuffled_keeps_sizes_and_moves_members():
    limbs = partitions.get("limbs-v1", COCO)
    deals = [partitions.shuffled(limbs, seed) for seed in range(5)]
    for deal in deals:
        assert list(map(len, deal.clusters)) == list(map(len, limbs.clusters))
        assert sorted(i for c in deal.clusters for i in c) == list(range(17))
    assert len({deal.clusters for deal in deals}) == 5
    assert deals[3] == partitions.shuffled(limbs, 3)
    assert deals[3].name == "limbs-v1-shuffled3"


def test_unknown_names():
    with pytest.raises(
        ValueError, match="'limb' is unknown; use one of limbs-v1, halves"
    ):
        partitions.get("limb", COCO)
    plain = skeletons.from_names(["a", "b"])
    with pytest.raises(ValueError, match="'custom' has no anatomical clusters"):
        partitions.get("limbs-v1", plain)


A, B, C = "left_knee", "right_knee", "nose"
CHAIN = skeletons.from_names([A, B, C])


@pytest.mark.parametrize(
    "clusters,message",
    [
        ({"x": [A], "y": [B]}, r"missing \['nose'\], unknown \[\], twice \[\]"),
        ({"x": [A, B], "y": [B, C]}, r"twice \['right_knee'\]"),
        ({"x": [A, B, C, "tail"]}, r"unknown \['tail'\]"),
        ({"x": [A, B, C], "y": []}, "empty cluster 'y'"),
        ({}, "a clusters file holds"),
        ({"x": [0, 1, 2]}, "a clusters file holds"),
        ({"x": "nose"}, "a clusters file holds"),
        ([[A], [B, C]], "a clusters file holds"),
        (None, "a clusters file holds"),
    ],
)
def test_records_that_are_no_partition(clusters, message):
    with pytest.raises(ValueError, match=message):
        partitions.from_record({"clusters": clusters}, CHAIN)
    for record in ([1], "limbs", {"name": "x"}):
        with pytest.raises(ValueError, match="a clusters file holds"):
            partitions.from_record(record, CHAIN)


@pytest.mark.parametrize(
    "clusters,message",
    [
        ([[0, 1], [0, 1], [2]], "twice"),  # Two clusters that would bear one name.
        ([[0], [1]], r"missing \['nose'\]"),
        ([[0, 1], [2, 3]], "no keypoint 3; numbers go from 0 to 2"),
        ([[0, 1], [-1]], "no keypoint -1"),
        ([[0, 1, 2], []], "empty cluster"),
        ([0, 1, 2], "lists of keypoint names or numbers"),
        ([A, B, C], "lists of keypoint names or numbers"),
        ({"x": [A, B, C]}, "lists of keypoint names or numbers"),
    ],
)
def test_lists_that_are_no_partition(clusters, message):
    with pytest.raises(ValueError, match=message):
        partitions.from_lists("own", clusters, CHAIN)
