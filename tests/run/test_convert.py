"""Weights in and out: the files of torchvision, Caffe and Keras, made here as those make them, to a run folder and back."""

import pickle
import zipfile

import numpy as np
import pytest
from runs import refused

import minialex
from minialex import convert, evaluate, export, nets, predict, train, tune
from minialex.errors import UserError
from minialex.nets import Net, build
from minialex.ops.conv import Conv
from minialex.ops.dense import Dense
from minialex.run import weights
from minialex.run.folder import RunFolder
from minialex.run.weights import TORCHVISION, inside, outside

CLASSES = ["blue", "green", "red"]


@pytest.fixture
def little(monkeypatch):
    """The known nets with a sixteenth of their filters and features, and Caffe's for smaller pictures: what a file is, is found out as of the whole ones."""
    def narrow(made):
        def layers(classes):
            found = made(classes)
            for layer in list(found.values())[:-1]:
                for width in {"filters", "features"} & set(vars(layer)):
                    setattr(layer, width, getattr(layer, width) // 16)
            return found
        return layers
    monkeypatch.setattr(tune, "LEAST", np.inf)      # which algorithm is faster nobody asks here
    monkeypatch.setattr(nets, "NETS", {name: (narrow(made), {227: 99}.get(size, size), classes) for name, (made, size, classes) in nets.NETS.items()})


def drawn(name, classes=3):
    """-> a net, and weights for it that have no zeros."""
    net, random = build(name, classes), np.random.default_rng(3)
    return net, {name: (0.05 * random.standard_normal(shape)).astype(np.float32) for name, shape in net.parameters().items()}


def elsewhere(net, values, names):
    """The weights in OIHW and (features, inputs), by other names."""
    return {f"{called}.{part}": outside(values[f"{layer}.{part}"], net.inputs[layer]) for layer, called in names.items() for part in ("weight", "bias")}


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def test_the_rows_of_the_first_dense_layer_are_reordered():
    """Height 2, width 3, 4 channels: row (h, w, c) here is column (c, h, w) there."""
    theirs = np.arange(5 * 24, dtype=np.float32).reshape(5, 4, 2, 3)
    ours = inside(theirs.reshape(5, 24), (2, 3, 4))
    assert all(ours[(h * 3 + w) * 4 + c, o] == theirs[o, c, h, w] for h in range(2) for w in range(3) for c in range(4) for o in range(5))
    assert np.array_equal(outside(ours, (2, 3, 4)), theirs.reshape(5, 24))
    filters = np.arange(5 * 4 * 2 * 3, dtype=np.float32).reshape(5, 4, 2, 3)
    assert inside(filters, ())[1, 2, 3, 4] == filters[4, 3, 1, 2] and np.array_equal(outside(inside(filters, ()), ()), filters)


# ---------------------------------------------------------------- torchvision

def torchvisions(torch, net):
    """torchvision.models.AlexNet as its models/alexnet.py builds it, with this net's widths."""
    nn, of = torch.nn, [layer.filters if isinstance(layer, Conv) else layer.features for layer in net.layers.values() if isinstance(layer, (Conv, Dense))]

    class AlexNet(nn.Module):
        def __init__(self):
            super().__init__()
            self.features = nn.Sequential(
                nn.Conv2d(3, of[0], kernel_size=11, stride=4, padding=2), nn.ReLU(inplace=True), nn.MaxPool2d(kernel_size=3, stride=2),
                nn.Conv2d(of[0], of[1], kernel_size=5, padding=2), nn.ReLU(inplace=True), nn.MaxPool2d(kernel_size=3, stride=2),
                nn.Conv2d(of[1], of[2], kernel_size=3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(of[2], of[3], kernel_size=3, padding=1), nn.ReLU(inplace=True),
                nn.Conv2d(of[3], of[4], kernel_size=3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(kernel_size=3, stride=2))
            self.avgpool = nn.AdaptiveAvgPool2d((6, 6))
            self.classifier = nn.Sequential(
                nn.Dropout(p=0.5), nn.Linear(of[4] * 6 * 6, of[5]), nn.ReLU(inplace=True), nn.Dropout(p=0.5), nn.Linear(of[5], of[6]), nn.ReLU(inplace=True),
                nn.Linear(of[6], of[7]))

        def forward(self, x):
            return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))
    return AlexNet()


def test_torchvisions_net_goes_in_and_out_and_computes_the_same(little, pictures, tmp_path, capsys):
    """Logits and gradients equal on the same weights within rounding: the pixels are normalised as torchvision's transforms do."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed (pip install 'minialex[torch]'): no weights are exchanged with it")
    torch.manual_seed(0)
    module = torchvisions(torch, build("owt", 3)).eval()
    state = module.state_dict()
    assert list(state) == [f"{name}.{part}" for name in TORCHVISION.values() for part in ("weight", "bias")]
    torch.save({"epoch": 3, "state_dict": {f"module.{name}": value for name, value in state.items()}}, tmp_path / "alexnet.pth")      # as a training program does
    (tmp_path / "names.txt").write_text("\n".join(CLASSES))
    out = tmp_path / "run"
    assert convert.main([str(tmp_path / "alexnet.pth"), str(out), "--classes", str(tmp_path / "names.txt")]) == 0
    said = capsys.readouterr().out
    assert "owt, 224x224" in said and "less 123.675:116.28:103.53, times 0.01712:0.01751:0.01743; pictures decoded at 256 pixels (crop)" in said

    run = minialex.load(out, device="cpu")
    assert run.classes == CLASSES and run.config["converted"] == {"from": "alexnet.pth"} and run.net.name == "owt"
    random = np.random.default_rng(0)
    images, labels = random.integers(0, 256, (5, 256, 256, 3), np.uint8), np.array([0, 1, 2, 1, 0], np.int32)
    x = images[:, 16:240, 16:240].astype(np.float32) / 255
    x = torch.tensor(((x - np.float32([0.485, 0.456, 0.406])) / np.float32([0.229, 0.224, 0.225])).transpose(0, 3, 1, 2).copy())
    network = minialex.Network(run.net, "cpu", 5, input=run.input, init=None)
    network.load_parameters(run.network.weights())
    network.evaluate(images, labels, run.input.centre(5))
    logits = module(x)
    np.testing.assert_allclose(network.activations()["fc8"], logits.detach().numpy(), rtol=2e-5, atol=2e-6)
    for layer in run.net.layers.values():      # dropout is drawn otherwise there
        layer.p = 0.0
    network = minialex.Network(run.net, "cpu", 5, input=run.input, init=None)
    network.load_parameters(run.network.weights())
    network.gradient(images, labels, run.input.centre(5))
    torch.nn.functional.cross_entropy(logits, torch.tensor(labels, dtype=torch.long)).backward()
    ours = weights.to_torchvision(build("owt", 3), {name: network.device.to_numpy(array) for name, array in network.gradients.items()})
    for name, parameter in module.named_parameters():
        truth = parameter.grad.numpy()
        assert np.linalg.norm(ours[name] - truth) < 2e-4 * np.linalg.norm(truth), name

    assert evaluate.main([str(out), "--data", str(pictures), "--device", "cpu"]) == 0 and predict.main([str(out), str(pictures / "val/red/00.jpg"), "--device", "cpu"]) == 0
    for name in "again.safetensors", "again.pth":
        assert convert.main([str(out), str(tmp_path / name)]) == 0
        again = torchvisions(torch, build("owt", 3)).eval()
        if name.endswith("pth"):
            again.load_state_dict(torch.load(tmp_path / name, weights_only=True))
        else:
            from safetensors.torch import load_file
            again.load_state_dict(load_file(tmp_path / name))
        assert all(torch.equal(value, again.state_dict()[name]) for name, value in state.items())
    assert export.main([str(out), str(tmp_path / "exported.safetensors"), "--format", "torch"]) == 0
    assert (tmp_path / "exported.safetensors").read_bytes() == (tmp_path / "again.safetensors").read_bytes()
    assert "--preprocessing is for --format onnx" in refused(capsys, export.main, out, tmp_path / "x.pth", "--format", "torch", "--preprocessing", "inside")
    assert "x.onnx: a state dict is written to a file that ends in .safetensors" in refused(capsys, export.main, out, tmp_path / "x.onnx", "--format", "torch")
    session = train.begin(["--data", str(pictures), "--init", str(tmp_path / "again.pth"), "--batch", "4", "--device", "cpu", "--dry-run"])      # a file, unconverted
    assert (session.config["net"], session.input.mean, session.input.side) == ("owt", run.input.mean, 256) and same(session.trainer.network.weights(), run.network.weights())


def test_whoever_is_wrong_is_told_and_nothing_is_written(little, tmp_path, capsys):
    net, values = drawn("owt")
    right, out = elsewhere(net, values, TORCHVISION), tmp_path / "run"

    def told(change, *words, **more):
        given = dict(right)
        change(given)
        with pytest.raises(UserError) as error:
            minialex.convert(given, out, **more)
        assert all(word in str(error.value) for word in words) and "\n" not in str(error.value), error.value
        assert not out.exists()

    def set(name, array):
        return lambda given: given.__setitem__(name, np.asarray(array))
    told(lambda given: (given.pop("features.3.weight"), given.pop("features.3.bias")), "does not have the weights of owt at 224x224: it lacks features.3")
    told(lambda given: given.pop("features.3.bias"), "features.3 has no bias")
    told(set("features.9.weight", right["features.0.weight"]), "features.9 has no bias")
    told(lambda given: given.update({"classifier.9.weight": right["classifier.6.weight"], "classifier.9.bias": right["classifier.6.bias"]}),
         "it has classifier.9.weight, for which there is no place")
    told(set("features.6.weight", right["features.6.weight"][:, :3]), "its features.6.weight has shape (24, 3, 3, 3) instead of (24, 12, 3, 3)")
    told(set("classifier.1.weight", right["classifier.1.weight"][:, :64]), "its classifier.1.weight has shape (256, 64) instead of (256, 576)")
    told(set("classifier.6.weight", right["classifier.6.weight"].astype(np.int64)), "classifier.6.weight is of int64")
    told(set("features.0.bias", right["features.0.bias"] * np.nan), "features.0.bias has numbers that are not finite")
    told(set("features.1.running_mean", np.zeros(4, np.float32)), "features.1.running_mean of shape (4,) is neither weight nor bias")
    told(dict.clear, "it holds no arrays of weights")
    told(lambda given: None, "classes: 2 names, and the net has 3 classes", classes=["a", "b"])
    told(lambda given: None, "augment mean=colour: there is no training set here to measure", augment="mean=colour")
    told(lambda given: None, "its features.0.weight has shape (4, 3, 11, 11) instead of (6, 3, 11, 11)", net="paper")
    told(lambda given: None, "channels RGB: choose rgb or bgr", channels="RGB")

    minialex.convert(right, out, classes=["crane", "crane", "kite"])      # ImageNet has two cranes
    assert RunFolder(out).config()["classes"] == ["crane (0)", "crane (1)", "kite"]
    assert "is there already and not an empty folder" in refused(capsys, convert.main, out, out)
    assert "is a run folder, which says itself what its net is: leave --net" in refused(capsys, convert.main, out, tmp_path / "x", "--net", "owt")
    assert "is a checkpoint of minialex: name its run folder" in refused(capsys, convert.main, out / "best.safetensors", tmp_path / "x")
    assert "has weights that were converted, and is no run to go on with: train from them with --init" in refused(capsys, train.main, "--resume", out)
    assert "it has no images of its own" in refused(capsys, evaluate.main, out)
    assert "No such file" in refused(capsys, convert.main, tmp_path / "none.pth", tmp_path / "x")
    (tmp_path / "damaged.safetensors").write_bytes(b"nothing")
    assert "damaged.safetensors cannot be read as what its ending says" in refused(capsys, convert.main, tmp_path / "damaged.safetensors", tmp_path / "x")
    (tmp_path / "notes.txt").write_text("no weights")
    assert "expected a run folder, or weights in a file that ends in .safetensors, .pth" in refused(capsys, convert.main, tmp_path / "notes.txt", tmp_path / "x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["damaged.safetensors", "notes.txt", "run"]


def test_only_torchvisions_own_net_has_its_names(little):
    net, values = drawn("half")
    with pytest.raises(UserError, match="half is not torchvision's AlexNet, which is the net owt"):
        weights.to_torchvision(net, values)
    small = build("owt", 3, 128)
    with pytest.raises(UserError, match=r"averages the last maps to 6x6, and at 128 pixels this net's are 3 x 3 x 16"):
        weights.to_torchvision(small, {})


def test_a_net_of_ones_own_is_taken_by_the_order_of_names(tmp_path):
    net = Net({"first": Conv(4, 3, stride=2), "second": Conv(4, 3), "score": Dense(3, relu=False)}, 15, "own")
    random = np.random.default_rng(0)
    values = {name: random.standard_normal(shape).astype(np.float32) for name, shape in net.parameters().items()}
    given = elsewhere(net, values, {"first": "net.conv.9", "second": "net.conv.10", "score": "net.head"})
    minialex.convert({name: given[name] for name in sorted(given)}, tmp_path / "run", net=net, augment="mean=none,scale=1/255")
    run = minialex.load(tmp_path / "run", device="numpy")
    assert run.net == net and run.classes == ["class 0", "class 1", "class 2"] and run.input.mean == (0, 0, 0) and same(run.network.weights(), values)


# ---------------------------------------------------------------- Caffe and numpy

def varint(value):
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + varint(value >> 7)


def proto(number, value):
    """A field of a protobuf message."""
    return varint(number << 3) + varint(value) if isinstance(value, int) else varint(number << 3 | 2) + varint(len(value)) + value


def caffes(values, net):
    """The weights as Caffe has them, {"conv1": [weight, bias], ...}: OIHW, and blue first."""
    found = {name: [outside(values[f"{name}.weight"], net.inputs[name]), values[f"{name}.bias"]] for name in net.layers if f"{name}.weight" in values}
    found["conv1"][0] = found["conv1"][0][:, ::-1].copy()
    return found


def caffemodel(values, net, old):
    """The bytes of a NetParameter, of the kind that V1LayerParameter is, as bvlc_alexnet.caffemodel, or of the later one."""
    blobs, layers = caffes(values, net), b""
    for name in ["data", *net.layers, "loss"]:
        of = []
        for array in blobs.get(name, []):
            shape = (1,) * (4 - array.ndim) + array.shape
            about = b"".join(proto(i + 1, size) for i, size in enumerate(shape)) if old else proto(7, proto(1, b"".join(map(varint, array.shape))))
            of.append(about + proto(5, array.astype("<f4").tobytes()))
        text = name.encode()
        layers += proto(2, b"".join([proto(2, b"below"), proto(3, text), proto(4, text), proto(5, 4), *(proto(6, blob) for blob in of)])) if old else \
            proto(100, b"".join([proto(1, text), proto(2, b"Convolution"), *(proto(7, blob) for blob in of)]))
    return proto(1, b"AlexNet") + layers


@pytest.mark.parametrize("name", ["alexnet-caffe", "caffenet"])
def test_caffes_nets_are_told_apart_and_their_blue_is_put_last(little, tmp_path, name):
    pytest.importorskip("google.protobuf", reason="protobuf is not installed (pip install 'minialex[caffe]'): no .caffemodel is read")
    net, values = drawn(name)
    for old in True, False:
        (tmp_path / f"{old}.caffemodel").write_bytes(caffemodel(values, net, old))
        minialex.convert(tmp_path / f"{old}.caffemodel", tmp_path / f"{old}")
        run = minialex.load(tmp_path / f"{old}", device="numpy")
        assert run.net == net and same(run.network.weights(), values) and run.input.mean == (122.679, 116.669, 104.007) and run.input.scale == (1, 1, 1)
    assert (run.input.side, run.input.size) == (256, 99)
    with pytest.raises(UserError, match="its conv1/0 has shape"):
        minialex.convert(tmp_path / "True.caffemodel", tmp_path / "other", net="owt")
    (tmp_path / "cut.caffemodel").write_bytes((tmp_path / "True.caffemodel").read_bytes()[:-9])
    with pytest.raises(UserError, match="cut.caffemodel cannot be read as what its ending says"):
        minialex.convert(tmp_path / "cut.caffemodel", tmp_path / "other")
    mean = np.random.default_rng(0).uniform(90, 130, (112, 112, 3)).astype(np.float32)
    (tmp_path / "mean.binaryproto").write_bytes(b"".join(proto(i + 1, size) for i, size in enumerate((1, 3, 112, 112))) + proto(5, mean[:, :, ::-1].transpose(2, 0, 1).astype("<f4").tobytes()))
    np.save(tmp_path / "mean.npy", mean[:, :, ::-1].transpose(2, 0, 1))
    for file in "mean.binaryproto", "mean.npy":
        out = minialex.convert(tmp_path / "True.caffemodel", tmp_path / f"with {file}", mean=tmp_path / file)
        assert minialex.load(out, device="numpy").input.mean == "image" and np.array_equal(np.load(out / "mean.npy"), mean)


def test_dumps_of_numpys(little, tmp_path):
    """In OIHW by Caffe's names, or, as some dump them for TensorFlow, in its layouts; a pickle of anything else is not opened."""
    net, values = drawn("caffenet")
    dumped = caffes(values, net)
    np.savez(tmp_path / "a.npz", **{f"{name}_{part}": array for name, own in dumped.items() for part, array in zip("wb", own)})
    np.save(tmp_path / "b.npy", dumped, allow_pickle=True)
    with open(tmp_path / "c.npy", "wb") as file:      # as an older numpy does
        np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
        file.write(pickle.dumps(np.array(dumped, object), 2).replace(b"numpy._core", b"numpy.core"))
    np.save(tmp_path / "d.npy", {name: {"weights": values[f"{name}.weight"][:, :, ::-1] if name == "conv1" else values[f"{name}.weight"], "biases": own[1]}
                                 for name, own in dumped.items()}, allow_pickle=True)
    for file in "a.npz", "b.npy", "c.npy", "d.npy":
        found = weights.read(tmp_path / file, "caffenet")
        assert found.net == net and same(found.values, values)
        assert np.array_equal(weights.read(tmp_path / file, "caffenet", channels="rgb").values["conv1.weight"], values["conv1.weight"][:, :, ::-1])
    with pytest.raises(UserError, match="its arrays have the shapes of paper, caffenet, alexnet-caffe: say with --net which one it is"):
        weights.read(tmp_path / "a.npz")

    class Evil:
        def __reduce__(self):
            return exec, ("raise SystemExit('it ran')",)
    np.save(tmp_path / "evil.npy", {"conv1": [Evil(), Evil()]}, allow_pickle=True)
    with pytest.raises(UserError, match="the pickle asks for builtins.exec, and a file of weights needs arrays alone"):
        weights.read(tmp_path / "evil.npy")
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(UserError, match="one.npy holds one array, and a net's weights are several"):
        weights.read(tmp_path / "one.npy")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["owt", "alexnet-caffe"])
def test_nets_of_their_whole_size(tmp_path, name):
    """Of a thousand classes and a quarter of a gigabyte, as they are published."""
    pytest.importorskip("google.protobuf", reason="protobuf is not installed (pip install 'minialex[caffe]'): no .caffemodel is read")
    net, values = drawn(name, 1000)
    if name == "owt":
        file = tmp_path / "alexnet.safetensors"
        convert.write_torch(file, elsewhere(net, values, TORCHVISION))
    else:
        file = tmp_path / "bvlc_alexnet.caffemodel"
        file.write_bytes(caffemodel(values, net, True))
    minialex.convert(file, tmp_path / "run")
    found = weights.read(tmp_path / "run")
    assert found.net == net and same(found.values, values)
    if name == "owt":
        minialex.convert(tmp_path / "run", tmp_path / "again.safetensors")
        assert (tmp_path / "again.safetensors").read_bytes() == file.read_bytes()


# ---------------------------------------------------------------- Keras

def kerases(net, values):
    """{Keras' own name of a layer: [kernel, bias]}"""
    names = dict(zip(TORCHVISION, ["conv2d", *(f"conv2d_{i}" for i in range(1, 5)), "dense", "dense_1", "dense_2"]))
    return {names[layer]: [values[f"{layer}.weight"], values[f"{layer}.bias"]] for layer in names}


def test_the_tutorials_model_from_each_of_keras_files_and_back(little, tmp_path):
    h5py = pytest.importorskip("h5py", reason="h5py is not installed (pip install 'minialex[keras]'): no file of Keras' is read")
    net, values = drawn("half")
    held = kerases(net, values)
    with h5py.File(tmp_path / "3.weights.h5", "w") as file:      # Keras 3, with what training leaves
        for name, arrays in held.items():
            for i, array in enumerate(arrays):
                file[f"layers/{name}/vars/{i}"] = array
        file["optimizer/vars/0"], file["optimizer/vars/1"] = np.int64(3), np.zeros((4, 4), np.float32)
        file.create_group("layers/dropout/vars")
    with zipfile.ZipFile(tmp_path / "3.keras", "w") as archive:
        archive.writestr("config.json", "{}")
        archive.write(tmp_path / "3.weights.h5", "model.weights.h5")
    with h5py.File(tmp_path / "2.h5", "w") as file:      # a whole model, as Keras 2 kept it
        for name, arrays in held.items():
            for part, array in zip(("kernel:0", "bias:0"), arrays):
                file[f"model_weights/{name}/{name}/{part}"] = array
                file[f"optimizer_weights/Adam/m/{name}/{part}"] = array
    for name in "3.weights.h5", "3.keras", "2.h5":
        found = weights.read(tmp_path / name)
        assert found.net == net and same(found.values, values), name
        assert (found.input.mean, found.input.scale, found.input.fit, found.input.side) == ((0, 0, 0), (1 / 255,) * 3, "squash", 224)
    minialex.convert(tmp_path / "3.keras", tmp_path / "run")
    minialex.convert(tmp_path / "run", tmp_path / "again.weights.h5")
    with h5py.File(tmp_path / "again.weights.h5") as file:
        assert all(np.array_equal(file[f"layers/{name}/vars/{i}"][()], array) for name, arrays in held.items() for i, array in enumerate(arrays))
    with pytest.raises(UserError, match="Keras reads weights from files that end in .weights.h5"):
        minialex.convert(tmp_path / "run", tmp_path / "again.h5")
    with zipfile.ZipFile(tmp_path / "empty.keras", "w") as archive:
        archive.writestr("config.json", "{}")
    with pytest.raises(UserError, match="empty.keras cannot be read as what its ending says"):
        weights.read(tmp_path / "empty.keras")
