"""Gradient checks: three ties that hold any op to its formula.

1. forward: the kernel's output against the float64 reference's;
2. derivative: the reference's backward against numeric derivatives of the reference (central differences, float64);
3. backward: the kernel's gradients against the reference's.

`check_op("max_pool2d", {"x": (2, 5, 5, 3)}, {"size": 3})` checks a function of minialex.functional; `check` and
`check_direction` take any function. Points where a derivative does not exist are skipped by name and counted: ReLU at
zero, a tie in a maximum. From the command line: `python -m minialex.gradcheck [OP ...] [--device D] [--seed N]`.
"""

from . import interrupts      # first: imports take a while, in which Ctrl-C ends the process without a word

import inspect
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from . import functional
from .device import Device

Values = dict[str, np.ndarray]

# Where an op has no derivative. An op that is not named here must have one everywhere.
KINKS = {"relu": "ReLU at zero", "max_pool2d": "tie in a maximum"}
STEP, TOLERANCE = 1e-5, 1e-6          # of central differences in float64, relative to the largest derivative
FLOAT32 = 2e-5                        # of a float32 kernel, relative to the largest value


class GradientError(AssertionError):
    """A tie does not hold; the message names the worst element, both values, and how to run it again."""


def check(loss: Callable[[Values], float], values: Values, gradients: Values, *, step: float = STEP, tolerance: float = TOLERANCE, kink: str | None = None,
          reproduce: str | None = None) -> dict[str, int]:
    """Every element: d loss / d values[name][i] numerically against gradients[name][i]. -> {name of kink: skipped}

    loss: function of {name: float64 array} giving a float. An element whose left and right derivatives differ lies at a
    kink of `loss`; it is skipped if `kink` names such points, and an error otherwise.
    """
    worst, skipped, largest = None, 0, max(1e-12, *(float(np.abs(g).max(initial=0)) for g in gradients.values()))
    middle = loss(values)
    for name, gradient in gradients.items():
        if gradient.shape != values[name].shape:
            raise GradientError(f"the gradient of {name} has shape {gradient.shape}, {name} has {values[name].shape}")
        for i in np.ndindex(gradient.shape):
            def along(h):
                return loss({**values, name: moved(values[name], i, h)})

            sides = slopes(along, middle, step)
            bent = at_kink(along, middle, step, sides, (tolerance if kink else 1e-3) * largest)
            if bent and kink:
                skipped += 1
                continue
            numeric = max(sides, key=lambda side: abs(side - gradient[i])) if bent else (sides[0] + sides[1]) / 2
            error = abs(numeric - gradient[i]) / largest
            error = np.inf if np.isnan(error) else error
            if error > tolerance and (worst is None or error > worst[0]):
                worst = error, name, i, numeric, gradient[i]
    if worst:
        raise GradientError(told("derivative", *worst, "numeric", "backward", reproduce))
    return {kink: skipped} if kink else {}


def check_direction(loss: Callable[[Values], float], values: Values, gradients: Values, *, directions: int = 3, seed: int = 0, step: float = STEP,
                    tolerance: float = 1e-5, kink: str | None = None, reproduce: str | None = None) -> dict[str, int]:
    """Random directions d: (loss(v + h d) - loss(v - h d)) / 2h against the inner product of gradients and d."""
    random, skipped, middle = np.random.default_rng(seed), 0, loss(values)
    for number in range(directions):
        way = {name: random.standard_normal(g.shape) for name, g in gradients.items()}

        def along(h):
            return loss({**values, **{n: values[n] + h * way[n] for n in way}})

        sides = slopes(along, middle, step)
        inner = sum(float((gradients[n] * way[n]).sum()) for n in way)
        scale = max(1e-12, abs(inner), float(np.sqrt(sum((gradients[n] ** 2).sum() for n in way))))
        bent = at_kink(along, middle, step, sides, (tolerance if kink else 1e-3) * scale)
        numeric = max(sides, key=lambda side: abs(side - inner)) if bent else sum(sides) / 2
        if bent and kink:
            skipped += 1
        elif not abs(numeric - inner) / scale <= tolerance:
            raise GradientError(told("derivative", abs(numeric - inner) / scale, "direction", (number,), numeric, inner, "numeric", "backward", reproduce))
    if skipped == directions:
        raise GradientError(f"all {directions} directions crossed a kink ({kink}): nothing was checked")
    return {kink: skipped} if kink else {}


def slopes(along, middle, step):
    """The derivatives of along(h) to the right and to the left of 0, where it is `middle`."""
    return [sign * (along(sign * step) - middle) / step for sign in (1, -1)]


def at_kink(along, middle, step, sides, floor):
    """Whether the two sides differ by more than floor, and not as on a curve, where the difference shrinks with the step."""
    gap = abs(sides[0] - sides[1])
    if not gap > floor:
        return False
    right, left = slopes(along, middle, step / 4)
    return abs(abs(right - left) - gap / 4) > gap / 10


def compare(tie: str, name: str, value: np.ndarray, truth: np.ndarray, *, tolerance: float = FLOAT32, reproduce: str | None = None) -> None:
    """value (float32) against truth (float64), relative to truth's largest finite magnitude; NaN must meet NaN."""
    value, truth = np.asarray(value, np.float64), np.asarray(truth, np.float64)
    if value.shape != truth.shape:
        raise GradientError(f"{tie}: {name} has shape {value.shape}, the reference {truth.shape}")
    same = (value == truth) | (np.isnan(value) & np.isnan(truth))
    finite = np.abs(truth[np.isfinite(truth)])
    with np.errstate(invalid="ignore"):      # infinity - infinity
        error = np.where(same, 0, np.abs(value - truth)) / max(1e-12, finite.max(initial=0))
    error[np.isnan(error)] = np.inf
    if error.size and error.max() > tolerance:
        i = np.unravel_index(np.argmax(error), error.shape)
        raise GradientError(told(tie, error[i], name, i, value[i], truth[i], "kernel", "reference", reproduce))


def told(tie, error, name, i, value, truth, value_is, truth_is, reproduce):
    place = f"{name}[{', '.join(map(str, i))}]"
    again = reproduce or f'pytest "{os.environ.get("PYTEST_CURRENT_TEST", "").split(" ")[0]}"'
    return f"{tie}: worst at {place}: {value_is} {value:.9g}, {truth_is} {truth:.9g} (relative error {error:.2g})\nrun again: {again}"


def moved(array, i, step):
    array = array.copy()
    array[i] += step
    return array


def drawn(op, shapes, seed, ties=False):
    """Random arrays for an op's array arguments: float32 values held in float64, labels for "label"."""
    random, arrays = np.random.default_rng(seed), {}
    for name, shape in shapes.items():
        if name == "label":
            arrays[name] = random.integers(0, shapes["x"][1], shape)
        else:
            value = random.integers(-2, 3, shape) if ties and name == "x" else random.standard_normal(shape)
            arrays[name] = value.astype(np.float32).astype(np.float64)
    return arrays


def check_op(op: str, shapes: dict[str, tuple[int, ...]], options: dict[str, Any] | None = None, *, device: str | Device = "cpu", seed: int = 0,
             ties: bool = False, directions: int | None = None, tolerance: float = FLOAT32) -> dict[str, int]:
    """The three ties of one function of minialex.functional. -> {name of kink: skipped}

    shapes: {argument: shape} of its arrays; options: its other arguments; ties=True draws x from a few integers, so that
    maxima tie and ReLU meets zero. directions: so many random directions instead of every element.
    """
    options, name = options or {}, device if isinstance(device, str) else device.name
    reproduce = (f"python -c \"from minialex.gradcheck import check_op; check_op('{op}', {shapes}, {options}, device={name!r}, "
                 f"seed={seed}, ties={ties}, directions={directions})\"")
    values = drawn(op, shapes, seed, ties)
    floats = [name for name in values if name != "label"]
    outputs = outputs_of(op, values, options, "numpy")
    weights = np.random.default_rng(seed + 1).standard_normal(outputs[0].shape).astype(np.float32).astype(np.float64)

    def loss(moved_values):
        return float((outputs_of(op, {**values, **moved_values}, options, "numpy")[0] * weights).sum())

    truth = gradients_of(op, values, weights, options, "numpy")
    kinks: dict[str, Any] = {"kink": KINKS.get(op), "reproduce": reproduce}
    point = {name: values[name] for name in floats}
    if directions is None:
        skipped = check(loss, point, truth, **kinks)
    else:
        skipped = check_direction(loss, point, truth, directions=directions, seed=seed, **kinks)

    single = {name: values[name].astype(np.int32 if name == "label" else np.float32) for name in values}
    compare("forward", "y", to_host(outputs_of(op, single, options, device)[0]), outputs[0], tolerance=tolerance, reproduce=reproduce)
    for name, value in gradients_of(op, single, weights.astype(np.float32), options, device).items():
        compare("backward", f"d{name}", to_host(value), truth[name], tolerance=tolerance, reproduce=reproduce)
    return skipped


def outputs_of(op, values, options, device):
    result = getattr(functional, op)(*values.values(), **options, device=device)
    return result if isinstance(result, tuple) else (result,)


def gradients_of(op, values, dy, options, device):
    """{argument: gradient}, from `op`_backward, or from the op itself where it gives its gradient along."""
    backward = getattr(functional, f"{op}_backward", None)
    if backward is None:      # softmax_cross_entropy(x, label) -> loss, dx
        _, dx = outputs_of(op, values, options, device)
        return {"x": to_host(dx) * dy[:, None]}
    taken = [name for name in inspect.signature(backward).parameters if name in values]
    result = backward(dy, *(values[name] for name in taken), **options, device=device)
    return dict(zip(values, result)) if isinstance(result, tuple) else {next(iter(values)): result}


def to_host(array):
    return array.get() if hasattr(array, "get") else array


CASES = [
    ("conv2d", {"x": (2, 5, 6, 4), "w": (3, 2, 2, 6), "b": (6,)}, {"stride": (2, 1), "pad": ((1, 2), (0, 1)), "groups": 2}),
    ("conv2d", {"x": (2, 7, 6, 4), "w": (3, 3, 2, 6), "b": (6,)}, {"pad": 1, "groups": 2, "algorithm": "winograd"}),
    ("max_pool2d", {"x": (2, 7, 6, 5)}, {"size": 3, "stride": 2}),
    ("relu", {"x": (3, 11)}, {}),
    ("local_response_norm", {"x": (4, 9)}, {"size": 5, "alpha": 0.8, "k": 1.5}),
    ("dropout", {"x": (3, 17)}, {"p": 0.4, "seed": 3}),
    ("dense", {"x": (3, 7), "w": (7, 5), "b": (5,)}, {}),
    ("softmax_cross_entropy", {"x": (4, 10), "label": (4,)}, {"smoothing": 0.1}),
    ("transpose", {"x": (5, 34)}, {}),
]


def main(arguments=None):
    from .command import add_device, parser_of, say
    from .device import open_device
    from .errors import UserError
    parser = parser_of("gradcheck", "Check each op against its formula.", zero=("seed",))
    parser.add_argument("op", nargs="*", help=f"of {', '.join(sorted({c[0] for c in CASES}))} (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    add_device(parser)
    args = parser.parse_args(arguments)
    unknown = set(args.op) - {case[0] for case in CASES}
    if unknown:
        raise UserError(f"unknown op {sorted(unknown)[0]!r}: choose from {', '.join(sorted({c[0] for c in CASES}))}")
    device, reason = open_device(args.device, args.threads)
    say(f"device {device.name}: {device} ({reason})")
    failed = 0
    for op, shapes, options in CASES:
        if args.op and op not in args.op:
            continue
        try:
            skipped = check_op(op, shapes, options, device=device, seed=args.seed)
            say(f"ok      {op} {shapes} {options}" + "".join(f"   skipped {n} at a {k}" for k, n in skipped.items() if n))
        except GradientError as error:
            failed += 1
            say(f"FAILED  {op}: {error}")
    return 1 if failed else 0


if __name__ == "__main__":
    from .command import run_command
    run_command(main)
