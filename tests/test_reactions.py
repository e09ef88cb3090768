"""Interventions on a world's pictures, the game of drawn regions, the task end to end."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pose_jax.config import UserError, load_config
from pose_jax.data.worlds import REGIONS, WorldSource, composite
from pose_jax.explain import reactions, shapley, world_explainers
from pose_jax.explain.planted import pool
from pose_jax.recipe import recipe
from pose_jax.tasks import compare_planted, planted, planted_gates
from pose_jax.tasks.sweep import make_cells
from pose_jax.writer import read_json

R, DONORS = len(REGIONS), 2


@pytest.fixture(scope="module")
def config(repository):
    c = load_config(repository / "configs" / "planted.py", "tiny")
    c.model.update(features=8, stem=(4, 8, 8), depth=2)
    c.input.size = (32, 32)
    for section in (c.data.train.source, c.data.eval):
        section.size = (32, 32)
    c.planted.update(
        pictures=4, games=2, donors=DONORS, batch=2, resamples=20,
        methods=("gradient", "hires_cam@stack0/encoder0"), game_kinds=("mean", "drawn"),
    )  # fmt: skip
    return c


@pytest.fixture(scope="module")
def model(config):
    described = recipe(config)
    images = jnp.zeros((1, *described.spec.size, 3))
    key = jax.random.key(0, impl="unsafe_rbg")
    return described, jax.jit(described.module.init)(key, images)


@pytest.fixture(scope="module")
def pictures():
    source = WorldSource(6, world="composite", seed=3, size=32)
    return source, reactions.variants(source, 1, DONORS)


def test_variants_are_the_pictures_of_the_changed_scenes(pictures):
    source, found = pictures
    scene = source.scene(1)
    assert len(found.images) == len(found.labels) == 1 + R * DONORS + R + 1
    np.testing.assert_array_equal(found.images[0], source.render(scene))
    for r, region in enumerate(REGIONS):
        other = source.redraw(scene, region, 1)
        row = 1 + r * DONORS + 1
        np.testing.assert_array_equal(found.labels[row], source.keypoints(other))
        if scene.present[r]:
            np.testing.assert_array_equal(found.images[row], source.render(other))
        else:
            np.testing.assert_array_equal(found.images[row], found.images[0])
        layers = source.layers(scene)
        layers[r] = 0
        removed = found.images[1 + R * DONORS + r]
        np.testing.assert_array_equal(removed, composite(layers))
    turned = source.render(source.turn(scene))
    np.testing.assert_array_equal(found.images[-1], turned)


def test_reactions_are_differences_of_separate_forward_passes(model, pictures):
    described, variables = model
    _, found = pictures
    result = reactions.react(described, variables, found)
    assert result.shift.shape == (R, DONORS, 14)
    program = reactions.reaction_program(
        described.module, described.spec, described.codec
    )
    for r in (0, 7, 10):
        pair = found.images[[0, 1 + r * DONORS]]
        seen = program(variables, jnp.asarray(pair))
        move = np.asarray(seen.centres[1] - seen.centres[0])
        if found.present[r]:
            np.testing.assert_allclose(result.moves[r, 0], move, atol=2e-4)
            shift = np.linalg.norm(move, axis=-1)
            np.testing.assert_allclose(result.shift[r, 0], shift, atol=2e-4)
    hidden = ~found.present
    assert np.isnan(result.shift[hidden]).all() and np.isnan(result.mass[hidden]).all()
    assert (np.asarray(result.mass)[found.present] <= 1).all()
    bad = jax.tree.map(lambda x: x * np.nan, variables)
    with pytest.raises(ValueError, match="not finite"):
        reactions.react(described, bad, found)


def test_the_drawn_game_shows_what_the_renderer_draws(model, pictures):
    described, variables = model
    source, found = pictures
    game = reactions.DrawnGame(described.module, described.spec, described.codec)
    given = world_explainers.references(described, variables, found.images[:1])
    one = jax.tree.map(lambda x: x[0], given)
    drawn = reactions.Drawn(
        jnp.asarray(found.layers, jnp.float32),
        jnp.asarray(found.gain, jnp.float32),
        one,
    )
    for seed in range(3):
        coalition = np.random.default_rng(seed).random(R) < 0.6
        layers = np.where(coalition[:, None, None, None], found.layers, 0)
        image = composite(layers.astype(np.uint8))
        program = reactions.reaction_program(
            described.module, described.spec, described.codec
        )
        both = np.stack([found.images[0], image])
        expected = program(variables, jnp.asarray(both)).heights[1]
        np.testing.assert_allclose(
            game(jnp.asarray(coalition), variables, drawn),
            expected,
            rtol=2e-4,
            atol=1e-5,
        )


def test_values_of_a_table_are_those_of_the_engine(generator):
    table = generator.random((2, 2**R, 3)).astype(np.float32)
    homes = (0, 2, 4)
    exact = world_explainers.read_table(table, "shapley", homes)
    total = table[:, -1] - table[:, 0]
    np.testing.assert_allclose(exact.sum(1), total, atol=1e-4)
    removal = world_explainers.read_table(table, "removal", homes)
    np.testing.assert_allclose(
        removal[:, 3], table[:, -1] - table[:, -1 - 8], atol=1e-6
    )
    owen = world_explainers.read_table(table, "owen", homes)
    np.testing.assert_allclose(owen.sum(1), total, atol=1e-4)
    gsv = world_explainers.read_table(table, "gsv", homes)
    np.testing.assert_allclose(gsv.sum(1), total, atol=1e-4)
    # An additive game: every kind agrees with the regions' own worth.
    worth = generator.random(R)
    bits = (np.arange(2**R)[:, None] >> np.arange(R)) & 1
    flat = np.repeat((bits @ worth)[None, :, None], 3, 2).astype(np.float32)
    for name in ("shapley", "owen", "removal"):
        found = world_explainers.read_table(flat, name, homes)
        np.testing.assert_allclose(found[0, :, 1], worth, atol=1e-4)
    assert sorted(sum(world_explainers.CLUSTERS, ())) == list(range(R))
    assert shapley.all_coalitions(R).shape == (2**R, R)


def test_baselines_never_saw_the_network(pictures):
    source, found = pictures
    shown = world_explainers.Shown.of([found], np.full((1, 14, 2), 16.0), [4, 7])
    for name in world_explainers.BASELINES:
        result = world_explainers.baseline(name, shown)
        assert result["density"].shape == (1, R, 2)
        assert np.isfinite(result["density"]).all()
    y, x = np.mgrid[:32, :32]
    disc = ((x - 16) ** 2 + (y - 16) ** 2 <= 4).astype(float)
    mass, _ = pool(np.stack([disc]), found.owners, R)
    np.testing.assert_allclose(
        world_explainers.baseline("disc", shown)["mass"][0, :, :1], mass
    )
    with pytest.raises(ValueError, match="unknown; use random"):
        world_explainers.baseline("moon", shown)


def test_the_study_runs_resumes_and_compares(config, tmp_path, monkeypatch, capsys):
    """One cell through training, interventions, explanations and the table."""
    from pose_jax.tasks import sweep

    workdir = str(tmp_path)
    sweep.run(config, workdir)
    folder = tmp_path / "cells" / "composite" / "seed0" / "planted"
    record = read_json(folder / "planted.json")
    assert record is not None and not record["gates"]["learned"]
    assert not (folder / "explainers").exists()  # Nothing to explain.
    compare_planted.run(config, workdir)
    assert "nothing to score" in capsys.readouterr().out
    check = planted_gates.check

    def lenient(arrays, source):
        gates = check(arrays, source)
        gates["targets"]["right_wrist"].update(learned=True, failed=[])
        return gates | {"learned": True}

    monkeypatch.setattr(planted_gates, "check", lenient)
    (cell,) = make_cells(config, workdir)
    planted.run(cell.config, cell.workdir)
    record = read_json(folder / "planted.json")
    assert record is not None
    names = set(record["explainers"])
    assert {"oracle", "swapped", "gradient-density", "game-drawn-shapley"} <= names
    assert "hires_cam@stack0.encoder0-mass" in names
    stamp = (folder / "explainers" / "gradient.npz").stat().st_mtime_ns
    before = (folder / "planted.json").read_text()
    planted.run(cell.config, cell.workdir)
    assert (folder / "explainers" / "gradient.npz").stat().st_mtime_ns == stamp
    assert (folder / "planted.json").read_text() == before
    compare_planted.run(config, workdir)
    table = read_json(tmp_path / "planted.json")
    assert table is not None
    world = table["worlds"]["composite"]
    assert world["learned"]["right_wrist"] == [0]
    entry = world["explainers"]["random-density"]["recovery"]["left_ankle"]
    assert entry["mean"] is None and entry["undefined"] == 1
    cell.config.planted.donors = 3
    with pytest.raises(UserError, match="donors differ"):
        planted.run(cell.config, cell.workdir)


def test_a_run_outside_of_the_worlds_is_refused(config):
    other = config.copy_and_resolve_references()
    other.data.train.source.name = "figures"
    with pytest.raises(UserError, match="trained in a world"):
        planted.open_world(other.to_dict(), other.planted)
