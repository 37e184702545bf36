"""Run folders and their checkpoints: safetensors files that hold weights, momentum, and where the run stands."""

import contextlib
import io
import json
import os
from pathlib import Path

import numpy as np

from . import nets
from .data.augment import Input
from .errors import UserError
from .network import Network


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


class Lock:
    """Keeps a second run out of a run folder until it is released, or the process ends in whatever way."""

    def __init__(self, folder):
        try:
            self.file = open(Path(folder) / ".lock", "w")
        except OSError as error:
            raise UserError(f"the run folder {folder} cannot be written ({error.strerror}): give another --out") from None
        try:
            import fcntl
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:      # a system without such locks
            pass
        except BlockingIOError:
            raise UserError(f"another run is writing to {folder} now: wait for it, or give another --out") from None

    def release(self):
        self.file.close()


def save(path, network, state, optimizer=True):
    """Saves the parameters, with `optimizer` what the optimizer keeps of each too, and `state` (JSON) as metadata."""
    from safetensors.numpy import save as to_bytes
    network.device.synchronize()
    tensors = {f"parameter {name}": network.device.to_numpy(array) for name, array in network.parameters.items()}
    if optimizer:
        tensors |= {name: network.device.to_numpy(array) for name, array in network.state.items()}
    write_beside(path, to_bytes(tensors, {"minialex": json.dumps(state)}))


def load(path):
    """-> (parameters, kept, state): {name: array}, {"velocity name": array} of the optimizer, and what was saved beside them."""
    from safetensors import SafetensorError, safe_open
    if not Path(path).is_file():
        raise UserError(f"{path} is missing: is this the folder of a run that has saved a checkpoint?")
    try:
        with safe_open(path, "numpy") as file:
            metadata = (file.metadata() or {}).get("minialex")
            if metadata is None:
                raise UserError(f"{path} was not written by minialex")
            tensors = {key: file.get_tensor(key) for key in file.keys()}
    except SafetensorError as error:
        raise UserError(f"{path} is damaged ({error}): use another checkpoint") from None
    parameters = {key.split(" ", 1)[1]: value for key, value in tensors.items() if key.startswith("parameter ")}
    return parameters, {key: value for key, value in tensors.items() if not key.startswith("parameter ")}, json.loads(metadata)


def save_mean(run, image):
    """Keeps the training set's mean image, float32 (side, side, 3), in a run folder."""
    data = io.BytesIO()
    np.save(data, image)
    write_beside(Path(run) / "mean.npy", data.getvalue())


def load_mean(run):
    path = Path(run) / "mean.npy"
    try:
        return np.load(path)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}, the mean image that the net's input needs, cannot be read ({error})") from None


def read_config(run):
    """The config.json of a run folder."""
    path = Path(run) / "config.json"
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{run} is not a run folder: it has no config.json") from None
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error})") from None


def open_network(run, device, batch, which=None):
    """A trained network for evaluation. -> (network, config, path of its checkpoint)

    which: "best" (by validation top-1) or "last"; None takes the best there is.
    """
    config = read_config(run)
    path = Path(run) / f"{which or 'best'}.safetensors"
    if which is None and not path.exists():
        path = Path(run) / "last.safetensors"
    parameters, _, _ = load(path)
    net = nets.build(config["net"], len(config["classes"]), config["size"])
    input = Input.from_config(config)
    network = Network(net, device, batch, input=input, training=False, init=None)
    network.load_parameters(parameters)
    network.load_mean(load_mean(run) if input.mean == "image" else None)
    return network, config, path


def same_bits(a, b):
    """Whether two {name: array} are equal bit for bit."""
    return a.keys() == b.keys() and all(np.array_equal(a[n].view(np.uint8), b[n].view(np.uint8)) for n in a)
