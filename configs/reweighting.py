"""Error-weighted fine-tuning on the poses that the clusters of a latent misplace.

    python -m pose_jax.main --config=configs/reweighting.py:analyse --workdir=runs/thesis-small-repaired
    python -m pose_jax.main --config=configs/reweighting.py:small --workdir=runs/reweighting

The first command clusters the base's latents and writes the weights, the second trains the arms
`continued`, `misplaced`, `misplaced_shuffled` (the same factors dealt out at random) and
`error_all` (every pose by its error, the same spread) for equal steps, 3 seeds, and compares.
About an hour on two CPU cores.
"""  # noqa: E501

from pathlib import Path

from pose_jax.config import load_config

BASE = "runs/thesis-small-repaired"
WEIGHTS = f"{BASE}/analysis/lspet-val"


def get_config(arg="small"):
    if arg not in ("small", "analyse"):
        raise ValueError(
            f"configs/reweighting.py has no argument {arg!r}; use small or analyse"
        )
    if arg == "analyse":
        c = _load("hourglass", "thesis-small-repaired")
        c.tasks = ("analyse",)
        c.analyse.studies = ("clusters", "weights")
        return c
    c = _load("autoencoder", "small")
    c.tasks = ("sweep", "compare")
    c.model.autoencoder = "none"
    arms = ("misplaced", "misplaced_shuffled", "error_all")
    c.sweep.arms = {"continued": {}} | {
        name: {
            "data": {"train": {"source": {"weights": f"{WEIGHTS}/weights-{name}.npz"}}}
        }
        for name in arms
    }
    c.sweep.tasks = ("train", "evaluate")
    c.compare.baseline = "continued"
    return c


def _load(name: str, arg: str):
    """The config of a neighbouring file, to change."""
    return load_config(Path(__file__).with_name(f"{name}.py"), arg)
