# Sourced by the launch scripts: finds or makes the Python environment.

# The extra for the hardware found (overridden by POSE_JAX_EXTRA).
hardware_extra() {
  if [ -n "${POSE_JAX_EXTRA:-}" ]; then echo "$POSE_JAX_EXTRA"
  elif command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1; then echo cuda12
  elif ls /dev 2>/dev/null | grep -q '^accel' \
    || { ls /dev/vfio 2>/dev/null | grep -q '^[0-9]' && [ -n "${TPU_NAME:-}${TPU_WORKER_ID:-}" ]; }; then echo tpu
  else echo cpu; fi
}

# How memory is kept on a CPU. XLA:CPU takes one large arena per step and gives it back, and glibc
# returns it to the system: every step pays for fresh pages (a third of a training step and more).
# Huge pages make them cheap; one arena that is neither mapped per block nor trimmed keeps them.
# A process therefore holds the most memory it ever used, decoding workers too. Set GLIBC_TUNABLES to
# choose otherwise. Sourced by hand, use a subshell: ( source launch/environment.sh; python ... )
if [ "$(hardware_extra)" = cpu ]; then
  export GLIBC_TUNABLES="${GLIBC_TUNABLES-glibc.malloc.hugetlb=1:glibc.malloc.arena_max=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=68719476736}"
fi

# A python3 of at least 3.11.
find_python() {
  local name
  for name in python3 python3.13 python3.12 python3.11; do
    if command -v "$name" >/dev/null 2>&1 && "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
      command -v "$name"; return
    fi
  done
  echo "pose_jax needs Python 3.11 or newer; install python3.11 and try again" >&2
  return 1
}

# prepare_environment HARDWARE [EXTRA]: sets POSE_JAX_PYTHON to an interpreter with everything installed.
prepare_environment() {
  local hardware="$1" extras="${2:-}" target stamp
  [ "$hardware" = cpu ] || extras="${extras:+$extras,}$hardware"
  if [ -n "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ]; then
    POSE_JAX_PYTHON="$(command -v python)"
    stamp="$("$POSE_JAX_PYTHON" -c 'import sys; print(sys.prefix)')"
  else
    if [ ! -x .venv/bin/python ]; then
      local base; base="$(find_python)"
      echo "making .venv with $base"
      if command -v uv >/dev/null 2>&1; then uv venv --quiet --python "$base" .venv
      else "$base" -m venv .venv; fi
    fi
    POSE_JAX_PYTHON="$PWD/.venv/bin/python"
    stamp=".venv"
  fi
  # Installed once per set of extras and version of pyproject.toml.
  stamp="$stamp/.pose_jax-$(echo "$PWD $extras" | cat - pyproject.toml | cksum | cut -d' ' -f1)"
  if [ ! -e "$stamp" ]; then
    target=".${extras:+[$extras]}"
    echo "installing pose_jax$target"
    if command -v uv >/dev/null 2>&1; then uv pip install --quiet --python "$POSE_JAX_PYTHON" -e "$target"
    else "$POSE_JAX_PYTHON" -m pip install --quiet -e "$target"; fi
    touch "$stamp"
  fi
  export POSE_JAX_PYTHON
}
