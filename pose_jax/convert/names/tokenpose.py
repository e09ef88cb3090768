"""TokenPose: leeyegy/TokenPose. Its sine table is computed here."""

from __future__ import annotations

from pose_jax.convert.layout import Dialect, Names, Place
from pose_jax.convert.names import hrnet
from pose_jax.convert.names.vitpose import write_projections
from pose_jax.models.tokenpose import TokenPoseConfig
from pose_jax.models.transpose import sine_positions


def tokenpose(config: TokenPoseConfig, num_keypoints: int) -> dict[str, Dialect]:
    """`tokenpose`, and HRNet's classifier for its trunk (`imagenet`)."""
    names = Names()
    # The small networks hold everything in one module, the others have the trunk beside it.
    key = "features." if config.trunk == "stem" else "transformer."
    if config.trunk == "stem":
        hrnet.write_stem(names, key, "trunk")
    elif config.trunk == "hrnet":
        hrnet.write_trunk(names, "pre_feature.", "trunk", stages=3)
    names.put(f"{key}keypoint_token", Place("params/keypoints"))
    names.layer(f"{key}patch_to_embedding", "patches", "linear", bias=True)
    length = config.layers // config.groups
    for i in range(config.layers):
        group = f"transformer{i // length + 1}" if config.groups > 1 else "transformer"
        _write_layer(names, f"{key}{group}.layers.{i % length}.", f"layer{i}")
    parts = (
        ("norm", "hidden", "hidden_norm", "final") if config.head else ("norm", "final")
    )
    for i, part in enumerate(parts):
        if part.endswith("norm"):
            names.layer_norm(f"{key}mlp_head.{i}", f"head/{part}")
        else:
            names.layer(f"{key}mlp_head.{i}", f"head/{part}", "linear", bias=True)
    (height, width), (rows, columns) = config.input_size, config.token_size
    grid = height // rows, width // columns
    table = sine_positions(grid, config.width)[None]
    tables = {
        "tokenpose": Dialect(names.table, constants={f"{key}pos_embedding": table})
    }
    if config.trunk == "hrnet":
        tables["imagenet"] = hrnet.imagenet(stages=3)
    return tables


def _write_layer(names: Names, key: str, path: str) -> None:
    attention = f"{path}/attention"
    names.layer_norm(f"{key}0.fn.norm", f"{path}/attention_norm")
    write_projections(names, f"{key}0.fn.fn.", ("to_qkv",), attention, bias=False)
    names.layer(f"{key}0.fn.fn.to_out.0", f"{attention}/output", "linear", bias=True)
    names.layer_norm(f"{key}1.fn.norm", f"{path}/mlp_norm")
    for layer, name in (("net.0", "hidden"), ("net.3", "output")):
        names.layer(f"{key}1.fn.fn.{layer}", f"{path}/mlp/{name}", "linear", bias=True)
