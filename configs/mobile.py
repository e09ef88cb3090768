"""Two small public pose networks (Apache-2.0, trained by their author on AI Challenger).

    python -m pose_jax.main --config=configs/mobile.py:hourglass --workdir=runs/mobile_hourglass
    python -m pose_jax.main --config=configs/mobile.py:pose_machine,coco --workdir=runs/mobile_cpm

First argument: `hourglass` (0.40 M weights) or `pose_machine` (0.56 M); second: what it is
evaluated on, `lspet` (default) or `coco`. Half a minute on 2 CPU cores. The weights are read
from POSE_JAX_DATA/pretrained, or from the author's file:
--config.convert.path=/path/to/model.tflite
"""

from pose_jax.config import default, source
from pose_jax.convert.mobile import model_section

WEIGHTS = {
    "hourglass": ("mobile_hourglass", "pretrained/hourglass_model_tensors.npz"),
    "pose_machine": ("mobile_pose_machine", "pretrained/cpm_model.tflite"),
}
DATA = {
    "lspet": dict(path="lspet/lspet_val.json", images="lspet/images"),
    # People with at least 8 labelled joints and a box at least 80 px high.
    "coco": dict(
        path="coco17/person_keypoints_val.json",
        images="coco17/images",
        min_keypoints=8,
        min_height_px=80.0,
    ),
}


def get_config(arg="hourglass,lspet"):
    name, _, data = arg.partition(",")
    data = data or "lspet"
    if name not in WEIGHTS or data not in DATA:
        raise ValueError(
            f"configs/mobile.py has no argument {arg!r}; use {' or '.join(WEIGHTS)}, then "
            f"a comma and {' or '.join(DATA)}"
        )
    c = default()
    family, path = WEIGHTS[name]
    sections = model_section(family)
    c.skeleton = sections["skeleton"]
    c.input.update(sections["input"])
    c.codec.update(sections["codec"])
    c.model = sections["model"]
    c.tasks = ("convert", "evaluate", "predict")
    c.convert.path = path
    c.data.eval = source("coco", **DATA[data])
    # The mean-pose baseline comes from the same labels: there is no training set here.
    c.data.train.source = c.data.eval.copy_and_resolve_references()
    c.evaluate.update(
        name=f"{data}-val", metrics=("pck", "pck_torso"), flip_test=False, batch=8,
        overlays=24,
    )  # fmt: skip
    c.analyse.splits = ("eval",)
    c.predict.update(flip_test=False, count=12)
    return c
