"""The pose game: who plays, what is hidden, who gets the credit."""

import dataclasses
import itertools
import math
import os
import subprocess
import sys

import flax.linen as nn
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from pose_jax import models, partitions, regions, skeletons
from pose_jax.explain import games, scores, shapley
from pose_jax.explain.games import PoseGame
from pose_jax.heatmaps import Codec
from pose_jax.models.outputs import Outputs
from pose_jax.pixels import InputSpec

SKELETON = skeletons.get("lsp")
LIMBS = partitions.get("limbs-v1", SKELETON)
SIZE = (48, 40)
SPEC = InputSpec(size=SIZE, mean=(0.5, 0.5, 0.5), std=(1.0, 1.0, 1.0))
CODEC = Codec(encode="unbiased", decode="argmax", sigma_px=1.0)
K = SKELETON.num_keypoints
PLAYERS = games.keypoint_players(SKELETON, LIMBS, side=0.15)


class Reads(nn.Module):
    """A network of one line: every heatmap is the mean brightness of some pixels, so each
    joint's score is exactly what these pixels show. Its weights are the masks."""

    @nn.compact
    def __call__(self, images, train=False, edits=None):
        masks = self.variable("params", "masks", lambda: jnp.zeros((K, *SIZE))).value
        seen = jnp.einsum("bhwc,khw->bk", images + 0.5, masks)
        # Interactions, so that the game is not additive.
        seen = seen + 0.1 * jnp.sin(7 * jnp.cumsum(seen, 1))
        return Outputs(
            heatmaps=jnp.broadcast_to(seen[:, None, None], (1, len(images), 5, 4, K))
        )


@pytest.fixture
def centres(generator):
    return generator.uniform(5, 35, size=(K, 2)).astype(np.float32)


def person_of(centres, generator, players=PLAYERS, present=None):
    present = np.ones(K, bool) if present is None else present
    image = generator.uniform(0, 255, (*SIZE, 3)).astype(np.float32)
    owners = np.asarray(games.make_owners(players, centres, present, SIZE, SKELETON))
    fill = games.make_fill("mean", image, owners, SPEC.mean)
    reference = scores.from_points(np.zeros((K, 2)), present, SKELETON, 100.0)
    return games.Person(image, fill, owners, reference)


def variables_of(owners, generator, arm_only=()):
    masks = generator.uniform(0, 0.004, (K, *SIZE)).astype(np.float32)
    for target in arm_only:
        masks[target] *= np.isin(
            owners, LIMBS.clusters[LIMBS.cluster_names.index("left_arm")]
        )
    return {"params": {"masks": masks}}


GAME = PoseGame(Reads(), SPEC, CODEC, "value")


@pytest.mark.parametrize("kind", ["gsv", "owen", "decoupled"])
def test_a_score_of_left_arm_pixels_credits_the_left_arm_alone(
    centres, generator, kind
):
    person = person_of(centres, generator)
    # Only target 0 (right ankle) reads: cumsum starts with it, so nothing else leaks in.
    variables = variables_of(person.owners, generator, arm_only=[0])
    people = games.stack_people([person])
    result, _ = games.explain_people(GAME, variables, people, PLAYERS, kind=kind)
    arm = LIMBS.cluster_names.index("left_arm")
    quotient = np.asarray(result.quotient_values)[0, :, 0]
    gap = float(result.full[0, 0] - result.empty[0, 0])
    assert abs(gap) > 1e-3
    assert quotient[arm] == pytest.approx(gap, abs=1e-5)
    assert np.abs(np.delete(quotient, arm)).max() < 1e-5
    if kind == "owen":
        owen = np.asarray(result.player_values)[0, :, 0]
        inside = np.isin(np.arange(K), LIMBS.clusters[arm])
        assert np.abs(owen[~inside]).max() < 1e-5
        assert owen[inside].sum() == pytest.approx(gap, abs=1e-5)


def test_hidden_pixels_show_the_fill_and_no_other_pixel_changes(centres, generator):
    person = person_of(centres, generator)
    coalition = generator.random(K) < 0.5
    mask = np.asarray(regions.hidden(person.owners, jnp.asarray(coalition)))
    seen = np.asarray(regions.remove(person.image, person.fill, mask))
    np.testing.assert_array_equal(seen[~mask], person.image[~mask])
    np.testing.assert_array_equal(seen[mask], person.fill[mask])
    expected = np.isin(person.owners, np.flatnonzero(~coalition))
    np.testing.assert_array_equal(mask, expected)
    free = person.owners == regions.FREE
    assert free.any() and not mask[free].any()


def slow_shapley(value, n):
    """[n, k] over all orders."""
    total = 0.0
    for order in itertools.permutations(range(n)):
        members, before = np.zeros(n, bool), value(np.zeros(n, bool))
        values = np.zeros((n, *np.shape(before)))
        for player in order:
            members[player] = True
            after = value(members)
            values[player] = after - before
            before = after
        total = total + values
    return total / math.factorial(n)


def test_exact_shapley_of_four_masks_by_all_orders(generator):
    """Masks as players, targets told by `target_cluster`, against the definition."""
    masks = np.zeros((4, *SIZE), bool)
    for n in range(4):
        masks[n, 10 * n : 10 * n + 9, 5:30] = True
    players = games.mask_players([[0, 1, 2, 3]], [0] * K)
    owners = games.make_owners(
        players, np.zeros((K, 2)), np.ones(K, bool), SIZE, SKELETON, jnp.asarray(masks)
    )
    base = person_of(np.zeros((K, 2), np.float32), generator)
    person = base._replace(owners=np.asarray(owners))
    variables = variables_of(person.owners, generator)
    found, _ = games.explain_people(
        GAME, variables, games.stack_people([person]), players
    )
    value = jax.jit(lambda c: GAME(c, variables, jax.tree.map(jnp.asarray, person)))
    expected = slow_shapley(lambda c: np.asarray(value(jnp.asarray(c)), np.float64), 4)
    np.testing.assert_allclose(found.member_values[0], expected, atol=2e-5)
    assert np.abs(expected).max() > 0.02
    assert np.abs(found.residual).max() < 1e-5
    with pytest.raises(ValueError, match="one per player"):
        games.make_owners(players, np.zeros((K, 2)), np.ones(K, bool), SIZE, SKELETON)


def test_null_players_save_evaluations_and_change_nothing(centres, generator):
    present = np.ones(K, bool)
    present[[0, 5, 13]] = False
    far = centres.copy()
    far[7] = [200, 10]  # out of the crop
    people = [person_of(far, generator, present=present), person_of(centres, generator)]
    stacked = games.stack_people(people)
    null = games.null_players(stacked.owners, K)
    assert set(np.flatnonzero(null[0])) >= {0, 5, 7, 13} and not null[1].any()
    variables = variables_of(people[0].owners, generator)
    result, taken = games.explain_people(GAME, variables, stacked, PLAYERS)
    # The clusters lose one player each, the head and the left arm apart.
    left = [int((~null[0, list(c)]).sum()) for c in PLAYERS.clusters]
    assert taken[1] == 448 and taken[0] == shapley.union_size(left) == 224
    plain = shapley.group_shapley(
        GAME, PLAYERS.clusters, args=(variables,), games=stacked,
        target_valid=np.asarray(stacked.reference.valid),
    )  # fmt: skip
    np.testing.assert_allclose(result.table, plain.table, atol=1e-6)
    np.testing.assert_allclose(result.member_values, plain.member_values, atol=1e-6)
    assert np.abs(np.asarray(result.member_values)[0, [0, 5, 7, 13]]).max() < 2e-6
    # Targets without a label are masked.
    assert not np.asarray(result.target_valid)[0, [0, 5, 13]].any()
    assert np.abs(np.asarray(result.full)[0, [0, 5, 13]]).max() == 0


@pytest.mark.parametrize("target", ["hidden", "visible"])
def test_conditional_values_are_those_of_the_conditional_game(
    centres, generator, target
):
    person = person_of(centres, generator)
    variables = variables_of(person.owners, generator)
    people = games.stack_people([person])
    result, _ = games.explain_people(GAME, variables, people, PLAYERS, kind="gsv")
    found = games.conditional(result, PLAYERS.own, target)

    def value(coalition, t, variables, person):
        return GAME(coalition.at[t].set(target == "visible"), variables, person)

    for t in (2, 8, 13):
        direct = shapley.group_shapley(
            value, PLAYERS.clusters, args=(t, variables), games=people
        )
        for name in ("member_values", "cluster_values", "quotient_values"):
            a, b = getattr(found, name)[0, :, t], getattr(direct, name)[0, :, t]
            np.testing.assert_allclose(a, b, atol=2e-6)
        assert abs(found.member_values[0, t, t]) < 2e-6
        assert found.empty[0, t] == pytest.approx(float(direct.empty[0, t]), abs=1e-6)
    assert found.player_values is None


def test_conditional_values_of_a_single_game_and_refusals(centres, generator):
    person = person_of(centres, generator)
    variables = variables_of(person.owners, generator)
    alone = jax.tree.map(jnp.asarray, person)
    result = shapley.group_shapley(GAME, PLAYERS.clusters, args=(variables, alone))
    many, _ = games.explain_people(
        GAME, variables, games.stack_people([person]), PLAYERS
    )
    a = games.conditional(result, PLAYERS.own, "hidden").member_values
    b = games.conditional(many, PLAYERS.own, "hidden").member_values
    np.testing.assert_allclose(a, b[0], atol=1e-6)
    with pytest.raises(ValueError, match="hidden, visible"):
        games.conditional(result, PLAYERS.own, "away")
    with pytest.raises(ValueError, match="no players"):
        games.conditional(result, (-1,) * K, "hidden")
    with pytest.raises(ValueError, match="table"):
        games.conditional(
            dataclasses.replace(result, table=None), PLAYERS.own, "hidden"
        )


def test_whole_heatmaps_are_shared_out(centres, generator):
    person = person_of(centres, generator)
    variables = variables_of(person.owners, generator)
    game = dataclasses.replace(GAME, score="heatmap")
    people = games.stack_people([person])
    maps, _ = games.explain_people(game, variables, people, PLAYERS)
    assert maps.member_values.shape == (1, K, K, 5, 4)
    values, _ = games.explain_people(GAME, variables, people, PLAYERS)
    np.testing.assert_allclose(
        maps.member_values[..., 0, 0], values.member_values, atol=1e-5
    )


def test_limbs_play_in_the_clusters_of_their_ends():
    players = games.limb_players(SKELETON, LIMBS)
    assert sorted(i for c in players.clusters for i in c) == list(range(15))
    named = dict(zip(players.cluster_names, players.clusters))
    assert {players.names[i] for i in named["left_arm"]} == {
        "left_shoulder-left_elbow", "left_elbow-left_wrist",
    }  # fmt: skip
    assert len(named["trunk"]) == 6 and len(named["head"]) == 1
    wrist = players.target_cluster[SKELETON.index("left_wrist")]
    assert players.cluster_names[wrist] == "left_arm"
    assert shapley.union_size([len(c) for c in players.clusters]) == 2304
    with pytest.raises(ValueError, match="share of the crop"):
        games.limb_players(SKELETON, LIMBS, side=0.0)
    with pytest.raises(ValueError, match="unknown"):
        games.keypoint_players(SKELETON, LIMBS, kind="star")


def test_fills_are_what_they_say(centres, generator):
    person = person_of(centres, generator)
    image, owners = person.image, person.owners
    mean = games.make_fill("mean", image, owners, (0.1, 0.2, 0.3))
    np.testing.assert_allclose(mean[3, 4], [25.5, 51.0, 76.5], rtol=1e-6)
    noise = games.make_fill("noise", image, owners, SPEC.mean, key=jax.random.key(1))
    again = games.make_fill("noise", image, owners, SPEC.mean, key=jax.random.key(1))
    np.testing.assert_array_equal(noise, again)
    assert noise.std() > 50
    blur = games.make_fill("blur", image, owners, SPEC.mean, side=0.2)
    assert blur.std() < image.std() / 2
    painted = games.make_fill("inpaint", image, owners, SPEC.mean)
    free = owners == regions.FREE
    np.testing.assert_array_equal(painted[free], image.round()[free])
    other = generator.uniform(0, 255, image.shape)
    np.testing.assert_allclose(
        games.make_fill("other", image, owners, SPEC.mean, other=other),
        other,
        rtol=1e-6,
    )
    for name, words in (("other", "another crop"), ("black", "unknown")):
        with pytest.raises(ValueError, match=words):
            games.make_fill(name, image, owners, SPEC.mean)


def test_one_trace_for_new_people_and_weights(centres, generator):
    traces = []

    class Counting(Reads):
        def __call__(self, images, train=False, edits=None):
            traces.append(1)
            return super().__call__(images, train, edits)

    game = dataclasses.replace(GAME, module=Counting())
    for _ in range(3):
        person = person_of(centres + generator.normal(), generator)
        variables = variables_of(person.owners, generator)
        games.explain_people(
            game, variables, games.stack_people([person]), PLAYERS, chunk_size=64
        )
        first = len(traces) if _ == 0 else first
    assert len(traces) == first


SEVERAL_DEVICES = """
import jax, numpy as np
import test_games as t
from pose_jax import sharding
from pose_jax.explain import games

generator = np.random.default_rng(0)
centres = generator.uniform(5, 35, size=(t.K, 2)).astype(np.float32)
people = games.stack_people([t.person_of(centres + n, generator) for n in range(3)])
variables = t.variables_of(people.owners[0], generator)
split = sharding.coalition_sharding()
assert len(jax.devices()) == 2 and split is not None
plain, _ = games.explain_people(t.GAME, variables, people, t.PLAYERS, kind="owen")
spread, taken = games.explain_people(
    t.GAME, variables, people, t.PLAYERS, kind="owen", sharding=split, chunk_size=50
)
assert (taken == 448).all()
alone = games.stack_people([t.person_of(centres, generator)])
games.explain_people(t.GAME, variables, alone, t.PLAYERS, sharding=split, room=3)
for name in ("player_values", "cluster_values", "empty", "full", "table"):
    a, b = getattr(plain, name), getattr(spread, name)
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5)  # other batches, other rounding
print("equal")
"""


def test_two_devices_give_the_same_values(environment):
    path = f"{environment['PYTHONPATH']}:{os.path.dirname(__file__)}"
    done = subprocess.run(
        [sys.executable, "-c", SEVERAL_DEVICES],
        env={**environment, "PYTHONPATH": path, "JAX_NUM_CPU_DEVICES": "2"},
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "equal", done.stderr[-2000:]


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_the_pose_game_of_an_hourglass_lowers_for_accelerators(platform):
    section = dict(name="hourglass", stacks=1, depth=1, features=8, stem=(4, 4, 8))
    module = models.build(section, num_keypoints=K)
    size = (16, 16)
    spec = InputSpec(size=size, mean=(0.5, 0.5, 0.5), std=(1.0, 1.0, 1.0))
    game = PoseGame(module, spec, CODEC, "similarity")
    images = jnp.zeros((1, *size, 3))
    variables = jax.eval_shape(module.init, jax.random.key(0), images)
    shape = jax.ShapeDtypeStruct
    person = games.Person(
        shape((2, *size, 3), jnp.float32),
        shape((2, *size, 3), jnp.float32),
        shape((2, *size), jnp.int32),
        scores.Reference(
            shape((2, K, 2), jnp.float32), shape((2, K), bool), shape((2,), jnp.float32),
            shape((2, K), jnp.float32), shape((2, K), jnp.int32),
        ),
    )  # fmt: skip

    def explain(variables, people):
        return shapley.group_shapley(
            game, PLAYERS.clusters, args=(variables,), games=people, chunk_size=128
        ).member_values

    exported = jax.export.export(jax.jit(explain), platforms=[platform])(
        variables, person
    )
    assert exported.out_avals[0].shape == (2, K, K)
