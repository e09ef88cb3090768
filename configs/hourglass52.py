"""mmpose's "hourglass52" (CornerNet's hourglass, Law & Deng, ECCV 2018) on COCO.

    python -m pose_jax.main --config=configs/hourglass52.py:256 --workdir=runs/hourglass52

| argument | input | published (mmpose, COCO val2017, flip test, detected boxes of AP 56.4) |
|---|---|---|
| `256` | 256x256 | AP 72.6 |
| `384` | 384x384, sigma 3 | AP 74.6 |

Following mmpose's recipe: Adam 5e-4 after 500 steps of warm-up, divided by ten at epochs 170 and
200 of 210, batch 256 (32 on each of 8 GPUs), rotation 40 degrees, scale .5, half bodies .3,
shift .16 (here of every crop, uniform; mmpose: of 30 % of them, a cut normal).
"""  # noqa: E501

from pose_jax import protocols
from pose_jax.config import default


def get_config(arg="256"):
    if arg not in ("256", "384"):
        raise ValueError(
            f"configs/hourglass52.py has no argument {arg!r}; use 256 or 384"
        )
    c = default()
    c.model = dict(name="hourglass52")
    protocols.coco(
        c, size=(int(arg), int(arg)), rotation_deg=40.0, scale=0.5, half_body=0.3,
        batch=256, epochs=210,
    )  # fmt: skip
    c.data.train.augment.shift = 0.16
    protocols.msra_heatmaps(c, sigma_px=3.0 if arg == "384" else 2.0)
    protocols.adam_steps(c, learning_rate=5e-4, epochs=210, at=(170, 200))
    c.optimiser.warmup_steps = 500
    return c
