"""Order and draws depend on the seed alone; positions restore; padding is masked."""

import numpy as np
import pytest

from pose_jax import config, data, skeletons
from pose_jax.data import pipeline
from pose_jax.data.augment import Augment
from pose_jax.data.weights import weighted
from pose_jax.pixels import InputSpec

VIEW = pipeline.View(InputSpec(size=(16, 16)), True, skeletons.COCO)
AUGMENT = Augment(flip=0.5, rotation_deg=30, rotation_probability=1, scale=0.25)


@pytest.fixture(scope="module")
def source():
    section = config.source(count=37, size=(48, 48))
    return data.open_source(section, root=None, skeleton="coco")


def iterator(source, batch=8, threads=1, **fields):
    return pipeline.train_iterator(
        source, VIEW, AUGMENT, batch=batch, seed=3, threads=threads, **fields
    )


def take(source, count, **fields):
    """(ids, matrices, images) of the first batches, in order."""
    stream = iterator(source, **fields)
    batches = [next(stream) for _ in range(count)]
    return [np.concatenate([b[n] for b in batches]) for n in ("id", "matrix", "image")]


@pytest.mark.parametrize(
    "fields,count", [(dict(threads=3), 8), (dict(workers=2), 8), (dict(batch=16), 4)]
)
def test_threads_workers_and_batch_do_not_matter(source, fields, count):
    plain = take(source, 8)
    for a, b in zip(plain, take(source, count, **fields)):
        np.testing.assert_array_equal(a, b)


def test_processes_share_one_order_and_have_their_own_draws(source):
    whole = take(source, 4)
    parts = [take(source, 4, process=p, processes=2) for p in (0, 1)]
    ids = np.stack([p[0] for p in parts], 1).ravel()
    np.testing.assert_array_equal(ids, whole[0])
    matrices = np.stack([p[1] for p in parts], 1).reshape(-1, 3, 3)
    np.testing.assert_array_equal(matrices, whole[1])
    assert not np.allclose(parts[0][1], parts[1][1])


def test_epochs_are_whole_and_differ(source):
    ids = take(source, 37, batch=2)[0]
    first, second = ids[:37], ids[37:]
    assert sorted(first) == sorted(second) == list(range(37))
    assert first.tolist() != second.tolist()


def test_position_restores_and_counts_batches_in_hand(source):
    stream = iterator(source, threads=2)
    for _ in range(5):
        next(stream)
    position = stream.state()
    sixth, seventh = next(stream), next(stream)
    other = iterator(source)
    other.set_state(position)
    np.testing.assert_array_equal(next(other)["image"], sixth["image"])
    other.set_state(stream.state(ahead=1))
    np.testing.assert_array_equal(next(other)["image"], seventh["image"])


def test_more_processes_than_people(source):
    with pytest.raises(ValueError, match="cannot feed 64 processes"):
        iterator(source, batch=64, processes=64)
    with pytest.raises(ValueError, match="not divisible by 3"):
        iterator(source, batch=8, processes=3)


def test_eval_batches_are_padded_and_masked(source):
    batches = list(pipeline.eval_batches(source, VIEW, batch=16))
    masks = np.concatenate([b["mask"] for b in batches])
    ids = np.concatenate([b["id"] for b in batches])
    assert [len(b["id"]) for b in batches] == [16, 16, 16]
    assert masks.tolist() == [True] * 37 + [False] * 11
    assert ids[masks].tolist() == list(range(37))
    halves = [
        list(pipeline.eval_batches(source, VIEW, batch=16, process=p, processes=2))
        for p in (0, 1)
    ]
    merged = np.concatenate(
        [np.concatenate([a["id"], b["id"]]) for a, b in zip(*halves)]
    )
    np.testing.assert_array_equal(merged[masks], ids[masks])


def test_weights_of_people_reach_the_batch(source):
    factors = {str(source.person(row).id): 0.25 * row for row in (0, 1, 6)}
    weighed = weighted(source, factors, "factors")
    for row in (0, 1, 6):
        plain = pipeline.make_sample(source, row, VIEW)
        sample = pipeline.make_sample(weighed, row, VIEW)
        labelled = plain["visible"] > 0
        assert labelled.any()
        np.testing.assert_array_equal(plain["weight"], labelled)
        np.testing.assert_array_equal(sample["weight"], 0.25 * row * labelled)
        assert sample["weight"].dtype == np.float32


def test_flip_twice_is_identity(source):
    """Mirroring swaps pairs by name and comes back exactly."""
    from pose_jax.data.augment import transform_person
    from pose_jax.geometry import crop_matrix

    person = source.person(3)
    size = (64, 64)
    plain = crop_matrix(person.box, size)
    mirrored = crop_matrix(person.box, size, flip=True)
    a, seen_a = transform_person(person, skeletons.COCO, plain, size, flip=False)
    b, seen_b = transform_person(person, skeletons.COCO, mirrored, size, flip=True)
    back = np.where(seen_b[:, None] > 0, np.stack([63 - b[:, 0], b[:, 1]], 1), 0)
    swap = skeletons.COCO.mirrored
    np.testing.assert_allclose(back[swap], a, atol=1e-9)
    np.testing.assert_array_equal(seen_b[swap], seen_a)
