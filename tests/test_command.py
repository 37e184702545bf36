"""The script `minialex`, and what its commands have in common."""

import subprocess
import sys

import pytest
from runs import command

from minialex import __main__, __version__


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
    assert command(__main__.main, "describe", "resnet") == 2 and capsys.readouterr().err == "error: unknown net 'resnet': choose one of paper, caffenet, owt, half\n"


def test_a_command_below_the_script(capsys):
    assert __main__.main(["describe", "half", "--classes", "10"]) == 0
    assert "14,601,930" in capsys.readouterr().out
