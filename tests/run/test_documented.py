"""What a run keeps: its files' fields, as docs/metrics.md tells them."""

import json
import re
from pathlib import Path

import pytest
from runs import load
from safetensors import safe_open


def names_in(value, below=""):
    """The dotted names of what a JSON text holds; of a dict whose keys are layers, splits or options, `*` stands for each."""
    for key, item in value.items():
        name = below + key
        if name in ("input", "options", "machine", "convolutions"):
            yield f"{name}.*"
        elif isinstance(item, dict) and name.split(".")[-1] != "left_out":
            nested = {"*": part for part in item.values()} if name == "layers" else item
            yield from names_in(nested, f"{name}.")
        else:
            yield re.sub(r"^data\.\w+\.(images|sha256|left_out)$", r"data.*.\1", name)


@pytest.mark.parametrize("heading", ["metrics.jsonl", "config.json", "tensor", "state"])
def test_what_a_run_keeps_is_as_the_documentation_says(finished, heading):
    text = (Path(__file__).parents[2] / "docs/metrics.md").read_text(encoding="utf-8")
    table = text[text.index(f"## {heading}\n" if "." in heading else f"| {heading} | what |"):].split("|---|---|\n")[1].split("\n\n")[0]
    told = dict(re.findall(r"^\| `([^`]+)` \| (.*) \|$", table, re.MULTILINE))
    tensors, _, state = load(finished / "last.safetensors")
    if heading == "metrics.jsonl":
        kept = {name for line in (finished / "metrics.jsonl").read_text().splitlines() for name in names_in(json.loads(line))}
    elif heading == "config.json":
        kept = set(names_in(json.loads((finished / "config.json").read_text())))
    elif heading == "tensor":
        with safe_open(finished / "last.safetensors", "numpy") as file:
            kept = {re.sub(r" \w+\.", " LAYER.", name) for name in file.keys()}
    else:
        kept = set(state)
    assert len(told) >= 7 and kept <= told.keys() and {name for name, what in told.items() if not what.startswith("only")} <= kept
