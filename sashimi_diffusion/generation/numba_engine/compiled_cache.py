"""The machine code of compiled functions, kept in the folder of all caches.

numba's own cache writes into the package, where the files survive an uninstallation and hide a later installation; and
it runs machine code from damaged files. The files here end with a checksum.
"""

import hashlib
import os
import pickle
import sys
from pathlib import Path
from typing import Any

import llvmlite
import numba
from numba.core.caching import NullCache
from numba.core.compiler import CompileResult
from numba.core.serialize import dumps

from sashimi_diffusion.cache_files import (
    DamagedCacheError,
    default_cache_dir,
    read_cache_file,
    say_damaged,
    write_cache_file,
)
from sashimi_diffusion.files import remove_abandoned
from sashimi_diffusion.paths import reason
from sashimi_diffusion.terminal import printable, say


def kept_on_disk(function: Any) -> Any:
    """Make numba keep the machine code of a function on disk, and load it in later processes.

    Args:
        function: result of ``numba.njit``, not compiled yet.

    Returns:
        ``function``.
    """
    function._cache = _CompiledCache(function.py_func.__qualname__)
    return function


class _CompiledCache(NullCache):
    """The cache of one function: a file for each signature, with the interface that numba calls.

    Args:
        function: name of the function.
    """

    def __init__(self, function: str) -> None:
        self._function = function

    @property
    def cache_path(self) -> str:
        """The folder of the files; if the user has set numba's variable ``NUMBA_CACHE_DIR``, it is that folder."""
        return os.environ.get("NUMBA_CACHE_DIR") or str(default_cache_dir() / "compiled")

    def load_overload(self, signature: Any, target: Any) -> Any:
        """Return the compiled function for a signature; None if there is none or, with a note, if it is damaged."""
        target.refresh()
        path = self._path(signature, target.codegen())
        try:
            content = read_cache_file(path)
        except DamagedCacheError as error:
            say_damaged(path, error, "the functions are compiled again")
            return None
        return None if content is None else CompileResult._rebuild(target, *pickle.loads(content))

    def save_overload(self, signature: Any, compiled: Any) -> None:
        """Keep a compiled function; print a note if the folder cannot be written."""
        path = self._path(signature, compiled.codegen)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            remove_abandoned(path.parent)
            write_cache_file(path, dumps(compiled._reduce()))
        except OSError as error:
            say(
                f"note: cannot keep compiled functions in {printable(path.parent)} ({reason(error)}): every process "
                "compiles them again; set SASHIMI_CACHE to a folder that can be written",
                sys.stderr,
            )

    def _path(self, signature: Any, codegen: Any) -> Path:
        """Return the file for a signature and a processor; the versions of everything that compiles are in its name."""
        versions = (sys.version, numba.__version__, llvmlite.__version__, _SOURCES)
        parts = [*versions, self._function, *signature, *codegen.magic_tuple()]
        key = hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:32]
        return Path(self.cache_path) / f"{key}.compiled"


def _sources() -> str:
    """Return a hash of all files of this package."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


_SOURCES = _sources()
