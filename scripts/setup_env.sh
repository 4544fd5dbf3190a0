#!/usr/bin/env bash
# Makes .venv with ROS 2 Jazzy (PyPI wheels), torch and the build tools, then builds this
# package into build/colcon. Running it again does only what changed.
#   usage: scripts/setup_env.sh [run|dev]        (dev adds the test and lint tools)
# DISTRO=kilted makes .venv-kilted and build/colcon-kilted instead.
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
LEVEL=${1:-run}
DISTRO=${DISTRO:-jazzy}
SUFFIX=$([ "$DISTRO" = jazzy ] || printf -- '-%s' "$DISTRO")
VENV=$ROOT/.venv$SUFFIX
BUILD=$ROOT/build/colcon$SUFFIX
PYTHON=${PYTHON:-python3}
TORCH_VERSION=2.13.0

say() { printf '[setup] %s\n' "$*"; }

need() {  # need <what> <apt package> <test command...>
  local what=$1 package=$2
  shift 2
  if ! "$@" >/dev/null 2>&1; then
    missing+=("$what: sudo apt-get install -y $package")
  fi
}

check_machine() {
  missing=()
  need "Python 3.10 to 3.13" python3 "$PYTHON" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))'
  need "the Python venv module" python3-venv "$PYTHON" -c 'import venv, ensurepip'
  need "the Python headers" python3-dev "$PYTHON" -c '
import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))'
  need "cmake 3.19 or newer" cmake bash -c 'printf "3.19\n%s\n" "$(cmake --version | sed -n "1s/[^0-9]*//p")" | sort -CV'
  need "a C++ compiler" g++ bash -c 'command -v "${CXX:-c++}" || command -v g++'
  need "make" make command -v make
  need "git" git command -v git
  if ((${#missing[@]})); then
    printf '[setup] missing on this machine:\n' >&2
    printf '  %s\n' "${missing[@]}" >&2
    exit 1
  fi
  if [ "$(uname -m)" != x86_64 ]; then
    say "the ROS 2 wheels on PyPI are x86_64 only; on $(uname -m) install ROS 2 with apt and build this package with colcon (README, 'Install on ROS 2')" >&2
    exit 1
  fi
}

install_torch() {
  if "$VENV/bin/python" -c 'import torch' 2>/dev/null; then
    return  # whatever build is there (a CUDA one too) is kept
  fi
  say "installing torch $TORCH_VERSION (CPU build)"
  # A "+cpu" wheel from the configured indexes, else PyTorch's own CPU index; plain PyPI would
  # bring several GB of CUDA libraries.
  "$VENV/bin/pip" install --quiet "torch==$TORCH_VERSION+cpu" 2>/dev/null ||
    "$VENV/bin/pip" install --quiet "torch==$TORCH_VERSION+cpu" --extra-index-url https://download.pytorch.org/whl/cpu
}

fix_cmake_exports() {
  # The message wheels name the Python prefix of their build machine as an include directory.
  local tag inc site
  tag=$("$VENV/bin/python" -c 'import sys; t = "cp%d%d" % sys.version_info[:2]; print(f"/opt/python/{t}-{t}")')
  read -r inc site < <("$VENV/bin/python" -c 'import sysconfig as s; print(s.get_path("include"), s.get_path("purelib"))')
  { grep -rlI "$tag" "$VENV/share" --include='*.cmake' || true; } | xargs -r sed -i \
    -e "s#$tag/include/python[0-9.]*#$inc#g" -e "s#$tag/lib/python[0-9.]*/site-packages#$site#g"
}

write_env_file() {
  cat >"$VENV/ros_env.sh" <<EOS
# Environment of the development ROS 2 in .venv, with this package's build on top.
source "$VENV/bin/activate"
export ROS_AUTOMATIC_DISCOVERY_RANGE=LOCALHOST  # DDS stays on this machine
export ROS_DISTRO=$DISTRO ROS_VERSION=2 ROS_PYTHON_VERSION=3 RMW_IMPLEMENTATION=rmw_fastrtps_cpp
export AMENT_PREFIX_PATH="$VENV" CMAKE_PREFIX_PATH="$VENV"
if [ -f "$BUILD/install/local_setup.bash" ]; then
  source "$BUILD/install/local_setup.bash"
fi
EOS
}

make_venv() {
  local lists=("$ROOT/requirements/ros-$DISTRO.txt" "$ROOT/requirements/run.txt")
  [ "$LEVEL" = dev ] && lists+=("$ROOT/requirements/dev.txt")
  local key
  key=$(cat "${lists[@]}" "${BASH_SOURCE[0]}" | sha256sum | cut -d' ' -f1)
  if [ "$(cat "$VENV/setup-$LEVEL.key" 2>/dev/null)" = "$key" ]; then
    return
  fi
  local site=()
  if "$PYTHON" -c 'import sys, torch; sys.exit(not torch.version.cuda)' 2>/dev/null; then
    say "keeping the CUDA torch that $PYTHON has"
    site=(--system-site-packages)
  fi
  # pip comes last: without it an earlier run was cut off here.
  [ -x "$VENV/bin/pip" ] || "$PYTHON" -m venv "${site[@]}" "$VENV"
  install_torch
  say "installing ROS 2 $DISTRO and Python packages into ${VENV#"$ROOT"/}"
  local args=()
  for list in "${lists[@]}"; do args+=(-r "$list"); done
  local torch_pin
  torch_pin=$("$VENV/bin/pip" list --format=freeze 2>/dev/null | sed -n 's/^torch==//p')
  printf 'torch==%s\n' "$torch_pin" >"$VENV/constraints.txt"
  "$VENV/bin/pip" install --quiet "${args[@]}" -c "$VENV/constraints.txt"
  fix_cmake_exports
  write_env_file
  printf '%s\n' "$key" >"$VENV/setup-$LEVEL.key"
}

build_package() {
  set +u
  # shellcheck disable=SC1091
  source "$VENV/ros_env.sh"
  set -u
  mkdir -p "$BUILD"
  touch "$ROOT/build/COLCON_IGNORE"
  local log=$BUILD/build.log
  if ! (cd "$BUILD" && colcon --log-base log build --base-paths "$ROOT" --build-base build \
    --install-base install --cmake-args -DBUILD_TESTING=OFF) >"$log" 2>&1; then
    cat "$log" >&2
    say "the build failed; its output is above" >&2
    exit 1
  fi
}

check_machine
started=$SECONDS
make_venv
build_package
say "ready in $((SECONDS - started)) s; 'source ${VENV#"$ROOT"/}/ros_env.sh' for a shell"
