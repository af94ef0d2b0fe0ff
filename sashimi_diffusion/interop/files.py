"""Read the tensors of an official checkpoint file: no code in it is run, and a damaged file is named in one line."""

import pickle
import warnings
import zipfile
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.paths import reason, require_file
from sashimi_diffusion.terminal import one_line, printable

_LFS_POINTER = b"version https://git-lfs"
_ARCHIVE = b"PK\x03\x04"  # the beginning of what torch.save writes
_SNIFFED = 256
_AUDIO = (b"RIFF", b"fLaC", b"OggS", b"ID3", b"FORM")
_TEXT = {*b"\t\n\r", *range(32, 127), *range(128, 256)} - {0x80}  # 0x80 begins a pickle
_BLOCK = 1 << 20
_MAX_UNPACKED = 4  # size of the unpacked content of an archive, relative to the file
_MAX_EXPANDED = 16  # size of all tensors, relative to the file; views of one tensor may overlap
# Parts of the messages with which torch refuses a pickle because of what it names, not because of damage.
_REFUSALS = (
    "unsupported global",
    "call reduce for unrecognized",
    "only create new object",
    "only build tensor",
    "must be imported",
)


class RefusedPickle(UserError):
    """A pickle that contains more than tensors and could run code when loaded."""


def read_state_dict(
    path: str | Path, entries: tuple[str, ...] = ("model_state_dict", "state_dict")
) -> dict[str, Tensor]:
    """Return the state dict of the network in a file of the official code, on the CPU.

    Args:
        path: a pickle (.pkl, .pt, .ckpt) of a state dict, or of a dict with one of ``entries``; or a .safetensors file.
        entries: entries of a checkpoint that may contain the state dict.

    Raises:
        UserError: the file does not exist, cannot be read, could run code, or contains no state dict of ordinary
            tensors.
    """
    path = Path(path)
    content = _read_content(path)
    for entry in entries:
        if isinstance(content, dict) and isinstance(content.get(entry), dict):
            content = content[entry]
    if not isinstance(content, dict) or not content or not all(map(_is_entry, content.items())):
        raise UserError(
            f"{printable(path)} contains no state dict: expected a dict of tensors by name, or an entry "
            f"{' or '.join(entries)} with one"
        )
    check_tensors(path, content)
    return dict(content)


def _is_entry(item: tuple[object, object]) -> bool:
    return isinstance(item[0], str) and isinstance(item[1], Tensor)


def _read_content(path: Path) -> object:
    """Return the content of a checkpoint file, on the CPU.

    Args:
        path: a pickle that torch.save has written, or a .safetensors file.

    Raises:
        RefusedPickle: the file names classes or functions other than those of tensors.
        UserError: the file does not exist, is no regular file, or torch cannot read it.
    """
    _require_checkpoint(path)
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except Exception as error:
            raise _unreadable(path, error) from error
    archive = is_archive(path)
    if archive:
        _check_archive(path)
    try:
        return load_pickle(path, archive)
    except pickle.UnpicklingError as error:
        if any(text in str(error).lower() for text in _REFUSALS):
            message = f"{printable(path)} is refused: it contains more than tensors and could run code"
            raise RefusedPickle(message) from error
        raise _unreadable(path, error) from error
    except Exception as error:  # a damaged file can raise almost every exception
        raise _unreadable(path, error) from error


def check_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Check that tensors of a file are ordinary ones, and that together they are not much larger than the file.

    Raises:
        UserError: a tensor has no values on the CPU, is sparse, quantized or of another class, or the sizes of all
            tensors exceed the file many times, because of strides of 0.
    """
    for name, tensor in tensors.items():
        problem = _unusual(tensor)
        if problem is not None:
            raise UserError(f"{printable(path)} cannot be converted: the tensor {printable(name)[:200]} {problem}")
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if size > _MAX_EXPANDED * path.stat().st_size + _BLOCK:
        raise UserError(
            f"{printable(path)} cannot be converted: its tensors have {size:,} bytes, the file {path.stat().st_size:,}"
        )


def _unusual(tensor: Tensor) -> str | None:
    """Return what makes a tensor unfit for a network, in words."""
    if type(tensor) not in (Tensor, nn.Parameter):
        return f"is of the class {type(tensor).__name__}"
    if tensor.is_nested or tensor.layout != torch.strided:
        return "is sparse or nested: expected a dense tensor"
    if tensor.is_quantized:
        return "is quantized: expected floating-point numbers"
    if tensor.device.type != "cpu":
        return f"has no values (device {tensor.device.type})"
    return None


def _require_checkpoint(path: Path) -> None:
    require_file(path, "an official checkpoint (.pkl, .pt or .safetensors)")
    if _beginning(path, len(_LFS_POINTER)) == _LFS_POINTER:
        raise UserError(
            f"{printable(path)} is a Git LFS pointer, not the checkpoint itself: fetch it with `git lfs pull`"
        )


def _beginning(path: Path, size: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(size)
    except OSError as error:
        raise UserError(f"cannot read {printable(path)}: {reason(error)}") from error


def load_pickle(path: Path, archive: bool) -> object:
    """Return what torch loads from a pickle without running code; ``archive`` as :func:`is_archive`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about unusual content, which is refused or not used
        # Mapped, a storage cannot extend beyond the file, whatever its entry in the pickle says.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=archive)


def is_archive(path: Path) -> bool:
    """Return whether a file begins like an archive of torch.save; older files do not."""
    return _beginning(path, len(_ARCHIVE)) == _ARCHIVE


def _check_archive(path: Path) -> None:
    """Check the size and the checksums of the parts of an archive; torch does not.

    Raises:
        UserError: a checksum is wrong, or the parts unpack to more than the file can contain.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
            unpacked = sum(part.file_size for part in parts)
            if unpacked > _MAX_UNPACKED * path.stat().st_size + _BLOCK:
                raise zipfile.BadZipFile(f"its parts would unpack to {unpacked:,} bytes")
            for part in parts:
                if part.CRC:  # torch can save without checksums; then they are 0
                    with archive.open(part) as file:
                        while file.read(_BLOCK):
                            pass
    except Exception as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> UserError:
    """Return the error for a file that raised ``error`` when it was read."""
    return UserError(
        f"{printable(path)} is no checkpoint that torch can read ({_likely_cause(path, error)}): expected an official "
        "checkpoint (.pkl, .pt or .safetensors); if it was one, it is damaged: download it again"
    )


def _likely_cause(path: Path, error: Exception) -> str:
    """Return why a file cannot be read: what it is instead of a checkpoint, or the words of the error."""
    beginning = _beginning(path, _SNIFFED)
    if not beginning:
        return "it is empty"
    if beginning.startswith(_AUDIO):
        return "it is an audio file"
    if all(byte in _TEXT for byte in beginning):
        return "it is a text file"
    if isinstance(error, zipfile.BadZipFile):
        return f"it is damaged or cut short: {one_line(error, 200)}"
    text = str(error).partition("WeightsUnpickler error:")[2] or str(error)  # torch adds advice for trusted files
    words = one_line(text.strip().partition("\n")[0], 200)
    return words if " " in words else "its content is no pickle of tensors"
