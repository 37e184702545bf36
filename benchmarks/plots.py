"""What the benchmarks' pictures have in common."""

import io

from minialex.files import write_beside


def subplots(*grid, size, **options):
    """(figure, axes) of `size` inches, which no window shows and nothing keeps."""
    from matplotlib.figure import Figure      # here, since matplotlib takes long to import and few runs draw
    figure = Figure(size, layout="constrained")
    return figure, figure.subplots(*grid, **options)


def save(figure, path, dpi=110):
    """Writes a PNG."""
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=dpi)
    write_beside(path, data.getvalue())
