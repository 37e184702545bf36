"""A half of the channels of each pixel, or of the features of each image: taken out, put in its place, or added there."""

from ..device import Array, Device, kernel


@kernel("columns.cu")
def columns(rows, source, to, from_width, from_at, to_width, to_at, count, accumulate):
    """to (rows, to_width)[:, to_at:to_at + count] = from (rows, from_width)[:, from_at:from_at + count], added to it if accumulate"""
    part = source.reshape(-1)[:rows * from_width].reshape(rows, from_width)[:, from_at:from_at + count]
    place = to.reshape(-1)[:rows * to_width].reshape(rows, to_width)[:, to_at:to_at + count]
    place[...] = place + part if accumulate else part


def move(device: Device, source: Array, from_at: int, to: Array, to_at: int, count: int, accumulate: bool = False) -> None:
    """Launches the columns of `source` (..., from_width) from from_at on as those of `to` (..., to_width) from to_at on."""
    device.launch(columns, source.size // source.shape[-1], source, to, source.shape[-1], from_at, to.shape[-1], to_at, count, int(accumulate))
