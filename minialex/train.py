"""python -m minialex.train: trains an AlexNet on folders of images, without arguments on a set that it makes itself."""

from . import interrupts      # first: imports take a while, in which Ctrl-C ends the process without a word

import argparse
import contextlib
import os
import signal
import sys
import time
import traceback
from functools import partial

from .command import BROKEN_PIPE, DEVICE_HELP, hush, parser_of, run_command, say, warn
from .data.augment import Input
from .device import cuda, open_device
from .errors import UserError, typed
from .nets import NETS
from .progress import on_terminal
from .run.recipes import RECIPES
from .run.session import Session
from .run.settings import CHOICES, DEFAULTS, SHAPES_DEFAULTS, settle
from .team import LATER, Team, launch, one_at_a_time, opened, world


def parse(arguments):
    """{option: value, or None where it is not given}, with "out" and "resume"."""
    parser = parser_of("train", "Train an AlexNet on folders of images; without arguments, on a small set of ten classes that it makes itself.",
                       zero=("early_stop", "seed"))
    data = parser.add_argument_group("data")
    data.add_argument("--data", metavar="DIR", help="folder with train/ and val/, each with one folder of images per class; or with one folder of images per "
                      "class, from which the validation set is drawn")
    data.add_argument("--train", metavar="DIR", help="training folder, with --val instead of --data")
    data.add_argument("--val", metavar="DIR", help="validation folder")
    data.add_argument("--val-fraction", type=float, metavar="F", help="of each class, drawn for validation by --seed and file name where DIR has no val/ "
                      "(default 0.2)")
    data.add_argument("--size", type=int, help=f"input size in pixels (default: the net's published one, {SHAPES_DEFAULTS['size']} for half on the built-in set)")
    data.add_argument("--side", type=int, help="pixels of the decoded pictures (default: 8/7 of the input size)")
    data.add_argument("--fit", choices=CHOICES["fit"], help="decode each picture's centre square (default), or all of it out of shape")
    data.add_argument("--augment", metavar="KEY=VALUE,...", help="what training draws anew for each picture: crop (random, resized, centre); of resized "
                      "ones area (LOW:HIGH, fractions of the picture's) and ratio (LOW:HIGH, width to height); flip (h, v, hv, none); rotation, shear "
                      "(degrees, up to so many either way); shift (a fraction of the size, or HEIGHT:WIDTH, either way); zoom (Z for factors of 1-Z to "
                      "1+Z, or LOW:HIGH, below 1 enlarges); fill of what lies outside (nearest, constant, reflect, wrap) and its constant (pixel "
                      "value, 0 to 255); brightness, contrast, saturation (B for factors of 1-B to 1+B); pca (none, eigenvalue, std) and pca_strength "
                      "(standard deviations); and of all input mean (R:G:B in pixel values, colour, image, none) and scale (a factor, or R:G:B)")
    data.add_argument("--drop-last", action=argparse.BooleanOptionalAction, help="leave the last, smaller batch of an epoch out")
    net = parser.add_argument_group("network and optimizer")
    net.add_argument("--recipe", choices=list(RECIPES), help="options of a known training run; those given beside it replace its own")
    net.add_argument("--list-recipes", action=ListRecipes, nargs=0, dest=argparse.SUPPRESS, help="show the options of all recipes and end")
    net.add_argument("--net", choices=list(NETS), help="default half")
    net.add_argument("--init", metavar="HOW", help=f"first weights: {', '.join(CHOICES['init'])} (default he, which trains from scratch on small data); or a run folder or "
                     "a file of weights (see minialex.convert) to begin with, whose net, mean and scale are taken with them")
    net.add_argument("--freeze", metavar="LAYER,...", help="layers that keep their first weights, such as conv1,conv2: no gradient is computed for them")
    net.add_argument("--lr-of", metavar="LAYER=F,...", help="what the learning rate of a layer is times, such as fc8=10")
    net.add_argument("--epochs", type=int, help=f"default {DEFAULTS['epochs']}, {SHAPES_DEFAULTS['epochs']} on the built-in set")
    net.add_argument("--batch", type=int, help=f"images per step (default {DEFAULTS['batch']}, {SHAPES_DEFAULTS['batch']} on the built-in set)")
    net.add_argument("--lr", type=float, help=f"learning rate (default {DEFAULTS['lr']})")
    net.add_argument("--momentum", type=float, help="default 0.9")
    net.add_argument("--weight-decay", type=float, help="default 5e-4, none on biases")
    net.add_argument("--optimizer", choices=CHOICES["optimizer"], help="SGD with momentum (default), or Adam in Keras' form")
    net.add_argument("--form", choices=CHOICES["form"], help="which form of SGD with momentum (default 2012)")
    net.add_argument("--bias-lr", type=float, help="of biases, times the learning rate (default 1)")
    net.add_argument("--bias-decay", type=float, help="of biases, times the weight decay (default 0)")
    net.add_argument("--label-smoothing", type=float, help="part of the target that all classes share (default 0)")
    net.add_argument("--class-weights", choices=CHOICES["class_weights"], help="balanced: in training an image's loss is times n / (C n_c), where n_c "
                     "of the n images are of its class and C is the number of classes; the mean is over images (default none)")
    net.add_argument("--clip-norm", type=float, metavar="X", help="largest norm of all gradients together: larger ones are scaled down to it")
    net.add_argument("--average", type=float, metavar="DECAY", help="validate and keep a running mean of the weights, of which a step leaves this part, as "
                     "0.998 (default: the weights themselves)")
    net.add_argument("--schedule", help="constant, cosine, step:EPOCHS, multistep:EPOCH:EPOCH:... or plateau:EPOCHS, then ,warmup:EPOCHS and "
                     "factor:F (default cosine,warmup:1)")
    run = parser.add_argument_group("run")
    run.add_argument("--early-stop", type=int, metavar="N", help="end after N epochs without a higher validation top-1 (default 0: never)")
    run.add_argument("--log", choices=CHOICES["log"], help="tensorboard: write each epoch's figures into the run folder for it (pip install "
                     "'minialex[tensorboard]'; default none)")
    run.add_argument("--dry-run", action="store_true", help="open the data, lay out the net, say what memory it takes, try one step, and keep nothing")
    run.add_argument("--seed", type=int, help="of weights, order, crops and dropout (default 0)")
    run.add_argument("--device", help=DEVICE_HELP)
    run.add_argument("--threads", type=int, help="CPU threads (default: the cores, a container's share of them, or OMP_NUM_THREADS if less)")
    run.add_argument("--workspace-mb", type=float, help="most memory for convolution's columns, all shares together")
    run.add_argument("--conv", choices=CHOICES["conv"], help="the algorithm of convolutions; auto: for each layer and pass the faster one of im2col "
                     "and Winograd's, timed once on this machine (default: auto)")
    run.add_argument("--precision", choices=CHOICES["precision"], help="of matrix products: float32 (default), or on NVIDIA GPUs since Ampere tf32, several times "
                     "as fast, whose operands keep 10 bits of their fractions instead of 23")
    run.add_argument("--parts", type=int, metavar="P", help="cut each batch into P parts, whose gradients are added up; the bits of a run depend on P, not on "
                     "how many ranks, which must divide P, share them (default: the number of ranks; 1 alone)")
    run.add_argument("--towers", type=int, metavar="2", help="cut the net into the two towers of 2012, for two ranks (nets with groups: paper, caffenet)")
    run.add_argument("--ranks", type=int, metavar="R", help="train in R processes, as mpiexec -n R starts them (pip install 'minialex[mpi]')")
    run.add_argument("--patience", type=float, metavar="SECONDS", default=120.0, help="end, to be resumed, when in training other ranks have not answered "
                     "for so long (default 120)")
    run.add_argument("--out", metavar="DIR", help="run folder (default: a new one in runs/)")
    run.add_argument("--resume", metavar="RUN", help="continue the run in this folder; only --epochs, --early-stop, --log, --device, "
                     "--threads, --ranks, --towers, --patience and a data folder that has moved may be given with it")
    return vars(parser.parse_args(arguments))


class ListRecipes(argparse.Action):
    """Prints the recipes as a table and ends, as --help does."""

    def __call__(self, parser, *more):
        say("\n".join(recipe_table()))
        parser.exit()


def recipe_table():
    """Lines of text: a row for each option that a recipe sets, a column for each recipe; keys of --augment have rows of their own."""
    def parts(options):
        keys = dict(part.split("=") for part in filter(None, options.get("augment", "").split(",")))
        return {name.replace("_", "-"): str(value) for name, value in options.items() if name != "augment"} | {f"  {key}": value for key, value in keys.items()}
    usual = Input(1, 1)
    defaults = parts(DEFAULTS) | {"size": "the net's", "side": "8/7 of it", "fit": usual.fit, "  crop": usual.crop, "  flip": usual.flip,
                                  "  mean": ":".join(f"{value:g}" for value in usual.mean), "  scale": "1/58", "  fill": usual.fill, "  pca": usual.pca}
    columns = {"default": defaults, **{name: parts(options) for name, options in RECIPES.items()}}
    names = list(dict.fromkeys(name for options in list(columns.values())[1:] for name in options))
    names = [name for name in names if name[0] != " "] + ["augment"] + sorted(name for name in names if name[0] == " ")
    rows = [["", *columns], *([name, *(options.get(name, "") for options in columns.values())] for name in names)]
    widths = [max(map(len, column)) for column in zip(*rows)]
    yield from ("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)
    yield ""
    yield "An empty cell is the default; `default` itself is that of your own images. docs/recipes.md says where each comes from and what it reaches."


class Interrupts:
    """While it is entered, Ctrl-C, SIGTERM and SIGHUP ask for a checkpoint and an end after the current step, and so does an output that
    nobody takes any more; a second signal ends at once."""

    def __init__(self):
        self.signal, self.unheard, self.before = None, None, {}

    def __enter__(self):
        hangup = getattr(signal, "SIGHUP", None)
        if hangup and signal.getsignal(hangup) is signal.SIG_IGN:      # nohup
            hangup = None
        self.before = {number: signal.signal(number, self.note) for number in (signal.SIGINT, signal.SIGTERM, hangup) if number}
        return self

    def __exit__(self, *error):
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def note(self, number, frame):
        if self.signal is not None:
            interrupts.once()
        self.signal = number

    def seen(self):
        return self.signal is not None or self.unheard is not None

    def aloud(self, speak, *words):
        """speak(*words), or what went wrong with it as a wish to stop: what was reached is saved before anybody is told of it."""
        try:
            if self.unheard is None:
                speak(*words)
        except (BrokenPipeError, UserError) as error:
            self.unheard = error


def tell(topic, text):
    """A line of what a session has to say."""
    say({"warning": f"warning: {text}", "skipped": text, "compiling": text}.get(topic, f"{topic:8} {text}"))


def line_of(metrics):
    """An epoch's line."""
    whole = metrics.get("val_top1_whole_batches")
    return (f"epoch {metrics['epoch']:3d}  train loss {metrics['train_loss']:.4f} top-1 {metrics['train_top1']:6.1%}   val loss "
            f"{metrics['val_loss']:.4f} top-1 {metrics['val_top1']:6.1%} top-5 {metrics['val_top5']:6.1%}   {metrics['images_per_s']:.0f} images/s"
            + (f"   (val top-1 of whole batches, as Keras counts: {whole:.1%})" if whole is not None else ""))


def begin(arguments=None):
    """The session that the command line asks for, ready for its first step; of one process."""
    return session_of(parse(arguments), Team())


def session_of(given, team):
    """The session that options ask for. What they come to is the first rank's word: another may not see the run to resume, and would name a new one by its
    own clock."""
    given = {name: value for name, value in given.items() if name not in ("ranks", "patience")}
    dry = given.pop("dry_run")
    if dry and given["resume"] is not None:
        raise UserError("--dry-run cannot be given with --resume, whose run is known to work: leave one out")
    asked = team.share(settle(given, given.pop("out"), given.pop("resume"), team.size) if team.rank == 0 else None)
    return Session(*asked, tell=tell, bar=on_terminal, dry=dry, team=team)


def train(session):
    """Trains to the end, or to a signal, and says how it goes. -> the command's exit code"""
    trainer, state = session.trainer, session.trainer.state
    with session, Interrupts() as asked, contextlib.ExitStack() as shown:      # of an epoch, its bar
        session.tell = partial(asked.aloud, tell)
        for at in session.run(asked.seen):
            if at == "begin":
                bar = shown.enter_context(on_terminal(total=len(trainer.train), initial=state["batch"], unit="step",
                                                      desc=f"epoch {state['epoch'] + 1}/{trainer.epochs}"))
            elif at == "step":
                bar.set_postfix({name: f"{value:.3f}" for name, value in trainer.so_far().items()}, refresh=False)
                bar.update()
            else:
                shown.close()
            if at == "epoch":
                asked.aloud(say, line_of(trainer.metrics[-1]))
                for topic, text in session.remarks():
                    session.tell(topic, text)
        shown.close()
        number = int(trainer.team.most(asked.signal or 0))
        if asked.unheard is not None and asked.signal is None:
            raise asked.unheard if isinstance(asked.unheard, BrokenPipeError) else UserError(f"{asked.unheard}; {session.folder} is saved up to step {state['step']}")
        if not trainer.finished:
            asked.aloud(say, f"stopped  at step {state['step']}, saved; continue with: python -m minialex.train --resume {typed(session.folder.given)}")
            return 128 + number
    say(f"done     {state['step']} steps; best validation top-1 {state['best']:.1%}; {os.path.join(str(session.folder), 'report.html')}")
    return 0


def try_once(session):
    """One step, of which nothing is kept. -> the command's exit code"""
    with session:
        tried = session.try_step()
    say(f"step     {tried['images']} images in {tried['seconds']:.2f} s, the first time, loss {tried['loss']:.4f}; an epoch has {len(session.trainer.train)} steps")
    say("dry run  all is ready, and nothing was kept: leave --dry-run out to train")
    return 0


def main(arguments=None):
    rank, size = world()
    if rank:      # what all ranks read and find wrong is told by the first
        spoken = os.dup(2)
        hush(sys.stdout), hush(sys.stderr)
    given = parse(arguments)
    if given["ranks"] not in (None, size):
        launch(given["ranks"], size, ["-m", "minialex.train", *(sys.argv[1:] if arguments is None else arguments)])
    if size > 1:
        compile_first(given["device"])
    team = opened(given["patience"])
    if rank:
        os.dup2(spoken, 2)
    if team.size == 1:
        return told(session_of(given, team))
    try:
        code = told(session_of(given, team))
        team.close()
        return code
    except BaseException as error:
        end_all(team, error)


def told(session):
    return try_once(session) if session.dry else train(session)


def compile_first(device):
    """Compiles what there is to compile for a CPU, in one rank for all of a machine, and before MPI is there: of a process that has opened it no other
    should be forked."""
    if device == "cpu" or device in (None, "auto") and cuda.why_not():
        with one_at_a_time():
            open_device("cpu", 1, announce=say)


def end_all(team, error):
    """Says what went wrong in this rank, unless the first one, having met the same, has said it, and ends all ranks."""
    if team.rank:
        time.sleep(LATER)
    code = 2 if isinstance(error, UserError) else {KeyboardInterrupt: 130, BrokenPipeError: BROKEN_PIPE}.get(type(error), 1)
    if code == 2:
        warn(f"error: {error}")
    elif code == 1:
        traceback.print_exception(error)
    team.abort(code)


if __name__ == "__main__":
    run_command(main)
