"""A quarter of an hour on a GPU: its results checked, its speed measured, and each launch's time put beside the predicted one.

python benchmarks/on_gpu.py [--out DIR] [--stages probe selftest ...] [--limit SECONDS]

Each stage is a process with a limit of its own, whose output is kept in DIR from its first line on; a stage that fails, crashes or hangs
ends no other, and one whose tool is missing says so. DIR/report.md has what came of it, anew after each stage.
"""

import contextlib
import csv
import importlib.util
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from minialex.command import Parser, run_command, say
from minialex.device import cuda
from minialex.errors import UserError
from minialex.files import write_beside

ROOT = Path(__file__).resolve().parent.parent
NETS = "paper", "owt", "half"
GRACE = 5            # seconds between asking a stage to end and ending it
SMALLEST = 0.02      # of a step: what takes less stands in no row of its own
COUNTERS = {"dram__bytes.sum": ("DRAM, MB", 1e-6), "lts__t_sectors.sum": ("sectors of L2, MB", 32e-6),
            "smsp__inst_executed.sum": ("warp instructions, M", 1e-6), "launch__registers_per_thread": ("registers", 1)}


@dataclass
class Stage:
    """`least`: the seconds below which it isn't begun; `limit`: those after which it is ended; `told`: the line of its output that says
    most, else the last one; `skip`: why it cannot run."""

    name: str
    command: list
    least: float
    limit: float
    told: str = r"\S"
    skip: str = ""
    environment: dict = field(default_factory=dict)


# ---------------------------------------------------------------- the stages

def stages(out, quick):
    """All of them, the cheapest and most telling first."""
    def script(name, *more):
        return [sys.executable, str(ROOT / "benchmarks" / name), *more, *few]
    few = ["--quick"] if quick else []
    test = [sys.executable, "-m", "minialex.selftest", "--device", "cuda"]
    plain = {"MINIALEX_NO_POOL": "1"}      # else a sanitizer sees CuPy's large blocks and not the arrays in them
    sanitizer, ncu = tool("compute-sanitizer"), tool("ncu")
    torch, pytest, xdist = without_cuda(), importlib.util.find_spec("pytest"), importlib.util.find_spec("xdist")
    workers = ["-n", str(min(8, os.cpu_count() or 1))] if xdist else []
    found = [Stage("probe", script("gpu_probe.py", "--json", f"{out}/probe.json"), 15, 60),
             Stage("selftest", [*test, "--limit", "60", *few], 20, 170, "^selftest ")]
    found += [Stage(f"timeline-{net}", script("gpu_timeline.py", "--net", net, "--json", f"{out}/timeline-{net}.json"), 15, 60) for net in NETS]
    found += [Stage("graph-half", script("gpu_timeline.py", "--net", "half", "--json", f"{out}/graph-half.json"), 15, 60,
                    environment={"MINIALEX_GRAPH": "1"}),
              Stage("tf32-half", script("gpu_timeline.py", "--net", "half", "--precision", "tf32", "--json", f"{out}/tf32-half.json"), 15, 60)]
    size = ["--size", "67", "--batch", "2", "--rounds", "1"] if quick else ["--batch", "128", "--rounds", "5"]
    compare = [sys.executable, str(ROOT / "benchmarks" / "compare_to_torch.py"), "--device", "cuda", "--no-compile", *size]
    found += [Stage(f"comparison-{net}", [*compare, "--net", net, "--json", f"{out}/comparison-{net}.json"], 25, 100, r" train +ratio ", torch) for net in NETS]
    some = ["tests/ops/test_relu.py"] if quick else workers
    found += [Stage("tests", [sys.executable, "-m", "pytest", "-v", "--tb=short", "-p", "no:cacheprovider", "--maxfail=40", "-m", "gpu and not slow", *some],
                    60, 180, r"^=+ .* in [\d.]+s", "" if pytest else "pytest is not installed")]
    data = ["--dry-run", "--size", "67", "--batch", "4"] if quick else ["--out", f"{out}/run"]
    found += [Stage("training", [sys.executable, "-m", "minialex.train", "--device", "cuda", *data], 20, 60)]
    watch = [sanitizer, "--target-processes", "all", "--error-exitcode", "9", "--print-limit", "20"]
    found += [Stage(name, [*watch, "--tool", name, *test, "--quick", "--limit", "60"], 30, 120, "SUMMARY: ",
                    "" if sanitizer else "compute-sanitizer is not there (it comes with the CUDA toolkit)", plain) for name in ("memcheck", "racecheck")]
    count = [ncu, "--csv", "--log-file", f"{out}/counters.csv", "--print-units", "base", "--profile-from-start", "off", "--target-processes", "all",
             "--metrics", ",".join(COUNTERS)]
    found += [Stage("counters", [*count, *script("gpu_timeline.py", "--once", "--net", "half", "--json", f"{out}/counted.json")], 30, 120,
                    skip="" if ncu else "ncu is not there (it comes with the CUDA toolkit)")]
    return found


def tool(name):
    """The path of a program of the CUDA toolkit, or None."""
    places = [os.environ.get(home, "") for home in ("CUDA_HOME", "CUDA_PATH")] + ["/usr/local/cuda"]
    return shutil.which(name) or next(filter(None, (shutil.which(name, path=f"{place}/bin") for place in places if place)), None)


def without_cuda():
    """Why PyTorch cannot take part, or nothing; its own word for it, without the seconds of importing it."""
    spec = importlib.util.find_spec("torch")
    if spec is None:
        return "PyTorch is not installed"
    about = Path(spec.origin).with_name("version.py")
    return "this PyTorch has no CUDA" if about.exists() and re.search(r"^cuda\b.*= *None *$", about.read_text(encoding="utf-8"), re.M) else ""


# ---------------------------------------------------------------- running them

def run(stage, out, left):
    """Runs a stage, of which no process is left afterwards. -> {"stage", "exit", "seconds", "told"}"""
    if stage.skip or left < stage.least:
        return {"stage": stage.name, "exit": "skipped", "seconds": 0.0,
                "told": stage.skip or f"{max(0, left):.0f} s were left, and it takes at least {stage.least:.0f}"}
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "MPLBACKEND": "Agg", **stage.environment}
    environment.pop("MINIALEX_DEBUG", None)      # speeds are to be those that users see
    log, limit, began = out / f"{stage.name}.log", min(stage.limit, left), time.monotonic()
    with open(log, "wb") as file:
        try:
            process = subprocess.Popen(list(map(str, stage.command)), stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, cwd=ROOT,
                                       env=environment, start_new_session=True)
        except OSError as error:
            return {"stage": stage.name, "exit": "not begun", "seconds": 0.0, "told": f"{stage.command[0]}: {error.strerror}"}
        try:
            code = process.wait(limit)
            end = "passed" if code == 0 else f"exit {code}" if code > 0 else signal.Signals(-code).name
        except subprocess.TimeoutExpired:
            end = f"ended after {limit:.0f} s"
        finally:
            finish(process)
    return {"stage": stage.name, "exit": end, "seconds": time.monotonic() - began, "told": telling(log.read_text(errors="replace"), stage.told)}


def finish(process):
    """Ends a stage and what it started: first as Ctrl-C would, for a summary of what was done by then."""
    if not hasattr(os, "killpg"):
        process.kill()
    else:
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGINT)
                process.wait(GRACE)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def telling(text, pattern):
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return ([line for line in lines if re.search(pattern, line)] or lines or ["(no output)"])[-1][:200]


def run_all(todo, out, limit):
    """Runs stages one after the other, and writes the report after each. -> what came of them"""
    began, done = time.monotonic(), []
    try:
        for stage in todo:
            done.append(run(stage, out, limit - (time.monotonic() - began)))
            say("{stage:16} {exit:16} {seconds:6.1f} s  {told}".format(**done[-1]))
            write_beside(out / "report.md", "\n".join(report(out, done)) + "\n")
    except KeyboardInterrupt:
        write_beside(out / "report.md", "\n".join(report(out, done)) + "\n")
        raise
    return done


# ---------------------------------------------------------------- the report

def table(head, rows):
    def line(cells):
        return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"
    return [line(head), "|---|" + "---:|" * (len(head) - 1), *map(line, rows), ""]


def read(out, name):
    """What a stage has written, or None."""
    with contextlib.suppress(OSError, ValueError):
        return json.loads((out / name).read_text(encoding="utf-8"))


def report(out, done):
    """The lines of report.md, with what there is so far."""
    lines = []
    for part in (machine, lambda out: stage_table(done), foundations, comparison, steps, launches, counters):
        try:
            lines += part(out)
        except Exception as error:      # a stage's file of another form than was thought: the other parts are worth having
            lines += [f"{part.__name__} could not be written: {type(error).__name__}: {error}", ""]
    return lines


def asked(*command):
    """The first line that a program answers, or nothing."""
    with contextlib.suppress(OSError, subprocess.SubprocessError, IndexError):
        return subprocess.run(command, capture_output=True, text=True, timeout=20, cwd=ROOT).stdout.splitlines()[0].strip()
    return ""


def machine(out):
    probe, state = read(out, "probe.json") or {}, asked("git", "describe", "--always", "--dirty")
    about = {"card, driver, MiB, W": asked("nvidia-smi", "--query-gpu=name,driver_version,memory.total,power.limit", "--format=csv,noheader"),
             **probe.get("about", {}), "processor's cores": os.cpu_count(), "minialex at": state, "when": time.strftime("%Y-%m-%d %H:%M")}
    about.setdefault("Python", platform.python_version())
    return [f"# minialex on {card(out) or 'a GPU'}", "", *(f"- {name}: {value}" for name, value in about.items() if value not in ("", None)), ""]


def card(out):
    found = [read(out, "probe.json") or {}] + [read(out, f"timeline-{net}.json") or {} for net in NETS]
    return next((name for one in found if (name := one.get("card") or one.get("about", {}).get("card"))), None)


def stage_table(done):
    rows = [(stage["stage"], stage["exit"], f"{stage['seconds']:.1f}", stage["told"]) for stage in done]
    return ["## Stages", "", *table(("stage", "exit", "seconds", "what it says"), rows)]


def chip_of(out, page):
    """(the chip whose predictions are taken, a sentence where it is not the card's own)"""
    chips, own = {chip for net in page.values() for conv in net.values() for chip in conv}, card(out) or "the card"
    chip = next((chip for chip in sorted(chips) if chip in own), None)
    return chip or "H100", "" if chip else f"Nothing is predicted for {own}: H100 stands in for it."


def foundations(out):
    from kernel_report import CHIPS, HOST, LATENCY, LEAST
    found = read(out, "probe.json")
    if not found:
        return []
    name, note = chip_of(out, read(ROOT / "docs", "kernels.json"))
    chip = next(chip for chip in CHIPS if chip.name == name)
    taken = {"copy on the device": f"{chip.bandwidth / 1e9:,.0f}", "pinned memory to the device": f"{chip.pcie / 1e9:.0f}",
             "product, float32": f"{chip.fp32 / 1e12:g}", "product, TF32": f"{chip.tf32 / 1e12:g}", "from a load": f"{1e9 * LATENCY:.0f}",
             "GPU, for a launch": f"{1e6 * LEAST:.0f}", "host, for a launch by CuPy": f"{1e6 * HOST[0]:.0f} to {1e6 * HOST[1]:.0f}"}
    rows = [(what, f"{value:.4g}", next((text for start, text in taken.items() if what.startswith(start)), ""), unit)
            for what, value, unit in found["measured"]]
    return [f"## What the predictions rest on, taken for {name} / seen", "", *([note, ""] if note else []), *table(("what", "seen", "taken", "unit"), rows),
            *(f"Not measured, the rest of {part}: {why}" for part, why in found["failed"].items()), ""]


def comparison(out):
    found = {net: data for net in NETS if (data := read(out, f"comparison-{net}.json"))}
    rows = [(f"{net}, {what}", batch, f"{own['ours']:,.0f}", f"{own['torch']:,.0f}", own["best"], f"{own['ratio']:.2f}")
            for net, data in found.items() for batch, passes in data["nets"][net]["batches"].items() for what, own in passes.items()
            if isinstance(own, dict) and "ratio" in own]
    return ["## Beside PyTorch, images/s", "", *table(("net", "batch", "ours", "PyTorch", "its way", "ratio"), rows)] if rows else []


def predicted(page, chip, algorithms):
    """{"place kernel": ms} of a net's step as it was run: of each layer's pass by the algorithm that it had, without the copies of the input."""
    found = {}
    for conv, chips in page.items():
        for at, ms in chips[chip].items():
            layer, way = at.split()[:2]
            if algorithms.get(layer, ("im2col", "im2col"))[way == "backward"] == conv and way != "upload":
                found[at] = ms
    return found


def both(out):
    """[(net, chip, what gpu_timeline.py found, {"place kernel": ms} predicted, {"place kernel": ms} seen, {"place kernel": launches})]"""
    page, found = read(ROOT / "docs", "kernels.json"), []
    for net in NETS:
        if own := read(out, f"timeline-{net}.json"):
            seen, count, chip = Counter(), Counter(), chip_of(out, page)[0]
            for place, kernel, ms in zip(own["places"], own["kernels"], own["ms"]):
                seen[f"{place} {kernel}"] += ms
                count[f"{place} {kernel}"] += 1
            found.append((net, chip, own, predicted(page[net], chip, own["algorithms"]), seen, count))
    return found


def ratio(seen, foreseen):
    return f"{seen / foreseen:.2f}" if foreseen else ""


def steps(out):
    rows = []
    for net, chip, own, foreseen, seen, count in both(out):
        ways = {way: [layer for layer, pair in own["algorithms"].items() if pair[i] == "winograd"] for i, way in enumerate(("forward", "backward"))}
        total, whole = sum(foreseen[at] for at in foreseen if at in seen), sum(seen.values())
        graph, tf32 = (read(out, f"{kind}-{net}.json") for kind in ("graph", "tf32"))
        rows.append((net, "; ".join(f"{way}: {', '.join(layers) or 'none'}" for way, layers in ways.items()), sum(count.values()), f"{total:.2f}",
                     f"{whole:.2f}", ratio(whole, total), f"{own['step_ms']:.2f}", f"{graph['step_ms']:.2f}" if graph and graph["graph"] else "",
                     f"{tf32['step_ms']:.2f}" if tf32 else "", f"{own['queued_ms']:.2f}", f"{own['whole_ms']:.2f}", f"{1e3 * own['batch'] / own['whole_ms']:,.0f}"))
    head = ("net", "Winograd's convolution in", "launches", "predicted, ms", "seen, ms", "seen / predicted", "as a step, ms", "as a graph, ms", "with TF32 products, ms", "queued, ms",
            "with input, ms", "images/s")
    return [f"## A training step, predicted for {chip} / seen", "", "Seen is the sum of the launches' times, which lie between events. As a step they are "
            "queued without these; `queued` is the host's time for launches and events, `with input` a whole train_step.", "",
            *table(head, rows)] if rows else []


def launches(out):
    """What takes the most of each step, by kernel and place."""
    lines = []
    for net, chip, own, foreseen, seen, count in both(out):
        whole = sum(seen.values())
        large = [at for at, ms in sorted(seen.items(), key=lambda item: -item[1]) if ms > SMALLEST * whole]
        idle = {at: ms for at, ms in foreseen.items() if at not in seen}      # as im2col of a backward pass whose columns were kept
        rows = [(*at.rsplit(" ", 1), count[at], f"{foreseen[at]:.3f}" if at in foreseen else "", f"{seen[at]:.3f}", ratio(seen[at], foreseen.get(at)),
                 f"{100 * seen[at] / whole:.1f}") for at in large]
        for name, of in (("all others", seen.keys() - set(large)), ("all", seen.keys())):
            sums = [sum(times.get(at, 0.0) for at in of) for times in (foreseen, seen)]
            rows.append((name, "", sum(count[at] for at in of), f"{sums[0]:.3f}", f"{sums[1]:.3f}", ratio(sums[1], sums[0]), f"{100 * sums[1] / whole:.1f}"))
        lines += [f"## {net}, batch {own['batch']}: what takes over {100 * SMALLEST:.0f} % of the step", "",
                  *table(("place", "kernel", "launches", f"predicted ({chip}), ms", "seen, ms", "seen / predicted", "% of seen"), rows),
                  *([f"Predicted, not launched and not counted above: {sum(idle.values()):.3f} ms in {', '.join(idle)}.", ""] if idle else [])]
    return lines


def counters(out):
    """ncu's counters by place and kernel; a product of cuBLAS has its own names, and may be several launches, so that its place is not known."""
    path, step = out / "counters.csv", read(out, "counted.json")
    if not path.exists():
        return []
    text, names, found = path.read_text(encoding="utf-8", errors="replace"), {}, {}
    refused = [line for line in text.splitlines() if line.startswith("==ERROR==")]
    for row in csv.DictReader(text[text.index('"ID"'):].splitlines()) if '"ID"' in text else []:
        names[row["ID"]] = re.sub(r"^void |[(<].*", "", row["Kernel Name"])
        found.setdefault(row["ID"], Counter())[row["Metric Name"]] = float(row["Metric Value"].replace(",", ""))
    ours = [at for at in zip(step["places"], step["kernels"]) if at[1] != "gemm"] if step else []
    own = [number for number in names if names[number] in {kernel for _, kernel in ours}]
    places = dict(zip(own, ours)) if [names[number] for number in own] == [kernel for _, kernel in ours] else {}
    sums, launched = {}, Counter()
    for number, counted in found.items():
        at = places.get(number, ("", names[number]))
        launched[at] += 1
        so_far = sums.setdefault(at, Counter())
        for metric, value in counted.items():
            so_far[metric] = max(so_far[metric], value) if metric.startswith("launch__") else so_far[metric] + value
    rows = [(*at, launched[at], *(f"{counted[metric] * scale:,.4g}" for metric, (_, scale) in COUNTERS.items()))
            for at, counted in sorted(sums.items(), key=lambda item: -item[1]["dram__bytes.sum"])]
    return ["## What ncu counted in a step of half", "", *refused[:1], *table(("place", "kernel", "launches", *(name for name, _ in COUNTERS.values())), rows)]


def main(arguments=None):
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", metavar="DIR", help="folder for what is found (default: a new one in runs/)")
    parser.add_argument("--stages", nargs="+", metavar="STAGE", help="only these: probe, selftest, timeline, comparison (or timeline-half, ...), tests, "
                        "training, memcheck, racecheck, counters")
    parser.add_argument("--limit", type=int, default=900, help="seconds for all together; a stage that no longer fits is left out (default: 900)")
    parser.add_argument("--quick", action="store_true", help="tiny shapes: says whether the stages run, and nothing about speed")
    args = parser.parse_args(arguments)
    missing = cuda.why_not()
    if missing:
        raise UserError(f"no GPU can be used here: {missing}")
    out = Path(args.out or ROOT / "runs" / time.strftime("on-gpu-%Y%m%d-%H%M%S")).resolve()
    todo = stages(out, args.quick)
    for name in args.stages or []:
        if name not in {part for stage in todo for part in (stage.name, stage.name.split("-")[0])}:
            raise UserError(f"--stages {name}: there is {', '.join(stage.name for stage in todo)}")
    todo = [stage for stage in todo if not args.stages or {stage.name, stage.name.split("-")[0]} & set(args.stages)]
    out.mkdir(parents=True, exist_ok=True)
    say(f"{len(todo)} stages in at most {args.limit} s; all they say is in {out}")
    done = run_all(todo, out, args.limit)
    say("\n" + (out / "report.md").read_text(encoding="utf-8"))
    return 0 if all(stage["exit"] in ("passed", "skipped") for stage in done) else 1


if __name__ == "__main__":
    run_command(main)
