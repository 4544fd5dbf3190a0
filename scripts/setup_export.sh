#!/usr/bin/env bash
# Adds to .venv what exporting and quantizing need, and to .cache what their tests compare with:
# the oldest supported ModelOpt and the published TensorRT Python bindings of two majors (1 MB
# wheels; without NVIDIA's libraries they only serve to look at names and signatures).
#   usage: scripts/setup_export.sh [run|dev]        (run: no second ModelOpt, no bindings)
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
LEVEL=${1:-dev}
VENV=$ROOT/.venv
CACHE=$ROOT/.cache
MODELOPT_NEWEST=0.47.0
MODELOPT_OLDEST=0.43.0
TENSORRT_BINDINGS="10.13.3.9 11.4.0.106"
OPENPI_CLIENT=0.1.2
OPENPI_SERVER=0.1.0

say() { printf '[setup] %s\n' "$*"; }

key=$(cat "$ROOT/requirements/tensorrt.txt" "${BASH_SOURCE[0]}" | sha256sum | cut -d' ' -f1)
if [ "$(cat "$VENV/setup-export-$LEVEL.key" 2>/dev/null)" = "$key" ]; then
  exit 0
fi
started=$SECONDS
say "installing ONNX packages and ModelOpt $MODELOPT_NEWEST into .venv"
"$VENV/bin/pip" install --quiet -r "$ROOT/requirements/tensorrt.txt" -c "$VENV/constraints.txt"
"$VENV/bin/pip" install --quiet --no-deps "nvidia-modelopt==$MODELOPT_NEWEST"

if [ "$LEVEL" = dev ]; then
  side=$CACHE/modelopt-$MODELOPT_OLDEST
  if [ ! -d "$side/modelopt" ]; then
    say "installing ModelOpt $MODELOPT_OLDEST into .cache"
    rm -rf "$side"
    "$VENV/bin/pip" install --quiet --no-deps --target "$side" "nvidia-modelopt==$MODELOPT_OLDEST"
  fi
  # Without their dependencies: they ask for numpy 1, which the tests of the protocol do not need.
  if [ ! -d "$CACHE/openpi/openpi_client" ]; then
    say "installing openpi-client $OPENPI_CLIENT and openpi-server $OPENPI_SERVER into .cache"
    rm -rf "$CACHE/openpi"
    "$VENV/bin/pip" install --quiet --no-deps --target "$CACHE/openpi" \
      "openpi-client==$OPENPI_CLIENT" "openpi-server==$OPENPI_SERVER"
  fi
  for version in $TENSORRT_BINDINGS; do
    folder=$CACHE/tensorrt-bindings/$version
    if [ ! -d "$folder/tensorrt_bindings" ]; then
      say "fetching the TensorRT $version bindings into .cache"
      rm -rf "$folder"
      "$VENV/bin/pip" install --quiet --no-deps --target "$folder" "tensorrt-cu13-bindings==$version"
    fi
  done
fi
printf '%s\n' "$key" >"$VENV/setup-export-$LEVEL.key"
say "export tools ready in $((SECONDS - started)) s"
