"""The engine that launches the persistent kernel: its memory on the device and its tiles."""

import math
from typing import Any

import torch
from torch import Tensor

from sashimi_diffusion.generation.sampling import Sampling
from sashimi_diffusion.generation.triton_engine.kernel import generate_kernel
from sashimi_diffusion.generation.triton_engine.program import flatten, whole
from sashimi_diffusion.generation.triton_engine.tiles import OPTIONS, constants, streams_per_program
from sashimi_kernels.triton_backend.launch import launch

# Divides the logits where the temperature is lower, because float32 cannot represent all float64 temperatures.
_MIN_TEMPERATURE = 1e-30


class TritonEngine:
    """Engine that runs a SaShiMi model in one persistent Triton kernel per call of :meth:`run`.

    A program of the kernel generates all samples of its streams: it runs all layers and draws the tokens. The host
    waits for nothing between samples. States stay on the device between calls. Features, states and sums are float32.
    The parameters are copied when the engine is created.

    The engine has been tested in Triton's interpreter and compiled ahead of time. It has not been timed on a GPU yet,
    so ``engine="auto"`` does not select it.

    Args:
        model: a ``SashimiAutoregressive`` in float32 or bfloat16 on a CUDA device, in evaluation mode. On a CPU, Triton
            must run in its interpreter.
        batch_size: number of clips generated together.
        weights: dtype of the weights of linear maps, float32 or bfloat16; None for the dtype of the model.
        streams: clips of a program, 1, 2, 4, 8 or 16; None for the smallest number with which all programs run at once.
    """

    def __init__(
        self, model: Any, batch_size: int, weights: torch.dtype | None = None, streams: int | None = None
    ) -> None:
        self.program = flatten(model, model.dtype if weights is None else weights)
        self.batch_size, device = batch_size, self.program.table.device
        self.streams = streams or streams_per_program(batch_size, self.program.num_tokens, device)
        rows = -(-batch_size // self.streams) * self.streams
        self._states = torch.zeros(rows, self.program.state_size, device=device)
        self._features = torch.zeros(rows, self.program.feature_size, device=device)
        self._position = 0  # samples processed so far, modulo the period of the frames

    @torch.no_grad()
    def load(self, state: Any) -> None:
        """Continue from a state of the model with ``batch_size`` clips."""
        program, self._position = self.program, state.position
        for layer, offset in zip(state.layers, program.state_offsets, strict=True):
            values = torch.view_as_real(layer).permute(0, 3, 1, 2)  # (B, 2, H, N)
            _overwrite(self._states, offset, values, (2, whole(values.shape[2]), program.n_states))
        for frames, offsets in ((state.frames, program.frame_offsets), (state.upsampled, program.upsampled_offsets)):
            for frame, offset in zip(frames, offsets, strict=True):
                values = frame.transpose(1, 2)  # (B, pool, H)
                _overwrite(self._features, offset, values, (values.shape[1], whole(values.shape[2])))

    @torch.no_grad()
    def run(self, tokens: Tensor, uniforms: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor, Tensor]:
        """Generate the samples after the inputs ``tokens`` (B,), one for each column of ``uniforms`` (B, n).

        Returns:
            tokens, log-probabilities and entropies (B, n), see :func:`sashimi_diffusion.generation.sample_tokens`.
        """
        device = self._states.device
        uniforms = uniforms.to(device).contiguous()
        generated = torch.empty(uniforms.shape, dtype=torch.int64, device=device)
        log_probabilities, entropies = torch.empty(2, *uniforms.shape, device=device)
        results = {"tokens": generated, "log_probabilities": log_probabilities, "entropies": entropies}
        tensors = {"inputs": tokens.to(device).contiguous(), "uniforms": uniforms, **results}
        self._launch(tensors, uniforms.shape[1], sampling)
        self._position = (self._position + uniforms.shape[1]) % self.program.period
        return generated, log_probabilities, entropies

    def _launch(self, tensors: dict[str, Tensor], n_samples: int, sampling: Sampling) -> None:
        program, fixed = self.program, constants(self.program, self.streams)
        greedy = sampling.temperature == 0
        parameters = {"table": program.table, "matrices": program.matrices, "numbers": program.numbers}
        memory = {"states": self._states, "features": self._features}
        arguments = {
            **{f"{name}_ptr": tensor for name, tensor in {**parameters, **memory, **tensors}.items()},
            "n_streams": self.batch_size,
            "n_samples": n_samples,
            "position": self._position,
            "temperature": 1.0 if greedy else max(float(sampling.temperature), _MIN_TEMPERATURE),
            "top_k": 1 if greedy else min(sampling.top_k or 0, program.num_tokens),
            "top_p": float(sampling.top_p),
            "n_operations": len(program.table),
            "state_size": program.state_size,
            "feature_size": program.feature_size,
            "embedding_size": whole(program.widths[0]),
            "logits_offset": program.logits,
            "num_tokens": program.num_tokens,
        }
        launch(generate_kernel, (len(self._states) // self.streams,), arguments, fixed, **OPTIONS)


def _overwrite(memory: Tensor, offset: int, values: Tensor, shape: tuple[int, ...]) -> None:
    """Write values (B, ...) to the memory of the first B streams, where they have the padded shape ``shape``."""
    region = memory[: len(values), offset : offset + math.prod(shape)].unflatten(1, shape)
    for axis, size in enumerate(values.shape[1:], start=1):
        region = region.narrow(axis, 0, size)
    region.copy_(values)
