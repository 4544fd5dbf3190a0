"""Let rosbags open mcap files whose header has no profile, and files that were cut.

Tools write mcap without a profile; the channels say that their messages are CDR. rosbags insists
on the profile "ros2", so it is shown a header with one. A file that was cut is shown with an
ending, see `mcap_rest`.
"""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import BinaryIO, cast

from pi05_ros.bags.mcap_rest import RestFile, find_rest, is_cut

_MAGIC = b"\x89MCAP0\r\n"


class McapPath:
    """Path of an mcap whose profile may be empty, or whose end may be missing.

    Attributes:
        rest: of a file that was cut, the part that is shown; None for a whole one, or where there
            is nothing to show.

    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.rest = find_rest(path) if is_cut(path) else None

    def __str__(self) -> str:
        return str(self._path)

    def open(self, mode: str) -> BinaryIO:
        """The file for reading; `mode` is what rosbags asks for."""
        file: BinaryIO = self._path.open("rb")
        if self.rest is not None:
            file = cast(BinaryIO, RestFile(file, self.rest))
        start = file.read(17)  # magic, opcode of the header, its length
        body = b""
        if len(start) == 17 and start.startswith(_MAGIC + b"\x01"):
            size = struct.unpack("<Q", start[9:])[0]
            body = file.read(min(size, 2**16))
        file.seek(0)
        if not body.startswith(bytes(4)):  # a profile, or no header
            return file
        body = struct.pack("<I", 4) + b"ros2" + body[4:]
        lead = _MAGIC + b"\x01" + struct.pack("<Q", len(body)) + body
        return cast(BinaryIO, _WithLead(file, lead, 17 + len(body) - 4))


class _WithLead(io.RawIOBase):
    """A file whose first `behind` bytes are read as `lead`, as long as nobody seeks."""

    def __init__(self, file: BinaryIO, lead: bytes, behind: int) -> None:
        self._file = file
        self._lead: BinaryIO | None = io.BytesIO(lead)
        self._left = len(lead)
        self._behind = behind

    def read(self, size: int | None = -1) -> bytes:
        if self._lead is None:
            return self._file.read(-1 if size is None else size)
        data = self._lead.read(-1 if size is None else size)
        self._left -= len(data)
        if not self._left:
            self._lead = None
            self._file.seek(self._behind)
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        self._lead = None
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell() if self._lead is None else self._lead.tell()

    def close(self) -> None:
        self._file.close()
        super().close()
