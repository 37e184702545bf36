"""minialex/device/cuda.py executed line by line over a stand-in for CuPy, and the stand-in held against the real one.

What would go wrong silently on a GPU is made to happen here, and seen.
"""

import ast
import ctypes
import dis
import importlib
import inspect
import itertools
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from runs import load
from simt import stand_in
from simt.device import why_not
from test_network import drawn, mini, small

from minialex import describe, evaluate, gradcheck, predict, train
from minialex.command import run_command
from minialex.data.augment import Input
from minialex.device import cuda, open_device
from minialex.device.base import cores
from minialex.device.cpu import CPU
from minialex.errors import UserError
from minialex.layout import Layout
from minialex.nets import build
from minialex.network import Network
from minialex.ops.relu import relu_in_place
from minialex.ops.softmax import cross_entropy_rows

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "benchmarks"))
import sides  # noqa: E402

pytestmark = pytest.mark.skipif(bool(why_not()), reason=f"no thread-by-thread execution here: {why_not()}")

SCHEDULES = {"all late": (False, False), "all early": (True, True), "copies early": (False, True), "copies late": (True, False)}
executed = set()


@pytest.fixture(scope="module", autouse=True)
def traced():
    """Notes the lines of cuda.py that the tests of this file execute."""
    def each_line(frame, event, argument):
        executed.add(frame.f_lineno)
        return each_line

    def each_call(frame, event, argument):
        return each_line(frame, event, argument) if frame.f_code.co_filename == cuda.__file__ else None

    sys.settrace(each_call)
    yield
    sys.settrace(None)


@pytest.fixture(params=SCHEDULES, ids=lambda name: name.replace(" ", "-"))
def schedule(request):
    return request.param


def set_schedule(gpu, schedule):
    gpu.eager["launches"], gpu.eager["copies"] = SCHEDULES[schedule]


@pytest.fixture
def gpu(gpu, request):
    """One of 132 multiprocessors, or as many as a test asks for: it depends on them how a layer is cut."""
    gpu.processors = getattr(request, "param", 132)
    return gpu


few_and_many = pytest.mark.parametrize("gpu", [2, 132], indirect=True, ids="{} multiprocessors".format)


@pytest.fixture
def device(gpu):
    return open_device("cuda")[0]


# ---- What users run ----

def test_every_op_agrees_with_its_reference(gpu, capsys):
    assert gradcheck.main(["--device", "cuda"]) == 0
    assert capsys.readouterr().out.count("\nok ") == len(gradcheck.CASES) and {name for name, _, _ in gpu.launches} > {"im2col", "col2im", "lrn"}


def after_steps(device, net, steps=4, batch=6, pinned=False):
    """Scores and parameters after some steps on batches that change in size."""
    own = Network(net, device, batch, input=Input(net.size + 3, net.size))
    for step in range(steps):
        images, *more = drawn(net, batch - step % 2, seed=step, side=net.size + 3)
        if pinned:
            images, values = device.pictures(images.shape), images
            images[...] = values
        own.train_step(images, *more, step, 0.01)
    return own.scores(), {name: device.to_numpy(array) for name, array in own.parameters.items()}


@pytest.fixture(scope="module")
def truth():
    """The same steps on the CPU, for a scaled-down paper and for a net that has everything."""
    return {net.name: after_steps(open_device("cpu", 1)[0], net) for net in (small("paper", 67, 8), mini())}


@few_and_many
@pytest.mark.parametrize("net", [small("paper", 67, 8), mini()], ids=lambda net: net.name)
def test_training_steps_equal_the_cpus_however_the_streams_run(gpu, schedule, net, truth):
    set_schedule(gpu, schedule)
    device = open_device("cuda")[0]
    (loss, *hits), parameters = after_steps(device, net)
    (true_loss, *true_hits), true_parameters = truth[net.name]
    assert loss == pytest.approx(true_loss, rel=1e-6) and hits == true_hits
    for name, value in parameters.items():
        np.testing.assert_allclose(value, true_parameters[name], rtol=1e-4, atol=1e-5 * np.abs(true_parameters[name]).max(), err_msg=name)
    assert gpu.processors == 2 or "add_parts" in {name for name, _, _ in gpu.launches}
    assert all(block == 128 and 1 <= grid for _, grid, block in gpu.launches)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    root, random = tmp_path_factory.mktemp("pictures"), np.random.default_rng(5)
    for split, count in (("train", 6), ("val", 3)):
        for name, colour in {"red": (200, 60, 50), "blue": (50, 70, 200)}.items():
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = np.clip(np.array(colour) + random.normal(0, 40, (80, 80, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    return root


@pytest.mark.parametrize("gpu", [2], indirect=True)
def test_every_command_runs_and_trains_as_on_the_cpu(gpu, pictures, tmp_path, capsys, plain_report):
    runs = {}
    for name in ("cuda", "cpu"):
        gpu.eager["copies"] = True
        runs[name] = out = tmp_path / name
        # Rounding that puts an activation to the other side of zero is soon seen in the first layer's biases; the larger its weights, the later.
        options = ["--data", str(pictures), "--out", str(out), "--size", "64", "--batch", "5", "--lr", "0.002", "--init", "published", "--epochs"]
        assert train.main([*options, "1", "--device", name]) == 0
        assert train.main(["--resume", str(out), "--epochs", "2"]) == 0
        assert evaluate.main([str(out), "--data", str(pictures), "--device", name, "--batch", "4"]) == 0
        assert predict.main([str(out), str(pictures / "val/red/0.png"), "--device", name]) == 0
    printed = capsys.readouterr().out
    assert f"device   cuda (asked for): stand-in, {gpu.processors} multiprocessors, CuPy stand-in" in printed and "resume " in printed
    ours, true = (load(runs[name] / "last.safetensors") for name in ("cuda", "cpu"))
    assert ours[2]["step"] == true[2]["step"] == 6 and ours[2]["metrics"][-1]["val_loss"] == pytest.approx(true[2]["metrics"][-1]["val_loss"], rel=1e-4)
    for name, value in ours[0].items():
        np.testing.assert_allclose(value, true[0][name], rtol=1e-3, atol=1e-4 * np.abs(true[0][name]).max(), err_msg=name)


@pytest.mark.parametrize("name", ["paper", "half"])
def test_describe_knows_the_memory_of_a_gpu(device, name, capsys):
    net, device.spare = build(name), lambda: 1 << 60
    assert describe.main([name, "--gpu", str(device.processors), "--batch", "32"]) == 0
    total = capsys.readouterr().out.splitlines()[-1].split()
    assert total[0] == "total" and float(total[1].replace(",", "")) == pytest.approx(Layout(net, device, 32).bytes() / 2**20, abs=0.06)


def test_a_step_is_timed_by_events(device):
    net = mini()
    ours = sides.Ours(net, device, 3, sides.drawn(net, 3))
    assert 0 < ours.seconds("train") < np.inf and 0 < ours.seconds("infer") < np.inf and ours.count == 1
    before, (step, other) = device.to_numpy(ours.network.velocity["fc4.bias"]), ("train", "train from pixels")
    ours.seconds(step)      # again, of what is there
    assert ours.count == 1 and (device.to_numpy(ours.network.velocity["fc4.bias"]) != before).any()
    ours.seconds(other)
    assert ours.count == 2


def test_auto_takes_the_gpu(gpu):
    device, reason = open_device("auto")
    assert device.name == "cuda" and reason == "a working GPU was found"
    assert device.decoders == cores() and open_device("cuda", 3)[0].decoders == 3      # threads that decode pictures


def test_arrays_come_back_as_they_went(device):
    x = np.random.default_rng(0).standard_normal((3, 5))
    there = device.array(x)
    assert there.dtype == np.float32 and device.array(x, np.float64).dtype == np.float64
    np.testing.assert_array_equal(device.to_numpy(there), x.astype(np.float32))
    np.testing.assert_array_equal(device.to_numpy(device.array(there, np.float64)), x.astype(np.float32))
    np.testing.assert_array_equal(device.to_numpy(device.array(there[:, 1:4])), x.astype(np.float32)[:, 1:4])
    np.testing.assert_array_equal(device.to_numpy(device.zeros((2, 3), np.int32)), np.zeros((2, 3)))
    with pytest.raises(TypeError, match="gemm: expected float32, got float64"):
        device.gemm(*[device.array(np.eye(3), np.float64)] * 3)


# ---- Faults, each seen to be caught ----

def launch(device, **changed):
    x, label = device.array(np.ones((2, 4))), device.array(np.zeros(2, np.int32))
    values = {"x": x, "label": label, "weight": device.array(np.ones(4)), "loss": device.empty((2,)),
              "rank": device.empty((2,)), "totals": device.empty((3, 2), np.float64), "dx": device.empty((2, 4)), "classes": 4, "batch": 2, "count": 0, "scale": 1.0,
              "smoothing": 0.0, **changed}
    device.launch(cross_entropy_rows, 2, *values.values())
    return device.to_numpy(values["loss"])


def test_a_launch_that_does_not_fit_the_signature_is_told_in_a_sentence(device):
    np.testing.assert_allclose(launch(device), np.log(4), rtol=1e-6)
    with pytest.raises(TypeError, match="^cross_entropy_rows: scale: expected float .float32., got numpy.float64$"):
        launch(device, scale=np.float64(1))
    with pytest.raises(TypeError, match="^cross_entropy_rows: x: expected an array of device cuda, got numpy.ndarray$"):
        launch(device, x=np.ones((2, 4), np.float32))
    with pytest.raises(TypeError, match="^cross_entropy_rows: label: expected dtype int32, got int64$"):
        launch(device, label=device.zeros((2,), np.int64))


def test_a_scalar_of_another_width_would_corrupt_silently(device):
    """CuPy checks neither: this is what minialex checks for."""
    function = None
    loss = [device.zeros((2,)) for _ in range(2)]
    for scale, into in zip((np.float32(2), 2.0), (device.zeros((2, 4)), device.zeros((2, 4)))):
        launch(device)
        function = device.modules["softmax.cu"].get_function("cross_entropy_rows")
        function((1,), (128,), (np.int64(2), device.array(np.ones((2, 4))), device.zeros((2,), np.int32), device.array(np.ones(4)), loss[0],
                                    device.empty((2,)), device.empty((3, 2), np.float64), into, np.int32(4), np.int32(2), np.int32(0), scale, np.float32(0)))
        loss.append(device.to_numpy(into))
    right = np.tile([-1.5, 0.5, 0.5, 0.5], (2, 1))
    np.testing.assert_allclose(loss[2], right)
    assert not np.allclose(loss[3], right)


def test_a_host_pointer_is_an_illegal_address_that_stays(device, gpu):
    launch(device)
    host = np.ones((2, 4), np.float32)
    with gpu.work():
        wrong = stand_in.ndarray(type("Memory", (), {"ptr": host.ctypes.data}), host)
        device.launch(relu_in_place, 1, wrong, 8)
    for call in (device.synchronize, lambda: launch(device), device.copies.synchronize):
        with pytest.raises(RuntimeError, match="^cudaErrorIllegalAddress: .*are not memory of the device"):
            call()


def test_a_host_read_of_device_memory_is_a_segmentation_fault():
    program = """if 1:
        import sys
        sys.modules.update(__import__("simt.stand_in").stand_in.install())
        from minialex.device import open_device
        device = open_device("cuda")[0]
        array = device.zeros((4,))
        device.synchronize()
        print(device.to_numpy(array).sum(), flush=True)
        print(array._lies.sum())
    """
    done = in_a_process(program)
    assert done.stdout == "0.0\n" and done.returncode == -11, done


def test_reading_without_waiting_shows(gpu, monkeypatch):
    monkeypatch.setattr(cuda.CUDA, "to_numpy", lambda self, array: array.get(out=np.full(array.shape, 7, array.dtype), blocking=False))
    assert (launch(open_device("cuda")[0]) == 7).all()


def test_uploading_without_waiting_shows(gpu, monkeypatch):
    device = open_device("cuda")[0]
    right, there = np.arange(6, dtype=np.float32), device.empty((6,))
    for wait in (True, False):
        if not wait:
            monkeypatch.setattr(cuda.CUDA, "synchronize", lambda self: None)
        host = right.copy()
        device.upload(there, host)
        host[:] = -1
        assert (device.to_numpy(there) == right).all() == wait


PROGRAM = """
import sys
import numpy as np
from simt import stand_in
from device.test_cuda import SCHEDULES, after_steps, mini, open_device
true = after_steps(open_device("cpu", 1)[0], mini())[1]
sys.modules.update(stand_in.install())
kind, method, stream, schedule = sys.argv[1:]
if kind:
    whole = getattr(getattr(stand_in, kind), method)
    setattr(getattr(stand_in, kind), method, lambda self, *event: not stream or stream == self._kind or whole(self, *event))
stand_in.gpu.eager["launches"], stand_in.gpu.eager["copies"] = SCHEDULES[schedule]
ours = after_steps(open_device("cuda")[0], mini())[1]
print(all(np.allclose(ours[name], true[name], rtol=1e-3, atol=1e-4) for name in true))
"""


def in_a_process(program, *arguments):
    return subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])})


@pytest.mark.parametrize("wait, schedule", [
    (("", "", ""), "copies late"), (("Event", "synchronize", ""), "copies late"), (("Stream", "wait_event", "copies"), "copies early"),
    (("Stream", "wait_event", "launches"), "copies late")],
    ids=["none", "the host for the pinned buffer", "the copy until the buffer was taken", "the launches for the copy"])
def test_each_wait_of_the_input_is_needed(wait, schedule):
    """With one left out, an order that a GPU may take gives other weights, or labels that lead kernels astray."""
    done = in_a_process(PROGRAM, *wait, schedule)
    assert done.stdout == "True\n" if not wait[0] else done.stdout == "False\n" or done.returncode == -11, (done.stdout, done.stderr[-2000:])


def test_the_gpus_that_can_be_seen_are_counted(gpu):
    assert cuda.count() == 1


def test_pinned_pictures_go_up_from_where_they_are_and_are_held_until_then(gpu, schedule, monkeypatch):
    """The one batch that a program lets go of while it is being copied is another's in CuPy's pool."""
    set_schedule(gpu, schedule)
    copied, whole = [], stand_in.MemoryPointer.copy_from_host_async
    monkeypatch.setattr(stand_in.MemoryPointer, "copy_from_host_async", lambda self, mem, size, stream=None: (copied.append(size), whole(self, mem, size, stream)))
    true = after_steps(open_device("cuda")[0], mini())[1]
    together = len(copied)      # a step's input in one
    for forget in (False, True):
        if forget:
            monkeypatch.setattr(cuda.Slot, "held", property(lambda self: [], lambda self, held: None), raising=False)
        ours = after_steps(open_device("cuda")[0], mini(), pinned=True)[1]
        equal = all(np.array_equal(ours[name], true[name]) for name in true)
        assert equal if not forget else not equal or gpu.eager["copies"]      # an early copy still waits for what takes the one before
    assert len(copied) == 3 * together + 2 * 4      # the pictures apart


def test_memory_that_is_used_after_it_was_freed_is_nan(device, gpu):
    x = device.array(np.ones(8))
    pointer = x.data.ptr
    device.synchronize()
    del x
    with gpu.work():
        again = stand_in.ndarray(type("Memory", (), {"ptr": pointer}), np.ndarray((8,), np.float32, (stand_in.ctypes.c_ubyte * 32).from_address(pointer)))
    assert np.isnan(device.to_numpy(again)).all()


def test_a_launch_that_the_gpu_refuses(device):
    launch(device)
    function = device.modules["softmax.cu"].get_function("cross_entropy_rows")
    with pytest.raises(stand_in.CUDADriverError, match="CUDA_ERROR_INVALID_VALUE"):
        function((1,), (256,), ())
    with pytest.raises(stand_in.CUDADriverError, match="CUDA_ERROR_INVALID_VALUE"):
        device.launcher(function.kernel.ptr, 0, 1, 1, 128, 1, 1, 0, 0, 0, 0)
    with pytest.raises(stand_in.CUDADriverError, match="named symbol not found"):
        device.modules["softmax.cu"].get_function("softmax")


@few_and_many
def test_one_of_several_gpus_from_any_thread(gpu):
    """Each thread has a current GPU of its own, and memory of one is none of another's."""
    gpu.devices, net = 2, mini()
    devices, found, faults = [open_device(name)[0] for name in ("cuda:1", "cuda:0")], {}, []

    def steps(at):
        try:
            found[at] = after_steps(devices[at], net, 2)
        except Exception as error:
            faults.append(error)

    for at in (0, 1, 0):
        thread = threading.Thread(target=steps, args=(at,))
        thread.start()
        thread.join()
    assert not faults and devices[0].gpu.id == 1
    assert found[0][0] == found[1][0] and all(np.array_equal(found[0][1][name], value) for name, value in found[1][1].items())
    array = devices[0].zeros((8,))
    devices[1].use()
    devices[0].use = lambda: None
    devices[0].launch(relu_in_place, 1, array, 8)
    with pytest.raises(RuntimeError, match="is memory of device 1, and the current one is 0"):
        devices[1].synchronize()


def test_with_debug_a_fault_names_its_launch(gpu, monkeypatch):
    monkeypatch.setenv("MINIALEX_DEBUG", "1")
    device = open_device("cuda")[0]
    launch(device)
    host = np.ones((2, 4), np.float32)
    device.place = "conv1 forward"
    with gpu.work():
        wrong = stand_in.ndarray(type("Memory", (), {"ptr": host.ctypes.data}), host)
        with pytest.raises(RuntimeError, match=r"^conv1 forward: relu_in_place\(rows 1, x \(2, 4\), count 8\): cudaErrorIllegalAddress: "):
            device.launch(relu_in_place, 1, wrong, 8)


def test_without_the_pool_memory_is_not_given_again(gpu, monkeypatch):
    places = {}
    for pool in "0", "1":
        monkeypatch.setenv("MINIALEX_NO_POOL", pool)
        device = open_device("cuda")[0]
        for _ in range(2):
            places.setdefault(pool, []).append(device.empty((100,)).data.ptr)
    assert places["1"][0] != places["1"][1] and places["0"][0] == places["0"][1]


def test_a_graph_computes_the_same(gpu, monkeypatch, recwarn):
    """From their second time on recordings are graphs; what cannot be captured is played as before."""
    net = mini()
    plain, graphs = after_steps(open_device("cuda")[0], net, 6, 5), []
    monkeypatch.setenv("MINIALEX_GRAPH", "1")
    loaded, whole = ctypes.CDLL, stand_in.Graph.launch
    monkeypatch.setattr(ctypes, "CDLL", lambda name, *more: stand_in.Library(name) if "cublas" in name else loaded(name, *more))
    monkeypatch.setattr(stand_in.Graph, "launch", lambda self, stream=None: [graphs.append(self), whole(self, stream)])
    device = open_device("cuda")[0]
    found = after_steps(device, net, 6, 5)
    assert found[0] == plain[0] and all(np.array_equal(found[1][name], value) for name, value in plain[1].items())
    assert len(graphs) == 4 and len(set(graphs)) == 2      # six steps, of two sizes in turn, of each the first one without
    device.take_precision("tf32")
    assert gpu.tensor_products == 0 and after_steps(device, net, 4, 5)[0][1:] == after_steps(device, net, 4, 5)[0][1:] and gpu.tensor_products > 0
    del graphs[:]
    monkeypatch.setattr(stand_in.Stream, "end_capture", lambda self: [setattr(self, "_captured", None), stand_in.refused()])
    device = open_device("cuda")[0]
    found = after_steps(device, net, 6, 5)
    assert found[0] == plain[0] and not graphs
    told = [str(w.message) for w in recwarn.list if "MINIALEX_GRAPH" in str(w.message)]
    assert set(told) == {"MINIALEX_GRAPH: this recording cannot be a graph (cudaErrorStreamCaptureInvalidated: operation failed due to a previous error during capture), "
                         "and is played launch by launch"}
    with pytest.raises(RuntimeError, match="cuBLAS gives status 7"):
        device.graphs.function("sgemmStridedBatched")(device.graphs.handle_for(), *[0] * 3)


def test_products_of_tf32_keep_ten_bits(gpu):
    """Where all rows begin on 16 bytes; others, as of a layer of 10 classes, are of float32."""
    device, random = open_device("cuda")[0], np.random.default_rng(0)
    a, b = (random.standard_normal(shape).astype(np.float32) for shape in ((12, 40), (40, 8)))
    exact = a.astype(np.float64) @ b

    def product(rows=slice(None), lanes=slice(None)):
        c = device.zeros((12, 8))
        device.gemm(device.array(a), device.array(b), c)
        device.gemm(device.array(a)[rows], device.array(b)[:, lanes], c[rows, lanes])
        return np.abs(device.to_numpy(c) - exact).max() / np.abs(exact).max()

    assert product() < 1e-6 and gpu.tensor_products == 0
    device.take_precision("tf32")
    assert 1e-5 < product() < 2e-3 and gpu.tensor_products == 2 and str(device).endswith(", TF32 products")
    product(lanes=slice(1, 8))      # which begins after 4 bytes
    assert gpu.tensor_products == 3
    device.gemm(device.array(a[:, :39]), device.array(b[:39]), device.zeros((12, 8)))      # rows of 39
    assert gpu.tensor_products == 3
    with pytest.raises(UserError, match="--conv winograd with --precision tf32: its transforms would make"):
        Network(small("paper", 67, 8), device, 2, conv="winograd")
    assert {layer.pair for name, layer in Network(small("paper", 67, 8), device, 2).net.layers.items() if name.startswith("conv")} == {("im2col", "im2col")}
    gpu.capability = 7, 5
    with pytest.raises(UserError, match="--precision tf32: products of device cuda are of float32; tf32 needs an NVIDIA GPU of compute capability 8.0"):
        open_device("cuda")[0].take_precision("tf32")


@pytest.mark.parametrize("gpu", [2], indirect=True)
def test_a_run_of_tf32(gpu, pictures, tmp_path, capsys, plain_report):
    out, options = tmp_path / "run", ["--data", str(pictures), "--size", "64", "--batch", "5", "--epochs", "1", "--precision", "tf32"]
    assert train.main([*options, "--out", str(out), "--device", "cuda"]) == 0 and gpu.tensor_products
    before = gpu.tensor_products
    assert "TF32 products" in capsys.readouterr().out and json.loads((out / "config.json").read_text())["options"]["precision"] == "tf32"
    for name in "cuda", "cpu":
        assert evaluate.main([str(out), "--data", str(pictures), "--device", name]) == 0
        before, more = gpu.tensor_products, gpu.tensor_products - before
        assert (more > 0) == (name == "cuda")
    for command in ([*options, "--out", str(tmp_path / "other")], ["--resume", str(out), "--epochs", "2"]):
        with pytest.raises(UserError, match="--precision tf32: products of device cpu are of float32; tf32 needs an NVIDIA GPU"):
            train.main([*command, "--device", "cpu"])


@few_and_many
def test_columns_are_kept_where_there_is_room(gpu):
    """Then im2col runs once for each convolution and step, and results are the same but for rounding."""
    net, found, device = mini(), {}, open_device("cuda")[0]
    tight = 4.001 * max(net.layers[name].columns(device, net.inputs[name], 6, True, name != "conv1")[0] for name in ("conv1", "conv2")) / 2**20
    for room in (None, tight, 9):
        own = Network(net, device, 6, input=Input(net.size + 3, net.size), workspace_mb=room, conv="im2col")
        assert ("kept conv1.columns" in own.arrays) == (room != tight) and own.layout.bytes("kept conv1") + own.layout.bytes("workspace columns") <= (room or 99) * 2**20
        before = len(gpu.launches)
        own.gradient(*drawn(net, 6), step=2)
        device.synchronize()
        launches = [name for name, _, _ in gpu.launches[before:]]
        found[room] = launches.count("im2col"), {name: device.to_numpy(g) for name, g in own.gradients.items()}
    assert found[None][0] == found[9][0] == 2 < found[tight][0]
    for name, value in found[None][1].items():
        np.testing.assert_allclose(found[tight][1][name], value, rtol=1e-4, atol=1e-5 * np.abs(value).max(), err_msg=name)
    assert "kept conv1.columns" not in Network(net, device, 6, training=False).arrays and "kept conv1.columns" not in Network(net, CPU(1), 6, conv="im2col").arrays


@few_and_many
def test_pieces_and_slices(gpu, monkeypatch):
    from ops.test_conv import test_gradients_accumulate_over_pieces_of_the_batch as test
    test(open_device("cuda")[0], monkeypatch)
    assert "add_parts" in {name for name, _, _ in gpu.launches}


def test_no_memory_for_cublas_is_told_in_a_sentence(gpu, monkeypatch):
    def refused():
        raise stand_in.CUBLASError("CUBLAS_STATUS_NOT_INITIALIZED")
    monkeypatch.setattr(sys.modules["cupy.cuda"], "get_cublas_handle", refused)
    with pytest.raises(UserError, match="device cuda: cuBLAS does not start .CUBLAS_STATUS_NOT_INITIALIZED.: is the GPU's memory taken by another process?"):
        open_device("cuda")


def test_too_little_memory_is_told_in_a_sentence(gpu, pictures, tmp_path, capsys):
    gpu.limit = 20 << 20
    with pytest.raises(SystemExit) as ended:
        run_command(lambda: train.main(["--data", str(pictures), "--out", str(tmp_path), "--size", "64", "--batch", "5", "--device", "cuda"]))
    assert ended.value.code == 2
    assert re.fullmatch(r"error: half at --batch 5 takes \d+ MB, more than device cuda has free: use a smaller batch\n", capsys.readouterr().err)


def test_why_there_is_no_gpu(gpu, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert cuda.why_not() is None
    gpu.devices = 0
    assert cuda.why_not() == "the driver finds no GPU"
    for hidden in "", "-1":
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert cuda.why_not() == f"CUDA_VISIBLE_DEVICES='{hidden}' leaves no GPU to be seen"
    gpu.devices, gpu.capability = 1, (7, 0)
    assert cuda.why_not() == ("stand-in has compute capability 7.0, and this CuPy's CUDA begins at 7.5 (minialex[cuda12] goes further back than minialex[cuda13])")
    gpu.capability = 7, 5
    assert cuda.why_not() is None and cuda.why_not(1) == "there is no GPU 1: 1 can be seen, and cuda:0 is the first"
    for name, text in (("cuda:1", "--device cuda:1: there is no GPU 1"), ("cuda:", "unknown device 'cuda:': choose auto, cpu, cuda, numpy, or one of several GPUs")):
        with pytest.raises(UserError, match=text):
            open_device(name)
    gpu.driver = False
    assert cuda.why_not() == "no working NVIDIA driver (cudaErrorInsufficientDriver)"
    gpu.driver, gpu.devices = True, 1
    with monkeypatch.context() as patched:
        patched.delitem(sys.modules, "cupy_backends.cuda.libs.cublas")
        patched.delattr(sys.modules["cupy_backends.cuda.libs"], "cublas")
        assert cuda.why_not().startswith("CuPy lacks cuBLAS or NVRTC (") and cuda.why_not().endswith("install minialex[cuda13] or minialex[cuda12]")
    with monkeypatch.context() as patched:
        patched.setattr(importlib.util, "find_spec", lambda name: None)
        assert cuda.why_not().startswith("CuPy is not installed (pip install 'minialex[cuda13]'")
        with pytest.raises(UserError, match="--device cuda: CuPy is not installed"):
            open_device("cuda")

    with monkeypatch.context() as patched:
        patched.setattr(importlib.util, "find_spec", lambda name: True)
        patched.setitem(sys.modules, "cupy", None)
        assert cuda.why_not().startswith("CuPy does not import (")


def test_no_line_of_cuda_py_is_left_out(request):
    mine = [item for item in request.session.items if item.path == Path(__file__)]
    if len({item.originalname for item in mine}) < Path(__file__).read_text().count("\ndef test_"):
        pytest.skip("only some tests of this file were selected, and all are needed to execute every line")
    codes, lines = [compile(Path(cuda.__file__).read_text(), cuda.__file__, "exec")], set()
    while codes:
        code = codes.pop()
        inner = [constant for constant in code.co_consts if inspect.iscode(constant)]
        codes += inner
        if code.co_name != "<module>" and not (code.co_qualname in ("CUDA", "Slot", "Blas", "GraphTape")):
            lines |= {line for _, line in dis.findlinestarts(code) if line}
    heads = {node.lineno for node in ast.walk(ast.parse(Path(cuda.__file__).read_text())) if isinstance(node, ast.FunctionDef)}
    assert lines - executed - heads == set()


# ---- The stand-in against CuPy ----

def parameters_of(real):
    """Names of the parameters of a function of CuPy: from its signature, or from the docstring that Cython wrote."""
    try:
        names = list(inspect.signature(real).parameters)
    except (TypeError, ValueError):
        found = re.match(r"[\w.]*\((.*?)\)( ->|\n|$)", real.__doc__ or "")
        assert found, f"CuPy does not say what {real} takes"
        names = re.findall(r"(\w+)(?:=[^,]*)?(?:,|$)", found[1])
    return [name for name in names if name not in ("self", "args", "kwargs")]


def test_cupy_has_what_the_stand_in_has():
    pytest.importorskip("cupy", reason="CuPy is not installed, so the stand-in is not compared with it (pip install cupy-cuda13x)")
    compared = 0
    for module, made in stand_in.install().items():
        if module.endswith((".cublas", ".nccl")):
            compared += compare_with_the_library(module, made)
            continue
        real_module = importlib.import_module(module)
        for name, ours in vars(made).items():
            if name.startswith("__") or inspect.ismodule(ours):
                continue
            real = getattr(real_module, name)
            for own, other, where in [(ours, real, name), *members(ours, real, name)]:
                if callable(own) and not (inspect.isclass(own) and issubclass(own, (Exception, stand_in.ndarray))):
                    named = [p for p in inspect.signature(own).parameters if p != "self"]
                    assert named == parameters_of(other), f"{module}.{where}"
                    compared += 1
    import cupy
    assert issubclass(cupy.cuda.memory.OutOfMemoryError, MemoryError) and issubclass(cupy.cuda.runtime.CUDARuntimeError, RuntimeError)
    assert compared > 30


def members(ours, real, name):
    if inspect.isclass(ours) and not issubclass(ours, Exception):
        for attribute, value in vars(ours).items():
            if not attribute.startswith("_") and attribute not in ("current", "null"):
                assert hasattr(real, attribute), f"{name}.{attribute}"
                if callable(value):
                    yield value, getattr(real, attribute), f"{name}.{attribute}"


def test_a_kernel_is_called_as_cupy_documents():
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed, so the stand-in is not compared with it (pip install cupy-cuda13x)")
    assert str(inspect.signature(stand_in.RawKernel.__call__)) == "(self, grid, block, args, *, shared_mem=0)"
    assert r"__call__(self, grid, block, args, \*, shared_mem=0)" in cupy.RawKernel.__call__.__doc__


def compare_with_the_library(module, made):
    """cuBLAS's module does not import without cuBLAS, and NCCL's not without NCCL; their files hold the signatures all the same."""
    file, = (Path(place) / f"{module.rpartition('.')[2]}{suffix}" for place, suffix in itertools.product(
        importlib.import_module("cupy_backends.cuda.libs").__path__, importlib.machinery.EXTENSION_SUFFIXES)
        if (Path(place) / f"{module.rpartition('.')[2]}{suffix}").exists())
    text = file.read_bytes()
    if module.endswith(".nccl"):
        for name in "send", "recv":
            declared = re.search(rb"\x00NcclCommunicator\." + name.encode() + rb"\(([^)]*)\)", text)[1].decode()
            assert [part.split()[-1] for part in declared.split(",")] == list(inspect.signature(getattr(made.NcclCommunicator, name)).parameters)
        assert all(name in text for name in (b"groupStart()", b"groupEnd()", b"get_unique_id()", b"NCCL_FLOAT32"))
        return 2
    for name in "sgemmStridedBatched", "gemmStridedBatchedEx":
        declared = re.search(rb"\x00" + name.encode() + rb"\(([^)]*)\)", text)[1].decode()
        assert [part.split()[-1] for part in declared.split(",")] == list(inspect.signature(getattr(made, name)).parameters)
    assert b"CUBLAS_OP_N" in text and b"CUBLAS_OP_T" in text
    return 2
