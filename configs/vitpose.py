"""ViTPose (Xu, Zhang, Zhang, Tao, NeurIPS 2022): a plain vision transformer.

    python -m pose_jax.main --config=configs/vitpose.py:b --workdir=runs/vitpose

| argument | parameters | published (COCO val2017, 256x192, flip test, detected boxes of AP 56.4) |
|---|---|---|
| `s` | 24,290,577 | AP 73.8 |
| `b` | 89,994,513 | AP 75.8 |
| `l` | 308,544,785 | AP 78.3 |
| `h` | 637,208,849 | AP 79.1 |
| `s-simple`, `b-simple`, `l-simple`, `h-simple` | with the simple head | AP 73.5, 75.5, 78.2, 78.9 |
| `lspet` | a small one, 96 px; LSPET, 14 joints | ours, from nothing: such a network needs pretraining |

Following the authors' recipe: AdamW 5e-4, weight decay .1, the rate decayed by layer and divided
by ten at epochs 170 and 200 of 210, 500 steps of warm-up, gradients clipped at norm 1, batch 512
(64 on each of 8 GPUs), rotation 40 degrees, scale .5, half bodies .3, UDP targets of sigma 2,
squared error. The published runs start from MAE weights: convert the backbone first
(configs/convert.py) and give --config.init_from.path and --config.init_from.backbone_only=True.
"""  # noqa: E501

from typing import Any

from pose_jax import protocols
from pose_jax.config import default
from pose_jax.models.vitpose import SIZES

# Size -> drop path of the last layer, decay of the learning rate per layer.
_RECIPES: dict[str, tuple[float, float]] = {
    "s": (0.1, 0.8),
    "b": (0.3, 0.75),
    "l": (0.5, 0.8),
    "h": (0.55, 0.85),
}
_PUBLISHED = (*_RECIPES, *(f"{size}-simple" for size in _RECIPES))


def get_config(arg="b"):
    if arg not in (*_PUBLISHED, "lspet"):
        raise ValueError(
            f"configs/vitpose.py has no argument {arg!r}; use {', '.join(_PUBLISHED)}, "
            "lspet"
        )
    c = default()
    if arg == "lspet":
        return _small(c)
    size = arg.removesuffix("-simple")
    drop_path, layer_decay = _RECIPES[size]
    c.model = _section(size, (256, 192), drop_path=drop_path)
    c.model.head = "simple" if arg.endswith("-simple") else "classic"
    protocols.coco(
        c, rotation_deg=40.0, scale=0.5, half_body=0.3, batch=512, epochs=210
    )
    protocols.udp_heatmaps(c)
    protocols.adam_steps(c, learning_rate=5e-4, epochs=210, at=(170, 200))
    c.optimiser.update(
        name="adamw", weight_decay=0.1, layer_decay=layer_decay, warmup_steps=500,
        clip=1.0,
    )  # fmt: skip
    return c


def _small(c):
    c.model = _section("tiny", (96, 96), patch=8, deconv=(96,))
    protocols.lspet(c)
    c.optimiser.learning_rate = 1e-3
    return c


def _section(size: str, input_size: tuple[int, int], **fields: Any) -> Any:
    return dict(name="vitpose", input_size=input_size, **{**SIZES[size], **fields})
