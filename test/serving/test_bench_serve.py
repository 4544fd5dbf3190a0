"""`pi05 bench serve` counts what its robots were answered."""

import json

import pytest

from pi05_ros.cli.main import main


def test_two_robots_are_measured(tmp_path, capsys):
    out = tmp_path / "rows.json"
    words = ["--robots", "1,2", "--rate", "20", "--seconds", "0.5", "--image", "64x48"]
    assert main(["bench", "serve", *words, "--json", str(out)]) == 0
    one, two = json.loads(out.read_text())
    assert (one["robots"], two["robots"]) == (1, 2)
    assert one["errors"] == two["errors"] == 0
    assert one["requests"] > 0
    assert one["round_trip_ms"][0] >= one["added_ms"][0] > 0
    assert "robots" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["--image", "x"], ["--robots", "0"], ["--rate", "0"]])
def test_wrong_numbers_are_refused(words, capsys):
    try:
        code = main(["bench", "serve", *words])
    except SystemExit as ended:
        code = ended.code
    assert code == 2
    assert "accepted" in capsys.readouterr().err
