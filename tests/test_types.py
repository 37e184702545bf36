"""Whoever uses the package is told the types: every public function has them, of all parameters and of what it returns."""

import inspect
from importlib.resources import files

import minialex
from minialex import functional, gradcheck, nets
from minialex.device import Device, open_device
from minialex.device.cpu import CPU
from minialex.device.cuda import CUDA
from minialex.device.reference import Reference
from minialex.network import Network
from minialex.ops.conv import Conv
from minialex.ops.dense import Dense
from minialex.ops.dropout import Dropout
from minialex.ops.layer import Layer
from minialex.ops.lrn import LRN
from minialex.ops.pool import MaxPool
from minialex.ops.relu import ReLU
from minialex.optim import SGD, Adam, Schedule

FUNCTIONS = [*(getattr(functional, name) for name in functional.__all__), open_device, nets.build, nets.from_description,
             gradcheck.check, gradcheck.check_direction, gradcheck.check_op, gradcheck.compare]
CLASSES = [Layer, Conv, Dense, MaxPool, LRN, Dropout, ReLU, nets.Net, nets.Summary, Network, SGD, Adam, Schedule, Device, CPU, CUDA, Reference]
OFFERED = [getattr(minialex, name) for name in getattr(minialex, "__all__", ())]


def public(kind):
    """(name, function) of a class's own methods and properties."""
    for name, member in vars(kind).items():
        member = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
        written = inspect.isfunction(member) and member.__module__ == kind.__module__ and member.__name__ != "<lambda>"      # not a dataclass's own
        if written and (not name.startswith("_") or name in ("__init__", "__call__")):
            yield f"{kind.__name__}.{name}", member


def test_every_public_function_says_its_types():
    functions = {member.__qualname__: member for member in [*FUNCTIONS, *OFFERED] if inspect.isfunction(member)}
    for kind in {*CLASSES, *filter(inspect.isclass, OFFERED)}:
        functions |= dict(public(kind))
    missing = []
    for name, function in functions.items():
        signature = inspect.signature(function)
        missing += [f"{name}({place})" for place, parameter in signature.parameters.items()
                    if parameter.annotation is parameter.empty and place not in ("self", "cls")]
        missing += [f"{name} ->"] * (signature.return_annotation is signature.empty)
    assert not missing


def test_the_package_says_that_it_is_typed():
    assert (files("minialex") / "py.typed").is_file()
