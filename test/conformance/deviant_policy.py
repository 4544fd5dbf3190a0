"""A policy node that breaks promises, for the conformance client to find.

Two chunks in a row have one number, `steps_past` is 0, and samples without a stamp are taken.
"""

from __future__ import annotations

import sys

from pi05_ros.ros import policy_node
from pi05_ros.ros.policy_parts import inference_loop

honest = inference_loop.chunk_message


def same_number(*args, **values):
    values["chunk_id"] //= 2
    message = honest(*args, **values)
    message.steps_past = 0
    return message


if __name__ == "__main__":
    inference_loop.chunk_message = same_number
    sys.argv += ["-p", "zero_stamps:=receive_time"]
    sys.exit(policy_node.main())
