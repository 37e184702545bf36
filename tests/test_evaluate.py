"""Evaluation and prediction as their users run them, held against what numpy makes of the network's probabilities."""

import csv
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from runs import draw_classes
from sklearn.metrics import precision_recall_fscore_support

from minialex import evaluate, predict, train
from minialex.command import run_command
from minialex.data.folder import open_validation
from minialex.data.image import square
from minialex.data.pack import pack
from minialex.errors import UserError
from minialex.run.run import Run
from minialex.run.scores import Evaluation, losses_and_ranks

COLOURS = {"amber": (210, 140, 40), "blue": (50, 70, 200), 'green, "deep"': (30, 130, 50), "grey": (120, 120, 120), "red": (200, 60, 50), "violet": (140, 60, 190)}
CLASSES = list(COLOURS)
WRONG = "amber/02.jpg", "blue/00.jpg", "grey/01.jpg"      # pictures of another colour than their folder's


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Six classes told apart by colour; in val three pictures lie in the wrong folder, and one file is damaged."""
    root = tmp_path_factory.mktemp("pictures")
    draw_classes(root, np.random.default_rng(6), 12, 4, COLOURS, noise=60, strays={f"val/{name}": COLOURS["red"] for name in WRONG})
    whole = (root / "val/red/00.jpg").read_bytes()
    (root / "val/red/damaged.jpg").write_bytes(whole[:len(whole) // 2])
    return root


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    assert train.main(["--data", str(data), "--out", str(out), "--size", "72", "--batch", "6", "--epochs", "2", "--lr", "0.003", "--device", "cpu"]) == 0
    return out


@pytest.fixture(scope="module")
def alone(data, run):
    """{path below val: probabilities} of the centre crop, and of the ten crops one by one, each picture in a batch of its own."""
    trained, found = Run(run, device="cpu"), {}
    network, way = trained.network, trained.input
    assert way.side > way.size
    for path in sorted((data / "val").glob("*/??.jpg")):
        ten = []
        for views in [way.centre(1), *way.ten(1)]:
            network.evaluate(square(path, way.side)[None], np.zeros(1, np.int32), views)
            ten.append(network.probabilities(1)[0].astype(np.float64))
        found[os.path.relpath(path, data / "val")] = ten[0], np.array(ten[1:])
    return found


def scored(run, data, tmp_path, *more):
    """What evaluate writes with --json."""
    file = tmp_path / "scores.json"
    assert evaluate.main([str(run), "--data", str(data), "--json", str(file), "--device", "cpu", *more]) == 0
    return json.loads(file.read_text())


def expected(p_of):
    """Of {path: probabilities}, the plain way: losses, how many classes come before the true one, true and likeliest class, its probability."""
    label = np.array([CLASSES.index(os.path.dirname(path)) for path in p_of])
    p = np.array(list(p_of.values()))
    before = (p > p[np.arange(len(p)), label][:, None]).sum(axis=1)
    return -np.log(p[np.arange(len(p)), label]), before, label, p.argmax(axis=1), p.max(axis=1)


@pytest.mark.parametrize("views", [1, 10])
def test_scores_are_those_of_the_probabilities(run, data, alone, tmp_path, capsys, views):
    told = scored(run, data, tmp_path, *["--ten-crop"] * (views == 10), "--batch", "5")
    out = capsys.readouterr().out
    loss, rank, label, predicted, likely = expected({path: centre if views == 1 else ten.mean(axis=0) for path, (centre, ten) in alone.items()})
    assert told["views"] == views and told["images"] == 24 and told["unreadable"] == 1
    assert told["loss"] == pytest.approx(loss.mean(), rel=1e-4)
    assert told["top1"] == pytest.approx((rank < 1).mean()) and told["top5"] == pytest.approx((rank < 5).mean())
    assert [entry["path"] for entry in told["per_image"]] == list(alone)
    assert [entry["loss"] for entry in told["per_image"]] == pytest.approx(loss.tolist(), rel=1e-3, abs=1e-6)
    assert [entry["rank"] for entry in told["per_image"]] == rank.tolist()
    assert [entry["label"] for entry in told["per_image"]] == [CLASSES[k] for k in label]
    assert [entry["predicted"] for entry in told["per_image"]] == [CLASSES[k] for k in predicted]
    assert [entry["probability"] for entry in told["per_image"]] == pytest.approx(likely.tolist(), rel=1e-4)

    confusion = np.array(told["confusion"])
    assert confusion.tolist() == [[int(((label == row) & (predicted == column)).sum()) for column in range(6)] for row in range(6)]
    assert confusion.sum() == 24 and confusion.trace() == round(24 * told["top1"]) < 24
    assert all((of["images"], of["top1"], of["recall"]) == (4, confusion[k, k] / 4, confusion[k, k] / 4) for k, of in enumerate(told["per_class"].values()))
    scores = precision_recall_fscore_support(label, predicted, zero_division=0)
    for name, of_classes in zip(("precision", "recall", "f1"), scores):
        assert [of[name] for of in told["per_class"].values()] == pytest.approx(of_classes.tolist()) and told["macro"][name] == pytest.approx(of_classes.mean())

    mistakes, paths = told["mistakes"], list(alone)
    assert {entry["path"] for entry in mistakes} == {paths[i] for i in np.flatnonzero(rank)} and len(mistakes) == 24 - confusion.trace()
    assert [entry["probability"] for entry in mistakes] == pytest.approx(sorted(likely[rank > 0], reverse=True), rel=1e-4)
    assert all(entry["label"] == os.path.dirname(entry["path"]) != entry["predicted"] for entry in mistakes)

    assert f"loss {told['loss']:.4f}   top-1 {told['top1']:.1%}   top-5 {told['top5']:.1%}   of 24 images" in out and "1 unreadable left out" in out
    assert ("ten crops of each" in out) == (views == 10)
    assert out.index("taken for") < out.index(f"the surest of {len(mistakes)} mistakes:") < out.index(mistakes[0]["path"] + " is ")


def test_ten_crops_are_not_the_centre(alone):
    centre, ten = (np.array(list(p)) for p in zip(*alone.values()))
    assert np.allclose(ten[:, 4], centre, rtol=1e-4) and not np.allclose(ten.mean(axis=1), centre, rtol=1e-3)


def test_without_some_images(run, data, tmp_path, capsys):
    whole = scored(run, data, tmp_path)
    names = ["blue/01.jpg", "val/red/02.jpg", str(data / "val/violet/00.jpg"), "./amber/02.jpg"]
    gone = {"blue/01.jpg", "red/02.jpg", "violet/00.jpg", "amber/02.jpg"}
    files = {"some.txt": "# leaked\n" + "\r\n".join([*names, "", "train/red/02.jpg"]),
             "some.json": json.dumps({"rule": "blue/02.jpg", "found": {"these": names[:2]}, "others": names[2:], "pairs": [["val/blue/03.jpg", "train/red/03.jpg", 4, 0.99]], "n": 4})}
    kept = [entry for entry in whole["per_image"] if entry["path"] not in gone]
    for name, text in files.items():
        (tmp_path / name).write_text(text)
        for where in data, data / "val":
            capsys.readouterr()
            told = scored(run, where, tmp_path, "--without", str(tmp_path / name))
            out, rest = capsys.readouterr().out, told.pop("without")
            assert {entry["path"] for entry in told["per_image"] if entry.pop("left_out")} == gone and told == whole
            assert (rest["left_out"], rest["images"], rest["file"]) == (4, 20, str(tmp_path / name))
            assert rest["loss"] == pytest.approx(sum(entry["loss"] for entry in kept) / 20, rel=1e-6)
            assert (rest["top1"], rest["top5"]) == tuple(sum(entry["rank"] < k for entry in kept) / 20 for k in (1, 5))
            assert f"top-1 {whole['top1']:.1%}" in out and f"top-1 {rest['top1']:.1%}" in out and "of 20 images, 4 left out" in out
            assert ("of whose paths 1 name no image here" in out) == (name == "some.txt")


def test_any_form_of_the_data_gives_the_same_scores(run, data, tmp_path):
    whole = scored(run, data, tmp_path)
    config = json.loads((run / "config.json").read_text())
    pack(open_validation(data, CLASSES), tmp_path / "packed", config["input"]["side"], warn=str)
    (tmp_path / "list.txt").write_text("".join(f"{data}/val/{entry['path']} {CLASSES.index(entry['label'])}\n" for entry in whole["per_image"]))
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES))
    for form in data / "val", tmp_path / "packed", tmp_path / "list.txt":
        told = scored(run, form, tmp_path)
        assert told["unreadable"] == (0 if form.suffix else 1)      # the list does not name the damaged file
        if form.suffix:
            assert [entry["path"] for entry in told["per_image"]] == [os.path.relpath(data / "val" / e["path"], tmp_path) for e in whole["per_image"]]
        else:
            assert [entry["path"] for entry in told["per_image"]] == [entry["path"] for entry in whole["per_image"]]
        assert told["loss"] == pytest.approx(whole["loss"], rel=1e-5) and told["confusion"] == whole["confusion"]


def test_a_class_without_images_has_no_accuracy(run, data, tmp_path, capsys):
    (tmp_path / "list.txt").write_text(f"{data}/val/red/01.jpg red\n{data}/val/blue/01.jpg blue\n")
    told = scored(run, tmp_path / "list.txt", tmp_path)
    assert told["images"] == 2 and told["per_class"]["grey"]["images"] == 0 and told["per_class"]["grey"]["top1"] is None and np.sum(told["confusion"]) == 2
    assert [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("grey")][0][:4] == ["grey", "0", "0", "-"]


def test_precision_recall_and_f1_are_scikit_learns():
    """Also of classes without images, without predictions, and without either, which it leaves out."""
    random = np.random.default_rng(0)
    for classes, truth, guess in (4, random.integers(0, 4, 60), random.integers(0, 4, 60)), (6, [0, 0, 1, 2, 2], [0, 3, 1, 1, 3]), (2, [0], [1]):
        counts = np.zeros((classes, classes), np.int64)
        np.add.at(counts, (truth, guess), 1)
        found = Evaluation(0.0, 0.0, 0.0, len(truth), [f"c{k}" for k in range(classes)], counts, [])
        there = sorted({*truth, *guess})
        for average, ours in (None, list(zip(*[[found.per_class[f"c{k}"][name] for name in ("precision", "recall", "f1")] for k in there]))), ("macro", tuple(found.macro.values())):
            theirs = precision_recall_fscore_support(truth, guess, average=average, zero_division=0)[:3]
            np.testing.assert_allclose(ours, theirs, rtol=1e-12)
        assert all(of["f1"] is None for name, of in found.per_class.items() if int(name[1:]) not in there)


def test_tables():
    counts = np.diag([3, 0, 12])
    counts[0, 2], counts[2, 1] = 1, 30
    lines = list(evaluate.class_table(Evaluation(0.0, 0.0, 0.0, 46, ["a", "b\n", "long name"], counts, [])))
    assert [line.split() for line in lines] == [["class", "images", "correct", "top-1", "precision", "F1"], ["a", "4", "3", "75.0%", "100.0%", "85.7%"],
                                                ["'b\\n'", "0", "0", "-", "0.0%", "0.0%"], ["long", "name", "42", "12", "28.6%", "92.3%", "43.6%"],
                                                ["mean", "46", "15", "34.5%", "64.1%", "43.1%"]] and len({len(line) for line in lines}) == 1
    lines = list(evaluate.confusion_table(["a", "b", "c"], counts))
    assert [line.split() for line in lines] == [["taken", "for", "0", "1", "2"], ["0", "a", "3", ".", "1"], ["1", "b", ".", ".", "."], ["2", "c", ".", "30", "12"]]
    assert len({len(line) for line in lines}) == 1

    counts = np.diag(1 + np.arange(1000) % 37)
    counts[:, 0] += 20
    counts[1], counts[500, 2], counts[74, 2] = 0, 1000, 1      # none; a small share of many; more than its like
    first, header, *lines, mean = evaluate.class_table(Evaluation(0.0, 0.0, 0.0, counts.sum(), [f"c{k}" for k in range(1000)], counts, []))
    assert mean.startswith("mean")
    assert first == "the 10 classes of 1000 that do worst:"
    assert [line.split()[0] for line in lines] == ["c500", "c74", "c37", *(f"c{37 * k}" for k in range(3, 10))]


def test_where_probabilities_round_to_the_same_the_rank_decides():
    p = np.array([[0.5, 0.5, 0.0], [0.5, 0.5, 0.0], [0.0, 1.0, 0.0], [0.0, np.nan, 0.0]])
    loss, rank = losses_and_ranks(p, np.array([0, 1, 2, 0]))
    assert rank.tolist() == [0, 1, 2, 1] and loss[:2] == pytest.approx(np.log(2)) and 80 < loss[2] < 100


# Prediction

def files_of(data):
    return sorted(str(path) for path in (data / "val").glob("*/*.jpg"))


def test_predictions_are_printed_in_sorted_order(run, data, alone, capsys):
    assert predict.main([str(run), str(data / "val"), "--top", "3", "--batch", "7", "--device", "cpu"]) == 2      # one file is damaged
    told = capsys.readouterr()
    assert told.err.count("damaged.jpg") == 1 and "damaged.jpg" not in told.out
    blocks = [told.out.splitlines()[i:i + 4] for i in range(0, 96, 4)]
    assert [block[0] for block in blocks] == [str(data / "val" / path) for path in alone] and len(told.out.splitlines()) == 96
    for block, (p, _) in zip(blocks, alone.values()):
        best = np.argsort(-p)[:3]
        assert [line.split("%  ")[1] for line in block[1:]] == [CLASSES[k] for k in best]
        assert [float(line.split("%")[0]) for line in block[1:]] == pytest.approx((100 * p[best]).tolist(), abs=0.02)


@pytest.mark.parametrize("ten", [False, True])
def test_csv_has_a_row_for_each_image(run, data, alone, tmp_path, capsys, ten):
    file = tmp_path / "out.csv"
    for top in None, 5:
        code = predict.main([str(run), str(data / "val"), "--csv", str(file), "--device", "cpu", *["--ten-crop"] * ten, *["--top", str(top)] * bool(top)])
        told = capsys.readouterr()
        assert code == 2 and "damaged.jpg" in told.err and told.out == f"{file}: 24 images, 1 unreadable left out\n"
        header, *rows = csv.reader(open(file, newline=""))
        assert header == ["image", "class", "probability", *(f"{name}{k}" for k in range(2, (top or 1) + 1) for name in ("class", "probability"))]
        assert [row[0] for row in rows] == list(alone)
        for row, (centre, crops) in zip(rows, alone.values()):
            p = crops.mean(axis=0) if ten else centre
            best = np.argsort(-p)[:top or 1]
            assert row[1::2] == [CLASSES[k] for k in best] and list(map(float, row[2::2])) == pytest.approx(p[best].tolist(), rel=1e-3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.csv"]


def test_csv_survives_odd_names(run, data, tmp_path, capsys):
    odd = ['a "b", c.jpg', "d\ne.jpg", "f\rg.jpg", os.fsdecode(b"h\xff.jpg")]
    folder, file = tmp_path / "odd" / "deep", tmp_path / "out.csv"
    folder.mkdir(parents=True)
    for name in odd:
        shutil.copy(data / "val/blue/01.jpg", folder / name)
    assert predict.main([str(run), str(tmp_path / "odd"), "--csv", str(file), "--device", "cpu"]) == 0
    rows = list(csv.reader(open(file, newline="", errors="surrogateescape")))[1:]
    assert [row[0] for row in rows] == [f"deep/{name}" for name in odd] and all(row[1] in CLASSES for row in rows)
    assert predict.main([str(run), str(folder / odd[0]), str(folder), "--csv", str(file), "--device", "cpu"]) == 0
    rows = list(csv.reader(open(file, newline="", errors="surrogateescape")))[1:]
    assert [row[0] for row in rows] == [str(folder / name) for name in (odd[0], *odd)]      # several PATHs: as they were given


def test_ilsvrc_form_has_a_line_for_each_image(run, data, alone, tmp_path):
    file = tmp_path / "out.txt"
    assert predict.main([str(run), str(data / "val"), "--csv", str(file), "--csv-form", "ilsvrc", "--device", "cpu"]) == 2
    lines = file.read_text().split("\n")
    assert len(lines) == 26 and lines.pop() == ""
    assert lines.pop([os.path.basename(path) for path in files_of(data)].index("damaged.jpg")) == ""
    assert lines == [" ".join(str(k + 1) for k in np.argsort(-p)[:5]) for p, _ in alone.values()]


def test_wordnet_classes_have_the_numbers_of_the_development_kit(tmp_path):
    classes = ["n01440764", "n01443537", "n02119789"]
    with pytest.raises(UserError, match="--csv-form ilsvrc .* map_clsloc.txt"):
        predict.numbers_of(classes, str(tmp_path / "test"))
    (tmp_path / "map_clsloc.txt").write_text("n02119789 1 kit_fox\nn01440764 449 tench\nn01443537 450 goldfish\n")
    assert predict.numbers_of(classes, str(tmp_path / "test")) == [449, 450, 1]
    with pytest.raises(UserError, match="knows no class n99999999"):
        predict.numbers_of([*classes, "n99999999"], str(tmp_path / "test"))
    assert list(predict.numbers_of(["n1", "n2"], str(tmp_path / "test"))) == [1, 2]


def test_a_list_and_files_that_are_all_damaged(run, data, tmp_path, capsys):
    (tmp_path / "some.txt").write_text(f"{data}/val/red/02.jpg\n{data}/val/blue/03.jpg\n")
    assert predict.main([str(run), str(tmp_path / "some.txt"), "--device", "cpu", "--top", "1"]) == 0
    assert capsys.readouterr().out.splitlines()[::2] == [f"{data}/val/red/02.jpg", f"{data}/val/blue/03.jpg"]
    bad, file = str(data / "val/red/damaged.jpg"), tmp_path / "out.csv"
    assert predict.main([str(run), bad, bad, "missing.jpg", "--device", "cpu", "--csv", str(file), "--csv-form", "ilsvrc"]) == 2
    told = capsys.readouterr()
    assert told.err.count("damaged.jpg") == 2 and "missing.jpg: No such file" in told.err and file.read_text() == "\n\n\n"


def test_classes_are_not_asked_for_beyond_what_the_network_knows(run, data):
    for options, words in (["--top", "0"], "expected at least 1"), (["--top", "7"], "knows 6 classes, so give a number from 1 to 6"), (
            ["--top", "6", "--csv", "x", "--csv-form", "ilsvrc"], "has 1 to 5 classes"), (["--csv-form", "plain"], "with --csv FILE"):
        with pytest.raises(UserError, match=words):
            predict.main([str(run), str(data / "val"), *options])


@pytest.mark.parametrize("command, words", [
    ("evaluate {run} --data nowhere", ["there is no folder nowhere"]),
    ("evaluate {empty} --data {data}", ["is not a run folder"]),
    ("evaluate {run} --data {empty}", ["has no class folders"]),
    ("evaluate {run} --data {data} --batch 0", ["--batch 0"]),
    ("evaluate {run} --data {data} --without nofile.txt", ["--without nofile.txt", "No such file"]),
    ("evaluate {run} --data {data} --without {strange}", ["strange.txt", "none of its 2 paths"]),
    ("evaluate {run} --data {data} --without {everything}", ["everything.txt", "all 25 images", "none would be left"]),
    ("evaluate {run} --data {data} --without {broken}", ["broken.json", "not the JSON"]),
    ("evaluate {run} --data {data} --json {empty}", ["it is a folder, so name a file"]),
    ("predict {run} {empty}", ["there are no images in"]),
    ("predict {run} missing.txt", ["missing.txt", "No such file"]),
    ("predict {run} missing.jpg", ["missing.jpg: No such file"]),
    ("predict {empty} {data}", ["is not a run folder"]),
    ("predict {run} {data}/val/red/01.jpg --batch 0", ["--batch 0"]),
    ("predict {run} {data}/val/red/01.jpg --top 0", ["--top 0"]),
    ("predict {run} {data}/val/red/01.jpg --top 7", ["--top 7", "6 classes"]),
    ("predict {run} {data}/val/red/01.jpg --csv nodir/x.csv", ["--csv nodir/x.csv", "there is no folder"]),
])
def test_a_mistake_is_one_sentence_and_code_2(run, data, tmp_path, monkeypatch, capsys, command, words):
    (tmp_path / "empty").mkdir()
    (tmp_path / "strange.txt").write_text("val/red/99.jpg\nred/98.jpg\n")
    (tmp_path / "everything.txt").write_text("".join(f"{path}\n" for path in files_of(data)))
    (tmp_path / "broken.json").write_text("{")
    monkeypatch.chdir(tmp_path)
    places = {"run": run, "data": data, "empty": tmp_path / "empty", **{name.split(".")[0]: tmp_path / name for name in ("strange.txt", "everything.txt", "broken.json")}}
    name, *arguments = command.format(**places).split()
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        run_command(lambda: {"evaluate": evaluate, "predict": predict}[name].main(arguments))
    told = capsys.readouterr().err
    assert end.value.code == 2 and told.count("\n") == 1 and all(word in told for word in words), told


@pytest.mark.parametrize("command, words", [("evaluate {run} --data {data} --batch 0", "error: --batch 0: expected at least 1\n"),
                                            ("predict {run} {data}/val/red/01.jpg --top 7", "error: --top 7: the network of {run} knows 6 classes, "
                                             "so give a number from 1 to 6\n")])
def test_so_it_is_for_the_commands_themselves(run, data, command, words):
    done = subprocess.run([sys.executable, "-m", *f"minialex.{command}".format(run=run, data=data).split()], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr == words.format(run=run)
