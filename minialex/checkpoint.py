"""Run folders and their checkpoints: safetensors files that hold weights, momentum, and where the run stands."""

import json
import os
from pathlib import Path

import numpy as np

from . import nets
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
    finally:
        beside.unlink(missing_ok=True)


def save(path, network, state, velocity=True):
    """Saves the parameters, with `velocity` the momentum too, and `state` (JSON) as metadata."""
    from safetensors.numpy import save as to_bytes
    network.device.synchronize()
    tensors = {f"parameter {name}": network.device.to_numpy(array) for name, array in network.parameters.items()}
    if velocity:
        tensors |= {f"velocity {name}": network.device.to_numpy(array) for name, array in network.velocity.items()}
    write_beside(path, to_bytes(tensors, {"minialex": json.dumps(state)}))


def load(path):
    """-> (parameters, velocity, state): {name: array} twice, and what was saved beside them."""
    from safetensors import SafetensorError, safe_open
    if not Path(path).is_file():
        raise UserError(f"{path} is missing: is this the folder of a run that has saved a checkpoint?")
    try:
        with safe_open(path, "numpy") as file:
            metadata = (file.metadata() or {}).get("minialex")
            if metadata is None:
                raise UserError(f"{path} was not written by minialex")
            kinds = {"parameter": {}, "velocity": {}}
            for key in file.keys():
                kind, name = key.split(" ", 1)
                kinds[kind][name] = file.get_tensor(key)
    except SafetensorError as error:
        raise UserError(f"{path} is damaged ({error}): use another checkpoint") from None
    return kinds["parameter"], kinds["velocity"], json.loads(metadata)


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
    network = Network(net, device, batch, side=config["side"], training=False, init=None)
    network.load_parameters(parameters)
    return network, config, path


def same_bits(a, b):
    """Whether two {name: array} are equal bit for bit."""
    return a.keys() == b.keys() and all(np.array_equal(a[n].view(np.uint8), b[n].view(np.uint8)) for n in a)
