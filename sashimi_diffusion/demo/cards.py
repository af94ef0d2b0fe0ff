"""The results of the page as HTML: players, pictures, settings, and the command that repeats them.

Sounds and pictures are part of the HTML, so no file of a result is left on the disk.
"""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

from sashimi_diffusion.data.pictures import contact_sheet
from sashimi_diffusion.demo.sampling import Clip

_SILENCE_DB = -60.0


def status(text: str, error: bool = False) -> str:
    """Return a line about the work that is under way or has ended."""
    return f'<p class="status{" error" if error else ""}">{escape(text)}</p>'


def progress(text: str, done: float, total: float) -> str:
    """Return a line with a progress bar."""
    bar = f'<progress max="{total:g}" value="{done:g}" aria-label="Progress"></progress>'
    return f'<p class="status">{escape(text)} {bar}</p>'


def results(clips: Sequence[Clip], settings: Mapping[str, object], command: str, note: str = "") -> str:
    """Return the clips of one call with their common settings.

    Args:
        clips: the clips.
        settings: name -> value, to be shown.
        command: the command that generates the same clips.
        note: a sentence about the command.
    """
    cards = "".join(map(_card, clips))
    rows = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(str(value))}</dd></div>" for name, value in settings.items()
    )
    return (
        f'<div class="clips">{cards}</div>'
        f'<dl class="settings" aria-label="Settings">{rows}</dl>'
        f'<p class="repeat">This command writes the same sound to wav files: {escape(note)}</p>'
        f'<pre class="command" tabindex="0" aria-label="Command">{_breakable(command)}</pre>'
    )


def live_player(address: str) -> str:
    """Return a player of a sound that is being generated."""
    return (
        '<div class="clips live"><figure class="clip"><figcaption>Live, while it is generated</figcaption>'
        f'<audio controls autoplay aria-label="Live sound" src="{escape(address)}"></audio></figure></div>'
    )


def describe(clip: Clip) -> str:
    """Return the text of a picture for those who cannot see it: length, level, and when there is sound."""
    mono = clip.waveform.mean(axis=0)
    seconds = len(mono) / clip.rate
    peak = float(np.abs(mono).max())
    if peak < 10 ** (_SILENCE_DB / 20):
        return f"Waveform and spectrogram of {clip.title}: {seconds:.2f} seconds, silent."
    loud = np.flatnonzero(np.abs(mono) > peak / 10)
    spectrum = np.abs(np.fft.rfft(mono))
    strongest = float(np.argmax(spectrum[1:]) + 1) / seconds if len(spectrum) > 1 else 0.0
    return (
        f"Waveform and spectrogram of {clip.title}: {seconds:.2f} seconds, peak {20 * math.log10(peak):.0f} dB, "
        f"sound from {loud[0] / clip.rate:.2f} to {loud[-1] / clip.rate:.2f} seconds, strongest at {strongest:.0f} Hz."
    )


def _card(clip: Clip) -> str:
    picture = io.BytesIO()
    contact_sheet([clip.waveform.mean(axis=0)], clip.rate, [""]).save(picture, "PNG")
    sound, title = _data("audio/wav", clip.wav), escape(clip.title)
    return (
        f'<figure class="clip"><figcaption>{title}</figcaption>'
        f'<audio controls preload="auto" aria-label="{title}" src="{sound}"></audio>'
        f'<img src="{_data("image/png", picture.getvalue())}" alt="{escape(describe(clip))}"></figure>'
    )


def _breakable(command: str) -> str:
    """Return a command whose lines are broken between options, not inside of them."""
    first, *options = command.split(" --")
    return " ".join(f"<span>{escape(part)}</span>" for part in [first, *(f"--{option}" for option in options)])


def _data(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
