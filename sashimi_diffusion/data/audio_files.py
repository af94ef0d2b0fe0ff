"""Find the audio files in a folder: regular files, each once, and everything that stands in the way by name."""

import os
import stat
import warnings
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from sashimi_diffusion.data.audio import EXTENSIONS
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.paths import kind, reason
from sashimi_diffusion.terminal import listed, printable

_Identity = tuple[int, int]  # device and inode
_LISTED = 5  # number of repeated files that the warning lists


def find_audio(root: Path) -> tuple[list[Path], dict[Path, str]]:
    """Find the audio files in a folder and its sub-folders by their endings.

    Hidden files and folders are ignored, and links are followed. A file or folder to which several paths lead is used
    once, on a path without a link if there is one; a warning names the files that are left out.

    Returns:
        The regular files in the order of their paths, and a reason for each other file with such an ending (a FIFO, a
        broken link) and for each sub-folder that cannot be read.

    Raises:
        UserError: there are no audio files.
    """
    paths, unusable = _audio_paths(root)
    found: dict[_Identity, Path] = {}
    repeated: list[Path] = []
    for path in paths:
        try:
            status = path.stat()
        except OSError as error:
            unusable[path] = f"unreadable ({reason(error)})"
            continue
        if not stat.S_ISREG(status.st_mode):
            unusable[path] = f"{kind(status)}, not a regular file"
        elif found.setdefault((status.st_dev, status.st_ino), path) is not path:
            repeated.append(path)
    if not found and not unusable:
        raise UserError(
            f"no audio in {printable(root)}: expected files ending in {', '.join(EXTENSIONS)}, there or in sub-folders"
        )
    if repeated:
        warnings.warn(_about_repeated(repeated, root), stacklevel=3)
    return sorted(found.values(), key=lambda path: path.relative_to(root).as_posix()), unusable


def find_usable_audio(root: Path) -> list[Path]:
    """Return the audio files that :func:`find_audio` finds.

    Raises:
        UserError: there are none, or one of them, or a sub-folder, cannot be used.
    """
    paths, unusable = find_audio(root)
    for path, why in unusable.items():
        raise UserError(f"cannot use {printable(path)}: {why}")
    return paths


def _audio_paths(root: Path) -> tuple[list[Path], dict[Path, str]]:
    """Return all paths with the ending of an audio file, those without links first, and what cannot be read."""
    real: list[Path] = []
    linked: list[Path] = []
    unusable: dict[Path, str] = {}
    visited: set[_Identity] = set()
    folders, links = deque([root]), deque[Path]()  # to visit; links come last, so that paths without links come first
    behind_link = False
    while folders or links:
        behind_link = behind_link or not folders
        folder = (folders or links).popleft()
        try:
            status = folder.stat()
            if (status.st_dev, status.st_ino) in visited:
                continue
            visited.add((status.st_dev, status.st_ino))
            entries = [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
        except OSError as error:
            unusable[folder] = f"unreadable folder ({reason(error)})"
            continue
        for entry in sorted(entries, key=lambda entry: entry.name):
            path = Path(entry)
            try:
                if entry.is_dir():
                    (links if entry.is_symlink() else folders).append(path)
                elif entry.name.lower().endswith(EXTENSIONS):
                    (linked if behind_link or entry.is_symlink() else real).append(path)
            except OSError as error:
                unusable[path] = f"unreadable ({reason(error)})"
    return [*sorted(real), *sorted(linked)], unusable


def _about_repeated(repeated: Sequence[Path], root: Path) -> str:
    names = [path.relative_to(root) for path in repeated]
    return (
        f"{len(repeated)} audio files in {printable(root)} are left out, because other paths lead to the same files: "
        f"{listed(names, _LISTED)}"
    )
