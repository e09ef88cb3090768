"""Published recipes: their numbers, their codecs' round trips, their flip tests."""

from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pose_jax import heatmaps, protocols
from pose_jax import recipe as recipe_
from pose_jax.config import default, load_config
from pose_jax.heatmaps import Codec
from pose_jax.training.optimiser import make_schedule

CONFIGS = Path(__file__).parent.parent / "configs"
# Config, argument, decoding, flip test, base rate, optimiser, batch, epochs.
PUBLISHED = [
    ("simple_baseline", "50", "msra", "shift", 1e-3, "adam", 128, 140),
    ("hrnet", "w32", "msra", "shift", 1e-3, "adam", 128, 210),
    ("hourglass52", "256", "msra", "shift", 5e-4, "adam", 256, 210),
    ("vitpose", "b", "post_dark_udp", "none", 5e-4, "adamw", 512, 210),
    ("transpose", "r-a4", "dark", "none", 1e-4, "adam", 20, 230),
    ("tokenpose", "b", "dark", "none", 1e-3, "adam", 128, 300),
    ("deeppose", "resnet50", "dark", "none", 5e-4, "adam", 512, 210),
    ("deeppose", "resnet50-rle", "dark", "none", 1e-3, "adam", 512, 210),
]
# Config, argument -> rotation, scale, half bodies; milestones in epochs.
AUGMENTED = {
    ("simple_baseline", "50"): (40, 0.3, 0.0, (90, 120)),
    ("hrnet", "w32"): (45, 0.35, 0.3, (170, 200)),
    ("hourglass52", "256"): (40, 0.5, 0.3, (170, 200)),
    ("vitpose", "b"): (40, 0.5, 0.3, (170, 200)),
    ("transpose", "r-a4"): (45, 0.35, 0.3, ()),
    ("tokenpose", "b"): (45, 0.35, 0.3, (200, 260)),
}


@cache
def config(name, arg):
    return load_config(CONFIGS / f"{name}.py", arg)


@pytest.mark.parametrize(
    "name,arg,decode,flip,rate,optimiser,batch,epochs", PUBLISHED, ids=lambda v: str(v)
)
def test_numbers_of_the_recipes(
    name, arg, decode, flip, rate, optimiser, batch, epochs
):
    c = config(name, arg)
    assert c.codec.decode == decode and c.codec.sigma_px == 2.0
    assert c.codec.flip == flip
    assert (c.optimiser.name, c.optimiser.learning_rate) == (optimiser, rate)
    assert c.train.batch == batch
    assert c.train.steps == epochs * protocols.COCO_PEOPLE // c.train.batch
    assert c.input.padding == 1.25 and tuple(c.input.mean) == (0.485, 0.456, 0.406)


@pytest.mark.parametrize("chosen", AUGMENTED, ids="-".join)
def test_augmentation_and_milestones(chosen):
    c = config(*chosen)
    rotation, scale, half_body, epochs = AUGMENTED[chosen]
    augment = c.data.train.augment
    assert (augment.rotation_deg, augment.scale) == (rotation, scale)
    assert (augment.half_body, augment.flip) == (half_body, 0.5)
    total = c.train.steps * c.train.batch / protocols.COCO_PEOPLE
    got = [m * total for m in c.optimiser.milestones]
    np.testing.assert_allclose(got, epochs, atol=0.1)


def test_layers_of_vitpose_learn_at_their_own_rates():
    sizes = {"s": (0.1, 0.8), "b": (0.3, 0.75), "l": (0.5, 0.8), "h": (0.55, 0.85)}
    for size, (drop_path, decay) in sizes.items():
        c = config("vitpose", size)
        assert (c.model.drop_path, c.optimiser.layer_decay) == (drop_path, decay)
        assert (c.optimiser.clip, c.optimiser.weight_decay) == (1.0, 0.1)


@pytest.mark.parametrize("name,arg", [p[:2] for p in PUBLISHED])
def test_decoding_gives_back_what_was_encoded(name, arg):
    """Sub-pixel codecs to a fiftieth of a cell, the quarter rule to half a cell."""
    described = recipe_.recipe(config(name, arg))
    size, codec = described.spec.size, described.codec
    maps = (size[0] // 4, size[1] // 4)
    points = np.random.default_rng(0).uniform(24, 160, (40, 2)).astype(np.float32)

    def back(points):
        visible = jnp.full(len(points), 2)
        drawn = heatmaps.render(points, visible, codec, size, maps)
        return heatmaps.decode(drawn, codec, size)[0]

    error = np.abs(np.asarray(jax.jit(back)(points)) - points).max()
    assert error < (2.1 if codec.decode == "msra" else 0.08), error


@pytest.mark.parametrize("name,arg", [p[:2] for p in PUBLISHED])
def test_flip_test_of_the_family(name, arg):
    """A network that sees mirrored people mirrored: its map, brought back, is where the straight
    one is, to what the published convention leaves (`shift`: a quarter cell, `none` on maps
    that count pixels: three quarters, UDP: nothing)."""
    described = recipe_.recipe(config(name, arg))
    size, codec, mirrored = (
        described.spec.size, described.codec, described.skeleton.mirrored,
    )  # fmt: skip
    maps = (size[0] // 4, size[1] // 4)
    smooth = Codec(
        "udp" if codec.unit else "unbiased",
        "udp" if codec.unit else "dark",
        2.0,
        codec.flip,
    )
    points = np.random.default_rng(1).uniform(40, 150, (17, 2)).astype(np.float32)
    visible = jnp.full(17, 2)
    there = points.copy()
    there[:, 0] = size[1] - 1 - points[:, 0]
    drawn = heatmaps.render(there[mirrored], visible, smooth, size, maps)
    back = heatmaps.unflip(drawn, mirrored, smooth, size)
    found = heatmaps.locate(back, smooth)
    straight = points / heatmaps.stride(smooth, size, maps)
    left = {"shift": 0.25, "none": 0.0 if codec.unit else 0.75}[codec.flip]
    offset = np.asarray(found - straight)
    np.testing.assert_allclose(np.abs(offset[:, 0]), left, atol=0.02)
    np.testing.assert_allclose(offset[:, 1], 0, atol=0.02)


def test_steps_of_the_rate():
    """Divided by ten at epochs 170 and 200 of 210, after the warm-up."""
    c = config("vitpose", "b")
    schedule = make_schedule(c.optimiser, c.train.steps)
    epoch = c.train.steps / 210
    got = [float(schedule(int(epoch * at))) for at in (1, 100, 171, 201)]
    warm = min(1.0, int(epoch) / 500)
    np.testing.assert_allclose(got, [5e-4 * warm, 5e-4, 5e-5, 5e-6], rtol=3e-3)
    assert float(schedule(0)) == 0.0


def test_the_small_task_is_alike_for_every_family():
    one = protocols.lspet(default())
    for name, arg in (("simple_baseline", "lspet"), ("transpose", "small")):
        c = config(name, arg)
        assert c.data.train == one.data.train and c.train == one.train
        assert c.codec == one.codec and c.evaluate == one.evaluate
