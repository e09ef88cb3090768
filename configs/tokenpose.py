"""TokenPose (Li et al., ICCV 2021): keypoints are tokens.

    python -m pose_jax.main --config=configs/tokenpose.py:b --workdir=runs/tokenpose

| argument | parameters (the sine table is not counted) | published (COCO val2017, 256x192, flip test, detected boxes of AP 56.4) |
|---|---|---|
| `t` | 5,816,448: patches of the picture | AP 65.6 |
| `s-v1` | 6,620,736: HRNet's stem | AP 72.5 |
| `s-v2` | 6,227,520: the same, smaller patches | AP 73.5 |
| `b` | 13,465,216: HRNet-W32 to stage 3 | AP 74.7 |
| `l` | 27,482,400: HRNet-W48 to stage 3, 24 layers | AP 75.8 |

Following the authors' recipe: Adam 1e-3, divided by ten at epochs 200 and 260 of 300, on four GPUs
with 32 each (`s-v2` 12, `l` 16), rotation 45 degrees, scale .35, half bodies .3, squared error
against sub-pixel targets of sigma 2, DARK decoding, no shift in the flip test. `b` and `l` start
from ImageNet weights in the HRNet: convert them first (configs/convert.py) and give
--config.init_from.path and --config.init_from.backbone_only=True.
"""  # noqa: E501

from pose_jax import protocols
from pose_jax.config import default
from pose_jax.models.tokenpose import MEMBERS

_BATCHES = {"t": 128, "s-v1": 128, "s-v2": 48, "b": 128, "l": 64}


def get_config(arg="b"):
    if arg not in _BATCHES:
        raise ValueError(
            f"configs/tokenpose.py has no argument {arg!r}; use {', '.join(_BATCHES)}"
        )
    c = default()
    c.model = dict(name="tokenpose", input_size=(256, 192), **MEMBERS[arg])
    protocols.coco(
        c, rotation_deg=45.0, scale=0.35, half_body=0.3, batch=_BATCHES[arg],
        epochs=300,
    )  # fmt: skip
    protocols.dark_heatmaps(c)
    return protocols.adam_steps(c, learning_rate=1e-3, epochs=300, at=(200, 260))
