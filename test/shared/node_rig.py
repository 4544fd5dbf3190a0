"""A node under test and a client of it, in one process and a DDS domain of their own."""

from __future__ import annotations

import os

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter

from pi05_ros.ros.processes.domain import free_domain_id


class NodeRig:
    """Both nodes on one executor; ``make`` functions take the context as rclpy's Node does."""

    def __init__(self, make_node, make_client, parameters):
        os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
        self.context = rclpy.Context()
        rclpy.init(context=self.context, domain_id=free_domain_id())
        overrides = [Parameter(name, value=value) for name, value in parameters.items()]
        try:
            self.node = make_node(context=self.context, parameter_overrides=overrides)
        except BaseException:
            rclpy.shutdown(context=self.context)
            raise
        self.client = make_client(context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.executor.add_node(self.client)

    def close(self):
        self.executor.shutdown()
        self.client.destroy_node()
        self.node.destroy_node()
        rclpy.shutdown(context=self.context)


def build_and_close(kind):
    """Body of a fixture: a function that makes rigs, all of which are closed in the end."""
    made = []

    def build(**parameters):
        made.append(kind(**parameters))
        return made[-1]

    yield build
    for item in made:
        item.close()
