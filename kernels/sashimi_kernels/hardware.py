"""Resource limits of GPUs and the theoretical occupancy of kernels.

Sources: "Technical Specifications per Compute Capability" in NVIDIA's CUDA C++ Programming Guide; for AMD, LLVM's
AMDGPU backend (``AMDGPUBaseInfo.cpp``: ``getTotalNumVGPRs``, ``getVGPRAllocGranule``, ``getMaxWavesPerEU``,
``getMaxWorkGroupsPerCU``, ``getLdsDwGranularity``). A multiprocessor stands for NVIDIA's, for AMD's compute unit (CDNA)
and for AMD's work-group processor of two compute units (RDNA). Each has four partitions.
"""

from typing import NamedTuple

_PARTITIONS = 4


class Resources(NamedTuple):
    """Resources that a compiled kernel uses.

    Args:
        registers: registers per lane.
        spills: bytes per lane spilled from registers to memory.
        shared: bytes of shared memory per block.
        matrix: kinds of matrix instructions, "mma.sync", "wgmma", "tcgen05", "mfma" or "wmma".
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
        warp_size: lanes per warp (AMD: wave).
        max_warps: warps per partition.
        max_blocks: blocks per multiprocessor.
        shared_block: largest shared memory of a block in bytes.
        shared_total: shared memory of a multiprocessor in bytes.
        shared_granularity: shared memory is allocated in multiples of this number of bytes.
        shared_reserved: bytes reserved per block in addition to its own.
        registers: registers of a partition for each lane of a warp.
        register_granularity: registers are allocated in multiples of this number.
    """

    warp_size: int
    max_warps: int
    max_blocks: int
    shared_block: int
    shared_total: int
    shared_granularity: int
    shared_reserved: int
    registers: int = 512
    register_granularity: int = 8

    def occupancy(self, registers: int, shared: int, warps: int) -> float:
        """Return the fraction of the warp slots that can be filled.

        Args:
            registers: registers per lane.
            shared: bytes of shared memory per block.
            warps: warps per block.
        """
        by_registers = self.registers // _round_up(max(registers, 1), self.register_granularity)
        blocks = _PARTITIONS * min(self.max_warps, by_registers) // warps
        footprint = _round_up(shared + self.shared_reserved, self.shared_granularity)
        by_shared = self.shared_total // footprint if footprint else self.max_blocks
        return min(blocks, by_shared, self.max_blocks) * warps / (_PARTITIONS * self.max_warps)


def _round_up(value: int, granularity: int) -> int:
    return -(-value // granularity) * granularity


def _nvidia(max_warps: int, max_blocks: int, shared_kib: int) -> Hardware:
    return Hardware(32, max_warps, max_blocks, (shared_kib - 1) * 1024, shared_kib * 1024, 128, 1024)


_CDNA = Hardware(64, 8, 32, 64 * 1024, 64 * 1024, 512, 0)
_RDNA3 = Hardware(32, 16, 32, 64 * 1024, 128 * 1024, 512, 0, registers=1536, register_granularity=24)

HARDWARE = {
    "cuda:80": _nvidia(16, 32, 164),  # A100
    "cuda:86": _nvidia(12, 16, 100),  # RTX 30, A10
    "cuda:89": _nvidia(12, 24, 100),  # RTX 40, L4
    "cuda:90": _nvidia(16, 32, 228),  # H100, H200
    "cuda:100": _nvidia(16, 32, 228),  # B200
    "hip:gfx90a": _CDNA,  # MI200
    "hip:gfx942": _CDNA,  # MI300
    "hip:gfx1100": _RDNA3,  # RX 7900
}

RDNA = ("hip:gfx1100",)
