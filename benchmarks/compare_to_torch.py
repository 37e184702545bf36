"""Images per second of minialex beside PyTorch's on the CPU: the same net, weights and batch, shown equal before timed.

python benchmarks/compare_to_torch.py [--net half paper owt] [--batch 64] [--rounds 5] [--threads N]

Both sides alternate within a round; the ratio is the median over rounds of ours to PyTorch's best (contiguous or
channels-last). Dropout is on in both for timing and off for the comparison.
"""

import argparse
import statistics
import sys
import time

import numpy as np

from minialex import nets
from minialex.device.cpu import CPU
from minialex.network import MEAN, SCALE, Network
from minialex.ops.conv import Conv
from minialex.ops.dense import Dense
from minialex.ops.dropout import Dropout
from minialex.ops.lrn import LRN
from minialex.ops.pool import MaxPool
from minialex.optim import SGD

LR, STEPS = 1e-3, 3


def torch_net(torch, net, parameters):
    """The net as a torch.nn.Sequential with the same weights: OIHW filters, fc6's rows in the order (C, H, W)."""
    nn, modules = torch.nn, []

    def tensor(value):
        return nn.Parameter(torch.tensor(np.ascontiguousarray(value)))

    for name, layer in net.layers.items():
        shape = net.inputs[name]
        if isinstance(layer, Conv):
            (top, bottom), (left, right) = layer.window.pad
            if (top, left) != (bottom, right):
                modules.append(nn.ZeroPad2d((left, right, top, bottom)))
                top = left = 0
            module = nn.Conv2d(shape[2], layer.filters, layer.window.size, layer.window.stride, (top, left), groups=layer.groups)
            module.weight = tensor(parameters[f"{name}.weight"].transpose(3, 2, 0, 1))
        elif isinstance(layer, Dense):
            weight = parameters[f"{name}.weight"]
            if len(shape) == 3:
                modules.append(nn.Flatten())
                weight = weight.reshape(*shape, -1).transpose(2, 0, 1, 3).reshape(weight.shape)
            module = nn.Linear(*weight.shape)
            module.weight = tensor(weight.T)
        elif isinstance(layer, MaxPool):
            module = nn.MaxPool2d(layer.window.size, layer.window.stride, ceil_mode=layer.window.ceil)
        elif isinstance(layer, LRN):
            module = nn.LocalResponseNorm(layer.size, layer.alpha * (layer.size if layer.alpha_mode == "sum" else 1), layer.beta, layer.k)
        elif isinstance(layer, Dropout):
            module = nn.Dropout(layer.p)
        if isinstance(layer, (Conv, Dense)):
            module.bias = tensor(parameters[f"{name}.bias"])
        modules.append(module)
        if getattr(layer, "relu", False):
            modules.append(nn.ReLU(inplace=True))
    return nn.Sequential(*modules)


class Ours:
    def __init__(self, net, device, batch, data, training=True):
        self.network = Network(net, device, batch, training=training, optimizer=SGD(0.9, 5e-4, "torch", bias_decay=1.0))
        self.data, self.count = data, 0

    def train(self):
        self.network.train_step(*self.data, self.count, LR)
        self.count += 1

    def infer(self):
        self.network.evaluate(*self.data)


class Theirs:
    def __init__(self, torch, net, parameters, data, channels_last):
        self.torch, images = torch, data[0]
        pixels = (images.astype(np.float32) - np.float32(MEAN)) * np.float32(SCALE)
        self.x = torch.tensor(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))
        self.labels = torch.tensor(data[1].astype(np.int64))
        self.model = torch_net(torch, net, parameters)
        if channels_last:
            self.x = self.x.to(memory_format=torch.channels_last)
            self.model = self.model.to(memory_format=torch.channels_last)
        self.sgd = torch.optim.SGD(self.model.parameters(), LR, momentum=0.9, weight_decay=5e-4, foreach=True)

    def train(self):
        self.model.train()
        self.loss = self.torch.nn.functional.cross_entropy(self.model(self.x), self.labels)
        self.sgd.zero_grad()
        self.loss.backward()
        self.sgd.step()

    def infer(self):
        self.model.eval()
        with self.torch.inference_mode():
            return self.model(self.x)


def check_equal(torch, name, device, batch):
    """Loss after each of a few steps, and the logits' probabilities after them, without dropout; stops if they differ."""
    net = nets.build(name)
    for layer in net.layers.values():
        if isinstance(layer, Dropout):
            layer.p = 0.0
    data = drawn(net, batch)
    ours = Ours(net, device, batch, data)
    theirs = Theirs(torch, net, {k: v.copy() for k, v in ours.network.parameters.items()}, data, False)
    worst = 0.0
    for _ in range(STEPS):
        ours.train()
        theirs.train()
        mine, other = float(ours.network.results(batch)[0].mean()), float(theirs.loss.detach())
        worst = max(worst, abs(mine - other) / abs(other))
    ours.infer()
    probabilities = torch.softmax(theirs.infer(), 1).numpy()
    distance = float(np.abs(ours.network.probabilities(batch) - probabilities).max() / probabilities.max())
    print(f"{name}: loss of {STEPS} steps within {worst:.1e}, probabilities after them within {distance:.1e} of PyTorch's")
    if not (worst < 1e-3 and distance < 1e-2):
        sys.exit(f"{name} is not equal to PyTorch's: nothing is timed")


def drawn(net, batch):
    random = np.random.default_rng(0)
    return (random.integers(0, 256, (batch, net.size, net.size, 3), np.uint8), random.integers(0, net.classes, batch).astype(np.int32),
            np.zeros((batch, 3), np.int32))


def seconds(call):
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--net", nargs="+", default=["half", "paper", "owt"], choices=list(nets.NETS))
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    try:
        import torch
    except ImportError:
        sys.exit("PyTorch is not installed: pip install torch==2.13.0")
    device = CPU(args.threads)
    torch.set_num_threads(device.threads)
    print(f"PyTorch {torch.__version__} and minialex on {device.threads} threads, batch {args.batch}, {args.rounds} rounds")
    for name in args.net:
        check_equal(torch, name, device, args.batch)
        net = nets.build(name)
        data = drawn(net, args.batch)
        ours = Ours(net, device, args.batch, data)
        parameters = {k: v.copy() for k, v in ours.network.parameters.items()}
        sides = {"ours": ours, "torch": Theirs(torch, net, parameters, data, False), "torch channels-last": Theirs(torch, net, parameters, data, True)}
        for what in ("train", "infer"):
            times = {side: [] for side in sides}
            for number in range(args.rounds + 1):
                for side, model in sides.items():
                    took = seconds(getattr(model, what))
                    if number:      # the first round warms up
                        times[side].append(took)
            best = min(list(sides)[1:], key=lambda side: statistics.median(times[side]))
            ratios = sorted(theirs / mine for mine, theirs in zip(times["ours"], times[best]))
            rate = {side: args.batch / statistics.median(t) for side, t in times.items()}
            print(f"{name:9} {what:6} ratio {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})   "
                  f"ours {rate['ours']:.1f} images/s, {best} {rate[best]:.1f} images/s", flush=True)


if __name__ == "__main__":
    main()
