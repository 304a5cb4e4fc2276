"""How long a launch takes on a GPU, from its blocks, bytes and instructions: a prediction.

A launch takes as long as what takes longest of it: its instructions, each kind on the lanes that it has, its bytes
through the second-level cache and from memory, and the waits of one thread, one after the other. Instructions are those
of the multiprocessor that gets the most blocks, wave by wave. What the model leaves out: conflicts in shared memory,
the waits at barriers, stores to rows that begin at no multiple of 16 bytes, clocks that fall under load, and the host.
Of seven workloads on an H100 the kernels together took 0.8 to 1.1 times as long as it says; on an A100 none was
measured.
"""

from __future__ import annotations

from typing import NamedTuple

WARP, SCHEDULERS = 32, 4  # threads; warps that a multiprocessor issues an instruction for in a cycle
DEPENDENT = 4  # cycles until an instruction may use the result of the one before, since compute capability 7.0
# Measured in products on an H200: cycles that a scheduler's only warp takes for an instruction, and the share of its
# cycles in which a scheduler of four warps issues one; registers' banks take most of the others.
LONE, ISSUED = 2, 0.68
# How the occupancy calculator of NVIDIA's toolkit rounds for compute capabilities 8.0 and 9.0.
REGISTERS_OF_A_WARP, SHARED_STEP, SHARED_RESERVED = 256, 128, 1024


class Gpu(NamedTuple):
    """What a GPU can do at most.

    Attributes
    ----------
    name : str
    multiprocessors : int
    clock : float
        GHz.
    lanes, wide_lanes, special_lanes : int
        Of a multiprocessor: instructions a cycle of float32, of float64, and of exp, 1/x and conversions.
    dram, l2 : float
        Bandwidth, GB/s.
    l2_bytes : int
    registers, shared, threads, blocks : int
        Of a multiprocessor: 32-bit registers, bytes of shared memory, and the most threads and blocks at once.
    wait : float
        For data from the second-level cache, nanoseconds.
    launch : float
        From one kernel to the next on a stream, microseconds.
    """

    name: str
    multiprocessors: int
    clock: float
    lanes: int
    wide_lanes: int
    special_lanes: int
    dram: float
    l2: float
    l2_bytes: int
    registers: int = 65536
    shared: int = 0
    threads: int = 2048
    blocks: int = 32
    wait: float = 150.0
    launch: float = 2.0

    @property
    def peak(self) -> float:
        """Operations of float32 a second, two for each multiply-add."""
        return 2e9 * self.multiprocessors * self.lanes * self.clock


# Multiprocessors, lanes, caches, memory: NVIDIA's whitepapers on the H100 and A100 Tensor Core GPU Architecture and the
# data sheets. Limits of a multiprocessor and special lanes: the CUDA C++ Programming Guide. The H100's clock is what it
# holds under load; its data sheet's 67 TFLOP/s would take 1.98 GHz, and this gives 59. Bandwidth of the second-level
# cache, and some 260 and 200 cycles of waiting for it: public microbenchmarks, not NVIDIA. The 2 us are an assumption.
H100 = Gpu("H100 SXM", 132, 1.755, 128, 64, 16, 3350.0, 5500.0, 50 << 20, shared=228 << 10)
# The H200 is an H100 with other memory, and held 1.98 GHz in mcelbo's kernels.
H200 = Gpu("H200 SXM", 132, 1.98, 128, 64, 16, 4800.0, 5500.0, 50 << 20, shared=228 << 10)
A100 = Gpu("A100 SXM 80 GB", 108, 1.41, 64, 32, 16, 2039.0, 4000.0, 40 << 20, shared=164 << 10)


class Launch(NamedTuple):
    """A launch; instructions are those of all its threads together.

    Attributes
    ----------
    name : str
        Of the kernel, and all that it is compiled for.
    blocks : (x, y)
    threads, registers, shared : int
        Threads of a block, registers of a thread, bytes of a block.
    read, written : float
        Bytes that blocks load and store through the second-level cache.
    given, kept : float
        Distinct bytes among them: of the problem and the results; and of the chunk's matrices, which come from memory
        only if the chunk is larger than the cache.
    chunk : int
        Bytes of the chunk's matrices.
    products : float
        Multiply-adds that the problem asks for.
    fmas : float
        Multiply-adds that tiles execute, with those outside the matrix.
    floats, others, special, wide : float
        Further instructions: of the fmas' kind; on no lanes that matter; of special lanes; of float64.
    double : bool
        Whether fmas and floats are of float64.
    rounds : float
        Waits of a thread for the second-level cache, one after the other.
    independent : int
        Neighbouring instructions of a warp that do not wait for each other.
    """

    name: str
    blocks: tuple[int, int]
    threads: int
    registers: int
    shared: int = 0
    read: float = 0
    written: float = 0
    given: float = 0
    kept: float = 0
    chunk: int = 0
    products: float = 0
    fmas: float = 0
    floats: float = 0
    others: float = 0
    special: float = 0
    wide: float = 0
    double: bool = False
    rounds: float = 1
    independent: int = 1

    @property
    def label(self) -> str:
        """The kernel's name alone."""
        return self.name.partition(" ")[0]

    @property
    def total(self) -> int:
        """How many blocks there are."""
        return self.blocks[0] * self.blocks[1]

    @property
    def warps(self) -> int:
        """Warps of a block."""
        return -(-self.threads // WARP)


class Occupancy(NamedTuple):
    """How many blocks a multiprocessor holds at once, and what bounds it."""

    blocks: int
    bound: str


class Prediction(NamedTuple):
    """How long a launch takes, and what takes longest; both unmeasured."""

    seconds: float
    bound: str


def occupancy(launch: Launch, gpu: Gpu) -> Occupancy:
    """Return how many blocks fit, by the rules of NVIDIA's occupancy calculator: prediction, unmeasured."""
    of_a_warp = -(-launch.registers * WARP // REGISTERS_OF_A_WARP) * REGISTERS_OF_A_WARP
    # each scheduler has its own quarter of the registers
    warps = gpu.registers // of_a_warp // SCHEDULERS * SCHEDULERS
    shared = -(-(launch.shared + SHARED_RESERVED) // SHARED_STEP) * SHARED_STEP
    most = {
        "blocks": gpu.blocks,
        "threads": gpu.threads // (launch.warps * WARP),
        "registers": warps // launch.warps,
        "shared": gpu.shared // shared,
    }
    bound = min(most, key=most.__getitem__)
    return Occupancy(most[bound], bound)


def turns(launch: Launch, gpu: Gpu) -> float:
    """Return how many blocks' instructions the busiest multiprocessor takes, wave by wave.

    A warp stays with its scheduler, so that the one with the most warps decides; and a wave of so few warps that
    schedulers wait for results, or for anything else that a lone warp waits for, takes as long as one of enough.
    """
    resident = occupancy(launch, gpu).blocks
    least = max(LONE * ISSUED, DEPENDENT / launch.independent)

    def of_wave(blocks: int) -> float:
        of_scheduler = -(-blocks * launch.warps // SCHEDULERS)
        return max(of_scheduler, least) * SCHEDULERS / launch.warps if blocks else 0.0

    waves, rest = divmod(launch.total, resident * gpu.multiprocessors)
    return waves * of_wave(resident) + of_wave(-(-rest // gpu.multiprocessors))


def dram_bytes(launch: Launch, gpu: Gpu) -> float:
    """Return the bytes that must come from memory or go there."""
    return launch.given + (launch.kept if launch.chunk > gpu.l2_bytes else 0)


def times(launch: Launch, gpu: Gpu) -> dict[str, float]:
    """Return the seconds of everything that may bound a launch, its own latency apart: prediction, unmeasured."""
    share = turns(launch, gpu) / launch.total / (gpu.clock * 1e9)
    own = launch.fmas + launch.floats
    narrow, wide = (0.0, launch.wide + own) if launch.double else (own, launch.wide)
    every = own + launch.others + launch.special + launch.wide
    waves = -(-launch.total // (occupancy(launch, gpu).blocks * gpu.multiprocessors))
    return {
        "fma": share * max(narrow / gpu.lanes, wide / gpu.wide_lanes),
        "issue": share * every / (SCHEDULERS * WARP * ISSUED),
        "special": share * launch.special / gpu.special_lanes,
        "dram": dram_bytes(launch, gpu) / (gpu.dram * 1e9),
        "l2": (launch.read + launch.written) / (gpu.l2 * 1e9),
        "latency": waves * launch.rounds * gpu.wait * 1e-9,
    }


def predict(launch: Launch, gpu: Gpu) -> Prediction:
    """Return how long a launch takes, and what bounds it: prediction, unmeasured.

    The bound is "fma", "issue", "special", "dram", "l2" or "latency", which is that of loads or of the launch itself.

    Examples
    --------
    >>> predict(Launch("empty", (1, 1), threads=32, registers=16), H100).bound
    'latency'
    """
    found, start = times(launch, gpu), gpu.launch * 1e-6
    bound = max(found, key=found.__getitem__)
    return Prediction(start + found[bound], bound if found[bound] > start else "latency")
