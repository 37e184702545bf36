"""Both sides of a comparison: the same net with the same weights in minialex and in PyTorch, and what a step of either takes."""

import io
import time
from pathlib import Path

import numpy as np

from minialex import nets
from minialex.data.augment import Input
from minialex.device import open_device
from minialex.network import Network
from minialex.ops.conv import Conv
from minialex.ops.dense import Dense
from minialex.ops.dropout import Dropout
from minialex.ops.lrn import LRN
from minialex.ops.pool import MaxPool
from minialex.optim import SGD

LR, STATUS = 1e-3, Path("/proc/self/status")


def torch_layers(torch, net, parameters):
    """{layer: torch.nn.Sequential} with the same weights: OIHW filters, fc6's rows in the order (C, H, W)."""
    nn, layers = torch.nn, {}

    def tensor(value):
        return nn.Parameter(torch.tensor(np.ascontiguousarray(value)))

    for name, layer in net.layers.items():
        shape, modules = net.inputs[name], []
        if isinstance(layer, Conv):
            (top, bottom), (left, right) = layer.window.pad
            if (top, left) != (bottom, right):
                modules.append(nn.ZeroPad2d((left, right, top, bottom)))
                top = left = 0
            module = nn.Conv2d(shape[2], layer.filters, layer.window.size, layer.window.stride, (top, left), groups=layer.groups)
        elif isinstance(layer, Dense):
            if len(shape) == 3:
                modules.append(nn.Flatten())
            module = nn.Linear(layer.fan_in(shape), layer.features)
        elif isinstance(layer, MaxPool):
            module = nn.MaxPool2d(layer.window.size, layer.window.stride, ceil_mode=layer.window.ceil)
        elif isinstance(layer, LRN):
            constants = layer.size, layer.alpha * (layer.size if layer.alpha_mode == "sum" else 1), layer.beta, layer.k
            module = nn.LocalResponseNorm(*constants) if layer.groups == 1 else grouped_norm(torch, layer.groups, *constants)
        elif isinstance(layer, Dropout):
            module = nn.Dropout(layer.p)
        if isinstance(layer, (Conv, Dense)):
            module.weight = tensor(as_torch(parameters[f"{name}.weight"], shape))
            module.bias = tensor(parameters[f"{name}.bias"])
        layers[name] = nn.Sequential(*modules, module, *[nn.ReLU(inplace=True)] * bool(getattr(layer, "relu", False)))
    return layers


def grouped_norm(torch, groups, size, alpha, beta, k):
    """nn.LocalResponseNorm of each group of channels by itself, by what torch's own does: a mean of squares over a depth that channels are made."""
    class GroupedNorm(torch.nn.Module):
        def forward(self, x):
            squares = torch.nn.functional.pad((x * x).unflatten(1, (groups, -1)), (0, 0, 0, 0, size // 2, size // 2))
            return x / (torch.nn.functional.avg_pool3d(squares, (size, 1, 1), 1).flatten(1, 2) * alpha + k) ** beta
    return GroupedNorm()


def torch_net(torch, net, parameters):
    return torch.nn.Sequential(*torch_layers(torch, net, parameters).values())


def as_torch(weight, shape):
    """HWIO filters as OIHW, or the (I, O) matrix of a dense layer, whose input has `shape`, as (O, I) with I in the order (C, H, W)."""
    if weight.ndim == 4:
        return weight.transpose(3, 2, 0, 1)
    return (weight.reshape(*shape, -1).transpose(2, 0, 1, 3).reshape(weight.shape) if len(shape) == 3 else weight).T


class Ours:
    def __init__(self, net, device, batch, data, training=True, conv="auto"):
        self.network = Network(net, device, batch, input=whole(net), training=training, optimizer=SGD(0.9, 5e-4, "torch", bias_decay=1.0), conv=conv)
        self.data, self.count, self.device = data, 0, device

    def step(self, what):
        """A pass as `what` says: "train" or "infer"; on a GPU of pictures that lie there already, or "... from pixels" of those on the host."""
        mode, _, pixels = what.partition(" ")
        tape = self.network.tapes.get(("train" if mode == "train" else "evaluate", len(self.data[0])))
        if self.device.name == "cuda" and tape and not pixels:
            tape.play()
            self.device.synchronize()
        else:
            getattr(self, mode)()

    def train(self):
        self.network.train_step(*self.data, self.count, LR)
        self.count += 1
        self.device.synchronize()

    def infer(self):
        self.network.evaluate(*self.data)
        self.device.synchronize()

    @property
    def logits(self):
        """(batch, classes) of the last pass, on the host."""
        return self.device.to_numpy(self.network.arrays[f"activation {list(self.network.net.layers)[-1]}"][:self.network.passed])

    def seconds(self, what):
        """Of a pass."""
        if self.device.name != "cuda":
            return seconds(lambda: self.step(what))
        events = [self.device.cupy.cuda.Event() for _ in range(2)]
        return between_events(lambda: self.step(what), *events, self.device.cupy.cuda.get_elapsed_time)


class Theirs:
    """PyTorch's side, eager or with options for torch.compile."""

    def __init__(self, torch, net, parameters, data, channels_last, compiled=None, device="cpu"):
        self.torch, images, self.channels_last, self.graphs = torch, data[0], channels_last, bool(compiled and "mode" in compiled)
        self.pixels = torch.from_numpy(images).pin_memory() if device == "cuda" else torch.from_numpy(images)
        self.mean, self.scale = (torch.tensor(value, dtype=torch.float32, device=device).reshape(1, 3, 1, 1) for value in (Input.mean, Input.scale))
        self.given = lambda: self.x
        pixels = (images.astype(np.float32) - np.float32(Input.mean)) * np.float32(Input.scale)
        form = {"memory_format": torch.channels_last} if channels_last else {}
        self.x = torch.tensor(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))).to(device, **form)
        self.labels = torch.tensor(data[1].astype(np.int64)).to(device)
        self.plain = torch_net(torch, net, parameters).to(device, **form)
        self.model = self.plain if compiled is None else torch.compile(self.plain, **compiled)
        self.sgd = torch.optim.SGD(self.plain.parameters(), LR, momentum=0.9, weight_decay=5e-4, **({"fused": True} if device == "cuda" else {"foreach": True}))

    def from_pixels(self):
        """The batch as a training program has it: bytes in pinned memory, copied without blocking, and normalised on the GPU."""
        x = self.pixels.to(self.x.device, non_blocking=True).permute(0, 3, 1, 2)      # channels last, as they lie
        return ((x if self.channels_last else x.contiguous()).float() - self.mean) * self.scale

    def step(self, what):
        mode, _, pixels = what.partition(" ")
        self.given = self.from_pixels if pixels else lambda: self.x
        if self.graphs:
            self.torch.compiler.cudagraph_mark_step_begin()
        getattr(self, mode)()

    def train(self):
        self.plain.train()
        self.loss = self.torch.nn.functional.cross_entropy(self.model(self.given()), self.labels)
        self.sgd.zero_grad()
        self.loss.backward()
        self.sgd.step()
        self.wait()

    def infer(self):
        self.plain.eval()
        with self.torch.inference_mode():
            self.logits = self.model(self.given())
        self.wait()

    def wait(self):
        if self.x.is_cuda:
            self.torch.cuda.synchronize()

    def seconds(self, what):
        if not self.x.is_cuda:
            return seconds(lambda: self.step(what))
        events = [self.torch.cuda.Event(enable_timing=True) for _ in range(2)]
        return between_events(lambda: self.step(what), *events, lambda begin, end: begin.elapsed_time(end))


class Exported:
    """Inference by onnxruntime, of the net and weights that a contiguous PyTorch side has now."""

    def __init__(self, theirs, threads):
        import onnxruntime
        file, options = io.BytesIO(), onnxruntime.SessionOptions()
        theirs.torch.onnx.export(theirs.plain.eval(), (theirs.x,), file, input_names=["images"], dynamo=False)      # this way onnxscript isn't needed
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        self.session = onnxruntime.InferenceSession(file.getvalue(), options, providers=["CPUExecutionProvider"])
        self.images = {"images": theirs.x.numpy()}

    def infer(self):
        self.logits, = self.session.run(None, self.images)

    def seconds(self, what):
        return seconds(getattr(self, what))


def drawn(net, batch, seed=0):
    random = np.random.default_rng(seed)
    return (random.integers(0, 256, (batch, net.size, net.size, 3), np.uint8), random.integers(0, net.classes, batch).astype(np.int32),
            whole(net).cropped(np.zeros((batch, 3))))


def whole(net):
    """Pictures taken as they are."""
    return Input(net.size, net.size)


def distance(value, truth):
    """|value - truth| / |truth| in the L2 norm; infinite where something is not finite."""
    far = np.linalg.norm(value - truth) / max(np.linalg.norm(truth), 1e-30)
    return float(far) if np.isfinite(far) else np.inf


def seconds(call):
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def between_events(call, begin, end, elapsed):
    """Seconds on the GPU from before the first launch of a call to after its last; elapsed(begin, end) gives milliseconds."""
    begin.record()
    call()
    end.record()
    end.synchronize()
    return 1e-3 * elapsed(begin, end)


def high():
    """This process's peak of resident memory, MB."""
    return int(STATUS.read_text().split("VmHWM:")[1].split()[0]) / 1024


def step_memory(side, name, size, batch, threads, training, conv="auto"):
    """{"imports", "peak", "step"}: MB at the peak after the imports, after two steps, and the difference. For a process of its own.

    side: "ours", "contiguous" or "channels-last". Weights are zeros and pixels are made in place, so that setting up leaves no
    higher peak.
    """
    net = nets.build(name, size=size)
    if side == "ours":
        device = open_device("cpu", threads)[0]
        before, data = high(), drawn(net, batch)
        network = Network(net, device, batch, input=whole(net), training=training, init=None, conv=conv)
        for step in range(2):
            network.train_step(*data, step, LR) if training else network.evaluate(*data)
    else:
        import torch
        torch.set_num_threads(threads)
        before, form = high(), {"memory_format": torch.channels_last} if side == "channels-last" else {}
        zeros = {parameter: np.broadcast_to(np.float32(0), shape) for parameter, shape in net.parameters().items()}
        with torch.device("meta"):      # no first values that would be thrown away
            model = torch_net(torch, net, zeros)
        model = model.to_empty(device="cpu").to(**form).train(training)
        for parameter in model.parameters():
            parameter.data.zero_()
        x, labels = torch.empty((batch, 3, net.size, net.size), **form).uniform_(-2, 2), torch.randint(net.classes, (batch,))
        sgd = torch.optim.SGD(model.parameters(), LR, momentum=0.9, weight_decay=5e-4, foreach=True)
        with torch.inference_mode(not training):
            for _ in range(2):
                loss = torch.nn.functional.cross_entropy(model(x), labels)
                if training:
                    sgd.zero_grad()
                    loss.backward()
                    sgd.step()
    peak = high()
    return {"imports": before, "peak": peak, "step": peak - before}
