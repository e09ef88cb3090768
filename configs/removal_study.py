"""Does keypoint removal in training help? Arms x seeds at equal steps, then one table.

    python -m pose_jax.main --config=configs/removal_study.py:lspet --workdir=runs/removal_study

| argument | arms | expected cost |
|---|---|---|
| `lspet` | none, cutout_equal_area, gkr, gkr_shuffled_clusters | 45 minutes on 2 CPU cores |
| `lspet-all` | also random_keypoint, whole_cluster, gkr_strong | 80 minutes |
| `lspet-weighted` | gkr and gkr_value_weighted; set data.train.removal.influence | 25 minutes |
| `coco` | the four arms of `lspet` on the COCO subset, from runs/lspet | 30 minutes |

Networks are 64 wide at 96 px (`coco`: as wide as the run they start from). The same command
again resumes; `--config.sweep.background=True` returns at once. XPose's recipe is not public:
this follows it with the defaults of pose_jax/data/removal.py. Every arm is read at its last
(averaged) checkpoint. The labelled but occluded joints of COCO are scored on the same runs
by --config.sweep.tasks="('evaluate',)" with another data.eval and evaluate.name.
"""

import importlib.util
from pathlib import Path

_FOUR = ("none", "cutout_equal_area", "gkr", "gkr_shuffled_clusters")
ARMS = {
    "lspet": _FOUR,
    "lspet-all": (*_FOUR, "random_keypoint", "whole_cluster", "gkr_strong"),
    "lspet-weighted": ("none", "gkr", "gkr_value_weighted"),
    "coco": _FOUR,
}


def get_config(arg="lspet"):
    if arg not in ARMS:
        raise ValueError(
            f"configs/removal_study.py has no argument {arg!r}; use {', '.join(ARMS)}"
        )
    c = _hourglass().get_config(arg.partition("-")[0])
    c.tasks = ("sweep", "compare")
    if c.skeleton == "lsp":
        c.model.features = 64
    c.data.select.name = (
        ""  # Runs are compared at the last checkpoint: nothing selects.
    )
    c.train.steps = 2500 if c.skeleton == "lsp" else 1000
    c.train.update(save_every=c.train.steps, eval_every=0, ema=0.998)
    c.evaluate.update(metrics=("pck", "occlusion"), overlays=0)
    c.sweep.arms = {
        name: {"data": {"train": {"removal": {"kind": name}}}} for name in ARMS[arg]
    }
    return c


def _hourglass():
    """The neighbouring file: the study changes its networks and data in place."""
    path = Path(__file__).with_name("hourglass.py")
    spec = importlib.util.spec_from_file_location("hourglass_configs", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
