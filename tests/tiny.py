"""A run that compiles in seconds: shared by the tests of training and tasks."""

from __future__ import annotations

from pose_jax import config


def tiny_config(**train):
    """One-stack hourglass of 8 channels at 32 px on synthetic figures."""
    c = config.default()
    c.tasks = ("train",)
    c.input.size = (32, 32)
    c.codec.update(sigma_px=1.0, activation="softmax")
    c.objective.loss = "cross_entropy"
    c.model = dict(
        name="hourglass", stacks=1, depth=2, features=8, stem=(4, 4, 8),
        autoencoder="none", code=50,
    )  # fmt: skip
    c.data.train.source = config.source(count=64, seed=1, size=(48, 48))
    c.data.train.augment.update(rotation_deg=10.0, gain=0.1)
    c.data.select = config.source(count=16, seed=2, size=(48, 48))
    c.data.eval = config.source(count=16, seed=3, size=(48, 48))
    c.train.update(
        steps=6,
        batch=8,
        log_every=2,
        save_every=2,
        eval_every=3,
        keep_last=2,
        threads=1,
    )
    c.train.update(train)
    c.evaluate.update(batch=8, bootstrap=20, metrics=("pck", "pck_torso", "ap"))
    c.predict.count = 2
    return c


def write_config(path, **train) -> str:
    """The tiny config as a file for the command line."""
    arguments = ", ".join(f"{k}={v!r}" for k, v in train.items())
    path.write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(__file__).rpartition('/')[0]!r})\n"
        "from tiny import tiny_config\n\n\n"
        f"def get_config():\n    return tiny_config({arguments})\n"
    )
    return str(path)
