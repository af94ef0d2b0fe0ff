"""Tests of contact sheets and spectrogram images."""

import numpy as np
import pytest
from PIL import Image

from sashimi_diffusion.data import pictures
from sashimi_diffusion.data.pictures import contact_sheet, spectrogram_image
from sashimi_diffusion.errors import UserError

RATE = 16000


def tone(frequency: float, seconds: float = 0.25, level: float = 0.5) -> np.ndarray:
    return level * np.sin(2 * np.pi * frequency * np.arange(int(RATE * seconds)) / RATE)


def spectrogram_of_first_tile(sheet: Image.Image) -> np.ndarray:
    left = pictures._MARGIN + pictures._LEFT
    top = pictures._MARGIN + pictures._TOP + pictures._WAVE_HEIGHT + pictures._GAP
    box = (left, top, left + pictures._TILE_WIDTH, top + pictures._SPECTROGRAM_HEIGHT)
    return np.asarray(sheet.crop(box).convert("L"), dtype=float)  # (rows, columns)


def waveform_of_first_tile(sheet: Image.Image) -> np.ndarray:
    left, top = pictures._MARGIN + pictures._LEFT, pictures._MARGIN + pictures._TOP
    return np.asarray(sheet.crop((left, top, left + pictures._TILE_WIDTH, top + pictures._WAVE_HEIGHT)), dtype=int)


@pytest.mark.parametrize("frequency", [1000, 4000, 7000])
def test_a_tone_is_bright_at_its_frequency(frequency: int):
    picture = spectrogram_of_first_tile(contact_sheet([tone(frequency)], RATE))
    brightest = picture[:, 50:-50].mean(axis=1).argmax()
    expected = pictures._SPECTROGRAM_HEIGHT * (1 - frequency / (RATE / 2))
    assert abs(brightest + 0.5 - expected) <= 1.5


@pytest.mark.parametrize("frequency", [1000, 7000])
def test_a_single_spectrogram_has_the_given_size_and_shows_the_tone(frequency: int):
    picture = np.asarray(spectrogram_image(tone(frequency), RATE, 150, 80).convert("L"), dtype=float)
    assert picture.shape == (80, 150)
    assert abs(picture.mean(axis=1).argmax() + 0.5 - 80 * (1 - frequency / (RATE / 2))) <= 1.5
    assert picture.max() > 200
    with pytest.raises(UserError, match="not empty"):
        spectrogram_image(np.zeros(0), RATE, 150, 80)


def test_an_event_is_bright_at_its_time():
    clip = np.zeros(RATE)
    clip[RATE // 4 : RATE // 4 + 200] = tone(2000, 200 / RATE)
    columns = spectrogram_of_first_tile(contact_sheet([clip], RATE)).mean(axis=0)
    assert abs(columns.argmax() / len(columns) - 0.25) < 0.03


def test_a_shorter_clip_ends_earlier():
    picture = spectrogram_of_first_tile(contact_sheet([tone(2000, 0.25), tone(2000, 0.5)], RATE))
    assert (picture[:20, 160:] > 250).all()  # background
    assert (picture[:20, :140] < 250).all()


def test_quiet_clips_look_quiet_but_show_their_spectrum():
    loud, quiet = tone(2000), tone(2000, level=0.005)
    together = contact_sheet([quiet, loud], RATE)
    alone = contact_sheet([loud], RATE)
    inked = (waveform_of_first_tile(together).min(axis=2) < 200).sum()
    assert inked < 0.2 * (waveform_of_first_tile(alone).min(axis=2) < 200).sum()
    assert spectrogram_of_first_tile(together).max() > 200


def test_samples_out_of_range_are_red():
    def red(sheet: Image.Image) -> int:
        pixels = waveform_of_first_tile(sheet)
        return int((pixels[..., 0] - pixels[..., 2] > 80).sum())

    assert red(contact_sheet([tone(100, level=0.9)], RATE)) == 0
    assert red(contact_sheet([tone(100, level=1.5)], RATE)) > 20


def test_silence_and_non_finite_samples_can_be_drawn():
    broken = tone(2000)
    broken[10:20] = np.nan
    sheet = contact_sheet([np.zeros(4000), broken, np.full(4000, np.inf), np.zeros(1)], RATE)
    assert spectrogram_of_first_tile(sheet).max() < 30


@pytest.mark.parametrize(("clips", "columns", "shape"), [(1, None, (1, 1)), (8, None, (3, 3)), (5, 2, (2, 3))])
def test_the_sheet_fits_all_tiles(clips: int, columns: int | None, shape: tuple[int, int]):
    one = contact_sheet([tone(500)], RATE).size
    sheet = contact_sheet([tone(500)] * clips, RATE, columns=columns)
    margins = 2 * pictures._MARGIN
    assert sheet.size == tuple(margins + count * (size - margins) for count, size in zip(shape, one, strict=True))


def test_other_rates_and_float32_give_a_picture_too(tmp_path):
    sheet = contact_sheet([np.float32(tone(300))], 8000, titles=["a title"])
    sheet.save(tmp_path / "sheet.png")
    assert Image.open(tmp_path / "sheet.png").size == sheet.size


def test_titles_are_drawn():
    assert contact_sheet([tone(300)], RATE, titles=["one"]) != contact_sheet([tone(300)], RATE, titles=["two"])


def test_marked_parts_have_a_bar_as_long_as_they_are():
    sheet = contact_sheet([tone(300), tone(300)], RATE, columns=1, marked=[[(0.05, 0.1), (0.2, 0.25)], []])
    orange = (np.asarray(sheet) == [0xF0, 0x8C, 0x1A]).all(axis=2)
    rows, columns = np.flatnonzero(orange.any(axis=1)), np.flatnonzero(orange.any(axis=0))
    left, top = pictures._MARGIN + pictures._LEFT, pictures._MARGIN + pictures._TOP + pictures._WAVE_HEIGHT
    assert top <= rows.min() <= rows.max() < top + pictures._GAP  # of the first tile, between its pictures
    assert set(columns) == {*range(left + 60, left + 120), *range(left + 240, left + 300)}


def test_a_wider_sheet_has_a_longer_time_axis():
    first, wide = contact_sheet([tone(300)], RATE), contact_sheet([tone(300)], RATE, width=700)
    assert wide.size == (first.size[0] + 400, first.size[1])
    pixels = np.asarray(wide.convert("L"), dtype=float)
    bright = np.flatnonzero(pixels[-40:-28].max(axis=0) > 150)
    assert np.isin(np.arange(pictures._MARGIN + pictures._LEFT + 20, wide.size[0] - 60), bright).all()


def test_the_colors_increase_evenly_in_lightness():
    linear = (pictures._COLORS / 255.0) ** 2.2
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    lightness = 116 * np.cbrt(luminance)
    assert (np.diff(lightness[20:]) > -0.1).all()
    assert abs(lightness[200] - lightness[150] - (lightness[150] - lightness[100])) < 4


@pytest.mark.parametrize(
    ("clips", "titles", "complaint"),
    [
        ([], None, "at least one"),
        ([np.zeros((1, 10))], None, "shape"),
        ([np.zeros(0)], None, "not empty"),
        ([np.zeros(10)], ["a", "b"], "2 titles for 1 clips"),
    ],
)
def test_wrong_input(clips, titles, complaint: str):
    with pytest.raises(UserError, match=complaint):
        contact_sheet(clips, RATE, titles)
