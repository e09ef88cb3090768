"""Verbs with effects: config + workdir -> files. One file each, imported when asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def _prepare(config: Any, workdir: str) -> None:
    from pose_jax.tasks import prepare

    prepare.run(config, workdir)


def _train(config: Any, workdir: str) -> None:
    from pose_jax.tasks import train

    train.run(config, workdir)


def _pretrain(config: Any, workdir: str) -> None:
    from pose_jax.tasks import pretrain

    pretrain.run(config, workdir)


def _analyse(config: Any, workdir: str) -> None:
    from pose_jax.tasks import analyse

    analyse.run(config, workdir)


def _evaluate(config: Any, workdir: str) -> None:
    from pose_jax.tasks import evaluate

    evaluate.run(config, workdir)


def _predict(config: Any, workdir: str) -> None:
    from pose_jax.tasks import predict

    predict.run(config, workdir)


def _convert(config: Any, workdir: str) -> None:
    from pose_jax.tasks import convert

    convert.run(config, workdir)


def _sweep(config: Any, workdir: str) -> None:
    from pose_jax.tasks import sweep

    sweep.run(config, workdir)


def _explain(config: Any, workdir: str) -> None:
    from pose_jax.tasks import explain

    explain.run(config, workdir)


def _planted(config: Any, workdir: str) -> None:
    from pose_jax.tasks import planted

    planted.run(config, workdir)


def _compare(config: Any, workdir: str) -> None:
    from pose_jax.tasks import compare

    compare.run(config, workdir)


def _report(config: Any, workdir: str) -> None:
    from pose_jax.tasks import report

    report.run(config, workdir)


TASKS: dict[str, Callable[[Any, str], None]] = {
    "convert": _convert,
    "prepare": _prepare,
    "pretrain": _pretrain,
    "train": _train,
    "evaluate": _evaluate,
    "predict": _predict,
    "explain": _explain,
    "analyse": _analyse,
    "planted": _planted,
    "sweep": _sweep,
    "compare": _compare,
    "report": _report,
}
"""Name in `config.tasks` -> what it does."""
