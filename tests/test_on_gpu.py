"""What is ready for a machine with a GPU: the tests that are for it alone, and its measurements as one command, run here over the stand-in."""

import ast
import json
import operator
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from minialex.device import cuda

ROOT = Path(__file__).resolve().parent.parent


# ---- The tests that need a GPU ----

def test_the_marker_is_for_real_gpus(request):
    """Of the tests of this run: those on cuda have it, and none on a stand-in."""
    for item in request.session.items:
        marked, asked = item.get_closest_marker("gpu"), getattr(item, "callspec", None)
        assert bool(marked) == bool(asked and "cuda" in (asked.params.get(name) for name in ("device", "place"))), item.nodeid
        assert not marked or not {"gpu", "gpu_in_processes"} & set(item.fixturenames), item.nodeid


@pytest.mark.slow
def test_without_a_gpu_all_of_them_are_skipped_for_that():
    """The others can't be: conftest.py fails what is skipped for that and has no marker."""
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-m", "gpu and not slow", "-p", "no:cacheprovider", "-W", "ignore"], cwd=ROOT,
                          capture_output=True, text=True)
    skipped, = re.findall(r"^SKIPPED \[(\d+)\] tests/conftest.py: no cuda here", done.stdout, re.M)
    others = sum(int(count) for count in re.findall(r"^SKIPPED \[(\d+)\] (?!tests/conftest)", done.stdout, re.M))
    assert re.search(rf"^{int(skipped) + others} skipped, \d+ deselected", done.stdout, re.M) and int(skipped) > 800, done.stdout[-2000:]


def test_a_test_that_loses_the_gpu_is_the_last_of_its_process(gpu_in_processes, monkeypatch):
    monkeypatch.setenv("STAND_IN_FAULT", "relu_in_place:address")
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)      # it is none of xdist's
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "--tb=line", "-m", "gpu", "-p", "no:cacheprovider", "tests/ops/test_relu.py"], cwd=ROOT,
                          capture_output=True, text=True)
    assert "cudaErrorIllegalAddress" in done.stdout and "1 failed" in done.stdout, done.stdout
    assert "tests/ops/test_relu.py::test_" in done.stdout and " has left this process without its GPU" in done.stdout


# ---- The quarter of an hour on one ----

@pytest.fixture
def on_gpu(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import on_gpu
    return on_gpu


TOOL = """#!/bin/sh
# Stands for ncu or compute-sanitizer: options that the real one has, then a command, which is not run.
while case $1 in --*) true;; *) false;; esac; do
    case $1 in
    --csv) ;;
    --log-file) log=$2; shift;;
    --tool|--print-units|--profile-from-start|--target-processes|--metrics|--error-exitcode|--print-limit) shift;;
    *) echo "unknown option $1"; exit 2;;
    esac
    shift
done
test -z "$log" || printf '%s' "$COUNTED" >"$log"
echo "========= would have run $3, pool $MINIALEX_NO_POOL"
echo "========= ERROR SUMMARY: 0 errors"
"""
HEAD = ("ID", "Process ID", "Process Name", "Host Name", "Kernel Name", "Context", "Stream", "Block Size", "Grid Size", "Device", "CC", "Section Name",
        "Metric Name", "Metric Unit", "Metric Value")
COUNTED = [(0, "im2col", "dram__bytes.sum", "2,000,000"), (0, "im2col", "launch__registers_per_thread", "40"),
           (1, "void gemm<float>(int)", "dram__bytes.sum", "5,000,000"), (2, "im2col", "dram__bytes.sum", "1,500,000"),
           (2, "im2col", "lts__t_sectors.sum", "1,000,000"), (2, "im2col", "launch__registers_per_thread", "40")]


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """ncu and compute-sanitizer, as programs that tell what they would."""
    (tmp_path / "bin").mkdir()
    for name in ("ncu", "compute-sanitizer"):
        (tmp_path / "bin" / name).write_text(TOOL)
        (tmp_path / "bin" / name).chmod(0o755)
    rows = [HEAD, *((number, 7, "python", "127.0.0.1", kernel, 1, 7, "(128, 1, 1)", "(64, 1, 1)", 0, "9.0", "Command line profiler metrics", metric, "", value)
                    for number, kernel, metric, value in COUNTED)]
    monkeypatch.setenv("COUNTED", "==PROF== Connected to process 7\n" + "\n".join(",".join(f'"{cell}"' for cell in row) for row in rows) + "\n")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")


def quarter(out, *more):
    return subprocess.run([sys.executable, ROOT / "benchmarks" / "on_gpu.py", "--quick", "--out", out, *more], capture_output=True, text=True)


def rows_of(page, title):
    """{first cells of a table of the report: all its cells}"""
    part = page.split(f"\n## {title}")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in part.splitlines() if line.startswith("| ")]
    return {tuple(row[:2]): row for row in rows[1:]}


def test_over_a_stand_in(gpu_in_processes, tools, tmp_path):
    done = quarter(tmp_path / "out", "--stages", "probe", "timeline-half", "comparison-half", "memcheck", "counters")
    page, stages = (tmp_path / "out" / "report.md").read_text(), ("probe", "timeline-half", "comparison-half", "memcheck", "counters")
    told = rows_of(page, "Stages")
    assert done.stdout.endswith(page + "\n") and page.startswith("# minialex on stand-in\n") and "- CuPy: stand-in\n" in page
    ends = {cells[0]: cells[1] for cells in told.values()}
    assert ends == dict(zip(stages, ("passed", "passed", "skipped", "passed", "passed"))) and done.returncode == 0, page
    assert told["comparison-half", "skipped"][3].startswith(("this PyTorch has no CUDA", "PyTorch is not installed"))
    assert told["memcheck", "passed"][3] == "========= ERROR SUMMARY: 0 errors"
    assert "would have run minialex.selftest, pool 1" in (tmp_path / "out" / "memcheck.log").read_text()
    seen = {cells[0]: cells[2] for cells in rows_of(page, "What the predictions rest on, taken for H100").values()}
    assert seen["copy on the device"] == "3,350" and seen["from a load to the next that needs it"] == "600"
    assert "Nothing is predicted for stand-in: H100 stands in for it." in page and "graph of launches" in page and "Not measured" not in page
    step, = rows_of(page, "A training step, predicted for H100 / seen").values()
    found = json.loads((tmp_path / "out" / "timeline-half.json").read_text())
    assert step[0] == "half" and int(step[2]) == len(found["ms"]) and float(step[4]) == pytest.approx(sum(found["ms"]), abs=0.006)
    own = rows_of(page, "half, batch 4: what takes over 2 % of the step")
    *large, others, all_ = own.values()
    seen = [float(cells[4]) for cells in large]
    assert seen == sorted(seen, reverse=True) and min(seen) >= 0.019 * sum(found["ms"]) and others[0] == "all others" and all_[0] == "all"
    assert float(all_[4]) == pytest.approx(sum(seen) + float(others[4]), abs=0.01) and float(all_[3]) == pytest.approx(float(step[3]), abs=0.006)
    for place, kernel, count, foreseen, ms, ratio, _ in large:
        assert int(count) == sum(at == (place, kernel) for at in zip(found["places"], found["kernels"]))
        assert float(ratio) == pytest.approx(float(ms) / float(foreseen), rel=0.05)      # each launch has its prediction
    idle = re.search(r"\nPredicted, not launched and not counted above: [\d.]+ ms in (.*)\.\n", page)      # of 128 images the sums have more slices
    assert not idle or {each.split()[-1] for each in idle[1].split(", ")} <= {"add_parts", "gemm"}, idle
    counted = rows_of(page, "What ncu counted in a step of half")
    assert counted == {("", "gemm"): ["", "gemm", "1", "5", "0", "0", "0"], ("", "im2col"): ["", "im2col", "2", "3.5", "32", "0", "40"]}


def test_the_comparison_is_told(on_gpu, tmp_path):
    passes = {"equal": {"auto": {"logits": 1e-6}}, "product_gflops": 9.0, "layers": [],
              "train": {"ours": 5000.4, "torch": 2500.0, "best": "channels-last", "ratio": 2.004},
              "infer": {"ours": 9.0, "torch": 10.0, "best": "contiguous", "ratio": 0.9}}
    (tmp_path / "comparison-owt.json").write_text(json.dumps({"nets": {"owt": {"batches": {"128": passes}}}}))
    assert list(rows_of("\n" + "\n".join(on_gpu.comparison(tmp_path)), "Beside PyTorch, images/s").values()) == [
        ["owt, train", "128", "5,000", "2,500", "channels-last", "2.00"], ["owt, infer", "128", "9", "10", "contiguous", "0.90"]]


def test_counters_have_the_places_of_the_step(on_gpu, tools, tmp_path):
    """Where the kernels that ncu saw are those of the step, in its order; products are in between, as they come."""
    (tmp_path / "counters.csv").write_text(os.environ["COUNTED"])
    (tmp_path / "counted.json").write_text(json.dumps({"places": ["conv1 forward", "conv1 forward", "conv2 forward"], "kernels": ["im2col", "gemm", "im2col"]}))
    assert list(rows_of("\n" + "\n".join(on_gpu.counters(tmp_path)), "What ncu counted in a step of half").values()) == [
        ["", "gemm", "1", "5", "0", "0", "0"], ["conv1 forward", "im2col", "1", "2", "0", "0", "40"], ["conv2 forward", "im2col", "1", "1.5", "32", "0", "40"]]


@pytest.mark.slow
def test_all_stages_over_a_stand_in(gpu_in_processes, tmp_path, monkeypatch):
    """With a kernel that takes its process down, and without the CUDA toolkit."""
    monkeypatch.setenv("STAND_IN_FAULT", "nothing:death")
    done = quarter(tmp_path / "out")
    page = (tmp_path / "out" / "report.md").read_text()
    ends = {cells[0]: (cells[1], cells[3]) for cells in rows_of(page, "Stages").values()}
    assert done.returncode == 1 and ends["probe"][0] == "SIGSEGV" and "\n| from a load to the next that needs it | " in page
    assert ends["selftest"][0] == "passed" and re.match(r"selftest passed: \d+ checks on cuda", ends["selftest"][1])
    assert ends["tests"][0] == "passed" and re.search(r" \d+ passed", ends["tests"][1]) and ends["training"][0] == "passed"
    assert ends["graph-half"][0] == ends["tf32-half"][0] == "passed"
    step = rows_of(page, "A training step, predicted for H100 / seen")["half", "forward: none; backward: none"]
    for place, kind in ((7, "graph"), (8, "tf32")):
        assert float(step[place]) == pytest.approx(json.loads((tmp_path / "out" / f"{kind}-half.json").read_text())["step_ms"], abs=0.006)
    assert [ends[f"timeline-{net}"][0] for net in ("paper", "owt", "half")] == ["passed"] * 3 and "\n## paper, batch 4: " in page
    for name in ("memcheck", "racecheck", "counters"):
        assert ends[name][0] == "skipped" and "(it comes with the CUDA toolkit)" in ends[name][1]


def test_a_stage_that_crashes_hangs_or_no_longer_fits_ends_no_other(on_gpu, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(on_gpu, "GRACE", 0.2)
    shell = {"crashes": "echo working; kill -SEGV $$", "hangs": "trap '' INT; echo begun; sleep 60", "leaves": "sleep 60 & echo $! >$0; echo ended",
             "is gone": "", "fits not": "exit 3", "lacks something": "exit 3", "refuses": "echo error: no >&2; exit 2",
             "works": "echo one; echo two; echo done: all; echo bye"}
    todo = {name: on_gpu.Stage(name, ["sh", "-c", text, tmp_path / "pid"], 0, 60) for name, text in shell.items()}
    todo["hangs"].limit, todo["is gone"].command, todo["fits not"].least = 1, ["/no/such/program"], 1000
    todo["lacks something"].skip, todo["works"].told = "no tool", "^done: "
    done = {stage["stage"]: (stage["exit"], stage["told"]) for stage in on_gpu.run_all(todo.values(), tmp_path, 900)}
    assert re.fullmatch(r"\d+ s were left, and it takes at least 1000", done["fits not"][1])
    assert done == {"crashes": ("SIGSEGV", "working"), "hangs": ("ended after 1 s", "begun"), "leaves": ("passed", "ended"),
                    "is gone": ("not begun", "/no/such/program: No such file or directory"), "fits not": ("skipped", done["fits not"][1]),
                    "lacks something": ("skipped", "no tool"),
                    "refuses": ("exit 2", "error: no"), "works": ("passed", "done: all")}
    assert [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()] == list(shell)
    assert (tmp_path / "works.log").read_text() == "one\ntwo\ndone: all\nbye\n" and len(rows_of((tmp_path / "report.md").read_text(), "Stages")) == len(shell)
    child = Path("/proc", (tmp_path / "pid").read_text().strip(), "stat")      # what a stage has started ends with it
    assert not child.exists() or child.read_text().split()[2] == "Z"


def test_predicted_is_what_was_run(on_gpu):
    """A layer whose backward pass alone takes Winograd's algorithm has im2col's times forward and Winograd's backward."""
    page = json.loads((ROOT / "docs" / "kernels.json").read_text())["half"]
    layers = [f"conv{i}" for i in range(1, 6)]
    for conv, chips in page.items():
        alike = on_gpu.predicted(page, "A100", {layer: (conv, conv) for layer in layers})
        assert alike == {at: ms for at, ms in chips["A100"].items() if not at.startswith("input upload")}
    mixed = on_gpu.predicted(page, "H100", {"conv2": ("im2col", "winograd")})
    assert {"conv2 forward im2col", "conv2 backward winograd_input", "conv3 backward col2im"} < mixed.keys() and "conv2 backward col2im" not in mixed
    assert on_gpu.chip_of(Path("/nowhere"), {"half": page}) == ("H100", "Nothing is predicted for the card: H100 stands in for it.")


def test_cupy_has_what_is_asked_of_it():
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed, so that names of it are not looked up (pip install cupy-cuda13x)")
    found = set()
    for script in ("gpu_probe.py", "gpu_timeline.py"):
        for node in ast.walk(ast.parse((ROOT / "benchmarks" / script).read_text())):
            if isinstance(node, ast.Attribute) and (chain := re.fullmatch(r"(?:(?:probe|device|self)\.)?cupy\.([\w.]+)", ast.unparse(node))):
                found.add(chain[1])
    assert {"cuda.Event", "cuda.runtime.profilerStart"} <= found
    for name in found:
        operator.attrgetter(name)(cupy)


def test_what_it_refuses(gpu_in_processes, tmp_path, monkeypatch):
    done = quarter(tmp_path, "--stages", "probe", "compare")
    assert done.returncode == 2 and done.stderr.startswith("error: --stages compare: there is probe, selftest, timeline-paper, ")
    monkeypatch.delenv("PYTHONPATH")
    if cuda.why_not():
        done = quarter(tmp_path)
        assert done.returncode == 2 and done.stderr == f"error: no GPU can be used here: {cuda.why_not()}\n"
