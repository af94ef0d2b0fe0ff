"""Check and write the files that a user names in options. Links are followed, and no input is replaced."""

import os
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.files import write_file, writing
from sashimi_diffusion.paths import is_folder, kind, nearest_existing, status
from sashimi_diffusion.terminal import printable

_NOT_WRITABLE = (stat.S_IFDIR, stat.S_IFBLK, stat.S_IFSOCK)  # a block device is a whole disk


def check_output_files(
    outputs: Mapping[str, Path | None], inputs: Iterable[Path] = (), new_folders: bool = False
) -> None:
    """Check the output files of a command before it starts to work.

    Args:
        outputs: option -> the file, or None where the option is not given.
        inputs: files that the command reads.
        new_folders: allow files in folders that do not exist; :func:`write_output_file` creates them.

    Raises:
        UserError: two options name the same file, an option names an input, a folder, a disk or a socket, or its folder
            does not exist or cannot be written.
    """
    named: dict[tuple[int, int] | Path, str] = {_identity(path): f"the input {printable(path)}" for path in inputs}
    for option, path in outputs.items():
        if path is None:
            continue
        found = status(path)
        if found is not None and stat.S_IFMT(found.st_mode) in _NOT_WRITABLE:
            raise UserError(f"{option} {printable(path)} is {kind(found)}: expected the name of a file")
        target = Path(os.path.realpath(path))
        folder = nearest_existing(target.parent) if new_folders else target.parent
        if not is_folder(folder):
            problem = "does not exist" if status(folder) is None else "is not a folder"
            raise UserError(f"{option} {printable(path)}: {printable(folder)} {problem}")
        replaced = found is None or stat.S_ISREG(found.st_mode)  # as a whole, by a new file in its folder
        if (replaced and not os.access(folder, os.W_OK | os.X_OK)) or (found and not os.access(path, os.W_OK)):
            raise UserError(f"{option} {printable(path)} cannot be written: permission denied")
        if not replaced:
            continue  # any number of results may go to a device such as /dev/null
        identity = _identity(path)
        if identity in named:
            raise UserError(f"{option} {printable(path)} is also {named[identity]}: choose another file")
        named[identity] = option


def write_output_file(path: Path, content: bytes) -> None:
    """Write a file that the user named; create its folder if it does not exist.

    A regular file is replaced in one operation, at the end of a link; what is no regular file (a device, a FIFO) is
    opened and written.

    Raises:
        UserError: the file cannot be written.
    """
    with writing(printable(path)):
        found = status(path)
        if found is None or stat.S_ISREG(found.st_mode):
            target = Path(os.path.realpath(path))
            target.parent.mkdir(parents=True, exist_ok=True)
            write_file(target, content)
        else:
            with open(path, "wb") as file:
                file.write(content)


def _identity(path: Path) -> tuple[int, int] | Path:
    """Return device and inode of a file that exists, otherwise its path without links."""
    found = status(path)
    return (found.st_dev, found.st_ino) if found is not None else Path(os.path.realpath(path))
