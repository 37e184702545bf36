"""The checker itself: gradients broken on purpose are caught by the tie that should, with a failure one can read."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest

from minialex import functional, gradcheck
from minialex.device import kernel as as_kernel
from minialex.errors import UserError
from minialex.gradcheck import CASES, GradientError, check, check_direction, check_op, compare, to_host
from minialex.ops import bias, dropout, im2col, lrn, pool, relu
from minialex.ops.layer import device_of
from minialex.optim import sgd

CONV = "conv2d", {"x": (2, 5, 4, 4), "w": (3, 2, 2, 6), "b": (6,)}, {"stride": (2, 1), "pad": 1, "groups": 2}
POOL = "max_pool2d", {"x": (2, 5, 5, 3)}, {"size": 3, "stride": 2}
LRN = "local_response_norm", {"x": (3, 7)}, {"alpha": 0.8}
DENSE = "dense", {"x": (3, 7), "w": (7, 5), "b": (5,)}, {}
DROPOUT = "dropout", {"x": (5, 17)}, {"seed": 3}
SOFTMAX = "softmax_cross_entropy", {"x": (4, 10), "label": (4,)}, {}


def broken(monkeypatch, op, place, change):
    """Replaces minialex.functional.`op` by change(op, arguments, options) on one device."""
    right = getattr(functional, op)

    def wrong(*arguments, **options):
        on = options["device"] if isinstance(options["device"], str) else options["device"].name
        return change(right, arguments, options) if (on == "numpy") == (place == "numpy") else right(*arguments, **options)

    wrong.__signature__ = gradcheck.inspect.signature(right)
    monkeypatch.setattr(functional, op, wrong)


def result(index, change):
    """Changes one of several results, as host arrays."""
    def changed(right, arguments, options):
        results = right(*arguments, **options)
        many = [to_host(r).copy() for r in (results if isinstance(results, tuple) else (results,))]
        many[index] = change(many[index])
        return tuple(many) if isinstance(results, tuple) else many[0]
    return changed


def at(place, change):
    def changed(array):
        array[place] = change(array[place])
        return array
    return changed


def transposed_kernel(right, arguments, options):
    dy, x, w = arguments
    return right(dy, x, w[::-1, ::-1].copy(), **options)


def all_tied(right, arguments, options):
    """Every element that equals its window's maximum gets dy, not only the first."""
    dy, x, *_ = arguments
    dx, host = np.zeros(x.shape), np.asarray(x)
    for kh, kw, (oh, ow), (h, w) in im2col.taps(*x.shape[1:3], *dy.shape[1:3], 3, 3, 2, 2, 0, 0):
        dx[:, h, w] += np.where(host[:, h, w] == functional.max_pool2d(x, 3, stride=2, device="numpy")[:, oh, ow], dy[:, oh, ow], 0)
    return dx


BREAKS = {
    "a factor 2 is missing": (CONV, "conv2d_backward", result(0, lambda dx: dx / 2), "x"),
    "a sign": (CONV, "conv2d_backward", result(1, lambda dw: -dw), "w"),
    "one element at a border": (CONV, "conv2d_backward", result(0, at((1, 4, 3, 2), lambda v: v + 0.01)), "x[1, 4, 3, 2]"),
    "one bias": (CONV, "conv2d_backward", result(2, at(5, lambda v: v * 1.01)), "b[5]"),
    "a transposed kernel": (CONV, "conv2d_backward", transposed_kernel, "x"),
    "a pool's corner": (POOL, "max_pool2d_backward", result(0, at((0, 0, 0, 0), lambda v: v + 0.01)), "x[0, 0, 0, 0]"),
    "a gradient where none is": (POOL, "max_pool2d_backward", result(0, lambda dx: dx + 1e-3), "x"),
    "ReLU that leaks": (("relu", {"x": (3, 11)}, {}), "relu_backward", lambda right, a, o: np.where(a[1] > 0, a[0], 0.01 * a[0]), "x"),
    "LRN without its second term": (LRN, "local_response_norm_backward",
                                    lambda right, a, o: a[0] * functional.local_response_norm(a[1], **{**o, "device": "numpy"}) / a[1], "x"),
    "dropout drawn from another seed": (DROPOUT, "dropout_backward", lambda right, a, o: right(*a, **{**o, "seed": 4}), "x"),
    "dropout without its scale": (DROPOUT, "dropout_backward", result(0, lambda dx: dx / 2), "x"),
    "a bias gradient that is a mean": (DENSE, "dense_backward", result(2, lambda db: db / 3), "b"),
    "dense weights not transposed": (("dense", {"x": (3, 5), "w": (5, 5)}, {}), "dense_backward",
                                     lambda right, a, o: right(a[0], a[1], a[2].T.copy(), **o), "x"),
    "softmax without the one-hot": (SOFTMAX, "softmax_cross_entropy", result(1, lambda dx: np.abs(dx)), "x"),
    "NaN": (DENSE, "dense_backward", result(1, at((6, 4), lambda v: np.nan)), "w[6, 4]"),
}
READABLE = (r"(derivative|forward|backward): worst at d?(y|x|w|b|direction)\[[\d, ]+\]: (numeric|kernel) \S+, (backward|reference) \S+ "
            r"\(relative error \S+\)\nrun again: python -c \"from minialex.gradcheck import check_op; check_op\(.*\)\"$")


@pytest.mark.parametrize("case, op, change, where", BREAKS.values(), ids=BREAKS)
def test_a_wrong_reference_is_caught_by_the_numeric_derivative(monkeypatch, cpu, case, op, change, where):
    broken(monkeypatch, op, "numpy", change)
    with pytest.raises(GradientError) as told:
        check_op(*case, device=cpu)
    assert str(told.value).startswith(f"derivative: worst at {where}") and re.match(READABLE, str(told.value))
    with pytest.raises(GradientError, match="^derivative: worst at direction") as told:
        check_op(*case, device=cpu, directions=2)
    assert re.match(READABLE, str(told.value))


@pytest.mark.parametrize("case, op, change, where", BREAKS.values(), ids=BREAKS)
def test_a_wrong_kernel_is_caught_against_the_reference(monkeypatch, device, case, op, change, where):
    broken(monkeypatch, op, device.name, change)
    for directions in (None, 2):
        with pytest.raises(GradientError) as told:
            check_op(*case, device=device, directions=directions)
        assert str(told.value).startswith(f"backward: worst at d{where}") and re.match(READABLE, str(told.value))


@pytest.mark.parametrize("case, op", [(CONV, "conv2d"), (POOL, "max_pool2d"), (LRN, "local_response_norm"), (DENSE, "dense")], ids=lambda v: str(v)[:8])
def test_a_wrong_forward_kernel_is_caught(monkeypatch, device, case, op):
    broken(monkeypatch, op, device.name, result(0, lambda y: y + 1e-3 * np.abs(y).max() * (y == y.max())))
    with pytest.raises(GradientError, match=r"^forward: worst at y\["):
        check_op(*case, device=device)


def test_both_values_of_the_worst_element_are_told(monkeypatch, cpu):
    broken(monkeypatch, "dense_backward", "cpu", result(1, at((2, 3), lambda v: 1234.5)))
    with pytest.raises(GradientError, match=r"backward: worst at dw\[2, 3\]: kernel 1234.5, reference ") as told:
        check_op(*DENSE, device=cpu)
    values = gradcheck.drawn("dense", DENSE[1], 0)
    dy = np.random.default_rng(1).standard_normal((3, 5)).astype(np.float32)
    assert float(re.search(r"reference (\S+)", str(told.value))[1]) == pytest.approx((values["x"].T @ dy)[2, 3], rel=1e-6)


# Bugs in a reference's own text, where an op's forward is made of several kernels.
def lrn_first_term_only(rows, x, dy, dx, channels, size, alpha, beta, k):
    dx[...] = dy * (k + alpha * lrn.window_sum(x * x, size)) ** -beta


def sums_forgotten(rows, partial, db, count, accumulate):
    db[...] = partial.reshape(-1)[:rows]


def flipped_taps(rows, columns, dx, *more):
    right_col2im(rows, columns, dx, *more)
    dx[...] = dx[:, ::-1]


def one_early(rows, dy, winner, dx, *more):
    pool_backward(rows, dy, winner + np.uint8(1), dx, *more)


def mask_of_dy(rows, y, dy, count):
    dy[dy <= 0] = 0


def drawn_once_more(rows, x, count, first, threshold, scale, seed, layer, now):
    drawn_once_more.calls += 1
    dropout_mask(rows, x, count, first, threshold, scale, drawn_once_more.calls, layer, now)


drawn_once_more.calls = 0
right_col2im, pool_backward, dropout_mask = im2col.col2im.reference, pool.max_pool_backward.reference, dropout.dropout_in_place.reference


@pytest.mark.parametrize("kernel, reference, case", [
    (lrn.lrn_backward, lrn_first_term_only, LRN), (bias.sum_partials, sums_forgotten, ("dense", {"x": (40, 3), "w": (3, 2), "b": (2,)}, {})),
    (im2col.col2im, flipped_taps, CONV), (pool.max_pool_backward, one_early, POOL), (relu.relu_backward_in_place, mask_of_dy, ("relu", {"x": (3, 11)}, {})),
    (dropout.dropout_in_place, drawn_once_more, DROPOUT),
], ids=lambda v: getattr(v, "__name__", ""))
def test_a_bug_in_a_kernels_reference_is_caught(monkeypatch, cpu, kernel, reference, case):
    monkeypatch.setattr(kernel, "reference", reference)
    with pytest.raises(GradientError, match="^derivative: "):
        check_op(*case, device=cpu)


def test_a_gradient_to_all_tied_elements_is_caught_where_the_numeric_derivative_is_silent(monkeypatch, cpu):
    broken(monkeypatch, "max_pool2d_backward", "numpy", all_tied)
    assert check_op(*POOL, device=cpu) == {"tie in a maximum": 0}      # without ties it is right
    with pytest.raises(GradientError, match=r"^backward: worst at dx\["):
        check_op(*POOL, device=cpu, ties=True)


def test_an_update_without_momentum_is_caught(device):
    w, v, g = np.random.default_rng(0).standard_normal((3, 100)).astype(np.float32)
    truth = functional.sgd_update(w, v, g, lr=0.1, device="numpy")
    compare("forward", "w", to_host(functional.sgd_update(w, v, g, lr=0.1, device=device)[0]), truth[0])
    with pytest.raises(GradientError, match=r"^forward: worst at w\[\d+\]: kernel \S+, reference"):
        compare("forward", "w", to_host(functional.sgd_update(w, v, g, lr=0.1, momentum=0.0, device=device)[0]), truth[0])
    assert as_kernel("sgd.cu")(sgd.reference).arguments == sgd.arguments


def test_the_reproduction_line_runs_and_fails_as_it_did(tmp_path, monkeypatch, cpu):
    """In a fresh process the line passes on the library, and fails with the same words where the bug is there too."""
    broken(monkeypatch, "conv2d_backward", "cpu", result(0, at((1, 4, 3, 2), lambda v: v + 1)))
    with pytest.raises(GradientError) as told:
        check_op(*CONV, device=cpu, seed=5)
    message = str(told.value)
    line = message.split("run again: ")[1]
    (tmp_path / "sitecustomize.py").write_text(
        "from minialex import functional\nright = functional.conv2d_backward\n"
        "def conv2d_backward(dy, x, w, *, stride=1, pad=0, groups=1, device='cpu'):\n"
        "    results = right(dy, x, w, stride=stride, pad=pad, groups=groups, device=device)\n"
        "    results[0][1, 4, 3, 2] += device == 'cpu'\n"
        "    return results\n"
        "functional.conv2d_backward = conv2d_backward\n")
    path = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
    clean = subprocess.run(line, shell=True, env={**os.environ, "PATH": path}, capture_output=True, text=True)
    assert clean.returncode == 0, clean.stderr
    again = subprocess.run(line, shell=True, env={**os.environ, "PATH": path, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True)
    assert again.returncode == 1 and message in again.stderr


def test_a_kink_is_skipped_only_by_name(monkeypatch, cpu):
    zeros = int((gradcheck.drawn("relu", {"x": (6, 9)}, 0, ties=True)["x"] == 0).sum())
    assert check_op("relu", {"x": (6, 9)}, device=cpu, ties=True) == {"ReLU at zero": zeros} and zeros > 3
    monkeypatch.delitem(gradcheck.KINKS, "relu")
    with pytest.raises(GradientError, match="^derivative: worst at x"):
        check_op("relu", {"x": (6, 9)}, device=cpu, ties=True)
    assert check_op("relu", {"x": (6, 9)}, device=cpu) == {}
    assert set(gradcheck.KINKS) == {"max_pool2d"} and not set(gradcheck.KINKS) & {"conv2d", "dense", "dropout", "local_response_norm"}


def test_a_kink_without_a_name_fails_even_where_the_mean_of_both_sides_is_the_gradient():
    point, zero = {"x": np.zeros(1)}, {"x": np.zeros(1)}
    for checked in (check, check_direction):
        with pytest.raises(GradientError, match=r"\[0\]: numeric \S+, backward 0 "):
            checked(lambda v: float(np.abs(v["x"]).sum()), point, zero)
    assert check(lambda v: float(np.abs(v["x"]).sum()), point, zero, kink="corner") == {"corner": 1}


@pytest.mark.parametrize("weight", [1.0, 1e-2, 1e-4])
def test_small_kinks_are_kinks_and_curves_are_none(weight):
    """A kink is told from a curve by the step: on a curve the two sides come together as it shrinks."""
    def loss(v):
        x = v["x"]
        return float(x[0] + weight * max(x[1], 0.0) + x[2] ** 2 / 2 * 50)

    point = {"x": np.array([1.0, 0.0, 0.3])}
    right = {"x": np.array([1.0, 0.0, 15.0])}
    assert check(loss, point, right, kink="corner") == {"corner": 1}
    with pytest.raises(GradientError, match=r"x\[2\]: numeric 15, backward 14.9"):
        check(loss, point, {"x": np.array([1.0, 0.0, 14.99])}, kink="corner")


def test_directions_that_all_cross_a_kink_check_nothing_and_say_so():
    with pytest.raises(GradientError, match="all 3 directions crossed a kink .corner.: nothing was checked"):
        check_direction(lambda v: float(np.abs(v["x"]).sum()), {"x": np.zeros(4)}, {"x": np.zeros(4)}, kink="corner")


def test_shapes_and_nan_must_agree():
    with pytest.raises(GradientError, match=r"the gradient of x has shape \(2,\), x has \(3,\)"):
        check(lambda v: 0.0, {"x": np.zeros(3)}, {"x": np.zeros(2)})
    with pytest.raises(GradientError, match=r"forward: y has shape \(3,\), the reference \(1, 3\)"):
        compare("forward", "y", np.zeros(3), np.zeros((1, 3)))
    nan = np.array([1, np.nan, np.inf])
    compare("forward", "y", nan, nan)
    for wrong in ([1, 1, np.inf], [1, np.nan, -np.inf], [np.nan, np.nan, np.inf]):
        with pytest.raises(GradientError, match=r"relative error inf\)\nrun again: pytest \"tests/test_gradcheck.py::test_shapes_and_nan"):
            compare("forward", "y", np.array(wrong), nan)
    compare("forward", "y", np.zeros((0, 3)), np.zeros((0, 3)))


def test_the_worst_is_nan_before_any_number():
    point, gradient = {"x": np.ones(3)}, {"x": np.array([9.0, np.nan, 5.0])}
    with pytest.raises(GradientError, match=r"worst at x\[1\]: numeric 1, backward nan \(relative error inf\)"):
        check(lambda v: float(v["x"].sum()), point, gradient)


def test_the_command(capsys, monkeypatch):
    assert gradcheck.main(["--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("device cpu: ") and len(lines) == 1 + len(CASES) and all(line.startswith("ok ") for line in lines[1:])
    with pytest.raises(UserError, match="unknown op 'lrn': choose from conv2d, dense,"):
        gradcheck.main(["relu", "lrn"])
    broken(monkeypatch, "relu_backward", "numpy", result(0, lambda dx: 2 * dx))
    assert gradcheck.main(["relu", "dense", "--device", "cpu", "--seed", "4"]) == 1
    out = capsys.readouterr().out
    assert "FAILED  relu: derivative: worst at x[" in out and "seed=4" in out and "ok      dense" in out


def test_every_op_with_a_gradient_has_a_case():
    ops = {name[:-len("_backward")] for name in functional.__all__ if name.endswith("_backward")} | {"softmax_cross_entropy"}
    assert {case[0] for case in CASES} == ops and device_of("numpy").float == np.float64
