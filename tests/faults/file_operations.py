"""Faults at the file operations of a process: it ends before or after one, or the disk is full from one on.

:func:`inject` is called in the process. It replaces Python's functions that open files for writing, create, rename,
remove and synchronize; it counts their calls.
"""

import builtins
import errno
import functools
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import soundfile

CRASHED = 86
"""Exit code of a process that ended at a file operation."""

_RENAMING = ("rename", "replace")
_REMOVING = ("unlink", "remove", "rmdir")
_PATHS = {"save_file": 1, "SoundFile": 1}  # position of the path among the arguments, where it is not 0
_NEEDS_SPACE = ("open", "mkdir", "fsync", "save_file", "SoundFile")


def inject(record: str | None = None, at: int | None = None, when: str = "before") -> None:
    """Count the file operations of this process from now on, and fail at one of them.

    Args:
        record: file to which the operations are appended, one JSON list [name, path] a line.
        at: number of the operation, from 0; None: none fails.
        when: "before" or "after": the process ends there at once, as if it were killed; "full": this operation and all
            later ones that need space fail, as if the disk were full.
    """
    count = 0
    descriptor = None if record is None else os.open(record, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def wrapped(name: str, function: Callable[..., Any], applies: Callable[..., bool]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal count
            if not applies(*arguments, **options):
                return function(*arguments, **options)
            number, count = count, count + 1
            if descriptor is not None:
                what = arguments[_PATHS.get(name, 0)]
                os.write(descriptor, json.dumps([name, str(what)]).encode() + b"\n")
            if at is None or number < at or (number > at and when != "full"):
                return function(*arguments, **options)
            if when == "full":
                if name in _NEEDS_SPACE:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                return function(*arguments, **options)
            try:
                if when == "after":
                    function(*arguments, **options)
            finally:
                os._exit(CRASHED)

        return call

    base = Path.cwd().parent
    for name in (*_RENAMING, *_REMOVING, "mkdir"):
        setattr(os, name, wrapped(name, getattr(os, name), functools.partial(_is_below, base)))
    os.fsync = wrapped("fsync", os.fsync, lambda *_: True)
    opening = wrapped(
        "open", io.open, lambda path, mode="r", *_, **__: _is_below(base, path) and set(mode) & set("wax+")
    )
    builtins.open = io.open = opening  # type: ignore[assignment]
    safetensors.torch.save_file = wrapped("save_file", safetensors.torch.save_file, lambda *_, **__: True)
    soundfile.SoundFile.__init__ = wrapped(  # type: ignore[method-assign]
        "SoundFile",
        soundfile.SoundFile.__init__,
        lambda _, file, mode="r", *__, **___: isinstance(file, (str, Path)) and mode == "w",
    )


def _is_below(base: Path, path: Any, *_: Any, **options: Any) -> bool:
    """Return whether a path is in the folder of the test; one relative to a descriptor is."""
    if isinstance(path, int):
        return False
    return options.get("dir_fd") is not None or Path(os.path.abspath(os.fspath(path))).is_relative_to(base)
