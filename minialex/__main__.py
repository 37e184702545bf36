"""minialex COMMAND, or python -m minialex COMMAND: all commands under one name; `minialex COMMAND --help` describes each."""

from . import interrupts      # first: imports take a while, in which Ctrl-C ends the process without a word

import argparse
import importlib
import sys

from .command import Parser, run_command
from .version import __version__

COMMANDS = {
    "train": "train a net on folders of images, or go on with a run",
    "evaluate": "score a trained net on labelled images",
    "predict": "the likeliest classes of images",
    "export": "write a trained net to an ONNX file",
    "report": "write a run's report anew",
    "convert": "weights from torchvision, Caffe or Keras, and out again",
    "describe": "a net's layers, parameters and memory",
    "data": "pack images into files that training reads without decoding, or check such files",
    "gradcheck": "hold each op to its formula",
    "selftest": "is every kernel right on this machine, and how fast is it",
}


def main(arguments=None):
    width = max(map(len, COMMANDS))
    parser = Parser(prog="minialex", description="AlexNet from scratch: train it, look at it, and use it.",
                    formatter_class=argparse.RawDescriptionHelpFormatter,
                    epilog="commands:\n" + "\n".join(f"  {name:{width}}  {what}" for name, what in COMMANDS.items()))
    parser.add_argument("--version", action="version", version=f"minialex {__version__}")
    parser.add_argument("command", nargs="?", metavar="COMMAND", choices=list(COMMANDS), help="one of those below")
    parser.add_argument("rest", nargs=argparse.REMAINDER, metavar="...", help="its own arguments")
    args = parser.parse_args(arguments)
    if args.command is None:
        parser.print_help()
        return 2
    module = "minialex.data.__main__" if args.command == "data" else f"minialex.{args.command}"
    return importlib.import_module(module).main(args.rest)


def entry():
    """What the script `minialex` runs."""
    run_command(main)


if __name__ == "__main__":
    sys.argv[0] = "minialex"      # what usage messages call it
    entry()
