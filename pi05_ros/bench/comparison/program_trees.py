"""The sources that a benchmark runs: a folder, or a git revision unpacked into one.

A machine without git may be handed a plain folder. It is known by a hash of its sources, and by
the revision in a file COMMIT beside `pi05_ros/` if there is one.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from pi05_ros.errors import InvalidValueError
from pi05_ros.small_files import FileError, MissingFileError, read_text

_HASHED = {".py", ".cu", ".cuh", ".json", ".yaml"}
_COMMIT_FILE = "COMMIT"


@dataclass(frozen=True)
class ProgramTree:
    """Where one side's `pi05_ros` lies, and which state of the sources it is.

    Attributes:
        folder: that holds `pi05_ros/`.
        commit: revision, 40 hex digits; None where nothing says it.
        dirty: the sources differ from the commit; None where that is not known.
        sources: hash of the files of the package.

    """

    folder: Path
    commit: str | None
    dirty: bool | None
    sources: str

    def name(self) -> str:
        """Short name for people."""
        if self.commit is None:
            return f"sources {self.sources[:10]}"
        return self.commit[:10] + ("+" if self.dirty else "")


def own_tree() -> Path:
    """Folder of the package that runs."""
    return Path(__file__).resolve().parents[3]


def program_tree(word: str, unpack_into: Path, repository: Path | None = None) -> ProgramTree:
    """What `word` names: a folder that holds `pi05_ros/`, otherwise a git revision.

    Args:
        word: path or revision.
        unpack_into: empty folder for the files of a revision.
        repository: git repository of revisions; None: the one of this package.

    Raises:
        InvalidValueError: neither of the two.

    """
    folder = Path(word).expanduser()
    if folder.is_dir():
        if not (folder / "pi05_ros" / "__init__.py").is_file():
            raise InvalidValueError(f"{word}: a folder without pi05_ros/ is no source tree")
        return _of_folder(folder.resolve())
    place = repository or own_tree()
    revision = f"{word}^{{commit}}"
    commit = _git(place, "rev-parse", "--verify", "--quiet", "--end-of-options", revision)
    if commit is None:
        raise InvalidValueError(
            f"{word!r} is no folder, and no git revision known in {place}; accepted: a source "
            "tree that holds pi05_ros/, or a revision of this package's own repository"
        )
    _unpack(place, commit, unpack_into)
    return ProgramTree(unpack_into, commit, False, sources_hash(unpack_into))


def sources_hash(folder: Path) -> str:
    """sha256 over names and contents of the package's sources and data, hex."""
    state = hashlib.sha256()
    package = folder / "pi05_ros"
    for path in sorted(package.rglob("*")):
        if path.suffix in _HASHED and path.is_file():
            content = path.read_bytes()
            state.update(f"{path.relative_to(package).as_posix()}\0{len(content)}\0".encode())
            state.update(content)
    return state.hexdigest()


def _of_folder(folder: Path) -> ProgramTree:
    sources = sources_hash(folder)
    top = _git(folder, "rev-parse", "--show-toplevel")
    if top is not None and Path(top).resolve() == folder:
        commit = _git(folder, "rev-parse", "HEAD")
        changed = _git(folder, "status", "--porcelain", "--", "pi05_ros")
        return ProgramTree(folder, commit, None if changed is None else bool(changed), sources)
    try:
        noted = read_text(folder / _COMMIT_FILE, 1024).strip()
    except MissingFileError:
        return ProgramTree(folder, None, None, sources)
    if not re.fullmatch(r"[0-9a-f]{40}", noted):
        raise FileError(f"{folder / _COMMIT_FILE}: one revision of 40 hex digits is accepted")
    return ProgramTree(folder, noted, None, sources)


def _git(folder: Path, *words: str) -> str | None:
    """Output of git; None where it fails or is not installed."""
    command = ["git", "-C", str(folder), *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _unpack(repository: Path, commit: str, folder: Path) -> None:
    """Files of a revision, without touching the repository's own state."""
    folder.mkdir(parents=True, exist_ok=True)
    top = _git(repository, "rev-parse", "--show-toplevel") or str(repository)
    command = ["git", "-C", top, "archive", "--format=tar", commit, "pi05_ros"]
    archive = subprocess.run(command, capture_output=True, check=False)
    if archive.returncode:
        text = archive.stderr.decode(errors="replace").strip()
        raise InvalidValueError(f"{commit}: git archive gave no files: {text}")
    # Not tarfile: its safe extraction is not in every Python 3.11 (Debian 12 has 3.11.2).
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive.stdout, check=True)
