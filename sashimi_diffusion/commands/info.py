"""Print versions, devices, backends of the kernels, caches and bundled pipelines, for a bug report.

sashimi-info
sashimi-info --json
"""

import importlib
import importlib.util
import json
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import sashimi_kernels.torch_backend as operations
from sashimi_diffusion.cache_files import default_cache_dir
from sashimi_diffusion.command_line import Parser, run
from sashimi_diffusion.memory import available_memory
from sashimi_diffusion.pipelines.loading import BUNDLED
from sashimi_diffusion.terminal import printable, say
from sashimi_kernels.backends import explain_backend

_PACKAGES = (
    *("torch", "diffusers", "accelerate", "torchaudio", "soundfile", "soxr", "triton", "numpy", "safetensors"),
    *("huggingface-hub", "pydantic", "numba", "matplotlib", "scikit-learn", "scipy"),
)
_VARIABLES = (
    *("SASHIMI_KERNELS", "SASHIMI_CACHE", "XDG_CACHE_HOME", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS"),
    *("TRITON_INTERPRET", "TRITON_CACHE_DIR", "NUMBA_CACHE_DIR", "HF_HOME", "HF_HUB_OFFLINE"),
)
_LENGTH = 16000
_GIB = 2**30


def main() -> int:
    """Run the command and return its exit code."""
    return run(_info)


def _info() -> None:
    parser = Parser(prog="sashimi-info", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    options = parser.parse_args()
    content = information()
    say(json.dumps(content, indent=2) if options.json else text(content))


def information() -> dict[str, dict[str, str]]:
    """Return what the command prints: sections, and in each section names and values."""
    return {
        "versions": _versions(),
        "devices": _devices(),
        "kernels": _backends(),
        "caches": _caches(),
        "bundled pipelines": {path.name: str(path) for path in sorted(BUNDLED.iterdir()) if path.is_dir()},
        "environment variables": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
    }


def text(content: dict[str, dict[str, str]]) -> str:
    """Return the sections as lines of names and values."""
    width = max(len(name) for section in content.values() for name in section)
    lines = []
    for title, section in content.items():
        lines.append(title)
        lines += [f"  {name:<{width}}  {printable(value)}" for name, value in section.items()] or ["  none"]
    return "\n".join(lines)


def _versions() -> dict[str, str]:
    folder = Path(__file__).resolve().parent.parent
    return {
        "sashimi-diffusion": f"{_version('sashimi-diffusion')} in {folder}",
        "python": f"{platform.python_version()} in {sys.executable}",
        "system": platform.platform(),
        **{name: _version(name) for name in _PACKAGES},
    }


def _version(package: str) -> str:
    try:
        found = version(package)
    except PackageNotFoundError:
        return "not installed"
    return f"{found}, but it cannot be imported ({_failure(package)})" if _failure(package) else found


def _failure(package: str) -> str | None:
    """Return why a package with compiled parts cannot be imported, or None; other packages are not imported."""
    if package not in ("torchaudio", "triton", "soundfile", "soxr") or importlib.util.find_spec(package) is None:
        return None
    try:
        importlib.import_module(package)
    except (ImportError, OSError) as error:
        return str(error).partition("\n")[0]
    return None


def _devices() -> dict[str, str]:
    free = available_memory(torch.device("cpu")) or 0
    threads = torch.get_num_threads()
    devices = {"cpu": f"{platform.machine()}, {os.cpu_count()} cores, {threads} threads, {free / _GIB:.1f} GiB free"}
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        name = torch.cuda.get_device_name(index)
        devices[f"cuda:{index}"] = f"{name}, {free / _GIB:.1f} of {total / _GIB:.1f} GiB free"
    if torch.cuda.device_count() == 0:
        built = torch.version.cuda or torch.version.hip
        devices["cuda"] = f"none (torch is built for {'CUDA or ROCm ' + built if built else 'the CPU only'})"
    return devices


def _backends() -> dict[str, str]:
    """Return the backend of each operation in float32 for one second of audio, and the reason."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return {name: explain_backend(device, name, torch.float32, _LENGTH) for name in sorted(operations.__all__)}


def _caches() -> dict[str, str]:
    folder = default_cache_dir()
    own = _size(folder) if folder.is_dir() else "does not exist yet"
    return {"audio, features, choices": f"{printable(folder)}: {own}"}


def _size(folder: Path) -> str:
    unreadable: list[OSError] = []
    total = 0
    for parent, _, names in os.walk(folder, onerror=unreadable.append):
        total += sum(_bytes_of(Path(parent, name)) for name in names)
    return f"{total / 1e6:.1f} MB" + (f", {len(unreadable)} folders cannot be read" if unreadable else "")


def _bytes_of(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:  # removed in the meantime
        return 0


if __name__ == "__main__":
    sys.exit(main())
