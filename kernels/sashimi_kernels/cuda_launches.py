"""Number of CUDA kernels that PyTorch launches for one ATen operation, and the bytes that the operation moves.

An operation that makes a view or allocates memory launches nothing. Every other operation launches one kernel, with the
exceptions below. They follow the CUDA sources of PyTorch 2.11 to 2.14. Copies and fills count as kernels, although some
of them are ``cudaMemcpyAsync`` or ``cudaMemsetAsync``, which a profiler lists separately.

Not counted, because they depend on the library version and the GPU: the second kernel of matrix products and reductions
that are split over blocks.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor

_ALLOCATIONS = {
    "empty",
    "empty_like",
    "empty_permuted",
    "empty_strided",
    "new_empty",
    "new_empty_strided",
    "_unsafe_view",
    "lift_fresh",
    "resize_",
    "set_",
}

_FIXED = {
    # A fill, then a copy into a part of the filled tensor.
    "diag_embed": 2,
    "diagonal_backward": 2,
    "select_backward": 2,
    "slice_backward": 2,
    # A fill, then the sums of the gradient.
    "embedding_dense_backward": 2,
    "unfold_backward": 2,
    # The gradient of the input; that of weight and offset as sums over blocks of rows, then over the blocks.
    "native_layer_norm_backward": 3,
    # Copies of both matrices in the order of cuBLAS, two tables of pointers to the matrices of the batch, the solver.
    "linalg_solve_triangular": 5,
    # Products of pairs, then their sum.
    "dot": 2,
    "vdot": 2,
    # The comparison of all elements, then their conjunction.
    "equal": 2,
    # A sort of keys and values takes several passes over the digits.
    "sort": 4,
    # cuDNN: the convolution and the bias; backward: input, weight, bias and the fill of a sum.
    "convolution": 2,
    "convolution_backward": 4,
}
"""Operations with a fixed number of kernels other than one."""

_SINGLE_PASS = 4096  # complex numbers that cuFFT transforms in one kernel, in shared memory
_CAT_TENSORS = 128  # inputs that one kernel of torch.cat copies
# Multi-tensor kernels (MultiTensorApply.cuh): elements of a block, blocks of a launch, and tensors of a launch by the
# number of tensor lists. The limits are those of CUDA 12; CUDA 13 has seven times larger ones.
_CHUNK, _MAX_BLOCKS, _MAX_TENSORS = 65536, 320, (110, 64, 48, 36, 30)


def launches(name: str, arguments: Sequence[Any], result: Any) -> int:
    """Return the number of kernels of an ATen operation that is not a view.

    Args:
        name: its name without namespace and overload, such as "add_".
        arguments: its positional arguments.
        result: what it returns.
    """
    if name in _ALLOCATIONS:
        return 0
    if name in _FIXED:
        return _FIXED[name]
    if name in _COMPUTED:
        return _COMPUTED[name](arguments, result)
    if name.startswith(("_foreach_", "_fused_")):
        return _multi_tensor(name, arguments, result)
    return 1


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors of a value, or of the items of a (nested) list, tuple or dictionary."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, dict):
        yield from tensors_in(list(value.values()))


def distinct_bytes(x: Tensor) -> int:
    """Return the bytes of memory that a tensor refers to; elements that share memory (expand, unfold) count once."""
    distinct, extent = 1, 1
    for size, stride in zip(x.shape, x.stride(), strict=True):
        if size == 0:
            return 0
        if stride:
            distinct *= size
            extent += (size - 1) * abs(stride)
    return min(distinct, extent) * x.element_size()


def _matrix_product(arguments: Sequence[Any], result: Any) -> int:
    """One kernel, and a copy of each factor that is adjacent in memory along neither rows nor columns."""
    return 1 + sum(_needs_copy(x) for x in arguments[-2:])


def _addmm(arguments: Sequence[Any], result: Any) -> int:
    """The kernel of cuBLASLt adds a bias vector; any other term is copied into the result first."""
    term = arguments[0]
    fused = term.ndim == 1 and term.is_contiguous() and term.shape[0] == result.shape[1] > 1
    return _matrix_product(arguments[1:3], result) + (not fused)


def _baddbmm(arguments: Sequence[Any], result: Any) -> int:
    """The term is copied into the result first, unless it is the result."""
    return _matrix_product(arguments[1:3], result) + (arguments[0] is not result)


def _constant_pad(arguments: Sequence[Any], result: Any) -> int:
    """A fill and a copy into a part of it; one copy if nothing is added."""
    return 2 if any(amount > 0 for amount in arguments[1]) else 1


def _needs_copy(x: Any) -> bool:
    return x.ndim > 1 and 1 not in x.stride()[-2:] and 1 not in x.shape[-2:]


def _real_to_complex(arguments: Sequence[Any], result: Any) -> int:
    """Half-length complex transforms and their recombination, and a copy of an input that is not contiguous.

    A scaled transform multiplies the result in a further kernel.
    """
    x, axes, normalization = arguments[:3]
    return _passes(x.shape[axes[-1]] // 2) + 1 + (not x.is_contiguous()) + (normalization != 0)


def _complex_to_real(arguments: Sequence[Any], result: Any) -> int:
    """As the forward transform; the input is always copied, because cuFFT overwrites it."""
    _, axes, normalization = arguments[:3]
    return _passes(result.shape[axes[-1]] // 2) + 2 + (normalization != 0)


def _complex_to_complex(arguments: Sequence[Any], result: Any) -> int:
    x, axes, normalization = arguments[:3]
    return _passes(x.shape[axes[-1]]) + (not x.is_contiguous()) + (normalization != 0)


def _passes(length: int) -> int:
    return 1 if length <= _SINGLE_PASS else 2


def _cat(arguments: Sequence[Any], result: Any) -> int:
    return -(-sum(x.numel() > 0 for x in arguments[0]) // _CAT_TENSORS)


def _index_put(arguments: Sequence[Any], result: Any) -> int:
    """Accumulation sorts the indices first: their linear form, four passes of the sort, the sums."""
    accumulate = len(arguments) > 3 and arguments[3]
    return 6 if accumulate else 1


def _multi_tensor(name: str, arguments: Sequence[Any], result: Any) -> int:
    """The launches of multi-tensor kernels; one per tensor if dtypes or strides differ.

    A norm fills a table of the sums of the blocks first, and adds them up in a last kernel.
    """
    lists: list[Sequence[Tensor]] = [x for x in arguments if isinstance(x, (list, tuple)) and [*tensors_in(x)]]
    if name.startswith("_fused_"):
        lists = lists[:-1]  # the numbers of steps are read beside the lists
    elif name == "_foreach_norm":
        return 2 + _launches_of_lists(lists)
    elif result is not None:
        lists.append(result)
    # Copies convert, so the dtypes of sources and of results may differ.
    return _launches_of_lists(lists, converts=name.startswith("_foreach_copy"))


def _launches_of_lists(lists: list[Sequence[Tensor]], converts: bool = False) -> int:
    first = lists[0]
    dtypes = [{x.dtype for x in tensors} for tensors in lists]
    uniform = all(len(found) == 1 for found in (dtypes if converts else [set.union(*dtypes)]))
    if not uniform or any(len(set(map(_strides, group))) > 1 for group in zip(*lists, strict=True)):
        return len(first)
    max_tensors = _MAX_TENSORS[len(lists) - 1]
    count = tensors = blocks = 0
    for x in first:
        tensors += 1
        n_chunks = -(-x.numel() // _CHUNK)
        for chunk in range(1, n_chunks + 1):
            blocks += 1
            if blocks == _MAX_BLOCKS or (tensors == max_tensors and chunk == n_chunks):
                count, blocks, tensors = count + 1, 0, int(chunk < n_chunks)
    return count + (blocks > 0)


def _strides(x: Tensor) -> tuple[int, ...]:
    return tuple(stride for size, stride in zip(x.shape, x.stride(), strict=True) if size != 1)


_COMPUTED: dict[str, Callable[[Sequence[Any], Any], int]] = {
    "mm": _matrix_product,
    "bmm": _matrix_product,
    "addmm": _addmm,
    "baddbmm": _baddbmm,
    "constant_pad_nd": _constant_pad,
    "_fft_r2c": _real_to_complex,
    "_fft_c2r": _complex_to_real,
    "_fft_c2c": _complex_to_complex,
    "cat": _cat,
    "index_put": _index_put,
    "index_put_": _index_put,
}
"""Operations whose number of kernels depends on their arguments."""
