"""python -m minialex.convert IN OUT: an AlexNet's weights from torchvision, Caffe or Keras into a run folder, and out again under torchvision's or Keras' names."""

from . import interrupts      # first: imports take a while, in which Ctrl-C ends the process without a word

import io
import os
import sys
import types
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from .command import parser_of, run_command, say
from .errors import UserError, shown
from .files import require_place, write_beside
from .nets import NETS, Net
from .run.checkpoint import to_bytes
from .run.weights import Weights, keep, named, read, to_keras, to_torchvision, with_mean
from .run.words import as_python

TORCH = ".safetensors", ".pth", ".pt"


def convert(source: str | os.PathLike | Mapping[str, Any], out: str | os.PathLike, *, net: str | Net | None = None, size: int | None = None,
            classes: str | os.PathLike | Iterable[str] | None = None, augment: str = "", mean: str | os.PathLike | None = None,
            channels: str | None = None) -> Path:
    """Takes an AlexNet's weights into a run folder, for minialex.load(), or out of one. -> OUT's path

    source: a run folder, a file (torchvision's .safetensors or .pth, Caffe's .caffemodel or a .npy or .npz dump, Keras' .h5, .weights.h5 or .keras)
    or a state dict of arrays. out: a folder that is not there yet; or a file that ends in .safetensors, .pth or .pt, for
    torchvision's names, or in .weights.h5, for Keras'. net: which one, where names
    and shapes leave it open (Caffe's two and the paper's have the same), or a Net of one's own. classes: their names, or a file with one in each
    line. augment: mean and scale of the input as training's --augment has them, where they are not those that the net was published with; mean: a file
    with a mean image. channels: "bgr" where the first layer takes blue first, which is the default of Caffe's nets. What does not fit is a UserError.
    """
    with as_python():
        converted(source, out, net=net, size=size, classes=classes, augment=augment, mean=mean, channels=channels)
    return Path(out)


def converted(source: Any, out: str | os.PathLike, *, net: str | Net | None = None, size: int | None = None, classes: Any = None, augment: str = "",
              mean: str | os.PathLike | None = None, channels: str | None = None) -> Weights:
    """Does what `convert` says. -> what was written"""
    ending = Path(out).suffix.lower()
    if ending in (*TORCH, ".h5"):
        require_place("OUT", os.fspath(out))
    weights = read(source, net, size, channels)
    if augment:
        weights = replace(weights, input=weights.input.with_text(augment))
    if mean is not None:
        weights = with_mean(weights, mean)
    if weights.input.to_measure and weights.mean is None:
        raise UserError(f"--augment {augment}: there is no training set here to measure: give the mean as R:G:B, or --mean FILE")
    if classes is not None:
        weights = replace(weights, classes=named(classes, weights.net.classes))
    if ending in TORCH:
        write_torch(out, to_torchvision(weights.net, weights.values))
    elif ending == ".h5":
        write_keras(out, to_keras(weights.net, weights.values))
    else:
        keep(weights, out)
    return weights


def write_torch(out: str | os.PathLike, arrays: dict[str, np.ndarray]) -> None:
    """A state dict as a file, by torch where the ending asks for it."""
    arrays = {name: np.asarray(array, np.float32) for name, array in arrays.items()}
    if Path(out).suffix.lower() not in TORCH:
        raise UserError(f"{shown(out)}: a state dict is written to a file that ends in {', '.join(TORCH)}: give it one of these endings")
    if Path(out).suffix.lower() == ".safetensors":
        return write_beside(out, to_bytes(arrays, {"format": "pt"}))
    try:
        import torch
    except ImportError:
        raise UserError(f"{shown(out)}: writing it needs PyTorch (pip install torch), and .safetensors does not") from None
    torch.save({name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}, held := io.BytesIO())
    write_beside(out, held.getvalue())


def write_keras(out: str | os.PathLike, arrays: dict[str, np.ndarray]) -> None:
    """Datasets as an HDF5 file, as Keras 3's load_weights reads it."""
    if not os.fspath(out).endswith(".weights.h5"):
        raise UserError(f"{shown(out)}: Keras reads weights from files that end in .weights.h5: give it this ending")
    try:
        import h5py
    except ImportError:
        raise UserError(f"{shown(out)}: writing it needs h5py (pip install 'minialex[keras]')") from None
    with h5py.File(held := io.BytesIO(), "w") as file:
        for name, array in arrays.items():
            file[name] = array
    write_beside(out, held.getvalue())


def main(arguments=None):
    parser = parser_of("convert", "Take an AlexNet's weights from torchvision, Caffe or Keras into a run folder for evaluate, predict and train --init; or a run's "
                       "out again, under torchvision's or Keras' names.")
    parser.add_argument("source", metavar="IN", help="a file of weights (.safetensors, .pth, .caffemodel, .npy, .npz, .h5, .weights.h5, .keras), or a run folder")
    parser.add_argument("out", metavar="OUT", help="a new folder; or FILE.safetensors or FILE.pth, a state dict for torchvision's alexnet; or "
                        "FILE.weights.h5, for Keras")
    parser.add_argument("--net", choices=list(NETS), help="which net, where names and shapes leave it open")
    parser.add_argument("--size", type=int, help="pixels of its input, where they are not the published ones")
    parser.add_argument("--classes", metavar="FILE", help="the classes' names, one a line in the order of the outputs (or a JSON list)")
    parser.add_argument("--augment", metavar="KEY=VALUE,...", help="mean and scale of the input, as train takes them, where they are not those that the net was "
                        "published with")
    parser.add_argument("--mean", metavar="FILE", help="a mean image instead: .binaryproto or .npy, as Caffe has it or as a run folder does")
    parser.add_argument("--channels", choices=["rgb", "bgr"], help="the order that the first layer was trained with (default: bgr for Caffe's nets, else rgb)")
    args = parser.parse_args(arguments)
    done = converted(args.source, args.out, net=args.net, size=args.size, classes=args.classes, augment=args.augment or "", mean=args.mean, channels=args.channels)
    net, input = done.net, done.input
    say(f"net      {net.name}, {net.size}x{net.size}, {net.count():,} parameters, {net.classes:,} classes" + ", of no names" * (done.classes is None))
    mean = "the mean image" if input.mean == "image" else ":".join(f"{value:g}" for value in input.mean_colour)
    say(f"input    R, G, B of 0 to 255, less {mean}, times {':'.join(f'{value:.4g}' for value in np.broadcast_to(input.scale, 3))}; pictures decoded at {input.side} "
        f"pixels ({input.fit})")
    say(f"weights  {shown(args.source)} -> {shown(args.out)}")
    return 0


class Called(types.ModuleType):
    """minialex.convert is this module, as the command's place, and what a program calls."""

    __call__ = staticmethod(convert)


sys.modules[__name__].__class__ = Called

if __name__ == "__main__":
    run_command(main)
