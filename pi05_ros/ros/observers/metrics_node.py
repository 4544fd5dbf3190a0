"""A node that gives /diagnostics of the policy and executor nodes to Prometheus over HTTP.

python -m pi05_ros.ros.observers.metrics_node --markdown     # the table of docs/watching.md
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass

from pi05_ros.runtime.parameter_specs import ParameterError, param, specs_of
from pi05_ros.runtime.parameter_specs import main as print_table


@dataclass(frozen=True)
class MetricsParameters:
    """Parameters of the metrics node, all read-only."""

    address: str = param("127.0.0.1", "Where it listens; there is no password.")
    port: int = param(9464, "Port of `/metrics`; 0 takes a free one.", within=(0, 65535))


SPECS = specs_of(MetricsParameters)


def main(args: list[str] | None = None) -> int:
    """Serve metrics until a signal comes; 1 if it cannot listen, 2 for wrong arguments."""
    import rclpy
    from diagnostic_msgs.msg import DiagnosticArray
    from rclpy.node import Node

    from pi05_ros.ros import process
    from pi05_ros.ros.parameter_server import declare
    from pi05_ros.ros.qos import DIAGNOSTICS, own
    from pi05_ros.ros.topic_fit import TopicFit

    stop = process.start(args)
    if stop is None:
        return 2
    node = Node("pi05_metrics")
    try:
        import prometheus_client

        from pi05_ros.ros.observers.diagnostics_metrics import DiagnosticsMetrics

        p = declare(node, MetricsParameters)
        metrics = DiagnosticsMetrics(time.monotonic)

        def take(message: DiagnosticArray) -> None:
            for status in message.status:
                values = {item.key: item.value for item in status.values}
                metrics.take(status.name, int.from_bytes(status.level, "little"), values)

        node.create_subscription(DiagnosticArray, "/diagnostics", take, own(DIAGNOSTICS))
        TopicFit(node).look_each_second()
        server, thread = prometheus_client.start_http_server(
            p.port, addr=p.address, registry=metrics.registry
        )
        address, port = server.server_address[:2]
        node.get_logger().info(f"metrics on http://{address!s}:{port}/metrics")
        while not stop.is_set():
            rclpy.spin_once(node, timeout_sec=0.2)
        server.shutdown()
        thread.join()
        return 0
    except ModuleNotFoundError as error:
        print(f"metrics_node needs {error.name}: pip install prometheus-client", file=sys.stderr)
        return 1
    except (ParameterError, OSError) as error:
        print(f"metrics_node: {error}", file=sys.stderr)
        return 1
    finally:
        node.destroy_node()
        rclpy.try_shutdown()


if __name__ == "__main__":
    sys.exit(print_table(SPECS, "metrics") if "--markdown" in sys.argv else main())
