"""Tests of the convolution operators of several state spaces in one computation."""

import pytest
import torch
from torch import Tensor

from sashimi_diffusion.ssm import StateSpace
from sashimi_diffusion.ssm.convolution import Lags, Operator, Spectrum, convolution_operators
from sashimi_kernels import ChunkOperators

OPTIONS = {
    "nplr": {"bidirectional": True},
    "nplr causal, tied": {"n_ssm": 2},
    "diag": {"parameterization": "diag", "bidirectional": True, "reverse_shift": 0},
    "unstable": {"stable": False},
    "two outputs": {"outputs_per_feature": 2},
}
WIDTHS, LENGTHS = (2, 4, 2, 2), (40, 20, 40, 24)


def state_spaces(options: dict) -> list[StateSpace]:
    torch.manual_seed(0)
    return [StateSpace(width, n_state=4, **options).eval() for width in WIDTHS]


def tensors(operators: list[Operator]) -> list[Tensor]:
    return [x for operator in operators for x in operator if x is not None]


@pytest.mark.parametrize(
    ("backend", "options", "training"),
    [
        *(("torch", options, training) for options in OPTIONS.values() for training in (False, True)),
        # Slow in Triton's interpreter.
        ("triton", OPTIONS["nplr causal, tied"], True),
        ("triton", OPTIONS["diag"], True),
        ("triton", OPTIONS["two outputs"], False),
    ],
    ids=str,
)
def test_operators_of_several_state_spaces(
    monkeypatch: pytest.MonkeyPatch, backend: str, options: dict, training: bool
) -> None:
    """Together they equal those of each state space alone, and so do the gradients."""
    if backend == "triton":
        pytest.importorskip("triton", reason="the triton package is not installed")
    monkeypatch.setenv("SASHIMI_KERNELS", backend)
    spaces = state_spaces(options)
    results = []
    with torch.set_grad_enabled(training), torch.autocast("cpu", torch.bfloat16):  # which must not reach them
        alone = [
            convolution_operators([s], torch.float32, 1, [l], 2.0)[0] for s, l in zip(spaces, LENGTHS, strict=True)
        ]
        together = convolution_operators(spaces, torch.float32, 1, LENGTHS, 2.0)
    chunks = backend == "triton" and "outputs_per_feature" not in options
    expected_type = ChunkOperators if chunks else Lags if training else Spectrum
    assert {type(operator) for operator in together} == {expected_type}
    for operators in (alone, together):
        gradients = None
        if training:
            parameters = [parameter for space in spaces for parameter in space.parameters()]
            loss = sum(x.square().sum() for x in tensors(operators))
            gradients = torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])
        results.append((tensors(operators), gradients))
    (expected, expected_gradients), (actual, gradients) = results
    for x, y in zip(actual, expected, strict=True):
        assert (x - y).abs().max() < 1e-5 * y.abs().max()
    if training:
        assert (gradients - expected_gradients).norm() < 1e-4 * expected_gradients.norm()


def test_truncated_kernels_are_convolved_by_fft(monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal that is longer than the kernel needs the FFT, a shorter one does not."""
    pytest.importorskip("triton", reason="the triton package is not installed")
    monkeypatch.setenv("SASHIMI_KERNELS", "triton")
    spaces = state_spaces({"parameterization": "diag", "bidirectional": True, "max_length": 24})
    with torch.no_grad():
        operators = convolution_operators(spaces, torch.float32, 1, LENGTHS, 1.0)
    assert [type(operator) for operator in operators] == [Spectrum, ChunkOperators, Spectrum, ChunkOperators]
