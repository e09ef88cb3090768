"""An autoencoder in the bottleneck of a trained hourglass, in two stages, and its controls.

    python -m pose_jax.main --config=configs/autoencoder.py:small --workdir=runs/autoencoder

Stage one (`pretrain`) collects the latents of the base (`init_from.path`) and trains the
autoencoder on them with multiplicative noise; stage two trains everything. Following
Andersen's thesis, whose network it is at full size (16,105,047 parameters).

| argument | what | expected cost |
|---|---|---|
| `thesis` | both stages of the thesis from runs/thesis: 100 epochs of SGD on latents, 9 epochs | an accelerator |
| `small` | from runs/thesis-small-repaired on LSPET, 500 steps | 10 minutes on 2 CPU cores |
| `small-study` | arms continued, autoencoder, autoencoder_random, pca_50 x 3 seeds, then the table | 70 minutes on 2 CPU cores |
| `small-study-all` | also linear output, codes 10, 17, 200, skips off without and with it | 3 hours |
| `thesis-study` | all of that and code 1024 from runs/thesis, 9 epochs each | accelerators |

All arms of a study start from one stored base, run equal steps and are read at their last
(averaged) checkpoint. A code of 1024 needs the latent of the full-size network.
"""  # noqa: E501

from pathlib import Path

from pose_jax.config import load_config

_AE = "convolutional"
_FOUR = {
    "continued": {},
    "autoencoder": {"model": {"autoencoder": _AE}},
    "autoencoder_random": {"model": {"autoencoder": _AE}, "pretrain": {"steps": 0}},
    "pca_50": {"model": {"autoencoder": "pca"}},
}
_MORE = {
    "linear_output": {"model": {"autoencoder": _AE, "autoencoder_output": "linear"}},
    **{
        f"code_{code}": {"model": {"autoencoder": _AE, "code": code}}
        for code in (10, 17, 200)
    },
    "no_skips": {"model": {"skips": ()}},
    "no_skips_autoencoder": {"model": {"skips": (), "autoencoder": _AE}},
}
_LARGE = {"code_1024": {"model": {"autoencoder": _AE, "code": 1024}}}
STUDIES = {
    "small-study": _FOUR,
    "small-study-all": {**_FOUR, **_MORE},
    "thesis-study": {**_FOUR, **_MORE, **_LARGE},
}


def get_config(arg="small"):
    if arg in ("thesis", "small"):
        c = _thesis() if arg == "thesis" else _small()
        c.tasks = ("pretrain", "train", "evaluate")
        c.model.autoencoder = _AE
        return c
    if arg not in STUDIES:
        raise ValueError(
            f"configs/autoencoder.py has no argument {arg!r}; use thesis, small, "
            f"{', '.join(STUDIES)}"
        )
    c = _thesis() if arg.startswith("thesis") else _small()
    c.tasks = ("sweep", "compare")
    c.sweep.arms = STUDIES[arg]
    c.sweep.tasks = ("pretrain", "train", "evaluate")
    c.evaluate.checkpoint = "last"
    c.compare.baseline = "continued"
    return c


def _fields(c):
    """Every field that an arm or the command line may change."""
    c.model.update(autoencoder="none", autoencoder_output="relu", code=50, skips=None)
    return c


def _thesis():
    """Stage one: SGD, 5e-4 halved every 25 of 100 epochs, batch 16 in file order. Stage two:
    a fresh RMSprop for the 9 epochs in which the original's weights moved."""
    c = _fields(_load("hourglass", "thesis"))
    c.init_from.update(path="runs/thesis", checkpoint="best")
    # All crops, as in the original, which validated on the latents of val2017.
    c.pretrain.update(steps=100 * 7753, file_order=True, holdout=0.0, eval_every=0)
    c.train.steps = 9 * 7753
    return c


def _small():
    c = _fields(_load("hourglass", "thesis-small-repaired"))
    c.init_from.update(path="runs/thesis-small-repaired", checkpoint="last")
    c.data.select.name = ""  # Arms are compared at the last checkpoint.
    c.pretrain.update(steps=1500, batch=64, eval_every=500)
    c.pretrain.optimiser.update(
        name="adam", learning_rate=1e-3, schedule="cosine", warmup_steps=100
    )
    c.optimiser.update(learning_rate=1e-3, warmup_steps=50)
    c.train.update(steps=500, save_every=500, eval_every=0, ema=0.99)
    c.evaluate.update(overlays=0)
    return c


def _load(name: str, arg: str):
    """The config of a neighbouring file, to change."""
    return load_config(Path(__file__).with_name(f"{name}.py"), arg)
