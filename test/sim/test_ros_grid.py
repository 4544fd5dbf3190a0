"""Grids of sessions through ROS: what is run, what is kept, what the table says."""

from __future__ import annotations

import pytest

from pi05_ros.cli.main import main
from pi05_ros.sim.evaluation.ros_grid import RESULTS, TABLE, ros_jobs, run_grid
from pi05_ros.sim.evaluation.setting import Setting

FAST = Setting(denoise_steps=3, chunking="rtc-trained")


def session(job):
    return {
        "done": {seed: seed != 1 for seed in job.seeds},
        "to_command_ms": [80.0, 100.0, 120.0],
        "split_ms": {"input": [10.0, 20.0, 30.0], "denoise": [float("nan")] * 3},
        "chunks": 40,
        "watched_s": 10.0,
        "wall_s": 20.0,
    }


def test_sessions_are_run_once_and_tabulated(tmp_path):
    todo = ros_jobs([Setting(), FAST], [4.0, 10.0], ["pick_red", "push_blue"], [0, 1])
    asked, said = [], []

    def run(job):
        if len(asked) == 5:
            raise KeyboardInterrupt
        asked.append(job)
        return session(job)

    with pytest.raises(KeyboardInterrupt):
        run_grid(todo, tmp_path, run)
    with (tmp_path / RESULTS).open("a") as file:
        file.write('{"key": "cut o')
    asked.clear()
    rows = run_grid(todo, tmp_path, run, said.append)
    assert (len(rows), len(asked), len(said)) == (8, 3, 5)
    assert {job.task for job in asked} == {"pick_red", "push_blue"}
    run_grid(todo, tmp_path, lambda job: pytest.fail(f"{job.name} is there"))
    table = (tmp_path / TABLE).read_text()
    assert "| denoise_steps=3 chunking=rtc-trained | 10 | push_blue | 1 of 2 | 4.0 |" in table
    assert "| 100 / 120 | 0.50 | 20.0 | - |" in table
    assert len({job.name for job in todo}) == 8
    assert todo[0].name == "ros-pick_red"
    assert todo[-1].name == "ros-push_blue-denoise_steps-3-chunking-rtc-trained-10Hz"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--rate 0", "rate_hz is 0.0; accepted: 0.1 to 200"),
        ("--rate ,", "--rate ','; accepted: numbers"),
        ("--precision fake-fp8", "precision.vision is 'fake-fp8'"),
        ("--seeds 3,5", "--seeds [3, 5]: with --ros they must be consecutive"),
        ("--real-time --nudge 1", "--nudge is not for --ros"),
        ("--workers 2", "--workers is not for --ros"),
        ("--wrong-prompts", "--wrong-prompts is not for --ros"),
        ("--gif 0", "--gif is not for --ros"),
        ("--latency", "--latency is not for --ros"),
    ],
)
def test_bad_options_are_named_before_nodes_start(words, said, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["eval", "--ros", "--out", str(out), *words.split()]) == 2
    assert said in capsys.readouterr().err
    assert not out.exists()


def test_sessions_of_another_checkpoint_are_not_taken(tmp_path, capsys, monkeypatch):
    from pi05_ros.cli import eval as command

    monkeypatch.setattr(command, "_session", lambda job, **_: session(job))
    words = f"eval --ros --tasks pick_red --seeds 0:2 --renderer ray --out {tmp_path}".split()
    assert main(words) == 0
    assert main([*words, "--checkpoint", "random:tiny"]) == 2
    assert "holds results of weights sha256" in capsys.readouterr().err
    assert main([*words, "--checkpoint", "random:tiny", "--no-resume"]) == 0
    assert (tmp_path / f"{RESULTS}.old").is_file()


def test_real_time_and_lock_step_are_kept_apart():
    (waiting,) = ros_jobs([Setting()], [4.0], ["pick_red"], [0])
    (real,) = ros_jobs([Setting()], [4.0], ["pick_red"], [0], real_time=True)
    assert waiting.key != real.key
    assert (waiting.name, real.name) == ("ros-pick_red", "ros-pick_red-real-time")


def test_a_setting_becomes_parameters_of_the_nodes():
    (job,) = ros_jobs([FAST], [10], ["pick_red"], [4, 5])
    values = job.policy_parameters("weights")
    assert (values["chunk_mode"], values["denoise_steps"], values["rate_hz"]) == ("trained", 3, 10)
    assert job.strategy == "rtc"
    (job,) = ros_jobs([Setting(chunking="ensemble")], [4.0], ["pick_red"], [0])
    assert (job.policy_parameters("x")["chunk_mode"], job.strategy) == ("plain", "ensemble")


def test_a_policy_server_keeps_its_own_engine():
    address = "ws://127.0.0.1:8000"
    (job,) = ros_jobs([FAST], [10], ["pick_red"], [4], checkpoint=address)
    values = job.policy_parameters(address)
    assert (values["chunk_mode"], values["denoise_steps"]) == ("trained", 3)
    assert not {"device", "threads", "backend", "precision.vision"} & set(values)
    assert values["remote_deadline_s"] == 60.0  # simulated time waits, real time does not
    (job,) = ros_jobs([FAST], [10], ["pick_red"], [4], True, address)
    assert "remote_deadline_s" not in job.policy_parameters(address)
    with pytest.raises(ValueError, match="--backend, --precision and --engines are not for"):
        ros_jobs([Setting(precision="bf16")], [4.0], ["pick_red"], [0], checkpoint=address)


def test_a_policy_server_is_for_nodes_and_has_results_of_its_own(tmp_path, capsys):
    assert main(["eval", "--checkpoint", "ws://127.0.0.1:1", "--out", str(tmp_path)]) == 2
    assert "a policy server is for --ros" in capsys.readouterr().err
    assert main(["eval", "--ros", "--checkpoint", "ws://127.0.0.1:1", "--out", str(tmp_path)]) == 2
    assert "cannot use policy server ws://127.0.0.1:1" in capsys.readouterr().err


def test_what_nodes_do_not_have_is_refused(tmp_path, capsys):
    with pytest.raises(ValueError, match="--delay-ms is not for --ros"):
        ros_jobs([Setting(delay_ms=100)], [4.0], ["pick_red"], [0])
    words = ["eval", "--ros", "--nudge", "1", "--out", str(tmp_path)]
    assert main(words) == 2
    assert "--nudge is not for --ros" in capsys.readouterr().err
    assert main(["eval", "--ros", "--rate", "fast", "--out", str(tmp_path)]) == 2
    assert "'fast'" in capsys.readouterr().err


def test_the_split_adds_up_to_the_whole():
    from pi05_ros import msg
    from pi05_ros.sim.evaluation.session_results import PARTS, split

    chunk = msg.ActionChunk()
    times = {"queue": 5, "convert": 3, "preprocess": 2, "vision": 10, "prefill": 20}
    times |= {"denoise": 30, "model": 60, "total": 75}
    for name, value in times.items():
        setattr(chunk.timings, f"{name}_ms", float(value))
    parts = split(chunk, input_ms=925.0, output_ms=40.0)
    assert tuple(parts) == PARTS
    assert sum(parts.values()) == pytest.approx(1040.0)
    assert (parts["input"], parts["convert"], parts["node"], parts["output"]) == (925, 5, 5, 40)
