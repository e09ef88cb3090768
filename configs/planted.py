"""Which explanation can be trusted, for what? Worlds with planted causes, judged by intervention.

    python -m pose_jax.main --config=configs/planted.py --workdir=runs/planted

Trains one small network per world and seed, measures by redrawing the pictures what each
network uses, and scores every explainer against that. The same command again resumes.

| argument | worlds | expected cost |
|---|---|---|
| `default` | `composite` (a marker, a mirrored partner, a background cue and an unresolvable joint on one figure) and `face`, 3 seeds | half an hour on 2 CPU cores |
| `all` | every world of pose_jax/data/world_rules.py, 3 seeds | 4 hours |
| `tiny` | `composite`, one seed, far too short to learn: to try the command | a minute |

The networks are one architecture with the weights as arguments, so every explainer is compiled
once. A network that fails a gate (it does not follow the planted cause, or follows the decoy)
is printed as "not learned" and its explanations are not scored.
"""  # noqa: E501

from pose_jax.config import default, source
from pose_jax.data.world_rules import WORLDS

SIZE = 64
SETS = {
    "default": ("composite", "face"),
    "all": tuple(WORLDS),
    "tiny": ("composite",),
}


def get_config(arg="default"):
    if arg not in SETS:
        raise ValueError(
            f"configs/planted.py has no argument {arg!r}; use {', '.join(SETS)}"
        )
    c = default()
    c.tasks = ("sweep", "compare")
    c.skeleton = "lsp"
    c.input.update(size=(SIZE, SIZE), padding=1.0)
    c.codec.update(sigma_px=1.0, activation="softmax")
    c.data.train.source = source("worlds", count=12_000, seed=1, size=(SIZE, SIZE))
    # A mirrored picture would break the worlds' rules; places are part of them.
    c.data.train.augment.update(
        flip=0.0, rotation_deg=0.0, rotation_probability=0.0, scale=0.0, shift=0.0
    )
    c.data.eval = source("worlds", count=200, seed=2, size=(SIZE, SIZE))
    c.data.select.name = ""
    c.model = dict(name="hourglass", stacks=1, depth=3, features=48, stem=(16, 32, 48))
    c.objective.loss = "cross_entropy"
    c.optimiser.update(
        name="adamw", learning_rate=3e-3, weight_decay=0.01, schedule="cosine",
        warmup_steps=100, clip=5.0,
    )  # fmt: skip
    c.train.update(steps=2000, batch=32, log_every=100, save_every=1000, eval_every=0)
    c.evaluate.flip_test = False
    c.sweep.tasks = ("train", "planted")
    c.sweep.arms = {
        world: {"data": {"train": {"source": {"world": world}}}} for world in SETS[arg]
    }
    c.compare.kind = "planted"
    if arg == "tiny":
        c.sweep.seeds = (0,)
        c.train.update(steps=20, save_every=20)
        c.data.train.source.count = 64
        c.optimiser.warmup_steps = 5
        c.planted.update(pictures=6, games=2, donors=2)
    return c
