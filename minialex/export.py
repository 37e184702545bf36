"""python -m minialex.export RUN FILE: a trained network as an ONNX file, for other programs, or as a state dict for torchvision's alexnet."""

from . import interrupts      # first: imports take a while, in which Ctrl-C ends the process without a word

import os

from .command import parser_of, run_command, say
from .convert import to_torchvision, write_torch
from .errors import UserError, shown
from .files import require_place
from .run.run import Run


def main(arguments=None):
    parser = parser_of("export", "Write a trained network to an ONNX file, which other programs run: images (batch, 3, size, size), RGB, float32, to logits "
                       "(batch, classes). The file's metadata have the names of the classes and say how a picture becomes an image, as JSON.")
    parser.add_argument("run", help="run folder of minialex.train")
    parser.add_argument("file", help="what to write, such as model.onnx")
    parser.add_argument("--format", choices=["onnx", "torch"], default="onnx", help="torch: a state dict for torchvision's alexnet, of the net owt, in a file that ends in "
                        ".safetensors or .pth (default onnx)")
    parser.add_argument("--preprocessing", choices=["inside", "described"],
                        help="inside: images are pixels of 0 to 255, and the graph subtracts the mean and scales (default); described: whoever runs it does so")
    parser.add_argument("--checkpoint", choices=["best", "last"], help="default: the best by validation top-1, if there is one")
    args = parser.parse_args(arguments)
    require_place("FILE", args.file)
    if args.format == "torch":
        if args.preprocessing:
            raise UserError("--preprocessing is for --format onnx: a state dict has the weights alone, so leave it out")
        run = Run(args.run, args.checkpoint, "numpy")
        write_torch(args.file, to_torchvision(run.net, run.network.weights()))
        say(f"{shown(args.file)}: {run.net!r}, the weights of {run.checkpoint.name}, under torchvision's names")
        return 0
    from . import onnx      # noqa: F401  what is not installed is told before the weights are read
    run = Run(args.run, args.checkpoint, "numpy")
    run.export(args.file, preprocessing=args.preprocessing or "inside")
    say(f"{shown(args.file)}: {run.net!r}, the weights of {run.checkpoint.name}, {os.path.getsize(args.file) / 2**20:,.1f} MB")
    return 0


if __name__ == "__main__":
    run_command(main)
