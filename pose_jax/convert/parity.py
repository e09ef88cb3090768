"""A converted network beside its original: largest differences per tap on random input.

Compared where PyTorch and a public implementation are installed: transformers has ViTPose
(whole network) and ResNet (the trunk of SimpleBaseline). For other networks the report holds
hashes, which two conversions can be compared by.
"""

from __future__ import annotations

import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pose_jax.arrays import PyTree
from pose_jax.convert import layout, matching
from pose_jax.models.resnet import BLOCKS
from pose_jax.recipe import Recipe
from pose_jax.trees import flat_names


def report(described: Recipe, variables: PyTree, dialect: str) -> dict[str, Any]:
    """`{source, taps: {name: largest absolute difference}, largest_difference}` where the
    original can be run, else `{source: None, reason, hashes: {name: crc32}, outputs}`.

    Args:
      variables: as NumPy arrays.
    """
    images = _images(described)
    ours = jax.jit(described.module.apply)(variables, jnp.asarray(images))
    compare = ORIGINALS.get(described.model["name"])
    reason = "no public implementation can be installed"
    if compare is not None:
        try:
            source, theirs = compare(described, variables, images)
        except ImportError:
            reason = "PyTorch or transformers is not installed"
        except Exception as error:
            # Variants that the public implementation cannot build; the weights are fine.
            reason = f"the original cannot be run: {str(error).splitlines()[0]}"
        else:
            taps = {
                name: float(np.abs(np.asarray(ours.taps[name]) - array).max())
                for name, array in theirs.items()
            }
            return {
                "source": source,
                "taps": taps,
                "largest_difference": max(taps.values()),
                "largest_value": max(float(np.abs(a).max()) for a in theirs.values()),
            }
    hashes = {
        name: zlib.crc32(np.ascontiguousarray(leaf).tobytes())
        for name, leaf in flat_names(variables).items()
    }
    picked = np.asarray(ours.heatmaps).ravel()
    picked = picked[np.linspace(0, picked.size - 1, 32).astype(int)]
    return {
        "source": None,
        "reason": reason,
        "hashes": hashes,
        "outputs": picked.tolist(),
    }


def _images(described: Recipe) -> np.ndarray:
    """One normalised random picture, the same for everybody."""
    noise = np.random.default_rng(1).normal(size=(1, *described.spec.size, 3))
    return noise.astype(np.float32)


def _tensors(described: Recipe, variables: PyTree, dialect: str) -> dict[str, Any]:
    import torch  # pyright: ignore[reportMissingImports]

    tables = matching.dialects(described.model, described.skeleton.num_keypoints)
    arrays = layout.to_torch(tables[dialect], flat_names(variables))
    return {key: torch.from_numpy(np.array(array)) for key, array in arrays.items()}


def _load(model: Any, tensors: dict[str, Any]) -> None:
    """Every key but counters must be there."""
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    missing = [key for key in missing if not key.endswith("num_batches_tracked")]
    if missing or unexpected:
        raise ValueError(
            f"the original has other keys: missing {missing[:3]}, not used {unexpected[:3]}"
        )


def _vitpose(described: Recipe, variables: PyTree, images: np.ndarray):
    """transformers' ViTPose: tokens after every layer, normalised tokens, heatmaps."""
    import torch  # pyright: ignore[reportMissingImports]
    import transformers  # pyright: ignore[reportMissingImports]

    c = described.module.config
    if c.mlp % c.width:
        raise ValueError("transformers' ViTPose has whole ratios of MLP to width only")
    make: Any = transformers.VitPoseBackboneConfig
    backbone = make(
        image_size=list(c.input_size), patch_size=[c.patch, c.patch],
        hidden_size=c.width, num_hidden_layers=c.layers, num_attention_heads=c.heads,
        mlp_ratio=c.mlp // c.width, out_indices=[c.layers],
    )  # fmt: skip
    model: Any = transformers.VitPoseForPoseEstimation(
        transformers.VitPoseConfig(
            **dict[str, Any](
                backbone_config=backbone,
                num_labels=described.skeleton.num_keypoints,
                use_simple_decoder=c.head == "simple",
            )
        )
    ).eval()
    _load(model, _tensors(described, variables, "huggingface"))
    with torch.no_grad():
        out = model(
            torch.from_numpy(images).permute(0, 3, 1, 2), output_hidden_states=True
        )
    maps = out.heatmaps.permute(0, 2, 3, 1).numpy()
    found = {"stack0/heatmaps": maps}
    states = out.hidden_states or ()
    for i, state in enumerate(states[1 : c.layers + 1]):
        if tuple(state.shape[1:]) == (maps.shape[1] * maps.shape[2] // 16, c.width):
            found[f"layer{i}/tokens"] = state.numpy()
    return f"transformers {transformers.__version__} VitPoseForPoseEstimation", found


def _simple_baseline(described: Recipe, variables: PyTree, images: np.ndarray):
    """transformers' ResNet: the maps after every stage."""
    import torch  # pyright: ignore[reportMissingImports]
    import transformers  # pyright: ignore[reportMissingImports]

    c = described.module.config
    widths = [c.width * 2**i * (4 if c.depth >= 50 else 1) for i in range(4)]
    model: Any = transformers.ResNetModel(
        transformers.ResNetConfig(
            embedding_size=c.width, hidden_sizes=widths, depths=list(BLOCKS[c.depth]),
            layer_type="bottleneck" if c.depth >= 50 else "basic",
            downsample_in_first_stage=False, downsample_in_bottleneck=False,
        )
    ).eval()  # fmt: skip
    _load(model, _tensors(described, variables, "huggingface"))
    with torch.no_grad():
        out = model(
            torch.from_numpy(images).permute(0, 3, 1, 2), output_hidden_states=True
        )
    maps = [state.permute(0, 2, 3, 1).numpy() for state in out.hidden_states]
    found = {f"layer{i}": array for i, array in enumerate(maps[1:], 1)}
    return f"transformers {transformers.__version__} ResNetModel (the trunk)", found


ORIGINALS = {"vitpose": _vitpose, "simple_baseline": _simple_baseline}
"""model.name -> what runs the original: (name of the source, {tap: array})."""
