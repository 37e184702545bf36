"""How far both algorithms of convolution are from float64: rms errors of outputs and gradients, over the rms of the truth.

python benchmarks/convolution_errors.py [RUN] [--net paper owt half] [--images 4]

Without RUN on random inputs, weights and output gradients; with RUN on the activations and gradients of its net, for so many of its
validation images. `amplified` is the error that Winograd's should have: im2col's on random inputs (of activations and gradients that are 0
in most places im2col rounds less, while a transform mixes them with their neighbours) times the amplification of the transforms, by which
independent errors of the values at the points grow on their way through A^T, relative to what they are errors of:
    alpha = sum over points i of A[i,j]^2 |B^T[i]|^2 |G[i]|^2 / r, the mean over outputs j, by its root in each of two dimensions,
and with A and G exchanged, over m, for the weights' gradient.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

import minialex
from minialex import functional, nets
from minialex.command import run_command
from minialex.errors import UserError
from minialex.ops.conv import ALGORITHMS, Conv
from minialex.ops.layer import run_alone
from minialex.ops.winograd import Winograd, matrices

RESULTS = "y", "dx", "dw"


def amplification(layer, shape):
    """{result: factor} of a layer's form in two dimensions."""
    way = Winograd(layer, shape)
    a, b, g = matrices(way.m, way.r)
    of_b = (b ** 2).sum(1)
    outputs = (a ** 2 * (of_b * (g ** 2).sum(1))[:, None]).sum(0).mean() / way.r
    weights = (g ** 2 * (of_b * (a ** 2).sum(1))[:, None]).sum(0).mean() / way.m
    return {"y": outputs, "dx": outputs, "dw": weights}


def errors(layer, x, dy, parameters):
    """{algorithm: {result: rms error over the truth's rms}} of a Conv, from float32 arrays."""
    def results(algorithm, device, dtype):
        one = replace(layer, relu=False, algorithm=algorithm)      # whose kink would hide the rest
        site = run_alone(one, device, x.astype(dtype), dy.astype(dtype), {name: value.astype(dtype) for name, value in parameters.items()})
        return {"y": site.y, "dx": site.dx, "dw": site.gradients["weight"]}

    def rms(array):
        return np.sqrt((array.astype(np.float64) ** 2).mean())

    truth = results("im2col", "numpy", np.float64)
    return {name: {key: rms(value - truth[key]) / rms(truth[key]) for key, value in results(name, "cpu", np.float32).items()} for name in ALGORITHMS}


def drawn(net, images):
    """(name, layer, x, dy, parameters) of the net's convolutions that Winograd fits, at random; outputs keep the inputs' size."""
    for name, layer in net.layers.items():
        if isinstance(layer, Conv) and Winograd.fits(layer):
            x, dy, weight = noise((images, *net.inputs[name]), (images, *net.outputs[name]), layer.parameters(net.inputs[name])["weight"])
            yield name, layer, x, dy, {"weight": weight / np.float32(np.sqrt(layer.fan_in(net.inputs[name]))), "bias": np.zeros(layer.filters, np.float32)}


def of_run(run, images):
    """As `drawn`, of a run's net on its own validation images; a mean image, which few inputs have, is left out."""
    _, val = run.data()
    places = np.linspace(0, len(val) - 1, images).astype(int)
    pictures = np.stack([val.picture(int(place), run.input.side, run.input.fit) for place in places])
    x, weights, seen = functional.augment_images(pictures, run.input.centre(images), run.net.size), run.network.weights(), []
    for name, layer in run.net.layers.items():
        if not layer.trained_only:
            parameters = {part: weights[f"{name}.{part}"] for part in layer.parameters(run.net.inputs[name])}
            seen.append((name, layer, x, parameters))
            x = run_alone(layer, "cpu", x, parameters=parameters).y
    _, slope = functional.softmax_cross_entropy(x.reshape(images, -1), np.asarray(val.labels)[places])
    for name, layer, x, parameters in reversed(seen):
        dy = slope.reshape(images, *run.net.outputs[name])
        site = run_alone(layer, "cpu", x, dy, parameters)
        if isinstance(layer, Conv) and Winograd.fits(layer):
            yield name, layer, x, np.where(site.y > 0, dy, 0) if layer.relu else dy, parameters
        slope = site.dx


def rows(cases, random=True):
    """[(layer, {algorithm: errors}, {result: amplified}), ...]; random: whether that is what the cases are."""
    for name, layer, x, dy, parameters in cases:
        found = errors(layer, x, dy, parameters)
        dense = found if random else errors(layer, *noise(x.shape, dy.shape), parameters)
        yield name, found, {key: dense["im2col"][key] * factor for key, factor in amplification(layer, x.shape[1:]).items()}


def noise(*shapes):
    random = np.random.default_rng(0)
    return [random.standard_normal(shape, np.float32) for shape in shapes]


def table(title, found):
    """The rows as Markdown."""
    lines = [f"| {title} | " + " | ".join(f"{key}: im2col | Winograd | amplified" for key in RESULTS) + " |", "|---|" + "---|" * 9]
    for name, each, amplified in found:
        cells = [f"{value:.1e}" for key in RESULTS for value in (each["im2col"][key], each["winograd"][key], amplified[key])]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", nargs="?", metavar="RUN", help="a run's folder (default: random numbers)")
    parser.add_argument("--net", nargs="+", default=["paper", "owt", "half"], choices=nets.NETS)
    parser.add_argument("--images", type=int, default=4)
    args = parser.parse_args(arguments)
    if args.images < 1:
        raise UserError(f"--images {args.images}: expected at least 1")
    if args.run:
        run = minialex.load(args.run, device="cpu")
        print(table(f"{run.net.name} of {Path(args.run).name}", list(rows(of_run(run, args.images), random=False))[::-1]))
        return 0
    for name in args.net:
        print(table(f"{name}, random", rows(drawn(nets.build(name), args.images))), flush=True)
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    run_command(main)
