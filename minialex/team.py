"""Several processes that train as one: MPI (mpi4py) starts them and moves bytes; one process is a team of one.

A batch is cut at fixed places into `parts`, of which a rank has neighbouring ones. The engine only moves bytes; they are added by a kernel of our own, in
pairs, as the leaves of a binary tree over the parts are. So no bit depends on the number of ranks, or on the engine.
"""

import contextlib
import os
import pickle
import platform
import shutil
import sys
import sysconfig
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import numpy as np

from .device import Array, Device
from .errors import UserError
from .files import user_cache
from .ops.add import BLOCK, add_parts

ALIGNED = 64            # floats, of which the places of pieces are multiples
LATER = 2.0             # seconds that another rank than the first waits before it speaks: what all have met is said once
HEARD = 1.0             # seconds that an mpiexec has to pass on what was said before all ends
LAUNCHED = "MINIALEX_LAUNCHED"      # set for the processes that --ranks has started
# What tells a process that an mpiexec has started it: how many there are, and which one it is. MPICH, Intel MPI and srun; Open MPI; srun --mpi=pmix.
WORLDS = ("PMI_SIZE", "PMI_RANK"), ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"), ("SLURM_STEP_NUM_TASKS", "PMIX_RANK")


def world() -> tuple[int, int]:
    """(rank, size) as the mpiexec that started this process has it; (0, 1) of a process that none has."""
    for size, rank in WORLDS:
        if os.environ.get(size, "").isdecimal() and os.environ.get(rank, "").isdecimal():
            return int(os.environ[rank]), int(os.environ[size])
    return 0, 1


def blocks_of(parts: range) -> list[tuple[int, int]]:
    """The largest subtrees of the binary tree over all parts that neighbouring ones fill: [(first part, number of parts), ...]"""
    found, first = [], parts.start
    while first < parts.stop:
        width = 1
        while first % (2 * width) == 0 and first + 2 * width <= parts.stop:
            width *= 2
        found.append((first, width))
        first += width
    return found


class PairwiseSum:
    """Adds arrays of a device that belong to neighbouring blocks of parts and come in order. `blocks` are those that wait for their other half."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.blocks: list[tuple[int, int, Array]] = []

    def add(self, first: int, width: int, array: Array) -> None:
        """Takes the sum of parts first .. first + width - 1; `array` gets what is added to it."""
        while self.blocks and first % (2 * width) == width and self.blocks[-1][1] == width:
            first, _, other = self.blocks.pop()
            copied(self.device, other, array, 1)
            width *= 2
        self.blocks.append((first, width, array))

    def total(self) -> Array:
        """The sum of all, in the array that came last."""
        while len(self.blocks) > 1:
            (first, left, other), (_, right, array) = self.blocks[-2:]
            copied(self.device, other, array, 1)
            self.blocks[-2:] = [(first, left + right, array)]
        return self.blocks[0][2]


def copied(device: Device, array: Array, to: Array, add: int = 0) -> None:
    """Launches to = array, or to += array."""
    if to.size:
        device.launch(add_parts, -(-to.size // BLOCK), array, to, to.size, 1, add)


class Team:
    """One process, which has all parts of a batch.

    `rank` of `size` is its place; `local` the same among those of its machine; `own` are its parts of the `parts` that `divide` was told. `waited`:
    seconds that it has waited for others, and that bytes took to be moved.
    """

    rank, size, local = 0, 1, (0, 1)

    def __init__(self) -> None:
        self.parts, self.own, self.towers, self.waited = 1, range(1), 1, [0.0, 0.0]

    def divide(self, parts: int, towers: int = 1) -> None:
        """Gives each rank its parts, or each of two its tower and all parts; a UserError where they do not come out even."""
        if towers > 1:
            if self.size != towers:
                raise UserError(f"--towers {towers}: it takes {towers} ranks, a tower each, and there {'is' if self.size == 1 else 'are'} {self.size}: "
                                f"give --ranks {towers}, or start it by mpiexec -n {towers}")
            self.towers, self.parts, self.own = towers, parts, range(parts)
            return
        if parts % self.size:
            raise UserError(f"--parts {parts}: {self.size} ranks cannot have the same number of them; start a number of ranks that divides {parts}")
        each = parts // self.size
        self.parts, self.own = parts, range(self.rank * each, self.rank * each + each)

    def edges(self, batch: int) -> list[int]:
        """Where each part of a batch begins, and the last one ends."""
        return [batch * part // self.parts for part in range(self.parts + 1)]

    def arrays(self, count: int, floats: Any) -> dict[str, tuple[tuple[int, ...], Any]]:
        """What the sum of gradients of `count` floats takes besides them: {name: (shape, dtype)}"""
        kept = max((len(blocks_of(self.own[:i])) for i in range(1, len(self.own))), default=0)
        found: dict[str, tuple[tuple[int, ...], Any]] = {"input scale": ((2,), floats)}
        if kept:
            found["gradient parts"] = (kept, count), floats
        if len(self.own) < self.parts:
            rows = sum(len(self.blocks(rank)) for rank in range(self.size) if rank != self.rank)
            found["workspace pieces"] = ((rows, -(-count // self.size // ALIGNED) * ALIGNED), floats)
        return found

    def blocks(self, rank: int) -> list[tuple[int, int]]:
        """`blocks_of` a rank's parts."""
        each = self.parts // self.size
        return blocks_of(range(rank * each, rank * each + each))

    def add(self, device: Device, blocks: list[tuple[int, int, Array]], pieces: Array = None) -> None:
        """Sums arrays over all parts into the last of `blocks`, which are this rank's as PairwiseSum has left them. pieces: of `arrays`."""
        total = PairwiseSum(device)
        for block in blocks:
            total.add(*block)
        total.total()

    def share(self, value: Any) -> Any:
        """The first rank's value, on all."""
        return value

    def gather(self, value: Any) -> list:
        """The values of all ranks, on all."""
        return [value]

    def of_parts(self, value: Any) -> list:
        """The values of ranks that have all parts between them, on all: two towers have the same ones."""
        return self.gather(value) if len(self.own) < self.parts else [value]

    def most(self, value: float) -> float:
        """The largest of all ranks' values: what is decided by a clock or a signal is decided by this."""
        return max(self.gather(value))

    def take(self, device: Device) -> str | None:
        """Prepares for exchanging arrays of a device. -> by what they will go"""
        return None

    def swap(self, device: Device, sent: Array, received: Array) -> None:
        """Sends the other tower an array, and receives one."""

    def begin(self) -> None:
        """All are ready: from now on none may be waited for longer than patience allows."""

    def close(self) -> None:
        """The end of all ranks' work."""


class NCCL:
    """NCCL by way of CuPy: sends and receives of a group, on the stream of the launches. Each rank has a GPU of its own."""

    def __init__(self, team: Team, cupy: Any) -> None:
        self.cupy, self.nccl = cupy, cupy.cuda.nccl
        self.ranks = self.nccl.NcclCommunicator(team.size, team.share(self.nccl.get_unique_id() if team.rank == 0 else None), team.rank)

    def exchange(self, sent: Sequence[tuple[int, Array]], received: Sequence[tuple[int, Array]]) -> None:
        stream = self.cupy.cuda.get_current_stream().ptr
        self.nccl.groupStart()
        for call, arrays in (self.ranks.recv, received), (self.ranks.send, sent):
            for rank, array in arrays:
                if array.size:
                    call(array.data.ptr, array.size, self.nccl.NCCL_FLOAT32, rank, stream)
        self.nccl.groupEnd()


def gpu_of(device: Device) -> tuple[str, str] | None:
    """The machine and the place on its bus of a device's GPU; None of a CPU, and where CuPy finds no NCCL."""
    if device.name != "cuda":
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")      # CuPy's, that there is none
        from cupy.cuda import nccl, runtime
    return (platform.node(), runtime.deviceGetPCIBusId(device.gpu.id)) if nccl.available else None      # type: ignore[attr-defined]


class MPITeam(Team):
    """The processes that an mpiexec has started. patience: seconds that one waits for the others, from `begin` on, before it raises a UserError."""

    def __init__(self, MPI: Any, patience: float) -> None:
        super().__init__()
        self.MPI, self.world, self.patience, self.begun = MPI, MPI.COMM_WORLD, patience, False
        self.nccl: NCCL | None = None
        self.rank, self.size = self.world.rank, self.world.size
        of_machine = self.world.Split_type(MPI.COMM_TYPE_SHARED)
        self.local = of_machine.rank, of_machine.size

    def wait(self, done: Callable[[], bool], moving: bool = False) -> None:
        """Waits until done(). moving: all are there, and bytes move only while one asks for it; else this rank sleeps in between."""
        began, asked = time.monotonic(), 0
        while not self.told(done):
            if self.begun and time.monotonic() - began > self.patience:
                raise UserError(f"rank {self.rank} of {self.size} has waited {self.patience:g} s for the others, so one of them has stopped or is cut off: "
                                "the run can be resumed from its last checkpoint (--patience allows for more)")
            asked += 1
            time.sleep(0 if moving or asked < 200 else 1e-4)
        self.waited[moving] += time.monotonic() - began

    def told(self, call: Callable, *arguments: Any) -> Any:
        """What an MPI call gives; a UserError where another rank is gone."""
        try:
            return call(*arguments)
        except self.MPI.Exception as error:
            raise UserError(f"rank {self.rank} of {self.size} has lost the others ({str(error).splitlines()[0]}): the run can be resumed from its last "
                            "checkpoint") from None

    def gather(self, value: Any) -> list:
        data = np.frombuffer(pickle.dumps(value), np.uint8)
        sizes = np.zeros(self.size, np.int64)
        self.wait(self.told(self.world.Iallgather, np.array([len(data)], np.int64), sizes).Test)
        every = np.empty(int(sizes.sum()), np.uint8)
        self.wait(self.told(self.world.Iallgatherv, data, [every, sizes.tolist()]).Test, moving=True)
        return [pickle.loads(part.tobytes()) for part in np.split(every, np.cumsum(sizes)[:-1])]

    def share(self, value: Any) -> Any:
        return self.gather(value if self.rank == 0 else None)[0]

    def most(self, value: float) -> float:
        every = np.zeros(self.size)
        self.wait(self.told(self.world.Iallgather, np.array([value], np.float64), every).Test)
        return float(every.max())

    def take(self, device: Device) -> str | None:
        gpus = self.gather(gpu_of(device))
        self.nccl = NCCL(self, device.cupy) if None not in gpus and len(set(gpus)) == self.size else None      # type: ignore[attr-defined]
        return "NCCL" if self.nccl else " ".join(self.MPI.Get_library_version().split(",")[0].splitlines()[0].split())

    def exchange(self, device: Device, sent: Sequence[tuple[int, Array]], received: Sequence[tuple[int, Array]]) -> None:
        """Sends arrays of a device to other ranks, (rank, array), and receives such, in order with the launches; all ranks must be there."""
        if self.nccl and sent and not isinstance(sent[0][1], np.ndarray):
            return self.nccl.exchange(sent, received)
        host = [(rank, array if isinstance(array, np.ndarray) else np.empty(array.shape, array.dtype)) for rank, array in received]
        ready = [(rank, array if isinstance(array, np.ndarray) else device.to_numpy(array)) for rank, array in sent]
        requests = [self.told(self.world.Irecv, array, rank) for rank, array in host if array.size]
        requests += [self.told(self.world.Isend, array, rank) for rank, array in ready if array.size]
        self.wait(lambda: self.MPI.Request.Testall(requests), moving=True)
        for (_, array), (_, copy) in zip(received, host):
            if array is not copy:
                device.upload(array, copy)

    def swap(self, device: Device, sent: Array, received: Array) -> None:
        self.most(0)      # the other is there
        self.exchange(device, [(1 - self.rank, sent)], [(1 - self.rank, received)])

    def add(self, device: Device, blocks: list[tuple[int, int, Array]], pieces: Array = None) -> None:
        """A rank gets one piece of each block from each of the others, adds them up, and sends that sum to all: as many bytes as a ring moves."""
        if self.towers > 1:
            return super().add(device, blocks, pieces)
        self.most(0)      # all are there
        total, length, others = blocks[-1][2], pieces.shape[1], [rank for rank in range(self.size) if rank != self.rank]
        place = [slice(min(rank * length, total.size), min((rank + 1) * length, total.size)) for rank in range(self.size)]
        mine = place[self.rank]
        taken, added, sent, received, every = 0, PairwiseSum(device), [], [], []
        for rank in range(self.size):
            for number, (first, width) in enumerate(self.blocks(rank)):
                if rank == self.rank:
                    piece = blocks[number][2][mine]
                else:
                    piece = pieces[taken][:mine.stop - mine.start]
                    received.append((rank, piece))
                    taken += 1
                every.append((first, width, piece))
        sent = [(rank, array[place[rank]]) for _, _, array in blocks for rank in others]
        self.exchange(device, sent, received)
        for block in every:
            added.add(*block)
        result = added.total()
        if self.rank < self.size - 1:      # the last one has it there
            copied(device, result, total[mine])
        self.exchange(device, [(rank, total[mine]) for rank in others], [(rank, total[place[rank]]) for rank in others])

    def begin(self) -> None:
        self.gather(None)
        self.begun, self.waited = True, [0.0, 0.0]

    def close(self) -> None:
        self.gather(None)
        self.MPI.Finalize()

    def abort(self, code: int) -> NoReturn:
        """Ends all ranks; what MPI has to say of that is kept from standard error, on which everything was said."""
        for stream in sys.stdout, sys.stderr:
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        time.sleep(HEARD)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        self.world.Abort(code)
        raise SystemExit(code)


def opened(patience: float = 120.0) -> Team:
    """The team that this process belongs to."""
    rank, size = world()
    if size == 1:
        return Team()
    try:
        import mpi4py
        mpi4py.rc.finalize, mpi4py.rc.thread_level = False, "funneled"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")      # of another mpiexec, which is told below
            from mpi4py import MPI
    except ImportError as error:
        raise UserError(f"{size} processes were started to train together, for which mpi4py is missing ({error}): pip install 'minialex[mpi]'") from None
    except RuntimeError as error:
        raise UserError(f"{size} processes were started to train together, and mpi4py finds no MPI library ({str(error).splitlines()[0]}): "
                        "pip install 'minialex[mpi]', or name the library in MPI4PY_LIBMPI") from None
    if MPI.COMM_WORLD.size != size:
        raise UserError(f"mpiexec has started {size} processes, and each of them sees {MPI.COMM_WORLD.size}: it is that of another MPI than mpi4py's "
                        f"({MPI.Get_library_version().split(chr(10))[0].strip()[:60]}); take the mpiexec that belongs to it, or --ranks {size}")
    return MPITeam(MPI, patience)


def launch(ranks: int, size: int, arguments: list[str]) -> NoReturn:
    """Goes on as an mpiexec that starts Python with these arguments in so many processes."""
    if size > 1 or LAUNCHED in os.environ:
        raise UserError(f"--ranks {ranks}: mpiexec has started {size} of them; leave it out, or mpiexec")
    command = mpiexec()
    if command is None:
        raise UserError(f"--ranks {ranks}: there is no mpiexec to start them with: pip install 'minialex[mpi]'")
    os.environ[LAUNCHED] = "1"
    os.execv(command, [command, "-n", str(ranks), sys.executable, *arguments])


def mpiexec() -> str | None:
    """The path of this environment's own mpiexec, else of the first that the shell would find; None: there is none."""
    beside = os.path.join(sysconfig.get_path("scripts"), "mpiexec")
    return beside if os.path.exists(beside) else shutil.which("mpiexec")


@contextlib.contextmanager
def one_at_a_time() -> Iterator[None]:
    """While it is entered, other processes of this user that enter it wait."""
    with contextlib.ExitStack() as held:
        with contextlib.suppress(ImportError, OSError):      # a system or a file system without such locks: both do the same work then
            import fcntl
            user_cache().mkdir(parents=True, exist_ok=True, mode=0o700)
            fcntl.flock(held.enter_context(open(user_cache() / ".lock", "wb")), fcntl.LOCK_EX)
        yield
