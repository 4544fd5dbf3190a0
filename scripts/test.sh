#!/usr/bin/env bash
# The whole test suite. `source .venv/ros_env.sh` first; arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
scripts/setup_export.sh dev
# Two cores are the smallest machine we support: a worker for each, and no pools of threads beside
# them. The tests of a file run in one worker, so that fixtures of modules are made once.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} MPLBACKEND=Agg
exec python -m pytest --durations=10 --numprocesses "${TEST_WORKERS:-2}" --dist loadfile "$@"
