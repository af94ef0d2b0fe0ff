"""Resource limits of GPUs and the theoretical occupancy of kernels.

Sources: "Technical Specifications per Compute Capability" in NVIDIA's CUDA C++ Programming Guide; for gfx90a and gfx942
LLVM's AMDGPU backend (registers, LDS and waves of ``GCNSubtarget``). A multiprocessor of NVIDIA and a compute unit of
AMD both have four partitions with 512 registers for each lane of a warp (AMD: wave), allocated in multiples of eight.
"""

from typing import NamedTuple

_PARTITIONS = 4
_REGISTERS = 512
_REGISTER_GRANULARITY = 8


class Resources(NamedTuple):
    """Resources that a compiled kernel uses.

    Args:
        registers: registers per lane.
        spills: bytes per lane spilled from registers to memory.
        shared: bytes of shared memory per block.
        matrix: kinds of matrix instructions, "mma.sync", "wgmma", "tcgen05" or "mfma".
        occupancy: fraction of the warp slots of a multiprocessor that registers and shared memory allow to fill.
    """

    registers: int
    spills: int
    shared: int
    matrix: tuple[str, ...]
    occupancy: float


class Hardware(NamedTuple):
    """Limits of one multiprocessor.

    Args:
        warp_size: lanes per warp.
        max_warps: warps per partition.
        max_blocks: blocks per multiprocessor.
        shared_block: largest shared memory of a block in bytes.
        shared_total: shared memory of a multiprocessor in bytes.
        shared_granularity: shared memory is allocated in multiples of this number of bytes.
        shared_reserved: bytes reserved per block in addition to its own.
    """

    warp_size: int
    max_warps: int
    max_blocks: int
    shared_block: int
    shared_total: int
    shared_granularity: int
    shared_reserved: int

    def occupancy(self, registers: int, shared: int, warps: int) -> float:
        """Return the fraction of the warp slots that can be filled.

        Args:
            registers: registers per lane.
            shared: bytes of shared memory per block.
            warps: warps per block.
        """
        by_registers = _REGISTERS // _round_up(max(registers, 1), _REGISTER_GRANULARITY)
        blocks = _PARTITIONS * min(self.max_warps, by_registers) // warps
        footprint = _round_up(shared + self.shared_reserved, self.shared_granularity)
        by_shared = self.shared_total // footprint if footprint else self.max_blocks
        return min(blocks, by_shared, self.max_blocks) * warps / (_PARTITIONS * self.max_warps)


def _round_up(value: int, granularity: int) -> int:
    return -(-value // granularity) * granularity


def _nvidia(max_warps: int, max_blocks: int, shared_kib: int) -> Hardware:
    return Hardware(32, max_warps, max_blocks, (shared_kib - 1) * 1024, shared_kib * 1024, 128, 1024)


_CDNA = Hardware(64, 8, 32, 64 * 1024, 64 * 1024, 512, 0)

HARDWARE = {
    "cuda:80": _nvidia(16, 32, 164),  # A100
    "cuda:86": _nvidia(12, 16, 100),  # RTX 30, A10
    "cuda:89": _nvidia(12, 24, 100),  # RTX 40, L4
    "cuda:90": _nvidia(16, 32, 228),  # H100, H200
    "cuda:100": _nvidia(16, 32, 228),  # B200
    "hip:gfx90a": _CDNA,  # MI200
    "hip:gfx942": _CDNA,  # MI300
}
