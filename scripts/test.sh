#!/usr/bin/env bash
# The whole test suite. `source .venv/ros_env.sh` first; arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
scripts/setup_export.sh dev
# Two cores are the smallest machine we support: torch must not start a pool per test process.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-2} MPLBACKEND=Agg
exec python -m pytest --durations=10 "$@"
