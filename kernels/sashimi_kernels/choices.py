"""Choice of the backend on a GPU: whether Triton can run, and the measured faster backend of each operation.

``python -m sashimi_kernels.benchmark --device cuda`` writes ``kernel-choices.json`` in the folder ``$SASHIMI_CACHE``
(default: ``$XDG_CACHE_HOME/sashimi-diffusion`` or ``~/.cache/sashimi-diffusion``). ``backend="auto"`` reads it once per
process. For every device name it maps operation, dtype and size to a backend:

    {"NVIDIA H100 80GB HBM3": {"diagonal_kernel float32 16000": "triton"}, "checksum": "…"}

The checksum is the SHA-256 of the rest. A file without it is accepted; one with a wrong checksum was damaged and is
ignored with a warning.

The size is the number of samples in the batch, batch size times length. It is the length alone for operations without a
batch, such as the generation of kernels. For ``chunked_convolution`` the choice "torch" means that an FFT convolution
is faster than the chunks of "triton".

Without such a measurement, the package's own file ``measured_choices.json`` decides. It has an entry per card, whose
key is the beginning of the device names:

    {"NVIDIA H100": {"date": "…", "commit": "…", "versions": "torch …, triton …", "choices": {…}}}
"""

import contextlib
import datetime
import functools
import hashlib
import json
import os
import stat
import tempfile
import warnings
from pathlib import Path

import torch

LENGTHS = (1000, 4000, 16000, 64000)
SIZES = (*LENGTHS, 256000, 1024000)
"""The sizes for which there are choices: samples in a batch."""
CANDIDATES = ("torch", "triton")
SHIPPED_CHOICES = Path(__file__).with_name("measured_choices.json")
SHIPPED_CARDS = ("NVIDIA H100", "NVIDIA H200")
"""Cards that share one entry of the package's file; other devices have an entry by their full name."""
_CHECKSUM = "checksum"  # key of the checksum in the user's file; no device has this name
# The first version with matrix products of float32 numbers split into bfloat16 (input_precision bf16x3 and bf16x6).
_OLDEST_TRITON = (3, 6)
_OLDEST_CAPABILITY = (8, 0)  # supported by Triton and covered by the ahead-of-time check


def choices_file() -> Path:
    """Return the path of the file of measured choices."""
    user_cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = os.environ.get("SASHIMI_CACHE") or f"{user_cache}/sashimi-diffusion"
    return Path(os.path.expanduser(folder), "kernel-choices.json")


def nearest_size(samples: int) -> int:
    """Return the measured size that is nearest to a number of samples by ratio."""
    for measured in SIZES[:-1]:
        # The geometric mean with the next size. torch.compile can guard comparisons.
        if samples <= 2 * measured:
            return measured
    return SIZES[-1]


def choice_key(operation: str, dtype: torch.dtype, size: int) -> str:
    """Return the key of a choice in the file.

    Args:
        operation: name of the operation.
        dtype: a complex dtype has the key of its real counterpart.
        size: a number in ``SIZES``.
    """
    return f"{operation} {torch.finfo(dtype).dtype} {size}"


def load_choices() -> dict[str, dict[str, str]]:
    """Return the backends by device name and ``choice_key``. If the file is damaged, warn and return nothing."""
    path = choices_file()
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return _ignored(path, "no regular file")
        choices = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        return _ignored(path, error)
    checksum = choices.pop(_CHECKSUM, None) if isinstance(choices, dict) else None
    if not _is_valid(choices):
        return _ignored(path, "not a table of measured backends")
    if checksum not in (None, _checksum(choices)):
        return _ignored(path, "its checksum is wrong")
    return choices


def save_choices(device_name: str, measured: dict[str, str]) -> Path:
    """Add choices to the file, or replace older ones, and return the path. The file is replaced atomically.

    Args:
        device_name: result of ``torch.cuda.get_device_name``.
        measured: faster backend by ``choice_key``.

    Raises:
        OSError: the file cannot be written.
    """
    path, choices = choices_file(), load_choices()
    choices[device_name] = {**choices.get(device_name, {}), **measured}
    path.parent.mkdir(parents=True, exist_ok=True)
    _replace(path, {**choices, _CHECKSUM: _checksum(choices)})
    return path


def load_shipped_choices(device_name: str, path: Path = SHIPPED_CHOICES) -> dict[str, str]:
    """Return the backends by ``choice_key`` that the package ships for a device, empty if there are none.

    Args:
        device_name: result of ``torch.cuda.get_device_name``. The entry with the longest matching beginning is used.
        path: the file, in the format of the package's own one.
    """
    entries = json.loads(path.read_text())
    cards = [card for card in entries if device_name.startswith(card)]
    return entries[max(cards, key=len)]["choices"] if cards else {}


def save_shipped_choices(device_name: str, measured: dict[str, str], commit: str, path: Path = SHIPPED_CHOICES) -> None:
    """Replace the entry of a card in a file of the format of ``measured_choices.json``, atomically.

    Args:
        device_name: result of ``torch.cuda.get_device_name``.
        measured: faster backend by ``choice_key``.
        commit: the commit of the measured kernels.
        path: the file; it is created if it does not exist.

    Raises:
        OSError: the file cannot be written.
    """
    import triton

    entries = json.loads(path.read_text()) if path.exists() else {}
    card = next((card for card in SHIPPED_CARDS if device_name.startswith(card)), device_name)
    entries[card] = {
        "date": datetime.date.today().isoformat(),
        "commit": commit,
        "versions": f"torch {torch.__version__}, triton {triton.__version__}, CUDA {torch.version.cuda}",
        "choices": measured,
    }
    _replace(path, entries)


# torch.compile calls the next two functions once and treats their results as constants.
@torch.compiler.assume_constant_result
def measured_choice(device: torch.device, operation: str, dtype: torch.dtype, size: int) -> str | None:
    """Return the fastest backend according to a benchmark on this device, or None without a measurement.

    Args:
        device: a CUDA or ROCm device.
        operation: name of the operation.
        dtype: working precision of the operation, real or complex.
        size: a number in ``SIZES``.
    """
    return _measured_choice(device, operation, dtype, size)


@torch.compiler.assume_constant_result
def gpu_obstacle(device: torch.device) -> str | None:
    """Return why Triton cannot run on this CUDA or ROCm device, or None if it can."""
    return _gpu_obstacle(device)


@functools.cache
def _choices() -> dict[str, dict[str, str]]:
    return load_choices()


@functools.cache
def _measured_choice(device: torch.device, operation: str, dtype: torch.dtype, size: int) -> str | None:
    name, key = torch.cuda.get_device_name(device), choice_key(operation, dtype, size)
    return _choices().get(name, {}).get(key) or load_shipped_choices(name, SHIPPED_CHOICES).get(key)


@functools.cache
def _gpu_obstacle(device: torch.device) -> str | None:
    import triton

    if tuple(map(int, triton.__version__.split(".")[:2])) < _OLDEST_TRITON:
        return f"triton {triton.__version__} lacks matrix products that these kernels use: install triton>=3.6"
    major, minor = torch.cuda.get_device_capability(device)
    if torch.version.hip is not None or (major, minor) >= _OLDEST_CAPABILITY:
        return None
    name, oldest = torch.cuda.get_device_name(device), ".".join(map(str, _OLDEST_CAPABILITY))
    return f"{name} has compute capability {major}.{minor} and Triton needs {oldest}"


def _replace(path: Path, content: dict) -> None:
    """Write a JSON file atomically, and forget the choices that were read before."""
    handle, temporary = tempfile.mkstemp(prefix=path.name, dir=path.parent)
    try:
        with open(handle, "w") as file:
            json.dump(content, file, indent=2, sort_keys=True)
            file.write("\n")
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    _choices.cache_clear()
    _measured_choice.cache_clear()


def _checksum(choices: dict[str, dict[str, str]]) -> str:
    return hashlib.sha256(json.dumps(choices, sort_keys=True).encode()).hexdigest()


def _is_valid(choices: object) -> bool:
    return isinstance(choices, dict) and all(
        isinstance(measured, dict) and all(backend in CANDIDATES for backend in measured.values())
        for measured in choices.values()
    )


def _ignored(path: Path, reason: object) -> dict[str, dict[str, str]]:
    warnings.warn(
        f"{path} is ignored ({reason}): python -m sashimi_kernels.benchmark --device cuda creates it again",
        stacklevel=2,
    )
    return {}
