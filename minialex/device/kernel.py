"""A kernel as Python sees it: its source file, its declared arguments, and its numpy reference."""

import functools
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SCALARS = {"int": np.int32, "unsigned": np.uint32, "long long": np.int64, "unsigned long long": np.uint64,
           "float": np.float32, "double": np.float64, "unsigned char": np.uint8}


def sources():
    """The folder of the .cu files: minialex/kernels in a wheel, else the sibling kernels/ of a clone."""
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "kernels", package.parent / "kernels"):
        if (folder / "grid.cuh").exists():
            return folder
    raise FileNotFoundError(f"no kernels in {package / 'kernels'} nor in {package.parent / 'kernels'}: reinstall minialex")


def source_text(file):
    """A .cu file with its headers put in place, so that a compiler's cache sees a change in any of them."""
    seen = set()

    def inlined(path):
        lines = []
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith('#include "'):
                header = path.parent / line.split('"')[1]
                if header not in seen:
                    seen.add(header)
                    lines += inlined(header)
            elif line != "#pragma once":
                lines.append(line)
        return lines

    return "\n".join(inlined(Path(file)))


@functools.lru_cache(maxsize=None)
def declarations(path):
    """{kernel: [Argument, ...]} as declared with KERNEL in a .cu file."""
    return declared_in(Path(path).read_text(encoding="utf-8"))


def declared_in(text):
    """As `declarations`, of the text of a .cu file."""
    text = re.sub(r"//[^\n]*", "", text)
    return {name: [Argument(a) for a in arguments.split(",")]
            for name, arguments in re.findall(r"^KERNEL\s+(\w+)\s*\(([^)]*)\)", text, re.M)}


class Argument:
    """One declared argument: `const float* x` has name x, dtype float32, and is a pointer that is not written."""

    def __init__(self, text):
        self.type, self.name = re.fullmatch(r"\s*(.*?)\s*(\w+)\s*", text, re.S).groups()
        self.type = " ".join(self.type.split())
        self.pointer = self.type.endswith("*")
        self.written = self.pointer and not self.type.startswith("const ")
        self.dtype = np.dtype(SCALARS[re.sub(r"^const |\*$", "", self.type).strip()])

    def check(self, value, array_type, device):
        """The value as the kernel takes it (an array, or a numpy scalar of the declared width); refuses anything else."""
        if self.pointer:
            if not isinstance(value, array_type):
                raise TypeError(f"{self.name}: expected an array of device {device}, got {type(value).__module__}.{type(value).__name__}")
            if value.dtype != self.dtype:
                raise TypeError(f"{self.name}: expected dtype {self.dtype}, got {value.dtype}")
            if not value.flags.c_contiguous:
                raise ValueError(f"{self.name}: expected a C-contiguous array, got strides {value.strides} for shape {value.shape}")
            if self.written and not getattr(value.flags, "writeable", True):
                raise ValueError(f"{self.name}: the kernel writes to this array, but it is read-only")
            return value
        if isinstance(value, np.generic):
            if value.dtype != self.dtype:
                raise TypeError(f"{self.name}: expected {self.type} ({self.dtype}), got numpy.{value.dtype}")
            return value
        if self.dtype.kind == "f" and isinstance(value, (int, float)):
            return self.dtype.type(value)
        if self.dtype.kind in "iu" and isinstance(value, int):
            limits = np.iinfo(self.dtype)
            if not limits.min <= value <= limits.max:
                raise OverflowError(f"{self.name}: {value} does not fit into {self.type}")
            return self.dtype.type(value)
        raise TypeError(f"{self.name}: expected {self.type}, got {type(value).__name__} {value!r}")


class Kernel:
    """A kernel of a .cu file beside the numpy reference that takes the same arguments in the same order."""

    def __init__(self, source, reference):
        self.source, self.name, self.reference = source, reference.__name__, reference
        self.__doc__ = reference.__doc__

    @functools.cached_property
    def arguments(self):
        declared = declarations(sources() / self.source)[self.name]
        named = list(inspect.signature(self.reference).parameters)
        if named != [a.name for a in declared]:
            raise TypeError(f"{self.source}: {self.name} declares {[a.name for a in declared]}, its reference takes {named}")
        return declared

    def bind(self, values, array_type, device):
        """The checked values of a launch, the number of rows first."""
        if len(values) != len(self.arguments):
            raise TypeError(f"{self.name} takes {len(self.arguments)} arguments ({', '.join(a.name for a in self.arguments)}), got {len(values)}")
        try:
            return [a.check(v, array_type, device) for a, v in zip(self.arguments, values)]
        except (TypeError, ValueError, OverflowError) as error:
            raise type(error)(f"{self.name}: {error}") from None

    def packed(self, values):
        """Checked values in 8 bytes each, as a launch hands them on: addresses, and scalars in their own width."""
        slots = np.zeros(len(values), np.uint64)
        for i, (declared, value) in enumerate(zip(self.arguments, values)):
            if declared.pointer:
                slots[i] = address(value)
            else:
                slots[i:i + 1].view(declared.dtype)[0] = value
        return slots


def address(array: Any) -> int:
    """Of an array's first element, in the memory of the host or of a GPU."""
    return array.data.ptr if hasattr(array.data, "ptr") else array.ctypes.data


def kernel(source: str) -> Callable[[Callable[..., None]], Kernel]:
    """Decorates the numpy reference of the kernel of the same name in `source`, and gives the Kernel to launch."""
    return functools.partial(Kernel, source)
