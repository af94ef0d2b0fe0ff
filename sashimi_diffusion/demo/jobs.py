"""Work that the page waits for: it reports how far it is, and can be stopped by its session."""

import queue
import sys
import threading
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.terminal import one_line, say

T = TypeVar("T")


class Stopped(Exception):
    """The user has canceled the work."""


class Jobs:
    """The stop signals of the work that is under way, by session of the page.

    A session may have several, because work waits in a queue.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: dict[str, list[threading.Event]] = defaultdict(list)

    def begin(self, session: str) -> threading.Event:
        """Return the stop signal of new work."""
        signal = threading.Event()
        with self._lock:
            self._running[session].append(signal)
        return signal

    def end(self, session: str, signal: threading.Event) -> None:
        """Forget the stop signal of work that has ended."""
        with self._lock:
            self._running[session].remove(signal)
            if not self._running[session]:
                del self._running[session]

    def stop(self, session: str) -> None:
        """Stop the work of a session."""
        with self._lock:
            for signal in self._running.get(session, ()):
                signal.set()

    def stop_all(self) -> None:
        """Stop the work of all sessions."""
        with self._lock:
            for signals in self._running.values():
                for signal in signals:
                    signal.set()


def reporting(work: Callable[[Callable[[int, int], None]], T], stop: threading.Event) -> Iterator[tuple[int, int] | T]:
    """Run ``work`` in a thread; yield its reports (done, total), and at the end its result.

    Args:
        work: function of the function ``report(done, total)``, which raises :class:`Stopped` if ``stop`` is set.
        stop: the signal; it is set if the caller leaves the iterator before its end.
    """
    messages: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()

    def report(done: int, total: int) -> None:
        if stop.is_set():
            raise Stopped
        messages.put(("report", (done, total)))

    def run() -> None:
        try:
            messages.put(("result", work(report)))
        except BaseException as error:  # raised again in the thread that waits
            messages.put(("error", error))

    thread = threading.Thread(target=run, name="sampling", daemon=True)
    thread.start()
    kind = "report"
    try:
        while kind == "report":
            kind, content = messages.get()
            if kind == "error":
                raise content
            yield content
    finally:
        if kind == "report":
            stop.set()
        thread.join()


def message_of(error: Exception) -> str:
    """Return the line that the page shows for an error; the traceback of an unexpected one goes to the terminal."""
    if isinstance(error, UserError):
        return str(error)
    say("".join(traceback.format_exception(error)).rstrip(), sys.stderr)
    return f"unexpected error, see the terminal: {type(error).__name__}: {one_line(error)}"
