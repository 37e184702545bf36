"""Memory: what is free, what is refused before it is taken, and what a batch larger than the set does not take."""

import numpy as np
import pytest
from runs import arguments, assert_same_run, refused

from minialex import nets, network, train
from minialex.limits import free_memory
from minialex.network import Network
from minialex.run import session

MEMINFO = "MemTotal: 8000 kB\nMemAvailable:  5000 kB\nSwapFree: 1000 kB\n"
V2, V1 = ("memory.max", "memory.current", ""), ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")


@pytest.mark.parametrize("groups, limits, left", [
    ("0::/\n", {}, 6000), ("0::/\n", {"": 3000}, 2100), ("0::/a/b\n", {"a": 2500, "a/b": 4000}, 1600), ("0::/a/b\n", {"a/b": "max"}, 6000),
    ("0::/../..\n", {"": 2000}, 1100), ("0::/\n", {"": 500}, 0), ("4:cpu,memory:/host/docker\n0::/\n", {"": 3000}, 2100), ("4:memory:/a\n", {"a": 2000}, 1100), ("", {}, 6000)])
def test_what_is_free_is_what_the_smallest_limit_leaves(tmp_path, groups, limits, left):
    """Of each group 1,000 kB are used, of which 100 kB are pages of files."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text(MEMINFO)
    (tmp_path / "proc/self/cgroup").write_text(groups)
    limit, used, prefix = V1 if "memory:" in groups else V2
    for group, most in limits.items():
        folder = tmp_path / "sys/fs/cgroup" / ("memory" if "memory:" in groups else "") / group
        folder.mkdir(parents=True, exist_ok=True)
        (folder / limit).write_text(f"{most if most == 'max' else most * 1024}\n")
        (folder / used).write_text(f"{1000 * 1024}\n")
        (folder / "memory.stat").write_text(f"anon 1\n{prefix}inactive_file {60 * 1024}\n{prefix}active_file {40 * 1024}\n")
    assert free_memory(str(tmp_path)) == left * 1024


def test_a_system_that_does_not_tell(tmp_path):
    assert free_memory(str(tmp_path)) is None


def test_a_run_that_takes_more_than_is_free_is_refused(pictures, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(network, "free_memory", lambda: 50 << 20)
    told = refused(capsys, train.main, *arguments(pictures, tmp_path / "run", "--conv", "im2col"))
    assert "half at --batch 8 takes 76 MB and 50 MB are free: use a smaller --batch or --workspace-mb" in told and not (tmp_path / "run").exists()


def test_little_memory_is_told_and_changes_no_bit(pictures, finished, tmp_path, capsys, monkeypatch, plain_report):
    monkeypatch.setattr(session, "free_memory", lambda: 1 << 20)
    assert train.main(arguments(pictures, tmp_path / "run")) == 0
    told = capsys.readouterr().out
    assert "warning: 1 MB are left, and checkpoints" in told and "memory   1 MB are left, too little to keep decoded pictures" in told
    assert_same_run(tmp_path / "run", finished)


@pytest.mark.parametrize("images", [3, 9])
def test_a_batch_that_the_set_cannot_fill_is_not_laid_out(images, cpu):
    """With the same results: the sums too, whose last bits depend on how many columns they have."""
    net, found = nets.build("half", 3, 67), []
    for most in None, images:
        model = Network(net, cpu, 200, most=most)
        random = np.random.default_rng(0)
        for step, n in enumerate((images, images, 2)):
            pictures = random.integers(0, 256, (n, model.input.side, model.input.side, 3), np.uint8)
            model.train_step(pictures, random.integers(0, 3, n), model.input.draw(0, 0, range(n)), step, 0.01)
        kept = {name: array.copy() for name, array in model.arrays.items() if name.split()[0] in ("parameter", "velocity")}
        found.append((model.layout.bytes("activation "), kept, model.scores(), model.arrays["output totals"].shape))
    (much, a, *scores), (little, b, *others) = found
    assert little < much / 10 and scores == others and all(np.array_equal(a[name], b[name]) for name in a)
