"""docs/tutorial.ipynb, executed from its first cell to its last in an empty folder."""

from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).resolve().parent.parent / "docs" / "tutorial.ipynb"


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
