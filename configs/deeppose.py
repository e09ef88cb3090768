"""Regression of coordinates: the DeepPose cascade and the ResNet baselines.

    python -m pose_jax.main --config=configs/deeppose.py:lspet --workdir=runs/regression

| argument | network and data | published |
|---|---|---|
| `lspet` | ResNet-18, 32 wide, 96 px, with residual log-likelihood; LSPET, 14 joints | ours, small |
| `deeppose` | the cascade of three AlexNet-like stages, 220 px; LSPET | (Toshev and Szegedy, CVPR 2014, score LSP's own test set with other metrics) |
| `resnet50` | ResNet-50, 256x192, smooth L1; COCO | AP 54.1 (MMPose; val2017, flip test, detected boxes of AP 56.4) |
| `resnet50-rle` | the same with residual log-likelihood (Li et al., ICCV 2021) | AP 70.6 (MMPose, as above) |

`deeppose` follows the paper with what a public reimplementation adds (batch 128, dropout .6,
Adagrad at 5e-4). The `resnet50` recipes follow
MMPose: Adam 5e-4 (1e-3 with the likelihood), divided by ten at epochs 170 and 200 of 210.
They start from ImageNet weights: convert them as configs/convert.py:simple-baseline-50 with
convert.backbone_only=True and give the workdir as init_from.path. MMPose shifts 30 % of the crops
besides; these recipes do not. Coordinates are read as heatmaps of sigma 2 by
explanations and analyses.
"""  # noqa: E501

from typing import Any

from pose_jax import protocols, skeletons
from pose_jax.config import default

_RESNETS: dict[str, dict[str, Any]] = {
    "resnet50": dict(loss="smooth_l1", likelihood="none", learning_rate=5e-4),
    "resnet50-rle": dict(loss="rle", likelihood="rle", learning_rate=1e-3),
}


def get_config(arg="lspet"):
    c = default()
    if arg == "lspet":
        return _lspet(c)
    if arg == "deeppose":
        return _cascade(c)
    if arg not in _RESNETS:
        raise ValueError(
            f"configs/deeppose.py has no argument {arg!r}; use lspet, deeppose, "
            f"{', '.join(_RESNETS)}"
        )
    chosen = _RESNETS[arg]
    protocols.coco(
        c, rotation_deg=40.0, scale=0.5, half_body=0.3, batch=512, epochs=210
    )
    protocols.dark_heatmaps(c)
    c.model = dict(name="regression", depth=50, likelihood=chosen["likelihood"])
    c.objective.update(name="regression", loss=chosen["loss"])
    c.optimiser.warmup_steps = 500
    return protocols.adam_steps(
        c, learning_rate=chosen["learning_rate"], epochs=210, at=(170, 200)
    )


def _lspet(c):
    protocols.lspet(c)
    protocols.udp_heatmaps(c)
    c.model = dict(name="regression", depth=18, width=32, likelihood="rle")
    c.objective.update(name="regression", loss="rle")
    return c


def _cascade(c):
    protocols.lspet(c, steps=60_000)
    protocols.udp_heatmaps(c)
    c.input.update(size=(220, 220), padding=1.25)
    lsp = skeletons.get("lsp")
    c.model = dict(
        name="deeppose", stages=3, sigma=2.0, dropout=0.6,
        torso=tuple(lsp.index(name) for name in lsp.torso),
    )  # fmt: skip
    c.objective.update(name="regression", loss="mse")
    c.optimiser.update(
        name="adagrad", learning_rate=5e-4, schedule="constant", warmup_steps=0,
        weight_decay=0.0, clip=0.0,
    )  # fmt: skip
    c.train.update(batch=128, ema=0.0, save_every=2000, eval_every=4000)
    return c
