"""What the tests of the active node ask of it and wait for."""

from rcl_interfaces.msg import Parameter as ParameterMsg
from rcl_interfaces.msg import ParameterType, ParameterValue
from rcl_interfaces.srv import SetParameters

DEACTIVATE, ACTIVATE = 4, 3
BASE, WRIST, JOINTS = "base_camera/image_raw", "wrist_camera/image_raw", "joint_states"


def ns(stamp):
    return stamp.sec * 10**9 + stamp.nanosec


def set_parameter(client, name, value):
    kinds = {
        int: ("PARAMETER_INTEGER", "integer_value"),
        float: ("PARAMETER_DOUBLE", "double_value"),
        str: ("PARAMETER_STRING", "string_value"),
    }
    kind, attribute = kinds[type(value)]
    message = ParameterValue(type=getattr(ParameterType, kind), **{attribute: value})
    request = SetParameters.Request(parameters=[ParameterMsg(name=name, value=message)])
    return client.call(SetParameters, "set_parameters", request).results[0]


def counted(b, entry, key, timeout_s=60.0, feed=None):
    """Wait until diagnostics show a count above 0."""
    return b.client.until(lambda: int(b.client.value(entry, key) or 0) > 0, timeout_s, feed)
