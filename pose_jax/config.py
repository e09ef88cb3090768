"""The configuration: default sections, typed records, identity of a run, override errors.

A config file calls `default()` and changes what it needs; a task reads its own section and the
shared ones. Inside the library only frozen records travel, so that a typo dies at construction.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict, config_dict

IDENTITY = (
    "seed", "skeleton", "input", "codec", "data.train", "model", "objective",
    "optimiser", "train",
)  # fmt: skip
"""Sections that make a run what it is; a workdir never mixes two of them."""

FREE = (
    "train.save_every", "train.eval_every", "train.log_every", "train.keep_last",
    "train.threads",
)  # fmt: skip
"""Fields of those sections that change neither weights nor order, so they may differ."""


def source(name: str = "figures", **fields: Any) -> Any:
    """A data source section. Paths are relative to `POSE_JAX_DATA` unless absolute.

    | `name` | `path` | `images` |
    |---|---|---|
    | `figures` | none (`count, size, seed` say what is drawn) | none |
    | `worlds` | none (also `world`, `world_test`, see `data.worlds`) | none |
    | `coco` | annotation file in COCO format, any skeleton | folder |
    | `mpii` | train.h5, valid.h5 or HRNet's JSON | folder |
    | `lsp` | joints.mat, or a range of it: joints.mat[:1000] | folder |
    | `crops`, `tfds` | what the task `prepare` wrote to `prepare.path` | none |

    Filters: `part` (`all`, or `train`/`held_out` of a carved split with the share `holdout`
    of its `holdout_unit`, `image` or `person`), `min_keypoints`, `min_side_px` (longer side
    of the box), `min_height_px`, `limit`; `labels` (`all`, or `visible`: occluded joints
    count as not labelled). `crop`: `""` = the box as it is, `thesis` = the thesis's square
    (see `data.thesis`; use `input.padding=1`). `weights`: .npz with `id` and `weight`, the
    factor of each person in the loss (1 for people who are not listed).
    """
    section = ConfigDict(
        dict(
            name=name,
            path="",
            images="",
            part="all",
            holdout=0.0,
            holdout_unit="image",
            labels="all",
            crop="",
            weights="",
            min_keypoints=1,
            min_side_px=0.0,
            min_height_px=0.0,
            limit=0,
            count=0,
            seed=0,
            size=(192, 160),
            world="composite",
            world_test=False,
        )
    )
    section.update(fields)
    return section


def default() -> Any:
    """A ConfigDict with every section and its defaults (typed loosely: sections are dicts)."""
    c = ConfigDict()
    c.tasks = ("train", "evaluate")
    c.seed = 0
    c.skeleton = "coco"
    c.input = ConfigDict(
        dict(
            size=(256, 256),
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
            channel_order="rgb",
            padding=1.25,
            area=False,
        )
    )
    c.codec = ConfigDict(
        dict(
            encode="udp",
            decode="udp",
            sigma_px=2.0,
            flip="aligned",
            activation="none",
            blur_taps=0,
        )
    )
    c.data = ConfigDict(
        dict(
            train=dict(
                source=source(),
                augment=dict(
                    flip=0.5,
                    rotation_deg=30.0,
                    rotation_probability=0.6,
                    scale=0.25,
                    shift=0.0,
                    half_body=0.0,
                    brightness=0.0,
                    contrast=0.0,
                    saturation=0.0,
                    gain=0.0,
                ),
                removal=dict(
                    kind="none",
                    probability=0.5,
                    area=(0.008, 0.03),
                    aspect=(0.5, 2.0),
                    jitter_px=3.0,
                    fill="mean",
                    clusters="limbs-v1",
                    influence="",
                ),
            ),
            select=source(count=0),
            eval=source(),
        )
    )
    c.model = ConfigDict(dict(name="hourglass"))
    c.objective = ConfigDict(
        dict(
            name="heatmap",
            loss="mse",
            joint_weights=(),
            unlabelled_as_empty=False,
            occluded_weight=1.0,
            noise=0.1,
            file_order=False,
        )
    )
    c.optimiser = ConfigDict(
        dict(
            name="adam",
            learning_rate=1e-3,
            schedule="constant",
            warmup_steps=0,
            milestones=(),
            factor=0.1,
            end_scale=0.0,
            patience=5,
            floor=0.0,
            weight_decay=0.0,
            clip=0.0,
            decay=0.99,
            momentum=0.0,
            layer_decay=0.0,
            freeze=(),
        )
    )
    c.train = ConfigDict(
        dict(
            steps=1000,
            batch=16,
            precision="float32",
            accumulation=1,
            ema=0.0,
            log_every=20,
            save_every=500,
            eval_every=500,
            keep_last=2,
            select="pck",
            workers=0,
            threads=4,
            max_bad_images=0.01,
        )
    )
    c.pretrain = ConfigDict(
        dict(
            steps=0,
            batch=16,
            labelled="all",
            holdout=0.05,
            noise=0.1,
            file_order=False,
            eval_every=500,
            optimiser=dict(
                name="sgd",
                learning_rate=5e-4,
                momentum=0.9,
                schedule="milestones",
                milestones=(0.25, 0.5, 0.75),
                factor=0.5,
                warmup_steps=0,
                weight_decay=0.0,
                clip=0.0,
            ),
        )
    )
    c.init_from = ConfigDict(dict(path="", checkpoint="best", backbone_only=False))
    c.evaluate = ConfigDict(
        dict(
            name="val",
            checkpoint="last",
            boxes="ground_truth",
            flip_test=True,
            batch=32,
            metrics=("pck",),
            pck_thresholds=(0.05, 0.1, 0.2),
            area_source="annotation",
            nms=0.9,
            score_threshold=0.2,
            overlays=0,
            bootstrap=1000,
            occlusion=(1, 2, 4, 6),
        )
    )
    c.predict = ConfigDict(
        dict(
            inputs=(), boxes="", checkpoint="last", flip_test=True, batch=32,
            threshold=0.0, name="predict", count=8,
        )
    )  # fmt: skip
    c.explain = ConfigDict(
        dict(
            split="val", method="group_shapley", kind="gsv", clusters="limbs-v1",
            players="disc", side=0.12, centres="auto", score="auto", reference="auto",
            removal="mean", inputs=(), boxes="", count=100, batch=16, chunk=0,
            checkpoint="last", figures=6, masks=8, exact_people=0,
            check_removals=("blur",), check_people=8, tap="", options=dict(),
        )
    )  # fmt: skip
    c.analyse = ConfigDict(
        dict(
            studies=("skips", "latent", "clusters"), name="", splits=("train", "eval"),
            count=0, checkpoint="last", batch=0, threshold=0.1,
            gates=(), styles=("zero", "mean", "other"), skeletons=20, controls=dict(),
            tap="auto", labelled="all", displaced=64,
            components=(1, 2, 3, 10, 30, 50, 100, -1),
            steps=(-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0),
            ranks=(0, 1, 2, 5, 10, 17, 20, 50, 100, 200, 500, 1000),
            clusters=(2, 3, 4, 5, 6, 7, 8, 9, 10), restarts=10, thumbnails=60, view="pca",
            attention=dict(
                people=32, score="matched_filter", clusters="limbs-v1", removal="mean",
                side=0.12, batch=4, chunk=0, joints_at_once=0, figures=4, show_above=0.0,
            ),
            resamples=1000, seed=0,
        )
    )  # fmt: skip
    c.planted = ConfigDict(
        dict(
            pictures=200, games=48, donors=8, seed=1_000_003, checkpoint="last",
            score="matched_filter", batch=8, chunk=0,
            methods=(
                "saliency", "gradient", "gradient_x_input", "smooth_grad",
                "integrated_gradients", "blur_integrated_gradients", "deconvnet",
                "guided_backprop", "grad_cam", "hires_cam",
                "grad_cam@stack0/encoder0", "hires_cam@stack0/encoder0", "occlusion",
                "rise",
            ),
            options=dict(),
            game_kinds=("mean", "drawn"),
            resamples=1000,
        )
    )  # fmt: skip
    c.prepare = ConfigDict(
        dict(
            source=source(),
            path="",
            format="crops",
            crop_side_px=300,
            margin=1.8,
            quality=90,
        )
    )
    c.convert = ConfigDict(
        dict(
            path="",
            dialect="auto",
            backbone_only=False,
            interpolate=False,
            parity=True,
            export="",
        )
    )
    c.sweep = ConfigDict(
        dict(
            arms=dict(),
            seeds=(0, 1, 2),
            tasks=("train", "evaluate"),
            background=False,
        )
    )
    c.compare = ConfigDict(
        dict(kind="accuracy", baseline="none", threshold=0.1, resamples=2000)
    )
    c.report = ConfigDict(dict(title="", beside=()))
    c.mesh = ConfigDict(dict(data=-1, model=1, fsdp=False))
    return c


def load_file(path: str | Path) -> ModuleType:
    """A config file as a module, for files that change what a neighbour describes."""
    path = Path(path)
    found = importlib.util.spec_from_file_location(f"{path.stem}_configs", path)
    assert found and found.loader
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def load_config(path: str | Path, arg: str = "") -> Any:
    """What `--config=path:arg` reads."""
    return load_file(path).get_config(*([arg] if arg else []))


def to_plain(value: Any) -> Any:
    """ConfigDict -> JSON-able dicts and lists (tuples become lists)."""
    if isinstance(value, config_dict.FieldReference):
        value = value.get()
    if isinstance(value, ConfigDict | Mapping):
        return {key: to_plain(value[key]) for key in value}
    if isinstance(value, tuple | list):
        return [to_plain(item) for item in value]
    return value


def to_tuples(value: Any) -> Any:
    """Lists -> tuples throughout, so that records are hashable."""
    if isinstance(value, Mapping):
        return {key: to_tuples(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return tuple(to_tuples(item) for item in value)
    return value


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dict -> {dotted key: leaf}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat.update(flatten(value, name + "."))
        else:
            flat[name] = value
    return flat


def identity(config: ConfigDict | Mapping[str, Any]) -> dict[str, Any]:
    """The leaves that make the run what it is, as {dotted key: JSON value}."""
    flat = flatten(to_plain(config))
    # Under a plateau schedule the readings of the selection split set the learning rate.
    plateau = flat.get("optimiser.schedule") == "plateau"
    free = set(FREE) - ({"train.eval_every"} if plateau else set())
    parts = IDENTITY + (("data.select",) if plateau else ())
    return {
        key: value
        for key, value in flat.items()
        if key not in free
        and any(key == part or key.startswith(part + ".") for part in parts)
    }


def differences(
    stored: Mapping[str, Any], asked: ConfigDict | Mapping[str, Any]
) -> list[str]:
    """Lines `key: stored ... asked ...` for every difference in identity."""
    new, defaults = identity(asked), identity(default())
    # A key that a later version added counts with its default.
    old = {key: defaults[key] for key in new if key in defaults} | identity(stored)
    lines = []
    for key in sorted(set(old) | set(new)):
        a, b = old.get(key, "(absent)"), new.get(key, "(absent)")
        if json.dumps(a, default=str) != json.dumps(b, default=str):
            lines.append(f"  {key}: the workdir has {a!r}, the command asks for {b!r}")
    return lines


class UserError(Exception):
    """A mistake of the caller that one line explains; ends the program with code 2."""


class Interrupted(UserError):
    """The program was asked to stop and saved what it had."""
