"""The public names as a user's program has them. mypy reads it (`python -m mypy`), and nobody runs it."""

from pathlib import Path

import numpy as np
from PIL import Image

import minialex
from minialex import functional as F


def train(folder: Path) -> float:
    net = minialex.Net({"conv1": minialex.Conv(48, 11, stride=4, pad=((1, 2), (1, 2))), "norm1": minialex.LRN(), "pool1": minialex.MaxPool(3, 2),
                        "relu1": minialex.ReLU(), "drop1": minialex.Dropout(0.5), "fc8": minialex.Dense(10, relu=False)}, size=224)
    print(net.summary())
    run: minialex.Run = minialex.fit(folder, net=net, epochs=20, lr=0.01, on_epoch=lambda metrics: print(metrics["val_top1"]))
    accuracy: list[float] = run.history["val_top1"]
    return accuracy[-1]


def use(folder: str, image: Image.Image, array: np.ndarray) -> list[str]:
    run = minialex.load(folder, last=True, device="cpu")
    scores: minialex.Evaluation = run.evaluate("photos", ten_crop=True)
    page: Path = run.report()
    why: list[minialex.Explanation] = run.explain(image, "why.html", neighbours=3)
    assert why[0].neighbours is None or why[0].neighbours[0].distance >= 0 and why[0].channels["conv1"][0].sees
    file: Path = run.export("model.onnx", preprocessing="described")
    kept: Path = minialex.convert({"conv1.weight": array}, "converted", net=run.net, classes=["cat", "dog"])
    minialex.fit(folder, init=kept, freeze="conv1", lr_of="fc8=10")
    return [f"{name} {probability:.1%}" for likely in run.predict(["a.jpg", image, array], top=3) for name, probability in likely] + [
        str(page), str(file), f"{scores.top1:.1%}"]


def by_hand(folder: str) -> float:
    pictures, _ = minialex.open_data(folder)
    model = minialex.Network(minialex.nets.build("half", 10, 98), "cpu", batch=32, optimizer=minialex.SGD(momentum=0.9))
    schedule = minialex.Schedule("cosine", 0.01, 100, 2)
    for batch in minialex.Loader(pictures, model.input.side, 32).epoch(0):
        model.train_step(batch.images, batch.labels, model.input.draw(0, 0, batch.index), 0, schedule(0))
    loss: float = model.scores()[0]
    y = F.conv2d(np.ones((1, 5, 5, 3), np.float32), np.ones((3, 3, 3, 8), np.float32), pad=1)
    return loss + float(np.asarray(y).sum())
