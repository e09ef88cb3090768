"""Stores of latents: whole parts, resuming, other networks refused; collecting through taps."""

import jax
import numpy as np
import pytest
from tiny import tiny_config

from pose_jax import data, sharding
from pose_jax.analysis import taps
from pose_jax.config import source
from pose_jax.data.checks import DataError
from pose_jax.data.latents import LatentStore, latent_iterator
from pose_jax.pixels import normalise
from pose_jax.recipe import recipe
from pose_jax.tasks.latents import Trained, collect


def fields(n=10, **changes):
    found = dict(
        tap="t", shape=(2, 3), weights=7, step=1, source="s", input={"size": [4, 4]},
        ids=list(range(n)), image_ids=[f"p{i // 2}" for i in range(n)],
        labelled=np.arange(n) % 4, joints=3, part_rows=4,
    )  # fmt: skip
    return {**found, **changes}


def filled(path, n=10):
    store = LatentStore.create(path, **fields(n))
    values = np.random.default_rng(0).normal(size=(n, 2, 3)).astype(np.float32)
    for number in range(store.num_parts):
        store.write_part(number, values[np.array(store.part_rows(number))])
    return LatentStore.open(path), values


def test_rows_come_back(tmp_path):
    store, values = filled(tmp_path)
    flat = values.reshape(10, -1)
    np.testing.assert_array_equal(store.read(), flat)
    np.testing.assert_array_equal(store.read([9, 0, 4, 4]), flat[[9, 0, 4, 4]])
    np.testing.assert_array_equal(np.concatenate(store.parts()), flat)
    assert isinstance(store.parts()[0].base, np.memmap)
    full = store.rows("full")
    assert full.tolist() == [3, 7]
    np.testing.assert_array_equal(
        np.concatenate(store.selected_parts(full)), flat[full]
    )


def test_incomplete_and_damaged_stores(tmp_path):
    store, _ = filled(tmp_path)
    with pytest.raises(DataError, match="no stored latents"):
        LatentStore.open(tmp_path / "nothing")
    store.part(1).write_bytes(b"\x93NUMPY")
    with pytest.raises(DataError, match="part-00001.npy is damaged"):
        store.read()
    store.part(1).unlink()
    with pytest.raises(DataError, match="lacks 1 of 3 parts"):
        LatentStore.open(tmp_path)


@pytest.mark.parametrize(
    "change,words",
    [
        (dict(weights=8), "another checkpoint"),
        (dict(tap="u"), "tap: stored t, asked u"),
        (dict(input={"size": [8, 8]}), "another question"),
        (dict(ids=[*range(9), 77]), "other people"),
    ],
)
def test_another_question_is_refused(tmp_path, change, words):
    filled(tmp_path)
    LatentStore.create(tmp_path, **fields())  # The same question goes on.
    with pytest.raises(DataError, match=words):
        LatentStore.create(tmp_path, **fields(**change))


def test_bad_parts_and_filters(tmp_path):
    store, values = filled(tmp_path)
    with pytest.raises(ValueError, match="has shape"):
        store.write_part(0, values[:3])
    values[2, 1, 1] = np.nan
    with pytest.raises(ValueError, match="row 2 is not finite"):
        store.write_part(0, values[:4])
    with pytest.raises(ValueError, match="use all or full"):
        store.rows("most")
    store.index["joints"] = 17
    with pytest.raises(ValueError, match="none of 10 people"):
        store.rows("full")


def test_iterator_covers_every_row_and_resumes(tmp_path):
    store, values = filled(tmp_path, 12)
    rows = np.arange(12)
    batches = latent_iterator([store, store], rows, batch=4, seed=3)
    seen = [next(batches) for _ in range(3)]
    assert seen[0]["latent"].shape == (4, 2, 2, 3) and seen[0]["mask"].all()
    ids = np.concatenate([b["id"] for b in seen])
    assert sorted(ids) == list(range(12)) and ids.tolist() != list(range(12))
    np.testing.assert_array_equal(seen[1]["latent"][:, 1], values[seen[1]["id"]])
    state = batches.state()
    following = next(batches)
    again = latent_iterator([store, store], rows, batch=4, seed=3)
    again.set_state(state)
    np.testing.assert_array_equal(next(again)["id"], following["id"])
    ordered = latent_iterator([store], rows, batch=4, seed=3, shuffle=False)
    assert next(ordered)["id"].tolist() == [0, 1, 2, 3]
    halves = [
        latent_iterator([store], rows, batch=4, seed=3, process=p, processes=2)
        for p in (0, 1)
    ]
    both = [set(np.concatenate([next(h)["id"] for _ in range(3)])) for h in halves]
    assert not both[0] & both[1] and both[0] | both[1] == set(range(12))


@pytest.fixture(scope="module")
def trained():
    described = recipe(tiny_config())
    images = jax.numpy.zeros((1, 32, 32, 3))
    init = jax.jit(described.module.init)
    variables = init(jax.random.key(0, impl="unsafe_rbg"), images)
    return Trained(described, variables, 5, 1)


@pytest.fixture(scope="module")
def people():
    return data.open_source(
        source(count=11, seed=4, size=(48, 48)), root=None, skeleton="coco"
    )


def test_collect_is_the_tap(trained, people, tmp_path):
    """Latents are what the whole forward pass holds, in the order of the source; missing parts
    alone are computed again."""
    names = {"stack0/bottleneck": tmp_path / "a", "stack0/skip0": tmp_path / "b"}
    stores = collect(trained, people, names, batch=4, part_rows=6)
    sent, _ = next(taps.batches(people, trained.recipe, range(11), 11))
    images = normalise(sent["image"], trained.recipe.spec)
    outputs = trained.recipe.module.apply(trained.variables, images)
    for name, store in stores.items():
        want = np.asarray(outputs.taps[name]).reshape(11, -1)
        np.testing.assert_allclose(store.read(), want, atol=1e-5)
        assert store.shape == outputs.taps[name].shape[1:]
    store = stores["stack0/bottleneck"]
    kept = store.part(0).stat().mtime
    store.part(1).unlink()
    collect(trained, people, names, batch=4, part_rows=6)
    assert store.part(1).exists() and store.part(0).stat().mtime == kept


def test_taps_are_named(trained):
    described = trained.recipe
    assert taps.require_tap(described) == "stack0/bottleneck"
    assert taps.skip_taps(described) == ("stack0/skip0", "stack0/skip1")
    assert taps.decoder_taps(described) == ("stack0/decoder1", "stack0/decoder0")
    with pytest.raises(
        ValueError, match="no tap 'latent'; those that exist: .*stack0/skip0"
    ):
        taps.require_tap(described, "latent")
    c = tiny_config()
    c.model.skips = ()
    with pytest.raises(ValueError, match="no skip connections"):
        taps.skip_taps(recipe(c))


def test_reading_over_devices(trained, people):
    """Whatever the devices, the same numbers."""
    mesh = sharding.local_mesh()
    found = taps.read_taps(
        trained.recipe, trained.variables, people, [3, 1], ["stack0/bottleneck"],
        mesh=mesh, batch=2,
    )  # fmt: skip
    one = taps.read_taps(
        trained.recipe, trained.variables, people, [1], ["stack0/bottleneck"],
        mesh=mesh, batch=1,
    )  # fmt: skip
    name = "stack0/bottleneck"
    np.testing.assert_allclose(found[name][1], one[name][0], atol=1e-5)
