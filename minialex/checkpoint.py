"""Run folders and their checkpoints: safetensors files that hold weights, momentum, and where the run stands."""

import contextlib
import io
import json
import os
import re
import zlib
from pathlib import Path

import numpy as np

from . import nets
from .data.augment import Input
from .errors import UserError
from .network import Network

# What `write_beside` has not finished when it is killed, of the files that a run folder holds.
UNFINISHED = re.compile(r"\.((last|best)\.safetensors|config\.json|metrics\.jsonl|report\.html|mean\.npy|[a-z]+\.png)\.\d+")
# What a config.json has.
CONFIG = {"net": str, "size": int, "input": dict, "classes": list, "threads": int, "options": dict, "machine": dict, "data": dict}


def write_beside(path, data):
    """Writes bytes or text to `path` so that a reader, or a kill at any moment, sees the old file or the new one."""
    path = Path(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(beside, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}): free space or give another folder; what was there before is still there") from None
    finally:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)


def take_lock(file, sentence):
    """Locks a file or folder, open, until it is closed or the process ends; a UserError with this sentence if another process has it."""
    try:
        import fcntl
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(sentence) from None
    except (ImportError, OSError):      # a system or a network file system without such locks
        pass


class Lock:
    """Keeps a second run out of a run folder until it is released, or the process ends in whatever way; first removes what a kill has
    left half written there."""

    def __init__(self, folder):
        try:
            self.file = open(Path(folder) / ".lock", "w")
        except OSError as error:
            raise UserError(f"the run folder {folder} cannot be written ({error.strerror}): make it writable, or give another --out") from None
        take_lock(self.file, f"another run is writing to {folder} now: wait for it, or give another --out")
        for path in Path(folder).iterdir():
            if UNFINISHED.fullmatch(path.name):
                with contextlib.suppress(OSError):
                    path.unlink()

    def release(self):
        self.file.close()


def save(path, network, state, optimizer=True):
    """Saves the parameters and `state` (a dict, as JSON); with `optimizer` also what it keeps of each, and the scores since they were reset."""
    from safetensors.numpy import save as to_bytes
    network.device.synchronize()
    tensors = {name: network.device.to_numpy(array) for name, array in arrays_of(network, optimizer).items()}
    text = json.dumps(state)
    write_beside(path, to_bytes(tensors, {"minialex": text, "net": network.net.name, "crc32": checksum(tensors, text, network.net.name)}))


def arrays_of(network, optimizer):
    """What a checkpoint holds of a network: {name: device array}"""
    arrays = {f"parameter {name}": array for name, array in network.parameters.items()}
    return arrays | network.state | {"totals": network.arrays["output totals"]} if optimizer else arrays


def checksum(tensors, text, net):
    """Of all that a checkpoint says: a byte of the file's header may be damaged as well as one of the arrays."""
    found = zlib.crc32(f"{net} {text}".encode())
    for name in sorted(tensors):
        found = zlib.crc32(f"{name} {tensors[name].dtype} {tensors[name].shape}".encode(), found)
        found = zlib.crc32(np.ascontiguousarray(tensors[name]), found)
    return str(found)


def read(path):
    """-> (tensors, state, name of the net): all that a checkpoint holds, checked for damage."""
    from safetensors import SafetensorError, safe_open
    if not Path(path).exists():
        raise UserError(f"{path} is missing: is this the folder of a run that has saved a checkpoint?")
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


def load(path):
    """-> (parameters, kept, state): {name: array}, {"velocity name": array} of the optimizer and "totals", and what was saved beside them."""
    tensors, state, _ = read(path)
    parameters = {key.split(" ", 1)[1]: value for key, value in tensors.items() if key.startswith("parameter ")}
    return parameters, {key: value for key, value in tensors.items() if not key.startswith("parameter ")}, state


def restore(path, network):
    """Loads a checkpoint into a network; into one that is trained, what its optimizer keeps too. -> state"""
    tensors, state, net = read(path)
    wanted, faults = arrays_of(network, network.training), []
    if net != network.net.name:
        faults.append(f"it is of net {net}, not {network.net.name}")
    faults += [f"it lacks {name}" for name in wanted if name not in tensors]
    faults += [f"it has {name}, for which there is no place" for name in tensors if name not in wanted and (network.training or name.startswith("parameter "))]
    faults += [f"its {name} has shape {tensors[name].shape} instead of {tuple(array.shape)}" for name, array in wanted.items()
               if name in tensors and tensors[name].shape != tuple(array.shape)]
    if faults:
        raise UserError(f"{path} is not of the run that config.json beside it describes ({faults[0]}): put the run's own checkpoint there")
    for name, array in wanted.items():
        network.device.upload(array, tensors[name])
    return state


def save_mean(run, image):
    """Keeps the training set's mean image, float32 (side, side, 3), in a run folder."""
    data = io.BytesIO()
    np.save(data, image)
    write_beside(Path(run) / "mean.npy", data.getvalue())


def load_mean(run, side):
    """The mean image of a run, float32 (side, side, 3)."""
    path = Path(run) / "mean.npy"
    try:
        image = np.load(path)
        if image.shape != (side, side, 3):
            raise ValueError(f"its shape is {image.shape}, not {(side, side, 3)}")
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}, the mean image that the net's input needs, cannot be read ({error})") from None
    return image


def read_config(run):
    """The config.json of a run folder."""
    path = Path(run) / "config.json"
    try:
        config = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{run} is not a run folder: it has no config.json") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error})") from None
    missing = [key for key, kind in CONFIG.items() if not isinstance(config, dict) or not isinstance(config.get(key), kind)]
    try:
        input = None if missing else Input.from_config(config)
    except TypeError:
        missing = ["input"]
    if missing or input.size != config["size"]:
        raise UserError(f"{path} does not describe a run (its {(missing or ['size'])[0]} is missing or not as it should be): it is damaged, or of "
                        "another version of minialex, which can still use it")
    return config


def open_network(run, device, batch, which=None):
    """A trained network for evaluation. -> (network, config, path of its checkpoint)

    which: "best" (by validation top-1) or "last"; None takes the best there is.
    """
    config = read_config(run)
    path = Path(run) / f"{which or 'best'}.safetensors"
    if which is None and not path.exists():
        path = Path(run) / "last.safetensors"
    net = nets.build(config["net"], len(config["classes"]), config["size"])
    input = Input.from_config(config)
    network = Network(net, device, batch, input=input, training=False, init=None)
    restore(path, network)
    network.load_mean(load_mean(run, input.side) if input.mean == "image" else None)
    return network, config, path


def same_bits(a, b):
    """Whether two {name: array} are equal bit for bit."""
    return a.keys() == b.keys() and all(np.array_equal(a[n].view(np.uint8), b[n].view(np.uint8)) for n in a)
