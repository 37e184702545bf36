"""Dropout: the mask is a function of (seed, step, layer, element of the global batch), the same forward and backward."""

import numpy as np
import pytest

from minialex.functional import dropout, dropout_backward
from minialex.gradcheck import check_op, to_host
from minialex.ops.dropout import Dropout
from minialex.ops.layer import Site
from minialex.philox import philox


@pytest.mark.parametrize("shape", [(1,), (1, 1), (3, 31), (2, 3, 2, 33), (255,), (256,), (257,), (5, 257), (0, 3)], ids=str)
@pytest.mark.parametrize("options", [{"p": 0.4, "seed": 3}, {"p": 0.0}, {"p": 0.9, "seed": 2**64 - 1, "step": 7, "layer": 5}], ids=str)
def test_three_ties(device, shape, options):
    assert check_op("dropout", {"x": shape}, options, device=device, directions=3 if np.prod(shape) > 300 else None) == {}


def kept(device, n, *, p=0.5, **options):
    return to_host(dropout(np.ones(n, np.float32), p, device=device, **options)) != 0


@pytest.mark.parametrize("seed, step, layer", [(0, 0, 0), (2**63 + 5, 12, 3), (2**64 - 1, 2**32 - 1, 2**32 - 1)])
def test_the_words_are_philox(device, seed, step, layer):
    """Bit for bit: word = element % 4 at counter (element / 4, 0, layer, step), dropped if below p * 2^32."""
    x = np.random.default_rng(0).standard_normal(1031).astype(np.float32)
    words = philox(seed, np.arange(258), 0, layer, step).ravel()[:1031]
    for p in (0.2, 0.5, 0.999, int(words[17]) / 2**32):      # the last: a word equal to the threshold is kept
        expected = np.where(words < int(p * 2**32), np.float32(0), x * np.float32(1 / (1 - p)))
        np.testing.assert_array_equal(to_host(dropout(x, p, seed=seed, step=step, layer=layer, device=device)), expected)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
def test_the_rate(device, p):
    n = 200_000
    assert abs(kept(device, n, p=p, seed=9).mean() - (1 - p)) < 5 * np.sqrt(p * (1 - p) / n)


def test_what_the_mask_depends_on(device):
    base = kept(device, 4096, seed=1, step=2, layer=3)
    np.testing.assert_array_equal(base, kept(device, 4096, seed=1, step=2, layer=3))
    np.testing.assert_array_equal(base[:1000], kept(device, 1000, seed=1, step=2, layer=3))
    for other in ({"seed": 4}, {"seed": 1 + 2**32}, {"step": 3}, {"layer": 2}):
        same = (base == kept(device, 4096, **{"seed": 1, "step": 2, "layer": 3, **other})).mean()
        assert 0.45 < same < 0.55, other


def test_backward_draws_forwards_mask(device):
    x = np.ones((7, 53), np.float32)
    options = dict(p=0.3, seed=5, step=6, layer=1, device=device)
    np.testing.assert_array_equal(to_host(dropout(x, **options)), to_host(dropout_backward(x, -x, **options)))


@pytest.mark.parametrize("first", [0, 1, 5, 2**31, 2**33 + 3])
def test_the_element_is_counted_in_the_global_batch(device, first):
    """Images `first`.. of a batch get what they would get as part of the whole, past 2^32 elements, too."""
    from minialex.ops.layer import device_of
    each, n = 7, 90
    element = np.arange(first * each, (first + n) * each, dtype=object)
    words = np.array([int(philox(11, int(e) // 4 % 2**32, int(e) // 4 >> 32, 4, 8)[int(e) % 4]) for e in element])
    for place in (device, device_of("numpy")):
        site = Site(x=place.array(np.ones((n, each))), first=first, seed=11, number=4, now=place.array(np.array([8.0, 0.0]), np.float64))
        Dropout(0.5).forward(place, site)
        place.synchronize()
        np.testing.assert_array_equal(place.to_numpy(site.x).ravel() != 0, words >= 2**31)


def test_nan_is_kept_or_dropped_like_any_other(device):
    keep = kept(device, 600, seed=2)
    y = to_host(dropout(np.full(600, np.nan, np.float32), seed=2, device=device))
    assert np.isnan(y[keep]).all() and (y[~keep] == 0).all()


def test_mistakes_name_the_argument():
    x = np.zeros((2, 3), np.float32)
    for p in (1, -0.1, 1.5, np.nan):
        with pytest.raises(ValueError, match="p: expected a probability from 0 to below 1, got"):
            dropout(x, p)
    with pytest.raises(ValueError, match="seed: expected 0 to .*, got -1"):
        dropout(x, seed=-1)
    with pytest.raises(ValueError, match="layer: expected a whole number, got 0.0"):
        dropout(x, layer=0.0)
    with pytest.raises(TypeError, match="x: expected float32, got bool"):
        dropout(x > 0)
    with pytest.raises(ValueError, match="dy: expected shape"):
        dropout_backward(x[:1], x)
