"""The learning rate of each step, for each shape of schedule."""

import pytest

from minialex.errors import UserError
from minialex.optim import Schedule


def rates(text, epochs=4, per_epoch=10, lr=1.0):
    schedule = Schedule(text, lr, per_epoch, epochs)
    return [schedule(step) for step in range(epochs * per_epoch)]


def test_constant_and_cosine():
    assert rates("constant") == [1.0] * 40
    cosine = rates("cosine", lr=2.0)
    assert cosine[0] == 2.0 and cosine[20] == pytest.approx(1.0) and 0 < cosine[-1] < 0.01 and cosine == sorted(cosine, reverse=True)


def test_warm_up_rises_evenly_and_the_shape_follows():
    warm = rates("cosine,warmup:1")
    assert warm[:10] == pytest.approx([(i + 1) / 11 for i in range(10)]) and warm[10] == 1.0 and warm[25] == pytest.approx(0.5)
    assert rates("step:2,warmup:0.5")[:6] == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1])


@pytest.mark.parametrize("text, drops", [("step:1", [0, 1, 2, 3]), ("step:3", [0, 0, 0, 1]), ("multistep:1:3", [0, 1, 1, 2]), ("multistep:2", [0, 0, 1, 1])])
def test_steps(text, drops):
    assert rates(text) == pytest.approx([0.1**drop for drop in drops for _ in range(10)])
    assert rates(f"{text},factor:0.5") == pytest.approx([0.5**drop for drop in drops for _ in range(10)])


def test_multistep_between_epochs():
    assert rates("multistep:0.55")[5:7] == pytest.approx([1.0, 0.1])
    assert rates("multistep:0.07", per_epoch=100)[6:8] == pytest.approx([1.0, 0.1])      # 0.07 * 100 is a little more than 7
    assert rates("multistep:1:2:3:4:5:6:7:8:9:10:11", epochs=12)[-1] == pytest.approx(1e-11)
    assert rates("multistep:1:2,warmup:1.5")[14:21] == pytest.approx([15 / 16] + [0.1] * 5 + [0.01])      # epochs are counted from the start of the run


def test_plateau_lowers_the_rate_when_validation_stops_rising():
    schedule = Schedule("plateau:2,factor:0.5", 1.0, 10, 100)
    seen, metrics = [], []
    for epoch, top1 in enumerate([0.1, 0.2, 0.2, 0.3, 0.3, 0.25, 0.29, 0.3, 0.31, 0.1, 0.1]):
        metrics.append({"val_top1": top1})
        seen.append(schedule(epoch * 10, metrics))
    #         0.1  0.2  0.2  0.3  0.3  0.25 0.29 0.3  0.31 0.1   0.1
    assert seen == [1, 1, 1, 1, 1, 0.5, 0.5, 0.25, 0.25, 0.25, 0.125]
    assert schedule(0) == 1.0      # before the first epoch ends
    five = Schedule("plateau", 1.0, 10, 100)
    assert [five(0, [{"val_top1": 0.5}] * n) for n in (5, 6, 11)] == pytest.approx([1, 0.1, 0.01])


def test_plateau_leaves_out_the_epochs_of_the_warm_up():
    schedule = Schedule("plateau:2,warmup:2.5", 1.0, 10, 100)
    flat = [{"val_top1": 0.1}] * 9
    assert [schedule(10 * n, flat[:n]) for n in (3, 4, 5, 6, 7, 8)] == pytest.approx([1, 1, 1, 0.1, 0.1, 0.01])      # the fourth epoch is the first that counts
    assert schedule(24, flat) == pytest.approx(25 / 26)


def test_a_resumed_run_has_the_rates_of_one_that_was_not_interrupted():
    metrics = [{"val_top1": top1} for top1 in (0.1, 0.3, 0.2, 0.3, 0.4, 0.4, 0.35, 0.3)]
    for text in ("plateau:2", "plateau:1,warmup:1,factor:0.5", "step:2", "multistep:1.5:3", "cosine,warmup:1"):
        whole = Schedule(text, 0.1, 10, 8)
        straight = [whole(step, metrics[:step // 10]) for step in range(80)]
        for stop in (5, 30, 47, 79):
            resumed = Schedule(text, 0.1, 10, 8)
            assert [resumed(step, metrics[:step // 10]) for step in range(stop, 80)] == straight[stop:]
        assert len(set(straight)) > 1


@pytest.mark.parametrize("text", ["sine", "step", "step:0", "step:-1", "step:x", "step:1:2", "multistep", "cosine:3", "constant,warmup:-1", "constant,warm:1",
                                  "plateau:1:2", "step:2,factor:1", "step:2,factor:0", "cosine,warmup", "", "step:nan", "multistep:inf",
                                  "step:", "plateau:0", "constant,factor:0.5", "step:2,warmup:1,warmup:2", "cosine,warmup:inf", "cosine,warmup:nan"])
def test_a_text_that_makes_no_sense_is_refused(text):
    with pytest.raises(UserError, match="--schedule .*: expected constant, cosine, step:EPOCHS"):
        Schedule(text, 1.0, 10, 4)
