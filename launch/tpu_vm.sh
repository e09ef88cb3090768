#!/usr/bin/env bash
# Create a Cloud TPU VM (or slice), copy the tree and run the same command on every worker.
#   NAME=pose ZONE=us-west4-a TYPE=v5litepod-8 ./launch/tpu_vm.sh --config=configs/hourglass.py:mpii --workdir=gs://bucket/runs/mpii
# DRY_RUN=1 prints the commands. SPOT=1 asks for a preemptible VM and recreates it when it is taken;
# the run resumes by its workdir. gcloud's TPU commands serve v5e and v6e; newer chips use GKE (gke.yaml).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
: "${NAME:?set NAME to a name for the VM}" "${ZONE:?set ZONE, e.g. us-west4-a}"
TYPE="${TYPE:-v5litepod-8}"
case "$TYPE" in
  v6e*) image=v2-alpha-tpuv6e ;;
  v5p*) image=v2-alpha-tpuv5 ;;
  v5lite*) image=v2-alpha-tpuv5-lite ;;
  *) image=tpu-ubuntu2204-base ;;
esac
tpu="gcloud compute tpus tpu-vm"
do_() { echo "+ $*"; [ -n "${DRY_RUN:-}" ] || "$@"; }
exists() { [ -z "${DRY_RUN:-}" ] && $tpu describe "$NAME" --zone="$ZONE" --format='value(state)' 2>/dev/null; }

create() {
  do_ $tpu create "$NAME" --zone="$ZONE" --accelerator-type="$TYPE" --version="$image" ${SPOT:+--spot}
  archive="$(mktemp -u).tar.gz"
  do_ git archive --format=tar.gz -o "$archive" HEAD
  do_ $tpu scp "$archive" "$NAME:pose_jax.tar.gz" --zone="$ZONE" --worker=all
  # The VM's Ubuntu ships an older Python; uv brings one.
  do_ $tpu ssh "$NAME" --zone="$ZONE" --worker=all --command="mkdir -p pose_jax && tar xzf pose_jax.tar.gz -C pose_jax \
    && pip install --quiet --user uv && cd pose_jax && ~/.local/bin/uv venv --quiet --python 3.12 .venv \
    && ~/.local/bin/uv pip install --quiet --python .venv/bin/python -e '.[tpu,gcp]'"
}

[ -n "$(exists)" ] || create
run="cd pose_jax && POSE_JAX_DATA=\${POSE_JAX_DATA:-\$HOME/data} .venv/bin/python -m pose_jax.main --distributed $(printf '%q ' "$@")"
until do_ $tpu ssh "$NAME" --zone="$ZONE" --worker=all --command="$run"; do
  state="$(exists || true)"
  [ -n "${SPOT:-}" ] && [ "$state" != READY ] || exit 1
  echo "the VM is $state; making a new one"
  do_ $tpu delete "$NAME" --zone="$ZONE" --quiet || true
  create
done
