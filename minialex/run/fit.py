"""fit(): trains a net on folders of pictures from Python, and keeps the run."""

import gc
import os
from collections.abc import Callable
from typing import Any

from ..device.base import Device
from ..errors import UserError
from ..nets import Net
from ..progress import anywhere, silent
from .run import PathLike, Run
from .session import Session
from .settings import OPTIONS, settle
from .words import as_python, heard


def fit(data: PathLike | None = None, *, net: str | Net | None = None, train: PathLike | None = None, val: PathLike | None = None,
        recipe: str | None = None, epochs: int | None = None, batch: int | None = None, size: int | None = None, side: int | None = None,
        val_fraction: float | None = None, fit: str | None = None, augment: str | None = None, drop_last: bool | None = None,
        optimizer: str | None = None, lr: float | None = None,
        schedule: str | None = None, momentum: float | None = None, weight_decay: float | None = None, form: str | None = None,
        bias_lr: float | None = None, bias_decay: float | None = None, label_smoothing: float | None = None,
        class_weights: str | None = None, clip_norm: float | None = None, average: float | None = None, conv: str | None = None,
        early_stop: int | None = None, log: str | None = None, init: PathLike | None = None, freeze: str | None = None, lr_of: str | None = None, seed: int | None = None,
        device: str | None = None, threads: int | None = None, workspace_mb: float | None = None, precision: str | None = None,
        out: PathLike | None = None, resume: PathLike | None = None, progress: bool = True, stop: Callable[[], bool] = lambda: False,
        on_epoch: Callable[[dict], Any] | None = None) -> Run:
    """Trains a net on folders of pictures, and keeps the run in a folder. -> the Run, also when it was stopped early

    data: a folder with train/CLASS/*.jpg and val/CLASS/*.jpg (or the two apart, as train and val), or CLASS/*.jpg, of which val_fraction
    (0.2) are drawn for validation; without any, a small set of ten classes that is drawn on first use. net: a name of minialex.nets.NETS (default
    "half") or a Net of one's own. init: how first weights are drawn, or a run folder or a file of weights to begin with. All other
    options are those of `python -m minialex.train --help`, None for their default. out: the run folder (default: a new one in runs/). resume: a run
    folder to go on with, with the same epochs bit for bit as if it had not stopped; epochs, early_stop, log, device, threads and a data folder that has
    moved may be given with it.

    progress shows a bar, in a notebook or a terminal. stop() is asked after each step: once it is true the run is saved and
    returned. on_epoch(metrics) is called after each epoch was saved. An interrupt (KeyboardInterrupt) goes through; what was saved last,
    at the end of each epoch and every ten minutes, can be resumed. What is not as expected is a Python warning, and a mistake a UserError.
    """
    with as_python():
        asked = {**dict.fromkeys(OPTIONS), "recipe": recipe, "epochs": epochs, "batch": batch, "size": size, "side": side, "fit": fit,
                 "augment": augment, "drop_last": drop_last, "optimizer": optimizer, "lr": lr, "schedule": schedule, "momentum": momentum,
                 "weight_decay": weight_decay, "form": form, "bias_lr": bias_lr, "bias_decay": bias_decay, "label_smoothing": label_smoothing,
                 "init": init, "seed": seed, "device": device, "threads": threads, "workspace_mb": workspace_mb, "val_fraction": val_fraction,
                 "class_weights": class_weights, "conv": conv, "average": average, "precision": precision, "clip_norm": clip_norm, "early_stop": early_stop, "log": log,
                 "freeze": freeze, "lr_of": lr_of}
        for name, path in ("data", data), ("train", train), ("val", val), ("init", init), ("out", out), ("resume", resume):
            if not isinstance(path, (str, os.PathLike, type(None))):
                raise UserError(f"{name}: expected the path of a folder{' or a text' * (name == 'init')}, got {type(path).__name__}")
            if name in asked:
                asked[name] = None if path is None else os.fspath(path)
        for name, function in ("stop", stop), ("on_epoch", on_epoch):
            if function is not None and not callable(function):
                raise UserError(f"{name}: expected a function, got {function!r}")
        own = net if isinstance(net, Net) else None
        if net is not None and not isinstance(net, (str, Net)):
            raise UserError(f"net: expected a minialex.Net, or the name of one, got {net!r:.80}")
        if own is not None and size not in (None, own.size):
            raise UserError(f"size {size}: the net given is for pictures of {own.size} pixels; leave size out")
        asked["net"] = own.name if own is not None else net
        options, config, folder = settle(asked, out, resume)
        device_used = followed(Session(options, config, folder, own, tell=lambda topic, sentence: heard(sentence, topic), bar=anywhere if progress else silent),
                               stop, on_epoch)
    gc.collect()      # tracebacks that the drawing of a report leaves behind hold the training network, and one is enough
    return Run(folder, device=device_used, words=as_python)


def followed(session: Session, stop: Callable[[], bool], on_epoch: Callable[[dict], Any] | None) -> Device:
    """Runs a session to its end beside a bar. -> its device"""
    trainer, folder, steps = session.trainer, str(session.folder), len(session.trainer.train) * session.trainer.epochs
    try:
        with session, session.bar(total=steps, initial=trainer.state["step"], unit="step", leave=True, desc=folder) as bar:
            for at in session.run(stop):
                if at == "step":
                    bar.update()
                    bar.set_postfix({name: f"{value:.3f}" for name, value in trainer.so_far().items()}, refresh=False)
                elif at == "epoch":
                    last = trainer.metrics[-1]
                    bar.set_description(f"{folder}, epoch {last['epoch']}/{trainer.epochs}: val loss {last['val_loss']:.3f}, top-1 {last['val_top1']:.1%}")
                    for topic, sentence in session.remarks():
                        heard(sentence, topic)
                    if on_epoch is not None:
                        on_epoch(dict(last))
    except KeyboardInterrupt as interrupt:
        if hasattr(interrupt, "add_note"):
            interrupt.add_note(f"minialex.fit(resume={folder!r}) goes on from what was saved last")
        raise
    return session.device
