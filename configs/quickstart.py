"""Synthetic figures: train, evaluate and predict in under three minutes on two CPU cores.

    ./launch/local.sh --config=configs/quickstart.py --workdir=runs/quickstart

No data set is needed. Look at runs/quickstart/figures afterwards.
"""

from pose_jax.config import default, source


def get_config():
    c = default()
    c.tasks = ("train", "evaluate", "predict")
    c.skeleton = "coco"
    c.input.size = (96, 96)
    c.codec.update(sigma_px=1.0, activation="softmax")
    c.data.train.source = source(count=4000, seed=1)
    c.data.train.augment.update(rotation_deg=15.0, scale=0.15)
    c.data.select = source(count=96, seed=2)
    c.data.eval = source(count=256, seed=3)
    c.model = dict(name="hourglass", stacks=1, depth=3, features=64, stem=(16, 32, 64))
    c.objective.loss = "cross_entropy"
    c.optimiser.update(learning_rate=3e-3, schedule="cosine", warmup_steps=50)
    c.train.update(steps=750, batch=16, log_every=50, save_every=250, eval_every=375)
    c.evaluate.update(
        name="figures", metrics=("pck", "pck_torso", "ap"), batch=64, overlays=24
    )
    c.predict.update(count=8)
    return c
