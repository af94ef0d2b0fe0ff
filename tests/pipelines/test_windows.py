"""Tests of windows that are denoised together: any length from a network that sees short pieces."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.models import SashimiDenoiser
from sashimi_diffusion.pipelines import SashimiPipeline
from sashimi_diffusion.pipelines.prediction import PredictionGraphs
from sashimi_diffusion.pipelines.windows import Windows
from sashimi_diffusion.schedulers import DiffWaveScheduler
from tests.pipelines.exact_denoiser import exact_pipeline, process, seeded


def class_pipeline(**options: object) -> SashimiPipeline:
    torch.manual_seed(0)
    embedding = {"embedding_sines": 8, "embedding_hidden": 8, "embedding_dim": 8, "num_classes": 3}
    audio = {"sample_rate": 100, "sample_size": 64, "waveform_std": 0.25}
    model = SashimiDenoiser(d_model=8, n_layers=1, n_state=8, **{**embedding, **audio, **options})
    torch.nn.init.normal_(model.output[-1].weight, std=0.3)
    if model.class_embedding is not None:
        torch.nn.init.normal_(model.class_embedding.weight)
    pipe = SashimiPipeline(model.eval(), DiffWaveScheduler(5, beta_end=0.3))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize(("length", "window", "overlap", "batch"), [(50, 20, 5, 2), (50, 20, 5, 8), (21, 20, 19, 3)])
def test_predictions_that_agree_are_those_of_the_whole(length: int, window: int, overlap: int, batch: int) -> None:
    windows = Windows(length, window, overlap, batch)
    sample = torch.randn(2, 3, length, generator=seeded())
    shapes: list[tuple[int, ...]] = []

    def predict(one: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        shapes.append(tuple(one.shape))
        return one.sin()

    torch.testing.assert_close(windows.predict(predict, sample, torch.tensor(1.0)), sample.sin())
    assert set(shapes) == {(2 * windows.rows, 3, window)}  # one shape, so that one recording on a GPU suffices
    assert windows.rows <= batch


def test_overlaps_are_averaged_with_weights_that_fall_to_the_ends_of_windows() -> None:
    windows = Windows(30, 20, 10, 8)
    numbers = torch.tensor([1.0, 3.0])  # the prediction of the first and of the second window
    found = windows.predict(
        lambda one, t: numbers[:, None, None].expand_as(one), torch.zeros(1, 1, 30), torch.zeros(())
    )
    assert found[0, 0, :10].tolist() == pytest.approx([1] * 10)
    assert found[0, 0, 20:].tolist() == pytest.approx([3] * 10)
    middle = found[0, 0, 9:21]
    assert (middle.diff() > 0).all()
    assert (middle + middle.flip(0)).tolist() == pytest.approx([4] * 12)


def test_a_window_of_the_whole_length_changes_nothing() -> None:
    pipe = class_pipeline()
    plain = pipe(class_labels=[0, 2], generator=seeded()).audios
    np.testing.assert_array_equal(pipe(class_labels=[0, 2], window_in_s=0.64, generator=seeded()).audios, plain)


def test_long_audio_has_the_covariance_of_the_process_within_windows_and_across_them() -> None:
    own = exact_pipeline("dpmsolver++-karras", correlation=0.8)
    options = {"num_inference_steps": 20, "audio_length_in_s": 0.64, "generator": seeded(), "output_type": "pt"}
    audios = own(batch_size=300, **options, window_in_s=0.32, overlap_in_s=0.16).audios[:, 0]
    assert audios.shape == (300, 64)
    assert {shape[-1] for shape in own.model.lengths} == {32}
    deviation = audios.std(0)
    assert float(deviation.mean()) == pytest.approx(0.5, rel=0.06)
    assert float(deviation.min()) > 0.42
    neighbors = (audios[:, 1:] * audios[:, :-1]).mean(0) / (deviation[1:] * deviation[:-1])
    assert neighbors.numpy() == pytest.approx(np.full(63, 0.8), abs=0.1)


def test_audio_is_continued_to_many_times_its_length_in_windows() -> None:
    pipe = class_pipeline()
    audio = 0.25 * torch.randn(64, generator=seeded(3))
    for batch in (1, 3, 8):
        audios = pipe(
            audio=audio,
            audio_length_in_s=3,
            class_labels=[0, 1],
            guidance_scale=2.0,
            window_in_s=0.64,
            windows_per_batch=batch,
            generator=seeded(),
        ).audios
        assert audios.shape == (2, 1, 300)
        np.testing.assert_array_equal(audios[:, 0, :64], np.stack([audio.numpy()] * 2))
        if batch == 1:
            first = audios
        np.testing.assert_allclose(audios, first, atol=1e-5)
    assert np.abs(first[0] - first[1]).max() > 0.01  # the labels differ


def test_a_variation_of_long_audio_in_windows() -> None:
    audio = process(1, 0.9, 300)
    own = exact_pipeline(correlation=0.9)
    varied = own(audio=audio, strength=0.3, window_in_s=0.5, generator=seeded(), output_type="pt").audios
    assert varied.shape == audio.shape
    assert float((varied - audio).std()) < 0.35 < float(audio.std())
    assert {shape[-1] for shape in own.model.lengths} == {50}


def test_a_callback_changes_the_guidance_of_windows() -> None:
    pipe = class_pipeline()

    def stronger(pipe: SashimiPipeline, step: int, timestep: torch.Tensor, tensors: dict) -> dict:
        pipe._guidance_scale = 3.0
        return {}

    options = {"class_labels": 1, "audio_length_in_s": 2.0, "window_in_s": 0.64}
    found = [
        pipe(**options, guidance_scale=1.0, callback_on_step_end=callback, generator=seeded()).audios
        for callback in (None, stronger)
    ]
    assert np.abs(found[0] - found[1]).max() > 1e-3


def test_windows_gaps_and_variations_replay_one_recording() -> None:
    pipe, recordings = class_pipeline(), []

    def record(*steps: Callable[[], None]) -> list[Callable[[], None]]:
        recordings.append(steps)
        return list(steps)

    graph = SashimiPipeline(pipe.model, pipe.scheduler)
    graph.set_progress_bar_config(disable=True)
    graph._graphs = PredictionGraphs(record, device_type="cpu")
    audio = 0.25 * torch.randn(200, generator=seeded(3))
    options = {"audio": audio, "class_labels": [0, 1], "window_in_s": 0.64, "windows_per_batch": 3}
    for use in ({"strength": 0.5}, {"mask": torch.arange(200) < 90}, {"audio_length_in_s": 2.3}):
        expected = pipe(**options, **use, generator=seeded()).audios
        np.testing.assert_array_equal(graph(**options, **use, generator=seeded()).audios, expected)
    assert len(recordings) == 2  # of two and of three windows in a pass


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"overlap_in_s": 0.1}, "overlap_in_s was given without window_in_s"),
        ({"window_in_s": 0.3, "overlap_in_s": 0.3}, "overlap_in_s is 0.3, window_in_s is 0.3: expected an overlap"),
        ({"window_in_s": 0}, "window_in_s is 0: expected a number of seconds above 0"),
        ({"window_in_s": float("inf")}, "window_in_s is inf"),
        ({"window_in_s": "1"}, "window_in_s is '1'"),
        ({"window_in_s": 0.3, "overlap_in_s": -0.1}, "overlap_in_s is -0.1"),
        ({"window_in_s": 0.3, "windows_per_batch": 0}, "windows_per_batch is 0, expected at least 1"),
    ],
)
def test_wrong_windows_are_errors_of_one_line(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        class_pipeline()(audio_length_in_s=2, **options)


def test_the_memory_of_windows_is_that_of_a_batch_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int, int]] = []
    monkeypatch.setattr(
        "sashimi_diffusion.pipelines.sashimi.require_call_memory",
        lambda config, count, length, device, held: seen.append((count, length, held)),
    )
    class_pipeline()(batch_size=2, audio_length_in_s=10, window_in_s=0.64, windows_per_batch=4, generator=seeded())
    assert seen == [(8, 64, 2000)]


def test_windows_that_no_memory_holds_are_refused_at_once() -> None:
    for options in ({"audio_length_in_s": 1e12}, {"audio_length_in_s": 1e12, "window_in_s": 0.9e12}):
        with pytest.raises(UserError, match="GiB of memory"):
            class_pipeline()(**{"window_in_s": 0.64, **options})
