"""What training reached, epoch by epoch."""

import base64
from typing import Any

from ..errors import UserError

COLUMNS = {"train_loss": "{:.4f}", "train_top1": "{:.1%}", "val_loss": "{:.4f}", "val_top1": "{:.1%}", "val_top5": "{:.1%}", "lr": "{:.2g}",
           "images_per_s": "{:.0f}"}


class History(list):
    """The metrics of a run: a list with a dict for each epoch, of which history["val_top1"] is a column.

    Each dict has "epoch", "step", "train_loss", "train_top1", "val_loss", "val_top1", "val_top5" (accuracies from 0 to 1), "lr" and
    "images_per_s"; "layers" and "seconds" tell of activations and time. In a notebook it shows its table and curves.
    """

    def __init__(self, metrics: list[dict] = (), classes: int = 10) -> None:      # type: ignore[assignment]
        super().__init__(metrics)
        self.classes = classes

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            if self and not any(key in metrics for metrics in self):
                raise KeyError(f"no column {key!r}: there are {', '.join({name: None for metrics in self for name in metrics})}")
            return [metrics.get(key) for metrics in self]
        found = super().__getitem__(key)
        return History(found, self.classes) if isinstance(key, slice) else found

    @property
    def best(self) -> dict:
        """The epoch with the highest validation top-1, the first of several."""
        if not self:
            raise UserError("no epoch yet, so that none is the best")
        return max(self, key=lambda metrics: metrics["val_top1"])

    def rows(self) -> list[list[str]]:
        """The table as text: a row of names, then one for each epoch."""
        rows = [[str(m["epoch"]), *(form.format(m[name]) if m.get(name) is not None else "" for name, form in COLUMNS.items())] for m in self]
        return [["epoch", *(name.replace("_", " ").replace("per s", "/ s") for name in COLUMNS)], *rows]

    def __repr__(self) -> str:
        if not self:
            return "no epoch yet"
        rows = self.rows()
        widths = [max(map(len, column)) for column in zip(*rows)]
        return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths)) for row in rows)

    def _repr_html_(self) -> str:
        if not self:
            return "<p>no epoch yet</p>"
        from .page import seen_in_curves
        from .pictures import curve
        head, *rows = self.rows()
        picture = base64.b64encode(curve(self, self.classes)).decode()
        return (f'<img src="data:image/png;base64,{picture}" alt="{seen_in_curves(self)}" style="max-width: 44em; width: 100%">'
                f"<table><tr>{''.join(f'<th>{cell}</th>' for cell in head)}</tr>"
                + "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows) + "</table>")
