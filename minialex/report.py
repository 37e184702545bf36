"""python -m minialex.report RUN: writes a run's report.html anew; training writes the same after each epoch, but for the neighbours of mistakes."""

from . import interrupts      # first: imports take a while, in which Ctrl-C ends the process without a word

from .command import add_device, parser_of, run_command, say
from .run.run import Run


def main(arguments=None):
    parser = parser_of("report", "Write a run's report.html anew, from what its folder holds.")
    parser.add_argument("run", help="run folder of minialex.train")
    parser.add_argument("--data", metavar="DIR", help="the run's data, if it has moved")
    add_device(parser)
    args = parser.parse_args(arguments)
    run = Run(args.run, device=args.device, threads=args.threads, announce=say)
    say(f"report   {run.report(args.data, warn=say)}, of {run.checkpoint.name}")
    return 0


if __name__ == "__main__":
    run_command(main)
