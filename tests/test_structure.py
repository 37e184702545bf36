"""How the rooms stand on each other: no circle, nobody needs the one above, and only commands speak."""

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import minialex

ROOT = Path(minialex.__file__).parent
COMMANDS = {"train", "evaluate", "predict", "report", "describe", "convert", "export", "selftest", "gradcheck", "data.__main__", "__main__"}
# From the ground up. A file may use those of its own floor, without a circle, and of the floors below.
FLOORS = [{"errors", "interrupts", "limits", "philox", "progress", "version"}, {"files"}, {"device"}, {"ops"}, {"optim", "data"},
          {"nets", "layout", "tune", "team", "towers", "network", "onnx"}, {"functional"}, {"run"}, {"command"}, {"gradcheck"}, COMMANDS - {"gradcheck"}, {"__init__"}]


def module_of(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path, modules):
    """The modules of the package that a file imports, at its head or inside a function."""
    here = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = [*here[:len(here) - node.level + 1], *(node.module or "").split(".")]
            base = [part for part in base if part]
            for alias in node.names:
                for name in ".".join([*base, alias.name]), ".".join(base) or "__init__":
                    if name in modules:
                        yield name
                        break


def graph():
    files = {module_of(path): path for path in ROOT.rglob("*.py")}
    return {name: set(imports(path, files)) - {name} for name, path in files.items()}


def floor_of(name):
    return next(number for number, names in enumerate(FLOORS) if name in names or name.split(".")[0] in names and name not in COMMANDS)


def test_there_is_no_circle():
    order = list(TopologicalSorter(graph()).static_order())      # a CycleError names those that stand in one
    assert order.index("errors") < order.index("run.session") < order.index("train")


def test_nobody_needs_the_one_above():
    found = graph()
    assert "run.session" in found["train"] and "data.packed" in found["data.folder"] and len(found) > 50
    above = [f"{name} imports {other}" for name, others in found.items() for other in others if floor_of(other) > floor_of(name)]
    assert not above


def test_a_circle_or_a_step_up_would_be_seen(tmp_path, monkeypatch):
    for name, text in {"errors": "from .files import x", "files": "def f():\n    from . import errors", "optim": "from .run import session", "run/session": "from .. import fit",
                       "__init__": "from .run import session"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.setattr("test_structure.ROOT", tmp_path)
    assert graph() == {"errors": {"files"}, "files": {"errors"}, "optim": {"run.session"}, "run.session": {"__init__"}, "__init__": {"run.session"}}
    assert floor_of("run.session") > floor_of("optim")


def test_only_commands_speak_and_listen():
    """The library prints nothing, asks no terminal for a bar, and takes no signal; commands speak through command.py, which knows of closed pipes and full disks."""
    for path in ROOT.rglob("*.py"):
        name = module_of(path)
        assert "print(" not in re.findall(r"\b\w+\(", path.read_text()), f"{name} prints"
        if name in {*COMMANDS, "command", "interrupts", "limits", "progress"}:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("print", "input"), f"{name} prints"
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module] if isinstance(node, ast.ImportFrom) else []
            assert not {"tqdm", "signal", "argparse", "tqdm.auto"} & set(names), f"{name} imports {names}"


def test_text_is_utf_8_on_every_system():
    """Whoever opens a file for text says so: Windows would take another encoding."""
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            called = node.func if isinstance(node, ast.Call) else None
            name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", None)
            of = getattr(called, "value", None)
            if name not in ("open", "fdopen", "read_text", "write_text", "TextIOWrapper") or isinstance(of, ast.Name) and of.id in ("os", "Image", "webbrowser"):
                continue
            modes = [value.value for value in node.args if isinstance(value, ast.Constant) and isinstance(value.value, str) and not set(value.value) - set("rwxabt+")]
            binary = name in ("open", "fdopen") and any("b" in mode for mode in modes)
            assert binary or any(word.arg == "encoding" for word in node.keywords), f"{path.name}, line {node.lineno}: {name} without encoding"
