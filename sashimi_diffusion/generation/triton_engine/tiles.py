"""Streams of a program, tile sizes and launch options of the persistent kernel, and the form that is compiled."""

from typing import Any

import torch
import triton
import triton.language as tl

from sashimi_diffusion.generation.triton_engine.kernel import generate_kernel
from sashimi_diffusion.generation.triton_engine.program import Program, whole
from sashimi_kernels.triton_backend.launch import Launch

OPTIONS = {"num_warps": 8, "num_stages": 2}
MAX_TOKENS = 4096
"""Bound of the logits of a program, which are in registers; also the largest number of tokens."""

# Bounds of the tiles of states and of linear maps, so that they fit in registers.
_STATES = 2048
_INPUT_BYTES, _OUTPUTS = 128, 128
_MAX_STREAMS = 16
# Matrix units multiply tiles of at least 16 rows.
_ROWS = 16


def streams_per_program(batch_size: int, num_tokens: int, device: torch.device) -> int:
    """Return the smallest power of two with which all programs run at once, one on each multiprocessor; at most 16."""
    programs = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
    wanted = triton.next_power_of_2(-(-batch_size // programs))
    return max(1, min(wanted, _MAX_STREAMS, MAX_TOKENS // triton.next_power_of_2(num_tokens)))


def constants(program: Program, streams: int) -> dict[str, Any]:
    """Return the constants of the kernel for ``streams`` streams per program."""
    widest = triton.next_power_of_2(max(map(whole, program.widths)))
    features = max(1, _STATES // (streams * program.n_states))
    return {
        "NPLR": program.nplr,
        # Triton's interpreter takes the bits of bfloat16 numbers for integers in products.
        "PRODUCT": tl.float32 if triton.knobs.runtime.interpret else tl.bfloat16,
        "PRECISION": "ieee" if torch.version.hip else "tf32x3",  # of products of float32 numbers
        "STREAMS": streams,
        "ROWS": 1 if streams == 1 else _ROWS,
        "BLOCK_WIDTH": widest,
        "BLOCK_IN": min(_INPUT_BYTES // program.matrices.itemsize, widest),
        "BLOCK_OUT": min(_OUTPUTS, 2 * widest),
        "BLOCK_H": min(features, widest),
        "BLOCK_N": program.n_states,
        "BLOCK_TOKENS": triton.next_power_of_2(program.num_tokens),
    }


def compiled_form(program: Program, streams: int) -> Launch:
    """Return the form of the kernel that a launch compiles, for compilation ahead of time."""
    tensors = dict.fromkeys(("numbers", "states", "features", "log_probabilities", "entropies"), "*fp32") | {
        "table": "*i32",
        "inputs": "*i64",
        "uniforms": "*fp64",
        "tokens": "*i64",
    }
    tensors["matrices"] = {torch.float32: "*fp32", torch.bfloat16: "*bf16"}[program.matrices.dtype]
    fixed = constants(program, streams)
    types = {f"{name}_ptr": type for name, type in tensors.items()} | {"temperature": "fp32", "top_p": "fp32"}
    signature = {name: types.get(name, "i32") for name in generate_kernel.arg_names if name not in fixed}
    return Launch(generate_kernel, signature, fixed, OPTIONS["num_warps"], OPTIONS["num_stages"], matrix=streams > 1)
