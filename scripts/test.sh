#!/usr/bin/env bash
# The test suite. `source .venv/ros_env.sh` first; arguments go to pytest.
#   usage: scripts/test.sh [--fast] [pytest arguments]
# --fast leaves out what starts nodes, renders, compiles or takes long (marks of test/conftest.py).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# Two cores are the smallest machine we support. Tests wait for processes about a third of their
# time, so three workers, where there is memory for them (2 GB each, and the processes), and no
# pools of threads. The tests of a file run in one worker, so that fixtures of modules are made once.
free_mib=$(awk '/^MemAvailable/ {print int($2 / 1024)}' /proc/meminfo)
default_workers=$((free_mib >= 12000 ? 3 : 2))
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} MPLBACKEND=Agg
# Each of the many processes would compile what it imports again.
unset PYTHONDONTWRITEBYTECODE
workers=(--numprocesses "${TEST_WORKERS:-$default_workers}" --dist loadfile)
scripts/setup_export.sh dev  # files whose tests are left out are read all the same
if [ "${1:-}" = --fast ]; then
  shift
  exec python -m pytest "${workers[@]}" -m "not (ros or render or compile or gpu or slow)" "$@"
fi
status=0
python -m pytest --durations=10 "${workers[@]}" "$@" || status=$?
# Tests with real processes can fail for what else the machine does. After a whole run, up to three
# that failed run again, alone; the run passes only if they all pass then. It names them: they need
# mending.
failed=.pytest_cache/v/cache/lastfailed
if [ "$status" = 1 ] && [ $# = 0 ] && [ -s "$failed" ]; then
  names=$(python -c 'import json, sys; print("\n".join(json.load(open(sys.argv[1]))))' "$failed")
  if [ "$(wc -l <<<"$names")" -le 3 ]; then
    printf '[test] again, alone:\n%s\n' "$names"
    status=0
    python -m pytest --last-failed --last-failed-no-failures none -q || status=$?
    [ "$status" = 0 ] && printf '[test] failed beside other tests, passed alone:\n%s\n' "$names"
  fi
fi
exit "$status"
