"""Many devices and processes: emulated on the CPU, in processes of their own."""

import json
import os
import re
import signal
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from pose_jax import sharding
from pose_jax.sharding import MeshConfig

STEPS = """
import json, sys
import jax, numpy as np
sys.path.insert(0, TESTS)
from test_training import build, make_batch
from tiny import tiny_config
from pose_jax import sharding
from pose_jax.training import step as step_, optimiser
from pose_jax.training.objectives import heatmap
from pose_jax.pixels import ColourJitter
from pose_jax import recipe as recipe_

def run(mesh, fsdp=False, features=8):
    c = tiny_config()
    c.model.features = features
    c.optimiser.update(name="sgd", learning_rate=0.05)
    described = recipe_.recipe(c)
    objective = heatmap.make(
        c.objective, described.module, described.spec, described.codec, ColourJitter()
    )
    transform, schedule = optimiser.make_optimiser(c.optimiser, 9, objective.trainable)
    state, shardings = step_.create_state(
        step_.make_init(objective, transform, average=True), jax.random.key(0),
        step_.example_batch((32, 32), 17), mesh, fsdp=fsdp)
    step = step_.compile_step(
        step_.make_train_step(objective, transform, schedule, seed=0, decay=0.9),
        shardings, mesh)
    # Seed 1: no activation of this batch sits within rounding of a ReLU's zero, where
    # another order of summation would flip it and change a gradient by 1e-4.
    batch = make_batch(16, seed=1)
    state, metrics = step(state, sharding.put_batch(batch, mesh))
    return state, [float(metrics["loss"])], step
"""


def child(code, environment, devices=8, **variables):
    code = STEPS.replace("TESTS", repr(os.path.dirname(__file__))) + code
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**environment, "JAX_NUM_CPU_DEVICES": str(devices), **variables},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1])


def test_eight_devices_equal_one(environment):
    """Batch split over eight devices, and four with channels over two: same numbers, BatchNorm
    statistics of the global batch included; FSDP splits the large arrays."""
    result = child(
        """
devices = jax.devices()
assert len(devices) == 8
one, losses, _ = run(sharding.make_mesh(sharding.MeshConfig(data=1), devices[:1]))
all_losses = [losses]

def distance(a, b):
    return max(
        float(np.abs(np.asarray(x) - np.asarray(y)).max())
        for name in ("params", "batch_stats", "average")
        for x, y in zip(jax.tree.leaves(getattr(a, name)), jax.tree.leaves(getattr(b, name)))
    )

worst = []
sharding._SMALL = 64
for mesh, fsdp in (((8, 1), False), ((4, 2), True)):
    mesh = sharding.make_mesh(sharding.MeshConfig(data=mesh[0], model=mesh[1]), devices)
    many, losses, step = run(mesh, fsdp)
    all_losses.append(losses)
    worst.append(distance(one, many))
    assert step._cache_size() == 1
split = [str(x.sharding.spec) for x in jax.tree.leaves(many.params)]
print(json.dumps(dict(worst=max(worst), losses=all_losses,
    split=sum("data" in s for s in split), channels=sum("model" in s for s in split))))
""",
        environment,
    )
    assert result["worst"] < 1e-5
    for losses in result["losses"][1:]:
        np.testing.assert_allclose(losses, result["losses"][0], rtol=1e-5)
    assert result["split"] > 0 and result["channels"] > 0


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_programs_lower_for_accelerators(platform):
    """Train and predict programs export from the CPU for hardware that is not here."""
    from test_training import build, make_batch
    from tiny import tiny_config

    from pose_jax import inference
    from pose_jax.recipe import recipe

    c = tiny_config()
    _, state, _, step, _ = build(c, accumulation=2, decay=0.9)
    batch = make_batch()
    exported = jax.export.export(jax.jit(step), platforms=[platform])(state, batch)
    assert exported.platforms == (platform,)
    assert len(exported.mlir_module_serialized) > 1000
    predict = jax.jit(inference.make_predict(recipe(c), flip_test=True))
    sent = {name: batch[name] for name in ("image", "keypoints", "visible")}
    exported = jax.export.export(predict, platforms=[platform])(state.variables, sent)
    assert exported.out_avals[-1].shape[0] == 8


@pytest.mark.parametrize(
    "config,message",
    [
        (MeshConfig(data=3, model=99), "asks for 297 devices"),
        (MeshConfig(data=0), "sizes are positive"),
        (MeshConfig(model=2), "devices"),
    ],
)
def test_impossible_meshes_are_explained(config, message):
    with pytest.raises(ValueError, match=message):
        sharding.make_mesh(config, jax.devices()[:1])


def test_indivisible_batches_are_explained():
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    with pytest.raises(ValueError, match="accumulation 3; use 9"):
        sharding.check_batch(8, mesh, accumulation=3)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture
def pair(environment, repository, tmp_path):
    """Starts two processes on this machine, two devices each: pair(workdir, steps, flags)."""
    from tiny import write_config

    started = []

    def start(workdir, steps, *flags):
        port = free_port()
        for rank in range(2):
            config = write_config(tmp_path / f"tiny_{steps}_{rank}.py")
            started.append(
                subprocess.Popen(
                    [sys.executable, "-m", "pose_jax.main", f"--config={config}",
                     f"--workdir={workdir}", f"--config.train.steps={steps}",
                     "--config.optimiser.name=sgd", "--distributed", *flags],
                    env={**environment, "JAX_NUM_CPU_DEVICES": "2",
                         "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
                         "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": str(rank)},
                    cwd=repository, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                    text=True,
                )
            )  # fmt: skip
        return started[-2:]

    yield start
    for process in started:
        process.kill()


def outputs(processes, code=0):
    """What the processes said; all must end with the code."""
    said = []
    for process in processes:
        out, _ = process.communicate(timeout=300)
        assert process.returncode == code, out
        said.append(out)
    return said


def test_two_processes_train_save_and_restore(pair, tmp_path):
    """Train, save, resume, evaluate; then another run from these weights, split by FSDP."""
    from pose_jax import checkpoint
    from pose_jax.trees import flat_names

    two, both = tmp_path / "two", "--config.tasks=('train','evaluate')"
    # Wide enough that arrays are split.
    wide = "--config.model.depth=1", "--config.model.features=192"
    outputs(pair(two, 2, both, *wide))
    assert (two / "results.json").exists()
    # The second half of the run starts from what both processes saved.
    stored = json.loads((two / "config.json").read_text())
    stored["train"]["steps"] = 4
    (two / "config.json").write_text(json.dumps(stored))
    files = sorted(p.name for p in (two / "checkpoints/2/data").glob("process*"))
    assert files == ["process_0-of-2.json", "process_1-of-2.json"]
    assert "resuming" in outputs(pair(two, 4, both, *wide))[0]
    results = json.loads((two / "results.json").read_text())
    assert results["val-gt-flip-4"]["people"] == 16
    tree, step = checkpoint.load_variables(two, "last")
    assert step == 4
    assert all(np.isfinite(x).all() for x in flat_names(tree).values())
    rows = json.loads((two / "predictions.json").read_text())
    assert len({row["image_id"] for row in rows}) == 16

    split = tmp_path / "split"
    still = "--config.optimiser.learning_rate=0.0", "--config.mesh.fsdp=True"
    start = f"--config.init_from.path={two}"
    assert "arrays copied" in outputs(pair(split, 2, start, *still, *wide))[0]
    found, step = checkpoint.load_variables(split, "last")
    assert step == 2
    for name, value in flat_names(found["params"]).items():
        np.testing.assert_array_equal(value, flat_names(tree["params"])[name])


def test_a_preempted_process_stops_all_at_one_step(pair, tmp_path):
    """SIGTERM to one host: all save the same step and say so; the same command resumes."""
    processes = pair(tmp_path / "run", 100_000, "--config.tasks=('train',)")
    for line in processes[0].stdout:
        if "img/s" in line:
            break
    processes[1].send_signal(signal.SIGTERM)
    said = outputs(processes, code=2)
    steps = {re.search(r"stopped by preemption at step (\d+), saved", s) for s in said}
    (step,) = {int(found[1]) for found in steps if found}
    assert (tmp_path / "run" / "checkpoints" / str(step)).is_dir()
