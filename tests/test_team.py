"""Several ranks: the same bits on any number of them, resumed on another number, what goes wrong told once, and the two towers."""

import json
import os
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from runs import arguments, assert_all_can_be_read, assert_same_run, begun, ended, load, no_mpi, refused, told_by_report

from minialex import describe, nets, team, train
from minialex.data.folder import open_data
from minialex.data.loader import Loader
from minialex.device.reference import Reference
from minialex.errors import UserError
from minialex.run import page
from minialex.towers import tower_of

HERE = Path(__file__).resolve().parent
needs_mpi = pytest.mark.skipif(no_mpi() is not None, reason=f"no MPI here: {no_mpi()} (pip install 'minialex[mpi]'), so nothing is trained in several ranks")
PARTS = "--parts", "4", "--batch", "9", "--threads", "1"      # 37 images, so that the last batch has one, and three parts of it none


# ---- One process ----

@pytest.mark.parametrize("parts", range(1, 14))
def test_ranks_send_what_makes_the_same_tree(parts):
    """Blocks of any number of ranks that divides the parts are added up in the same pairs."""
    numbers, device, results = np.random.default_rng(parts).standard_normal((parts, 3)).astype(np.float32), Reference(np.float32), set()
    for ranks in (n for n in range(1, parts + 1) if parts % n == 0):
        total = team.PairwiseSum(device)
        for rank in range(ranks):
            own = team.PairwiseSum(device)
            for part in range(rank * parts // ranks, (rank + 1) * parts // ranks):
                own.add(part, 1, numbers[part].copy())
            assert [block[:2] for block in own.blocks] == team.blocks_of(range(rank * parts // ranks, (rank + 1) * parts // ranks))
            for block in own.blocks:
                total.add(*block)
        results.add(total.total().tobytes())
    assert len(results) == 1
    np.testing.assert_allclose(np.frombuffer(results.pop(), np.float32), numbers.sum(axis=0), rtol=1e-5, atol=1e-5)


def test_parts_of_a_batch_come_one_after_another_and_an_empty_one_wakes_who_waits(pictures):
    train_set, _ = open_data(pictures, warn=lambda text: None)
    whole = list(Loader(train_set, 40, 9, warn=lambda text: None).epoch(1))
    edges = [0, 2, 4, 6, 9]
    for own in range(4), range(2, 4), range(3, 4):      # the last batch has an image in its first part alone, which nobody reads where it is not wanted
        parts = list(Loader(train_set, 40, 9, warn=lambda text: None, edges=edges, own=own).epoch(1))
        assert len(parts) == 5 * len(own)
        for number, batch in enumerate(whole):
            mine = np.concatenate([part.index for part in parts[number * len(own):(number + 1) * len(own)]])
            order = train_set and Loader(train_set, 40, 9).order(1)[number * 9:number * 9 + 9][edges[own.start]:edges[own.stop]]
            np.testing.assert_array_equal(mine, [place for place in order if place in batch.index])
    assert len(parts[-1]) == 0 and parts[-1].images.shape == (0, 40, 40, 3)


@pytest.fixture(scope="module")
def whole(pictures, tmp_path_factory):
    """A run in four parts, of one process."""
    out = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(page, "write", told_by_report)
        assert train.main(arguments(pictures, out, *PARTS)) == 0
    return out


def test_parts_are_the_batch_but_for_rounding(own_pictures, tmp_path, plain_report):
    """Dropout and augmentation are those of the whole batch, and so is the mean that the loss is, also of a last batch that is not full."""
    (own_pictures / "train/red/damaged.jpg").unlink()
    runs = [tmp_path / parts for parts in ("1", "3")]
    for out in runs:
        assert train.main(arguments(own_pictures, out, "--batch", "10", "--threads", "1", "--epochs", "1", "--parts", out.name)) == 0
    ours, theirs = (json.loads((out / "metrics.jsonl").read_text()) for out in runs)
    assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-5) and ours["val_loss"] == pytest.approx(theirs["val_loss"], rel=1e-4)
    a, b = (load(out / "last.safetensors")[0] for out in runs)
    assert all(np.abs(a[name] - b[name]).max() < 1e-4 * np.abs(b[name]).max() + 1e-7 for name in b)
    assert [json.loads((out / "config.json").read_text())["options"]["parts"] for out in runs] == [1, 3]


@pytest.mark.parametrize("given, words", [
    (["--parts", "9"], "--parts 9: a batch of 8 has no image for each of them"), (["--towers", "2"], "--towers 2: it takes 2 ranks, a tower each, and there is 1: give --ranks 2"),
    (["--towers", "3"], "--towers 3: expected 2"), (["--patience", "nan"], "--patience nan: expected a number")])
def test_mistakes_of_one_process(pictures, tmp_path, capsys, given, words):
    assert words in refused(capsys, train.main, *arguments(pictures, tmp_path / "run", *given)) and not (tmp_path / "run").exists()


def test_ranks_without_mpi_are_told_what_to_install(monkeypatch):
    monkeypatch.setenv("PMI_SIZE", "2"), monkeypatch.setenv("PMI_RANK", "0"), monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(UserError, match=r"^2 processes were started to train together, for which mpi4py is missing .*pip install 'minialex\[mpi\]'$"):
        team.opened()


def test_what_there_is_to_compile_is_compiled_before_mpi_is_opened(monkeypatch):
    """Since then no other process should be forked."""
    order = []
    monkeypatch.setattr(train, "world", lambda: (0, 2))
    monkeypatch.setattr(train, "open_device", lambda *asked, **more: order.append("compile"))
    monkeypatch.setattr(train, "opened", lambda patience: order.append("open") or sys.exit(3))
    with pytest.raises(SystemExit):
        train.main(["--device", "cpu"])
    assert order == ["compile", "open"]


# ---- Several ----

# Trains, and does something at some step in some rank; without drawing reports, which takes longer than all else here.
AT = f"import sys\nsys.path.append({str(HERE)!r})" + """
import os, signal
from pathlib import Path
from runs import told_by_report
from minialex import train
from minialex.command import run_command
from minialex.errors import UserError
from minialex.run import page
from minialex.run.trainer import Trainer
at, rank, what, *sys.argv[1:] = sys.argv[1:]
Path(os.environ["PIDS"], "pid-" + os.environ["PMI_RANK"]).write_text(str(os.getpid())) if "PIDS" in os.environ else None
page.write, step = told_by_report, Trainer.take

def take(run, parts, count):
    step(run, parts, count)
    if (run.state["step"], run.team.rank) == (int(at), int(rank)):
        exec(what)
Trainer.take = take
run_command(train.main)
"""


def trained(ranks, *given, at=0, rank=0, what="", **more):
    return begun(ranks, "-c", AT, at, rank, what, *given, **more)


def until(process, words):
    """Reads a process' output up to a line that begins with these words."""
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith(words):
            return
    raise AssertionError("".join(lines) + process.stderr.read())


TERM = "os.kill(os.getpid(), signal.SIGTERM)"


@needs_mpi
def test_two_ranks_have_the_bits_of_one_and_a_run_goes_on_with_another_number(pictures, whole, tmp_path, plain_report):
    """A signal that one rank alone has seen saves; one process goes on, to the last checkpoint, the best one and the metrics of a run that it made alone."""
    out = tmp_path / "run"
    code, told, error = ended(trained(2, *arguments(pictures, out, *PARTS), at=6, rank=1, what=TERM))
    assert code == 143 and f"stopped  at step 6, saved; continue with: python -m minialex.train --resume {out}" in told and not error, (code, told, error)
    assert "2 ranks, 2 of them on this machine, have 2 of the 4 parts of each batch each" in told and told.count("damaged.jpg") == 1
    assert (out / "told.txt").read_text() == (whole / "told.txt").read_text().splitlines(keepends=True)[0]
    assert train.main(["--resume", str(out)]) == 0
    assert_same_run(out, whole)


@needs_mpi
@pytest.mark.slow
@pytest.mark.parametrize("at, more", [(6, ()), (4, ("--parts", "12", "--batch", "12", "--clip-norm", "0.5", "--average", "0.9", "--drop-last", "--class-weights", "balanced"))], ids=["usual", "more"])
def test_any_number_of_ranks_has_the_same_bits(pictures, tmp_path, plain_report, at, more):
    """And a last batch with empty parts, and kills on two ranks that go on in four and in one."""
    alone = tmp_path / "alone"
    assert train.main(arguments(pictures, alone, *PARTS, *more)) == 0
    for ranks in 1, 2, 4:
        code, _, error = ended(trained(ranks, *arguments(pictures, tmp_path / f"{ranks}", *PARTS, *more)))
        assert code == 0 and not error
        assert_same_run(tmp_path / f"{ranks}", alone)
    out = tmp_path / "killed"
    assert ended(trained(2, *arguments(pictures, out, *PARTS, *more), at=at, rank=1, what="os.kill(os.getpid(), signal.SIGKILL)"))[0] != 0
    assert_all_can_be_read(out)
    assert ended(trained(4, "--resume", out, at=at + 1, rank=3, what=TERM))[0] == 143
    assert train.main(["--resume", str(out)]) == 0
    assert_same_run(out, alone)


@needs_mpi
def test_signals_to_mpiexec_save_and_a_rank_that_is_killed_or_stops_ends_all(pictures, tmp_path):
    out, env = tmp_path / "run", os.environ | {"PIDS": str(tmp_path)}
    process = trained(2, *arguments(pictures, out, *PARTS, "--epochs", "400"), env=env)
    until(process, "epoch   1")
    process.send_signal(signal.SIGTERM)
    code, told, error = ended(process)
    assert code == 143 and "saved; continue with" in told, (code, told, error)
    before = load(out / "last.safetensors")[2]["step"]
    for number, words, spoken in (signal.SIGKILL, None, ""), (signal.SIGSTOP, "has waited 1 s for the others", "rank 0 of 2"):
        process = trained(2, "--resume", out, "--patience", "1", env=env)
        until(process, "run ")
        os.kill(int((tmp_path / "pid-1").read_text()), number)
        began = time.monotonic()
        code, told, error = ended(process)
        assert code and time.monotonic() - began < 60
        assert words is None or code == 2 and words in error and spoken in error and error.count("\n") == 1, error
        assert load(out / "last.safetensors")[2]["step"] >= before


@needs_mpi
@pytest.mark.parametrize("ranks, given, words", [
    (2, ["--lr", "nan"], "error: --lr nan: expected a number"),
    (2, ["--data", "/nowhere"], "error: there is no folder /nowhere"),
    (3, ["--resume", "RUN"], "error: --parts 4: 3 ranks cannot have the same number of them")])
def test_a_mistake_is_told_once(whole, tmp_path, ranks, given, words):
    code, told, error = ended(begun(ranks, "-m", "minialex.train", *[whole if word == "RUN" else word for word in given], cwd=tmp_path))
    assert code == 2 and error.startswith(words) and error.count("\n") == 1, (code, told, error)


@needs_mpi
@pytest.mark.parametrize("what, words", [
    ("raise UserError('a disk of this rank is full')", "error: a disk of this rank is full"),
    ("run.network.parameters['fc8.bias'][0] += 1", "error: the weights of rank 1 are no longer those of rank 0, as they must be at step 5")])
def test_what_goes_wrong_in_one_rank_ends_all(pictures, tmp_path, what, words):
    given = [word for word in arguments(pictures, "", *PARTS) if word not in ("--out", "")]      # into a folder that is named by a clock
    code, told, error = ended(trained(2, *given, at=3, rank=1, what=what, cwd=tmp_path))
    assert code == 2 and error.startswith(words) and error.count("\n") == 1, (code, told, error)
    assert len(list((tmp_path / "runs").iterdir())) == 1


@needs_mpi
@pytest.mark.parametrize("rank", [0, 1])
def test_the_mpiexec_of_another_mpi_is_seen(pictures, tmp_path, rank):
    """Each of its processes would be alone, and train into the same folder."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PMI")} | {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": str(rank)}
    done = subprocess.run([sys.executable, "-m", "minialex.train", *arguments(pictures, tmp_path / "run")], env=env, capture_output=True, text=True)
    assert done.returncode == 2 and not (tmp_path / "run").exists()
    assert (done.stderr.startswith("error: mpiexec has started 2 processes, and each of them sees 1") if rank == 0 else not done.stderr), done.stderr


def test_ranks_replaces_the_process_by_mpiexec(monkeypatch, pictures, tmp_path, capsys):
    called = []
    monkeypatch.setattr(os, "execv", lambda *command: called.append(command) or sys.exit(7))
    monkeypatch.setattr(team, "mpiexec", lambda: "/somewhere/mpiexec")
    given = arguments(pictures, tmp_path / "run", "--ranks", "2")
    with pytest.raises(SystemExit):
        train.main(given)
    assert called == [("/somewhere/mpiexec", ["/somewhere/mpiexec", "-n", "2", sys.executable, "-m", "minialex.train", *given])]
    assert "--ranks 2: mpiexec has started 1 of them" in refused(capsys, train.main, *given)      # it would do so again and again
    monkeypatch.delenv(team.LAUNCHED), monkeypatch.setattr(team, "mpiexec", lambda: None)
    assert "--ranks 2: there is no mpiexec" in refused(capsys, train.main, *given)


# ---- What lies on GPUs ----

SUMMED = """
import sys, zlib
import numpy as np
from minialex.device import open_device
from minialex.team import PairwiseSum, opened
team = opened()
team.divide(6)
device = open_device(f"cuda:{team.local[0] % int(sys.argv[1])}")[0]
by, numbers = team.take(device), np.random.default_rng(0).standard_normal((6, 1000)).astype(np.float32)
arrays = {name: device.zeros(shape, kind) for name, (shape, kind) in team.arrays(1000, np.float32).items()}
own, total = PairwiseSum(device), device.empty((1000,))
for part in team.own:
    device.upload(total, numbers[part])
    own.add(part, 1, total)
    if part != team.own[-1]:
        kept = arrays["gradient parts"][len(own.blocks) - 1]
        device.upload(kept, device.to_numpy(total))
        own.blocks[-1] = *own.blocks[-1][:2], kept
team.add(device, own.blocks, arrays["workspace pieces"])
if team.rank == 0:
    print(by.split()[0], zlib.crc32(device.to_numpy(total)))
team.close()
"""


@needs_mpi
def test_nccl_moves_what_lies_on_gpus_and_the_host_where_two_ranks_share_one(gpu_in_processes, monkeypatch):
    found = {}
    for gpus in "1", "2":
        code, told, error = ended(begun(2, "-c", SUMMED, gpus, env=os.environ | {"STAND_IN_GPUS": gpus}))
        assert code == 0, error
        by, found[by] = told.split()
    numbers, total = np.random.default_rng(0).standard_normal((6, 1000)).astype(np.float32), team.PairwiseSum(Reference(np.float32))
    for part in range(6):
        total.add(part, 1, numbers[part])
    assert found == {"NCCL": (crc := str(zlib.crc32(total.total()))), "MPICH": crc}


@needs_mpi
@pytest.mark.slow
def test_two_ranks_train_on_two_gpus(gpu_in_processes, pictures):
    """A step over NCCL, over the host of a GPU that both share, and one of a process alone come to the same loss."""
    given, losses = ["--data", pictures, "--size", "72", "--batch", "4", "--parts", "2", "--device", "cuda", "--threads", "1", "--conv", "im2col", "--dry-run"], []
    for ranks, gpus, by in (2, "2", "bytes go by NCCL"), (2, "1", "bytes go by MPICH"), (1, "1", "in 2 parts, one after another"):
        code, told, error = ended(begun(ranks, "-m", "minialex.train", *given, env=os.environ | {"STAND_IN_GPUS": gpus}))
        assert code == 0 and by in told, told + error
        losses.append(told.split(" loss ")[1].split(";")[0])
    assert len(set(losses)) == 1 and float(losses[0]) > 0


# ---- The two towers ----

TOWERS = """
import sys
import numpy as np
from minialex import nets
from minialex.device.reference import Reference
from minialex.device import open_device
from minialex.network import Network
from minialex.run import checkpoint
from minialex.team import opened
team = opened()
team.divide(1, 2)
net, random = nets.build(sys.argv[2], 5, 67, fewer=8), np.random.default_rng(0)      # an odd number of classes: one tower has more of the last layer
for name in sys.argv[3:]:
    device = Reference(np.float64) if name == "numpy" else open_device(f"cuda:{team.rank}" if name == "cuda" else name, 1)[0]
    team.take(device)
    towers, alone = (Network(net, device, 3, seed=3, conv="im2col", **more) for more in ({"team": team}, {}))
    images, labels = random.integers(0, 256, (3, towers.input.side, towers.input.side, 3), np.uint8), random.integers(0, 5, 3).astype(np.int32)
    worst, same = 0, True
    for step, n in (0, 3), (1, 2):
        given = images[:n], labels[:n], towers.input.draw(0, step, np.arange(n))
        for network in towers, alone:
            network.gradient(*given, step=step)
        same &= np.allclose(towers.results(n)[0], alone.results(n)[0], rtol=10 * np.finfo(device.float).eps, atol=0)      # a product of half the columns may round otherwise
        for name, array in alone.gradients.items():
            true = device.to_numpy(array)
            worst = max(worst, abs(towers.whole(towers.gradients[name]) - true).max() / abs(true).max())
        for network in towers, alone:
            network.train_step(*given, step, 0.01)
    kept = {name: towers.whole(array) for name, array in (towers.parameters | towers.state).items()}
    checkpoint.save(sys.argv[1], towers, {"step": 2})
    again, moved = (Network(net, device, 3, seed=9, conv="im2col", **more) for more in ({"team": team}, {}))      # other weights, until they are read
    for network in (again, moved)[:2 - team.rank]:
        checkpoint.restore(sys.argv[1], network)
        read = {name: network.whole(array) for name, array in (network.parameters | network.state).items()}
        moves = all(np.array_equal(kept[name], read[name]) for name in kept)
        worst = worst if moves else 1e9
    if team.rank == 0:
        print(same, worst)
team.close()
"""


@needs_mpi
@pytest.mark.parametrize("net, devices", [("paper", ["numpy", "cpu"]), pytest.param("caffenet", ["numpy"], marks=pytest.mark.slow)])
def test_two_towers_compute_what_one_device_does_and_keep_its_checkpoints(tmp_path, net, devices):
    """A gradient is the sum of two halves. Of caffenet a normalisation reads across them."""
    code, told, error = ended(begun(2, "-c", TOWERS, tmp_path / "kept.safetensors", net, *devices))
    assert code == 0, error
    for line, most in zip(told.splitlines(), (1e-14, 1e-5)[:len(devices)], strict=True):
        same, worst = line.split()
        assert float(worst) < most and same == "True", told


@needs_mpi
@pytest.mark.slow
def test_two_towers_on_two_gpus(gpu_in_processes, tmp_path):
    code, told, error = ended(begun(2, "-c", TOWERS, tmp_path / "kept.safetensors", "paper", "cuda", env=os.environ | {"STAND_IN_GPUS": "2"}))
    assert code == 0 and float(told.split()[1]) < 1e-5, told + error


@needs_mpi
@pytest.mark.slow
def test_a_run_moves_between_towers_and_one_device(pictures, tmp_path, plain_report):
    out, given = tmp_path / "run", ["--net", "paper", "--batch", "9", "--threads", "1", "--conv", "im2col"]
    code, told, error = ended(trained(2, *arguments(pictures, out, *given, "--towers", "2"), at=6, rank=0, what=TERM))
    assert code == 143 and "have a tower each" in told and not error, (code, told, error)
    assert train.main(["--resume", str(out)]) == 0
    assert train.main(arguments(pictures, tmp_path / "alone", *given)) == 0
    ours, theirs = (json.loads((run / "metrics.jsonl").read_text().splitlines()[-1]) for run in (out, tmp_path / "alone"))
    assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-3) and ours["val_loss"] == pytest.approx(theirs["val_loss"], rel=1e-3)
    a, b = (load(run / "last.safetensors")[0] for run in (out, tmp_path / "alone"))
    assert all(np.allclose(a[name], b[name], rtol=1e-2, atol=1e-4) for name in b)


def test_nets_without_towers_are_refused():
    with pytest.raises(UserError, match="half has no layer with groups"):
        tower_of(nets.build("half"), 0)


def test_towers_have_half_of_everything_and_what_they_exchange_is_told(capsys):
    assert describe.main(["paper", "--towers", "2", "--threads", "1", "--conv", "im2col"]) == 0
    told = capsys.readouterr().out
    for words in ("30,482,612 and 30,482,612 parameters", "before conv3        86,528 forward", "before fc6          18,432 forward", "before drop6         8,192 forward",
                  "before the loss      2,000 forward", "123,344 forward"):
        assert words in told, told
