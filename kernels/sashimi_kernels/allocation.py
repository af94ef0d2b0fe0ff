"""How the C library hands out the memory of large tensors on a CPU."""

import ctypes
import platform

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt, in malloc.h
_LARGEST_MMAP_THRESHOLD = 2**25
_NEVER = 2**31 - 1


def keep_freed_memory() -> None:
    """Make this process keep the memory of freed tensors of up to 32 MiB and use it again; for glibc, else nothing.

    glibc gives large blocks back to the operating system, which clears every page before it hands it out anew: up
    to a fifth of a denoiser's forward pass. It is a setting of the whole process, so commands make it and
    importing never does.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    library = ctypes.CDLL(None)
    library.mallopt(_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
    library.mallopt(_TRIM_THRESHOLD, _NEVER)
