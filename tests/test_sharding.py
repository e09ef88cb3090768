"""Many devices and processes: emulated on the CPU, in processes of their own."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading

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


@pytest.mark.slow
def test_two_processes_train_save_and_restore(pair, tmp_path):
    """Train, save, resume, evaluate."""
    from pose_jax import checkpoint
    from pose_jax.trees import flat_names

    two, both = tmp_path / "two", "--config.tasks=('train','evaluate')"
    outputs(pair(two, 2, both))
    assert (two / "results.json").exists()
    # The second half of the run starts from what both processes saved.
    stored = json.loads((two / "config.json").read_text())
    stored["train"]["steps"] = 4
    (two / "config.json").write_text(json.dumps(stored))
    files = sorted(p.name for p in (two / "checkpoints/2/data").glob("process*"))
    assert files == ["process_0-of-2.json", "process_1-of-2.json"]
    assert "resuming" in outputs(pair(two, 4, both))[0]
    results = json.loads((two / "results.json").read_text())
    assert results["val-gt-flip-4"]["people"] == 16
    tree, step = checkpoint.load_variables(two, "last")
    assert step == 4
    assert all(np.isfinite(x).all() for x in flat_names(tree).values())
    rows = json.loads((two / "predictions.json").read_text())
    assert len({row["image_id"] for row in rows}) == 16

    # Damage that one process alone sees moves both back, and the step is made again.
    (two / "checkpoints/4/data/process_1-of-2.json").unlink()
    said = outputs(pair(two, 4, "--config.tasks=('train',)"))[0]
    assert "lacks the data position" in said and "at step 3" in said, said
    assert (two / "checkpoints/4/data/process_1-of-2.json").exists()


COLLECTIVES = """
import sys
import jax, numpy as np
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
from pose_jax import sharding
rank = jax.process_index()
mesh = sharding.make_mesh()
tree = {"wide": np.arange(2.0**17, dtype=np.float32).reshape(256, 512),
        "narrow": np.arange(5.0, dtype=np.float32)}
shardings = sharding.state_sharding(tree, mesh, fsdp=True)
state = {n: jax.make_array_from_callback(v.shape, shardings[n], lambda p, v=v: v[p] * 0)
         for n, v in tree.items()}
assert not state["wide"].is_fully_replicated
placed = sharding.place_like(tree, state)
assert placed["wide"].sharding == shardings["wide"]
jax.tree.map(np.testing.assert_array_equal, sharding.gather(placed), tree)
assert sharding.any_over_processes(np.array(rank == 1))
assert not sharding.any_over_processes(np.array(False))
mask = np.array([rank == 0, rank == 1, False, True])
np.testing.assert_array_equal(sharding.any_over_processes(mask), [1, 1, 0, 1])
assert sharding.same_on_all_processes(7) and not sharding.same_on_all_processes(rank)
print("agreed", flush=True)
"""


def test_processes_gather_place_and_agree(environment, repository):
    port = free_port()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", COLLECTIVES, f"127.0.0.1:{port}", str(rank)],
            env={**environment, "JAX_NUM_CPU_DEVICES": "2"},
            cwd=repository, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    assert all("agreed" in said for said in outputs(processes))


@pytest.mark.slow
def test_a_preempted_process_stops_all_at_one_step(pair, tmp_path):
    """SIGTERM to one host: both save the same step and say so."""
    processes = pair(tmp_path / "run", 100_000, "--config.tasks=('train',)")
    watchdog = threading.Timer(200, lambda: [p.kill() for p in processes])
    watchdog.start()
    for line in processes[0].stdout:
        if "img/s" in line:
            break
    processes[1].send_signal(signal.SIGTERM)
    said = outputs(processes, code=2)
    watchdog.cancel()
    found = [re.search(r"stopped by preemption at step (\d+), saved", s) for s in said]
    assert all(found), said
    (step,) = {int(match[1]) for match in found if match}
    assert (tmp_path / "run" / "checkpoints" / str(step)).is_dir()


@pytest.mark.slow
def test_an_unreadable_picture_counts_once_over_all_processes(pair, tmp_path):
    """Rows change processes every epoch: 2 bad ones of 24 people stay 2 over 5 epochs."""
    from test_run import people_on_disk

    (tmp_path / "people").mkdir()
    source = people_on_disk(tmp_path / "people", 24, broken=2)
    fields = f"{source.name=!s},{source.path=!s},{source.images=!s}".split(",")
    flags = [f"--config.data.train.{field}" for field in fields]
    flags += ["--config.data.train.source.count=0", "--config.tasks=('train',)"]
    enough = f"--config.train.max_bad_images={2.5 / 24}"
    outputs(pair(tmp_path / "enough", 16, *flags, enough))
    little = f"--config.train.max_bad_images={1.5 / 24}"
    said = outputs(pair(tmp_path / "little", 16, *flags, little), code=2)
    assert all("2 unreadable pictures among 24" in s for s in said), said


@pytest.mark.slow
def test_two_processes_pretrain_and_look_inside(pair, tmp_path):
    """Latents are collected by both, the projection is fitted once, both go on from it; a
    network that answers nothing is refused by both."""
    base, squeezed = tmp_path / "base", tmp_path / "squeezed"
    outputs(pair(base, 2, "--config.tasks=('train',)"))
    for kind in ("pca", "convolutional"):
        flags = [
            "--config.tasks=('pretrain','train','analyse')",
            f"--config.init_from.path={base}", "--config.init_from.checkpoint=last",
            f"--config.model.autoencoder={kind}", "--config.model.code=4",
            "--config.pretrain.steps=2", "--config.pretrain.batch=8",
            "--config.pretrain.eval_every=1",
        ]  # fmt: skip
        said = outputs(pair(squeezed / kind, 1, *flags))
        assert "pretrain" in said[0]
        assert "not analysed" in said[0]
        assert (squeezed / kind / "checkpoints" / "1").exists()
