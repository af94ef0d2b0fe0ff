"""The persistent kernel: a program generates all samples of its streams, without the host."""
# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl

from sashimi_diffusion.generation.triton_engine.layers import run_add, run_embedding, run_linear, run_state_space
from sashimi_diffusion.generation.triton_engine.operations import FIELDS, FOLLOWING, GATED, LINEAR, STATE_SPACE
from sashimi_diffusion.generation.triton_engine.sampler import sample_tokens


@triton.jit(do_not_specialize=["n_streams", "n_samples", "position", "top_k"])
def generate_kernel(
    table_ptr,
    matrices_ptr,
    numbers_ptr,
    states_ptr,
    features_ptr,
    inputs_ptr,
    uniforms_ptr,
    tokens_ptr,
    log_probabilities_ptr,
    entropies_ptr,
    n_streams,
    n_samples,
    position,
    temperature,
    top_k,
    top_p,
    n_operations,
    state_size,
    feature_size,
    embedding_size,
    logits_offset,
    num_tokens,
    NPLR: tl.constexpr,
    PRODUCT: tl.constexpr,
    PRECISION: tl.constexpr,
    STREAMS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    BLOCK_IN: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
):
    """Generate the samples of ``STREAMS`` streams.

    Shapes: inputs (B), uniforms, tokens, log-probabilities and entropies (B, n), states (B, state_size) and features
    (B, feature_size), where the last two have memory for a multiple of ``STREAMS`` streams. All other arguments are
    described in ``Program``, or as in :func:`sample_tokens`.
    """
    first = tl.program_id(0) * STREAMS
    states_ptr += first.to(tl.int64) * state_size
    features_ptr += first.to(tl.int64) * feature_size
    streams = tl.arange(0, STREAMS)
    exists = first + streams < n_streams
    results = (first + streams).to(tl.int64) * n_samples
    columns = tl.arange(0, BLOCK_TOKENS)[None, :]
    tokens = tl.load(inputs_ptr + first + streams, exists, other=0).to(tl.int32)
    for sample in range(n_samples):
        run_embedding(tokens, numbers_ptr, features_ptr, feature_size, embedding_size, BLOCK_WIDTH)
        tl.debug_barrier()
        index = 0
        while index < n_operations:
            row = table_ptr + index * FIELDS
            kind = tl.load(row)
            index += 1
            if kind == STATE_SPACE:
                run_state_space(
                    row,
                    numbers_ptr,
                    states_ptr,
                    features_ptr,
                    state_size,
                    feature_size,
                    NPLR,
                    STREAMS,
                    BLOCK_WIDTH,
                    BLOCK_H,
                    BLOCK_N,
                )
            elif kind == LINEAR:
                run_linear(
                    row,
                    matrices_ptr,
                    numbers_ptr,
                    features_ptr,
                    feature_size,
                    False,
                    PRODUCT,
                    PRECISION,
                    STREAMS,
                    ROWS,
                    BLOCK_WIDTH,
                    BLOCK_IN,
                    BLOCK_OUT,
                )
            elif kind == GATED:
                run_linear(
                    row,
                    matrices_ptr,
                    numbers_ptr,
                    features_ptr,
                    feature_size,
                    True,
                    PRODUCT,
                    PRECISION,
                    STREAMS,
                    ROWS,
                    BLOCK_WIDTH,
                    BLOCK_IN,
                    BLOCK_OUT // 2,
                )
            elif run_add(row, features_ptr, feature_size, position + sample, STREAMS, BLOCK_WIDTH):
                index = tl.load(row + FOLLOWING)
            tl.debug_barrier()
        logits = tl.load(
            features_ptr + streams[:, None] * feature_size + logits_offset + columns, columns < num_tokens, other=0.0
        )
        uniforms = tl.load(uniforms_ptr + results + sample, exists, other=0.0).to(tl.float32)
        tokens, log_probabilities, entropies = sample_tokens(
            logits, columns < num_tokens, uniforms, temperature, top_k, top_p
        )
        tl.store(tokens_ptr + results + sample, tokens.to(tl.int64), exists)
        tl.store(log_probabilities_ptr + results + sample, log_probabilities, exists)
        tl.store(entropies_ptr + results + sample, entropies, exists)
