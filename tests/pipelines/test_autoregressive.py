"""Tests of the autoregressive pipeline: saving and loading, prefixes, streams and errors."""

import copy
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline

from sashimi_diffusion import SashimiAutoregressive, SashimiAutoregressivePipeline, SashimiPipeline
from sashimi_diffusion.data.quantization import decode
from sashimi_diffusion.errors import UserError


@pytest.fixture(scope="module")
def pipe() -> SashimiAutoregressivePipeline:
    torch.manual_seed(0)
    model = SashimiAutoregressive(
        sample_rate=8000, sample_size=200, d_model=8, n_layers=1, n_state=4, quantization="linear"
    )
    return SashimiAutoregressivePipeline(model.eval())


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_clips_and_their_likelihoods(pipe: SashimiAutoregressivePipeline) -> None:
    output = pipe(batch_size=2, generator=generators(0, 1), engine="eager")
    assert output.audios.shape == (2, 1, 200)
    assert output.audios.dtype == np.float32
    tokens = torch.from_numpy(np.round((output.audios[:, 0] + 1) * 128)).long()
    torch.testing.assert_close(decode(tokens, "linear").numpy(), output.audios[:, 0])
    scores = pipe.model.score(tokens).numpy()
    np.testing.assert_allclose(output.log_probabilities, scores, atol=1e-4)
    np.testing.assert_allclose(output.log_likelihoods, scores.sum(axis=1), rtol=1e-5)
    assert (output.entropies > 0).all()
    assert output.prefix_length == 0


def test_a_clip_does_not_depend_on_the_rest_of_the_batch(pipe: SashimiAutoregressivePipeline) -> None:
    together = pipe(batch_size=3, generator=torch.Generator().manual_seed(5), engine="eager").audios
    alone = pipe(batch_size=1, generator=torch.Generator().manual_seed(5), engine="eager").audios
    np.testing.assert_array_equal(together[:1], alone)


def test_a_saved_pipeline_generates_the_same_audio(pipe: SashimiAutoregressivePipeline, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path)
    loaded = SashimiAutoregressivePipeline.from_pretrained(tmp_path)
    expected = pipe(generator=generators(3), engine="eager").audios
    np.testing.assert_array_equal(loaded(generator=generators(3), engine="eager").audios, expected)
    plain = DiffusionPipeline.from_pretrained(str(tmp_path), trust_remote_code=True)
    assert isinstance(plain, SashimiAutoregressivePipeline)
    np.testing.assert_array_equal(plain(generator=generators(3), engine="eager").audios, expected)
    assert "_name_or_path" not in json.loads((tmp_path / "model" / "config.json").read_text())


def test_defaults_of_sampling_are_saved_and_can_be_replaced(
    pipe: SashimiAutoregressivePipeline, tmp_path: Path
) -> None:
    chosen = SashimiAutoregressivePipeline(pipe.model, temperature=0.7, top_p=0.9)
    expected = pipe(temperature=0.7, top_p=0.9, generator=generators(3), engine="eager").audios
    chosen.save_pretrained(tmp_path)
    plain = DiffusionPipeline.from_pretrained(str(tmp_path), trust_remote_code=True)
    loaded = SashimiAutoregressivePipeline.from_pretrained(tmp_path)
    for same in (chosen, plain, loaded, SashimiAutoregressivePipeline.from_pipe(chosen)):
        np.testing.assert_array_equal(same(generator=generators(3), engine="eager").audios, expected)
    streamed = np.concatenate([block for block, _ in loaded.stream(60, None, 0.025, generator=generators(3))], axis=-1)
    np.testing.assert_array_equal(streamed, expected)

    everything = pipe(generator=generators(3), engine="eager").audios
    np.testing.assert_array_equal(
        loaded(temperature=1, top_p=1, generator=generators(3), engine="eager").audios, everything
    )
    replaced = SashimiAutoregressivePipeline.from_pretrained(tmp_path, temperature=1, top_p=1)
    np.testing.assert_array_equal(replaced(generator=generators(3), engine="eager").audios, everything)


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("temperature", "hot", "temperature must be a number, got 'hot'"),
        ("temperature", -1, r"temperature must be 0 \(greedy\) or above"),
        ("temperature", math.nan, r"temperature must be 0 \(greedy\) or above"),
        ("temperature", 10**400, r"temperature must be 0 \(greedy\) or above, at least 1e-30 and finite"),
        ("top_p", True, "top_p must be a number, got True"),
        ("top_p", 0, "top_p must be above 0 and at most 1"),
    ],
)
def test_defaults_of_sampling_out_of_range_are_refused(
    setting: str, value: object, message: str, pipe: SashimiAutoregressivePipeline, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        SashimiAutoregressivePipeline(pipe.model, **{setting: value})
    with pytest.raises(UserError, match=message):
        pipe(**{setting: value})
    pipe.save_pretrained(tmp_path)
    index = tmp_path / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), setting: value}))
    with pytest.raises(UserError, match=rf"model_index\.json: {message}"):
        SashimiAutoregressivePipeline.from_pretrained(tmp_path)


def test_each_pipeline_refuses_the_other_kind(pipe: SashimiAutoregressivePipeline, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"an autoregressive pipeline: load it with SashimiAutoregressivePipeline$"):
        SashimiPipeline.from_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"a diffusion pipeline: load it with SashimiPipeline$"):
        SashimiAutoregressivePipeline.from_pretrained("sashimi-digits")


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_weights_that_are_not_finite_are_refused(
    value: float, pipe: SashimiAutoregressivePipeline, tmp_path: Path
) -> None:
    broken = SashimiAutoregressivePipeline(copy.deepcopy(pipe.model))
    next(broken.model.parameters()).data.view(-1)[3] = value
    broken.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"model/diffusion_pytorch_model\.safetensors: the weights .* are not finite"):
        SashimiAutoregressivePipeline.from_pretrained(tmp_path)


def test_saved_weights_have_the_rights_of_the_umask(pipe: SashimiAutoregressivePipeline, tmp_path: Path) -> None:
    umask = os.umask(0o022)
    try:
        pipe.save_pretrained(tmp_path)
    finally:
        os.umask(umask)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*") if path.is_file()}
    assert "diffusion_pytorch_model.safetensors" in modes
    assert set(modes.values()) == {0o644}


def test_a_prefix_is_kept_and_continued(pipe: SashimiAutoregressivePipeline) -> None:
    prefix = np.sin(np.arange(61) / 5).astype(np.float32)
    output = pipe(batch_size=2, prefix=prefix, generator=generators(0, 1), engine="eager")
    tokens = pipe.prefix_tokens(prefix)
    assert output.prefix_length == 61
    np.testing.assert_array_equal(output.audios[1, 0, :61], decode(tokens[0], "linear").numpy())
    assert not np.array_equal(output.audios[0, 0, 61:], output.audios[1, 0, 61:])
    np.testing.assert_allclose(output.log_likelihoods, output.log_probabilities[:, 61:].sum(axis=1), rtol=1e-5)


def test_a_stream_is_the_clip_in_blocks(pipe: SashimiAutoregressivePipeline) -> None:
    prefix = np.sin(np.arange(21) / 5)
    whole = pipe(prefix=prefix, generator=generators(4), engine="eager").audios
    blocks = pipe.stream(block=64, audio_length_in_s=200 / 8000, prefix=prefix, generator=generators(4), engine="eager")
    audios = [audio.numpy() for audio, _ in blocks]
    assert [audio.shape[-1] for audio in audios] == [21, 64, 64, 51]
    np.testing.assert_array_equal(np.concatenate(audios, axis=-1), whole)


def test_a_stream_without_a_length_does_not_end(pipe: SashimiAutoregressivePipeline) -> None:
    stream = pipe.stream(block=50, generator=generators(0), engine="eager")
    assert sum(next(stream)[0].shape[-1] for _ in range(6)) == 300


def test_a_prefix_at_another_rate_is_resampled_with_a_warning(pipe: SashimiAutoregressivePipeline) -> None:
    pytest.importorskip("torchaudio", reason="torchaudio cannot be imported", exc_type=(ImportError, OSError))
    prefix = np.sin(np.arange(100) / 9)
    with pytest.warns(UserWarning, match="resampled from 16000 Hz to the model's 8000 Hz"):
        assert pipe.prefix_tokens(prefix, 16000).shape == (1, 50)


NO_SOUND = {
    "silence": np.zeros(20),
    "constant": np.full(20, 0.25),
    "one sample": np.array([0.5]),
    "too faint to tell apart": 1e-12 * np.sin(np.arange(20)),
    "one of two": np.stack([np.sin(np.arange(20)), np.zeros(20)]),
}


@pytest.mark.parametrize("prefix", NO_SOUND.values(), ids=NO_SOUND)
def test_a_prefix_without_sound_is_refused(pipe: SashimiAutoregressivePipeline, prefix: np.ndarray) -> None:
    for call in (pipe, pipe.stream):
        with pytest.raises(UserError, match=r"the prefix has no sound .*expected at least two.*leave the prefix out"):
            call(batch_size=len(np.atleast_2d(prefix)), prefix=prefix, engine="eager")


def test_a_constant_prefix_is_refused_before_it_is_resampled(pipe: SashimiAutoregressivePipeline) -> None:
    with pytest.raises(UserError, match=r"the prefix has no sound \(length 100"):
        pipe.prefix_tokens(np.full(100, 0.25), 16000)


def test_a_prefix_shorter_than_a_frame(pipe: SashimiAutoregressivePipeline) -> None:
    output = pipe(prefix=np.array([0.1, -0.1]), generator=generators(0), engine="eager")
    assert output.audios.shape == (1, 1, 200)
    np.testing.assert_array_equal(output.audios[0, 0, :2], [127 / 128, -1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prefix": np.linspace(-1, 1, 200)}, "prefix has 200 samples, the clip 200"),
        ({"prefix": np.zeros(0)}, "prefix must be a waveform"),
        ({"prefix": np.array([0.0, np.nan])}, "not finite"),
        ({"temperature": -1.0}, "temperature must be 0"),
        ({"temperature": float("nan")}, "temperature must be 0"),
        ({"top_p": 0.0}, "top_p must be above 0"),
        ({"top_p": 1.5}, "top_p must be above 0"),
        ({"top_k": 0}, "top_k must be at least 1"),
        ({"top_k": 2**31}, "top_k must be at least 1 and at most"),
        ({"temperature": 1e-300}, "temperature must be 0"),
        ({"audio_length_in_s": 1e308}, "above 0"),
        ({"audio_length_in_s": -1.0}, "above 0"),
        ({"audio_length_in_s": 1e12}, "GB are free"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"generator": [torch.Generator()] * 3}, "3 generators for a batch of 1"),
        ({"engine": "quantum"}, "expected one of auto, eager"),
        ({"engine": "cuda-graph"}, "not on a CUDA device"),
        ({"output_type": "wav"}, "expected 'np' or 'pt'"),
    ],
)
def test_invalid_arguments_are_refused(pipe: SashimiAutoregressivePipeline, arguments: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        pipe(**{"engine": "eager", **arguments})
