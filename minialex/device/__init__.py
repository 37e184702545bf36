"""Where kernels run: `cpu` (the C++ compiler), `cuda` (CuPy), `numpy` (the references)."""

import re
import sys
from collections.abc import Callable

from ..errors import UserError
from .base import Array, Device
from .kernel import Kernel, kernel

DEVICES = "auto", "cpu", "cuda", "numpy"


def in_short(device: Device, reason: str) -> str:
    """A device and why it was chosen, as a line that leaves out what stands in brackets."""
    return f"{device.name} ({re.sub(r' [(].*', '', reason)}): {re.sub(r' [(].*?[)]', '', str(device))}"


def check_name(name: str) -> str:
    """The name of a device as it is; refuses any other."""
    if name not in DEVICES and not re.fullmatch(r"cuda:\d{1,4}", name):
        raise UserError(f"unknown device {name!r}: choose {', '.join(DEVICES)}, or one of several GPUs, cuda:0, cuda:1, ...")
    return name


def open_device(name: str = "auto", threads: int | None = None, announce: Callable[[str], object] | None = None) -> tuple[Device, str]:
    """The device of that name, and why it was chosen. -> (device, reason)

    `announce` is called with a line of text before something slow (a first compilation).
    """
    if check_name(name) == "numpy":
        import numpy as np

        from .reference import Reference
        return Reference(np.float32), "asked for"
    reason = "asked for"
    if name != "cpu":
        from . import cuda
        number = int(name.removeprefix("cuda:")) if ":" in name else 0
        missing = cuda.why_not(number)
        if not missing:
            return cuda.CUDA(threads, number), "a working GPU was found" if name == "auto" else "asked for"
        if name != "auto":
            raise UserError(f"--device {name}: {missing}")
        reason = missing
    if sys.platform == "win32":
        raise UserError(f"the CPU of a Windows machine computes only under WSL, the Linux in Windows{'' if name == 'cpu' else f', and no GPU was found: {reason}'}; "
                        "--device cuda is for NVIDIA GPUs, --device numpy works anywhere, slowly")
    from .cpu import CPU
    return CPU(threads, announce), reason
