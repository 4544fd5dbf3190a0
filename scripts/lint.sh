#!/usr/bin/env bash
# Style, spelling and type checks. ruff stands for ament_flake8 and ament_pep257 and cmakelint for
# ament_lint_cmake; package.xml and the launch files are checked by test/packaging and test/launch.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
echo "[lint] ruff"
ruff check --quiet .
ruff format --check --quiet .
echo "[lint] mypy"
mypy --no-error-summary &
loose=$!
strict=0
mypy --no-error-summary --strict --cache-dir .mypy_cache/strict -p pi05_ros.model -p pi05_ros.policy \
  -p pi05_ros.execution -p pi05_ros.runtime || strict=$?
wait "$loose"
[ "$strict" = 0 ]
echo "[lint] spelling"
# American English; scripts/words.txt has the words that are right where they stand.
git ls-files -z -- '*.py' '*.md' '*.yaml' '*.msg' '*.cu' '*.cuh' '*.sh' '*.cfg' '*.toml' Makefile \
  | xargs -0 codespell --builtin clear,rare,en-GB_to_en-US --ignore-words scripts/words.txt
echo "[lint] cmake"
cmakelint --quiet --filter=-linelength,-convention/filename CMakeLists.txt
