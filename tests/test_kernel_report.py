"""The predicted step: its bytes against traced execution, every kernel's sectors at AlexNet's shapes, and the page in docs/."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from simt.device import why_not
from test_network import mini

from minialex.network import Network

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
import kernel_report as report  # noqa: E402

pytestmark = pytest.mark.skipif(bool(why_not()), reason=f"no thread-by-thread execution here: {why_not()}")


def test_the_bytes_that_a_launch_needs_are_those_it_touches():
    """Exactly, unless a stride leaves out pixels, padding has no column to read, or a dropped element is not looked at."""
    seen, least = set(), {"im2col": 0.85, "col2im": 0.75, "max_pool": 0.85, "max_pool_backward": 0.85, "dropout_in_place": 0.6}

    class Checked(report.Counted):
        def launch(self, kernel, rows, *arguments):
            super(report.Counted, self).launch(kernel, rows, *arguments)
            a = SimpleNamespace(rows=rows, **dict(zip((d.name for d in kernel.arguments[1:]), arguments)))
            needed, touched = report.needed(kernel.name, a), self.last.distinct_bytes_read + self.last.distinct_bytes_written
            assert least.get(kernel.name, 1) * needed <= touched <= needed, (self.place, kernel.name, needed, touched)
            seen.add(kernel.name)

    device = Checked()
    device.rows_at_most = None
    net = mini(27)
    Network(net, device, 3, side=net.size + 3, init=None).record("train", 3)
    assert seen >= {"im2col", "col2im", "max_pool", "max_pool_backward", "lrn", "lrn_backward", "bias_relu", "bias_backward", "sum_partials",
                    "add_parts", "crop", "dropout_in_place", "sgd", "cross_entropy_rows", "label_rank", "tally"}


@pytest.mark.parametrize("name", ["paper", "owt", "half"])
def test_sectors_are_well_used_wherever_bytes_move(name):
    """90 % of the distinct sectors and 85 % of those of each instruction, for what moves over 1 % of a step's bytes."""
    launches, counts = report.plan(name, 128, report.CHIPS[0]), report.trace(name)
    whole, judged = sum(launch.bytes for launch in launches), 0
    for place, kernel in counts:
        own = [launch for launch in launches if (launch.place, launch.name) == (place, kernel)]
        assert own, f"{kernel} at {place} is traced but not planned"
        if sum(launch.bytes for launch in own) > 0.01 * whole:
            judged += 1
            assert counts[place, kernel].distinct_efficiency >= 0.90, (place, kernel)
            assert counts[place, kernel].instruction_efficiency >= 0.85 or kernel == "crop", (place, kernel)
        if min(launch.warps for launch in own) < 2000:
            assert kernel in report.FEW, f"{kernel} at {place} launches few warps, and the report does not say why"
    assert judged > 8 and {(launch.place, launch.name) for launch in launches if launch.name != "gemm"} == set(counts)


def test_a_plan_has_the_products_of_a_step():
    launches = report.plan("half", 8, report.CHIPS[0])
    flop = {place: sum(launch.flop for launch in launches if launch.place == place) for place in {launch.place for launch in launches}}
    net = report.nets.build("half")
    for name, layer in net.layers.items():
        forward, times = 2 * 8 * layer.macs(net.inputs[name]), 1 if name == "conv1" else 2
        assert flop[f"{name} forward"] == forward and flop[f"{name} backward"] == times * forward
    assert sum(launch.columns > 0 for launch in launches if launch.name == "gemm") > 5
    assert not any(launch.columns for launch in launches if launch.name == "gemm" and launch.place.startswith("fc"))


def test_the_page_is_what_the_report_writes():
    page = (ROOT / "docs/kernels.md").read_text()
    for chip in report.CHIPS:
        for name in ("paper", "owt", "half"):
            launches = report.plan(name, 128, chip)
            assert f"### {name} on {chip.name}, predicted" in page and f"The host makes {len(launches)} launches" in page
            for kernel in {launch.name for launch in launches}:
                assert f"\n| {kernel} | {sum(launch.name == kernel for launch in launches)} | {sum(launch.bytes for launch in launches if launch.name == kernel) / 1e6:,.1f} |" in page
    assert (ROOT / "docs/kernels.png").stat().st_size > 10_000
