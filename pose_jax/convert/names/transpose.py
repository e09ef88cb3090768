"""TransPose: yangsenius/TransPose. The sine table, which the authors store, is computed here;
their HRNet goes on below stage 3 only in ImageNet files."""

from __future__ import annotations

from pose_jax.convert.layout import Dialect, Names
from pose_jax.convert.names import hrnet, resnet
from pose_jax.models.transpose import TransPoseConfig, sine_positions


def transpose(config: TransPoseConfig, num_keypoints: int) -> dict[str, Dialect]:
    """`transpose`, and the trunks' own dialects; none for our convolutional trunk."""
    if config.trunk == "conv":
        return {}
    names = Names()
    if config.trunk == "resnet":
        resnet.write_trunk(names, "", "trunk", config.depth, stages=2)
        others = resnet.trunks(config.depth, stages=2)
    else:
        hrnet.write_trunk(names, "", "trunk", stages=3)
        others = {"imagenet": hrnet.imagenet(stages=3)}
    names.layer("reduce", "reduce", "conv1x1")
    for i in range(config.layers):
        key, path = f"global_encoder.layers.{i}.", f"layer{i}"
        attention = f"{path}/attention"
        paths = [f"{attention}/{name}" for name in ("query", "key", "value")]
        names.split(f"{key}self_attn.in_proj_", paths, "linear")
        names.layer(
            f"{key}self_attn.out_proj", f"{attention}/output", "linear", bias=True
        )
        names.layer(f"{key}linear1", f"{path}/mlp/hidden", "linear", bias=True)
        names.layer(f"{key}linear2", f"{path}/mlp/output", "linear", bias=True)
        for n, part in enumerate(("attention", "mlp"), 1):
            names.layer_norm(f"{key}norm{n}", f"{path}/{part}_norm")
    resnet.write_deconv_head(names, "", "head", len(config.deconv))
    height, width = config.input_size
    grid = height // config.stride, width // config.stride
    table = sine_positions(grid, config.width)[:, None]
    whole = Dialect(names.table, constants={"pos_embedding": table})
    return {"transpose": whole, **others}
