"""Public PyTorch weights -> a workdir that predicts, is explained and can be trained on.

    python -m pose_jax.main --config=configs/convert.py:vitpose-b --config.checkpoint=FILE.pth --workdir=runs/vitpose

The argument is a network of `pose_jax.list_models()` (or --config.model.name=? on the command
line). The file is a `.pth` (read without unpickling code; needs torch) or `.safetensors`; names
of the authors' code, mmpose 0.x and 1.x, Hugging Face, timm and torchvision are known, see
pose_jax/convert/names. Every key must be accounted for. More:

| flag | what it does |
|---|---|
| `--config.skeleton=mpii` | weights with other keypoints than the family's default |
| `--config.convert.backbone_only=True` | a trunk (ImageNet, MAE) to train from: give the workdir as init_from.path |
| `--config.convert.interpolate=True` | bring ViT's position table to another size: set --config.input.size and --config.model.input_size |
| `--config.convert.export=OUT.safetensors` | write the workdir's weights under PyTorch names (with convert.dialect) |
"""  # noqa: E501

from pathlib import Path

from pose_jax.config import load_config

MEMBERS = {
    "hourglass-1": "hourglass:mpii-1",
    "hourglass-2": "hourglass:mpii",
    "hourglass-8": "hourglass:mpii-8",
    "hourglass-1-bearpaw": "hourglass:bearpaw-1",
    "hourglass-2-bearpaw": "hourglass:bearpaw-2",
    "hourglass-8-bearpaw": "hourglass:bearpaw-8",
    "hourglass52": "hourglass52:256",
    "hrnet-w32": "hrnet:w32",
    "hrnet-w48": "hrnet:w48",
    **{f"simple-baseline-{n}": f"simple_baseline:{n}" for n in (18, 34, 50, 101, 152)},
    **{
        f"vitpose-{size}{head}": f"vitpose:{size}{head}"
        for size in "sblh"
        for head in ("", "-simple")
    },
    **{
        f"transpose-{v}": f"transpose:{v}"
        for v in ("r-a3", "r-a4", "h-s", "h-a4", "h-a6")
    },
    **{f"tokenpose-{v}": f"tokenpose:{v}" for v in ("t", "s-v1", "s-v2", "b", "l")},
}
"""Network -> the config that trains it, whose input, codec and skeleton its weights need."""


def get_config(arg=""):
    if arg not in MEMBERS:
        raise ValueError(
            f"configs/convert.py has no argument {arg!r}; use {', '.join(MEMBERS)}"
        )
    file, _, name = MEMBERS[arg].partition(":")
    c = load_config(Path(__file__).with_name(f"{file}.py"), name)
    c.tasks = ("convert",)
    c.checkpoint = ""
    c.convert.path = c.get_ref("checkpoint")
    c.evaluate.batch = 16
    return c
