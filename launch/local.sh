#!/usr/bin/env bash
# Set up once, then run: ./launch/local.sh --config=configs/quickstart.py --workdir=runs/quickstart
# Uses the active environment, else makes .venv (with uv if present, else venv and pip) and installs
# pose_jax with the extra for the hardware found. POSE_JAX_EXTRA=cpu|cuda12|cuda13|tpu overrides.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh
prepare_environment "$(hardware_extra)"
exec "$POSE_JAX_PYTHON" -m pose_jax.main "$@"
