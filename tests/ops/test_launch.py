"""What every kernel shares: its declaration matches its reference, launches are checked, results repeat bit for bit."""

import importlib
import inspect
import pkgutil
import re

import numpy as np
import pytest

import minialex.ops
from minialex import functional as F
from minialex import optim
from minialex.device.cpu import CPU
from minialex.device.kernel import Kernel, declarations, sources
from minialex.gradcheck import to_host
from minialex.ops.add import BLOCK, add_parts
from minialex.ops.dropout import dropout_in_place
from minialex.ops.softmax import cross_entropy_rows

DECLARED = {(file.name, name): arguments for file in sorted(sources().glob("*.cu")) for name, arguments in declarations(file).items()}


def kernels():
    modules = [optim, *(importlib.import_module(f"minialex.ops.{m.name}") for m in pkgutil.iter_modules(minialex.ops.__path__))]
    return {(k.source, k.name): k for module in modules for k in vars(module).values() if isinstance(k, Kernel)}


def test_every_declared_kernel_has_its_reference_and_every_reference_its_kernel():
    assert set(kernels()) == set(DECLARED) and len(DECLARED) > 15
    for file in sources().glob("*.cu"):
        assert file.read_text().count("\nKERNEL ") == len(declarations(file)) > 0, file


@pytest.mark.parametrize("source, name", DECLARED)
def test_a_reference_takes_the_declared_arguments(source, name):
    kernel, declared = kernels()[source, name], DECLARED[source, name]
    assert list(inspect.signature(kernel.reference).parameters) == [a.name for a in declared] == [a.name for a in kernel.arguments]
    assert declared[0].name == "rows" and declared[0].dtype in (np.int64, np.uint32) and kernel.__doc__


def test_a_kernel_that_divides_rows_in_32_bits_says_so():
    """Rows counted in 64 bits and divided in 32 would be wrong, without a word, from the 2^32nd on."""
    found = {}
    for file in sources().glob("*.cu"):
        for name, body in re.findall(r"^KERNEL (\w+)(.*?)^}", file.read_text(), re.M | re.S):
            narrow = "(unsigned)r" in body
            assert narrow == (DECLARED[file.name, name][0].dtype == np.uint32), name
            found[name] = narrow
    assert set(found) == {name for _, name in DECLARED} and sum(found.values()) >= 8


@pytest.mark.parametrize("source, name", [key for key, arguments in DECLARED.items() if arguments[0].dtype == np.uint32])
def test_more_rows_than_a_kernel_can_tell_apart_are_refused(device, source, name):
    kernel = kernels()[source, name]
    values = [np.zeros(1, a.dtype)[0] if not a.pointer else device.zeros((1,), a.dtype) for a in kernel.arguments[1:]]
    with pytest.raises(OverflowError, match=f"^{name}: rows: 4294967296 does not fit into unsigned$"):
        device.launch(kernel, 2**32, *values)


def test_a_reference_with_another_argument_is_refused():
    def relu_in_place(rows, y, count):
        pass

    with pytest.raises(TypeError, match=r"relu.cu: relu_in_place declares \['rows', 'x', 'count'\], its reference takes \['rows', 'y', 'count'\]"):
        Kernel("relu.cu", relu_in_place).arguments


def good(device):
    """A launch of cross_entropy_rows that is right. {argument: value}"""
    return {"x": device.zeros((2, 4)), "label": device.zeros((2,), np.int32), "weight": device.array(np.ones(4)), "loss": device.zeros((2,)),
            "rank": device.zeros((2,)), "totals": device.zeros((3, 2), np.float64), "dx": device.zeros((2, 4)), "classes": 4, "batch": 2, "count": 0, "scale": 1.0,
            "smoothing": 0.0}


@pytest.mark.parametrize("name, change, kind, text", [
    ("x", lambda d, a: d.array(np.zeros((2, 4)), np.float64), TypeError, "expected dtype float32, got float64"),
    ("label", lambda d, a: d.zeros((2,), np.int64), TypeError, "expected dtype int32, got int64"),
    ("x", lambda d, a: d.zeros((4, 2)).T, ValueError, "expected a C-contiguous array, got strides"),
    ("dx", lambda d, a: d.zeros((2, 8))[:, ::2], ValueError, "expected a C-contiguous array, got strides"),
    ("loss", lambda d, a: None, TypeError, "expected an array of device"),
    ("loss", lambda d, a: [0.0, 0.0], TypeError, "expected an array of device"),
    ("x", lambda d, a: memoryview(b"12345678"), TypeError, "builtins.memoryview"),
    ("x", lambda d, a: np.float32(1), TypeError, "expected an array of device"),
    ("classes", lambda d, a: np.int64(4), TypeError, "expected int (int32), got numpy.int64"),
    ("classes", lambda d, a: 4.0, TypeError, "expected int, got float 4.0"),
    ("classes", lambda d, a: "4", TypeError, "expected int, got str '4'"),
    ("classes", lambda d, a: 2**31, OverflowError, "2147483648 does not fit into int"),
    ("classes", lambda d, a: d.zeros((1,), np.int32), TypeError, "expected int, got"),
    ("scale", lambda d, a: np.float64(1), TypeError, "expected float (float32), got numpy.float64"),
    ("scale", lambda d, a: None, TypeError, "expected float, got NoneType"),
])
def test_a_wrong_argument_is_refused_by_kernel_and_name(device, name, change, kind, text):
    arguments = good(device)
    arguments[name] = change(device, arguments)
    with pytest.raises(kind) as told:
        device.launch(cross_entropy_rows, 2, *arguments.values())
    assert str(told.value).startswith(f"cross_entropy_rows: {name}: ") and text in str(told.value)


def test_rows_and_unsigned_widths(device):
    for rows, kind in ((2.0, TypeError), (np.int32(2), TypeError), (2**63, OverflowError)):
        with pytest.raises(kind, match="cross_entropy_rows: rows: "):
            device.launch(cross_entropy_rows, rows, *good(device).values())
    x, now = device.zeros((4,)), device.zeros((2,), np.float64)
    for place, value in ((3, 2**32), (3, -1), (5, -1), (5, 2**64), (6, -1)):
        arguments = [x, 4, 0, 1, 1.0, 0, 0, now]
        arguments[place] = value
        with pytest.raises(OverflowError, match="dropout_in_place: (threshold|seed|layer): -?[0-9]+ does not fit into unsigned"):
            device.launch(dropout_in_place, 1, *arguments)


def test_the_wrong_number_of_arguments(device):
    values = list(good(device).values())
    for wrong in (values[:-1], [*values, 1]):
        with pytest.raises(TypeError, match=rf"cross_entropy_rows takes 13 arguments \(rows, x, .*, smoothing\), got {len(wrong) + 1}"):
            device.launch(cross_entropy_rows, 2, *wrong)


def test_an_output_that_may_not_be_written(cpu):
    arguments = good(cpu)
    for name, refused in (("dx", True), ("x", False)):
        arguments[name].flags.writeable = False
        if refused:
            with pytest.raises(ValueError, match="cross_entropy_rows: dx: the kernel writes to this array, but it is read-only"):
                cpu.launch(cross_entropy_rows, 2, *arguments.values())
        arguments[name].flags.writeable = name == "dx"
    cpu.launch(cross_entropy_rows, 2, *arguments.values())
    np.testing.assert_allclose(arguments["loss"], np.log(4), rtol=1e-6)


def test_numpy_scalars_of_the_declared_width_are_taken(device):
    arguments = {**good(device), "classes": np.int32(4), "scale": np.float32(1)}
    device.launch(cross_entropy_rows, np.int64(2), *arguments.values())
    device.synchronize()
    np.testing.assert_allclose(device.to_numpy(arguments["loss"]), np.log(4), rtol=1e-6)


@pytest.mark.parametrize("threads", [2, 3, 8])
def test_a_long_recording_right_after_a_short_one(threads):
    """A core that leaves the last meeting of one recording late must not run into the next one."""
    device = CPU(threads)
    total, one, count = device.zeros((40 * 1024,)), device.array(np.ones(40 * 1024, np.float32)), 40 * 1024
    tapes = []
    for launches in (0, 1, 30):
        with device.record() as tape:
            for _ in range(launches):
                device.launch(add_parts, count // BLOCK, one, total, count, 1, 1)
        tapes.append(tape)
    for _ in range(60):
        for tape in tapes:
            tape.play()
    assert (total == 60 * 31).all()


def drawn(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


X, W, Y = drawn(5, 13, 11, 33), drawn(3, 3, 11, 9), drawn(5, 13, 11, 9)
POOL, LRN = {"size": 3, "stride": 2, "pad": 1}, {"alpha": 0.8}
ROWS = {                 # a row is one core's alone: not even the number of cores may change a bit
    "relu": lambda d: F.relu(X, device=d),
    "relu_backward": lambda d: F.relu_backward(X[::-1].copy(), X, device=d),
    "max_pool": lambda d: F.max_pool2d(X, **POOL, device=d),
    "max_pool_backward": lambda d: F.max_pool2d_backward(drawn(5, 7, 6, 33), X, **POOL, device=d),
    "lrn": lambda d: F.local_response_norm(X, **LRN, device=d),
    "lrn_backward": lambda d: F.local_response_norm_backward(X[::-1].copy(), X, **LRN, device=d),
    "dropout": lambda d: F.dropout(X, seed=1, device=d),
    "im2col": lambda d: F.im2col(X, 3, pad=1, groups=3, device=d),
    "col2im": lambda d: F.col2im(drawn(3, 5 * 13 * 11, 99), X.shape, 3, pad=1, groups=3, device=d),
    "sgd": lambda d: F.sgd_update(X, X, X, lr=0.1, device=d),
    "softmax": lambda d: F.softmax(X.reshape(-1, 143), device=d),
    "cross_entropy": lambda d: F.softmax_cross_entropy(X.reshape(-1, 143), np.arange(165) % 143, device=d),
}
CALLS = {**ROWS, "conv": lambda d: F.conv2d(X, W, pad=1, groups=3, device=d),
         "conv_backward": lambda d: F.conv2d_backward(Y, X, W, pad=1, groups=3, device=d),
         "dense": lambda d: F.dense(X.reshape(165, -1), drawn(143, 77), device=d),
         "dense_backward": lambda d: F.dense_backward(drawn(165, 77), X.reshape(165, -1), drawn(143, 77), device=d)}


def bits(result):
    return [to_host(array).tobytes() for array in (result if isinstance(result, tuple) else (result,))]


@pytest.mark.parametrize("name", CALLS)
def test_two_runs_are_bit_identical(device, name):
    assert bits(CALLS[name](device)) == bits(CALLS[name](device))


@pytest.fixture(scope="module")
def cores():
    return [CPU(threads) for threads in (1, 2, 3)]


@pytest.mark.parametrize("name", ROWS)
def test_the_number_of_threads_changes_no_bit(cores, name):
    one, *others = (bits(ROWS[name](device)) for device in cores)
    assert all(other == one for other in others)


def test_whole_numbers_are_divided_exactly_by_way_of_floats():
    """As grid.cuh divides below 2^20 on a GPU, whose quotient of floats is up to 2 ulp off: at every multiple of b, and one below."""
    ulps, below = np.float32(2 ** -22), 2 ** 20
    for b in [*range(1, 600), 1023, 3025, 4097, 50_000, 2 ** 20 - 1, 2 ** 20, 2 ** 31 + 1]:
        a = np.arange(0, below, b)
        a = np.concatenate([a, a[1:] - 1, [below - 1]])
        quotient = (a.astype(np.float32) + np.float32(0.5)) / np.float32(b)
        for wrong in (1 - ulps, 1, 1 + ulps):
            np.testing.assert_array_equal((quotient * np.float32(wrong)).astype(int), a // b)
