"""docs/tutorial.ipynb, executed from its first cell to its last in an empty folder, and the Python in README.md and docs/nets.md."""

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from minialex import nets
from minialex.convert import to_torchvision

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "docs" / "tutorial.ipynb"


@pytest.mark.slow
def test_the_tutorial(tmp_path):
    reason = "Jupyter is not installed (pip install 'minialex[notebook]'): the tutorial is not executed"
    client, nbformat = pytest.importorskip("nbclient", reason=reason), pytest.importorskip("nbformat", reason=reason)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    kept = [cell.copy() for cell in notebook.cells]
    client.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()      # a cell that raises ends it
    [run] = (tmp_path / "runs").iterdir()
    assert (run / "report.html").exists()
    for cell, before in zip(notebook.cells, kept):      # as the page shows it, a reader sees it: each kind of output is there again
        if cell.cell_type == "code":
            kinds = [{kind for output in outputs for kind in output.get("data", ())} for outputs in (cell.outputs, before.outputs)]
            assert kinds[1] - {"image/jpeg"} <= kinds[0], cell.source


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:skipped", "ignore:left out", "ignore:the loss stays")
def test_the_python_of_the_pages(pictures, tmp_path, monkeypatch, capsys):
    """Block after block, with a folder for DIR and fewer epochs."""
    monkeypatch.chdir(tmp_path)
    image = Image.open(pictures / "val/red/00.jpg")
    image.save(tmp_path / "a.jpg")
    owt = nets.build("owt", 3)
    state = to_torchvision(owt, {name: np.zeros(shape, np.float32) for name, shape in owt.parameters().items()})
    names = {"pil_image": image, "uint8_array": np.asarray(image), "state": state}
    for page, least in ("README.md", 5), ("docs/nets.md", 1):
        blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.S)
        assert len(blocks) >= least
        for block in blocks:
            code = block.replace('"DIR"', repr(str(pictures))).replace('"runs/half-..."', "run.folder").replace('"alexnet.pth"', "state")
            code = re.sub(r"epochs=(\d+)", lambda found: f"epochs={int(found[1]) // 10}", code).replace("range(10)", "range(1)").replace("fit(net=net)", "fit(net=net, epochs=1)")
            if "model.onnx" in code:
                if importlib.util.find_spec("onnx") is None:
                    continue
                names["run"].export("model.onnx")
                names["images"] = np.zeros((2, 3, names["run"].net.size, names["run"].net.size), np.float32)
            exec(code, names)
    assert len(list((tmp_path / "runs").iterdir())) == 4 and names["theirs"].net.name == "owt" and len(names["run"].history) == 5
    assert "layer" in capsys.readouterr().out
