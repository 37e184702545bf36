"""python -m minialex.describe NET: its layers, parameters and multiply-accumulates, and the memory that a step takes."""

from . import interrupts      # first: imports take a while, in which Ctrl-C ends the process without a word

import math
from dataclasses import replace
from types import MethodType

from . import nets, towers, tune
from .command import parser_of, run_command, say
from .device.base import Device, cores
from .device.cpu import CPU
from .device.cuda import CUDA
from .layout import Layout, cut
from .ops.conv import Conv


def memory(layout):
    """{what: bytes} of a training step."""
    kinds = {"parameters": "parameter ", "momentum": "velocity ", "gradients": "gradient ", "activations": "activation ",
             "kept for backward": "kept ", "prepared weights": "prepared ", "workspace": "workspace ", "input": "input ", "results": "output "}
    return {what: layout.bytes(kind) for what, kind in kinds.items()}


def described(layer, shape, device, batch, shares, chunk, dx, timed):
    """The algorithms of a convolution's passes, with what both take where it was timed."""
    parts = []
    for way, name in zip(tune.PASSES, layer.pair):
        if timed and tune.open_to_choice(layer, shape, batch):
            took = tune.times(replace(layer, algorithm="auto"), shape, device, batch, shares, chunk, True, dx)[way]
            parts.append(f"{way} {name} ({1e3 * took['im2col']:.1f} by im2col, {1e3 * took['winograd']:.1f} by winograd)")
        else:
            parts.append(f"{way} {name}")
    return ", ".join(parts)


def of_towers(net, found):
    """Lines of text: what each tower has of a net, and the bytes that one sends the other for an image."""
    count = [f"{own.count():,}" for own in found]
    macs = [f"{own.macs() / 1e9:.3f}" for own in found]
    yield f"two towers of {' and '.join(count)} parameters, {' and '.join(macs)} GMAC per image; bytes that each sends the other for an image:"
    forward = backward = 0
    for name, layer in found[0].layers.items():
        if layer.exchanges:
            there, back = (4 * math.prod(own.inputs[name]) for own in found)
            forward, backward = forward + there, backward + back * (not layer.last)
            where = "the loss" if layer.last else name.removeprefix("to_")
            yield f"  before {where:10} {there:8,} forward{'' if layer.last else f', {back:8,} backward'}"
        else:
            has = " and ".join(nets.by(own.outputs[name]) for own in found)
            yield f"  {name:17} {has}" + ", the same in both" * (found[0].outputs[name] == net.outputs[name])
    yield f"  {'in all':17} {forward:8,} forward, {backward:8,} backward; two ranks with half a batch each would send {4 * net.count():,} in a step"


def main(arguments=None):
    parser = parser_of("describe", "Describe a net and the memory that training it takes.")
    parser.add_argument("net", help=", ".join(nets.NETS))
    parser.add_argument("--classes", type=int, help="default: the published number")
    parser.add_argument("--size", type=int, help="input size (default: the published one)")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=cores(), help="CPU threads, each with a workspace of its own")
    parser.add_argument("--gpu", type=int, metavar="N", help="memory on a GPU of N multiprocessors (A100: 108, H100: 132) instead of a CPU")
    parser.add_argument("--workspace-mb", type=float)
    parser.add_argument("--towers", type=int, choices=[towers.TOWERS], help="also what two ranks that have a tower each exchange, and the memory of each")
    parser.add_argument("--conv", choices=tune.CHOICES, default="auto", help="the algorithm of convolutions; auto: as training takes it on this CPU "
                        "(a GPU's choice is made on the GPU; without one im2col is shown)")
    args = parser.parse_args(arguments)
    net = nets.build(args.net, args.classes, args.size)
    say(str(net.summary()))
    timed = args.conv == "auto" and not args.gpu
    device: Device = CPU(args.threads, announce=say) if timed else Device()
    where = f"{args.threads} CPU thread{'s' * (args.threads > 1)}"
    if args.gpu:      # divides work as one of these does, and needs neither for that
        device.processors, where = args.gpu, f"a GPU of {args.gpu} multiprocessors"
        device.images_at_once, device.slices = MethodType(CUDA.images_at_once, device), MethodType(CUDA.slices, device)
        device.spare = lambda: 1 << 60      # it has room for columns
    else:
        device.threads, device.chunk, device.tile = args.threads, CPU.chunk, CPU.tile
    shares, chunk = cut(device, args.batch)
    net = tune.settled(net, device, args.batch, shares, chunk, training=True, conv=args.conv)
    say("\nconvolutions by " + ("the faster algorithm here, of im2col and Winograd's, in ms of a step:" if timed else "these algorithms:"))
    for name, layer in net.layers.items():
        if isinstance(layer, Conv):
            say(f"  {name:18} {described(layer, net.inputs[name], device, args.batch, shares, chunk, name in net.above, timed)}")
    if args.towers:
        found = [towers.tower_of(net, tower) for tower in range(towers.TOWERS)]
        say("\n" + "\n".join(of_towers(net, found)))
        net, where = found[0], f"{where}, in each tower"
    layout = Layout(net, device, args.batch, workspace_mb=args.workspace_mb)
    say(f"\nmemory of a training step at batch {args.batch} on {where}:")
    for what, size in [*memory(layout).items(), ("total", layout.bytes())]:
        say(f"  {what:18} {size / 2**20:9,.1f} MB")
    return 0


if __name__ == "__main__":
    run_command(main)
