"""What all layers share: how they are written, shown, compared and refused."""

import numpy as np
import pytest

from minialex.ops.conv import Conv
from minialex.ops.dense import Dense
from minialex.ops.dropout import Dropout
from minialex.ops.lrn import LRN
from minialex.ops.pool import MaxPool
from minialex.ops.relu import ReLU


@pytest.mark.parametrize("layer, text", [
    (Conv(48, 11, 4, 0, 1, True, None, 0.0), "Conv(48, 11, stride=4)"), (Conv(48, 11, stride=4, pad=[[1, 2], [1, 2]]), "Conv(48, 11, stride=4, pad=((1, 2), (1, 2)))"),
    (Conv(8, [3, 2], groups=2, relu=False, std=1e-2, bias=1), "Conv(8, (3, 2), groups=2, relu=False, std=0.01, bias=1.0)"),
    (Dense(np.int64(4096), relu=False), "Dense(4096, relu=False)"), (MaxPool(3, 2, 1, True), "MaxPool(3, stride=2, pad=1, ceil=True)"), (MaxPool(2), "MaxPool(2)"),
    (LRN(5, 1e-4, 0.75, 2.0), "LRN()"), (LRN(3, 0.5, alpha_mode="mean"), "LRN(size=3, alpha=0.5, alpha_mode='mean')"),
    (Dropout(np.float32(0.25)), "Dropout(p=0.25)"), (ReLU(), "ReLU()")], ids=str)
def test_a_layer_is_shown_as_it_is_written(layer, text):
    assert repr(layer) == text and eval(text) == layer
    assert not {"in_place", "dense", "trained_only"} & set(vars(layer))


@pytest.mark.parametrize("made, text", [
    (lambda: Conv("48", 11), "filters: expected a whole number, got '48'"), (lambda: Conv(48, "11"), "size: expected an int or (height, width), got '11'"),
    (lambda: Conv(48, 11, pad={}), "pad: expected an int, (height, width) or ((top, bottom), (left, right)), got {}"),
    (lambda: Conv(48, 11, groups=5), "groups: 48 filters cannot be cut into 5 groups"), (lambda: Conv(4, 3, std="he"), "std: expected a number or None, got 'he'"),
    (lambda: Dense(10.0), "features: expected a whole number, got 10.0"), (lambda: Dense(True), "features: expected a whole number, got True"),
    (lambda: Dense(10, relu=1), "relu: expected True or False, got 1"), (lambda: Dense(10, bias=None), "bias: expected a number, got None"),
    (lambda: Dropout("half"), "p: expected a number, got 'half'"), (lambda: MaxPool(3, 2, ceil="yes"), "ceil: expected True or False, got 'yes'"),
    (lambda: MaxPool(16), "size: the winner of a window is kept in one byte"), (lambda: LRN(5, "mean"), "alpha: expected a number, got 'mean'")])
def test_a_mistake_in_a_layer_names_the_field(made, text):
    with pytest.raises(ValueError) as error:
        made()
    assert str(error.value).startswith(text)
