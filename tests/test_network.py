"""The whole network: against PyTorch's, against its own derivative, on every batch size and workspace, without allocating."""

import tracemalloc

import numpy as np
import pytest

from minialex.data.augment import Input
from minialex.device.cpu import CPU
from minialex.device.reference import Reference
from minialex.errors import UserError
from minialex.gradcheck import check_direction, compare
from minialex.layout import Layout
from minialex.nets import Net, build
from minialex.network import Network
from minialex.ops.conv import Conv
from minialex.ops.dense import Dense
from minialex.ops.dropout import Dropout
from minialex.ops.lrn import LRN
from minialex.ops.pool import MaxPool
from minialex.ops.relu import ReLU
from minialex.optim import SGD, Adam
from minialex.philox import philox

CLASSES = 10


# In float32 a ReLU or a maximum may fall to the other side than in float64, which moves the gradients of that batch by a
# percent or so (torch's float32, too). A lost image, mask or term moves them much further.
NEARLY = 0.05


def mini(size=23):
    """Everything that the four nets have, small, with LRN strong enough for its second term to matter."""
    return Net({
        "conv1": Conv(12, 5, stride=2, pad=((1, 2), (0, 1))), "norm1": LRN(5, 0.5, 0.75, 1.5), "pool1": MaxPool(3, 2),
        "conv2": Conv(16, 3, pad=1, groups=2), "pool2": MaxPool(3, 2, ceil=True), "norm2": LRN(3, 0.3, 0.5, 1.0, "mean", groups=2),
        "drop3": Dropout(0.3), "fc3": Dense(37), "drop4": Dropout(0.4), "fc4": Dense(7, relu=False)}, size, "mini")


def small(name, size, fewer):
    """One of the nets with a fraction of its filters and features, and LRN's alpha near 1."""
    net = build(name, CLASSES, size, fewer)
    for layer in net.layers.values():
        if isinstance(layer, LRN):
            layer.alpha = 0.7
    return net


def drawn(net, n, seed=0, side=None):
    random, side = np.random.default_rng(seed), side or net.size + 3
    crops = random.integers(0, side - net.size + 1, (n, 3)).astype(np.int32)
    crops[:, 2] = np.arange(n) % 2
    images, labels = random.integers(0, 256, (n, side, side, 3), np.uint8), random.integers(0, net.classes, n).astype(np.int32)
    return images, labels, Input(side, net.size).cropped(crops)


def network(net, device, batch, **more):
    return Network(net, device, batch, input=Input(net.size + 3, net.size), **more)


def host(network, arrays):
    return {name: network.device.to_numpy(array).astype(np.float64) for name, array in arrays.items()}


def distance(got, truth):
    """The largest relative distance of an array from its truth, in the L2 norm."""
    assert got.keys() == truth.keys()
    return max(np.linalg.norm(got[k] - truth[k]) / np.linalg.norm(truth[k]) for k in truth)


def close(got, truth, tolerance):
    assert got.keys() == truth.keys()
    for name in truth:
        compare("network", name, got[name], truth[name], tolerance=tolerance)


# ---------------------------------------------------------------- PyTorch

def torch_tensor(torch, name, value):
    """A parameter as torch has it: OIHW, (O, I)."""
    value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T if value.ndim == 2 else value
    return torch.tensor(np.array(value, np.float64, order="C"), requires_grad=True)


def from_torch(value):
    value = value.detach().numpy()
    return value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T if value.ndim == 2 else value


def torch_logits(torch, net, parameters, images, views):
    """The net in PyTorch, float64, without dropout."""
    T = torch.nn.functional
    pieces = []
    for image, (_, _, top, _, step, first) in zip(images, views[:, :6].astype(int)):      # plain crops, flipped where the columns step back
        lines, left = image[top:top + net.size], first if step == 1 else first - net.size + 1
        pieces.append(lines[:, left:left + net.size][:, ::step])
    scale, offset = np.float32(1 / 58), np.float32([-124 / 58, -117 / 58, -104 / 58])      # as they are uploaded
    x = torch.tensor((np.array(pieces, np.float64) * np.float64(scale) + np.float64(offset)).transpose(0, 3, 1, 2).copy())
    for name, layer in net.layers.items():
        weight, bias = parameters.get(f"{name}.weight"), parameters.get(f"{name}.bias")
        if isinstance(layer, Conv):
            (top, bottom), (left, right) = layer.window.pad
            x = T.conv2d(T.pad(x, (left, right, top, bottom)), weight, bias, layer.window.stride, groups=layer.groups)
        elif isinstance(layer, Dense):
            x = T.linear(x.permute(0, 2, 3, 1).flatten(1) if x.ndim == 4 else x, weight, bias)
        elif isinstance(layer, MaxPool):
            x = T.max_pool2d(x, layer.window.size, layer.window.stride, ceil_mode=layer.window.ceil)
        elif isinstance(layer, LRN):
            times = layer.size if layer.alpha_mode == "sum" else 1
            x = torch.cat([T.local_response_norm(part, layer.size, layer.alpha * times, layer.beta, layer.k) for part in x.chunk(layer.groups, 1)], 1)
        if getattr(layer, "relu", False):
            x = T.relu(x)
    return x


CASES = {"mini": mini, "half": lambda: build("half", CLASSES, 64), "owt": lambda: small("owt", 63, 2), "caffenet": lambda: small("caffenet", 55, 2),
         "alexnet-caffe": lambda: small("alexnet-caffe", 55, 16),
         "paper": lambda: small("paper", 67, 2), "paper as published": lambda: build("paper", CLASSES, 67)}


def torch_gradients(torch, net, truth, images, labels, views):
    """loss, {name: gradient}; leaves the gradients in `truth`, torch's parameters."""
    for value in truth.values():
        value.grad = None
    loss = torch.nn.functional.cross_entropy(torch_logits(torch, net, truth, images, views), torch.tensor(labels, dtype=torch.long))
    loss.backward()
    return loss.item(), {k: from_torch(v.grad) for k, v in truth.items()}


@pytest.mark.parametrize("name, init", [*((name, "he") for name in CASES if name != "paper as published"), ("paper", "published"),
                                        pytest.param("paper as published", "published", marks=pytest.mark.slow)])
def test_logits_gradients_and_three_steps_equal_pytorchs(device, name, init):
    """In float64 to rounding; in float32 most batches to rounding, and all nearly."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed (pip install 'minialex[torch]'): no net is compared with it")
    full = name == "paper as published"
    torch.set_num_threads(1)
    net, n = CASES[name](), 5
    for layer in net.layers.values():
        if isinstance(layer, Dropout):
            layer.p = 0.0
    optimizer = SGD(momentum=0.9, weight_decay=0.01, form="torch", bias_lr=2.0, bias_decay=0.0)
    first = net.initial(init, 0)
    if init == "he":      # at a tenth of it, what rounding puts to the other side of zero would be seen in the first layer's biases
        first[f"{net.bottom}.weight"] *= 10
    single, double = (network(net, place, n, optimizer=optimizer, init=None) for place in (device, Reference(np.float64)))
    for own in single, double:
        own.load_parameters(first)
    truth = {k: torch_tensor(torch, k, v) for k, v in first.items()}

    images, labels, views = drawn(net, n)
    logits = torch_logits(torch, net, truth, images, views)
    losses = torch.nn.functional.cross_entropy(logits, torch.tensor(labels, dtype=torch.long), reduction="none")
    for own, tolerance in ((double, 1e-10), (single, 2e-5)):
        own.evaluate(images, labels, views)
        got = own.device.to_numpy(own.arrays[f"activation {list(net.layers)[-1]}"])
        compare("logits", name, got, logits.detach().numpy(), tolerance=tolerance)
        compare("loss", name, own.results(n)[0], losses.detach().numpy(), tolerance=tolerance)
        compare("probabilities", name, own.probabilities(n), torch.softmax(logits, 1).detach().numpy(), tolerance=tolerance)
        assert own.results(n)[1].tolist() == [int((row > row[label]).sum()) for row, label in zip(logits, labels)]

    distances = []
    for seed in range(1 if full else 5):
        batch = drawn(net, n, seed)
        single.gradient(*batch)
        distances.append(distance(host(single, single.gradients), torch_gradients(torch, net, truth, *batch)[1]))
    assert (full or np.median(distances) < 2e-5) and max(distances) < NEARLY, distances

    sgd = torch.optim.SGD([{"params": [v for k, v in truth.items() if k.endswith(part)], "weight_decay": decay, "times": times}
                           for part, decay, times in (("weight", 0.01, 1.0), ("bias", 0.0, 2.0))], lr=1.0, momentum=0.9)
    for step, lr in enumerate((0.01, 0.01, 0.004)[:1 if full else 3]):
        batch = drawn(net, n, step)
        loss, gradients = torch_gradients(torch, net, truth, *batch)
        for group in sgd.param_groups:
            group["lr"] = lr * group["times"]
        sgd.step()
        for own, tolerance in ((double, 1e-9), (single, 1e-4)):
            own.train_step(*batch, step, lr)
            assert own.results(n)[0].mean() == pytest.approx(loss, rel=tolerance)
        assert distance(host(double, double.gradients), gradients) < 1e-9
    for own, gradual, tolerance in ((double, 1e-9, 1e-10), (single, NEARLY, 1e-4)):
        assert distance(host(own, own.velocity), {k: from_torch(sgd.state[v]["momentum_buffer"]) for k, v in truth.items()}) < gradual
        close(host(own, own.parameters), {k: from_torch(v) for k, v in truth.items()}, tolerance)


# ---------------------------------------------------------------- float64 references

@pytest.mark.parametrize("form", ["2012", "torch"])
@pytest.mark.parametrize("case", ["mini", "paper"])
def test_the_numpy_device_trains_alike_dropout_included(device, case, form):
    net, n = CASES[case]() if case == "mini" else small("paper", 67, 8), 9
    pair = [network(net, place, n, optimizer=SGD(form=form), seed=3) for place in (device, Reference(np.float64))]
    for step, lr in enumerate((0.02, 0.02, 0.005)):
        for own in pair:
            own.train_step(*drawn(net, n, seed=step), step, lr)
        compare("loss", "loss", pair[0].results(n)[0], pair[1].results(n)[0], tolerance=1e-3)
        assert distance(*(host(own, own.gradients) for own in pair)) < NEARLY
    close(*(host(own, own.parameters) for own in pair), 1e-3)
    assert distance(*(host(own, own.velocity) for own in pair)) < NEARLY


def towers():
    """Convolutions to the end, with dropout between them: no dense layer."""
    return Net({"conv1": Conv(8, 5, stride=2), "norm1": LRN(3, 0.5), "conv2": Conv(12, 3, groups=2), "pool2": MaxPool(3, 2), "drop3": Dropout(0.3),
                "score": Conv(7, 3, relu=False)}, 23, "towers")


@pytest.mark.parametrize("net, n", [(small("paper", 67, 8), 3), (mini(), 5), (build("half", CLASSES, 64), 2), (towers(), 3),
                                    (Net({k: v for k, v in towers().layers.items() if k != "drop3"}, 23, "without dropout"), 3)],
                         ids=lambda v: getattr(v, "name", ""))
def test_directional_derivative_of_the_whole_network(net, n):
    own = network(net, Reference(np.float64), n)
    batch, values = drawn(net, n), {k: v.astype(np.float64) for k, v in own.net.initial("he", 0).items()}

    def loss(parameters):
        own.load_parameters(parameters)
        own.gradient(*batch, step=5)
        return float(own.results(n)[0].mean())

    loss(values)
    gradients = host(own, own.gradients)
    assert all(np.abs(g).max() > 0 for g in gradients.values())
    # A short step: at a longer one some of the thousands of ReLUs and maxima would be crossed.
    assert check_direction(loss, values, gradients, directions=2, step=1e-7) == {}
    worse = {**gradients, "conv2.weight": gradients["conv2.weight"] * 1.01}
    with pytest.raises(AssertionError, match="derivative: worst at direction"):
        check_direction(loss, values, worse, directions=2, step=1e-7)


# ---------------------------------------------------------------- shares, chunks, workspaces

@pytest.fixture(scope="module")
def truths():
    """{n: (losses, gradients)} of the mini net's first n images, in float64."""
    net, found = mini(), {}
    own = network(net, Reference(np.float64), 13)
    for n in (1, 3, 7, 8, 9, 13):
        own.gradient(*(a[:n] for a in drawn(net, 13)), step=2)
        found[n] = own.results(n)[0], host(own, own.gradients)
    return found


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("batch", [1, 3, 7, 8, 9, 13])
def test_any_batch_on_any_number_of_cores(truths, batch, threads):
    """Shares, chunks and a batch smaller than the one laid out change rounding only; dropout counts in the whole batch."""
    net = mini()
    own = network(net, CPU(threads), batch)
    assert own.layout.shares == max(1, min(threads, batch // 4)) and own.layout.chunk <= 4
    distances = []
    for n in sorted(set(truths) & set(range(batch + 1)), reverse=True):
        own.gradient(*(a[:n] for a in drawn(net, 13)), step=2)
        compare("loss", f"{n} of {batch}", own.results(n)[0], truths[n][0])
        distances.append(distance(host(own, own.gradients), truths[n][1]))
    assert np.median(distances) < 2e-5 and max(distances) < NEARLY, distances


@pytest.mark.parametrize("threads", [1, 2])
def test_a_smaller_workspace_changes_rounding_only(truths, threads):
    net, device = mini(), CPU(threads)
    least = max(net.layers[k].columns(device, net.inputs[k], 4, True, k != "conv1")[0] for k in ("conv1", "conv2")) * 4 * min(threads, 3) / 2**20
    sizes = []
    for megabytes in (None, 2.5 * least, 1.0001 * least):
        own = network(net, device, 13, workspace_mb=megabytes)
        own.gradient(*drawn(net, 13), step=2)
        compare("loss", str(megabytes), own.results(13)[0], truths[13][0])
        assert distance(host(own, own.gradients), truths[13][1]) < NEARLY
        sizes.append(own.layout.bytes("workspace columns"))
    assert sizes[0] > sizes[1] > sizes[2] and sizes[2] <= 1.0001 * least * 2**20
    with pytest.raises(UserError, match=rf"--workspace-mb {0.999 * least:g}: conv\d needs at least {least:.1f} MB in {threads} shares"):
        network(net, device, 13, workspace_mb=0.999 * least)


def test_dense_layers_do_not_widen_the_columns_of_a_large_batch():
    net, device = build("paper"), CPU(2)
    assert Layout(net, device, 512, workspace_mb=20).bytes("workspace columns") <= 20 * 2**20


@pytest.mark.parametrize("n", [1, 5, 13])
def test_evaluation_only(device, n):
    """Without room for gradients: the same losses, ranks and probabilities, less memory, and no training."""
    net = mini()
    both = [network(net, device, 13, training=training) for training in (True, False)]
    batch = [a[:n] for a in drawn(net, 13)]
    for own in both:
        own.evaluate(*batch)
    for full, lean in zip((*both[0].results(n), both[0].probabilities(n)), (*both[1].results(n), both[1].probabilities(n))):
        np.testing.assert_array_equal(full, lean)
    assert both[1].layout.bytes() < both[0].layout.bytes() and not both[1].gradients and not both[1].velocity
    with pytest.raises(RuntimeError, match="evaluation only"):
        both[1].train_step(*batch, 0, 0.1)
    np.testing.assert_allclose(both[1].probabilities(n).sum(axis=1), 1, rtol=1e-5)


def test_dropout_is_numbered_by_layer_and_counted_in_the_whole_batch(device):
    net = mini()
    own = network(net, device, 9, seed=2**50 + 1)
    own.gradient(*drawn(net, 9), step=6)
    masks = []
    for activation, name, p in (("norm2", "drop3", 0.3), ("fc3", "drop4", 0.4)):
        values = device.to_numpy(own.arrays[f"activation {activation}"]).ravel()
        words = philox(2**50 + 1, np.arange(-(-values.size // 4)), 0, list(net.layers).index(name), 6).ravel()[:values.size]
        masks.append(words < int(p * 2**32))
        assert not values[masks[-1]].any() and (values[~masks[-1]] > 0).mean() > 0.3
    assert (masks[0][:300] != masks[1][:300]).any()


def test_evaluation_changes_nothing_and_has_no_dropout(device):
    net = mini()
    own = network(net, device, 8)
    before = host(own, own.parameters)
    own.evaluate(*drawn(net, 8))
    first = own.results(8)[0]
    own.gradient(*drawn(net, 8), step=1)
    assert np.abs(own.results(8)[0] - first).max() > 1e-4      # dropout
    own.evaluate(*drawn(net, 8))
    np.testing.assert_array_equal(own.results(8)[0], first)
    close(host(own, own.parameters), before, 0)


# ---------------------------------------------------------------- steadiness

def test_a_steady_step_allocates_nothing(cpu):
    net = mini()
    own = network(net, cpu, 13)
    batches = [[a[:n] for a in drawn(net, 13)] for n in (13, 9)]
    for step in range(2):
        for batch in batches:
            own.train_step(*batch, step, 0.01)
    before = {name: (id(a), a.ctypes.data) for name, a in own.arrays.items()}
    tracemalloc.start()
    for step in range(20):
        own.train_step(*batches[step % 2], step, 0.01)
    left, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 64 * 1024 and left < 16 * 1024
    assert {name: (id(a), a.ctypes.data) for name, a in own.arrays.items()} == before and len(own.tapes) == 2


def test_two_equal_runs_are_bit_identical(device):
    def run():
        net = mini()
        own = network(net, device, 9, seed=2**40)
        for step, n in enumerate((9, 9, 4)):
            own.train_step(*(a[:n] for a in drawn(net, 9, seed=step)), step, 0.01)
        own.evaluate(*drawn(net, 9))
        return {name: device.to_numpy(a).tobytes() for name, a in own.arrays.items() if not name.startswith("workspace")}

    first, second = run(), run()
    assert first.keys() == second.keys() and not [name for name in first if first[name] != second[name]]


def test_the_same_step_after_loading_parameters_and_velocity(device):
    """What a checkpoint relies on: (parameters, velocity, step) decide the next step."""
    net = mini()
    one, two = (network(net, device, 9) for _ in range(2))
    for step in range(2):
        one.train_step(*drawn(net, 9, seed=step), step, 0.01)
    for into, values in ((two.parameters, one.parameters), (two.velocity, one.velocity)):
        two.load_parameters({k: device.to_numpy(v) for k, v in values.items()}, into)
    for own in (one, two):
        own.train_step(*drawn(net, 9, seed=2), 2, 0.02)
    close(host(two, two.parameters), host(one, one.parameters), 0)


# ---------------------------------------------------------------- other nets

OTHERS = {
    "pool first": {"pool0": MaxPool(2), "conv1": Conv(5, 3, relu=False), "relu1": ReLU(), "fc": Dense(7, relu=False)},
    "LRN first": {"norm0": LRN(3, 0.5), "pool0": MaxPool(2), "relu0": ReLU(), "conv1": Conv(5, 3), "fc": Dense(7, relu=False)},
    "dropout between convolutions": {"conv1": Conv(24, 3, stride=4), "drop1": Dropout(0.3), "conv2": Conv(8, 3, pad=1, groups=2), "pool2": MaxPool(2),
                                     "fc": Dense(7, relu=False)},
    "ReLU between dense layers": {"fc1": Dense(20), "relu": ReLU(), "fc2": Dense(7, relu=False)},
    "one dense layer": {"fc": Dense(7, relu=False)},
    "one convolution": {"conv": Conv(7, 14, relu=False)},
    "convolutions only": {"conv1": Conv(8, 3, stride=2), "norm1": LRN(3, 0.5), "pool1": MaxPool(2), "conv2": Conv(14, 2), "score": Conv(7, 2, groups=7, relu=False)},
    "convolutions and dropout": {"conv1": Conv(8, 3, stride=2), "drop1": Dropout(0.3), "conv2": Conv(12, 3), "score": Conv(7, 4, relu=False)},
    "dropout first": {"drop0": Dropout(0.3), "conv1": Conv(8, 3, stride=3), "score": Conv(7, 4, relu=False)},
    "LRN last but one": {"conv1": Conv(5, 3), "norm1": LRN(3, 0.5), "fc": Dense(7, relu=False)},
    "LRN between dense layers": {"fc1": Dense(20), "norm1": LRN(3, 0.5), "fc2": Dense(7, relu=False)},
    "pool last but one": {"conv1": Conv(5, 3, relu=False), "relu1": ReLU(), "pool1": MaxPool(3), "score": Conv(7, 4, relu=False)},
    "pool last": {"conv1": Conv(8, 3, stride=2), "conv2": Conv(7, 3, relu=False), "pool2": MaxPool(4)},
}


@pytest.mark.parametrize("name", OTHERS)
def test_nets_of_other_shapes_agree_with_the_reference(device, name):
    net = Net(OTHERS[name], 14, "other")
    for training in (True, False):
        pair = [network(net, place, 13, training=training) for place in (device, Reference(np.float64))]
        for n in (13, 5):
            batch = [a[:n] for a in drawn(net, 13)]
            for own in pair:
                own.gradient(*batch, step=1) if training else own.evaluate(*batch)
            compare("loss", "loss", pair[0].results(n)[0], pair[1].results(n)[0])
            assert not training or distance(*(host(own, own.gradients) for own in pair)) < NEARLY


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", OTHERS)
def test_nets_of_other_shapes_on_any_number_of_cores(name, threads):
    net, device = Net(OTHERS[name], 14, "other"), CPU(threads)
    for batch in (1, 3, 8, 17):
        images = drawn(net, batch)
        pair = [network(net, place, batch, seed=5) for place in (device, Reference(np.float64))]
        for own in pair:
            own.train_step(*images, 1, 0.01)
        compare("loss", f"{batch}", *(own.results(batch)[0] for own in pair))
        assert distance(*(host(own, own.gradients) for own in pair)) < NEARLY
        close(*(host(own, own.parameters) for own in pair), 1e-4)
        lean = network(net, device, batch, training=False)
        lean.load_parameters(pair[0].weights())
        for own in (*pair, lean):
            own.evaluate(*images)
        np.testing.assert_array_equal(lean.results(batch)[0], pair[0].results(batch)[0])
        compare("probabilities", f"{batch}", lean.probabilities(batch), pair[1].probabilities(batch), tolerance=1e-4)


def test_only_dropout_before_a_dense_layer_takes_the_whole_batch(cpu):
    """Convolutions behind a dropout are still cut into shares."""
    tails = {name: Layout(Net(layers, 14, "other"), cpu, 8).tail for name, layers in OTHERS.items()}
    assert tails["convolutions and dropout"] == tails["dropout first"] == tails["pool last"] == [] and tails["dropout between convolutions"] == ["fc"]
    assert Layout(build("half", 10, 64), cpu, 8).tail == ["drop6", "fc6", "drop7", "fc7", "fc8"] and Layout(build("paper", 10, 67), cpu, 8).tail[0] == "fc6"


BEFORE_A_POOL = {
    "im2col": {"conv": Conv(12, 3, stride=2, groups=3), "pool": MaxPool(3, 2), "fc": Dense(7, relu=False)},
    "winograd": {"conv": Conv(12, 5, pad=2, algorithm="winograd"), "pool": MaxPool(3, 2, pad=1, ceil=True), "fc": Dense(7, relu=False)},
    "no ReLU": {"conv": Conv(33, 3, relu=False), "pool": MaxPool(2), "body": Conv(8, 3), "last": MaxPool(2, 1, pad=1), "fc": Dense(7, relu=False)},
}


@pytest.mark.parametrize("name", BEFORE_A_POOL)
def test_a_pool_that_has_a_convolutions_bias_and_relu_changes_rounding_only(device, name):
    """Beside the same net with a layer between the two, whose convolution has them itself."""
    layers, apart = BEFORE_A_POOL[name], {}
    for key, layer in layers.items():
        pooled = isinstance(layer, MaxPool)
        apart |= {f"{key}_norm": LRN(1, 0.0, 1.0, 1.0), key: layer} if pooled else {key: layer}      # LRN that divides by 1
    found = []
    for part in (layers, apart):
        own = network(Net(part, 14, "own"), device, 9, init="he", conv="im2col" if name != "winograd" else "winograd")
        for key, value in own.parameters.items():      # those of a layer depend on its number
            value_of = np.random.default_rng(len(key) + ord(key[0])).standard_normal(value.shape) / 12
            own.device.upload(value, value_of)
        own.train_step(*drawn(own.net, 9), 1, 0.01)
        found.append((host(own, own.gradients), host(own, own.parameters), own.results(9)[0]))
        assert set(own.net.pooled) == ({key for key, layer in layers.items() if isinstance(layer, Conv)} if part is layers else set())
        own.evaluate(*drawn(own.net, 9))
        found[-1] += own.results(9)[0], own.probabilities(9), own.activations()
    together, alone = found
    for key, value in together[-1].items():
        np.testing.assert_allclose(value, alone[-1][key], rtol=1e-4, atol=1e-5)
    close(together[0], alone[0], 1e-5)
    close(together[1], alone[1], 1e-5)
    for a, b in zip(together[2:-1], alone[2:-1]):
        np.testing.assert_allclose(a, b, rtol=1e-5)


# ---------------------------------------------------------------- what a network shows

def test_activations_are_those_of_the_last_pass(device):
    """In place layers have changed those of the layer before: a dropped element is 0 in training, and not in evaluation."""
    net = mini()
    pair = [network(net, place, 9, seed=3) for place in (device, Reference(np.float64))]
    for n, dropped in ((9, False), (5, True)):
        batch = [a[:n] for a in drawn(net, 9)]
        for own in pair:
            own.train_step(*batch, 1, 0.01) if dropped else own.evaluate(*batch)
        ours, truth = (own.activations() for own in pair)
        assert list(ours) == ["conv1", "norm1", "pool1", "conv2", "pool2", "norm2", "fc3", "fc4"]
        assert all(isinstance(value, np.ndarray) and value.shape == (n, *net.outputs[name]) for name, value in ours.items())
        close(ours, truth, 2e-5)
        np.testing.assert_array_equal(ours["norm2"] == 0, truth["norm2"] == 0)
    ours["fc4"][:] = 7
    assert not (pair[0].activations()["fc4"] == 7).any()
    with pytest.raises(UserError, match="evaluation only keeps its activations for a few images at a time: make it with training=True"):
        network(net, device, 9, training=False).activations()


def test_weights_are_copies_on_the_host(device):
    net = mini()
    own, first = network(net, device, 4), net.initial("he", 0)
    own.weights()["conv1.bias"][:] = 7
    weights = own.weights()
    assert list(weights) == list(first)
    for name, value in first.items():
        np.testing.assert_array_equal(weights[name], value)


def test_a_network_takes_a_devices_name_and_says_what_it_is():
    net = Net({"fc": Dense(2, relu=False)}, 2)
    for name, kind in (("cpu", CPU), ("numpy", Reference), ("auto", object)):
        own = Network(net, name, 3)
        assert isinstance(own.device, kind) and own.device.float == np.float32
        assert own.input == Input(net.side, net.size) and repr(own) == f"Network of {net!r}, on {own.device.name}, for up to 3 images at a time"
    assert "for evaluation of up to 3 images" in repr(Network(net, own.device, 3, training=False))
    with pytest.raises(UserError, match="unknown device 'gpu': choose auto, cpu, cuda, numpy"):
        Network(net, "gpu", 3)


# ---------------------------------------------------------------- down to the picture

def scored(own, n, seed=0):
    """Pictures and views of n centre crops, and weights of their classes' scores, for a network that takes a mean image."""
    images, _, _ = drawn(own.net, n, seed, own.input.side)
    return images, own.input.centre(n), np.random.default_rng(seed + 1).normal(size=(n, own.net.classes)).astype(np.float32)


@pytest.mark.parametrize("net", [mini(), towers(), *(Net(OTHERS[name], 14, name) for name in OTHERS)], ids=lambda net: net.name)
def test_the_gradient_of_the_input_is_the_derivative_of_the_score(net):
    """Along the mean image, which the input kernel takes off each pixel: from the picture to the score and back, without dropout."""
    own = Network(net, Reference(np.float64), 3, input=Input(net.size + 2, net.size, mean="image"), training=False, to_input=True)
    images, views, wanted = scored(own, 3)
    mean = np.random.default_rng(5).uniform(90, 150, (own.input.side, own.input.side, 3))

    def score(values):
        own.load_mean(values["mean"])
        own.evaluate(images, np.zeros(3, np.int32), views)
        return float((own.arrays[f"activation {list(net.layers)[-1]}"].reshape(3, -1) * wanted).sum())

    score({"mean": mean})
    found = np.zeros_like(mean)
    found[1:-1, 1:-1] = -own.input_gradient(images, views, wanted).sum(axis=0) / 58
    assert np.abs(found).max() > 0
    assert check_direction(score, {"mean": mean}, {"mean": found}, directions=2, step=1e-6) == {}
    with pytest.raises(AssertionError, match="derivative: worst at direction"):
        check_direction(score, {"mean": mean}, {"mean": found * 1.01}, directions=2, step=1e-6)


@pytest.mark.parametrize("conv", ["im2col", "winograd"])
def test_the_gradient_of_the_input_agrees_with_the_reference(device, conv):
    net, distances = mini(), []
    pair = [network(net, place, 9, training=False, to_input=True, conv=conv) for place in (device, Reference(np.float64))]
    for n in (9, 2, 9):
        batch = scored(pair[0], n, seed=n + len(distances))
        ours, truth = (own.input_gradient(*batch) for own in pair)
        assert ours.shape == (n, net.size, net.size, 3)
        distances.append(distance({"": ours}, {"": truth}))
    assert np.median(distances) < 2e-5 and max(distances) < NEARLY, distances


@pytest.mark.parametrize("name", ["LRN first", "dropout between convolutions", "ReLU between dense layers", "one dense layer", "convolutions only"])
def test_the_gradient_of_the_input_on_some_cores(name):
    net, distances = Net(OTHERS[name], 14, "other"), []
    pair = [network(net, place, 17, training=False, to_input=True) for place in (CPU(2), Reference(np.float64))]
    for n in (17, 3):
        batch = scored(pair[0], n, seed=n)
        distances.append(distance(*({"": own.input_gradient(*batch)} for own in pair)))
        images, views, _ = batch
        for own in pair:
            own.evaluate(images, np.zeros(n, np.int32), views)
        compare("probabilities", name, *(own.probabilities(n) for own in pair), tolerance=1e-4)
    assert min(distances) < 2e-5 and max(distances) < NEARLY, distances


@pytest.mark.parametrize("conv", ["im2col", "winograd"])
def test_there_is_room_for_the_first_layers_columns(conv):
    """Those of its input's gradient are gathered from whole images, where the other passes take some lines."""
    net = Net({"conv1": Conv(4, 5, pad=2), "pool1": MaxPool(9, 9), "fc": Dense(7, relu=False)}, 81)
    pair = [network(net, place, 2, training=False, to_input=True, conv=conv) for place in (CPU(1), Reference(np.float64))]
    batch = scored(pair[0], 2)
    compare("gradient", conv, *(own.input_gradient(*batch) for own in pair), tolerance=1e-4)


def test_training_has_no_room_for_the_gradient_of_its_input():
    net = mini()
    plain, deep = (network(net, Reference(np.float64), 9, to_input=to_input) for to_input in (False, True))
    assert {name for name in deep.arrays if name not in plain.arrays} == {"input wanted", "output input gradient", "prepared conv1.transposed"}
    batch = drawn(net, 9)
    for own in plain, deep:
        own.train_step(*batch, 0, 0.01)
    close(host(deep, deep.parameters), host(plain, plain.parameters), 0)
    assert len(deep.tapes["train", 9].calls) == len(plain.tapes["train", 9].calls) + 1      # conv1's weights, transposed
    kept = host(deep, deep.gradients)
    deep.input_gradient(*scored(deep, 9))
    close(host(deep, deep.gradients), kept, 0)      # no parameter's gradient is computed for it
    deep.train_step(*batch, 1, 0.01)
    plain.train_step(*batch, 1, 0.01)
    close(host(deep, deep.parameters), host(plain, plain.parameters), 0)
    images, views, wanted = scored(plain, 2)
    with pytest.raises(RuntimeError, match="without the gradient of its input: make it with to_input=True"):
        plain.input_gradient(images, views, wanted)
    with pytest.raises(ValueError, match=r"wanted: expected shape \(2, 7\), got \(2, 6\)"):
        deep.input_gradient(images, views, wanted[:, 1:])
    lean = network(net, Reference(np.float64), 9, training=False, to_input=True)
    assert not lean.velocity and list(lean.activations()) == list(deep.activations())
    with pytest.raises(RuntimeError, match="evaluation only"):
        lean.train_step(*batch, 0, 0.1)


# ---------------------------------------------------------------- numbers and sentences

@pytest.mark.parametrize("name, classes, parameters, giga", [
    ("paper", None, 60_965_224, 0.724), ("caffenet", None, 60_965_224, 0.724), ("alexnet-caffe", None, 60_965_224, 0.724), ("owt", None, 61_100_840, 0.714), ("half", 10, 14_601_930, 0.309)])
def test_published_numbers(name, classes, parameters, giga):
    net = build(name, classes)
    assert sum(int(np.prod(shape)) for shape in net.parameters().values()) == parameters
    assert round(net.macs() / 1e9, 3) == giga
    assert net.outputs["pool5"][:2] == (6, 6)


def test_published_initial_values():
    net = small("paper", 67, 8)
    values = net.initial("published", 1)
    assert {k: float(v[0]) for k, v in values.items() if k.endswith("bias")} == {
        "conv1.bias": 0, "conv2.bias": 1, "conv3.bias": 0, "conv4.bias": 1, "conv5.bias": 1, "fc6.bias": 1, "fc7.bias": 1, "fc8.bias": 0}
    assert values["conv3.weight"].std() == pytest.approx(0.01, rel=0.05)
    he = net.initial("he", 1)
    assert he["conv3.weight"].std() == pytest.approx(np.sqrt(2 / net.layers["conv3"].fan_in(net.inputs["conv3"])), rel=0.05)
    assert he["conv1.weight"].std() == pytest.approx(0.1 * np.sqrt(2 / 363), rel=0.05)      # or its noise would hide what it learns
    assert not any(v.any() for k, v in he.items() if k.endswith("bias")) and (he["fc6.weight"] != net.initial("he", 2)["fc6.weight"]).all()
    with pytest.raises(UserError, match="--init xavier is not for paper: choose he or published"):
        net.initial("xavier", 0)


@pytest.mark.parametrize("name, size, layer", [("paper", 66, "pool5"), ("paper", 10, "conv1"), ("paper", 13, "pool1"), ("half", 63, "pool5"),
                                               ("owt", 62, "pool5"), ("caffenet", 40, "pool5")])
def test_an_input_too_small_names_the_layer(name, size, layer):
    with pytest.raises(UserError, match=rf"^{name} at {size}x{size}: {layer} runs out of pixels \(.* does not fit .*\); use a larger --size"):
        build(name, CLASSES, size)
    with pytest.raises(UserError, match="unknown net 'alexnet': choose one of paper, caffenet, alexnet-caffe, owt, half"):
        build("alexnet")


def test_wrong_batches_name_the_argument(cpu):
    net = mini()
    own = network(net, cpu, 4)
    images, labels, views = drawn(net, 4)
    for batch, text in [
            ((images[:0], labels[:0], views[:0]), "images: expected 1 to 4, got 0"), (drawn(net, 5), "images: expected 1 to 4, got 5"),
            ((images, labels + 7, views), "label: .* is not a class index from 0 to 6"), ((images, labels, views * np.nan), "views: an affine map has a number that is not finite"),
            ((images, labels[:1], views), r"labels: expected shape \(4,\), got \(1,\)"),
            ((images[..., :1], labels, views), r"images: expected shape \(4, 26, 26, 3\), got \(4, 26, 26, 1\)"),
            ((images, labels, views[:1]), r"views: expected shape \(4, 18\), got \(1, 18\)"),
            ((images / np.float32(255), labels, views), "images: expected uint8, got float32"),
            ((images, labels + 0.5, views), "label")]:
        with pytest.raises((ValueError, TypeError), match=text):
            own.train_step(*batch, 0, 0.1)
    with pytest.raises(UserError, match="--batch 0: a batch has at least one image"):
        network(net, cpu, 0)
    values = net.initial("he", 0)
    with pytest.raises(UserError, match=r"conv1.weight: expected shape \(5, 5, 3, 12\), got \(5, 5, 3, 11\)"):
        own.load_parameters({**values, "conv1.weight": values["conv1.weight"][..., :11]})
    with pytest.raises(UserError, match="fc4.bias is missing"):
        own.load_parameters({k: v for k, v in values.items() if k != "fc4.bias"})


class Unpadded(CPU):
    def pitch(self, lanes):
        return lanes


@pytest.mark.parametrize("more", [{"clip_norm": 0.5}, {"optimizer": Adam(), "average": 0.9}], ids=["clipped sgd", "adam and a mean"])
def test_padded_rows_change_nothing(more):
    """A CPU's dense weights of 512 columns have rows of 528 floats; what is beyond the columns stays 0, and nobody sees it."""
    net, batch = Net({"pool1": MaxPool(4, 4), "fc2": Dense(512), "fc3": Dense(4, relu=False)}, 11), drawn(Net({"fc": Dense(4, relu=False)}, 11), 9)
    padded, plain = (network(net, device(2), 9, **more) for device in (CPU, Unpadded))
    assert padded.layout.places["fc2.weight"][1] == (12, 528) and plain.layout.places["fc2.weight"][1] == (12, 512)
    for step in range(5):
        for own in (padded, plain):
            own.train_step(*batch, step, 0.01)
    for own, other in ((getattr(padded, kind), getattr(plain, kind)) for kind in ("parameters", "gradients", "state", "averages")):
        close(host(padded, own), host(plain, other), 1e-5)
    at, shape = padded.layout.places["fc2.weight"]
    rows = [array[at:at + 12 * 528].reshape(shape) for name, array in padded.arrays.items() if name.endswith(" all")]
    assert len(rows) == 2 + len(padded.state) // 4 and all(array[..., 512:].any() == 0 and array[..., :512].any() for array in rows)
