"""python -m minialex.describe NET: its layers, parameters and multiply-accumulates, and the memory that a step takes."""

from . import interrupts      # first: imports take a while, in which Ctrl-C ends the process without a word

from types import MethodType

from . import nets
from .command import parser_of, run_command, say
from .device.base import Device, cores
from .device.cpu import CPU
from .device.cuda import CUDA
from .layout import Layout


def memory(layout):
    """{what: bytes} of a training step."""
    kinds = {"parameters": "parameter ", "momentum": "velocity ", "gradients": "gradient ", "activations": "activation ",
             "pool winners": "kept ", "turned weights": "prepared ", "workspace": "workspace ", "input": "input ", "results": "output "}
    return {what: layout.bytes(kind) for what, kind in kinds.items()}


def main(arguments=None):
    parser = parser_of("describe", "Describe a net and the memory that training it takes.")
    parser.add_argument("net", help=", ".join(nets.NETS))
    parser.add_argument("--classes", type=int, help="default: the published number")
    parser.add_argument("--size", type=int, help="input size (default: the published one)")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=cores(), help="CPU threads, each with a workspace of its own")
    parser.add_argument("--gpu", type=int, metavar="N", help="memory on a GPU of N multiprocessors (A100: 108, H100: 132) instead of a CPU")
    parser.add_argument("--workspace-mb", type=float)
    args = parser.parse_args(arguments)
    net = nets.build(args.net, args.classes, args.size)
    say(str(net.summary()))
    device, where = Device(), f"{args.threads} CPU thread{'s' * (args.threads > 1)}"
    if args.gpu:      # divides work as one of these does, and needs neither for that
        device.processors, where = args.gpu, f"a GPU of {args.gpu} multiprocessors"
        device.images_at_once, device.slices = MethodType(CUDA.images_at_once, device), MethodType(CUDA.slices, device)
    else:
        device.threads, device.chunk, device.tile = args.threads, CPU.chunk, CPU.tile
    layout = Layout(net, device, args.batch, workspace_mb=args.workspace_mb)
    say(f"\nmemory of a training step at batch {args.batch} on {where}:")
    for what, size in [*memory(layout).items(), ("total", layout.bytes())]:
        say(f"  {what:18} {size / 2**20:9,.1f} MB")
    return 0


if __name__ == "__main__":
    run_command(main)
