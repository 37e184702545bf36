"""The learning curve of a run as a PNG."""

import io

from .checkpoint import write_beside


def plot(metrics, path, title):
    """Loss and accuracy over the epochs. metrics: the objects of metrics.jsonl."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import MaxNLocator, PercentFormatter
    epochs = [m["epoch"] for m in metrics]
    figure, (loss, accuracy) = pyplot.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    for axes, what, lines in ((loss, "loss", ("train_loss", "val_loss")), (accuracy, "accuracy", ("train_top1", "val_top1", "val_top5"))):
        for key, style in zip(lines, ("C0-", "C1-", "C1:")):
            axes.plot(epochs, [m[key] for m in metrics], style, marker="." if len(epochs) < 40 else "", label=key.replace("_", " ").replace("top", "top-"))
        axes.set_xlabel("epoch")
        axes.set_ylabel(what)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    loss.set_ylim(bottom=0)
    accuracy.set_ylim(0, 1.02)
    accuracy.yaxis.set_major_formatter(PercentFormatter(1.0))
    figure.suptitle(title)
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=110)
    pyplot.close(figure)
    write_beside(path, image.getvalue())
