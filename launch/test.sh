#!/usr/bin/env bash
# The test suite: ./launch/test.sh [--all] [pytest arguments]. Without POSE_JAX_DATA the tests that
# need real data are skipped with a reason.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh
prepare_environment "$(hardware_extra)" test
exec "$POSE_JAX_PYTHON" -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@"
