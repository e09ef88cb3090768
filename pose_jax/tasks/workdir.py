"""A workdir's identity: one run per folder, refused when the command asks for another."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from etils import epath

from pose_jax import checkpoint
from pose_jax import config as config_
from pose_jax.config import UserError
from pose_jax.writer import is_main_process, manifest, read_json, write_json


def data_root() -> Path | None:
    """The folder of data sets, from `POSE_JAX_DATA`."""
    value = os.environ.get("POSE_JAX_DATA")
    return Path(value) if value else None


def claim(config: Any, workdir: str) -> None:
    """Save the resolved config, or check that the folder holds the same run.

    Raises:
      UserError: the folder holds another config (every difference is listed).
    """
    path = epath.Path(workdir) / "config.json"
    stored = read_json(path)
    if stored is not None:
        lines = config_.differences(stored, config)
        # Before the first checkpoint there is nothing that another config could spoil.
        if lines and checkpoint.saved_steps(workdir):
            raise UserError(
                f"{workdir} holds another run:\n" + "\n".join(lines) + "\nuse another "
                "--workdir, or the same values to resume"
            )
    if is_main_process():
        record_section(config, workdir, stored)


def record_section(config: Any, workdir: str, stored: Mapping[str, Any] | None) -> None:
    """The identity stays as first written; the other sections are the latest ones."""
    plain = config_.to_plain(config)
    write_json(epath.Path(workdir) / "config.json", plain)
    if stored is None:
        write_json(
            epath.Path(workdir) / "manifest.json", {"runs": [manifest(sys.argv)]}
        )
    else:
        runs = read_json(epath.Path(workdir) / "manifest.json", {"runs": []})["runs"]
        write_json(
            epath.Path(workdir) / "manifest.json",
            {"runs": [*runs[-19:], manifest(sys.argv)]},
        )
