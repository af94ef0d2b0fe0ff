"""Tests of the recorded prediction against the eager one, and of sampling loops that do not wait for the device."""

import copy
import importlib.util
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sashimi_diffusion.models import SashimiDenoiser, WaveNetDenoiser, conditioning
from sashimi_diffusion.pipelines import SashimiPipeline
from sashimi_diffusion.pipelines.prediction import MAX_RECORDINGS, PredictionGraphs
from sashimi_diffusion.schedulers import SCHEDULERS, DiffWaveScheduler, create_scheduler, noise
from sashimi_diffusion.ssm import frozen
from sashimi_diffusion.ssm.cache import kept_values

EMBEDDING = {"embedding_sines": 8, "embedding_hidden": 8, "embedding_dim": 8}
AUDIO = {"sample_rate": 100, "sample_size": 32, "waveform_std": 0.25}
HAS_SCIPY = importlib.util.find_spec("scipy") is not None
LABELS = {"num_classes": 3, "num_speakers": 2}
MEL = {"mel_channels": 5, "mel_upsample": (2, 4)}

Step = Callable[[], None]


class Rerun:
    """Recorder whose repetitions run the functions again."""

    def __init__(self) -> None:
        self.recordings = self.replays = 0

    def __call__(self, *steps: Step) -> list[Step]:
        self.recordings += 1
        return [self._counted(step) for step in steps]

    def _counted(self, step: Step) -> Step:
        def replay() -> None:
            self.replays += 1
            step()

        return replay


def make_pipeline(kind: str = "sashimi", scheduler: str = "diffwave", **options: Any) -> SashimiPipeline:
    torch.manual_seed(0)
    if kind == "wavenet":
        size: dict[str, Any] = {"residual_channels": 8, "skip_channels": 8, "n_layers": 2, "dilation_cycle": 2}
        model = WaveNetDenoiser(**EMBEDDING, **AUDIO, **size, **options)
    else:
        size = {"d_model": 8, "n_layers": 1, "n_state": 8, "parameterization": kind.replace("sashimi", "nplr")}
        model = SashimiDenoiser(**EMBEDDING, **AUDIO, **size, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    base = DiffWaveScheduler(20, beta_end=0.2)
    pipe = SashimiPipeline(model.eval(), create_scheduler(scheduler, base.config))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def recorded(pipe: SashimiPipeline, record: Any) -> SashimiPipeline:
    """Return a pipeline with the same model that records on the CPU."""
    other = SashimiPipeline(pipe.model, pipe.scheduler)
    other.set_progress_bar_config(disable=True)
    other._graphs = PredictionGraphs(record, device_type="cpu")
    return other


def audio(pipe: SashimiPipeline, batch_size: int = 2, steps: int | None = 5, **arguments: Any) -> np.ndarray:
    return pipe(batch_size, steps, generator=torch.Generator().manual_seed(1), **arguments).audios


def change_weights(pipe: SashimiPipeline) -> None:
    """Change all parameters where they are, like a moving average."""
    for parameter in pipe.model.parameters():
        parameter.data.mul_(1.1)


@pytest.mark.parametrize("scheduler", ["diffwave", "ddim", "pndm", "ipndm", "dpmsolver++-sde-karras", "unipc", "heun"])
def test_the_audio_of_a_recording_is_that_of_the_eager_loop(scheduler: str) -> None:
    pipe, record = make_pipeline(scheduler=scheduler), Rerun()
    graph = recorded(pipe, record)
    np.testing.assert_array_equal(audio(graph), audio(pipe))
    change_weights(pipe)
    np.testing.assert_array_equal(audio(graph), audio(pipe))
    assert record.recordings == 1
    assert record.replays == 2 * len(pipe.scheduler.timesteps)


@pytest.mark.parametrize("kind", ["sashimi", "diag", "wavenet"])
def test_a_recording_of_operations_follows_labels_guidance_and_weights(
    kind: str, operations: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python does not run during the replays, as with a CUDA graph, so all values must come from fixed memory."""
    monkeypatch.setattr(conditioning, "_validate_labels", lambda *_: None)  # reads labels on the CPU, not on a GPU
    pipe, recordings = make_pipeline(kind, **LABELS), []

    def record(*steps: Step) -> Iterator[Step]:
        for step in steps:
            recordings.append(operations())
            with recordings[-1]:
                step()
            yield recordings[-1].repeat

    graph = recorded(pipe, record)
    for labels, scale in (([0, 2], 1.0), ([0, 2], 1.5), ([1, 1], 1.5)):
        arguments = {"class_labels": labels, "guidance_scale": scale}
        np.testing.assert_array_equal(audio(graph, **arguments), audio(pipe, **arguments))
        change_weights(pipe)
        np.testing.assert_array_equal(audio(graph, **arguments), audio(pipe, **arguments))
    assert len(recordings) == 4
    first, following = (len(recording.calls) for recording in recordings[:2])
    assert following < (1 if kind == "wavenet" else 0.8) * first  # kernels and normalized weights are kept


@pytest.mark.parametrize("kind", ["sashimi", "wavenet"])
def test_a_recording_follows_the_mel(kind: str) -> None:
    pipe, record = make_pipeline(kind, **MEL), Rerun()
    graph, mel = recorded(pipe, record), torch.randn(2, 5, 4)
    for conditions in (mel, mel + 1):
        np.testing.assert_array_equal(audio(graph, mel=conditions), audio(pipe, mel=conditions))
    assert record.recordings == 1


def test_a_callback_may_replace_the_latents() -> None:
    pipe = make_pipeline()

    def callback(pipe: Any, i: int, t: Tensor, state: dict) -> dict | None:
        assert t.device.type == "cpu"
        return {"latents": 0.5 * state["latents"]} if i == 2 else None

    graph = recorded(pipe, Rerun())
    expected = audio(pipe, callback_on_step_end=callback)
    np.testing.assert_array_equal(audio(graph, callback_on_step_end=callback), expected)
    assert not np.array_equal(expected, audio(pipe))


def test_predictions_of_earlier_steps_do_not_change() -> None:
    pipe, seen = make_pipeline(scheduler="pndm"), []
    graph = recorded(pipe, Rerun())
    step = pipe.scheduler.step

    def keep(prediction: Tensor, *arguments: Any, **options: Any) -> Any:
        seen.append((prediction, prediction.clone()))
        return step(prediction, *arguments, **options)

    pipe.scheduler.step = keep
    audio(graph)
    assert all(torch.equal(prediction, copied) for prediction, copied in seen)


def test_each_shape_is_recorded_once_and_the_last_ones_are_kept() -> None:
    pipe, record = make_pipeline(), Rerun()
    graph = recorded(pipe, record)
    for _ in range(2):
        for batch_size in range(1, MAX_RECORDINGS + 1):
            audio(graph, batch_size, 1)
    assert record.recordings == MAX_RECORDINGS
    audio(graph, MAX_RECORDINGS + 1, 1)
    audio(graph, 2, 1)
    assert record.recordings == MAX_RECORDINGS + 1
    audio(graph, 1, 1)
    assert record.recordings == MAX_RECORDINGS + 2
    assert len(graph._graphs._recorded) == MAX_RECORDINGS


def test_parameters_in_other_memory_are_recorded_again() -> None:
    pipe, record = make_pipeline(), Rerun()
    graph = recorded(pipe, record)
    audio(graph)
    pipe.model.output[-1].weight = torch.nn.Parameter(2 * pipe.model.output[-1].weight.detach())
    np.testing.assert_array_equal(audio(graph), audio(pipe))
    assert record.recordings == 2
    assert len(graph._graphs._recorded) == 1


def test_a_recording_computes_kernels_itself_in_a_model_that_is_already_frozen(operations: type) -> None:
    """Kernels that an outer context keeps would be freed, or old, when the recording is replayed."""
    pipe = make_pipeline()

    def record(*steps: Step) -> Iterator[Step]:
        assert not tree_leaves(kept_values(pipe.model))
        for step in steps:
            with operations() as recording:
                step()
            yield recording.repeat

    graph = recorded(pipe, record)
    with frozen(pipe.model):
        audio(pipe)
        assert tree_leaves(kept_values(pipe.model))
        expected = audio(pipe)
        np.testing.assert_array_equal(audio(graph), expected)
    change_weights(pipe)
    np.testing.assert_array_equal(audio(graph), audio(pipe))


def test_recordings_of_inference_mode_are_used_outside_of_it() -> None:
    pipe, record = make_pipeline(**LABELS), Rerun()
    graph = recorded(pipe, record)
    with torch.inference_mode():
        expected = audio(graph, class_labels=1)
    np.testing.assert_array_equal(audio(graph, class_labels=1), expected)
    assert record.recordings == 1


def test_the_attribute_turns_recording_off_and_frees_the_recordings() -> None:
    pipe, record = make_pipeline(), Rerun()
    graph = recorded(pipe, record)
    audio(graph)
    graph.cuda_graph = False
    np.testing.assert_array_equal(audio(graph), audio(pipe))
    assert record.replays == 5
    assert not graph._graphs._recorded


@pytest.mark.parametrize("hook", ["forward", "accelerate"])
def test_one_warning_tells_that_hooks_prevent_recording(hook: str) -> None:
    pipe, record = make_pipeline(), Rerun()
    graph = recorded(pipe, record)
    if hook == "forward":
        pipe.model.output.register_forward_hook(lambda *_: None)
    else:
        pipe.model.output._hf_hook = object()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        np.testing.assert_array_equal(audio(graph), audio(graph))
    others = [one for one in warned if "too few" not in str(one.message)]  # of the few sampling steps
    assert [("hooks" in str(one.message), one.category) for one in others] == [(True, UserWarning)]
    assert record.recordings == 0


def test_a_model_that_cannot_be_recorded_runs_eagerly() -> None:
    pipe, attempts = make_pipeline(), []

    def record(*steps: Step) -> list[Step]:
        attempts.append(steps)
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    graph = recorded(pipe, record)
    with pytest.warns(UserWarning, match=r"cannot be recorded \(operation not permitted when stream is capturing\)"):
        actual = audio(graph)
    np.testing.assert_array_equal(actual, audio(pipe))
    audio(graph)
    assert len(attempts) == 1


def test_a_copied_pipeline_has_no_recordings() -> None:
    graph = recorded(make_pipeline(), Rerun())
    expected = audio(graph)
    copied = copy.deepcopy(graph)
    assert not copied._graphs._recorded
    np.testing.assert_array_equal(audio(copied), expected)


class Transfers(TorchDispatchMode):
    """Counter of copies between the CPU and another device, for which Python waits on a CUDA device."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        results = function(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, results)) if isinstance(leaf, Tensor)]
        # A number on the CPU may be an operand of an operation on the device; it is not copied.
        copies = function.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.copy_)
        if len({tensor.device for tensor in tensors if tensor.ndim or copies}) > 1:
            self.counts[str(function)] += 1
        return results


WAITING = {"ddpm", "sasolver", "euler-ancestral", "unipc", "unipc-karras"}
"""Schedulers of diffusers that draw their noise on the CPU, or copy their levels to the device, in each step."""


@pytest.mark.parametrize(
    ("name", "kind", "records"),
    [
        *((name, "wavenet", True) for name in SCHEDULERS if name != "lms" or HAS_SCIPY),
        *(("diffwave", kind, records) for kind in ("sashimi", "diag") for records in (False, True)),
    ],
)
def test_the_loop_does_not_wait_for_the_device(
    name: str, kind: str, records: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tensor on the device "meta" has no numbers, so reading one of them raises an error."""
    pipe = make_pipeline(kind, name, **LABELS)
    if records:
        pipe._graphs = PredictionGraphs(Rerun(), device_type="meta")
    pipe.model.to("meta")

    def noise_without_waiting(shape: Any, generator: Any, device: Any, dtype: Any) -> Tensor:
        return torch.empty(shape, device=device, dtype=dtype)  # on CUDA it is copied from pinned memory

    monkeypatch.setattr(noise, "randn_tensor", noise_without_waiting)
    transfers, steps = Transfers(), []

    def callback(pipe: Any, i: int, t: Tensor, state: dict) -> None:
        # The first step may prepare things.
        steps.append(sum(transfers.counts.values()))

    with transfers:
        output = audio_on_meta(pipe, None if name == "diffwave-fast" else 6, callback)
    assert output.device.type == "meta"
    assert (steps[-1] > steps[0]) == (name in WAITING), transfers.counts


def audio_on_meta(pipe: SashimiPipeline, steps: int | None, callback: Any) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    options = {"class_labels": [0, 2], "guidance_scale": 1.5, "output_type": "pt", "callback_on_step_end": callback}
    return pipe(2, steps, generator, **options).audios


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA or ROCm device")
@pytest.mark.parametrize("kind", ["sashimi", "diag", "wavenet"])
@pytest.mark.parametrize("scheduler", ["diffwave", "dpmsolver++-sde-karras", "pndm"])
def test_cuda_graphs_give_the_audio_of_the_eager_loop(kind: str, scheduler: str) -> None:
    pipe = make_pipeline(kind, scheduler, **LABELS)
    pipe.to("cuda")
    eager = SashimiPipeline(pipe.model, pipe.scheduler)
    eager.cuda_graph = False
    for labels in ([0, 2], [1, 1]):
        arguments = {"class_labels": labels, "guidance_scale": 1.5}
        np.testing.assert_allclose(audio(pipe, **arguments), audio(eager, **arguments), atol=1e-5)
        change_weights(pipe)
    (recording,) = pipe._graphs._recorded.values()
    assert recording is not None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA or ROCm device")
@pytest.mark.parametrize("scheduler", ["diffwave", "ddim", "dpmsolver++-sde-karras", "pndm", "euler", "heun"])
def test_replays_do_not_wait_for_the_device(scheduler: str) -> None:
    pipe = make_pipeline(scheduler=scheduler)
    pipe.to("cuda")
    expected = audio(pipe)

    def callback(pipe: Any, i: int, t: Tensor, state: dict) -> None:
        last = i == len(pipe.scheduler.timesteps) - 1
        torch.cuda.set_sync_debug_mode("default" if last else "error")

    try:
        actual = audio(pipe, callback_on_step_end=callback)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    np.testing.assert_allclose(actual, expected, atol=1e-6)
