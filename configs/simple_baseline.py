"""SimpleBaseline (Xiao, Wu, Wei, ECCV 2018): a ResNet with three transposed convolutions.

    python -m pose_jax.main --config=configs/simple_baseline.py:lspet --workdir=runs/simple_baseline

| argument | network and data | published (COCO val2017, flip test, detected boxes of AP 56.4) |
|---|---|---|
| `lspet` | ResNet-18, 96 px; LSPET, 14 joints | ours, small: 35 minutes on 2 CPU cores |
| `lspet-narrow` | the same 32 wide, deconvolutions of 128 | ours: 10 minutes |
| `18`, `34` | ResNet-18, -34, 256x192 | |
| `50` | ResNet-50, 256x192 | AP 70.4 |
| `50-384` | ResNet-50, 384x288, sigma 3 | AP 72.2 |
| `101` | ResNet-101, 256x192 | AP 71.4 |
| `152` | ResNet-152, 256x192 | AP 72.0 |

Following the authors' recipe: Adam 1e-3, divided by ten at epochs 90 and 120 of 140, batch 128
(32 on each of 4 GPUs), rotation 40 degrees, scale .3, squared error against sigma-2 targets. The
published runs start from ImageNet weights: convert a torchvision ResNet first
(configs/convert.py) and give --config.init_from.path and --config.init_from.backbone_only=True.
"""  # noqa: E501

from pose_jax import protocols
from pose_jax.config import default

_SMALL = {
    "lspet": dict(depth=18),
    "lspet-narrow": dict(depth=18, width=32, deconv=(128, 128, 128)),
}
_PUBLISHED = {"18": 18, "34": 34, "50": 50, "50-384": 50, "101": 101, "152": 152}


def get_config(arg="lspet"):
    if arg not in {**_SMALL, **_PUBLISHED}:
        raise ValueError(
            f"configs/simple_baseline.py has no argument {arg!r}; use "
            f"{', '.join({**_SMALL, **_PUBLISHED})}"
        )
    c = default()
    if arg in _SMALL:
        c.model = dict(name="simple_baseline", **_SMALL[arg])
        return protocols.lspet(c)
    large = arg.endswith("-384")
    c.model = dict(name="simple_baseline", depth=_PUBLISHED[arg])
    protocols.coco(
        c, size=(384, 288) if large else (256, 192), rotation_deg=40.0, scale=0.3,
        batch=128, epochs=140,
    )  # fmt: skip
    protocols.msra_heatmaps(c, sigma_px=3.0 if large else 2.0)
    return protocols.adam_steps(c, learning_rate=1e-3, epochs=140, at=(90, 120))
