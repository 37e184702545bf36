"""Checkpoints: safetensors files that hold weights, what the optimizer keeps, and where the run stands."""

import json
import struct
import zlib
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..files import write_beside


def save(path, network, state, optimizer=True):
    """Saves the parameters and `state` (a dict, as JSON); with `optimizer` also what is kept of each, and the scores since they were reset; without,
    the parameters that evaluation goes by. All ranks of a team call it, and the first one writes."""
    network.device.synchronize()
    team, totals = network.team, {"totals": network.totals()} if optimizer else {}
    if team.rank and team.towers == 1:
        return
    tensors = {name: network.whole(array) for name, array in arrays_of(network, optimizer).items() if name != "totals"} | totals
    if team.rank:
        return
    write(path, tensors, state, network.net.name)


def write(path, tensors, state, net):
    """Saves arrays by name, `state` and the name of the net."""
    text = json.dumps(state)
    write_beside(path, to_bytes(tensors, {"minialex": text, "net": net, "crc32": checksum(tensors, text, net)}))


def to_bytes(tensors, about):
    """The bytes of a safetensors file, the same for the same content: safetensors' own writer puts the metadata in another order each time."""
    names = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))      # each array starts at a multiple of its item's size
    header, end = {"__metadata__": about}, 0
    for name in names:
        begin, end = end, end + tensors[name].nbytes
        header[name] = {"dtype": f"F{8 * tensors[name].itemsize}", "shape": tensors[name].shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([struct.pack("<Q", len(text)), text, *(np.ascontiguousarray(tensors[name]) for name in names)])


def arrays_of(network, optimizer):
    """What a checkpoint holds of a network: {name: device array}"""
    arrays = {f"parameter {name}": array for name, array in (network.parameters if optimizer else network.averages or network.parameters).items()}
    return arrays | network.state | {"totals": network.arrays["output totals"]} if optimizer else arrays


def checksum(tensors, text, net):
    """Of all that a checkpoint says: a byte of the file's header may be damaged as well as one of the arrays."""
    found = zlib.crc32(f"{net} {text}".encode())
    for name in sorted(tensors):
        found = zlib.crc32(f"{name} {tensors[name].dtype} {tensors[name].shape}".encode(), found)
        found = zlib.crc32(np.ascontiguousarray(tensors[name]), found)
    return str(found)


def require(path):
    if not Path(path).exists():
        raise UserError(f"{path} is missing: is this the folder of a run that has saved a checkpoint?")


def read(path):
    """-> (tensors, state, name of the net): all that a checkpoint holds, checked for damage."""
    from safetensors import SafetensorError, safe_open
    require(path)
    try:
        with safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            if "minialex" not in metadata:
                raise UserError(f"{path} was not written by minialex: put the run's own checkpoint there")
            tensors = {key: file.get_tensor(key) for key in file.keys()}
        state = json.loads(metadata["minialex"])
        if not isinstance(state, dict):
            raise ValueError("its metadata are not those of a run")
        if metadata.get("crc32") != checksum(tensors, metadata["minialex"], metadata.get("net")):
            raise ValueError("its checksum is wrong")
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}): use another checkpoint") from None
    return tensors, state, metadata.get("net")


def restore(path, network):
    """Loads a checkpoint into a network; into one that is trained, what is kept of its parameters too, into another their means. All ranks of a team
    call it, and the first one reads. -> state"""
    team = network.team
    tensors, state, net = read(path) if team.rank == 0 else ({}, {}, network.net.name)
    if not network.training:
        tensors |= {name.replace("average ", "parameter ", 1): array for name, array in tensors.items() if name.startswith("average ")}
    wanted, faults, shapes = arrays_of(network, network.training), [], network.net_of_all.parameters()
    if net != network.net.name:
        faults.append(f"it is of net {net}, not {network.net.name}")
    faults += [f"it lacks {name}" for name in wanted if name not in tensors]
    faults += [f"it has {name}, for which there is no place" for name in tensors if name not in wanted and (network.training or name.startswith("parameter "))]
    shapes = {name: shapes.get(name.split(" ")[-1], tuple(array.shape)) for name, array in wanted.items()}
    faults += [f"its {name} has shape {tensors[name].shape} instead of {shape}" for name, shape in shapes.items()
               if name in tensors and tensors[name].shape != shape]
    if faults and team.rank == 0:
        raise UserError(f"{path} is not of the run that config.json beside it describes ({faults[0]}): put the run's own checkpoint there")
    for name, array in wanted.items():
        value = team.share(tensors.get(name))
        network.device.upload(array, value if name == "totals" else network.own_part(value))
    return team.share(state)
