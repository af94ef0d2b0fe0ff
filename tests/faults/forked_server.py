"""The process of :mod:`tests.faults.forked`: it imports everything once and forks a child for each request."""

import contextlib
import ctypes
import gc
import importlib
import importlib.util
import io
import json
import os
import resource
import select
import shutil
import signal
import stat
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.faults.forked import COMMANDS, FORBIDDEN, ROOT, TIMED_OUT

AT_ONCE = 2

# Imported inside functions of the library; without them every child would import them again.
_LATER = (
    "matplotlib.figure",
    "matplotlib.backends.backend_agg",
    "sklearn.metrics",
    "sklearn.cluster",
    "scipy.linalg",
    "numba",
    "triton",
    "safetensors.torch",
    "diffusers.models.modeling_utils",
    "torch.utils.tensorboard",
)

Entry = tuple[int, int, int, int]
"""Inode, mode, size and time of the last change of a file or a link; folders have no size and no time."""


def snapshot(folder: Path) -> dict[str, Entry]:
    """Return a description of everything in a folder by relative path."""
    entries: dict[str, Entry] = {}
    waiting = [str(folder)]
    while waiting:
        with os.scandir(waiting.pop()) as found:
            for entry in found:
                status = entry.stat(follow_symlinks=False)
                name = entry.path[len(str(folder)) + 1 :]
                if stat.S_ISDIR(status.st_mode):
                    entries[name] = (status.st_ino, status.st_mode, 0, 0)
                    if status.st_mode & stat.S_IRUSR:
                        waiting.append(entry.path)
                else:
                    entries[name] = (status.st_ino, status.st_mode, status.st_size, status.st_ctime_ns)
    return entries


def copy_folder(source: Path, target: Path) -> None:
    """Copy a folder with its links, FIFOs and permissions."""
    target.mkdir()
    for path in source.iterdir():
        to, mode = target / path.name, path.lstat().st_mode
        if stat.S_ISLNK(mode):
            to.symlink_to(os.readlink(path))
        elif stat.S_ISFIFO(mode):
            os.mkfifo(to)
        elif stat.S_ISDIR(mode):
            copy_folder(path, to)
        else:
            shutil.copy2(path, to)
    shutil.copystat(source, target)


class _Place:
    """Where one child at a time runs: a working folder that is made anew only after a call has changed it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.work = folder / "work"
        self._before: dict[str, Entry] = {}
        self._template: str | None = None
        self._child = 0
        self._number = 0
        self._end = 0.0

    @property
    def busy(self) -> bool:
        return self._child != 0

    def start(self, request: dict[str, Any], function: Callable[[], Any]) -> None:
        """Start the child of a request."""
        if request["template"] is None:
            self.work = Path(request["folder"])
            beside = self.work.parent
            self._template = None
            self._before = snapshot(self.work)
        else:
            self._copy(request["template"])
            beside = self.folder
            for name in ("cache", "home"):
                shutil.rmtree(beside / name, ignore_errors=True)
        for name in ("cache", "home"):
            (beside / name).mkdir(exist_ok=True)
        self._number, self._end = request["number"], time.monotonic() + request["seconds"]
        self._child = os.fork()
        if self._child == 0:
            code = 99
            try:
                code = _child(request, self.work, beside, self.folder, function)
            finally:
                os._exit(code)

    def _copy(self, template: str) -> None:
        self.work = self.folder / "work"
        if self._template == template and snapshot(self.work) == self._before:
            return
        for path in self.folder.glob("work/*"):
            if path.name.partition(".")[0] in FORBIDDEN:
                path.chmod(0o700)
        shutil.rmtree(self.work, ignore_errors=True)
        copy_folder(Path(template), self.work)
        for name, mode in FORBIDDEN.items():
            for path in self.work.glob(f"{name}*"):
                path.chmod(mode)
        self._template, self._before = template, snapshot(self.work)

    def poll(self) -> dict[str, Any] | None:
        """Return the result of the child if it has ended; end it at its limit of time."""
        ended, status = os.waitpid(self._child, os.WNOHANG)
        if not ended and time.monotonic() < self._end:
            return None
        code: int | str = os.waitstatus_to_exitcode(status) if ended else TIMED_OUT
        if not ended:
            self.stop()
        self._child = 0
        after = snapshot(self.work)
        return {
            "number": self._number,
            "code": code,
            **{name: (self.folder / name).read_bytes().decode("utf-8", "backslashreplace") for name in ("out", "err")},
            "created": sorted(after.keys() - self._before.keys()),
            "changed": sorted(path for path, entry in self._before.items() if after.get(path) != entry),
        }

    def stop(self) -> None:
        """End the child."""
        if self._child:
            os.killpg(self._child, signal.SIGKILL)
            os.waitpid(self._child, 0)
            self._child = 0


def _serve() -> None:
    """Answer the requests on stdin until the tests close it or end."""
    functions = {name: _load(name, module) for name, module in COMMANDS.items()}
    for name in _LATER:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    import torch

    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()
    with tempfile.TemporaryDirectory() as folder:
        places = [_Place(Path(folder, str(number))) for number in range(AT_ONCE)]
        for place in places:
            place.folder.mkdir()
        _answer(functions, places)
        for place in places:
            for path in place.folder.glob("work/*"):
                if path.name.partition(".")[0] in FORBIDDEN:
                    path.chmod(0o700)


def _answer(functions: dict[str, Callable[[], Any]], places: list[_Place]) -> None:
    queue: list[dict[str, Any]] = []
    unread = b""
    while True:
        busy = any(place.busy for place in places)
        if select.select([0], [], [], 0.002 if busy else None)[0]:
            block = os.read(0, 1 << 16)
            if not block:
                break
            *lines, unread = (unread + block).split(b"\n")
            queue += map(json.loads, lines)
        for place in places:
            result = place.poll() if place.busy else None
            if result is not None:
                line = json.dumps(result).encode() + b"\n"
                while line:
                    line = line[os.write(1, line) :]
            if not place.busy and queue:
                request = queue.pop(0)
                place.start(request, functions[request["command"]])
    for place in places:
        place.stop()


def _load(name: str, module: str) -> Callable[[], Any]:
    """Return the function that a command runs."""
    if module == "recipes":
        spec = importlib.util.spec_from_file_location(name.removesuffix(".py"), ROOT / "recipes" / name)
        assert spec is not None
        assert spec.loader is not None
        loaded = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loaded)
    else:
        loaded = importlib.import_module(module)
    return loaded.main


def _child(request: dict[str, Any], work: Path, beside: Path, streams: Path, function: Callable[[], Any]) -> int:
    """Become the process of a request, run it and return its exit code."""
    os.setsid()
    _replace_streams(request, streams)
    os.chdir(work)
    os.environ |= {"SASHIMI_CACHE": str(beside / "cache"), "HOME": str(beside / "home")}
    os.environ.pop("XDG_CACHE_HOME", None)
    os.umask(request["umask"])
    _require_permissions()
    used = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    limit = used + int(request["gigabytes"] * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.argv = [request["command"], *request["arguments"]]
    try:
        if request["fault"] is not None:
            from tests.faults.file_operations import inject

            inject(**request["fault"])
        code = function()
    except SystemExit as error:
        code = error.code
        if isinstance(code, str):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        traceback.print_exc()
        code = 1
    try:
        sys.stdout.flush()
    except BaseException as error:  # the interpreter reports it in the same way
        print(f"Exception ignored in: {sys.stdout!r}\n{type(error).__name__}: {error}", file=sys.stderr)
        code = 120
    sys.stderr.flush()
    return int(code or 0)


def _replace_streams(request: dict[str, Any], folder: Path) -> None:
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(os.open(folder / "err", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), 2)
    out = os.open(folder / "out", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    if not request["reader"]:
        reading, out = os.pipe()
        os.close(reading)
    os.dup2(out, 1)
    encoding = request["encoding"]
    sys.stdin = open(0)  # noqa: SIM115
    sys.stdout = io.TextIOWrapper(io.BufferedWriter(io.FileIO(1, "w", closefd=False)), encoding)
    sys.stderr = io.TextIOWrapper(
        io.BufferedWriter(io.FileIO(2, "w", closefd=False)), encoding, "backslashreplace", line_buffering=True
    )


def _require_permissions() -> None:
    """Give up the capabilities with which root reads and writes files regardless of their permissions."""
    if os.getuid() != 0 or sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    if libc.capget(header, sets) != 0:
        raise OSError(ctypes.get_errno(), "capget")
    for position in range(3):  # effective, permitted, inheritable; CAP_DAC_OVERRIDE is bit 1, CAP_DAC_READ_SEARCH bit 2
        sets[position] &= ~0b110
    if libc.capset(header, sets) != 0:
        raise OSError(ctypes.get_errno(), "capset")


if __name__ == "__main__":
    _serve()
