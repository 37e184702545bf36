"""The sum of the parts in which the weights' gradients come: those of shares, and of slices of a long sum."""

from ..device import kernel

BLOCK = 32         # as in kernels/add.cu


@kernel("add.cu")
def add_parts(rows, parts, to, count, slices, accumulate):
    """to = the sum of the slices of parts, added to `to` if accumulate"""
    total = parts.reshape(-1)[:slices * count].reshape(slices, *to.shape).sum(axis=0)
    to[...] = to + total if accumulate else total
