"""State dicts on disk: PyTorch's `.pth` (never unpickling code) and `.safetensors`."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

SUFFIXES = (".pth", ".pt", ".tar", ".bin", ".safetensors")
"""Of files that `read` takes (`.tar`: checkpoints called `....pth.tar`)."""

WRAPPERS = ("state_dict", "model", "module", "net")
"""Keys under which training code stores a state dict among other things."""


_SAFE_TORCH = (2, 6)
"""Before it, `weights_only` could be circumvented (CVE-2025-32434)."""


class FileError(ValueError):
    """A file that cannot be read, or not safely; the message says what to do."""


def read(path: str | Path) -> dict[str, np.ndarray]:
    """The state dict of a file: `{key: array}`, wrappers and prefixes of data parallelism
    removed. Floating point types stay (bfloat16 becomes float32, which holds it exactly).

    Raises:
      FileNotFoundError: no such file.
      FileError: another format, a damaged file, one that holds code, or no weights.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if path.suffix == ".safetensors":
        tensors = _read_safetensors(path)
    elif path.suffix in SUFFIXES:
        tensors = _read_torch(path)
    else:
        raise FileError(
            f"{path}: weights are read from {', '.join(SUFFIXES)}; rename the file if it is one"
        )
    return strip_prefixes(tensors)


def write(path: str | Path, tensors: Mapping[str, np.ndarray], **notes: str) -> None:
    """A `.safetensors` file of arrays, with notes in its header.

    Raises:
      FileError: another suffix, or safetensors is not installed.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise FileError(f"{path}: weights are written as .safetensors")
    _safetensors().save_file(dict(tensors), str(path), metadata=dict(notes))


def strip_prefixes(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Without the `module.` and `model.` that wrappers put before every key."""
    result = dict(tensors)
    changed = True
    while changed:
        changed = False
        for prefix in ("module.", "model."):
            if result and all(key.startswith(prefix) for key in result):
                result = {key.removeprefix(prefix): v for key, v in result.items()}
                changed = True
    return result


def _safetensors() -> Any:
    try:
        from safetensors import numpy as safetensors_numpy
    except ImportError:
        raise FileError(
            "reading and writing .safetensors needs the package: "
            "pip install 'pose_jax[convert]'"
        ) from None
    return safetensors_numpy


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    library = _safetensors()
    from safetensors import SafetensorError

    try:
        # ml_dtypes, which JAX brings, gives NumPy its bfloat16.
        return {k: _plain(v) for k, v in library.load_file(str(path)).items()}
    except (SafetensorError, ValueError, OSError) as error:
        raise FileError(
            f"{path} is no complete safetensors file ({error}); download it again"
        ) from None


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise FileError(
            f"reading {path.name} needs PyTorch (pip install torch, the CPU build is enough), or "
            "give the weights as .safetensors"
        ) from None
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if version < _SAFE_TORCH:
        raise FileError(
            f"PyTorch {torch.__version__} could be made to run code in a .pth file; install "
            "torch>=2.6, or give the weights as .safetensors"
        )
    try:
        # Numbers that training code notes beside the weights (best accuracy) are harmless.
        with torch.serialization.safe_globals(_numbers()):
            stored = torch.load(str(path), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's own message advises to switch the protection off; ours does not.
        what = _forbidden(str(error))
        if what:
            raise FileError(
                f"{path} holds pickled code ({what}), which is never run here; load it where you "
                "trust it and save its state_dict alone (torch.save or safetensors)"
            ) from None
        raise FileError(
            f"{path} is damaged or no PyTorch file; download it again"
        ) from None
    except Exception as error:  # A damaged file fails anywhere in torch's reader.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FileError(
            f"{path} is damaged or no PyTorch file ({reason}); download it again"
        ) from None
    return _tensors(stored, path)


def _numbers() -> list[Any]:
    """What a NumPy number or a plain array is made of."""
    from numpy._core import multiarray

    kinds = [type(np.dtype(code)) for code in "?bhilqBHILQefd"]
    rebuild = [multiarray.scalar, multiarray._reconstruct, np.ndarray, np.dtype]
    # NumPy 1 called the module by another name.
    older = [(multiarray.scalar, "numpy.core.multiarray.scalar")]
    return [*rebuild, *older, *dict.fromkeys(kinds)]


def _forbidden(message: str) -> str:
    """What a refused pickle wanted to call, from torch's message; empty for mere garbage."""
    for marker in ("Unsupported global: GLOBAL ", "GLOBAL ", "Unsupported class "):
        if marker in message:
            return message.split(marker, 1)[1].split()[0]
    return ""


def _tensors(stored: Any, path: Path) -> dict[str, np.ndarray]:
    """The state dict in what a file holds."""
    import torch  # pyright: ignore[reportMissingImports]

    depth = 0
    while isinstance(stored, Mapping) and depth < 3:
        inner = [stored[w] for w in WRAPPERS if isinstance(stored.get(w), Mapping)]
        if not inner:
            break
        stored, depth = inner[0], depth + 1
    if not isinstance(stored, Mapping):
        raise FileError(f"{path} holds a {type(stored).__name__}, no state dict")
    found = {str(k): v for k, v in stored.items() if isinstance(v, torch.Tensor)}
    if not found:
        raise FileError(f"{path} holds no tensors; its keys are {list(stored)[:5]}")
    wide = {torch.bfloat16: torch.float32}
    return {k: v.to(wide.get(v.dtype, v.dtype)).numpy() for k, v in found.items()}


def _plain(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array
