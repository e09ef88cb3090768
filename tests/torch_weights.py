"""Weights made from the keys of public PyTorch code, and what that code computes with them.

`torch_reference.json` holds, per network, the keys and shapes of the original's state dict
(`"weight": "64 3 7 7"`; counters left out) and 32 numbers of the heatmaps that the original
computes for `image` with the tensors of `make`. No code and no trained weights of others.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np

REFERENCE: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parent / "torch_reference.json").read_text()
)


def make(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """The tensor of a key: drawn from a generator that is seeded with its name. Scales are
    halved so that sums of many branches and logits of attention stay moderate."""
    draw = np.random.default_rng(zlib.crc32(key.encode())).normal(size=shape)
    field = key.rpartition(".")[2]
    if len(shape) > 1:
        tensor = draw * np.sqrt(1.0 / np.prod(shape[1:]))
    elif field == "running_var":
        tensor = 1 + 0.1 * np.abs(draw)
    elif field == "weight":  # Of a normalisation.
        tensor = 0.5 * (1 + 0.1 * draw)
    else:
        tensor = 0.1 * draw
    return tensor.astype(np.float32)


def shapes(network: str) -> dict[str, tuple[int, ...]]:
    """Key -> shape of the original's state dict."""
    keys = REFERENCE[network]["keys"]
    return {key: tuple(map(int, shape.split())) for key, shape in keys.items()}


def state_dict(network: str, constants: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Tensors of all keys; those that the original computes are given."""
    return {
        key: constants[key] if key in constants else make(key, shape)
        for key, shape in shapes(network).items()
    }


def image(size: tuple[int, int]) -> np.ndarray:
    """A normalised input, [1, h, w, 3]."""
    return np.random.default_rng(1).normal(size=(1, *size, 3)).astype(np.float32)


def picked(heatmaps: np.ndarray) -> np.ndarray:
    """32 numbers of `[1, k, y, x]` maps of the last stage."""
    flat = np.asarray(heatmaps).ravel()
    return flat[np.linspace(0, flat.size - 1, 32).astype(int)]
