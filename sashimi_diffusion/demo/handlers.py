"""What the buttons of the page do: each handler yields the parts of the page that change, as HTML."""

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from sashimi_diffusion.demo import cards
from sashimi_diffusion.demo.catalog import Catalog, Entry
from sashimi_diffusion.demo.jobs import Jobs, Stopped, message_of, reporting
from sashimi_diffusion.demo.live import LiveSounds
from sashimi_diffusion.demo.sampling import (
    Clip,
    Continuation,
    Drawing,
    continue_recording,
    continued_clip,
    draw,
    read_opening,
    total_seconds,
)

CANCELED = cards.status("Canceled.")
LIVE_ADDRESS = "live/{name}.wav"
"""Address of a live sound, relative to the page."""

Result = tuple[str, str | None]
"""The status line, and the results; None leaves those of before."""


@dataclass(frozen=True)
class Handlers:
    """The handlers, which share the pipelines and the work that is under way.

    Args:
        catalog: the pipelines.
        jobs: the stop signals of the sessions.
        sounds: the sounds that are played while they are generated.
    """

    catalog: Catalog
    jobs: Jobs
    sounds: LiveSounds

    def draw(self, session: str, drawing: Drawing) -> Iterator[Result]:
        """Draw clips."""
        with self._job(session) as stop:
            yield from _reported(self._drawn(drawing, stop), others=1)

    def compare(self, session: str, drawings: tuple[Drawing, Drawing]) -> Iterator[tuple[str, str | None, str | None]]:
        """Draw a clip with each of two settings and the same seed."""
        with self._job(session) as stop:
            yield cards.status("Drawing the first of two clips …"), "", ""
            finished = None
            for text, finished in _reported(self._drawn(drawings[0], stop, "first clip, "), others=1):
                yield text, finished, None
            if finished is not None:  # otherwise the status line says why there is no first clip
                for text, shown in _reported(self._drawn(drawings[1], stop, "second clip, "), others=1):
                    yield text, None, shown

    def proceed(self, session: str, continuation: Continuation) -> Iterator[tuple[str, str | None, str | None]]:
        """Continue a recording; yields the status line, the live player and the result."""
        with self._job(session) as stop:
            yield from _reported(self._continued(continuation, stop), others=2)

    def stop(self, session: str) -> str:
        """Stop the work of a session and return its status line."""
        self.jobs.stop(session)
        return CANCELED

    @contextlib.contextmanager
    def _job(self, session: str) -> Iterator[threading.Event]:
        stop = self.jobs.begin(session)
        try:
            yield stop
        finally:
            stop.set()
            self.jobs.end(session, stop)

    def _drawn(self, drawing: Drawing, stop: threading.Event, which: str = "") -> Iterator[Result]:
        entry = self.catalog[drawing.pipeline]
        yield cards.status(f"Waiting for the pipeline {drawing.pipeline} …"), ""
        started = time.perf_counter()
        clips: list[Clip] = []
        for message in reporting(lambda report: draw(entry, drawing, report), stop):
            if isinstance(message, list):
                clips = message
            else:
                done, total = message
                yield cards.progress(f"{which}step {done} of {total}".capitalize(), done, total), None
        took = time.perf_counter() - started
        seconds = sum(clip.waveform.shape[-1] for clip in clips) / entry.rate
        text = f"Done: {which}{seconds:.2f} seconds of sound in {took:.1f} seconds."
        yield cards.status(text), self._shown(entry, drawing, clips)

    def _shown(self, entry: Entry, drawing: Drawing, clips: list[Clip]) -> str:
        settings = {"Pipeline": drawing.pipeline}
        if entry.classes is not None:
            settings["Label"] = drawing.label or "all in turn"
        if entry.speakers is not None:
            settings["Voice"] = drawing.voice or "all in turn"
        settings["Sampler"] = drawing.sampler or f"as saved ({type(entry.scheduler).__name__})"
        settings["Steps"] = str(drawing.steps)
        if drawing.guidance is not None:
            settings["Guidance"] = f"{drawing.guidance:g}"
        settings["Seed"] = str(drawing.seed)
        return cards.results(clips, settings, drawing.command(self.catalog.device))

    def _continued(
        self, continuation: Continuation, stop: threading.Event
    ) -> Iterator[tuple[str, str | None, str | None]]:
        entry, recording = self.catalog[continuation.pipeline], continuation.recording
        opening = read_opening(entry, recording)
        total = total_seconds(entry, continuation, opening)
        given, length = 0 if opening is None else len(opening), round(total * entry.rate)
        name, sound = self.sounds.begin(entry.rate, length)
        blocks: list[np.ndarray] = []
        done, started = 0, time.perf_counter()
        yield cards.status("Preparing …"), cards.live_player(LIVE_ADDRESS.format(name=name)), ""
        try:
            for block in continue_recording(entry, continuation, opening, stop):
                sound.append(block)
                blocks.append(block)
                done += len(block)
                speed = (done - given) / entry.rate / (time.perf_counter() - started)
                text = f"{done / entry.rate:.1f} of {total:.1f} seconds, {speed:.2f} x real time"
                yield cards.progress(text, done, length), None, None
        finally:
            sound.end()
        clip = continued_clip(entry, continuation, blocks)
        text = f"Done: {total:.2f} seconds of sound in {time.perf_counter() - started:.1f} seconds."
        settings = {
            "Pipeline": continuation.pipeline,
            "Begins with": "nothing" if recording is None else f"{recording.name} ({given / entry.rate:.2f} s)",
            "Length": f"{total:.2f} s",
            "Temperature": f"{continuation.temperature:g}",
            "Top-p": f"{continuation.top_p:g}",
            "Seed": str(continuation.seed),
        }
        note = (
            ""
            if recording is None
            else "run it in the folder of the recording (its download button saves one from the microphone)."
        )
        command = continuation.command(self.catalog.device, total)
        yield cards.status(text), None, cards.results([clip], settings, command, note)


def _reported(parts: Iterator[tuple[Any, ...]], others: int) -> Iterator[Any]:
    """Yield the parts of the page; an error becomes the status line, and the ``others`` parts stay as they are."""
    try:
        yield from parts
    except Stopped:
        yield (CANCELED, *[None] * others)
    except Exception as error:
        yield (cards.status(message_of(error), error=True), *[None] * others)
