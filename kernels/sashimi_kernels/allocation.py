"""Memory allocation of large tensors by the C library."""

import ctypes
import platform

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt, in malloc.h
_LARGEST_MMAP_THRESHOLD = 2**25
_NEVER = 2**31 - 1


def keep_freed_memory() -> None:
    """Make the process keep and reuse the memory of freed tensors of up to 32 MiB. It has an effect with glibc only.

    By default glibc returns large blocks to the operating system, which clears every page before it allocates the page
    again. This takes up to a fifth of the time of a denoiser's forward pass. The setting affects the whole process, so
    only commands call this function, and an import never does.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    library = ctypes.CDLL(None)
    library.mallopt(_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
    library.mallopt(_TRIM_THRESHOLD, _NEVER)
