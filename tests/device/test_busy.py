"""A step while Python is busy: one call plays the whole recording, and lets go of the interpreter's lock, so that a step waits for no interpreter."""

import ctypes

import pytest
from test_network import drawn, mini, network, small

from minialex.device.cpu import CPU


class Counted:
    """A library that notes each call of one of its functions."""

    def __init__(self, library):
        self.library, self.calls = library, []

    def __getattr__(self, name):
        return lambda *arguments: self.calls.append(name) or getattr(self.library, name)(*arguments)


@pytest.mark.parametrize("net, batch, threads", [(mini(), 1, 1), (mini(), 9, 2), (mini(), 13, 3), (small("paper", 67, 16), 6, 2)],
                         ids=["mini, 1 image", "mini, 9 images", "mini, 3 threads", "paper"])
def test_a_step_is_one_call_that_holds_no_lock(net, batch, threads):
    device = CPU(threads)
    assert type(device.library) is ctypes.CDLL      # a PyDLL would hold the lock
    device.library = counted = Counted(device.library)
    own, data = network(net, device, batch), drawn(net, batch)
    steps = [lambda: own.train_step(*data, 0, 0.0), lambda: own.train_step(*data, 0, 0.0, timed=True),
             lambda: own.gradient(*data), lambda: own.evaluate(*data)]
    for step in steps:
        step()      # recorded
    assert len(own.tapes) == 3 and min(len(tape.phases) for tape in own.tapes.values()) > 5
    device.libraries = {}      # from here on no kernel is called alone
    for step in steps:
        counted.calls.clear()
        step()
        assert counted.calls == ["queue_play"]
