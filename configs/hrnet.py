"""HRNet (Sun, Xiao, Liu, Wang, CVPR 2019): high resolution all the way.

    python -m pose_jax.main --config=configs/hrnet.py:w32 --workdir=runs/hrnet

| argument | network | published (COCO val2017, 256x192, flip test, detected boxes of AP 56.4) |
|---|---|---|
| `w32` | 28,536,113 parameters | AP 74.4 (mmpose's retraining: 74.9) |
| `w48` | 63,595,745 parameters | AP 75.1 |

Following the authors' recipe: Adam 1e-3, divided by ten at epochs 170 and 200 of 210, batch 128
(32 on each of 4 GPUs), rotation 45 degrees, scale .35, half bodies .3. The published runs start
from ImageNet weights (see configs/convert.py and init_from.backbone_only).
"""

from pose_jax import protocols
from pose_jax.config import default

WIDTHS = {"w32": 32, "w48": 48}


def get_config(arg="w32"):
    if arg not in WIDTHS:
        raise ValueError(
            f"configs/hrnet.py has no argument {arg!r}; use {', '.join(WIDTHS)}"
        )
    c = default()
    c.model = dict(name="hrnet", width=WIDTHS[arg])
    protocols.coco(
        c, rotation_deg=45.0, scale=0.35, half_body=0.3, batch=128, epochs=210
    )
    protocols.msra_heatmaps(c)
    return protocols.adam_steps(c, learning_rate=1e-3, epochs=210, at=(170, 200))
