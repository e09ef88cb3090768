"""Does keypoint removal in training help? Arms x seeds at equal steps, then one table.

    python -m pose_jax.main --config=configs/removal_study.py:lspet --workdir=runs/removal_study

| argument | arms | expected cost |
|---|---|---|
| `lspet` | none, cutout_equal_area, gkr, gkr_shuffled_clusters | 45 minutes on 2 CPU cores |
| `lspet-all` | also random_keypoint, whole_cluster, gkr_strong | 80 minutes |
| `lspet-weighted` | gkr and gkr_value_weighted; set data.train.removal.influence | 25 minutes |
| `coco` | the four arms of `lspet` on the COCO subset, from runs/lspet | 30 minutes |
| `simple-baseline` | none, cutout_equal_area, gkr with a narrow SimpleBaseline-18 (3.9 M parameters), 64 px | 30 minutes |
| `transpose` | the same arms with the small TransPose on a convolutional stem, 64 px | 30 minutes |

Hourglasses are 64 wide at 96 px (`coco`: as wide as the run they start from). The same command
again resumes; `--config.sweep.background=True` returns at once. XPose's recipe is not public:
this follows it with the defaults of pose_jax/data/removal.py. Every arm is read at its last
(averaged) checkpoint. The labelled but occluded joints of COCO are scored on the same runs
by --config.sweep.tasks="('evaluate',)" with another data.eval and evaluate.name.
"""  # noqa: E501

from pathlib import Path

from pose_jax.config import load_config

_FOUR = ("none", "cutout_equal_area", "gkr", "gkr_shuffled_clusters")
ARMS = {
    "lspet": _FOUR,
    "lspet-all": (*_FOUR, "random_keypoint", "whole_cluster", "gkr_strong"),
    "lspet-weighted": ("none", "gkr", "gkr_value_weighted"),
    "coco": _FOUR,
    "simple-baseline": _FOUR[:3],
    "transpose": _FOUR[:3],
}
FAMILIES = {
    "simple-baseline": ("simple_baseline", "lspet-narrow"),
    "transpose": ("transpose", "small"),
}
"""Argument -> the config whose network is studied; the others study the hourglass."""


def get_config(arg="lspet"):
    if arg not in ARMS:
        raise ValueError(
            f"configs/removal_study.py has no argument {arg!r}; use {', '.join(ARMS)}"
        )
    other = FAMILIES.get(arg)
    c = _load(*other) if other else _load("hourglass", arg.partition("-")[0])
    c.tasks = ("sweep", "compare")
    if c.model.name == "hourglass" and c.skeleton == "lsp":
        c.model.features = 64
    c.data.select.name = (
        ""  # Runs are compared at the last checkpoint: nothing selects.
    )
    c.train.steps = 2500 if c.skeleton == "lsp" else 1000
    if other:
        _small(c)
    c.train.update(save_every=c.train.steps, eval_every=0, ema=0.998)
    c.evaluate.update(metrics=("pck", "occlusion"), overlays=0)
    c.sweep.arms = {
        name: {"data": {"train": {"removal": {"kind": name}}}} for name in ARMS[arg]
    }
    return c


def _small(c):
    """Other families: 64 px, so that a study fits into an hour."""
    c.input.size = (64, 64)
    if "input_size" in c.model:
        c.model.input_size = (64, 64)
    c.train.steps = 1000
    c.optimiser.warmup_steps = 100


def _load(name: str, arg: str):
    """The config of a neighbouring file, to change."""
    return load_config(Path(__file__).with_name(f"{name}.py"), arg)
