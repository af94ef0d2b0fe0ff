"""What a kernel may use of a GPU, and the share of its warp slots that can then be at work (theoretical occupancy).

Sources: "Technical Specifications per Compute Capability" in NVIDIA's CUDA C++ Programming Guide; for gfx90a and gfx942
LLVM's AMDGPU backend (registers, LDS and waves of ``GCNSubtarget``). A multiprocessor of NVIDIA and a compute unit of
AMD both have four partitions with 512 registers for each lane of a warp (AMD: wave), given out eight at a time.
"""

from typing import NamedTuple

_PARTITIONS = 4
_REGISTERS = 512
_REGISTER_GRANULARITY = 8


class Resources(NamedTuple):
    """What the binary of a kernel uses.

    Args:
        registers: per lane.
        spills: bytes per lane that registers did not suffice for.
        shared: bytes of shared memory per block.
        matrix: kinds of matrix instructions, "mma.sync", "wgmma", "tcgen05" or "mfma".
        occupancy: share of the warp slots of a multiprocessor that registers and shared memory let it fill.
    """

    registers: int
    spills: int
    shared: int
    matrix: tuple[str, ...]
    occupancy: float


class Hardware(NamedTuple):
    """Limits of one multiprocessor.

    Args:
        warp_size: lanes of a warp.
        max_warps: warps that one partition can hold.
        max_blocks: blocks that a multiprocessor can hold.
        shared_block: bytes of shared memory that one block may have.
        shared_total: bytes of shared memory of a multiprocessor.
        shared_granularity: shared memory is given out in multiples of this.
        shared_reserved: bytes that every block takes besides its own.
    """

    warp_size: int
    max_warps: int
    max_blocks: int
    shared_block: int
    shared_total: int
    shared_granularity: int
    shared_reserved: int

    def occupancy(self, registers: int, shared: int, warps: int) -> float:
        """Share of the warp slots that blocks of this many warps can fill.

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
