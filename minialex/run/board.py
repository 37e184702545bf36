"""The file of a run that TensorBoard reads: its figures after each epoch, written by the package tensorboard where it is installed."""

import struct
import time
from pathlib import Path

from ..errors import UserError

NAME = "events.out.tfevents.0.minialex"      # TensorBoard takes what has "tfevents" in its name
SCALARS = {"loss/train": "train_loss", "loss/val": "val_loss", "top1/train": "train_top1", "top1/val": "val_top1", "top5/val": "val_top5", "lr": "lr",
           "images_per_s": "images_per_s"}


def require():
    """What is needed of the package, or a UserError that it is not there."""
    try:
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer import record_writer
    except ImportError as error:
        raise UserError(f"--log tensorboard needs the package tensorboard ({error}): pip install 'minialex[tensorboard]', or take --log none") from None
    return record_writer, event_pb2.Event, summary_pb2.Summary


def write(folder, metrics):
    """Adds the epochs that the run's file lacks, and cuts off what was half written or is of later ones.

    It is written in place: TensorBoard keeps it open to see how it grows.
    """
    writer, Event, Summary = require()
    path = Path(folder) / NAME
    end, last = kept(path, metrics[-1]["epoch"] if metrics else 0)
    events = [Event(file_version="brain.Event:2")] * (not end) + [
        Event(step=m["epoch"], summary=Summary(value=[Summary.Value(tag=tag, simple_value=m[key]) for tag, key in SCALARS.items() if key in m]))
        for m in metrics if m["epoch"] > last]
    path.touch()
    with open(path, "r+b") as file:
        file.truncate(end)
        file.seek(end)
        for event in events:
            event.wall_time = time.time()
            writer.RecordWriter(file).write(event.SerializeToString())


def kept(path, most):
    """-> (bytes at the start of the file that are whole records of no later epoch, the last epoch among them)"""
    writer, Event, _ = require()
    data, end, last = path.read_bytes() if path.exists() else b"", 0, 0
    while len(data) - end >= 16:      # length, its checksum, the record, its checksum
        [size] = struct.unpack_from("<Q", data, end)
        record, check = data[end + 12:end + 12 + size], data[end + 12 + size:end + 16 + size]
        if len(check) < 4 or struct.pack("<I", writer.masked_crc32c(record)) != check or (epoch := Event.FromString(record).step) > most:
            break
        end, last = end + 16 + size, epoch
    return end, last
