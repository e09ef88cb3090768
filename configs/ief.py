"""Iterative error feedback (Carreira, Agrawal, Fragkiadaki, Malik, CVPR 2016).

    python -m pose_jax.main --config=configs/ief.py:lspet --workdir=runs/ief

| argument | network and data | published |
|---|---|---|
| `lspet` | ResNet-18, 32 wide, 96 px; LSPET, 14 joints | ours, small |
| `mpii` | ResNet-50, 224 px; MPII, 16 joints | PCKh 81.0 on its validation people (with GoogLeNet and a search over scales) |

Four corrections of at most 20 pixels (of 224), fixed path consolidation. Backbone, start pose,
drawing of the steps and optimiser are ours, see `models/ief.py` and the objective
`correction`; the published run starts from ImageNet weights, with the RGB part of a widened
first convolution, which is not built here: these runs start from nothing.
"""  # noqa: E501

from typing import Any

from pose_jax import protocols
from pose_jax.config import default, source


def get_config(arg="lspet"):
    if arg not in ("lspet", "mpii"):
        raise ValueError(f"configs/ief.py has no argument {arg!r}; use lspet or mpii")
    c = protocols.lspet(default())
    protocols.udp_heatmaps(c)
    c.objective.update(name="correction", loss="mse")
    c.model = dict(name="ief", depth=18, width=32)
    return _mpii(c) if arg == "mpii" else c


def _mpii(c):
    c.skeleton = "mpii"
    c.input.update(size=(224, 224), padding=1.25)
    c.model = dict(name="ief", depth=50)
    train: dict[str, Any] = dict(
        name="mpii", path="mpii/train.h5", images="mpii/images", holdout=0.02
    )
    c.data.train.source = source(**train, part="train")
    c.data.select = source(**train, part="held_out")
    c.data.eval = source("mpii", path="mpii/valid.h5", images="mpii/images")
    c.optimiser.update(name="adam", learning_rate=1e-4, weight_decay=0.0, clip=0.0)
    c.train.update(
        steps=100_000, batch=32, ema=0.0, precision="bfloat16", save_every=2000,
        eval_every=4000,
    )  # fmt: skip
    c.evaluate.update(name="mpii-val", metrics=("pckh", "pck"))
    return c
