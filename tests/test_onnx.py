"""Nets as ONNX files and ONNX files on our kernels, held to onnxruntime and to the tests of the package onnx itself."""

import json
import os
import sys
import unittest
from collections import Counter, defaultdict
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from odd_files import photograph
from PIL import Image
from runs import copy_of, refused, replaced

import minialex
from minialex import export, nets, predict
from minialex.data.augment import Input
from minialex.errors import UserError
from minialex.network import Network
from minialex.ops.layer import device_of
from minialex.run import checkpoint
from minialex.run.run import Run

onnx = pytest.importorskip("onnx", reason="no onnx: pip install 'minialex[onnx]'")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from onnx.backend.test.runner import Runner  # noqa: E402

import minialex.onnx  # noqa: E402

SHARED = Path(os.environ.get("MINIALEX_SHARED") or Path(__file__).resolve().parents[2] / "shared")
OWN = {"conv1": minialex.Conv(8, (5, 4), stride=(3, 2), pad=((1, 2), (0, 1))), "norm1": minialex.LRN(3, 0.5, 0.6, 1.5),
       "pool1": minialex.MaxPool((3, 2), 2, pad=1, ceil=True), "conv2": minialex.Conv(6, 3, groups=2, relu=False), "relu2": minialex.ReLU(),
       "pool2": minialex.MaxPool(2), "drop3": minialex.Dropout(0.5), "fc3": minialex.Dense(12),
       "norm3": minialex.LRN(3, 50.0, 0.8, 1.0, "mean", groups=3), "fc4": minialex.Dense(5, relu=False)}
CONVOLUTIONAL = {"image": minialex.Conv(6, 11, stride=4), "logits": minialex.MaxPool(3, 2, ceil=True), "conv2": minialex.Conv(5, 4, relu=False)}
SMALL = {"paper": 67, "caffenet": 67, "owt": 63, "half": 72}      # whose filters and features are a sixteenth of the published ones


def net_named(name):
    if name in SMALL:
        return nets.build(name, 7, SMALL[name], fewer=16)
    return nets.Net({"own": OWN, "convolutional": CONVOLUTIONAL}[name], {"own": 50, "convolutional": 39}[name], name)


def drawn(net, seed=0):
    """Weights whose biases and signs all matter."""
    random = np.random.default_rng(seed)
    return {name: array if array.ndim > 1 else random.normal(0, 0.2, array.shape).astype(np.float32) for name, array in net.initial("he", seed).items()}


def logits_of(net, weights, input, images, mean=None):
    """Our own, of the centre crops."""
    network = Network(net, device_of("cpu"), len(images), input=input, training=False, conv="im2col")
    network.load_parameters(weights)
    network.load_mean(mean)
    network.evaluate(images, np.zeros(len(images), np.int32), input.centre(len(images)))
    return network.arrays[f"activation {list(net.layers)[-1]}"][:len(images)].reshape(len(images), -1).copy()


def centre(images, input):
    """What the graph takes: the pixels of the centre crops as NCHW floats."""
    top = input.margin // 2
    return images[:, top:top + input.size, top:top + input.size].transpose(0, 3, 1, 2).astype(np.float32)


def by_onnxruntime(model, images):
    runtime = pytest.importorskip("onnxruntime", reason="no onnxruntime: what it makes of our files is not seen")
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    return runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"]).run(None, {model.graph.input[0].name: images})[0]


def same(found, truth, tolerance=1e-5):
    assert found.shape == truth.shape and np.abs(found - truth).max() <= tolerance * np.abs(truth).max()


@pytest.mark.parametrize("name", [*SMALL, "own", "convolutional"])
def test_a_file_gives_the_logits_of_its_net(name):
    """By onnxruntime and by our kernels, for a batch of any size, with the mean and the scale in the graph or left to the caller."""
    net = net_named(name)
    input, weights = Input(net.size + 9, net.size, mean=(120.0, 110.0, 99.5), scale=(1 / 50, 1 / 60, 1 / 70)), drawn(net)
    images = np.stack([photograph(seed, input.side, input.side) for seed in range(3)])
    ours = logits_of(net, weights, input, images)
    assert np.abs(ours).max() > 0.1 and len({row.tobytes() for row in ours}) == 3
    for preprocessing in "inside", "described":
        model = minialex.onnx.model_of(net, weights, input, [f"c{k}" for k in range(net.classes)], preprocessing=preprocessing)
        about = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
        assert about["classes"] == [f"c{k}" for k in range(net.classes)] and about["input"]["preprocessing"] == preprocessing
        pixels = centre(images, input)
        if preprocessing == "described":      # by the words of the metadata alone
            mean, scale = (np.float32(about["input"][key]).reshape(1, 3, 1, 1) for key in ("mean", "scale"))
            pixels = (pixels - mean) * scale
        assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
        prepared = minialex.onnx.prepare(model)
        for n in 3, 1:
            same(by_onnxruntime(model, pixels[:n]), ours[:n])
            same(prepared.run([pixels[:n]])["logits"], ours[:n])


def test_a_mean_image_goes_into_the_graph():
    net, random = net_named("half"), np.random.default_rng(3)
    input, mean = Input(80, net.size, mean="image"), random.uniform(90, 150, (80, 80, 3)).astype(np.float32)
    images, weights = random.integers(0, 256, (2, 80, 80, 3), np.uint8), drawn(net)
    model = minialex.onnx.model_of(net, weights, input, list("abcdefg"), mean)
    ours = logits_of(net, weights, input, images, mean)
    same(by_onnxruntime(model, centre(images, input)), ours)
    with pytest.raises(UserError, match="mean image, which cannot be described"):
        minialex.onnx.model_of(net, weights, input, list("abcdefg"), mean, "described")


@pytest.mark.slow
@pytest.mark.parametrize("name", nets.NETS)
def test_the_nets_as_published_on_photographs(name):
    photographs = sorted((SHARED / "data/monkeys/val").glob("n*/*"))[::40]
    if not photographs:
        pytest.skip(f"no photographs in {SHARED / 'data/monkeys'}")
    net = nets.build(name)
    input, weights = Input(net.side, net.size), drawn(net)
    images = input.prepare(photographs)
    model = minialex.onnx.model_of(net, weights, input, [f"c{k}" for k in range(net.classes)])
    ours = logits_of(net, weights, input, images)
    same(by_onnxruntime(model, centre(images, input)), ours)
    same(minialex.onnx.run_model(model, [centre(images, input)])[0], ours)


# The command, and its file as predict takes it

def test_a_run_becomes_a_file_that_predicts_the_same(finished, pictures, tmp_path, capsys):
    inside, described = tmp_path / "inside.onnx", tmp_path / "described.onnx"
    assert export.main([str(finished), str(inside)]) == 0 and "best.safetensors" in capsys.readouterr().out
    assert export.main([str(finished), str(described), "--preprocessing", "described"]) == 0
    assert [onnx.load(file).graph.node[0].op_type for file in (inside, described)] == ["Sub", "Conv"]

    def found(source, *more):
        table = tmp_path / "found.csv"
        assert predict.main([str(source), str(pictures / "val/red"), "--device", "cpu", "--top", "3", "--csv", str(table), *more]) == 0
        rows = [line.split(",") for line in table.read_text().splitlines()[1:]]
        assert len(rows) == 4
        return [[row[0], *row[1::2]] for row in rows], np.array([row[2::2] for row in rows], float)

    for file, crops in (inside, []), (inside, ["--ten-crop"]), (described, []):
        (names, probabilities), (true_names, true_probabilities) = found(file, *crops), found(finished, *crops)
        assert names == true_names
        np.testing.assert_allclose(probabilities, true_probabilities, atol=1e-5)
    assert np.abs(found(inside, "--ten-crop")[1] - probabilities).max() > 1e-4


def test_averages_are_what_is_exported(finished, tmp_path):
    """They are what evaluation goes by where a run keeps them."""
    run = copy_of(finished, tmp_path / "run")
    tensors, state, net = checkpoint.read(run / "last.safetensors")
    tensors |= {name.replace("parameter ", "average "): array + 1 for name, array in tensors.items() if name.startswith("parameter ")}
    text = json.dumps(state)
    replaced(run / "last.safetensors", checkpoint.to_bytes(tensors, {"minialex": text, "net": net, "crc32": checkpoint.checksum(tensors, text, net)}))
    minialex.load(run, last=True, device="numpy").export(tmp_path / "model.onnx")
    kept = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(tmp_path / "model.onnx").graph.initializer}
    np.testing.assert_array_equal(kept["fc7.weight"], tensors["average fc7.weight"].T)


def test_without_the_package_one_sentence_says_so(finished, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    for name in "minialex.onnx", "minialex.run.model":
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.delattr(minialex, "onnx")
    for main, *words in (export.main, finished, tmp_path / "model.onnx"), (predict.main, tmp_path / "model.onnx", "a.jpg"):
        assert "pip install 'minialex[onnx]'" in refused(capsys, main, *words)
    assert not list(tmp_path.iterdir())


# Files from elsewhere

def written(path, nodes, shape, constants, out=("batch", 2), kind=TensorProto.FLOAT):
    graph = helper.make_graph(nodes, "net", [helper.make_tensor_value_info("x", kind, shape)], [helper.make_tensor_value_info("y", TensorProto.FLOAT, out)],
                              [numpy_helper.from_array(array, name) for name, array in constants.items()])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)]), path)
    return path


def means(path, shape=("batch", 3, 16, 16), more=(), order=None):
    """A file whose two numbers are the mean of the first colour of a picture and that of the last."""
    turn, at = ([helper.make_node("Transpose", ["x"], ["t"], perm=order)], "t") if order else ([], "x")
    nodes = [*turn, helper.make_node("GlobalAveragePool", [at], ["p"]), helper.make_node("Flatten", ["p"], ["f"]),
             helper.make_node("Gemm", ["f", "w"], ["g" if more else "y"]), *more]
    return written(path, nodes, shape, {"w": np.float32([[1, 0], [0, 0], [0, 1]])}, (shape[0], 2))


@pytest.fixture
def orange(tmp_path):
    Image.new("RGB", (40, 30), (200, 120, 0)).save(tmp_path / "orange.png")
    return tmp_path / "orange.png"


def probabilities(capsys, *words):
    capsys.readouterr()
    assert predict.main([*map(str, words), "--device", "cpu"]) == 0
    told = capsys.readouterr()
    lines = [line.split() for line in told.out.splitlines()[1:]]
    return {" ".join(line[1:]): float(line[0].rstrip("%")) / 100 for line in lines}, told.err


FORMS = {None: ((200 - 123.675) / 58.395, -103.53 / 57.375), "caffe": (-104.007, 200 - 122.679), "mean=100:100:100,scale=0.01": (1, -1),
         "bgr,mean=190:9:2,scale=0.5:1:0.1": (-0.2, 5)}      # -> the first and the last colour of the orange one


@pytest.mark.parametrize("form", FORMS)
def test_a_file_that_does_not_say_how_it_takes_pictures(form, orange, tmp_path, capsys):
    first, last = FORMS[form]
    found, told = probabilities(capsys, means(tmp_path / "net.onnx"), orange, *(["--input", form] if form else []))
    assert found["class 0"] == pytest.approx(1 / (1 + np.exp(last - first)), abs=1e-3)
    assert ("torchvision" in told) == (form is None)


LAYOUTS = {"one by one": ((1, 3, 16, 16), None), "by fours": ((4, 3, 16, 16), None), "channels last": (("n", 16, 16, 3), (0, 3, 1, 2))}


@pytest.mark.parametrize("shape, order", LAYOUTS.values(), ids=LAYOUTS)
def test_files_for_other_batches_and_layouts(shape, order, orange, tmp_path, capsys):
    (tmp_path / "names.txt").write_text("warm\ncold one\n")
    softmax = [helper.make_node("Softmax", ["g"], ["s"]), helper.make_node("Identity", ["s"], ["y"])]      # and it is not taken twice
    file = means(tmp_path / "net.onnx", shape, softmax, order)
    Image.new("RGB", (20, 20), (0, 0, 200)).save(tmp_path / "blue.png")
    found, _ = probabilities(capsys, file, orange, "--classes", tmp_path / "names.txt", "--input", "mean=0:0:0,scale=0.01")
    assert found["warm"] == pytest.approx(1 / (1 + np.exp(-2)), abs=1e-3) and set(found) == {"warm", "cold one"}
    table = tmp_path / "found.csv"
    pictures = [str(orange), str(tmp_path / "blue.png")] * 3
    assert predict.main([str(file), *pictures, "--csv", str(table), "--batch", "5", "--input", "mean=0:0:0,scale=0.01"]) == 0
    assert [line.split(",")[1] for line in table.read_text().splitlines()[1:]] == ["class 0", "class 1"] * 3


def test_bad_files_are_refused_in_a_sentence(orange, finished, tmp_path, capsys):
    (tmp_path / "text.onnx").write_text("no model\n")
    (tmp_path / "names.txt").write_text("one\n")
    good, flat = means(tmp_path / "good.onnx"), written(tmp_path / "flat.onnx", [helper.make_node("Identity", ["x"], ["y"])], ("batch", 8), {})
    strange = written(tmp_path / "strange.onnx", [helper.make_node("Erf", ["x"], ["z"]), helper.make_node("Gelu", ["z"], ["y"])], ("batch", 3, 9, 9), {})
    other = written(tmp_path / "double.onnx", [helper.make_node("Relu", ["x"], ["y"])], ("batch", 3, 9, 9), {}, kind=TensorProto.DOUBLE)
    wide = written(tmp_path / "wide.onnx", [helper.make_node("LRN", ["x"], ["y"], size=4)], ("batch", 3, 9, 9), {}, ("batch", 3, 9, 9))
    faults = [(tmp_path / "text.onnx", [], "text.onnx is not an intact ONNX file"), (tmp_path / "none.onnx", [], "none.onnx cannot be read (No such file"),
              (flat, [], "x (batch, 8)"), (strange, [], "not computed here: Erf, Gelu"), (other, [], "its input x is of DOUBLE"),
              (wide, [], "LRN y cannot be computed here: size: expected an odd number"), (good, ["--checkpoint", "best"], "leave it out"),
              (good, ["--explain", tmp_path / "why.html"], "of an ONNX file there is none"),
              (good, ["--classes", tmp_path / "names.txt"], "names 1 classes, and the network"), (good, ["--classes", tmp_path / "no"], "cannot be read"),
              (finished, ["--input", "caffe"], "for ONNX files"), (finished, ["--classes", tmp_path / "names.txt"], "for ONNX files"),
              *((good, ["--input", form], f"--input {form}: expected torchvision") for form in ("caffee", "mean=1:2", "bgr,mean=colour", "flip=h"))]
    own = minialex.onnx.model_of(net_named("convolutional"), drawn(net_named("convolutional")), Input(45, 39), list("abcde"))
    onnx.save(own, told := tmp_path / "told.onnx")
    own.metadata_props[1].value = '{"side": 45}'
    onnx.save(own, changed := tmp_path / "changed.onnx")
    faults += [(told, ["--input", "caffe"], "told.onnx says itself how"), (changed, [], "metadata are not as minialex writes them")]
    for file, words, sentence in faults:
        assert sentence in refused(capsys, predict.main, file, orange, *words, "--device", "cpu")
    assert f"FILE {tmp_path / 'no/model.onnx'}: there is no folder" in refused(capsys, export.main, finished, tmp_path / "no/model.onnx")


# The backend, by the tests of the package

def test_one_node_and_the_devices():
    node = helper.make_node("Relu", ["x"], ["y"])
    y, = minialex.onnx.run_node(node, [np.float32([-1, 2])])
    np.testing.assert_array_equal(y, [0, 2])
    assert minialex.onnx.supports_device("CPU") and not minialex.onnx.supports_device("TPU") and not minialex.onnx.is_compatible(
        helper.make_model(helper.make_graph([helper.make_node("Erf", ["x"], ["y"])], "net", [], [])))
    with pytest.raises(UserError, match="ops that are not computed here: Erf"):
        minialex.onnx.run_node(helper.make_node("Erf", ["x"], ["y"]), [np.float32([1])])


def test_a_file_on_a_gpu(gpu):
    """Over a stand-in for CuPy, whose memory the host may not touch: all between the input and the logits is launches there."""
    net = net_named("own")
    input, weights = Input(net.size, net.size), drawn(net)
    images = np.stack([photograph(seed, net.size, net.size) for seed in range(2)])
    model = minialex.onnx.model_of(net, weights, input, list("abcde"), preprocessing="described")
    pixels = np.float32((images - input.mean_colour) / 58).transpose(0, 3, 1, 2)
    same(minialex.onnx.prepare(model, "CUDA").run([pixels])["logits"], logits_of(net, weights, input, images))
    assert {name for name, _, _ in gpu.launches} >= {"transpose_tiles", "im2col", "bias_relu", "relu_in_place", "max_pool", "lrn"}


class Told(minialex.onnx.Backend):
    """What is refused is skipped, with the sentence."""

    @classmethod
    def is_compatible(cls, model, device="CPU", **kwargs):
        return True      # `prepare` says why not

    @classmethod
    def supports_device(cls, device):
        return device == "CPU"

    @classmethod
    def prepare(cls, model, device="CPU", **kwargs):
        prepared = skipped(super().prepare)(model, device, **kwargs)
        prepared.run = skipped(prepared.run)
        return prepared


def skipped(function):
    def call(*args, **named):
        try:
            return function(*args, **named)
        except UserError as error:
            raise unittest.SkipTest(str(error)) from None
    return call


class Results(unittest.TestResult):
    """passed: {"NodeModel": how many, ...}; refused: {why: {names of tests}}; faults: what went wrong."""

    def __init__(self, runner):
        super().__init__()
        self.passed, self.refused = Counter(), defaultdict(set)
        runner.test_suite.run(self)
        self.faults = [f"{test.id().split('.')[-1]}: {told.strip().splitlines()[-1]}" for test, told in [*self.failures, *self.errors]]

    def addSuccess(self, test):
        self.passed[type(test).__name__.removeprefix("OnnxBackend").removesuffix("ModelTest")] += 1

    def addSkip(self, test, reason):
        if "Backend doesn't support device" not in reason:
            self.refused[reason.split("cannot be computed here: ")[-1]].add(test.id().split(".")[-1].removesuffix("_cpu"))


# What may be refused of ops that are computed here, and why: the kernels have no such thing, or it is for training.
REFUSED = ("its numbers are", "its input", "windows are of 1 or 2 axes", "its dilations are not 1", "its ceil_mode or its dilations", "it is to drop numbers",
           "it gathers floats", "max_pool: x: expected dtype float32")
BIG = r"test_(bvlc_alexnet|zfnet512|vgg19|squeezenet|inception_v1|inception_v2|densenet121|resnet50|shufflenet)_"


def run_them(capsys):
    """Runs all but the big ones, and prints which do not apply, and why. -> {kind: how many passed}"""
    results = Results(Runner(Told, __name__).exclude(BIG))
    assert not results.faults
    others, ops = [], Counter()
    for why, names in sorted(results.refused.items()):
        if why.startswith("it has ops that are not computed"):
            ops.update({op: len(names) for op in why.split(": ")[1].split(", ")})
        elif "exclude pattern" not in why:
            others.append(f"  {why}: {', '.join(sorted(names))}")
            assert why.startswith(REFUSED)
    kinds = ", ".join(f"{kind} {n}" for kind, n in sorted(results.passed.items()))
    with capsys.disabled():
        print(f"\nof the tests of onnx {onnx.__version__} {sum(results.passed.values())} pass ({kinds}), and these do not apply:\n" + "\n".join(others)
              + "\n  tests of ops that are not computed here: " + ", ".join(f"{op} {n}" for op, n in sorted(ops.items())))
    assert not set(ops) & set(minialex.onnx.OPS)
    return results.passed


def test_the_tests_of_onnx(capsys, monkeypatch):
    """Of its own those that apply pass by our kernels, here those of our ops alone: the others take a quarter of a minute to be made."""
    from onnx.backend.test import loader
    names = {"SoftmaxCrossEntropyLoss": "softmax_cross_entropy_loss"}
    ours = [names.get(op, op.lower()) for op in minialex.onnx.OPS if op != "AveragePool"]      # this one's alone take two seconds
    monkeypatch.setattr(loader, "import_recursive", lambda package: [import_module(f"{package.__name__}.{name}") for name in ours])
    passed = run_them(capsys)
    assert all(passed[kind] >= least for kind, least in {"Node": 190, "PyTorchConverted": 31, "PyTorchOperator": 8, "Simple": 1}.items())


@pytest.mark.slow
def test_all_tests_of_onnx(capsys):
    assert run_them(capsys)["Node"] >= 210


@pytest.mark.slow
def test_the_big_nets_of_onnx(tmp_path, monkeypatch):
    """Those whose ops are here: AlexNet, ZFNet, VGG 19 and GoogLeNet, with weights that are made by the graph itself. By them SqueezeNet's logits come to
    9.5e9, all the same but for the last bit, of which its softmax would make everything."""
    monkeypatch.setenv("ONNX_MODELS", str(tmp_path))
    results = Results(Runner(Told, __name__).include(BIG).exclude("squeezenet"))
    assert not results.faults and results.passed == {"Real": 4}
