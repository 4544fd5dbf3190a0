#!/usr/bin/env bash
# Packs this checkout with ROS 2 Jazzy's runtime into one folder that runs where there is no ROS and
# no network: a container, a cluster node. Needed there: Linux x86_64, CPython 3.12, numpy, torch
# (and Triton for the cuda backend); here: Python 3.12, cmake, a C++ compiler, PyPI.
#   usage: scripts/pack_for_gpu.sh [FOLDER]        (default build/gpu_pack/out, about 30 MB)
# Then, on the other machine:
#   bash FOLDER/run.sh check
#   bash FOLDER/run.sh pi05 bench node --grid 640x480@30 --backend cuda --checkpoint random:pi05 ...
#   bash FOLDER/run.sh policy_node --ros-args -p checkpoint:=/path -p robot:=droid
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
WORK=$ROOT/build/gpu_pack
OUT=$(mkdir -p "${1:-$WORK/out}" && cd "${1:-$WORK/out}" && pwd)
say() { printf '[pack] %s\n' "$*"; }

PYTHON=${PYTHON:-python3.12}
if ! "$PYTHON" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))' 2>/dev/null; then
  PYTHON=$(find "$HOME"/.pyenv/versions/3.12*/bin/python -maxdepth 0 2>/dev/null | tail -1)
fi
[ -n "$PYTHON" ] || { say "no Python 3.12; name one with PYTHON=" >&2; exit 1; }

key=$(cat "$ROOT/requirements/ros-jazzy.txt" "$ROOT/requirements/run.txt" | sha256sum | cut -c1-16)
if [ "$(cat "$WORK/key" 2>/dev/null)" != "$key" ]; then
  say "installing ROS 2 Jazzy for $("$PYTHON" --version) into ${WORK#"$ROOT"/}/venv"
  rm -rf "$WORK/venv" "$WORK/site"
  "$PYTHON" -m venv "$WORK/venv"
  "$WORK/venv/bin/pip" install --quiet -r "$ROOT/requirements/ros-jazzy.txt" "numpy>=2,<3"
  say "fetching the Python packages that the node needs"
  # numpy and torch are the other machine's own; the simulated arm, plots and data sets stay here.
  grep -vE '^(#|numpy|mujoco|matplotlib|scipy|av|pyarrow)' "$ROOT/requirements/run.txt" >"$WORK/needed.txt"
  "$WORK/venv/bin/pip" install --quiet --target "$WORK/site" -r "$WORK/needed.txt"
  rm -rf "$WORK"/site/{numpy,numpy.libs,numpy-*,bin}
  "$WORK/venv/bin/python" "$ROOT/scripts/pack_tree.py" exports "$WORK/venv"
  echo "$key" >"$WORK/key"
fi

say "building the messages"
rm -rf "$WORK/source" "$WORK/cmake" "$WORK/install" && mkdir -p "$WORK/source"
git -C "$ROOT" ls-files -z --cached --others --exclude-standard -- pi05_ros msg action launch config package.xml CMakeLists.txt |
  (cd "$ROOT" && xargs -0 tar cf - --ignore-failed-read) | tar xf - -C "$WORK/source"
(
  set +u
  # shellcheck disable=SC1091
  source "$WORK/venv/bin/activate"
  export ROS_DISTRO=jazzy ROS_VERSION=2 ROS_PYTHON_VERSION=3 RMW_IMPLEMENTATION=rmw_fastrtps_cpp
  export AMENT_PREFIX_PATH=$WORK/venv CMAKE_PREFIX_PATH=$WORK/venv
  cmake -S "$WORK/source" -B "$WORK/cmake" -DBUILD_TESTING=OFF -DCMAKE_INSTALL_PREFIX="$WORK/install" \
    -DPython3_EXECUTABLE="$WORK/venv/bin/python" &&
    cmake --build "$WORK/cmake" --target install
) >"$WORK/build.log" 2>&1 || { tail -20 "$WORK/build.log" >&2; say "the build failed"; exit 1; }

say "packing"
"$WORK/venv/bin/python" "$ROOT/scripts/pack_tree.py" tree "$WORK"
tar cf - -C "$WORK/tree" . | gzip -6n >"$OUT/pi05_ros.tgz"
cp "$ROOT/scripts/run_packed.sh" "$OUT/run.sh"
say "$(du -m "$OUT/pi05_ros.tgz" | cut -f1) MB in $OUT; there: bash run.sh check"
