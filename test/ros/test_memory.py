"""Large buffers go back to the system, also after some of them were freed."""

import os
import subprocess
import sys

PROGRAM = """
from pi05_ros.ros.process import return_large_buffers

def resident():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * 4096

assert return_large_buffers()
del_me = bytearray(30_000_000)  # would raise glibc's threshold to 30 MB
del del_me
before = resident()
images = [bytearray(b"x") * 921_600 for _ in range(20)]
pins = [bytearray(1000) for _ in range(1000)]
del images
assert resident() - before < 4_000_000, resident() - before
"""


def test_pictures_are_given_back_to_the_system():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=dict(os.environ), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
