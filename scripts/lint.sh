#!/usr/bin/env bash
# Style and type checks. ruff stands for ament_flake8 and ament_pep257 and cmakelint for
# ament_lint_cmake; package.xml and the launch files are checked by test/packaging and test/launch.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
echo "[lint] ruff"
ruff check --quiet .
ruff format --check --quiet .
echo "[lint] mypy"
mypy --no-error-summary
echo "[lint] cmake"
cmakelint --quiet --filter=-linelength,-convention/filename CMakeLists.txt
