"""Arrays of a task on disk: whole or not there; and as JSON."""

from __future__ import annotations

import io
import zipfile
import zlib
from typing import Any

import numpy as np
from etils import epath

from pose_jax.config import UserError

_DAMAGED = (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error)


def save_arrays(path, arrays: dict[str, Any]) -> None:
    """An npz that is whole or not there."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.parent / (path.name + ".partial")
    partial.write_bytes(buffer.getvalue())
    partial.replace(path)


def load_arrays(path) -> dict[str, np.ndarray]:
    """Everything in an npz.

    Raises:
      UserError: the file is damaged.
    """
    try:
        with np.load(io.BytesIO(epath.Path(path).read_bytes())) as stored:
            return {name: stored[name] for name in stored.files}
    except _DAMAGED as error:
        raise UserError(
            f"{path} is damaged ({error}); delete it and run again"
        ) from None


def plain(values: np.ndarray) -> Any:
    """JSON has no NaN: None."""
    rounded = np.round(np.asarray(values, float), 6)
    return np.where(np.isnan(rounded), np.array(None), rounded.astype(object)).tolist()
