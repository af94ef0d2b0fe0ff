"""Ahead-of-time compilation of Triton kernels for GPUs that may be absent, and the resources of the binaries.

Triton specializes a kernel for properties of its arguments: whether addresses and integers are multiples of 16, which
integers are 1 (they become constants), and on AMD whether tensors are smaller than 2 GB. Every form is compiled under
each of the assumptions that its launches meet:

    any          nothing is known: odd sizes, strided tensors
    contiguous   every ``…position_stride`` is 1, nothing else is known: odd sizes, contiguous tensors
    aligned      in addition, addresses and other integers are multiples of 16, and tensors are smaller than 2 GB
    ones         every integer is 1 except a ``width``, which is padded to tiles: one batch element, feature, sample

The constant MULTIPLE (see ``triton_backend.arguments``) already says that samples are adjacent or that no size is
a multiple of 16, so forms that have it meet fewer assumptions. Kernels with the constant ALIGNED only receive aligned
arguments.
"""

import contextlib
import io
import re
import tempfile
from collections.abc import Iterator

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend

from sashimi_kernels.hardware import HARDWARE, Resources
from sashimi_kernels.triton_backend.launch import Launch

_UNIT_STRIDE = "position_stride"
_NEVER_ONE = {"width"}
_MATRIX_INSTRUCTIONS = {
    "mma.sync": "mma.sync",
    "wgmma": "wgmma.mma_async",
    "tcgen05": "tcgen05.mma",
    "mfma": "v_mfma_",
    "wmma": "v_wmma_",
}


def assumptions(launch: Launch) -> tuple[str, ...]:
    """Return the assumptions that launches of this form can meet, see the module."""
    if "ALIGNED" in launch.constants:
        return ("aligned",)
    strided = any(name.endswith(_UNIT_STRIDE) for name in launch.signature)
    factor = launch.constants.get("MULTIPLE")
    if factor == 1:
        return "any", "contiguous", "ones"
    if factor is not None:
        return "contiguous", "aligned"
    return ("any", "contiguous", "aligned", "ones") if strided else ("any", "aligned", "ones")


def compile_for(launch: Launch, target: str, assumption: str) -> Resources:
    """Compile one form of a kernel and return the resources that the binary uses.

    Args:
        launch: the form.
        target: a key of :data:`sashimi_kernels.hardware.HARDWARE`, for example "cuda:90".
        assumption: one of :func:`assumptions`.

    Raises:
        Exception: Triton's passes and ptxas raise various types.
    """
    backend, arch = target.split(":")
    gpu = GPUTarget(backend, int(arch) if backend == "cuda" else arch, HARDWARE[target].warp_size)
    signature, constants, attributes = _specialized(launch, gpu, assumption)
    source = ASTSource(fn=launch.kernel, signature=signature, constexprs=constants, attrs=attributes)
    options = {"num_warps": launch.num_warps, "num_stages": launch.num_stages}
    log = io.StringIO()
    with _without_cache(), contextlib.redirect_stdout(log):
        compiled = triton.compile(source, target=gpu, options=options)
    shared, assembly = compiled.metadata.shared, compiled.asm["ptx" if backend == "cuda" else "amdgcn"]
    registers, spills = _from_ptxas(log.getvalue()) if backend == "cuda" else _from_amdgcn(assembly)
    matrix = tuple(kind for kind, instruction in _MATRIX_INSTRUCTIONS.items() if instruction in assembly)
    occupancy = HARDWARE[target].occupancy(registers, shared, compiled.metadata.num_warps)
    return Resources(registers, spills, shared, matrix, occupancy)


def _specialized(
    launch: Launch, target: GPUTarget, assumption: str
) -> tuple[dict[str, str], dict[str, object], dict[tuple[int], list]]:
    """Return signature, constants and attributes as Triton's launcher would derive them from the arguments."""
    constants = dict(launch.constants)
    integers = {name for name, type in launch.signature.items() if type[0] == "i"}
    if assumption == "ones":
        constants |= dict.fromkeys(integers - _NEVER_ONE, 1)
    elif assumption != "any":
        constants |= {name: 1 for name in integers if name.endswith(_UNIT_STRIDE)}
    names = launch.kernel.arg_names
    signature = {name: "constexpr" if name in constants else launch.signature[name] for name in names}
    parse = make_backend(target).parse_attr
    # Triton's letters: D for divisible by 16, S for smaller than 2 GB (used by the AMD backend).
    known = {"*": parse("DS"), "i": parse("D")} if assumption in ("aligned", "ones") else {}
    attributes = {(position,): known.get(signature[name][0]) for position, name in enumerate(names)}
    return signature, constants, {position: value for position, value in attributes.items() if value}


@contextlib.contextmanager
def _without_cache() -> Iterator[None]:
    """Disable Triton's cache and print the log of ptxas, which contains the register counts."""
    with (
        tempfile.TemporaryDirectory() as folder,
        knobs.cache.scope(),
        knobs.compilation.scope(),
        knobs.nvidia.scope(),
    ):
        knobs.cache.dir, knobs.compilation.always_compile, knobs.nvidia.dump_ptxas_log = folder, True, True
        yield


def _from_ptxas(log: str) -> tuple[int, int]:
    """Return registers per lane and spilled bytes per lane."""
    registers, *spills = (
        max(map(int, re.findall(pattern, log)))
        for pattern in (r"Used (\d+) registers", r"(\d+) bytes spill stores", r"(\d+) bytes spill loads")
    )
    return registers, max(spills)


def _from_amdgcn(assembly: str) -> tuple[int, int]:
    """Return registers per lane and spilled bytes per lane."""
    # Spilled scalar registers are not counted: they move to vector registers, which are.
    registers, spilled = (
        int(re.findall(rf"\.{field}:\s+(\d+)", assembly)[0]) for field in ("vgpr_count", "vgpr_spill_count")
    )
    return registers, 4 * spilled
