#!/usr/bin/env bash
# Runs what scripts/pack_for_gpu.sh has packed, on a machine with CPython 3.12, numpy and torch.
#   bash run.sh check                     Python, torch, GPU, and messages through DDS
#   bash run.sh pi05 ...                  the pi05 command
#   bash run.sh policy_node|executor_node --ros-args ...
#   bash run.sh COMMAND ...               anything else, in the same environment
# PREFIX [$HOME/.cache/pi05_ros_packed] is where it is unpacked, PYTHON [python3] what runs it.
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
PREFIX=${PREFIX:-$HOME/.cache/pi05_ros_packed}
PYTHON=${PYTHON:-python3}
key=$(sha256sum <"$HERE/pi05_ros.tgz" | cut -c1-16)
if [ "$(cat "$PREFIX/key" 2>/dev/null)" != "$key" ]; then
  rm -rf "$PREFIX"
  mkdir -p "$PREFIX"
  tar xzf "$HERE/pi05_ros.tgz" -C "$PREFIX"
  echo "$key" >"$PREFIX/key"
fi
# The machine's own packages come after the packed ones, numpy and torch are only there.
export PYTHONPATH=$PREFIX/site${PYTHONPATH:+:$PYTHONPATH}
export LD_LIBRARY_PATH=$PREFIX/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
export AMENT_PREFIX_PATH=$PREFIX ROS_DISTRO=jazzy ROS_VERSION=2 ROS_PYTHON_VERSION=3
export RMW_IMPLEMENTATION=rmw_fastrtps_cpp _ROS_WHEELS_BOOTSTRAP_COMPLETE=1
export ROS_AUTOMATIC_DISCOVERY_RANGE=${ROS_AUTOMATIC_DISCOVERY_RANGE:-LOCALHOST}
export ROS_LOG_DIR=${ROS_LOG_DIR:-$PREFIX/log}
export FASTRTPS_DEFAULT_PROFILES_FILE=${FASTRTPS_DEFAULT_PROFILES_FILE:-$PREFIX/share/pi05_ros/config/fastdds_images.xml}
export FASTDDS_DEFAULT_PROFILES_FILE=${FASTDDS_DEFAULT_PROFILES_FILE:-$FASTRTPS_DEFAULT_PROFILES_FILE}
# Three processes with 16 MiB of images each; containers often have 64 MB.
shm_mb=$(df -m --output=size /dev/shm 2>/dev/null | tail -1 | tr -d ' ')
[ "${shm_mb:-0}" -ge 100 ] || echo "run.sh: /dev/shm has ${shm_mb:-no} MB; start the container with --shm-size=1g" >&2

case ${1:-check} in
  pi05) shift; exec "$PYTHON" -m pi05_ros.cli.main "$@" ;;
  policy_node | executor_node) module=pi05_ros.ros.$1; shift; exec "$PYTHON" -m "$module" "$@" ;;
  check) exec "$PYTHON" - <<'PY' ;;
import platform, sys, time
import numpy, torch
gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "no CUDA device"
print(f"Python {platform.python_version()}, numpy {numpy.__version__}, torch {torch.__version__}, {gpu}")
if sys.version_info[:2] != (3, 12):
    sys.exit("the packed messages are for CPython 3.12; name one with PYTHON=")
import rclpy
from pi05_ros.msg import ActionChunk
rclpy.init(args=[])
node, got = rclpy.create_node("check"), []
node.create_subscription(ActionChunk, "check", got.append, 1)
out = node.create_publisher(ActionChunk, "check", 1)
until = time.monotonic() + 20
while not got and time.monotonic() < until:
    out.publish(ActionChunk(chunk_id=7))
    rclpy.spin_once(node, timeout_sec=0.1)
node.destroy_node()
rclpy.shutdown()
sys.exit(None if got else "no message came back through DDS")
PY
  *) exec "$@" ;;
esac
