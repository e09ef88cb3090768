"""Stacked hourglass (Newell et al., ECCV 2016) on real people.

    python -m pose_jax.main --config=configs/hourglass.py:lspet --workdir=runs/lspet

| argument | network and data | expected cost |
|---|---|---|
| `lspet` | 1 stack, 96 wide, 96 px; LSPET, 14 joints | 20 minutes on 2 CPU cores |
| `coco` | the same network, COCO subset, from the `lspet` weights | 4 minutes on 2 CPU cores |
| `mpii` | Newell's 2 stacks, 256 wide, 256 px; MPII | about 3 days on one 2016 GPU, hours on an H200 |
| `thesis` | the thesis's network (14,526,053 parameters) and recipe on COCO 2017 | 58 h on a GTX 1070 |
| `thesis-small` | the same, 64 wide, 128 px, on the COCO subset | half an hour on 2 CPU cores |

Data are found through POSE_JAX_DATA, a folder with one sub-folder per data set.
"""  # noqa: E501

from typing import Any

from pose_jax.config import default, source
from pose_jax.models import NEWELL, THESIS

_LSPET: dict[str, Any] = dict(name="coco", images="lspet/images")
_COCO17: dict[str, Any] = dict(name="coco", images="coco17/images")
SMALL: dict[str, Any] = dict(stacks=1, depth=3, features=96, stem=(16, 32, 64))


def get_config(arg="lspet"):
    variants = {
        "lspet": _lspet,
        "coco": _coco,
        "mpii": _mpii,
        "thesis": _thesis,
        "thesis-small": _thesis_small,
    }
    if arg not in variants:
        raise ValueError(
            f"configs/hourglass.py has no argument {arg!r}; use {', '.join(variants)}"
        )
    return variants[arg](default())


def _fast(c):
    """Cross-entropy over positions learns several times faster than squared error."""
    c.input.update(size=(96, 96), padding=1.1)
    c.codec.update(sigma_px=1.0, activation="softmax")
    c.objective.loss = "cross_entropy"
    c.model = dict(name="hourglass", **SMALL)
    return c


def _lspet(c):
    _fast(c)
    c.skeleton = "lsp"
    train: dict[str, Any] = dict(_LSPET, path="lspet/lspet_train.json", holdout=0.06)
    c.data.train.source = source(**train, part="train")
    c.data.train.augment.update(
        rotation_deg=30.0, rotation_probability=0.6, scale=0.25, shift=0.05, gain=0.2
    )
    c.data.select = source(**train, part="held_out")
    c.data.eval = source(**_LSPET, path="lspet/lspet_val.json")
    c.optimiser.update(
        name="adamw", learning_rate=2e-3, weight_decay=0.05, schedule="cosine",
        warmup_steps=300, clip=5.0,
    )  # fmt: skip
    c.train.update(
        steps=10_000,
        batch=16,
        ema=0.999,
        log_every=100,
        save_every=1250,
        eval_every=1250,
    )
    c.evaluate.update(
        name="lspet-val", metrics=("pck", "pck_torso"), batch=64, overlays=24
    )
    return c


def _coco(c):
    _fast(c)
    c.skeleton = "coco"
    c.init_from.path = "runs/lspet"
    train: dict[str, Any] = dict(
        _COCO17, path="coco17/person_keypoints_train.json", holdout=0.1
    )
    c.data.train.source = source(**train, part="train", min_side_px=32.0)
    c.data.train.augment.update(
        rotation_deg=20.0, scale=0.25, shift=0.05, half_body=0.2, gain=0.2
    )
    c.data.select = source(**train, part="held_out", min_side_px=32.0)
    c.data.eval = source(**_COCO17, path="coco17/person_keypoints_val.json")
    c.optimiser.update(
        name="adamw", learning_rate=1e-3, weight_decay=0.05, schedule="cosine",
        warmup_steps=100, clip=5.0,
    )  # fmt: skip
    c.train.update(
        steps=1500, batch=16, ema=0.998, log_every=100, save_every=500, eval_every=500
    )
    c.evaluate.update(name="coco17-val", metrics=("ap", "pck"), batch=64, overlays=24)
    return c


def _mpii(c):
    """Newell et al. 2016 at two stacks; squared error, sigma 1, quarter offset."""
    c.skeleton = "mpii"
    c.input.update(size=(256, 256), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    c.codec.update(encode="unbiased", decode="quarter", sigma_px=1.0)
    c.model = dict(name="hourglass", stacks=2, **NEWELL)
    train: dict[str, Any] = dict(
        name="mpii", path="mpii/train.h5", images="mpii/images"
    )
    c.data.train.source = source(**train, part="train", holdout=0.02)
    c.data.train.augment.update(rotation_deg=30.0, rotation_probability=0.4, gain=0.4)
    c.data.eval = source("mpii", path="mpii/valid.h5", images="mpii/images")
    c.data.select = source(**train, part="held_out", holdout=0.02)
    c.objective.unlabelled_as_empty = True
    c.optimiser.update(
        name="rmsprop", learning_rate=2.5e-4, schedule="plateau", factor=0.2
    )
    c.train.update(
        steps=200_000, batch=16, precision="bfloat16", save_every=2000, eval_every=4000
    )
    c.evaluate.update(name="mpii-val", metrics=("pckh", "pck"))
    return c


def _thesis(c):
    """Following the thesis: no augmentation, unit-mass targets, squared error over all maps,
    RMSprop, x0.2 on a plateau of validation PCK, 47 epochs of 7,753 steps."""
    c.skeleton = "coco"
    c.input.update(
        size=(256, 256), mean=(0.41025, 0.37406, 0.35355), std=(1.0, 1.0, 1.0),
        padding=1.1,
    )  # fmt: skip
    c.codec.update(encode="thesis", decode="argmax", sigma_px=1.0, flip="none")
    c.model = dict(name="hourglass", features=256, **THESIS)
    train: dict[str, Any] = dict(name="coco", images="coco/train2017")
    c.data.train.source = source(
        **train, path="coco/annotations/person_keypoints_train2017.json"
    )
    _no_augmentation(c)
    val = source(
        name="coco",
        images="coco/val2017",
        path="coco/annotations/person_keypoints_val2017.json",
    )
    c.data.select, c.data.eval = val, val.copy_and_resolve_references()
    _thesis_recipe(c)
    c.train.update(steps=47 * 7753, batch=16, save_every=2000, eval_every=7753)
    return c


def _thesis_small(c):
    c = _thesis(c)
    c.input.size = (128, 128)
    c.model.update(features=64, stem=(64, 64, 64))
    train: dict[str, Any] = dict(
        _COCO17, path="coco17/person_keypoints_train.json", holdout=0.1
    )
    c.data.train.source = source(**train, part="train")
    c.data.select = source(**train, part="held_out")
    c.data.eval = source(**_COCO17, path="coco17/person_keypoints_val.json")
    c.train.update(steps=4000, save_every=500, eval_every=500)
    return c


def _no_augmentation(c):
    for name in c.data.train.augment:
        c.data.train.augment[name] = 0.0


def _thesis_recipe(c):
    c.objective.unlabelled_as_empty = True
    c.optimiser.update(
        name="rmsprop", learning_rate=2.5e-4, schedule="plateau", factor=0.2,
        patience=5, floor=5e-5,
    )  # fmt: skip
    c.train.select = "heatmap_pck"
    c.evaluate.update(
        name="thesis-val", metrics=("heatmap_pck", "pck"), flip_test=False,
        pck_thresholds=(0.05, 0.1, 0.2),
    )  # fmt: skip
