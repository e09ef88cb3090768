"""How the published networks were trained and scored, as changes of a config.

The numbers are those of the authors' public configuration files; `configs/` names the paper
and what it published next to each.
"""

from __future__ import annotations

from typing import Any

from pose_jax.config import source

COCO_PEOPLE = 149_813
"""People with labelled keypoints in COCO train2017: one epoch."""


def coco(
    c: Any,
    *,
    size: tuple[int, int] = (256, 192),
    rotation_deg: float,
    scale: float,
    half_body: float = 0.0,
    batch: int,
    epochs: int,
) -> Any:
    """Top-down training on COCO train2017 as microsoft/human-pose-estimation.pytorch set it up.

    Person boxes padded by 1.25 in the network's aspect, ImageNet's mean and deviation,
    rotation for 60 % of the crops, mirroring for half of them. Scored on val2017 with its
    annotated boxes and flip test (published APs use detected boxes: set evaluate.boxes to
    the file of `COCO_val2017_detections_AP_H_56_person.json`). Two things differ: 1 % of the
    training pictures are held out to choose and to watch by (data.train.source.holdout), and
    the loss is a mean over labelled joints, where the authors divide by all joints with
    weight 0 for the unlabelled ones.

    Args:
      size: (height, width) of the crop.
      rotation_deg, scale, half_body: augmentation.
      batch: over all devices. epochs: of `COCO_PEOPLE`.
    """
    c.skeleton = "coco"
    c.input.update(size=size, padding=1.25)
    train = dict(
        name="coco", images="coco/train2017",
        path="coco/annotations/person_keypoints_train2017.json",
    )  # fmt: skip
    c.data.train.source = source(**train, part="train", holdout=0.01)
    c.data.select = source(**train, part="held_out", holdout=0.01)
    c.data.eval = source(
        name="coco", images="coco/val2017",
        path="coco/annotations/person_keypoints_val2017.json",
    )  # fmt: skip
    c.data.train.augment.update(
        flip=0.5, rotation_deg=rotation_deg, rotation_probability=0.6, scale=scale,
        half_body=half_body,
    )  # fmt: skip
    steps = epochs * COCO_PEOPLE // batch
    c.train.update(
        steps=steps, batch=batch, precision="bfloat16", save_every=5000,
        eval_every=10_000,
    )  # fmt: skip
    c.evaluate.update(name="coco-val2017", metrics=("ap", "pck"), flip_test=True)
    return c


def msra_heatmaps(c: Any, *, sigma_px: float = 2.0) -> Any:
    """Targets with rounded centres, a quarter of a pixel towards the larger neighbour, the
    mirrored map moved by one pixel: SimpleBaseline's and HRNet's."""
    c.codec.update(
        encode="msra", decode="msra", sigma_px=sigma_px, flip="shift",
        activation="none", blur_taps=0,
    )  # fmt: skip
    return c


def udp_heatmaps(c: Any, *, sigma_px: float = 2.0) -> Any:
    """Unbiased data processing (Huang et al., CVPR 2020), as ViTPose is trained."""
    c.codec.update(
        encode="udp", decode="post_dark_udp", sigma_px=sigma_px, flip="none",
        activation="none", blur_taps=11 if sigma_px <= 2 else 17,
    )  # fmt: skip
    return c


def dark_heatmaps(c: Any, *, sigma_px: float = 2.0, flip: str = "none") -> Any:
    """Sub-pixel targets and DARK's Newton step (Zhang et al., CVPR 2020), as TransPose and
    TokenPose are scored."""
    c.codec.update(
        encode="unbiased", decode="dark", sigma_px=sigma_px, flip=flip,
        activation="none", blur_taps=11 if sigma_px <= 2 else 17,
    )  # fmt: skip
    return c


def adam_steps(
    c: Any, *, learning_rate: float, epochs: int, at: tuple[int, ...]
) -> Any:
    """Adam, the rate divided by ten after the epochs of `at`."""
    c.optimiser.update(
        name="adam", learning_rate=learning_rate, schedule="milestones",
        milestones=tuple(n / epochs for n in at), factor=0.1,
    )  # fmt: skip
    return c


def lspet(c: Any, *, steps: int = 4000) -> Any:
    """The small real task of this project: LSPET people at 96 px, cross-entropy over
    positions, AdamW with a cosine, averaged weights; alike for every family."""
    c.skeleton = "lsp"
    c.input.update(size=(96, 96), padding=1.1)
    c.codec.update(sigma_px=1.0, activation="softmax")
    c.objective.loss = "cross_entropy"
    common: dict[str, Any] = dict(name="coco", images="lspet/images")
    train = dict(common, path="lspet/lspet_train.json", holdout=0.06)
    c.data.train.source = source(**train, part="train")
    c.data.train.augment.update(
        rotation_deg=30.0, rotation_probability=0.6, scale=0.25, shift=0.05, gain=0.2
    )
    c.data.select = source(**train, part="held_out")
    c.data.eval = source(**common, path="lspet/lspet_val.json")
    c.optimiser.update(
        name="adamw", learning_rate=2e-3, weight_decay=0.05, schedule="cosine",
        warmup_steps=300, clip=5.0,
    )  # fmt: skip
    c.train.update(
        steps=steps, batch=16, ema=0.999, log_every=100, save_every=1000,
        eval_every=1000,
    )  # fmt: skip
    c.evaluate.update(
        name="lspet-val", metrics=("pck", "pck_torso"), batch=64, overlays=24
    )
    return c
