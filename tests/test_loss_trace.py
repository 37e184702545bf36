"""The losses of 50 training steps against PyTorch's: same data, weights and optimizer, no dropout.

The truth is PyTorch in float64. Float32 strays from it by a rounding or two of the loss until some ReLU or maximum falls
to the other side; from then on the weights differ, and by a hundred times more. Which of them do so depends on the order
of every sum. So PyTorch in float32 shows what is allowed: it trains several times, from first weights that differ in their
last bits, and at each step the loss may be as far from the truth as the farthest of these runs has been by then, times 4.
"""

import types

import numpy as np
import pytest
from test_network import drawn, mini, network, small, torch_logits, torch_tensor

from minialex.device import cuda, open_device
from minialex.ops.dropout import Dropout
from minialex.optim import SGD

torch = pytest.importorskip("torch", reason="PyTorch is not installed (pip install 'minialex[torch]'): no losses are compared")

N, RATES = 12, [1.0] * 30 + [0.25] * 20      # the rate changes: the two forms of SGD differ from there
OPTIMIZER = dict(momentum=0.9, weight_decay=0.01, form="torch", bias_lr=2.0, bias_decay=0.0)
CASES = {"mini": (mini, 0.05), "paper": (lambda: small("paper", 67, 8), 0.04)}      # rates at which the loss falls steadily

RUNS = 12                 # of PyTorch in float32
TIMES = 4                 # what the project's may stray farther than the farthest of these
ROUNDING = 2.0**-22       # of a loss between 2 and 4 that is stored as float32
LAST_BITS = 2.0**-23      # relative: at most one unit in the last place


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def place(request):
    if request.param == "cuda" and cuda.why_not():
        pytest.skip(f"no cuda here: {cuda.why_not()}")
    return open_device(request.param)[0]


def batches_of(net):
    """Four batches with something to learn: each class has a colour, under noise."""
    colours = np.random.default_rng(7).integers(0, 190, (net.classes, 3))
    for seed in range(10, 14):
        images, labels, views = drawn(net, N, seed)
        yield (images // 4 + colours[labels][:, None, None]).astype(np.uint8), labels, views


def torch_trace(net, first, batches, rates, dtype):
    # torch_logits makes the images float64; this torch makes them what the weights are.
    same = types.SimpleNamespace(nn=torch.nn, cat=torch.cat, tensor=lambda values: torch.tensor(values, dtype=dtype))
    parameters = {k: torch_tensor(torch, k, v).detach().to(dtype).requires_grad_() for k, v in first.items()}
    groups = [{"params": [v for k, v in parameters.items() if k.endswith(part)], "weight_decay": decay, "times": times}
              for part, decay, times in (("weight", 0.01, 1.0), ("bias", 0.0, 2.0))]
    sgd, losses = torch.optim.SGD(groups, lr=1.0, momentum=0.9), []
    for step, rate in enumerate(rates):
        images, labels, views = batches[step % len(batches)]
        for group in sgd.param_groups:
            group["lr"] = rate * group["times"]
        logits = torch_logits(same, net, parameters, images, views)
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(labels, dtype=torch.long))
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        losses.append(loss.item())
    return np.array(losses)


def own_trace(net, device, first, batches, rates, **other):
    own = network(net, device, N, optimizer=SGD(**{**OPTIMIZER, **other}), init=None)
    own.load_parameters(first)
    losses = []
    for step, rate in enumerate(rates):
        own.train_step(*batches[step % len(batches)], step, rate)
        losses.append(own.results(N)[0].astype(np.float64).mean())
    return np.array(losses)


@pytest.fixture(scope="module", params=CASES)
def case(request):
    """net, first weights, batches, rates, the true losses, and how far from them each step may be."""
    torch.set_num_threads(1)
    make, rate = CASES[request.param]
    net, random = make(), np.random.default_rng(0)
    for layer in net.layers.values():
        if isinstance(layer, Dropout):
            layer.p = 0.0
    first = net.initial("he", 0)
    first["conv1.weight"] *= 10      # with He's own spread in the first layer too, fifty steps are enough to learn
    what = net, first, list(batches_of(net)), rate * np.array(RATES)
    truth, strayed = torch_trace(*what, torch.float64), []
    for run in range(RUNS):
        bits = LAST_BITS if run else 0.0      # the first run has the weights themselves
        nudged = {k: v * (1 + bits * random.uniform(-1, 1, v.shape)).astype(np.float32) for k, v in what[1].items()}
        strayed.append(np.abs(torch_trace(net, nudged, *what[2:], torch.float32) - truth))
    return *what, truth, TIMES * (np.maximum.accumulate(np.max(strayed, axis=0)) + ROUNDING)


def test_fifty_losses_equal_pytorchs(place, case):
    net, *what, truth, allowed = case
    assert truth[-4:].mean() < 0.7 * truth[:4].mean()      # it learns, or there would be little to compare
    far = np.abs(own_trace(net, place, *what) - truth)
    worst = int((far / allowed).argmax())
    print(f"{net.name}: loss {truth[0]:.3f} to {truth[-1]:.3f}, farthest {far.max():.1e}, "
          f"allowed {allowed[0]:.1e} to {allowed[-1]:.1e}")
    assert (far <= allowed).all(), f"{far[worst]:.2e} from PyTorch at step {worst}, allowed {allowed[worst]:.2e}; all: {far}"


MISTAKES = [{"form": "2012"}, {"momentum": 0.899}, {"weight_decay": 0.0099}, {"bias_lr": 1.98}, {"bias_decay": 1.0}]


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: next(iter(mistake)))
def test_the_tolerance_is_small_enough_to_see_a_mistake(cpu, case, mistake):
    net, *what, truth, allowed = case
    far = np.abs(own_trace(net, cpu, *what, **mistake) - truth)
    print(f"{net.name}: {mistake} goes to {(far / allowed).max():.0f} times what is allowed")
    assert (far / allowed).max() > 3, f"{net.name}: {mistake} goes to {(far / allowed).max():.1f} times what is allowed"
