"""Philox 4x32-10 (Salmon et al., SC 2011): random numbers that are a function of a key and a counter.

No state is carried along, so what is drawn for a picture or an element does not depend on the batch size, on the
number of threads, or on what was drawn before. kernels/random.cuh computes the same words.
"""

import numpy as np

ROUNDS = 10
WORD = np.uint64(0xFFFFFFFF)
HIGH = np.uint64(32)
MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
WEYL = 0x9E3779B9, 0xBB67AE85


def philox(key, c0, c1=0, c2=0, c3=0):
    """The four uint32 words at counter (c0, c1, c2, c3), shape (..., 4); key is 64-bit, counters broadcast."""
    if not 0 <= key < 1 << 64:
        raise ValueError(f"a Philox key is a 64-bit unsigned integer, not {key}")
    c0, c1, c2, c3 = np.broadcast_arrays(*(_counter(word) for word in (c0, c1, c2, c3)))
    k0, k1 = key & 0xFFFFFFFF, key >> 32
    for _ in range(ROUNDS):
        a, b = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]  # 32 x 32 bits fit in 64
        c0, c1, c2, c3 = b >> HIGH ^ c1 ^ np.uint64(k0), b & WORD, a >> HIGH ^ c3 ^ np.uint64(k1), a & WORD
        k0, k1 = k0 + WEYL[0] & 0xFFFFFFFF, k1 + WEYL[1] & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=-1).astype(np.uint32)


def below(words, n):
    """Words made into integers 0 .. n - 1, n one number or one for each word; integer arithmetic, so that every device draws the same."""
    return (words.astype(np.uint64) * np.uint64(n) >> HIGH).astype(np.int64)


def _counter(word):
    word = np.asarray(word)
    if word.size and not (0 <= word.min() and word.max() <= 0xFFFFFFFF):
        raise ValueError("a Philox counter is four unsigned 32-bit words")
    return word.astype(np.uint64)
