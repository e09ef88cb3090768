"""Stacked hourglass (Newell et al., ECCV 2016) on real people.

    python -m pose_jax.main --config=configs/hourglass.py:lspet --workdir=runs/lspet

| argument | network and data | expected cost |
|---|---|---|
| `lspet` | 1 stack, 96 wide, 96 px; LSPET, 14 joints | 20 minutes on 2 CPU cores |
| `coco` | the same network, COCO subset, from the `lspet` weights | 4 minutes on 2 CPU cores |
| `mpii` | Newell's 2 stacks, 256 wide, 256 px; MPII | about 3 days on one 2016 GPU, hours on an H200 |
| `mpii-1`, `mpii-8` | the same with 1 or 8 stacks | half, four times as much |
| `bearpaw-1`, `-2`, `-8` | bearpaw/pytorch-pose's port (a wider stem, dataset mean) with 1, 2 or 8 stacks; MPII | as `mpii` |
| `thesis` | the thesis's network (14,526,053 parameters), crops, splits and recipe on COCO 2017 | 58 h on a GTX 1070 |
| `thesis-repaired` | the same network and crops; the split by picture, targets that peak at 1, unlabelled joints left out, augmentation, Adam, bfloat16 | about as much |
| `thesis-repaired-leaky` | the same with the split by person, as the thesis's: its test record beside the honest one says what the leak is worth | about as much |
| `thesis-stacked-ae` | two stacks of that, each with the autoencoder in its bottleneck | twice as much |
| `thesis-small` | `thesis` 64 wide at 128 px on the COCO subset | half an hour on 2 CPU cores |
| `thesis-small-repaired` | 64 wide at 128 px; LSPET; cross-entropy, because squared error learned nothing in 400 steps in which cross-entropy reached PCK@0.1 .26 | 40 minutes on 2 CPU cores |
| `thesis-small-repaired-coco` | the same network, COCO subset, from runs/thesis-small-repaired | 10 minutes on 2 CPU cores |
| `thesis-small-no-skips` | `thesis-small-repaired` without skip connections | as that one |
| `thesis-small-skip0` .. `skip3` | with one skip connection alone (0 is the finest) | as that one |
| `thesis-small-analyse` | every study of runs/thesis-small-repaired (give it as workdir), 800 people; controls are runs/thesis-small-no-skips and -skip0 .. -skip3: train these first, or override analyse.controls | an hour on 2 CPU cores |

Every `thesis...` argument takes the ending `-visible`: occluded joints count as not labelled in
training and selection, as in C. M. B. Olsen's thesis. The squares stay those of all labels.
`thesis` and `thesis-small` supervise unlabelled joints with empty maps, so there an occluded
joint becomes an empty target.

Data are found through POSE_JAX_DATA, a folder with one sub-folder per data set.
"""  # noqa: E501

from functools import partial
from typing import Any

from pose_jax.config import default, source
from pose_jax.models import NEWELL, THESIS

_LSPET: dict[str, Any] = dict(name="coco", images="lspet/images")
_COCO17: dict[str, Any] = dict(name="coco", images="coco17/images")
SMALL: dict[str, Any] = dict(stacks=1, depth=3, features=96, stem=(16, 32, 64))
SMALL_THESIS: dict[str, Any] = dict(features=64, stem=(64, 64, 64))


def get_config(arg="lspet"):
    name = arg.removesuffix("-visible")
    if name not in VARIANTS or (name != arg and not name.startswith("thesis")):
        raise ValueError(
            f"configs/hourglass.py has no argument {arg!r}; use {', '.join(VARIANTS)}; "
            "thesis... also with the ending -visible"
        )
    c = VARIANTS[name](default())
    return _visible(c) if name != arg else c


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
        steps=10_000, batch=16, ema=0.999, log_every=100, save_every=1250,
        eval_every=1250,
    )  # fmt: skip
    c.evaluate.update(
        name="lspet-val", metrics=("pck", "pck_torso"), batch=64, overlays=24
    )
    return c


def _coco(c):
    _fast(c)
    c.skeleton = "coco"
    c.init_from.path = "runs/lspet"
    train = dict(_COCO17, path="coco17/person_keypoints_train.json", holdout=0.1)
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
    train: Any = dict(name="mpii", path="mpii/train.h5", images="mpii/images")
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


def _mpii_stacks(c, *, stacks: int):
    c = _mpii(c)
    c.model.stacks = stacks
    return c


def _bearpaw(c, *, stacks: int):
    """bearpaw/pytorch-pose: the mean of MPII's pixels is subtracted, RMSprop 2.5e-4, divided by
    ten at epochs 60 and 90 of 100 (22,246 people, batch 6)."""
    c = _mpii(c)
    c.model = dict(name="hourglass", stacks=stacks, features=256, stem=(64, 128, 256))
    c.input.mean = (0.4404, 0.4440, 0.4327)
    c.optimiser.update(
        name="rmsprop", learning_rate=2.5e-4, schedule="milestones",
        milestones=(0.6, 0.9), factor=0.1,
    )  # fmt: skip
    c.train.update(steps=100 * 22_246 // 6, batch=6)
    return c


def _thesis(c):
    """Following the thesis: its crops, no augmentation, unit-mass targets, squared error over
    all maps, PyTorch's Glorot normal, RMSprop, x0.2 on a plateau of validation PCK, 47 epochs
    of 7,753 steps; the checkpoint of best validation PCK is judged. The test people are
    people of train2017 with other people of their photos in training. Their share, 5,064 of
    129,104, is drawn by a hash before crops are rejected: about 5,000, not exactly 5,064."""
    c.skeleton = "coco"
    c.input.update(
        size=(256, 256), mean=(0.41025, 0.37406, 0.35355), std=(1.0, 1.0, 1.0),
        padding=1.0,
    )  # fmt: skip
    c.codec.update(encode="thesis", decode="argmax", sigma_px=1.0, flip="none")
    c.model = dict(name="hourglass", features=256, **THESIS)
    _coco2017(c, "person")
    c.data.train.augment.update({name: 0.0 for name in c.data.train.augment})
    _thesis_recipe(c)
    c.train.update(steps=47 * 7753, batch=16, save_every=2000, eval_every=7753)
    return c


def _thesis_repaired(c):
    """The same crops and metric, so that the two can be compared; what the thesis's
    defects and its hard targets cost is repaired."""
    c = _thesis(c)
    _coco2017(c, "image")
    c.codec.update(encode="unbiased", decode="quarter", sigma_px=2.0, flip="aligned")
    c.data.train.augment = default().data.train.augment
    c.objective.unlabelled_as_empty = False
    c.optimiser = default().optimiser
    c.optimiser.update(
        name="adam", learning_rate=5e-4, schedule="cosine", warmup_steps=1000
    )
    del c.model.init
    c.train.precision = "bfloat16"
    c.evaluate.update(name="thesis-repaired-test", flip_test=True)
    return c


def _leaky(c):
    c = _thesis_repaired(c)
    _coco2017(c, "person")
    c.evaluate.name = "thesis-repaired-leaky-test"
    return c


def _stacked_ae(c):
    c = _thesis_repaired(c)
    c.model.update(stacks=2, autoencoder="convolutional")
    return c


def _thesis_small(c):
    c = _thesis(c)
    c.input.size = (128, 128)
    c.model.update(SMALL_THESIS)
    train: dict[str, Any] = dict(
        _COCO17, path="coco17/person_keypoints_train.json", crop="thesis",
        holdout=0.1, holdout_unit="person",
    )  # fmt: skip
    c.data.train.source = source(**train, part="train")
    c.data.select = source(
        **_COCO17, path="coco17/person_keypoints_val.json", crop="thesis"
    )
    c.data.eval = source(**train, part="held_out")
    c.train.update(steps=2500, save_every=500, eval_every=500)
    c.evaluate.name = "thesis-small-test"
    return c


def _small_repaired(c):
    return _small_network(_lspet(c), steps=4000, every=1000)


def _small_repaired_coco(c):
    c = _small_network(_coco(c), steps=1000, every=500)
    c.init_from.path = "runs/thesis-small-repaired"
    c.optimiser.update(learning_rate=1e-3, warmup_steps=100)
    return c


def _small_network(c, *, steps: int, every: int):
    c.input.update(
        size=(128, 128), padding=1.1, mean=(0.41025, 0.37406, 0.35355),
        std=(1.0, 1.0, 1.0),
    )  # fmt: skip
    c.codec.update(
        encode="unbiased", decode="quarter", sigma_px=1.0, activation="softmax"
    )
    c.model = dict(name="hourglass", **{**THESIS, **SMALL_THESIS})
    c.optimiser.update(
        name="adam", learning_rate=2e-3, weight_decay=0.0, schedule="cosine",
        warmup_steps=200, clip=5.0,
    )  # fmt: skip
    c.train.update(
        steps=steps, batch=16, log_every=100, save_every=every, eval_every=every,
        ema=0.998,
    )  # fmt: skip
    c.evaluate.metrics = (*c.evaluate.metrics, "heatmap_pck")
    return c


def _only_skips(c, *, levels: tuple[int, ...]):
    c = _small_repaired(c)
    c.model.skips = levels
    return c


def _small_analyse(c):
    c = _small_repaired(c)
    c.tasks = ("analyse", "report")
    c.analyse.count = 800
    c.analyse.studies = ("skips", "latent", "clusters", "redundancy", "weights")
    controls = {"no skips": "runs/thesis-small-no-skips"}
    controls |= {f"skip{n} alone": f"runs/thesis-small-skip{n}" for n in range(4)}
    c.analyse.controls.update(controls)
    return c


def _coco2017(c, holdout_unit: str):
    """Trained on train2017 less a carved test split, selected by val2017."""
    train: dict[str, Any] = dict(
        name="coco", images="coco/train2017", crop="thesis",
        path="coco/annotations/person_keypoints_train2017.json",
        holdout=5064 / 129_104, holdout_unit=holdout_unit,
    )  # fmt: skip
    c.data.train.source = source(**train, part="train")
    c.data.eval = source(**train, part="held_out")
    c.data.select = source(
        name="coco", images="coco/val2017", crop="thesis",
        path="coco/annotations/person_keypoints_val2017.json",
    )  # fmt: skip


def _visible(c):
    c.data.train.source.labels = "visible"
    c.data.select.labels = "visible"
    return c


def _thesis_recipe(c):
    c.model.init = "pytorch"
    c.objective.unlabelled_as_empty = True
    c.optimiser.update(
        name="rmsprop", learning_rate=2.5e-4, schedule="plateau", factor=0.2,
        patience=5, floor=5e-5,
    )  # fmt: skip
    c.train.select = "heatmap_pck"
    c.analyse.checkpoint = "best"
    c.evaluate.update(
        name="thesis-test", checkpoint="best", metrics=("heatmap_pck", "pck"),
        flip_test=False, pck_thresholds=(0.05, 0.1, 0.2),
    )  # fmt: skip


VARIANTS = {
    "lspet": _lspet,
    "coco": _coco,
    "mpii": _mpii,
    **{f"mpii-{n}": partial(_mpii_stacks, stacks=n) for n in (1, 8)},
    **{f"bearpaw-{n}": partial(_bearpaw, stacks=n) for n in (1, 2, 8)},
    "thesis": _thesis,
    "thesis-repaired": _thesis_repaired,
    "thesis-repaired-leaky": _leaky,
    "thesis-stacked-ae": _stacked_ae,
    "thesis-small": _thesis_small,
    "thesis-small-repaired": _small_repaired,
    "thesis-small-repaired-coco": _small_repaired_coco,
    "thesis-small-no-skips": partial(_only_skips, levels=()),
    "thesis-small-analyse": _small_analyse,
    **{f"thesis-small-skip{n}": partial(_only_skips, levels=(n,)) for n in range(4)},
}
