"""Files of weights that other libraries write, read as plain arrays by name; what they mean, weights.py knows.

    .safetensors                 by the package
    .pth, .pt, .bin, .tar        by torch.load(weights_only=True), which runs no code of the file
    .npz, .npy                   numpy's; a .npy that holds a pickled dict, as Caffe dumps do, is taken by an unpickler that knows arrays alone
    .h5, .hdf5, .keras           Keras', by h5py
    .caffemodel, .binaryproto    Caffe's, by protobuf's own wire reader; numbers of fields from caffe.proto
"""

import contextlib
import io
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError, shown

KINDS = {".safetensors": "torch", ".pth": "torch", ".pt": "torch", ".bin": "torch", ".tar": "torch", ".npz": "numpy", ".npy": "numpy", ".h5": "keras",
         ".hdf5": "keras", ".keras": "keras", ".caffemodel": "caffe"}
# What a pickle of arrays alone asks for: nothing of it runs code of the file's.
ARRAYS = {("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct"), ("numpy.core.multiarray", "scalar"),
          ("numpy._core.multiarray", "scalar"), ("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode"), ("collections", "OrderedDict")}


@dataclass
class Found:
    """What a file holds: `arrays` by name, in the file's order; `kind`, whose library's it is; of Caffe's also the layers that it names, in order."""

    path: str
    kind: str
    arrays: dict[str, np.ndarray]
    layers: list[str] = field(default_factory=list)


def read(path: str | os.PathLike) -> Found:
    """All arrays of a file. A UserError names a file that cannot be read, and the package that reading it needs."""
    place, name = Path(path), shown(path)
    ending = place.suffix.lower()
    if ending not in KINDS:
        raise UserError(f"{name}: expected a run folder, or weights in a file that ends in {', '.join(KINDS)}")
    if not place.is_file():
        raise UserError(f"{name}: " + ("it is no file" if place.exists() else "No such file or directory"))
    kind = KINDS[ending]
    layers: list[str] = []
    try:
        if ending == ".safetensors":
            arrays = from_safetensors(place)
        elif kind == "torch":
            arrays = from_torch(place)
        elif kind == "keras":
            arrays = from_keras(place)
        elif kind == "caffe":
            arrays, layers = from_caffe(place.read_bytes())
        else:
            arrays = from_numpy(place)
    except ImportError as error:
        package = (error.name or "").split(".")[0]
        extra = {"h5py": "pip install 'minialex[keras]'", "google": "pip install 'minialex[caffe]'"}.get(package, f"pip install {package or 'it'}")
        raise UserError(f"{name}: reading it needs a package that is not installed ({extra})") from None
    except UserError:
        raise
    except Exception as error:      # whatever a library says of a file that is damaged or of another kind
        raise UserError(f"{name} cannot be read as what its ending says ({type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]})") from None
    return Found(name, kind, dict(arrays), layers)


def from_safetensors(path: Path) -> dict[str, np.ndarray]:
    from safetensors import safe_open
    with safe_open(path, "numpy") as file:
        if "minialex" in (file.metadata() or {}):
            raise UserError(f"{shown(path)} is a checkpoint of minialex: name its run folder, {shown(path.parent)}, whose config.json says what it is")
        return {key: file.get_tensor(key) for key in file.keys()}


def from_torch(path: Path) -> dict[str, np.ndarray]:
    import torch
    held = torch.load(path, map_location="cpu", weights_only=True)
    for key in "state_dict", "model_state_dict", "model":      # a checkpoint of a training program
        if isinstance(held, Mapping) and isinstance(held.get(key), Mapping):
            held = held[key]
    return dict(flat(held))


def from_numpy(path: Path) -> dict[str, np.ndarray]:
    if path.suffix.lower() == ".npz":
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    with open(path, "rb") as opened:
        version = np.lib.format.read_magic(opened)
        reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        if not reader(opened)[2].hasobject:
            raise UserError(f"{shown(path)} holds one array, and a net's weights are several: expected a dict of arrays, as np.save(path, dict) keeps it")
        held = Arrays(opened, encoding="latin1").load()
    return dict(flat(held.item() if isinstance(held, np.ndarray) and held.ndim == 0 else held))


class Arrays(pickle.Unpickler):
    """Takes numpy's arrays in dicts, lists and tuples, and refuses whatever else a pickle would make or call."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ARRAYS:
            raise UserError(f"the pickle asks for {module}.{name}, and a file of weights needs arrays alone: it is not opened, since it might run any program")
        if name == "OrderedDict":
            return OrderedDict
        if module.endswith("multiarray"):
            module = np.ndarray.__reduce__(np.empty(0))[0].__module__      # where this numpy has it
        return super().find_class(module, name)


def flat(held: Any, name: str = "") -> Iterator[tuple[str, np.ndarray]]:
    """(name, array) of arrays in dicts and lists inside each other, the names joined by slashes."""
    if hasattr(held, "detach"):      # of torch, perhaps in bfloat16, which numpy lacks
        held = held.detach().float().cpu().numpy() if held.is_floating_point() else held.cpu().numpy()
    if isinstance(held, Mapping):
        for key, part in held.items():
            yield from flat(part, f"{name}/{key}" if name else str(key))
    elif isinstance(held, (list, tuple)) or isinstance(held, np.ndarray) and held.dtype == object:
        for i, part in enumerate(held):
            yield from flat(part, f"{name}/{i}")
    elif isinstance(held, np.ndarray):
        yield name, held


def from_keras(path: Path) -> dict[str, np.ndarray]:
    """Of a model or its weights, without the optimizer's."""
    import h5py
    source: Any = path
    if path.suffix == ".keras":
        with zipfile.ZipFile(path) as archive:
            source = io.BytesIO(archive.read("model.weights.h5"))
    arrays: dict[str, np.ndarray] = {}

    def take(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and "optimizer" not in name.split("/")[0] and item.dtype.kind == "f":
            arrays[name] = item[()]
    with h5py.File(source, "r") as file:
        file.visititems(take)
    return arrays


# ---------------------------------------------------------------- Caffe

def fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """(number, value) of a protobuf message's fields, whose meaning nobody needs to know: bytes, or an integer."""
    from google.protobuf.empty_pb2 import Empty
    from google.protobuf.unknown_fields import UnknownFieldSet
    holder = Empty()
    holder.ParseFromString(message)
    for one in UnknownFieldSet(holder):
        yield one.field_number, one.data


def from_caffe(data: bytes) -> tuple[dict[str, np.ndarray], list[str]]:
    """Of a NetParameter: {"conv1/0": weight, "conv1/1": bias, ...} and the names of its layers, of the old kind (layers = 2) or the new (layer = 100)."""
    arrays, layers = {}, []
    for number, value in fields(data):
        if number in (2, 100):
            of = list(fields(value))
            name = next((bytes(value).decode() for key, value in of if key == (4 if number == 2 else 1)), "")
            layers.append(name)
            for i, value in enumerate(value for key, value in of if key == (6 if number == 2 else 7)):
                arrays[f"{name}/{i}"] = blob(value)
    if not arrays:
        raise ValueError("no layer in it has weights")
    return arrays, layers


def blob(message: bytes) -> np.ndarray:
    """The array of a BlobProto: data = 5 or double_data = 8, packed; shape = 7, or the old num, channels, height and width = 1 to 4."""
    found = list(fields(message))
    at = dict(found)
    values = np.concatenate([np.frombuffer(value, "<f4" if key == 5 else "<f8").astype(np.float32) for key, value in found if key in (5, 8)] or [np.zeros(0, np.float32)])
    if 7 in at:
        shape = tuple(int(dim) for dim in numbers(next(value for key, value in fields(at[7]) if key == 1)))
    else:      # always of four, so that a matrix has two ones before it and a vector three
        shape = tuple(int(at.get(i, 1)) for i in (1, 2, 3, 4))
        shape = shape[2:] if shape[:2] == (1, 1) else shape
        shape = shape[1:] if len(shape) == 2 and shape[0] == 1 else shape
    return values.reshape(shape)


def numbers(packed: bytes) -> Iterator[int]:
    """Of a packed field of whole numbers: seven bits a byte, the lowest first."""
    value = shift = 0
    for byte in packed:
        value, shift = value | (byte & 127) << shift, shift + 7
        if byte < 128:
            yield value
            value = shift = 0


def mean_image(path: str | os.PathLike) -> np.ndarray:
    """float32 (side, side, 3), in R, G, B: of a .binaryproto of Caffe's or a .npy, (3, side, side) in B, G, R as Caffe keeps its mean, or (side, side, 3)
    in R, G, B as a run folder does."""
    name, place = shown(path), Path(path)
    try:
        image = blob(place.read_bytes()) if place.suffix.lower() == ".binaryproto" else np.load(place, allow_pickle=False)
    except OSError as error:
        raise UserError(f"{name}: {error.strerror or 'it cannot be read'}") from None
    except ImportError:
        raise UserError(f"{name}: reading it needs a package that is not installed (pip install 'minialex[caffe]')") from None
    except Exception as error:
        raise UserError(f"{name} cannot be read as a mean image ({error})") from None
    with contextlib.suppress(ValueError):
        image = image.reshape(image.shape[-3:])
    if image.ndim == 3 and image.shape[0] == 3 and image.shape[1] == image.shape[2]:
        image = image.transpose(1, 2, 0)[:, :, ::-1]
    if image.ndim != 3 or image.shape[2] != 3 or image.shape[0] != image.shape[1]:
        raise UserError(f"{name}: expected a mean image of shape (3, side, side) in B, G, R or (side, side, 3) in R, G, B, got {image.shape}")
    return np.ascontiguousarray(image, np.float32)
