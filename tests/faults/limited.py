"""A child process with little memory and time, for functions that must refuse what is too large."""

import os
import pickle
import resource
import signal
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any


def in_child(function: Callable[[], Any], memory: int = 1 << 30, seconds: int = 60) -> Any:
    """Return the result of a function in a forked process, which may allocate ``memory`` more bytes.

    Raises:
        AssertionError: the function raised an exception, or the process was ended by a signal or for its time.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            import torch

            torch.set_num_threads(1)  # the threads of the parent do not exist here
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            limit = pages * resource.getpagesize() + memory
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
            signal.alarm(seconds)
            result = True, function()
        except BaseException:
            result = False, traceback.format_exc()
        with os.fdopen(writing, "wb") as file:
            file.write(pickle.dumps(result))
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as file:
        content = file.read()
    _, status = os.waitpid(child, 0)
    assert content, f"the process was ended by the signal {os.WTERMSIG(status)}"
    succeeded, result = pickle.loads(content)
    assert succeeded, result
    return result
