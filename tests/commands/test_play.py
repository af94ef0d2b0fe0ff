"""Tests of playing on a sound card; a module in the place of sounddevice calls the callback as a card does."""

import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from sashimi_diffusion.commands import sample, sample_autoregressive
from sashimi_diffusion.commands.play import Player
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.models import SashimiAutoregressive, SashimiDenoiser
from sashimi_diffusion.pipelines import SashimiAutoregressivePipeline, SashimiPipeline
from sashimi_diffusion.schedulers import DiffWaveScheduler

RATE, FRAMES = 1000, 64


class PortAudioError(Exception):
    """The error of sounddevice."""


class CallbackStop(Exception):
    """What a callback raises to end the stream."""


class Card:
    """A sound card: ``play`` asks the callback for samples, as the thread of a card does; ``heard`` has its answers."""

    def __init__(self) -> None:
        self.heard: list[np.ndarray] = []
        self.aborted = self.closed = False
        self.error: Exception | None = None
        self.played_when_started = True
        self.stream: types.SimpleNamespace | None = None

    def module(self) -> types.ModuleType:
        """Return a module with the parts of sounddevice that the player uses."""
        module = types.ModuleType("sounddevice")
        module.PortAudioError, module.CallbackStop = PortAudioError, CallbackStop
        module.check_output_settings, module.OutputStream = self.check, self.open
        return module

    def check(self, **settings: object) -> None:
        if self.error is not None:
            raise self.error

    def open(
        self,
        *,
        samplerate: int,
        channels: int,
        dtype: str,
        callback: Callable,
        finished_callback: Callable,
        latency: str,
    ) -> types.SimpleNamespace:
        self.format = (samplerate, channels, dtype)
        self.callback, self.finished = callback, finished_callback
        self.stream = types.SimpleNamespace(active=False, start=self.start, abort=self.abort, close=self.close)
        return self.stream

    def start(self) -> None:
        self.stream.active = True
        if self.played_when_started:
            threading.Thread(target=self.play, daemon=True).start()

    def play(self, requests: int = 10_000, underflow: bool = False) -> None:
        for _ in range(requests):
            if not self.stream.active:
                return
            out = np.full((FRAMES, self.format[1]), np.nan, np.float32)
            status = types.SimpleNamespace(output_underflow=underflow)
            try:
                self.callback(out, FRAMES, None, status)
            except CallbackStop:
                self.stop()
            self.heard.append(out)
            time.sleep(1e-4)

    def stop(self) -> None:
        self.stream.active = False
        self.finished()

    def abort(self, ignore_errors: bool) -> None:
        self.aborted = True
        self.stream.active = False

    def close(self, ignore_errors: bool) -> None:
        self.closed, self.stream.active = True, False

    def samples(self) -> np.ndarray:
        """Return all samples so far without the silence around them, (n, channels)."""
        heard = np.concatenate(self.heard)
        sounding = np.flatnonzero(np.abs(heard).sum(axis=1))
        return heard[sounding[0] : sounding[-1] + 1] if len(sounding) else heard[:0]


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Card:
    card = Card()
    monkeypatch.setitem(sys.modules, "sounddevice", card.module())
    return card


def sound(samples: int) -> np.ndarray:
    return (1 + np.arange(samples, dtype=np.float32)) / 10_000  # without zeros


def test_everything_is_played_once_and_in_order(card: Card) -> None:
    with Player(RATE) as player:
        assert list(map(len, player.playing([sound(300), sound(700)]))) == [300, 700]
        player.finish()
    np.testing.assert_array_equal(card.samples()[:, 0], np.concatenate([sound(300), sound(700)]))
    assert card.format == (RATE, 1, "float32")
    assert (card.closed, card.aborted) == (True, False)
    assert player.report() == "played 1.0 s of audio without an under-run"


def test_playing_begins_when_half_a_second_is_there(card: Card) -> None:
    card.played_when_started = False
    with Player(RATE) as player:
        player.write(sound(499))
        card.play(3)
        assert len(card.samples()) == 0
        player.write(sound(1))
        card.play(1)
        assert len(card.samples()) == FRAMES


def test_an_under_run_is_silence_until_the_buffer_is_filled_again(card: Card) -> None:
    card.played_when_started = False
    with Player(RATE) as player:
        player.write(sound(500))
        card.play(10)  # 640 samples
        assert (player.underruns, player.silence) == (1, 140)
        player.write(sound(499))
        card.play(2)
        assert (player.underruns, player.silence) == (1, 140 + 2 * FRAMES)
        player.write(sound(1))
        card.play(1)
        card.play(1, underflow=True)  # reported by the card itself
    assert player.underruns == 2
    assert player.report() == "played 0.6 s of audio with 2 under-runs, 0.27 s of silence"
    assert not np.isnan(np.concatenate(card.heard)).any()


def test_generation_waits_while_the_buffer_is_full(card: Card) -> None:
    card.played_when_started = False
    written: list[int] = []
    with Player(RATE) as player:

        def write() -> None:
            for number in range(15):
                player.write(sound(RATE))
                written.append(number)

        writer = threading.Thread(target=write)
        writer.start()
        for _ in range(100):
            time.sleep(0.01)
            if len(written) == 11:
                break
        assert len(written) == 11
        card.play(15 * RATE // FRAMES)
        writer.join(timeout=60)
        assert len(written) == 15


def test_a_card_that_stops_ends_the_wait(card: Card) -> None:
    card.played_when_started = False
    with Player(RATE) as player:
        player.write(sound(10))
        card.stop()
        with pytest.raises(UserError, match="stopped playing"):
            player.write(sound(10))
        with pytest.raises(UserError, match="before the end"):
            player.finish()


def test_an_interrupt_stops_playing_at_once(card: Card) -> None:
    def interrupted(player: Player) -> None:
        with player:
            player.write(sound(5000))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted(Player(RATE))
    assert (card.closed, card.aborted) == (True, True)


@pytest.mark.parametrize("error", [PortAudioError("Error querying device -1"), ValueError("No output\ndevice")])
def test_without_a_card_the_error_is_one_line(card: Card, error: Exception) -> None:
    card.error = error
    with pytest.raises(UserError, match="no sound card plays 1000 Hz, 2 channels: ") as caught:
        Player(RATE, channels=2)
    assert "\n" not in str(caught.value)


def test_without_the_package_or_its_library_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(UserError, match="pip install sounddevice"):
        Player(RATE)

    def without_library(name: str) -> None:
        raise OSError("PortAudio library not found")

    monkeypatch.setattr("sashimi_diffusion.commands.play.importlib.import_module", without_library)
    with pytest.raises(UserError, match=r"PortAudio library not found.*libportaudio2"):
        Player(RATE)


@pytest.fixture(scope="module")
def autoregressive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = SashimiAutoregressive(sample_rate=RATE, sample_size=300, d_model=8, n_layers=1, n_state=4)
    path = tmp_path_factory.mktemp("autoregressive")
    SashimiAutoregressivePipeline(model.eval()).save_pretrained(path)
    return path


def run(folder: Path, *arguments: object) -> int:
    return sample.main([str(option) for option in ("--pipeline", folder, "--device", "cpu", "--play", *arguments)])


@pytest.mark.parametrize("with_file", [False, True])
def test_an_autoregressive_clip_is_played_and_written(
    card: Card, autoregressive: Path, tmp_path: Path, capsys: pytest.CaptureFixture, with_file: bool
) -> None:
    assert run(autoregressive, "--engine", "eager", "--stream", tmp_path / "expected.wav") == 0
    expected, card.heard = card.samples()[:, 0], []
    arguments = ["--stream", tmp_path / "x.wav"] if with_file else []
    assert run(autoregressive, "--engine", "eager", *arguments) == 0
    np.testing.assert_array_equal(card.samples()[:, 0], expected)
    written, _ = soundfile.read(tmp_path / "expected.wav", dtype="float32")
    np.testing.assert_allclose(np.trim_zeros(expected), np.trim_zeros(written)[: len(expected)], atol=1 / 2**15)
    assert (tmp_path / "x.wav").exists() == with_file
    assert "played 0.3 s of audio" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["expected.wav", *(["x.wav"] if with_file else [])]


def test_ctrl_c_during_generation_keeps_the_file(
    card: Card, autoregressive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    blocks = sample_autoregressive.audio_of

    def interrupted(*arguments: object) -> Iterator[np.ndarray]:
        yield next(blocks(*arguments))
        raise KeyboardInterrupt

    monkeypatch.setattr(sample_autoregressive, "audio_of", interrupted)
    assert run(autoregressive, "--engine", "eager", "--stream", tmp_path / "x.wav") == 130
    assert (card.closed, card.aborted) == (True, True)
    assert soundfile.info(tmp_path / "x.wav").frames == 100
    assert capsys.readouterr().err.strip().endswith("interrupted")


def test_finished_clips_of_a_diffusion_pipeline_are_played(
    card: Card, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    torch.manual_seed(0)
    model = SashimiDenoiser(sample_rate=RATE, sample_size=320, d_model=8, n_layers=1, n_state=4)
    SashimiPipeline(model.eval(), DiffWaveScheduler()).save_pretrained(tmp_path / "pipeline")
    assert run(tmp_path / "pipeline", "--num-samples", 2, "--steps", 2, "--out", tmp_path / "out") == 0
    first, second = (soundfile.read(tmp_path / "out" / name, dtype="float32")[0] for name in ("0000.wav", "0001.wav"))
    expected = np.concatenate([first, np.zeros(400, np.float32), second])
    heard = np.concatenate(card.heard)[:, 0]
    begin = np.flatnonzero(heard)[0] - np.flatnonzero(expected)[0]
    np.testing.assert_array_equal(heard[begin : begin + len(expected)], expected)
    assert "played 1.0 s of audio" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num-samples", "3"], "--num-samples does not apply: --play plays one clip"),
        (["--sort-by-likelihood"], "--sort-by-likelihood does not apply: --play plays one clip"),
        (["--engine", "eager", "--weights", "int16"], "weights in int16 need the engine 'numba'"),
    ],
)
def test_options_that_do_not_fit(
    card: Card, autoregressive: Path, capsys: pytest.CaptureFixture, arguments: list[str], message: str
) -> None:
    assert run(autoregressive, *arguments) == 2
    assert message in capsys.readouterr().err


def test_playing_uses_weights_of_two_bytes_where_the_engine_has_them(
    card: Card, autoregressive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("numba", reason="numba is not installed (pip install numba)")
    used: list[tuple[str, str]] = []

    def recorded(self: SashimiAutoregressivePipeline, **arguments: object) -> None:
        used.append((str(arguments["engine"]), str(arguments["weights"])))
        raise UserError("seen")

    monkeypatch.setattr(SashimiAutoregressivePipeline, "stream", recorded)
    for arguments in ([], ["--engine", "eager"], ["--weights", "float32"]):
        assert run(autoregressive, *arguments) == 2
    assert used == [("auto", "int16"), ("eager", "float32"), ("auto", "float32")]
