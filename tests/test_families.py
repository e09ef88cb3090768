"""Everything that exists works on every family."""

import json
import subprocess
import sys

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from families import TINY, config_of

from pose_jax import answers, models
from pose_jax import recipe as recipe_
from pose_jax.models import Edit
from pose_jax.pixels import ColourJitter
from pose_jax.training import step as step_
from pose_jax.training.objectives import OBJECTIVES
from pose_jax.trees import flat_names

EVERY_DAY = ("simple_baseline", "vitpose")
"""Families that are compiled in the daily run; the others take their minute with --all."""
MOSTLY_SLOW = [
    f if f in EVERY_DAY else pytest.param(f, marks=pytest.mark.slow) for f in TINY
]


@pytest.mark.parametrize("family", TINY)
def test_outputs_taps_and_edits(family):
    """Shapes alone: one answer per keypoint, every tap editable, no tap without a name."""
    described = recipe_.recipe(config_of(family))
    images = jnp.zeros((2, 64, 64, 3))
    variables = described.shapes()

    def apply(variables, images, edits=None):
        outputs = described.module.apply(variables, images, edits=edits)
        return outputs, answers.maps(outputs, described.codec, described.spec.size)

    outputs, maps = jax.eval_shape(apply, variables, images)
    assert maps.shape[0] == 2 and maps.shape[3] == 17 and maps.dtype == jnp.float32
    assert outputs.taps
    edits = {name: Edit(scale=0.5) for name in outputs.taps}
    edited, _ = jax.eval_shape(apply, variables, images, edits)
    assert {n: t.shape for n, t in edited.taps.items()} == {
        n: t.shape for n, t in outputs.taps.items()
    }
    with pytest.raises(ValueError, match="unknown taps"):
        jax.eval_shape(apply, variables, images, {"nothing": Edit()})


def given(outputs):
    """Heatmaps or coordinates, as abstract arrays."""
    return outputs.coordinates if outputs.heatmaps is None else outputs.heatmaps


@pytest.mark.parametrize("family", TINY)
def test_bfloat16_keeps_parameters_and_answers_in_float32(family):
    described = recipe_.recipe(config_of(family), precision="bfloat16")
    variables = described.shapes()
    assert {x.dtype for x in jax.tree.leaves(variables)} == {np.dtype("float32")}
    outputs = jax.eval_shape(
        described.module.apply, variables, jnp.zeros((1, 64, 64, 3))
    )
    assert given(outputs).dtype == jnp.float32
    kinds = {tap.dtype for tap in outputs.taps.values()}
    assert np.dtype(jnp.bfloat16) in kinds


@pytest.mark.parametrize("family", TINY)
def test_folding_names_existing_layers(family):
    """The inference copy has fewer variables and the same outputs' shapes."""
    described = recipe_.recipe(config_of(family))
    shapes = described.shapes()
    filled = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), shapes)
    folded, variables = described.inference(filled)
    if "batch_stats" not in shapes:
        assert folded is described
        return
    assert folded is not described
    assert len(flat_names(variables)) < len(flat_names(shapes))
    norms = [name for name in flat_names(variables) if name.endswith("/var")]
    # A pre-activation residual's first normalisation follows a sum, not a convolution.
    assert (
        all("norm1" in name for name in norms) if family == "hourglass" else not norms
    )
    outputs = jax.eval_shape(folded.module.apply, variables, jnp.zeros((1, 64, 64, 3)))
    assert given(outputs).shape[1] == 1


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
@pytest.mark.parametrize("family", MOSTLY_SLOW)
def test_training_is_lowered_for_accelerators(family, platform):
    """The gradient of the loss and the evaluated maps, from a CPU, without compiling."""
    c = config_of(family)
    described = recipe_.recipe(c)
    objective = OBJECTIVES[c.objective.name](
        c.objective, described.module, described.spec, described.codec, ColourJitter()
    )
    example = step_.example_batch(described.spec.size, 17, 2)
    variables = jax.eval_shape(objective.init, jax.random.key(0), example)

    def gradient(params, rest, batch, seed):
        def total(params):
            key = jax.random.key(seed)
            return objective.loss({"params": params, **rest}, batch, key=key)[0].sum

        return jax.grad(total)(params)

    rest = {name: tree for name, tree in variables.items() if name != "params"}
    program = jax.export.export(jax.jit(gradient), platforms=[platform])
    exported = program(variables["params"], rest, example, 0)
    assert exported.platforms == (platform,)


@pytest.mark.parametrize("family", MOSTLY_SLOW)
def test_training_prediction_and_explanation_on_eight_devices(
    family, environment, repository
):
    """Data 4 x model 2 and one device agree; large weights are really split."""
    done = subprocess.run(
        [sys.executable, "tests/family_run.py", family],
        env={**environment, "JAX_NUM_CPU_DEVICES": "8"},
        cwd=repository, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert "error" not in found, found["error"]
    assert found["finite"]
    np.testing.assert_allclose(*found["loss"], rtol=1e-5)
    assert found["step_difference"] < 1e-5
    assert found["points"] < 1e-3
    assert found["influence_size"] > 0
    assert found["influence"] <= 1e-3 * found["influence_size"] + 1e-9
    split = found["split"]
    assert split
    if TINY[family]["name"] in ("vitpose", "transpose", "tokenpose"):
        for part in ("query", "key", "value", "output"):
            assert any(f"attention/{part}/kernel" in name for name in split), part
        assert any("mlp/hidden/kernel" in name for name in split)


def test_every_family_has_a_tiny_member():
    assert {section["name"] for section in TINY.values()} == set(models.FAMILIES)


@pytest.mark.slow
@pytest.mark.parametrize(
    "family,studies,tap",
    [
        ("hourglass52", ("skips", "latent"), "auto"),
        ("simple_baseline", ("latent",), "layer4"),
        ("vitpose", ("latent",), "tokens"),
    ],
)
def test_analyses_of_other_families(family, studies, tap, tmp_path, monkeypatch):
    """Skip gates where there are skips, principal components of any tap."""
    from pose_jax.tasks import analyse, train
    from pose_jax.tasks.workdir import claim

    c = config_of(family)
    c.train.update(steps=2, save_every=2, eval_every=0)
    c.analyse.update(
        studies=studies, splits=("eval",), count=16, tap=tap, batch=8,
        skeletons=1, components=(1, 2), ranks=(0, 1), displaced=4, resamples=20,
        clusters=(2,), thumbnails=4, styles=("zero",),
    )  # fmt: skip
    workdir = str(tmp_path / "run")
    claim(c, workdir)
    train.run(c, workdir)
    # Two steps do not beat the mean pose; that refusal is tested elsewhere.
    monkeypatch.setattr(analyse, "_health", lambda context: {"problem": ""})
    analyse.run(c, workdir)
    assert len(list((tmp_path / "run" / "analysis").rglob("*.json"))) >= len(studies)
