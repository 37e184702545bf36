"""The stand-in for CuPy as a whole process imports it: with this folder and tests/ on PYTHONPATH, for commands that tests start.

STAND_IN_GPUS is their number, 1 unless set. STAND_IN_FAULT=KERNEL:address (or :death, :hang) lets each launch of a kernel go wrong as it may on a GPU.
"""

import ctypes
import os
import signal
import sys
import time

from simt import stand_in

sys.modules.update(stand_in.install())
load = ctypes.CDLL
ctypes.CDLL = lambda name, *more, **options: stand_in.Library(name) if str(name).startswith("libcublas.so") else load(name, *more, **options)
stand_in.gpu.devices = int(os.environ.get("STAND_IN_GPUS", "1"))
fault = os.environ.get("STAND_IN_FAULT", "").split(":")


def wrong():
    if fault[1] == "death":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif fault[1] == "hang":
        time.sleep(600)
    else:
        stand_in.gpu.bytes(0, 1)


class Launches(list):
    def append(self, launch):
        super().append(launch)
        if launch[0] == fault[0]:
            stand_in.get_current_stream()._push(wrong)


stand_in.gpu.launches = Launches()
