"""A step while Python is busy: one call plays the whole recording, so that a step waits for no interpreter.

What a spinning Python thread may cost is its fair share of a core, no more. How much that is, the same loop in a process of
its own shows: it takes the same share from the scheduler, but shares no interpreter with the step.
"""

import contextlib
import os
import subprocess
import sys
import threading
import time

import pytest
from test_network import drawn, network

from minialex.device.cpu import CPU, Tape
from minialex.nets import build

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
ROUNDS = 10         # at most: other programs on the cores can only make a step slower, so the quickest is compared
RETURNS = 3         # to Python in a step (after copying the images, after the recording): each waits for the thread's turn to end
NOISE = 1.15

if CORES == 1:
    pytest.skip("one core: a spinning thread would share it with every step", allow_module_level=True)


@contextlib.contextmanager
def busy_thread():
    spinning, stop = threading.Event(), False

    def spin():
        spinning.set()
        while not stop:
            pass
    thread = threading.Thread(target=spin)
    thread.start()
    spinning.wait()
    try:
        yield
    finally:
        stop = True
        thread.join()


@contextlib.contextmanager
def busy_process():
    with subprocess.Popen([sys.executable, "-c", "print(flush=True)\nwhile True: pass"], stdout=subprocess.PIPE) as process:
        try:
            process.stdout.readline()
            yield
        finally:
            process.kill()


BESIDE = {"nothing": contextlib.nullcontext, "a process": busy_process, "a thread": busy_thread}


class Times:
    """The quickest milliseconds of a call beside each of the above, from rounds of a few calls beside each in turn."""

    def __init__(self, call):
        self.call, self.quickest = call, dict.fromkeys(BESIDE, float("inf"))

    def round(self, calls=3):
        for name, beside in BESIDE.items():
            with beside():
                for _ in range(calls):
                    began = time.perf_counter()
                    self.call()
                    self.quickest[name] = min(self.quickest[name], 1e3 * (time.perf_counter() - began))

    def fair(self):
        """What a call may take beside a spinning thread: as long as beside a process, and its returns to Python."""
        return NOISE * max(self.quickest["nothing"], self.quickest["a process"]) + RETURNS * 1e3 * sys.getswitchinterval()

    def held_up(self):
        return self.quickest["a thread"] > self.fair()

    def __str__(self):
        beside = ", ".join(f"{best:.0f} ms beside {name}" for name, best in self.quickest.items())
        return f"{beside}; may take {self.fair():.0f} ms"


def training(threads, batch):
    """A network on so many threads and a call that takes one step."""
    net = build("half", 10, 64)
    own, data = network(net, CPU(threads), batch), drawn(net, batch)
    own.train_step(*data, 0, 0.0)
    return own, lambda: own.train_step(*data, 0, 0.0)


@pytest.mark.parametrize("threads", [CORES - 1, CORES], ids=["a core is free for the thread", "all cores are the step's"])
def test_a_busy_interpreter_costs_a_step_its_share_of_a_core_only(threads):
    """With a core left over that share is nothing, and the bound a quarter more than undisturbed. With none, each phase waits
    for the part that shares its core: up to twice the time, also beside a process."""
    times = Times(training(threads, 64)[1])
    for done in range(1, ROUNDS + 1):
        times.round()
        if done > 1 and not times.held_up():
            break
    print(f"{threads} of {CORES} cores: {times}")
    assert not times.held_up(), f"{threads} of {CORES} cores: {times}"


@pytest.mark.skipif(not getattr(sys, "_is_gil_enabled", lambda: True)(), reason="a Python without a global lock")
def test_launches_from_python_would_be_held_up():
    """The same step, phase by phase from Python: the measurement above would see it."""
    own, step = training(CORES - 1, 16)
    step()
    phases = []
    for phase in own.tapes["train", 16].phases:
        phases.append(Tape(own.device))
        phases[-1].phases = [phase]
    times = Times(lambda: [phase.play() for phase in phases])
    for _ in range(ROUNDS):
        times.round(calls=1)
        if times.held_up():
            break
    print(f"{len(phases)} phases: {times}")
    assert times.held_up(), f"{len(phases)} phases: {times}"
