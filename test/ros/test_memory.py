"""Large buffers go back to the system, also after some were freed; messages keep theirs."""

import os
import subprocess
import sys

PROGRAM = """
from pi05_ros.runtime.large_buffers import LargeBuffersInHeap, return_large_buffers

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

# A buffer that is freed and taken again inside stays where it is: no page is taken anew.
import resource
kept = bytearray(0)
pins = []
for number in range(12):
    with LargeBuffersInHeap():
        del kept
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        kept = bytearray(2_764_800)
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
    pins.append([bytearray(1000) for _ in range(100)])
    assert number < 3 or faults < 100, (number, faults)
before = resident()
other = bytearray(b"x") * 2_764_800
del other
assert resident() - before < 1_000_000  # outside nothing has changed
"""


def test_pictures_are_given_back_to_the_system():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=dict(os.environ), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
