"""Tests of what the page of ``sashimi-demo`` computes, without a browser and without gradio."""

import asyncio
import base64
import re
import shlex
import threading
from collections.abc import Iterator
from html import unescape
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from sashimi_diffusion.commands import sample
from sashimi_diffusion.demo import cards
from sashimi_diffusion.demo.catalog import Catalog
from sashimi_diffusion.demo.handlers import CANCELED, Handlers
from sashimi_diffusion.demo.jobs import Jobs, Stopped, reporting
from sashimi_diffusion.demo.live import LiveSounds
from sashimi_diffusion.demo.sampling import QUICK_SAMPLER, Clip, Continuation, Drawing, draw, label_text, warm_up
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.pipelines import SashimiPipeline
from sashimi_diffusion.pipelines.labels import KnownLabels
from sashimi_diffusion.schedulers import SCHEDULERS
from sashimi_diffusion.schedulers.compatible import create_few_step_scheduler

DIGITS = Drawing("sashimi-digits", "7", "theo", QUICK_SAMPLER, 2, 2.0, 3, 2)


def sounds(html: str) -> list[bytes]:
    """Return the wav files in the HTML of a result."""
    return [base64.b64decode(data) for data in re.findall(r'src="data:audio/wav;base64,([^"]+)"', html)]


def command(html: str) -> list[str]:
    """Return the words of the command in the HTML of a result, as a shell reads them."""
    text = re.search(r'<pre class="command"[^>]*>(.*)</pre>', html, re.DOTALL)[1]
    return shlex.split(unescape(re.sub(r"<[^>]+>", "", text)))


def assert_the_command_repeats(html: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the command that a result names in ``folder`` and compare its files with the sounds of the page."""
    program, *arguments = command(html)
    assert program == "sashimi-sample"
    monkeypatch.chdir(folder)
    assert sample.main(arguments) == 0
    out = folder / arguments[arguments.index("--out") + 1]
    assert [path.read_bytes() for path in sorted(out.glob("*.wav"))] == sounds(html)


@pytest.mark.parametrize(
    ("label", "voice", "sampler", "count"),
    [("7", "theo", QUICK_SAMPLER, 2), (None, None, None, 3), ("3", None, "ddim", 1)],
)
def test_the_command_repeats_drawn_clips_bit_by_bit(
    handlers: Handlers,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    label: str | None,
    voice: str | None,
    sampler: str | None,
    count: int,
) -> None:
    drawing = Drawing("sashimi-digits", label, voice, sampler, 2, 1.7, 12345, count)
    *_, (text, html) = handlers.draw("session", drawing)
    assert text.startswith('<p class="status">Done: ')
    assert len(sounds(html)) == count
    assert_the_command_repeats(html, tmp_path, monkeypatch)


@pytest.mark.parametrize("label", ["7", "zero", "2"])  # "2" is the index of "-up, down", whose name cannot be given
def test_the_command_repeats_clips_of_a_folder(
    handlers: Handlers, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, label: str
) -> None:
    *_, (_, html) = handlers.draw("session", Drawing(words, label, None, None, 2, -1.0, 0))
    assert command(html)[1:3] == ["--pipeline", words]
    assert_the_command_repeats(html, tmp_path, monkeypatch)


@pytest.mark.parametrize("rate", [None, 8000, 22050])
def test_the_command_repeats_a_continued_recording_bit_by_bit(
    handlers: Handlers, autoregressive: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rate: int | None
) -> None:
    recording = None
    if rate is not None:
        recording = tmp_path / "my start.wav"
        soundfile.write(recording, 0.5 * np.sin(np.arange(rate // 50) / 7), rate)
    *_, (text, _, html) = handlers.proceed("session", Continuation(autoregressive, recording, 0.05, 0.9, 0.8, 5))
    assert "Done: " in text
    assert_the_command_repeats(html, tmp_path, monkeypatch)


def test_a_continued_recording_is_streamed_as_the_file_that_results(
    handlers: Handlers, autoregressive: str, tmp_path: Path
) -> None:
    parts = list(handlers.proceed("session", Continuation(autoregressive, None, 0.35, 1.0, 1.0, 1)))
    name = re.search(r'src="live/([^"]+)\.wav"', parts[0][1])[1]
    assert [text for text, _, _ in parts[1:-1]] == [
        text for text, live, html in parts if live is None and html is None
    ]  # between the player and the result, only the status line changes
    assert len(parts) == 1 + 4 + 1  # blocks of 0.1 s

    async def content() -> bytes:
        return b"".join([piece async for piece in handlers.sounds.find(name).pieces()])

    assert asyncio.run(content()) == sounds(parts[-1][2])[0]


def test_compared_clips_have_the_same_seed_and_their_own_settings(handlers: Handlers, words: str) -> None:
    other = Drawing(words, "7", None, None, 3, 1.5, 3)
    *_, (text, _, second) = parts = list(handlers.compare("session", (DIGITS, other)))
    first = next(html for _, html, _ in parts if html)
    assert "Done: second clip" in text
    assert [command(html)[command(html).index("--seed") + 1] for html in (first, second)] == ["3", "3"]
    assert command(second)[2] == words


def test_steps_are_reported(catalog: Catalog) -> None:
    reports: list[tuple[int, int]] = []
    draw(catalog["sashimi-digits"], DIGITS, lambda *report: reports.append(report))
    assert reports == [(0, 2), (1, 2), (2, 2)]


def test_sampling_stops_at_the_step_after_it_is_canceled(handlers: Handlers) -> None:
    drawing = Drawing("sashimi-digits", None, None, None, 100, 2.0, 0)
    texts = []
    for text, html in handlers.draw("mine", drawing):
        texts.append(text)
        assert not html
        if "step 1 of" in text.lower():
            assert handlers.stop("another session") == CANCELED
            assert handlers.stop("mine") == CANCELED
    assert texts[-1] == CANCELED
    assert len(texts) < 50
    assert [text for text, _ in handlers.draw("mine", DIGITS)][-1].startswith('<p class="status">Done')


def test_a_stream_stops_at_the_block_after_it_is_canceled(handlers: Handlers, autoregressive: str) -> None:
    texts = []
    for text, _, _ in handlers.proceed("mine", Continuation(autoregressive, None, 60.0, 1.0, 1.0, 0)):
        texts.append(text)
        if len(texts) == 3:
            handlers.stop("mine")
    assert texts[-1] == CANCELED
    assert len(texts) < 6


def test_work_ends_if_nobody_waits_for_it() -> None:
    stop, steps = threading.Event(), []

    def work(report) -> None:
        for step in range(10**9):
            steps.append(step)
            report(step, 10**9)

    parts: Iterator = reporting(work, stop)
    next(parts)
    parts.close()
    assert stop.is_set()
    assert threading.active_count() < 50
    assert not any(thread.name == "sampling" for thread in threading.enumerate())
    with pytest.raises(Stopped):
        list(reporting(work, stop))


def test_the_end_of_the_server_stops_all_sessions() -> None:
    jobs = Jobs()
    first, second = jobs.begin("a"), jobs.begin("b")
    jobs.stop_all()
    assert first.is_set()
    assert second.is_set()
    jobs.end("a", first)
    jobs.stop("a")  # nothing is left


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": "eleven"}, "no class &#x27;eleven&#x27;"),
        ({"seed": None}, "the seed is empty: enter a whole number from 0 to 2147483647"),
        ({"seed": -1}, "the seed is -1"),
        ({"count": 9}, "cannot draw 9 clips at once: ask for 1 to 8"),
        ({"steps": 201}, "cannot sample in 201 steps"),
        ({"sampler": "dpm"}, "unknown scheduler &#x27;dpm&#x27;"),
        ({"guidance": 1e9}, "guidance_scale is 1e+09"),
        ({"pipeline": "WORDS", "voice": "theo"}, "this pipeline has no label theo"),
    ],
)
def test_errors_are_one_line_in_the_page(handlers: Handlers, words: str, changes: dict, message: str) -> None:
    settings = {**vars(DIGITS), **changes}
    if settings["pipeline"] == "WORDS":
        settings |= {"pipeline": words, "label": None}
    *_, (text, html) = handlers.draw("session", Drawing(**settings))
    assert text.startswith('<p class="status error">')
    assert message in text
    assert html is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no audio", "cannot use wrong.wav: not audio that soundfile can read"),
        (b"", "cannot use wrong.wav: empty (0 bytes)"),
        (0.5, "the prefix has no sound"),
        (61.0, "wrong.wav is longer than 60 seconds: cut it"),
    ],
)
def test_wrong_recordings_are_named(
    handlers: Handlers, autoregressive: str, tmp_path: Path, content: bytes | float, message: str
) -> None:
    path = tmp_path / "wrong.wav"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        soundfile.write(path, np.zeros(int(content * 8000)), 8000)
    (text, live, html) = list(handlers.proceed("session", Continuation(autoregressive, path, 1, 1, 1, 0)))[-1]
    assert message in unescape(text)
    assert str(tmp_path) not in text
    assert (live, html) == (None, None)


def test_an_unexpected_error_is_a_line_in_the_page_and_a_traceback_on_the_terminal(
    handlers: Handlers, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("a <b>\nproblem")

    monkeypatch.setattr("sashimi_diffusion.demo.handlers.draw", broken)
    *_, (text, _) = handlers.draw("session", DIGITS)
    assert "unexpected error, see the terminal: ZeroDivisionError: a &lt;b&gt; problem" in text
    assert "Traceback" in capsys.readouterr().err


def test_foreign_text_is_escaped_in_results() -> None:
    clip = Clip("<script>x</script>", np.zeros((1, 80), dtype=np.float32), 8000, b"")
    html = cards.results([clip], {"<b>": "<i>"}, "sashimi-sample --label '<u>'", "<s>")
    assert not re.search(r"<(script|b|i|u|s)>", html)
    assert "silent" in html


def test_the_text_of_a_picture_says_what_is_heard() -> None:
    waveform = np.zeros((1, 8000), dtype=np.float32)
    waveform[0, 2000:6000] = 0.5 * np.sin(2 * np.pi * 440 * np.arange(4000) / 8000)
    text = cards.describe(Clip("Clip", waveform, 8000, b""))
    assert text == (
        "Waveform and spectrogram of Clip: 1.00 seconds, peak -6 dB, sound from 0.25 to 0.75 seconds, "
        "strongest at 440 Hz."
    )


def test_labels_that_the_command_would_split_are_indices() -> None:
    labels = KnownLabels("class", 4, ("a, b", " c", "7", ""))
    assert [label_text(labels, index) for index in range(4)] == ["0", "1", "7", "3"]


def test_given_pipelines_come_before_the_bundled_ones(catalog: Catalog, words: str, autoregressive: str) -> None:
    assert catalog.names(autoregressive=False) == [words, "sashimi-digits", "sashimi-digits-turbo", "sashimi-words"]
    assert catalog.names(autoregressive=True) == [autoregressive, "sashimi-piano"]


def test_a_pipeline_that_does_not_exist_is_named() -> None:
    with pytest.raises(UserError, match="no pipeline 'nothing'"):
        Catalog(["nothing"], torch.device("cpu"))


def test_every_pipeline_is_warmed_up_unless_the_page_ends(catalog: Catalog) -> None:
    stop = threading.Event()
    warm_up(catalog, stop)
    stop.set()
    with pytest.raises(Stopped):
        warm_up(catalog, stop)


def test_only_the_last_live_sounds_are_kept() -> None:
    kept = LiveSounds()
    names = [kept.begin(8000, 10)[0] for _ in range(6)]
    assert [kept.find(name) is None for name in names] == [True, True, False, False, False, False]
    assert kept.find("guessed") is None


def test_the_suggested_sampler_exists() -> None:
    assert QUICK_SAMPLER in SCHEDULERS


def test_refused_samplers_are_not_offered(catalog: Catalog, words: str, autoregressive: str) -> None:
    assert set(SCHEDULERS) - set(catalog["sashimi-digits"].samplers) == {"diffwave-fast"}
    assert catalog[words].samplers == list(SCHEDULERS)
    assert catalog[autoregressive].samplers == []


def test_a_distilled_pipeline_is_drawn_in_its_own_steps(words: str, tmp_path: Path) -> None:
    pipe = SashimiPipeline.from_pretrained(words)
    pipe.scheduler = create_few_step_scheduler(pipe.scheduler.config, 4)
    pipe.save_pretrained(tmp_path / "student")
    name = str(tmp_path / "student")
    catalog = Catalog([name], torch.device("cpu"))
    entry = catalog[name]
    assert (entry.most_steps, entry.samplers, entry.takes_guidance) == (4, [], False)
    warm_up(catalog, threading.Event())
    steps: list[tuple[int, int]] = []
    draw(entry, Drawing(name, "7", None, None, entry.most_steps, None, 0), lambda *done: steps.append(done))
    assert steps[-1] == (4, 4)
