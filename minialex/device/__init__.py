"""Where kernels run: `cpu` (the C++ compiler), `cuda` (CuPy), `numpy` (the references)."""

import re
import sys
from collections.abc import Callable

from .base import Array, Device
from .kernel import Kernel, kernel

DEVICES = "auto", "cpu", "cuda", "numpy"


def in_short(device: Device, reason: str) -> str:
    """A device and why it was chosen, as a line that leaves out what stands in brackets."""
    return f"{device.name} ({re.sub(r' [(].*', '', reason)}): {re.sub(r' [(].*?[)]', '', str(device))}"


def open_device(name: str = "auto", threads: int | None = None, announce: Callable[[str], object] | None = None) -> tuple[Device, str]:
    """The device of that name, and why it was chosen. -> (device, reason)

    `announce` is called with a line of text before something slow (a first compilation).
    """
    from ..errors import UserError
    if name == "numpy":
        import numpy as np

        from .reference import Reference
        return Reference(np.float32), "asked for"
    if name not in DEVICES:
        raise UserError(f"unknown device {name!r}: choose {', '.join(DEVICES)}")
    reason = "asked for"
    if name != "cpu":
        from . import cuda
        missing = cuda.why_not()
        if not missing:
            return cuda.CUDA(threads), "asked for" if name == "cuda" else "a working GPU was found"
        if name == "cuda":
            raise UserError(f"--device cuda: {missing}")
        reason = missing
    if sys.platform == "win32":
        raise UserError(f"the CPU of a Windows machine computes only under WSL, the Linux in Windows{'' if name == 'cpu' else f', and no GPU was found: {reason}'}; "
                        "--device cuda is for NVIDIA GPUs, --device numpy works anywhere, slowly")
    from .cpu import CPU
    return CPU(threads, announce), reason
