"""Tests of the CUDA graph engine against the steps of the model; on a CPU, PyTorch operations are recorded."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.generation import Sampling
from sashimi_diffusion.generation.cuda_graph import CudaGraphEngine
from sashimi_diffusion.generation.engines import EagerEngine, create_engine
from sashimi_diffusion.models import AutoregressiveModel, SampleRNN, SashimiAutoregressive, WaveNetAutoregressive
from sashimi_diffusion.ssm.cache import kept_values

Record = Callable[[Callable[[], None]], Callable[[], None]]

SASHIMI = {"num_tokens": 16, "d_model": 8, "n_layers": 1, "n_state": 4, "pool": [2, 3]}
WAVENET = {"residual_channels": 4, "dilation_channels": 4, "skip_channels": 8, "end_channels": 8, "n_layers": 3}
NETWORKS: dict[str, tuple[type[AutoregressiveModel], dict[str, Any]]] = {
    "snet": (SashimiAutoregressive, SASHIMI),
    "unet": (SashimiAutoregressive, SASHIMI | {"unet": True}),
    "uneven-stages": (SashimiAutoregressive, SASHIMI | {"unet": True, "n_layers": [0, 2, 1]}),
    "one-rate": (SashimiAutoregressive, SASHIMI | {"pool": []}),
    "wavenet": (WaveNetAutoregressive, WAVENET | {"num_tokens": 16, "n_cycles": 2}),
    "samplernn": (SampleRNN, {"num_tokens": 16, "dim": 8, "embedding_dim": 4, "frame_sizes": [2, 2]}),
}
PATTERNS = {"snet": 6, "unet": 6, "uneven-stages": 6, "one-rate": 1, "wavenet": 1, "samplernn": 4}
SAMPLINGS = [Sampling(), Sampling(temperature=0.0), Sampling(temperature=0.8, top_k=7, top_p=0.9)]


@pytest.fixture
def record(operations: type) -> Record:
    """Return a recorder that, unlike a CUDA graph, runs the step, so the first repetition does nothing."""

    def record_operations(step: Callable[[], None]) -> Callable[[], None]:
        ran: list[bool] = []
        recorded = operations()

        def repeat() -> None:
            if ran:
                recorded.repeat()
            ran.append(True)

        with recorded:
            step()
        return repeat

    return record_operations


def small_model(name: str) -> AutoregressiveModel:
    torch.manual_seed(0)
    kind, options = NETWORKS[name]
    model = kind(**options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


@torch.no_grad()
def check_against_eager(model: AutoregressiveModel, engine: CudaGraphEngine, batch_size: int) -> None:
    """Compare samples from the initial state, and after two prefixes that end inside of a frame."""
    eager, device = EagerEngine(model, batch_size), model.device
    tokens = torch.full((batch_size,), model.start_token, device=device)
    for prefix_length in (0, 23, 5):
        if prefix_length:
            prefix = torch.randint(model.config.num_tokens, (batch_size, prefix_length), device=device)
            _, state = model.prefill(prefix)
            engine.load(state)
            eager.load(state)
            tokens = prefix[:, -1]
        for sampling, length in zip(SAMPLINGS, (14, 43, 21), strict=True):  # shorter than a span, and with two spans
            uniforms = torch.rand(batch_size, length, dtype=torch.float64)
            expected, actual = eager.run(tokens, uniforms, sampling), engine.run(tokens, uniforms, sampling)
            assert torch.equal(actual[0], expected[0])
            torch.testing.assert_close(actual[1:], expected[1:], rtol=0, atol=1e-6)
            tokens = expected[0][:, -1]


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("name", NETWORKS)
def test_samples_match_the_eager_engine(name: str, batch_size: int, record: Record) -> None:
    model = small_model(name)
    check_against_eager(model, CudaGraphEngine(model, batch_size, record), batch_size)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_model_does_not_change(name: str, record: Record) -> None:
    model = small_model(name)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    engine = CudaGraphEngine(model, 1, record)
    with torch.no_grad():
        engine.load(model.prefill(torch.zeros(1, 9, dtype=torch.int64))[1])
    engine.run(torch.tensor([3]), torch.rand(1, 9, dtype=torch.float64), Sampling())
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[key]), key


@torch.no_grad()
@pytest.mark.parametrize("name", NETWORKS)
def test_spans_and_the_patterns_of_other_samples_are_recorded_once(name: str) -> None:
    recorded: list[Callable[[], None]] = []

    def record(step: Callable[[], None]) -> Callable[[], None]:
        recorded.append(step)
        return step

    model = small_model(name)
    engine, start = CudaGraphEngine(model, 2, record), model.initial_state(2)
    span = -(-16 // PATTERNS[name]) * PATTERNS[name]
    uniforms = torch.rand(2, 3 * span + 5, dtype=torch.float64)
    for sampling in (Sampling(), Sampling(top_k=3), Sampling()):
        engine.load(start)
        engine.run(torch.tensor([8, 8]), uniforms, sampling)
    singles = min(5, PATTERNS[name])
    assert len(recorded) == 2 * (1 + singles)
    engine.run(torch.tensor([8, 8]), uniforms, Sampling())  # from five samples after the beginning of a frame
    assert len(recorded) <= 2 * (1 + singles) + PATTERNS[name] - singles


@torch.no_grad()
@pytest.mark.parametrize("name", NETWORKS)
def test_a_span_writes_its_results_and_states_once(name: str, operations: type) -> None:
    model, recorded = small_model(name), []

    def record(step: Callable[[], None]) -> Callable[[], None]:
        recorded.append(operations())
        with recorded[-1]:
            step()
        return step

    engine = CudaGraphEngine(model, 2, record)
    state_tensors = sum(isinstance(part, Tensor) for part in tree_leaves(model.initial_state(2)))
    engine.run(torch.tensor([8, 8]), torch.rand(2, 20, dtype=torch.float64), Sampling())
    names = [str(function) for function, _, _ in recorded[0].calls]
    assert names[-(state_tensors + 4) :].count("aten.copy_.default") == state_tensors + 4
    assert sum("log_softmax" in name for name in names) == 1


@torch.no_grad()
def test_recordings_keep_the_values_that_they_read(record: Record) -> None:
    """The values of a frozen model are dropped after each run, and replays read their memory."""
    model = small_model("unet")
    engine = CudaGraphEngine(model, 1, record)
    uniforms = torch.rand(1, 24, dtype=torch.float64)
    engine.run(torch.tensor([8]), uniforms, Sampling())
    kept = [tensor for recording in engine._recorded.values() for tensor in tree_leaves(recording.kept)]
    assert sum(isinstance(tensor, Tensor) for tensor in kept) >= 2 * len(model.backbone.s4_layers())
    assert not tree_leaves(kept_values(model))


def test_the_next_run_does_not_change_earlier_samples(record: Record) -> None:
    engine, tokens = CudaGraphEngine(small_model("unet"), 2, record), torch.tensor([8, 3])
    first = engine.run(tokens, torch.rand(2, 7, dtype=torch.float64), Sampling())
    copies: list[Tensor] = [part.clone() for part in first]
    engine.run(first[0][:, -1], torch.rand(2, 7, dtype=torch.float64), Sampling())
    assert all(map(torch.equal, first, copies))
    assert tokens.tolist() == [8, 3]


def test_the_error_on_a_cpu_names_the_reason() -> None:
    with pytest.raises(UserError, match=r"engine 'cuda-graph' cannot run: the model is on cpu.*'eager' can"):
        create_engine("cuda-graph", small_model("unet"), 1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA or ROCm device")
@pytest.mark.parametrize("name", NETWORKS)
def test_samples_of_cuda_graphs_match_the_eager_engine(name: str) -> None:
    model = small_model(name).to("cuda")
    engine = create_engine("auto", model, 3)
    assert isinstance(engine, CudaGraphEngine)
    check_against_eager(model, engine, 3)
