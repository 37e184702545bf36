"""The script `minialex`, and what its commands have in common."""

import os
import subprocess
import sys

import pytest
from runs import command, refused

from minialex import __main__, __version__
from minialex.command import Parser


def run(*arguments):
    return subprocess.run([sys.executable, "-m", "minialex", *arguments], capture_output=True, text=True)


def test_version_and_help():
    assert run("--version").stdout == f"minialex {__version__}\n"
    told = run("--help")
    assert told.returncode == 0 and all(name in told.stdout for name in __main__.COMMANDS)
    assert run().returncode == 2 and run().stdout == told.stdout


@pytest.mark.parametrize("name", __main__.COMMANDS)
def test_each_command_is_there_under_both_names(name, capsys):
    for arguments in [name, "--help"], ["--help"]:
        module = __main__ if len(arguments) == 2 else __import__(f"minialex.{name}" + ".__main__" * (name == "data"), fromlist=["main"])
        with pytest.raises(SystemExit) as end:
            module.main(arguments)
        assert end.value.code == 0 and capsys.readouterr().out.startswith("usage: ")


@pytest.mark.parametrize("name", __main__.COMMANDS)
def test_a_usage_names_the_command_as_it_was_called(name):
    assert run(name, "--help").stdout.startswith(f"usage: minialex {name} ")
    direct = subprocess.run([sys.executable, "-m", f"minialex.{name}", "--help"], capture_output=True, text=True)
    assert direct.stdout.startswith(f"usage: python -m minialex.{name} ")


def test_mistakes(capsys):
    assert run("nonsense").returncode == 2 and "invalid choice: 'nonsense'" in run("nonsense").stderr
    assert "--data is empty" in refused(capsys, __main__.main, "train", "--data", "")
    assert command(__main__.main, "describe", "resnet") == 2 and capsys.readouterr().err == "error: unknown net 'resnet': choose one of paper, caffenet, alexnet-caffe, owt, half\n"


def test_a_command_below_the_script(capsys):
    assert __main__.main(["describe", "half", "--classes", "10"]) == 0
    assert "14,601,930" in capsys.readouterr().out


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full here")
@pytest.mark.parametrize("arguments, to, code, words", [
    ("describe half", ">&-", 2, "error: standard output is closed"), ("describe half", "2>&-", 0, ""), ("describe half", "> /dev/full", 2, "error: standard output cannot be"),
    ("describe --help", "> /dev/full", 2, "error: standard output cannot be"), ("describe nonsense", "2> /dev/full", 2, ""),
    ("describe --nonsense", "2> /dev/full", 2, ""), ("describe half", ">&3", 141, "")])
def test_streams_that_take_nothing(arguments, to, code, words):
    """3 is a pipe whose reader has gone: one that is still to go might miss all that a command has to say."""
    done = subprocess.run(["bash", "-c", f"exec 3> >(true); wait $!; {sys.executable} -m minialex.{arguments} {to}"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert done.returncode == code and done.stderr.startswith(words) and done.stderr.count("\n") == bool(words), done.stderr


def test_a_name_that_the_output_cannot_hold():
    done = subprocess.run([sys.executable, "-c", "from minialex.command import *\nrun_command(lambda: say('\u00e4\u72ac') or warn('\u00e4') or 0)"], capture_output=True,
                          env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stdout, done.stderr) == (0, b"\\xe4\\u72ac\n", b"\\xe4\n")


@pytest.mark.parametrize("name", __main__.COMMANDS)
def test_what_is_given_and_says_nothing(name, capsys):
    """Any option of any command, and whatever must be named: empty, below what can be counted, or no number."""
    module = __import__(f"minialex.{name}" + ".__main__" * (name == "data"), fromlist=["main"])
    parsers = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Parser, "parse_known_args", lambda self, *a: parsers.append(self) or (_ for _ in ()).throw(LookupError))
        with pytest.raises(LookupError):
            module.main([])
    actions = [*parsers[0]._actions]
    own = [(sub, [name]) for action in actions if hasattr(action.choices, "values") for name, sub in action.choices.items()] or [(parsers[0], [])]
    tried = 0
    for parser, before in own:
        needed = [word for action in parser._actions if not action.option_strings for word in ["relu" if name == "gradcheck" else "x"]]
        for action in parser._actions:
            for value in {None: [""], int: ["-1"], float: ["nan", "inf"]}[action.type] if action.nargs != 0 and not action.choices else []:
                given = [*needed, f"{action.option_strings[-1]}={value}"] if action.option_strings else [*needed[:-1], value]
                told = refused(capsys, module.main, *before, *given)
                assert (action.option_strings or [""])[-1] in told and ("is empty" in told or "expected" in told), (action, told)
                tried += 1
    assert tried > 1
