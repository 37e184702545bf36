"""The keras recipe against Keras itself: one file through its image pipeline, and the loss of 20 steps. Skipped aloud without Keras."""

import os

import numpy as np
import pytest
from PIL import Image

import minialex
from minialex.data.augment import Input, flipped, keras_affine
from minialex.data.image import squash
from minialex.functional import augment_images
from minialex.nets import build
from minialex.network import Network
from minialex.optim import Adam
from minialex.run import weights
from minialex.run.recipes import RECIPES

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
keras = pytest.importorskip("keras", reason="Keras is not installed (pip install tensorflow-cpu): its pipeline and steps are not compared")
legacy = pytest.importorskip("keras.src.legacy.preprocessing.image", reason="this Keras has no ImageDataGenerator")


RATE = 0.003      # three times Keras' default, so that 20 steps learn something


@pytest.fixture
def photograph(tmp_path):
    random = np.random.default_rng(0)
    smooth = Image.fromarray(random.integers(0, 256, (9, 12, 3), np.uint8)).resize((330, 250), Image.Resampling.BICUBIC)
    smooth.save(tmp_path / "photo.jpg", quality=95)
    return tmp_path / "photo.jpg"


def test_a_file_is_decoded_and_warped_as_keras_does(photograph, cpu):
    size = 64
    picture = keras.utils.img_to_array(keras.utils.load_img(photograph, target_size=(size, size), interpolation="nearest"))
    np.testing.assert_array_equal(squash(photograph, size), picture)
    random, way = np.random.default_rng(1), Input(size, size).with_text("mean=none,scale=1/255,crop=centre")
    for number in range(12):
        theta, tx, ty, shear = random.uniform(-1, 1, 4) * (40, 0.2 * size, 0.2 * size, 20)
        zx, zy = random.uniform(0.8, 1.2, 2)
        across, down = number % 2 > 0, number % 3 > 0
        generator = legacy.ImageDataGenerator(fill_mode=("nearest", "reflect")[number % 2], rescale=1 / 255)
        truth = generator.standardize(generator.apply_transform(picture.copy(), {
            "theta": theta, "tx": tx, "ty": ty, "shear": shear, "zx": zx, "zy": zy, "flip_horizontal": across, "flip_vertical": down}))
        one = keras_affine(size, *(np.array([value]) for value in (theta, tx, ty, shear, zx, zy)))
        views = way.views(one @ flipped(size, np.array([across]), np.array([down])))
        ours = augment_images(squash(photograph, size)[None], views, size, fill=generator.fill_mode, device=cpu)
        np.testing.assert_allclose(ours[0], truth, atol=2e-5)      # of 1: float32 coordinates


def test_what_is_drawn_has_the_ranges_of_the_tutorials_generator():
    recipe = RECIPES["keras"]
    way = Input(recipe["side"], recipe["size"], recipe["fit"]).with_text(recipe["augment"])
    generator = legacy.ImageDataGenerator(rotation_range=40, width_shift_range=0.2, height_shift_range=0.2, shear_range=0.2, zoom_range=0.2,
                                          horizontal_flip=True, vertical_flip=True)
    np.random.seed(0)
    theirs = [generator.get_random_transform((224, 224, 3)) for _ in range(4000)]
    centre = (np.array([224, 224]) - 1) / 2
    ours = way.draw(7, 0, np.arange(4000)).astype(float)
    plain = np.stack([keras_affine(224, *(np.array([t[k]]) for k in ("theta", "tx", "ty", "shear", "zx", "zy")))[0]
                      @ flipped(224, np.array([t["flip_horizontal"]]), np.array([t["flip_vertical"]]))[0] for t in theirs])[:, :2].reshape(-1, 6)
    for column in range(6):
        assert abs(ours[:, column].mean() - plain[:, column].mean()) < 0.06 * plain[:, column].std() + 1e-9, column
        assert ours[:, column].std() == pytest.approx(plain[:, column].std(), rel=0.04), column
    middle = ours[:, [0, 3]] * centre[0] + ours[:, [1, 4]] * centre[1] + ours[:, [2, 5]] - centre      # where the output's centre comes from
    assert np.abs(middle).max() < 0.2 * 224 * np.sqrt(2) + 0.01


def keras_net(net):
    """The tutorial's model for this net's sizes, without dropout."""
    layers = [keras.layers.Input((net.size, net.size, 3)), keras.layers.ZeroPadding2D(((1, 2), (1, 2)))]
    for name, layer in net.layers.items():
        if name.startswith("conv"):
            layers.append(keras.layers.Conv2D(layer.filters, layer.window.size, strides=layer.window.stride, activation="relu",
                                              padding="valid" if name == "conv1" else "same"))
        elif name.startswith("pool"):
            layers.append(keras.layers.MaxPooling2D(3, 2))
        elif name.startswith("fc"):
            layers += [keras.layers.Flatten()] * (name == "fc6") + [keras.layers.Dense(layer.features, activation="relu" if layer.relu else "softmax")]
    model = keras.Sequential(layers)
    model.compile(keras.optimizers.Adam(RATE), "categorical_crossentropy", metrics=["accuracy"])
    return model


def test_twenty_steps_follow_keras(cpu):
    """From the same weights, on the same batches, without dropout. Both sides round in float32 and drift apart slowly: 6e-6 was seen."""
    net = build("half", 5, 64, fewer=4)
    for layer in net.layers.values():
        if hasattr(layer, "p"):
            layer.p = 0.0
    way, random = Input(64, 64).with_text("mean=none,scale=1/255,crop=centre,flip=none"), np.random.default_rng(0)
    own = Network(net, cpu, 16, input=way, optimizer=Adam(), init="published", seed=7)
    model, first = keras_net(net), net.initial("published", 7)
    model.set_weights(list(first.values()))      # Keras too has HWIO, and biases after weights
    shades = random.integers(40, 215, (5, 1, 1, 3))
    losses = []
    for step in range(20):
        labels = random.integers(0, 5, 16).astype(np.int32)
        images = np.clip(shades[labels] + random.normal(0, 30, (16, 64, 64, 3)), 0, 255).astype(np.uint8)
        own.train_step(images, labels, way.draw(7, 0, np.arange(16)), step, RATE)
        theirs = float(model.train_on_batch(images.astype(np.float32) * np.float32(1 / 255), np.eye(5, dtype=np.float32)[labels])[0])
        losses.append((float(own.results(16)[0].mean()), theirs))
        model.reset_metrics()
    ours, theirs = np.array(losses).T
    assert theirs[-8:].mean() < 0.95 * theirs[:8].mean()      # it learns, so that the weights matter
    np.testing.assert_allclose(ours, theirs, rtol=5e-5)


def test_keras_own_files_go_in_and_out(tmp_path):
    """A model saved in each of Keras' ways after a step of training, and weights of ours that Keras loads."""
    h5py = pytest.importorskip("h5py", reason="h5py is not installed (pip install 'minialex[keras]'): no file of Keras' is read")
    assert h5py
    net = build("half", 5, 64, fewer=4)
    model, pixels = keras_net(net), np.random.default_rng(0).random((16, 64, 64, 3), np.float32)
    model.train_on_batch(pixels, np.eye(5, dtype=np.float32)[np.arange(16) % 5])
    model.save(tmp_path / "a.keras"), model.save_weights(tmp_path / "b.weights.h5"), model.save(tmp_path / "c.h5")
    for name in "a.keras", "b.weights.h5", "c.h5":
        found = weights.read(tmp_path / name, net)
        assert all(np.array_equal(ours, theirs) for ours, theirs in zip(found.values.values(), model.get_weights(), strict=True)), name
    minialex.convert(tmp_path / "a.keras", tmp_path / "run", net=net)
    minialex.convert(tmp_path / "run", tmp_path / "again.weights.h5")
    again = keras_net(net)
    again.load_weights(tmp_path / "again.weights.h5")
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(again.get_weights(), model.get_weights(), strict=True))
