"""CUDA C++ to a cubin with NVRTC, kept on disk.

The sources lie beside and below this file; the files in `headers/` are handed to NVRTC in memory,
so kernels include our headers but nothing from a toolkit. The cache key covers sources, options
and the version of NVRTC. A file carries the hash of its content and is compiled anew if that is
wrong, or if somebody else than our user may have written it.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import logging
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from pi05_ros.backends.cache import NotPrivateError, code_folder, read_private
from pi05_ros.backends.errors import BackendError
from pi05_ros.backends.files import write_atomically
from pi05_ros.small_files import MIB

log = logging.getLogger("pi05_ros.cuda")

SOURCES = Path(__file__).parent
ARCHITECTURE = "sm_90a"
OPTIONS = (
    f"--gpu-architecture={ARCHITECTURE}",
    "--std=c++17",
    "--device-as-default-execution-space",
)
OLDEST = (12, 0)  # the first NVRTC that knows sm_90a
_MAJORS = (13, 12)


class KernelError(BackendError):
    """The kernels cannot be compiled, loaded or launched here."""


def library_candidates() -> Iterator[str]:
    """Paths and names under which libnvrtc may be found, best first.

    The wheels of PyTorch put it under `nvidia/cu13/lib` or `nvidia/cuda_nvrtc/lib`, other builds
    beside libtorch or in a toolkit; last comes the loader's own search.
    """
    built_for = int((torch.version.cuda or "0").split(".")[0])
    majors = sorted(_MAJORS, key=lambda major: major != built_for)
    spec = importlib.util.find_spec("nvidia")
    roots = [Path(p) for p in (spec.submodule_search_locations or ())] if spec else []
    roots += [Path(p) / "nvidia" for p in sys.path if p]
    folders = [root / sub / "lib" for root in roots for sub in ("cu13", "cuda_nvrtc")]
    folders.append(Path(torch.__file__).parent / "lib")
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
    folders.append(Path(home) / "lib64")
    for major in majors:
        for folder in folders:
            path = folder / f"libnvrtc.so.{major}"
            if path.is_file():
                yield str(path)
    for major in majors:
        yield f"libnvrtc.so.{major}"


class Nvrtc:
    """The few functions of libnvrtc that are needed, each checked."""

    def __init__(self) -> None:
        tried = []
        for name in dict.fromkeys(library_candidates()):
            try:
                if Path(name).is_absolute():
                    # libnvrtc opens its builtins by bare name: have them loaded beforehand
                    for builtins in sorted(Path(name).parent.glob("libnvrtc-builtins.so.*.*")):
                        ctypes.CDLL(str(builtins))
                self._library = ctypes.CDLL(name)
            except OSError as error:
                tried.append(f"{name}: {error}")
                continue
            self.version = self._read_version()
            if self.version >= OLDEST:
                self.path = name
                return
            tried.append(f"{name}: version {self.version[0]}.{self.version[1]} is too old")
        raise KernelError("NVRTC (libnvrtc) was not found: " + "; ".join(tried[:3]))

    def _call(self, name: str, *args: object) -> None:
        code = getattr(self._library, name)(*args)
        if code:
            self._library.nvrtcGetErrorString.restype = ctypes.c_char_p
            text = self._library.nvrtcGetErrorString(code) or b"unknown error"
            raise KernelError(f"{name}: {text.decode()}")

    def _read_version(self) -> tuple[int, int]:
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._call("nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
        return major.value, minor.value

    def compile(
        self, name: str, source: str, headers: Mapping[str, str], options: tuple[str, ...]
    ) -> bytes:
        """Cubin of `source`.

        Raises:
            KernelError: with the compiler's log.

        """
        program = ctypes.c_void_p()
        count = len(headers)
        texts = (ctypes.c_char_p * count)(*(t.encode() for t in headers.values()))
        names = (ctypes.c_char_p * count)(*(n.encode() for n in headers))
        self._call(
            "nvrtcCreateProgram",
            ctypes.byref(program),
            source.encode(),
            name.encode(),
            count,
            texts,
            names,
        )
        try:
            flags = (ctypes.c_char_p * len(options))(*(o.encode() for o in options))
            code = self._library.nvrtcCompileProgram(program, len(options), flags)
            if code:
                raise KernelError(f"{name} does not compile:\n{self._log(program)}")
            size = ctypes.c_size_t()
            self._call("nvrtcGetCUBINSize", program, ctypes.byref(size))
            image = ctypes.create_string_buffer(size.value)
            self._call("nvrtcGetCUBIN", program, image)
            return image.raw
        finally:
            self._library.nvrtcDestroyProgram(ctypes.byref(program))

    def _log(self, program: ctypes.c_void_p) -> str:
        size = ctypes.c_size_t()
        self._call("nvrtcGetProgramLogSize", program, ctypes.byref(size))
        text = ctypes.create_string_buffer(max(size.value, 1))
        self._call("nvrtcGetProgramLog", program, text)
        return text.value.decode(errors="replace")


MAX_IMAGE = 64 * MIB
_LOCK = threading.RLock()
_NVRTC: list[Nvrtc] = []


def nvrtc() -> Nvrtc:
    """The process's NVRTC, loaded once.

    Raises:
        KernelError: there is none, or it is too old.

    """
    with _LOCK:
        if not _NVRTC:
            _NVRTC.append(Nvrtc())
        return _NVRTC[0]


_WGMMA_COLUMNS = 256

_WGMMA_INTRODUCTION = """\
// wgmma on e4m3 operands in shared memory: 64 rows of A times n rows of B, 32 columns, into FP32.
//
// Thread t holds d[4 j + 2 i + b] = D[16 (t / 32) + 8 i + t % 32 / 4][8 j + 2 (t % 4) + b].
// One definition per n = 8, 16 .. 256, chosen by the length of d; accumulate = 0 starts from zero.
#pragma once

#include "ptx.cuh"
"""


def _wgmma(columns: int) -> str:
    """``wgmma(d, a, b, accumulate)`` for `columns` rows of B, a multiple of 8."""
    count = columns // 2
    places = ", ".join(f"%{i}" for i in range(count))
    registers = ", ".join(f'"+f"(d[{i}])' for i in range(count))
    return f"""
__device__ __forceinline__ void wgmma(float (&d)[{count}], u64 a, u64 b, int accumulate) {{
  asm volatile(
      "{{\\n.reg .pred p;\\nsetp.ne.b32 p, %{count + 2}, 0;\\n"
      "wgmma.mma_async.sync.aligned.m64n{columns}k32.f32.e4m3.e4m3 "
      "{{{places}}}, %{count}, %{count + 1}, p, 1, 1;\\n}}"
      : {registers}
      : "l"(a), "l"(b), "r"(accumulate));
}}
"""


def wgmma_header() -> str:
    """Text of `wgmma.cuh`: one definition per number of columns, which the instruction names."""
    return _WGMMA_INTRODUCTION + "".join(_wgmma(n) for n in range(8, _WGMMA_COLUMNS + 8, 8))


_BF16_INTRODUCTION = """\
// wgmma on bf16 operands in shared memory: 64 rows of A times n rows of B, 16 columns, into FP32.
// `d` is laid out as in wgmma.cuh.
#pragma once

#include "ptx.cuh"
"""


def wgmma_bf16_header() -> str:
    """Text of `wgmma_bf16.cuh`; see `wgmma_header`."""
    text = "".join(_wgmma(n) for n in range(8, _WGMMA_COLUMNS + 8, 8))
    text = text.replace("void wgmma(", "void wgmma_bf16(").replace(
        "k32.f32.e4m3.e4m3", "k16.f32.bf16.bf16"
    )
    return _BF16_INTRODUCTION + text.replace("p, 1, 1;", "p, 1, 1, 0, 0;")


def _headers() -> dict[str, str]:
    files = {path.name: path.read_text() for path in sorted((SOURCES / "headers").glob("*.cuh"))}
    return {**files, "wgmma.cuh": wgmma_header(), "wgmma_bf16.cuh": wgmma_bf16_header()}


def cubin(source: str, defines: Mapping[str, int] | None = None) -> bytes:
    """Compiled form of one `.cu` file, from the cache where it is there.

    Args:
        source: file below this folder, for example "products.cu".
        defines: preprocessor constants.

    Raises:
        KernelError: no NVRTC, or the source does not compile.

    """
    compiler = nvrtc()
    text = (SOURCES / source).read_text()
    headers = _headers()
    options = (*OPTIONS, *(f"-D{name}={value}" for name, value in sorted((defines or {}).items())))
    digest = hashlib.sha256()
    for part in (str(compiler.version), *options, source, text, *headers, *headers.values()):
        digest.update(part.encode() + b"\0")
    path = code_folder("kernels") / f"{Path(source).stem}-{digest.hexdigest()[:32]}.cubin"
    with _LOCK:
        image = read_cached(path)
        if image is None:
            image = compiler.compile(source, text, headers, options)
            write_cached(path, image)
    return image


def read_cached(path: Path) -> bytes | None:
    """Content of a cache file; None where it is missing, damaged, or may be somebody else's."""
    try:
        stored = read_private(path, MAX_IMAGE)
    except OSError:
        return None
    except NotPrivateError as error:
        log.warning("%s; compiling the kernels anew", error)
        return None
    digest, _, image = stored.partition(b"\n")
    if hashlib.sha256(image).hexdigest().encode() != digest:
        log.warning("%s is damaged; compiling the kernels anew", path)
        return None
    return image


def write_cached(path: Path, image: bytes) -> None:
    """Write a cache file in one step; a cache that cannot be written is none."""
    try:
        write_atomically(path, hashlib.sha256(image).hexdigest().encode() + b"\n" + image)
    except BackendError as error:
        log.info("compiled kernels are not kept: %s", error)
