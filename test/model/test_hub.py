"""Hub ids against a local server, and copies of repositories that hold no real files."""

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from model_fixtures import WEIGHTS

from pi05_ros.model import CheckpointError, load_checkpoint
from pi05_ros.model.checkpoint.discovery import find_files
from pi05_ros.model.checkpoint.hub import HubId, parse_hub_id

ROOT = Path(__file__).resolve().parents[2]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hf://lerobot/pi05_base", HubId("lerobot/pi05_base")),
        ("hf:/lerobot/pi05_base", HubId("lerobot/pi05_base")),  # after Path()
        ("hf://a/b@v1.0", HubId("a/b", "v1.0")),
        ("hf://a/b@refs/pr/3", HubId("a/b", "refs/pr/3")),
        ("lerobot/pi05_base", HubId("lerobot/pi05_base")),
        ("a/b@main", HubId("a/b", "main")),
        ("/a/b", None),
        ("a/b/c", None),
        ("a", None),
        ("./a/b", None),
        ("../a", None),
        ("~/a", None),
        ("a/model.safetensors", None),
        ("a/..", None),
        ("a/b--c", None),
        ("", None),
        ("a/\0", None),
    ],
)
def test_what_is_a_hub_id(text, expected):
    assert parse_hub_id(text) == expected


@pytest.mark.parametrize("text", ["hf://", "hf://a", "hf://a/b/c", "hf://a/b@", "hf://../b"])
def test_what_should_be_one_and_is_not(text):
    with pytest.raises(CheckpointError, match="is no hub id; accepted: hf://ORGANIZATION/NAME"):
        find_files(text)


def test_a_path_wins_over_an_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    assert parse_hub_id("models/typo") is None  # the folder is here, the name in it is wrong
    with pytest.raises(CheckpointError, match="models/typo: no such file or directory"):
        find_files("models/typo")


class Hub(http.server.BaseHTTPRequestHandler):
    """The parts of the hub's interface that a download needs, for one repository."""

    files: dict[str, bytes]

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        path = self.path.split("?")[0]
        base = "/api/models/robots/arm"
        if path.startswith(base) and path[len(base) :] in (
            "", "/revision/main", f"/revision/{COMMIT}", "/revision/v2",
        ):  # fmt: skip
            siblings = [{"rfilename": name} for name in self.files]
            info = {"id": "robots/arm", "sha": COMMIT, "siblings": siblings, "private": False}
            return self.send(json.dumps(info).encode(), {"content-type": "application/json"}, body)
        if path.startswith(base + "/tree/"):
            tree = [
                {
                    "type": "file", "path": name, "size": len(content),
                    "oid": hashlib.sha1(content).hexdigest(),
                }
                for name, content in self.files.items()
            ]  # fmt: skip
            return self.send(json.dumps(tree).encode(), {"content-type": "application/json"}, body)
        name = path.rpartition(f"/robots/arm/resolve/{COMMIT}/")[2]
        if name in self.files:
            etag = hashlib.sha256(self.files[name]).hexdigest()
            headers = {"etag": f'"{etag}"', "x-repo-commit": COMMIT}
            return self.send(self.files[name], headers, body)
        if "/robots/closed" in path:
            return self.send(b"{}", {}, body, status=403)
        code = "RevisionNotFound" if path.startswith(base) else "RepoNotFound"
        return self.send(b"{}", {"x-error-code": code}, body, status=404)

    def send(self, content, headers, body, status=200):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *args):
        pass


@pytest.fixture
def hub(tmp_path):
    """Environment of a process that uses a local server as the hub."""
    config = ROOT / "test" / "data" / "openpi_tiny" / "tiny.config.json"
    Hub.files = {
        "model.safetensors": WEIGHTS.read_bytes(),
        "config.json": config.read_bytes() if config.is_file() else b"{}",
        "assets/arm/norm_stats.json": b'{"norm_stats": {}}',
        "pytorch_model.bin": b"pickle",
        "training_state/optimizer_state.safetensors": b"large",
    }
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield {
        **os.environ,
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "no_proxy": "127.0.0.1",
    }
    server.shutdown()
    server.server_close()
    thread.join()


CODE = """
import sys
from pi05_ros.model.checkpoint.discovery import find_files
for name in sys.argv[1:]:
    try:
        print(find_files(name)[0])
    except Exception as error:
        print(f"{type(error).__name__}: {error}")
"""


def found(names, env, cwd):
    """What `find_files` says of each name in a process with this environment, a line each."""
    env = {**env, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", CODE, *names]
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300)
    lines = done.stdout.splitlines()
    assert len(lines) == len(names), done.stderr
    return lines


def test_ids_are_downloaded_once_found_offline_and_refused_in_one_line(hub, tmp_path):
    names = ("hf://robots/arm", "robots/arm", "hf://robots/arm@v2", f"robots/arm@{COMMIT}")
    wrong = {
        "robots/none": "hf://robots/none: no such path here, and the hub has no such repository",
        "hf://robots/arm@v9": "hf://robots/arm@v9: the repository has no such revision",
        "robots/closed": "cannot be got from http://127.0.0.1",
    }
    lines = found((*names, *wrong), hub, tmp_path)
    (weights,) = set(lines[:4])
    for line, words in zip(lines[4:], wrong.values(), strict=True):
        assert line.startswith("CheckpointError: ")
        assert words in line
    snapshot = Path(weights).parent
    assert snapshot.name == COMMIT
    held = {p.relative_to(snapshot).as_posix() for p in snapshot.rglob("*") if p.is_file()}
    assert held == {"model.safetensors", "config.json", "assets/arm/norm_stats.json"}
    assert load_checkpoint(weights).config.horizon
    offline = {**hub, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "1"}
    lines = found((*names[:2], "robots/other"), offline, tmp_path)
    assert lines[:2] == [weights] * 2
    assert "it is not in the cache" in lines[2]
    assert "HF_HUB_OFFLINE is set" in lines[2]


def test_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match="need huggingface_hub: pip install huggingface_hub"):
        find_files("robots/unheard-of")


# copies ---------------------------------------------------------------------------------------


def cache(tmp_path):
    """A snapshot of the hub's cache, its weights a link to a blob."""
    folder = tmp_path / "hub" / "models--robots--arm"
    snapshot = folder / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (folder / "blobs").mkdir()
    (folder / "blobs" / "abc").write_bytes(WEIGHTS.read_bytes())
    (snapshot / "model.safetensors").symlink_to("../../blobs/abc")
    return snapshot


def refused(path):
    """Message of the refusal."""
    with pytest.raises(CheckpointError) as error:
        find_files(path)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_folders_of_the_cache_are_named_with_what_to_give(tmp_path):
    snapshot = cache(tmp_path)
    assert find_files(snapshot) == (snapshot / "model.safetensors",)
    for folder in (snapshot.parent, snapshot.parents[1]):
        message = refused(folder)
        assert "the cache folder of robots/arm; give hf://robots/arm" in message
        assert str(snapshot) in message
    assert "give one of its repositories: hf://robots/arm" in refused(tmp_path / "hub")


def test_links_to_nothing(tmp_path):
    snapshot = cache(tmp_path)
    (snapshot.parents[1] / "blobs" / "abc").unlink()
    for path in (snapshot, snapshot / "model.safetensors"):
        message = refused(path)
        assert "is a link to ../../blobs/abc, which does not exist" in message
        assert f"hf download robots/arm --revision {COMMIT}" in message
    index = {"weight_map": {"a": "model-00001-of-00001.safetensors"}}
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors.index.json").symlink_to("../../blobs/abc")
    assert "is a link to" in refused(snapshot)
    (snapshot / "model.safetensors.index.json").unlink()
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(index))
    message = refused(snapshot)
    assert "1 of 1 shards are missing: model-00001-of-00001.safetensors" in message
    assert "hf download robots/arm" in message


def test_an_empty_snapshot(tmp_path):
    snapshot = cache(tmp_path)
    (snapshot / "model.safetensors").unlink()
    message = refused(snapshot)
    assert "no weights in it (it holds nothing)" in message
    assert f"hf download robots/arm --revision {COMMIT}" in message
    (snapshot / "README.md").touch()
    assert "it holds README.md" in refused(snapshot)


@pytest.mark.parametrize("content", [POINTER, b"# xet version 0\nfilesize = 7\n"])
@pytest.mark.parametrize("name", ["model.safetensors", "other.safetensors"])
def test_pointers_in_place_of_weights(tmp_path, content, name):
    (tmp_path / "clone" / ".git").mkdir(parents=True)
    folder = tmp_path / "clone" / "arm"
    folder.mkdir()
    (folder / name).write_bytes(content)
    for path in (folder, folder / name):
        message = refused(path)
        assert "pointer, not the file itself" in message
        assert f"git -C {tmp_path / 'clone'} lfs pull" in message
    with pytest.raises(CheckpointError, match="pointer"):
        load_checkpoint(folder)


def test_a_shard_that_is_a_pointer(tmp_path):
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    index = {"weight_map": dict(zip("ab", names, strict=True))}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / names[0]).write_bytes(WEIGHTS.read_bytes())
    (tmp_path / names[1]).write_bytes(POINTER)
    assert f"{names[1]} is a Git LFS pointer" in refused(tmp_path)
    assert "hf download ORGANIZATION/NAME" in refused(tmp_path)
