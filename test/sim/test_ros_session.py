"""The shipped policy does its tasks: in-process, and through driver, policy and executor nodes."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import threading

from PIL import Image

from pi05_ros.model import checkpoint_hash, load_checkpoint
from pi05_ros.policy import Policy
from pi05_ros.serving.server import ServerOptions
from pi05_ros.serving.service import policy_server
from pi05_ros.sim.evaluation.evaluate import evaluate, jobs
from pi05_ros.sim.evaluation.setting import Setting
from pi05_ros.sim.training.shipped import CHECKPOINT, CONFIG


def test_shipped_weights_are_small_and_in_the_stated_shape():
    assert (CHECKPOINT / "model.safetensors").stat().st_size < 12e6
    assert load_checkpoint(CHECKPOINT, device="meta").config == CONFIG


def test_shipped_policy_succeeds_and_obeys_the_prompt(tmp_path):
    tasks = ["pick_red", "pick_green", "push_blue"]
    rows = evaluate(jobs([Setting()], tasks, range(500, 502)), tmp_path, str(CHECKPOINT))
    assert sum(bool(row["success"]) for row in rows) >= 5
    wrong = Setting(max_steps=48)
    rows = evaluate(jobs([wrong], tasks, [500], True), tmp_path, str(CHECKPOINT))
    assert not any(row["success"] for row in rows if row["task"] != row["prompted"])


def test_rtc_makes_seams_smaller_at_a_long_delay_and_still_succeeds(tmp_path):
    kinds = {"naive": 1.0, "rtc-vjp": 0.9, "rtc-trained": 0.1}
    settings = [Setting(delay_ms=200, chunking=kind) for kind in kinds]
    rows = evaluate(jobs(settings, ["push_blue"], range(2)), tmp_path, str(CHECKPOINT))
    assert all(row["success"] for row in rows[2:])
    naive, *others = (sum(float(row["seam_mean"]) for row in rows[i : i + 2]) for i in (0, 2, 4))
    for kind, mean in zip(list(kinds)[1:], others, strict=True):
        assert mean < kinds[kind] * naive, kind


def test_an_episode_through_a_policy_server(tmp_path):
    """The shipped policy behind a websocket does the task through the nodes.

    The command runs in a process of its own, as people run it: it initializes rclpy for its own
    domain. Others of this file run the policy in the node.
    """
    policy = Policy.load(CHECKPOINT, robot="sim_arm", device="cpu", threads=1)
    server = policy_server(policy, ServerOptions(port=0))
    ready, loop, stop = threading.Event(), asyncio.new_event_loop(), asyncio.Event()
    run = server.run(stop, lambda port: ready.set())
    thread = threading.Thread(target=lambda: loop.run_until_complete(run))
    thread.start()
    try:
        assert ready.wait(120)
        address = f"ws://127.0.0.1:{server.port}"
        words = f"eval --ros --tasks push_blue --seeds 0:1 --checkpoint {address} --out {tmp_path}"
        done = subprocess.run(
            [sys.executable, "-m", "pi05_ros.cli.main", *words.split()],
            capture_output=True, text=True, timeout=480, check=False,
        )  # fmt: skip
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(60)
        policy.close()
    assert done.returncode == 0, done.stdout + done.stderr
    row = json.loads((tmp_path / "ros-push_blue.json").read_text())
    assert row["done"] == {"0": True}
    assert row["chunks"] > 1
    assert "(lock-step)" in done.stdout
    assert len(row["to_command_ms"]) > 1
    assert (tmp_path / "ros-push_blue.png").stat().st_size > 1000
    with Image.open(tmp_path / "ros-push_blue.gif") as gif:
        assert gif.n_frames > 10
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["weights"] == f"{checkpoint_hash(str(CHECKPOINT))} served by {address}"


def test_who_interrupts_it_gets_no_traceback(tmp_path):
    words = f"eval --ros --tasks push_blue --seeds 0:9 --out {tmp_path}"
    process = subprocess.Popen(
        [sys.executable, "-m", "pi05_ros.cli.main", *words.split()],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        # This process may have been started in the background, where SIGINT is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    try:
        said = next(line for line in process.stdout if line.startswith("seed 0"))
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=180)
        assert process.returncode == 130, said + rest
        assert "Traceback" not in rest
    finally:
        process.kill()
        process.wait()


def test_chunks_count_while_an_episode_is_watched():
    """Those that queue up while nodes start or scenes change made 4.6 chunks per second of 4."""
    import rclpy
    from pi05_ros.msg import ActionChunk
    from trajectory_msgs.msg import JointTrajectory

    from pi05_ros.ros.processes.domain import free_domain_id
    from pi05_ros.sim.evaluation.ros_session import SessionWatcher
    from pi05_ros.sim.evaluation.session_results import RosSession

    context = rclpy.Context()  # other tests of this process have the default one
    rclpy.init(context=context, domain_id=free_domain_id())
    session = RosSession()
    referee = SessionWatcher(session, context=context)
    try:
        referee._on_chunk(ActionChunk())
        referee._on_command(JointTrajectory())
        assert (session.chunks, session.to_command_ms) == (0, [])
        referee.watch(True)
        referee._on_chunk(ActionChunk())
        referee._on_command(JointTrajectory())
        assert (session.chunks, len(session.to_command_ms)) == (1, 1)
        referee._on_chunk(ActionChunk())
        referee.watch(False)
        referee.watch(True)
        referee._on_command(JointTrajectory())  # of the next episode
        assert (session.chunks, len(session.to_command_ms)) == (2, 1)
    finally:
        referee.destroy_node()
        rclpy.shutdown(context=context)


def test_the_referee_of_the_launch_file_reports_what_the_nodes_did(tmp_path):
    """The nodes run as sim_demo.launch.py starts them; the referee is all that is told apart."""
    script = f"""
import subprocess, sys, time
from pathlib import Path
import rclpy
from pi05_ros.ros.processes.children import ros_environment
from pi05_ros.ros.processes.children import Children
from pi05_ros.ros.processes.bring_up import bring_up
from pi05_ros.sim.evaluation.setting import Setting
from pi05_ros.sim.evaluation.ros_grid import RosJob
from pi05_ros.sim.evaluation.ros_session import start_nodes
from pi05_ros.sim.training.shipped import CHECKPOINT

environment, domain = ros_environment()
rclpy.init(args=[], domain_id=domain)
with Children(environment, Path({str(tmp_path)!r}) / "logs") as children:
    start_nodes(children, str(CHECKPOINT), RosJob(Setting(), 4.0, "push_blue", (600,)))
    values = ["use_sim_time:=true", "seed:=600", "episodes:=1", "out:={tmp_path}/out"]
    words = [word for value in values for word in ("-p", value)]
    referee = subprocess.Popen(
        [sys.executable, "-m", "pi05_ros.sim.evaluation.referee_node", "--ros-args", *words],
        env=environment,
    )
    starter, until = rclpy.create_node("starter"), time.monotonic() + 120.0
    while not starter.count_subscribers("/sim_arm/task_done") and time.monotonic() < until:
        time.sleep(0.1)
    bring_up(starter, "/pi05_policy", 120.0, lambda: None)
    code = referee.wait(timeout=300)
rclpy.shutdown()
sys.exit(code)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=480, check=False
    )
    said = done.stdout + done.stderr
    assert "seed 600: " in said, said
    assert done.returncode == 0, said
    for words in ("success 1 of 1", "chunks ", "newest sample -> command: p50 ", "wrote "):
        assert words in done.stdout
    out = tmp_path / "out"
    assert json.loads((out / "sim_demo.json").read_text())["done"].keys() == {"600"}
    assert (out / "sim_demo.png").stat().st_size > 1000
    with Image.open(out / "sim_demo.gif") as gif:
        assert gif.n_frames > 10
