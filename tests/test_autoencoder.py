"""The autoencoder in the bottleneck: published sizes, taps, both stages of its training."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny_config

from pose_jax import checkpoint, data, models, sharding
from pose_jax.config import UserError, source
from pose_jax.data.checks import DataError
from pose_jax.data.latents import LatentStore
from pose_jax.data.sources import Filters
from pose_jax.models import THESIS, Edit
from pose_jax.models.autoencoder import Autoencoder, AutoencoderConfig
from pose_jax.recipe import recipe
from pose_jax.tasks import analyse, pretrain, train
from pose_jax.tasks.feeds import make_feed
from pose_jax.tasks.latents import collect, load_trained
from pose_jax.tasks.workdir import claim
from pose_jax.training.objectives import latent
from pose_jax.trees import flat_names

TINY = dict(name="hourglass", stacks=1, depth=2, features=8, stem=(4, 4, 8))


def size(tree):
    return sum(x.size for x in jax.tree.leaves(tree))


def shapes(**fields):
    section = {"name": "hourglass", **THESIS, "features": 256, **fields}
    module = models.build(section, num_keypoints=17)
    images = jnp.zeros((1, 256, 256, 3))
    variables = jax.eval_shape(module.init, jax.random.key(0), images)
    return variables["params"], jax.eval_shape(module.apply, variables, images)


def test_the_thesis_autoencoder():
    params, outputs = shapes(autoencoder="convolutional")
    squeeze = params["stack0_autoencoder"]
    assert size(squeeze) == 1_578_994
    assert size(params) == 16_105_047
    assert {
        n: leaf.shape for n, leaf in flat_names(squeeze).items() if "kernel" in n
    } == {
        "encoder0/kernel": (3, 3, 256, 192),
        "encoder1/kernel": (3, 3, 192, 128),
        "encoder2/kernel": (3, 3, 128, 64),
        "code/kernel": (1024, 50),
        "expand/kernel": (50, 1024),
        "decoder0/kernel": (3, 3, 64, 128),
        "decoder1/kernel": (3, 3, 128, 192),
        "decoder2/kernel": (3, 3, 192, 256),
    }
    assert outputs.taps["stack0/code"].shape == (1, 50)
    assert outputs.taps["stack0/reconstruction"].shape == (1, 4, 4, 256)


def test_every_stack_may_have_one():
    params, outputs = shapes(stacks=2, autoencoder="convolutional")
    assert {"stack0_autoencoder", "stack1_autoencoder"} <= set(params)
    assert "stack1/code" in outputs.taps


@pytest.mark.parametrize(
    "fields,words",
    [
        (dict(autoencoder="convolutional", code=5000), "4096 values"),
        (dict(autoencoder="pca", code=4097), "smaller code"),
        (dict(autoencoder="vae"), "model.autoencoder is 'vae'"),
        (dict(autoencoder_output="tanh"), "model.autoencoder_output"),
        (dict(code=0), "at least 1"),
        (dict(skips=(4,)), "levels beyond 0..3"),
    ],
)
def test_bad_fields(fields, words):
    with pytest.raises(ValueError, match=words):
        shapes(**fields)


@pytest.fixture(scope="module")
def network():
    module = models.build(
        {**TINY, "autoencoder": "convolutional", "code": 6}, num_keypoints=3
    )
    images = jax.random.normal(jax.random.key(1), (2, 32, 32, 3))
    variables = jax.jit(module.init)(jax.random.key(0, impl="unsafe_rbg"), images)
    return module, variables, images


def test_decode_of_encode_through_the_taps(network):
    """The decoder reads the reconstruction, which comes from the code alone."""
    module, variables, images = network
    whole = module.apply(variables, images)
    taps = whole.taps
    for name in ("stack0/bottleneck", "stack0/code", "stack0/reconstruction"):
        edits = {name: Edit(0.0, taps[name])}
        again = module.apply(variables, images, edits=edits)
        np.testing.assert_allclose(again.heatmaps, whole.heatmaps, atol=1e-5)
    moved = module.apply(variables, images, edits={"stack0/code": Edit(shift=1.0)})
    assert np.abs(moved.heatmaps - whole.heatmaps).max() > 1e-4
    squeeze = Autoencoder(module.config.squeeze)
    params = {"params": variables["params"]["stack0_autoencoder"]}
    code, restored = squeeze.apply(params, taps["stack0/bottleneck"])
    np.testing.assert_allclose(code, taps["stack0/code"], atol=1e-6)
    np.testing.assert_allclose(restored, taps["stack0/reconstruction"], atol=1e-6)
    assert (np.asarray(restored) >= 0).all()


def test_linear_output_takes_both_signs(network):
    module, variables, images = network
    linear = Autoencoder(AutoencoderConfig("convolutional", 6, "linear"))
    params = {"params": variables["params"]["stack0_autoencoder"]}
    latent = module.apply(variables, images).taps["stack0/bottleneck"]
    assert (np.asarray(linear.apply(params, latent)[1]) < 0).any()


def test_a_complete_projection_changes_nothing():
    images = jax.random.normal(jax.random.key(1), (2, 32, 32, 3))
    plain = models.build(TINY, num_keypoints=3)
    full = models.build({**TINY, "autoencoder": "pca", "code": 32}, num_keypoints=3)
    variables = jax.jit(full.init)(jax.random.key(0, impl="unsafe_rbg"), images)
    params = dict(variables["params"])
    squeeze = params.pop("stack0_autoencoder")["projection"]
    assert squeeze["components"].shape == (32, 32)
    stats = variables["batch_stats"]
    without = plain.apply({"params": params, "batch_stats": stats}, images)
    np.testing.assert_allclose(
        full.apply(variables, images).heatmaps, without.heatmaps, atol=1e-5
    )

    def loss(params):
        return full.apply(
            {"params": params, "batch_stats": stats}, images
        ).heatmaps.sum()

    grads = jax.grad(loss)(variables["params"])["stack0_autoencoder"]["projection"]
    assert not any(np.any(g) for g in jax.tree.leaves(grads))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("base"))
    c = tiny_config(steps=4, eval_every=0)
    c.data.select.name = ""
    claim(c, path)
    train.run(c, path)
    return path


def staged_config(base, **model):
    c = tiny_config(steps=2, eval_every=0)
    c.data.select.name = ""
    c.init_from.update(path=base, checkpoint="last")
    c.model.update(model)
    c.pretrain.update(steps=30, batch=16, holdout=0.25, eval_every=15)
    c.pretrain.optimiser.update(name="adam", learning_rate=3e-3)
    return c


def load(path, which="last"):
    return flat_names(checkpoint.load_variables(path, which)[0])


def run(c, path):
    claim(c, path)
    pretrain.run(c, path)
    train.run(c, path)


def test_two_stages(base, tmp_path):
    """Stage one trains the autoencoder alone and lowers its loss; stage two starts there and
    trains everything; a second call has nothing to do."""
    c = staged_config(base, autoencoder="convolutional", code=6)
    run(c, str(tmp_path))
    old, first, last = load(base), load(tmp_path / "pretrain"), load(tmp_path)
    assert set(first) == set(last) and set(old) < set(first)
    for name, value in old.items():
        np.testing.assert_array_equal(first[name], value)
    moved = [n for n in last if n.startswith("params/") and np.any(last[n] != first[n])]
    assert len(moved) == sum(n.startswith("params/") for n in last)
    rows = [
        line
        for line in (tmp_path / "pretrain" / "metrics.jsonl").read_text().splitlines()
    ]
    losses = [json.loads(r)["train/loss"] for r in rows if "train/loss" in r]
    held_out = [json.loads(r)["select/reconstruction"] for r in rows if "select/" in r]
    assert losses[-1] < losses[0] and held_out[-1] > held_out[0]
    before = (tmp_path / "pretrain" / "metrics.jsonl").read_text()
    pretrain.run(c, str(tmp_path))
    assert (tmp_path / "pretrain" / "metrics.jsonl").read_text() == before


@pytest.mark.slow
def test_pca_stage_is_fitted_and_never_trained(base, tmp_path):
    c = staged_config(base, autoencoder="pca", code=5)
    run(c, str(tmp_path))
    first, last = load(tmp_path / "pretrain"), load(tmp_path)
    names = [n for n in first if "projection" in n]
    assert len(names) == 2
    for name in names:
        np.testing.assert_array_equal(first[name], last[name])
    components = first["params/stack0_autoencoder/projection/components"]
    np.testing.assert_allclose(components @ components.T, np.eye(5), atol=1e-5)
    kernel = "params/stem_conv/kernel"
    assert np.any(first[kernel] != last[kernel])


def test_random_start_needs_no_first_stage(base, tmp_path):
    c = staged_config(base, autoencoder="convolutional", code=6)
    c.pretrain.steps = 0
    run(c, str(tmp_path))
    assert not (tmp_path / "pretrain").exists()
    c.pretrain.steps = 30
    with pytest.raises(UserError, match="put 'pretrain' before 'train'"):
        other = tmp_path / "other"
        claim(c, str(other))
        train.run(c, str(other))


def test_latents_of_another_checkpoint_are_refused(base, tmp_path):
    """The stored latents name the weights that made them."""
    c = staged_config(base)
    trained = load_trained(base, "last")
    people = data.open_source(c.data.train.source, root=None, skeleton="coco")
    folders = {"stack0/bottleneck": tmp_path / "latents"}
    store = collect(trained, people, folders, batch=16, part_rows=24)[
        "stack0/bottleneck"
    ]
    assert len(store) == 64 and store.num_parts == 3
    with pytest.raises(DataError, match="another checkpoint"):
        LatentStore.open(store.path, weights=1)
    other = trained._replace(weights=trained.weights + 1)
    with pytest.raises(DataError, match="delete the folder"):
        collect(other, people, folders, batch=16)


@pytest.mark.slow
def test_two_stacks_have_their_own_autoencoders(tmp_path):
    """Both are pretrained on their own latents, and read through their own taps."""
    c = tiny_config(steps=2, eval_every=0)
    c.model.stacks = 2
    c.data.select.name = ""
    path = str(tmp_path / "base")
    claim(c, path)
    train.run(c, path)
    c = staged_config(path, stacks=2, autoencoder="convolutional", code=4)
    c.pretrain.update(steps=4, file_order=True, labelled="all")
    run(c, str(tmp_path / "both"))
    first = load(tmp_path / "both" / "pretrain")
    kernels = [first[f"params/stack{i}_autoencoder/code/kernel"] for i in (0, 1)]
    assert np.any(kernels[0] != kernels[1])
    stores = sorted(
        p.name for p in next((tmp_path / "base" / "latents").iterdir()).iterdir()
    )
    assert stores == ["stack0-bottleneck", "stack1-bottleneck"]


def test_latents_of_a_carved_split_are_held_out_anew(tmp_path):
    """People of a training part, carved by the hash of their pictures, are split again: the
    same hash would hold out nobody."""
    carved = Filters(part="train", holdout=0.3)
    ids = [i for i in range(400) if carved.in_part(i, i)]
    c = staged_config("base", autoencoder="convolutional", code=6)
    store = LatentStore.create(
        tmp_path / "stack0-bottleneck", tap="t", shape=(2, 2, 8), weights=1, step=1,
        source="s", input={}, ids=ids, image_ids=ids, labelled=np.arange(len(ids)) % 18,
        joints=17,
    )  # fmt: skip
    values = (
        np.random.default_rng(0).normal(size=(len(ids), 2, 2, 8)).astype(np.float32)
    )
    store.write_part(0, values)
    c.objective.name = "latent"
    c.data.train.source = source(
        "latents", path=str(tmp_path), part="train", holdout=0.2, min_keypoints=1
    )
    described = recipe(c)
    feed = make_feed(c, described, described, str(tmp_path), sharding.make_mesh())
    assert feed.metric == "reconstruction"
    held_out = len(ids) - len(feed) - int((np.arange(len(ids)) % 18 == 0).sum())
    assert 0.1 * len(ids) < held_out < 0.3 * len(ids)
    c.data.train.source.min_keypoints = 17
    full = make_feed(c, described, described, str(tmp_path), sharding.make_mesh())
    assert len(full) < len(ids) / 17
    c.data.train.source.update(holdout=1e-6, min_keypoints=1)
    with pytest.raises(UserError, match="leaves nobody"):
        make_feed(c, described, described, str(tmp_path), sharding.make_mesh())


@pytest.mark.slow
def test_the_code_can_be_analysed(base, tmp_path, monkeypatch):
    """Any tap: principal components of the code, decoded through the autoencoder."""
    monkeypatch.setattr(analyse, "_health", lambda context: {"problem": ""})
    c = staged_config(base, autoencoder="convolutional", code=6)
    c.pretrain.steps = 0
    run(c, str(tmp_path))
    c.analyse.update(
        studies=("latent",), tap="stack0/code", components=(1, -1), steps=(0.0, 2.0),
        displaced=4, resamples=20, ranks=(0,), count=30,
    )  # fmt: skip
    analyse.run(c, str(tmp_path))
    found = json.loads((tmp_path / "analysis/val/latent.json").read_text())
    assert found["tap"] == "stack0/code" and found["shape"] == [6]
    assert found["pca"]["values"] == 6 and found["pca"]["samples"] == 30
    whole = found["projection"]["own_skips"]
    assert whole["only"][-1]["pck"] == pytest.approx(whole["whole"], abs=0.02)


def test_objective_and_source_belong_together(base, tmp_path):
    c = staged_config(base, autoencoder="convolutional")
    c.objective.name = "latent"
    with pytest.raises(UserError, match="belong together"):
        train.Loop(c, str(tmp_path))
    c = staged_config(base)
    with pytest.raises(ValueError, match="model.autoencoder='convolutional'"):
        module = models.build(TINY, num_keypoints=3)
        latent.make(c.objective, module, recipe(c).spec)


def test_pretrain_needs_a_base(tmp_path):
    c = staged_config("", autoencoder="convolutional")
    with pytest.raises(UserError, match="init_from.path"):
        pretrain.run(c, str(tmp_path))
