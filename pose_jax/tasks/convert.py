"""`convert`: published weights -> a workdir that every other task can use."""

from __future__ import annotations

from typing import Any

from pose_jax import checkpoint
from pose_jax.config import UserError, to_plain
from pose_jax.convert import mobile
from pose_jax.data import under
from pose_jax.estimator import fit_variables
from pose_jax.recipe import recipe
from pose_jax.tasks.workdir import data_root
from pose_jax.writer import say


def run(config: Any, workdir: str) -> None:
    """Read `config.convert.path` and save it as step 0 of the workdir.

    Raises:
      UserError: no such file, or weights of another network than `config.model`.
    """
    name = config.convert.path
    path = under(data_root(), name)
    if not path.is_file():
        raise UserError(
            f"convert.path={name}: no such file; set POSE_JAX_DATA to the folder that "
            "holds it, or give an absolute path"
        )
    family, variables = mobile.load(path)
    if family != config.model.name:
        raise UserError(
            f"{path} holds a {family!r} but config.model.name is {config.model.name!r}"
        )
    checked = fit_variables(recipe(config), variables)
    if checkpoint.saved_steps(workdir):
        say(f"{workdir} already holds the converted weights; nothing to do")
        return
    checkpoint.save_variables(
        workdir, checked, info={"source": str(name), "config": to_plain(config)}
    )
    say(f"converted {path} into {workdir}")
