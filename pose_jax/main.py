"""Train, evaluate, predict: everything starts here.

    python -m pose_jax.main --config=configs/NAME.py[:arg] --workdir=DIR [--config.a.b=v]

Runs the tasks named in `config.tasks` in order; the same command again resumes. --config names a
config file, with an argument after a colon (configs/hourglass.py:lspet); any of its values is
overridden by its dotted name (--config.train.steps=500, --config.tasks="('evaluate',)"). Data
sets are found under the folder in POSE_JAX_DATA. POSE_JAX_DEBUG=1 shows full tracebacks.
--config.model.name=? lists the published networks: sizes, figures, taps.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from pose_jax.config import UserError

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "Config file, with an argument after a colon: configs/hourglass.py:lspet. Any value is "
    "overridden by its dotted name: --config.train.steps=500.",
    lock_config=True,
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder that holds everything of the run."
)
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed",
    False,
    "Join other processes (Cloud TPU, GKE, SLURM and Open MPI are detected; else set "
    "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID).",
)

USAGE = "python -m pose_jax.main --config=configs/NAME.py[:arg] --workdir=DIR"


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}; usage: {USAGE}")
    if _CONFIG.value is not None and _CONFIG.value.model.get("name") == "?":
        from pose_jax.models.zoo import describe

        print(describe())
        return
    if _CONFIG.value is None or not _WORKDIR.value:
        raise UserError(f"--config and --workdir are both needed; usage: {USAGE}")
    _start_devices()
    # Imported late: nothing may touch a device before the processes have met.
    from pose_jax.tasks import TASKS
    from pose_jax.tasks.workdir import claim

    config, workdir = _CONFIG.value, _WORKDIR.value
    unknown = [name for name in config.tasks if name not in TASKS]
    if unknown:
        raise UserError(
            f"unknown task {unknown[0]!r} in config.tasks; known: {', '.join(TASKS)}"
        )
    claim(config, workdir)
    for name in config.tasks:
        TASKS[name](config, workdir)


def _start_devices() -> None:
    if not os.environ.get("POSE_JAX_DEBUG"):
        logging.set_verbosity(logging.ERROR)  # Orbax reports every file otherwise.
    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if folder is None:
        folder = str(Path.home() / ".cache" / "pose_jax" / "compilation")
        jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    if _DISTRIBUTED.value or "SLURM_STEP_NODELIST" in os.environ:
        number, rank = (
            os.environ.get(f"JAX_{n}") for n in ("NUM_PROCESSES", "PROCESS_ID")
        )
        if number is None or rank is None:
            jax.distributed.initialize()
        else:
            jax.distributed.initialize(num_processes=int(number), process_id=int(rank))
    if jax.default_backend() == "cpu" and sys.platform == "linux":
        if "mmap_max" not in os.environ.get("GLIBC_TUNABLES", ""):
            print(
                "hint: CPU training is 1.1 to 1.7 times faster with the memory settings of "
                "launch/environment.sh (source it, or start through launch/local.sh)"
            )


def _expected_errors() -> tuple[type[BaseException], ...]:
    """Errors whose message is the whole story; anything else shows its traceback."""
    from pose_jax.checkpoint import CheckpointError
    from pose_jax.data.images import ImageError

    return (UserError, CheckpointError, ImageError, ValueError, KeyError, OSError)


def run() -> None:
    """Parse flags and run; mistakes of the caller end with one line and code 2."""
    try:
        app.run(_guarded, flags_parser=_parse)
    except KeyboardInterrupt:
        sys.exit(130)


def _guarded(argv: list[str]) -> None:
    debug = os.environ.get("POSE_JAX_DEBUG")
    try:
        main(argv)
    except _expected_errors() as error:
        if debug:
            raise
        _fail(error)


def _parse(argv: list[str]) -> list[str]:
    """absl's parser, with config errors (unknown key, wrong type, no file) as one line."""
    try:
        return flags.FLAGS(argv)
    except (
        flags.Error,
        AttributeError,
        KeyError,
        TypeError,
        ValueError,
        OSError,
    ) as error:
        _fail(error)
        raise


def _fail(error: BaseException) -> None:
    text = error.args[0] if error.args and isinstance(error, KeyError) else error
    lines = [line.strip() for line in str(text).splitlines() if line.strip()]
    if any(line.startswith("Traceback") for line in lines):
        lines = lines[-1:]  # A config file raised: its last line is the message.
    elif not isinstance(error, UserError):
        lines = [" ".join(lines)]
    print("error: " + "\n".join(lines), file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    run()
