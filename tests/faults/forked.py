"""Run many command lines quickly: each in a forked child of one process that has imported everything once.

:func:`children` starts that process. It runs no computation itself, so a fork is safe. A child has a working folder, a
cache and a home of its own, limits of time and memory, and no capability to pass over permissions, so a test runs as
root like as an ordinary user. Two children run at a time.
"""

import atexit
import contextlib
import ctypes
import functools
import gc
import hashlib
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
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
AT_ONCE = 2
TIMED_OUT = "timed out"
FORBIDDEN = {"secret": 0o000, "readonly": 0o555}
"""Permissions that files and folders with these names have during a call; other files have those of the template."""

COMMANDS = {
    "sashimi-sample": "sashimi_diffusion.commands.sample",
    "sashimi-evaluate": "sashimi_evaluation.commands.evaluate",
    "sashimi-convert": "sashimi_evaluation.commands.convert",
    "train_diffwave_sashimi.py": "recipes",
    "train_autoregressive_sashimi.py": "recipes",
    "train_digit_classifier.py": "recipes",
    "sashimi_kernels.benchmark": "sashimi_kernels.benchmark",
    "sashimi_kernels.warm_up": "sashimi_kernels.warm_up",
    "sashimi_kernels.aot": "sashimi_kernels.aot",
    "sashimi_diffusion.benchmarks.denoiser": "sashimi_diffusion.benchmarks.denoiser",
    "sashimi_diffusion.benchmarks.generation": "sashimi_diffusion.benchmarks.generation",
    "sashimi_diffusion.benchmarks.counters": "sashimi_diffusion.benchmarks.counters",
    "sashimi_diffusion.benchmarks.gpu_check": "sashimi_diffusion.benchmarks.gpu_check.__main__",
    "sashimi_evaluation.benchmark": "sashimi_evaluation.benchmark",
}
"""Name of each command -> its module; a recipe is a file."""

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


@dataclass(frozen=True)
class Call:
    """A command line to run.

    Args:
        command: one of ``COMMANDS``.
        arguments: its arguments.
        encoding: encoding of stdout and stderr.
        reader: whether somebody reads stdout; False: it is a pipe that is closed at the other end.
        umask: the umask of the process.
        fault: arguments of :func:`tests.faults.file_operations.inject`, or None.
    """

    command: str
    arguments: tuple[str, ...] = ()
    encoding: str = "utf-8"
    reader: bool = True
    umask: int = 0o022
    fault: dict[str, Any] | None = None
    seconds: float = 12.0
    gigabytes: float = 2.0


@dataclass(frozen=True)
class Result:
    """What a call did.

    Attributes:
        code: exit code, minus the number of the signal that ended the process, or ``TIMED_OUT``.
        out: text of stdout.
        err: text of stderr.
        created: paths that the call created in the working folder.
        changed: paths there that it changed or removed.
    """

    code: int | str
    out: str
    err: str
    created: tuple[str, ...]
    changed: tuple[str, ...]


class Children:
    """The process that forks, and the calls that it runs."""

    def __init__(self) -> None:
        kept = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
        paths = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "evaluation"), os.environ.get("PYTHONPATH", "")]
        environment = kept | {
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "CUDA_VISIBLE_DEVICES": "",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.forked"],
            env=environment,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._finished: set[str] = set()
        self._unread = b""

    def start(self, call: Call, folder: Path, template: Path | None = None) -> None:
        """Queue a call.

        Args:
            call: the call.
            folder: new or existing folder; the call runs in ``folder``/work.
            template: folder that is copied to ``folder``/work before the call; None: it exists, or is made empty.
        """
        request = asdict(call) | {"folder": str(folder), "template": None if template is None else str(template)}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()

    def result(self, folder: Path) -> Result:
        """Wait for the call that runs in ``folder`` and return its result."""
        assert self._process.stdout is not None
        while str(folder) not in self._finished:
            ready, _, _ = select.select([self._process.stdout], [], [], 300)
            block = os.read(self._process.stdout.fileno(), 1 << 16) if ready else b""
            assert block, "the process that forks does not answer"
            *lines, self._unread = (self._unread + block).split(b"\n")
            self._finished |= {json.loads(line) for line in lines}
        self._finished.remove(str(folder))
        content = json.loads((folder / "result.json").read_text())
        return Result(**{key: tuple(value) if isinstance(value, list) else value for key, value in content.items()})

    def run(self, call: Call, folder: Path, template: Path | None = None) -> Result:
        """Run one call and return its result."""
        self.start(call, folder, template)
        return self.result(folder)

    def stop(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


@functools.cache
def children() -> Children:
    """Return the process that forks; it is started at the first call and ends with the tests."""
    started = Children()
    atexit.register(started.stop)
    return started


Entry = tuple[int, int, int, str]
"""Mode, size, time stamp, and the content's hash or the link's target."""


def snapshot(folder: Path) -> dict[str, Entry]:
    """Return a description of everything in a folder by relative path."""
    entries: dict[str, Entry] = {}
    for path in _walk(folder):
        found = path.lstat()
        if stat.S_ISLNK(found.st_mode):
            content = os.readlink(path)
        elif stat.S_ISREG(found.st_mode):
            content = hashlib.sha1(path.read_bytes()).hexdigest()
        else:
            content = ""
        size, time_stamp = (found.st_size, found.st_mtime_ns) if stat.S_ISREG(found.st_mode) else (0, 0)
        entries[str(path.relative_to(folder))] = (found.st_mode, size, time_stamp, content)
    return entries


def _walk(folder: Path) -> list[Path]:
    found = []
    for path in sorted(folder.iterdir()):
        found.append(path)
        if path.is_dir() and not path.is_symlink():
            found += _walk(path)
    return found


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


def _serve() -> None:
    """Answer the requests on stdin until it ends."""
    functions = {name: _load(name, module) for name, module in COMMANDS.items()}
    for name in _LATER:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    import torch

    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()
    snapshots: dict[str, dict[str, Entry]] = {}
    running = 0
    for line in sys.stdin.buffer:
        request = json.loads(line)
        template = request["template"]
        if template is not None and template not in snapshots:
            snapshots[template] = snapshot(Path(template))
        if running == AT_ONCE:
            os.wait()
            running -= 1
        running += 1
        if os.fork() == 0:
            with contextlib.suppress(BaseException):
                _observe(request, snapshots.get(template), functions[request["command"]])
            os._exit(0)


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
    if name.endswith("counters"):  # its main raises errors, and its last line is `run(main)`
        return lambda: loaded.run(loaded.main)
    return loaded.main


def _observe(request: dict[str, Any], before: dict[str, Entry] | None, function: Callable[[], Any]) -> None:
    """Run a request in a child, and write its result."""
    folder = Path(request["folder"])
    work = folder / "work"
    for name in ("cache", "home"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    if request["template"] is not None:
        copy_folder(Path(request["template"]), work)
    work.mkdir(exist_ok=True)
    if before is None:
        before = snapshot(work)
    allowed = {path: path.stat().st_mode for name in FORBIDDEN for path in work.glob(f"{name}*")}
    for path in allowed:
        path.chmod(FORBIDDEN[path.name.partition(".")[0]])
    child = os.fork()
    if child == 0:
        os._exit(_child(request, folder, function))
    code = _wait(child, request["seconds"])
    for path, mode in allowed.items():
        path.chmod(mode)
    after = snapshot(work)
    result = {
        "code": code,
        **{name: (folder / name).read_bytes().decode("utf-8", "backslashreplace") for name in ("out", "err")},
        "created": sorted(after.keys() - before.keys()),
        "changed": sorted(path for path, entry in before.items() if after.get(path) != entry),
    }
    (folder / "result.json").write_text(json.dumps(result))
    os.write(1, json.dumps(str(folder)).encode() + b"\n")


def _wait(child: int, seconds: float) -> int | str:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return TIMED_OUT


def _child(request: dict[str, Any], folder: Path, function: Callable[[], Any]) -> int:
    """Become the process of a request, run it and return its exit code."""
    os.setsid()
    _replace_streams(request, folder)
    os.chdir(folder / "work")
    os.environ |= {"SASHIMI_CACHE": str(folder / "cache"), "HOME": str(folder / "home")}
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


def run_all(calls: Sequence[tuple[Call, Path]], template: Path | None = None) -> list[Result]:
    """Run calls in folders, two at a time, and return their results."""
    for call, folder in calls:
        children().start(call, folder, template)
    return [children().result(folder) for _, folder in calls]


if __name__ == "__main__":
    _serve()
