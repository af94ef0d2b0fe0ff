"""Pictures of audio: spectrograms, and contact sheets with the waveform and the spectrogram of every clip."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sashimi_diffusion.errors import UserError

# All sizes are in pixels of the finished picture, which is drawn larger and then reduced to make edges smooth.
_ZOOM = 2
_TILE_WIDTH, _WAVE_HEIGHT, _SPECTROGRAM_HEIGHT = 300, 56, 132
_LEFT, _RIGHT, _TOP, _BOTTOM, _GAP = 30, 8, 22, 18, 5
_MARGIN = 10
_FONT_SIZE, _TITLE_SIZE = 10, 12

_BACKGROUND, _TEXT, _ZERO_LINE, _WAVE, _CLIPPED = "#ffffff", "#30343b", "#c9cdd4", "#3b5b92", "#d1342f"
_MARK = "#f08c1a"
_FLOOR_DB = -80.0
_SILENCE = 1e-5  # a spectrogram of smaller magnitudes is drawn dark instead of showing rounding noise
_WINDOW_SECONDS = 0.025


def contact_sheet(
    waveforms: Sequence[np.ndarray],
    sample_rate: int,
    titles: Sequence[str] | None = None,
    columns: int | None = None,
    marked: Sequence[Sequence[tuple[float, float]]] | None = None,
    width: int = _TILE_WIDTH,
) -> Image.Image:
    """Draw each clip as a tile: its waveform, and its spectrogram with the same time axis.

    All tiles have the time axis of the longest clip. All waveforms have the scale of the highest peak (at least 0.1),
    so that their loudness can be compared. Samples outside [-1, 1] are red. The range of each spectrogram is 80 dB from
    its largest magnitude, so that quiet clips are visible too. Non-finite samples are drawn as zero and reported in the
    title.

    Args:
        waveforms: real arrays, shape (length,) each; lengths may differ.
        sample_rate: in Hz.
        titles: one for each clip; default: their numbers from 0.
        columns: tiles in a row; default: the number that makes the sheet about square, up to 5.
        marked: for each clip the parts, as (start, end) in seconds, under whose waveform there is an orange bar.
        width: pixels of the time axis of a tile.

    Returns:
        An RGB image.

    Raises:
        UserError: there are no clips, a clip is empty, or the number of titles is not the number of clips.
    """
    clips, names = _checked(waveforms, titles)
    columns = min(columns or min(5, math.ceil(math.sqrt(len(clips)))), len(clips))
    rows = math.ceil(len(clips) / columns)
    tile_width = _LEFT + width + _RIGHT
    height = _TOP + _WAVE_HEIGHT + _GAP + _SPECTROGRAM_HEIGHT + _BOTTOM

    size = ((2 * _MARGIN + columns * tile_width) * _ZOOM, (2 * _MARGIN + rows * height) * _ZOOM)
    sheet = Image.new("RGB", size, _BACKGROUND)
    samples = max(len(clip) for clip in clips)
    peak = max(0.1, *(float(np.abs(clip).max()) for clip in clips))
    for number, (clip, name) in enumerate(zip(clips, names, strict=True)):
        left = _MARGIN + (number % columns) * tile_width + _LEFT
        top = _MARGIN + (number // columns) * height + _TOP
        fraction = len(clip) / samples
        _draw_wave(sheet, clip, left, top, width, fraction, peak)
        for start, end in marked[number] if marked is not None else ():
            _draw_bar(sheet, top, *(left + width * second * sample_rate / samples for second in (start, end)))
        spectrum = _spectrum(clip, sample_rate, width * _ZOOM, _SPECTROGRAM_HEIGHT * _ZOOM)
        size = (max(1, round(width * fraction * _ZOOM)), _SPECTROGRAM_HEIGHT * _ZOOM)
        sheet.paste(_colored(spectrum, size), (left * _ZOOM, (top + _WAVE_HEIGHT + _GAP) * _ZOOM))
        _draw_axes(sheet, left, top, width, samples / sample_rate, sample_rate / 2000)
        _text(sheet, (left, top - 5), name, _TEXT, _TITLE_SIZE, "ls")
    return sheet.reduce(_ZOOM)


def spectrogram_image(waveform: np.ndarray, sample_rate: int, width: int, height: int) -> Image.Image:
    """Draw only the spectrogram of one clip, in the colors of a contact sheet.

    Its range is 80 dB from the largest magnitude, and from 0 Hz at the bottom to half the sample rate at the top.
    Non-finite samples are drawn as zero.

    Args:
        waveform: real, shape (length,).
        sample_rate: in Hz.
        width: width of the picture in pixels.
        height: height of the picture in pixels.

    Returns:
        An RGB image.

    Raises:
        UserError: the waveform is empty or has another shape.
    """
    (clip,), _ = _checked([waveform], None)
    return _colored(_spectrum(clip, sample_rate, width, height), (width, height))


def _checked(waveforms: Sequence[np.ndarray], titles: Sequence[str] | None) -> tuple[list[np.ndarray], list[str]]:
    clips = [np.asarray(waveform, dtype=np.float64) for waveform in waveforms]
    if not clips:
        raise UserError("a contact sheet needs at least one clip")
    wrong = next((clip.shape for clip in clips if clip.ndim != 1 or clip.size == 0), None)
    if wrong is not None:
        raise UserError(f"a picture needs waveforms of shape (length,) that are not empty, got {wrong}")
    names = [str(number) for number in range(len(clips))] if titles is None else list(titles)
    if len(names) != len(clips):
        raise UserError(f"got {len(names)} titles for {len(clips)} clips")
    names = [
        name if np.isfinite(clip).all() else f"{name} (non-finite samples)"
        for name, clip in zip(names, clips, strict=True)
    ]
    return [np.nan_to_num(clip, nan=0.0, posinf=0.0, neginf=0.0) for clip in clips], names


def _spectrum(clip: np.ndarray, sample_rate: int, columns: int, rows: int) -> np.ndarray:
    """Return magnitudes of a short-time Fourier transform, shape (frequencies, frames), with centered frames.

    There are at least ``columns`` frames, if the clip is long enough, and ``rows`` frequencies.
    """
    window = np.hanning(max(16, round(sample_rate * _WINDOW_SECONDS)) + 1)[:-1]
    hop = max(1, min(len(window) // 4, len(clip) // columns))
    before = len(window) // 2
    padded = np.pad(clip, (before, len(window)))
    frames = np.lib.stride_tricks.sliding_window_view(padded, len(window))[: len(clip) : hop]
    bins = 2 ** math.ceil(math.log2(2 * max(len(window), rows)))
    return np.abs(np.fft.rfft(frames * window, bins)).T / window.sum()


def _colored(spectrum: np.ndarray, size: tuple[int, int]) -> Image.Image:
    relative = spectrum / max(_SILENCE, spectrum.max())
    decibels = 20 * np.log10(np.maximum(relative, 10 ** (_FLOOR_DB / 20)))
    level = Image.fromarray((1 - decibels / _FLOOR_DB)[::-1].astype(np.float32))  # highest frequency on top
    resized = np.clip(np.asarray(level.resize(size, Image.Resampling.BICUBIC)), 0, 1)
    return Image.fromarray(_COLORS[np.round(resized * 255).astype(np.uint8)])


def _draw_wave(
    sheet: Image.Image, clip: np.ndarray, left: int, top: int, width: int, fraction: float, peak: float
) -> None:
    draw = ImageDraw.Draw(sheet)
    columns = max(1, round(width * fraction * _ZOOM))
    middle, scale = (top + _WAVE_HEIGHT / 2) * _ZOOM, (_WAVE_HEIGHT / 2 - 1) * _ZOOM / peak
    draw.line([left * _ZOOM, middle, (left + width) * _ZOOM, middle], fill=_ZERO_LINE, width=_ZOOM)
    edges = np.linspace(0, len(clip), columns + 1).astype(int)
    for column, (start, stop) in enumerate(itertools.pairwise(edges)):
        piece = clip[start : max(stop, start + 1)]
        color = _CLIPPED if np.abs(piece).max() > 1 else _WAVE
        x = left * _ZOOM + column
        draw.line([x, middle - piece.max() * scale - 1, x, middle - piece.min() * scale + 1], fill=color)


def _draw_bar(sheet: Image.Image, top: int, left: float, right: float) -> None:
    above = (top + _WAVE_HEIGHT) * _ZOOM
    box = [round(left * _ZOOM), above, round(right * _ZOOM) - 1, above + (_GAP - 1) * _ZOOM - 1]
    ImageDraw.Draw(sheet).rectangle(box, fill=_MARK)


def _draw_axes(sheet: Image.Image, left: int, top: int, width: int, seconds: float, kilohertz: float) -> None:
    draw = ImageDraw.Draw(sheet)
    floor = top + _WAVE_HEIGHT + _GAP + _SPECTROGRAM_HEIGHT
    for tick, label in _ticks(seconds, 5, "s"):
        x = left + width * tick / seconds
        draw.line([x * _ZOOM, floor * _ZOOM, x * _ZOOM, (floor + 3) * _ZOOM], fill=_TEXT, width=_ZOOM)
        _text(sheet, (x, floor + 5), label, _TEXT, _FONT_SIZE, "mt")
    for tick, label in _ticks(kilohertz, 4, "k"):
        y = floor - _SPECTROGRAM_HEIGHT * tick / kilohertz
        draw.line([(left - 3) * _ZOOM, y * _ZOOM, left * _ZOOM - 1, y * _ZOOM], fill=_TEXT, width=_ZOOM)
        _text(sheet, (left - 5, y), label, _TEXT, _FONT_SIZE, "rm")


def _ticks(span: float, about: int, unit: str) -> list[tuple[float, str]]:
    """Return round values from 0 to ``span``, up to ``about`` intervals, and their labels; the last has the unit."""
    magnitude = 10 ** math.floor(math.log10(span / about))
    interval = next(m * magnitude for m in (1, 2, 5, 10) if m * magnitude * about >= span * 0.999)
    ticks = [i * interval for i in range(math.floor(span / interval * 1.0001) + 1)]
    return [(tick, f"{tick:.6g} {unit}" if tick == ticks[-1] else f"{tick:.6g}") for tick in ticks]


def _text(sheet: Image.Image, place: tuple[float, float], text: str, color: str, size: int, anchor: str) -> None:
    font = ImageFont.load_default(size * _ZOOM)
    where = (place[0] * _ZOOM, place[1] * _ZOOM)
    ImageDraw.Draw(sheet).text(where, text, fill=color, font=font, anchor=anchor)


def _color_table() -> np.ndarray:
    """Return 256 colors from black over violet, red and orange to cream, shape (256, 3), uint8.

    The lightness in CIELAB increases by equal amounts, so the scale is perceptually uniform.
    """
    level = np.linspace(0, 1, 256)
    lightness = 3 + 94 * level
    chroma = 66 * np.sin(np.pi * np.clip(level, 0, 1) ** 0.9) + 4
    hue = np.deg2rad(300 + 150 * level)
    return _lab_to_rgb(lightness, chroma * np.cos(hue), chroma * np.sin(hue))


def _lab_to_rgb(lightness: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Convert CIELAB (white point D65) to sRGB, uint8, shape (..., 3); colors outside sRGB are clipped."""
    f = np.stack([(lightness + 16) / 116 + a / 500, (lightness + 16) / 116, (lightness + 16) / 116 - b / 200], axis=-1)
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * [0.95047, 1.0, 1.08883]
    matrix = np.array([[3.2406, -1.5372, -0.4986], [-0.9689, 1.8758, 0.0415], [0.0557, -0.2040, 1.0570]])
    linear = np.clip(xyz @ matrix.T, 0, 1)
    encoded = np.where(linear > 0.0031308, 1.055 * linear ** (1 / 2.4) - 0.055, 12.92 * linear)
    return np.round(encoded * 255).astype(np.uint8)


_COLORS = _color_table()
