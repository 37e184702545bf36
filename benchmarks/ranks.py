"""What several ranks cost and bring on this machine's processors: a step's time in 1, 2 and 4 ranks, what of it waits, and what moves bytes.

python benchmarks/ranks.py [--net paper] [--size 99] [--batch 32] [--ranks 1 2 4] [--write docs/scaling.md]

Each row trains an epoch of the first 320 of the built-in pictures in 4 parts with one thread a rank; the step is the median, in rank 0.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from parallel import write_between

from minialex.command import parser_of, run_command, say
from minialex.data.shapes import default_set
from minialex.errors import UserError
from minialex.team import mpiexec

BEGIN, END = "<!-- measured: benchmarks/ranks.py -->", "<!-- end of measured -->"
EACH = 32      # pictures of each class
# Trains as the command does, and tells the median step: seconds, those that waited for others, those that moved bytes, and bytes of the gradients.
TRAINED = """
import time
from minialex import train
from minialex.run.trainer import Trainer
take, told, found = Trainer.take, train.told, []

def timed(trainer, parts, count):
    began, waited = time.perf_counter(), list(trainer.team.waited)
    take(trainer, parts, count)
    found.append((time.perf_counter() - began, *(now - before for now, before in zip(trainer.team.waited, waited))))

def telling(session):
    code = told(session)
    train.say("found " + " ".join(map(str, [*sorted(found)[len(found) // 2], session.trainer.network.arrays["gradient all"].nbytes])))
    return code
Trainer.take, train.told = timed, telling
train.run_command(train.main)
"""


def measured(net, size, batch, ranks):
    """-> [seconds of a step, of waiting, of moving bytes, bytes of the gradients] in so many ranks."""
    with tempfile.TemporaryDirectory() as folder:
        for split in "train", "val":
            for of in sorted(Path(default_set(), split).iterdir()):
                place = Path(folder, "set", split, of.name)
                place.mkdir(parents=True)
                for picture in sorted(of.iterdir())[:EACH if split == "train" else 2]:
                    shutil.copy(picture, place)
        given = ["--net", net, "--data", f"{folder}/set", "--size", str(size), "--batch", str(batch), "--epochs", "1", "--device", "cpu", "--threads", "1", "--parts", "4", "--conv", "im2col",
                 "--out", f"{folder}/run"]
        done = subprocess.run([mpiexec(), "-n", str(ranks), sys.executable, "-c", TRAINED, *given], stdout=subprocess.PIPE, text=True, env=os.environ)
    if done.returncode:
        raise UserError(f"training in {ranks} ranks ended with {done.returncode}")
    return [float(word) for line in done.stdout.splitlines() if line.startswith("found ") for word in line.split()[1:]]


def main(arguments=None):
    parser = parser_of("ranks", __doc__)
    parser.add_argument("--net", default="paper")
    parser.add_argument("--size", type=int, default=99)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--write", metavar="FILE", help="the page whose table is to be written anew")
    args = parser.parse_args(arguments)
    lines = ["| ranks | a step, s | of it waits for others | of it moves bytes | MB that a rank sends |", "|---:|---:|---:|---:|---:|"]
    for ranks in args.ranks:
        step, waited, moved, size = measured(args.net, args.size, args.batch, ranks)
        lines.append(f"| {ranks} | {step:.2f} | {waited / step:.0%} | {moved / step:.0%} | {2 * (ranks - 1) / ranks * size / 1e6:,.0f} |")
    say(text := "\n".join(lines))
    if args.write:
        write_between(args.write, BEGIN, END, text)
    return 0


if __name__ == "__main__":
    run_command(main)
