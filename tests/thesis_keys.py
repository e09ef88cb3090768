"""The state-dict keys of the thesis's public PyTorch code, and weights made from their names.

No trained weights are published, so every tensor is drawn from a generator that is seeded
with its key: the same numbers in PyTorch and here.
"""

from __future__ import annotations

import re
import zlib

import numpy as np

RESIDUAL = {
    "input_bn": "norm1", "conv1": "conv1", "bn1": "norm2", "conv2": "conv2",
    "bn2": "norm3", "conv3": "conv3", "branch_cov": "shortcut",
}  # fmt: skip
LAYERS = {
    "pre_conv1": "stem_conv", "bn_pre": "stem_norm", "last_conv_1": "stack0_features",
    "bn_last": "stack0_norm", "last_conv_2": "stack0_heatmaps",
    "encoder.0": "encoder0", "encoder.2": "encoder1", "encoder.4": "encoder2",
    "encoder_linear.0": "code", "decoder_linear.0": "expand",
    "decoder.0": "decoder0", "decoder.2": "decoder1", "decoder.4": "decoder2",
}  # fmt: skip
FIELDS = {
    "weight": "kernel", "bias": "bias", "running_mean": "mean", "running_var": "var",
}  # fmt: skip


def make(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """The tensor of a key."""
    draw = np.random.default_rng(zlib.crc32(key.encode())).normal(size=shape)
    field = key.rpartition(".")[2]
    if len(shape) > 1:
        return (draw * np.sqrt(1.0 / np.prod(shape[1:]))).astype(np.float32)
    if field == "running_var":
        return (1 + 0.1 * np.abs(draw)).astype(np.float32)
    if field == "weight":  # Of a normalisation.
        return (1 + 0.1 * draw).astype(np.float32)
    return (0.1 * draw).astype(np.float32)


def image() -> np.ndarray:
    """A normalised input, [1, 256, 256, 3]."""
    return np.random.default_rng(1).normal(size=(1, 256, 256, 3)).astype(np.float32)


def module_name(key: str) -> str:
    """Key -> path of the module in `models.hourglass` (autoencoder keys: within it)."""
    layer = key.rpartition(".")[0]
    if layer in LAYERS:
        return LAYERS[layer]
    position, _, part = layer.rpartition(".")
    found = re.fullmatch(r"hourglasses\.0\.(\w+)\.(\d)", position)
    if found is None:
        number = re.fullmatch(r"pre_residual(\d)", position)
        place = f"stem{number[1]}" if number else "stack0_last"
    else:
        name, level = found[1], int(found[2])
        place = {
            "encoder_residuals": f"stack0_encoder{level}",
            "branch_cov": f"stack0_skip{level}",
            "bottlenecks": f"stack0_bottleneck_{level}",
            # The original counts from the deepest level.
            "decoder_residuals": f"stack0_decoder{3 - level}",
        }[name]
    return f"{place}/{RESIDUAL[part]}"


def to_flax(
    key: str, value: np.ndarray, leaves: dict[str, tuple]
) -> tuple[str, np.ndarray]:
    """(name of the leaf, array in its layout).

    Args:
      leaves: {name: shape} of the network.
    """
    module, field = module_name(key), key.rpartition(".")[2]
    inner = FIELDS[field]
    if "norm" in module and field == "weight":
        inner = "scale"
    (name,) = [n for n in leaves if f"/{n}".endswith(f"/{module}/{inner}")]
    return name, _layout(module, value, leaves[name])


def _layout(module: str, value: np.ndarray, shape: tuple) -> np.ndarray:
    if value.ndim == 4:
        if module.startswith("decoder"):  # Transposed: [in, out, y, x], turned kernels.
            value = value.transpose(2, 3, 0, 1)[::-1, ::-1]
        else:
            value = value.transpose(2, 3, 1, 0)
        return value.reshape(shape)
    if module == "code" and value.ndim == 2:  # PyTorch flattens channels first.
        return value.reshape(-1, 64, 4, 4).transpose(2, 3, 1, 0).reshape(shape)
    if module == "expand":
        if value.ndim == 1:
            return value.reshape(64, 4, 4).transpose(1, 2, 0).reshape(shape)
        return value.reshape(64, 4, 4, -1).transpose(3, 1, 2, 0).reshape(shape)
    return value.T.reshape(shape) if value.ndim == 2 else value.reshape(shape)
