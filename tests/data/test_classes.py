"""Class numbers are those of the training data, whatever another split has or lacks."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from image_files import encode, pixels
from libai.config import instantiate
from made_runs import classified_run, weights_of
from made_sets import write_lmdb, write_stl10, write_tar

from libai_ext.checkpoint.errors import CheckpointError
from libai_ext.checkpoint.record import RECORD, dumps
from libai_ext.config import lazy_config
from libai_ext.data import classes
from libai_ext.errors import DataError
from projects.MAE.evaluation.probe import load_run, nearest_neighbours
from projects.MAE.run import resolve
from projects.MAE.weights.describe import describe
from projects.MAE.weights.files import read_weights, write_fb, write_hf
from projects.MAE.weights.packing import Heads

GOLDEN = Path(__file__).parents[1] / "golden"
CONFIGS = "projects/MAE/configs"
CLASSES = ("ant", "bee", "cat")


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def folder(root, names, each=2, start=0):
    """``each`` images a class; those of a class are the same in every folder of a start."""
    for name in names:
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(each):
            seed = 100 * (ord(name[0]) if name else 0) + start + number
            (root / name / f"{number}.png").write_bytes(encode(pixels(seed)))
    return str(root)


def check(tmp_path, test, train=None, head=3, split="test", names=None, weights=None):
    """The source that the task let pass.

    Args:
        names: of the head's classes, a file.
        weights: to start from, not read here but for what they say of classes.
    """
    opts = ["model.arch=mae_vit_digits", f"model.num_classes={head}"]
    opts += [f"train.output_dir={tmp_path}/run", *([f"task.classes={names}"] if names else [])]
    cfg = resolve(f"{CONFIGS}/mae_finetune.py", opts)
    cfg.train.load_weight = weights
    task = instantiate(cfg.task)

    def opened(roots):
        node = lazy_config.fresh(cfg.dataloader.test.dataset)
        node.source.roots = roots
        return instantiate(node)

    trained_on = opened(train) if train else None
    dataset = opened(test)
    task.check_data(dataset, cfg, f"data.{split}", trained_on)
    return dataset.source


def named(source):
    return [source.classes[source[i][1]] for i in range(len(source))]


def test_a_test_split_may_lack_classes(tmp_path):
    train = folder(tmp_path / "train", CLASSES)
    for present in (["bee", "cat"], ["cat"], ["ant", "cat"]):
        source = check(tmp_path, folder(tmp_path / "_".join(present), present), train)
        assert source.classes == list(CLASSES)
        assert named(source) == [name for name in present for _ in range(2)]
        assert source.labels.tolist() == [source[i][1] for i in range(len(source))]


@pytest.mark.parametrize("kind", ["tar", "list", "two folders"])
def test_so_may_those_of_other_readers(tmp_path, kind):
    """Names that are numbers are names: sorted, they are 0, 1, 10, 11, 2 ..."""
    train = folder(tmp_path / "train", [str(n) for n in range(12)])
    if kind == "tar":
        image = encode(pixels())
        rows = [("a.cls", b"5"), ("a.png", image), ("b.cls", b"11"), ("b.png", image)]
        test = [write_tar(tmp_path / "x.tar", rows)]
    elif kind == "list":
        (tmp_path / "list.txt").write_text("0.png 5\n1.png 11\n")
        test = [f"labels:{tmp_path}/list.txt:{folder(tmp_path / 'flat', [''])}"]
    else:
        test = [folder(tmp_path / "a", ["5"], 1), folder(tmp_path / "b", ["11"], 1)]
    source = check(tmp_path, test, train, head=12)
    assert source.labels.tolist() == [7, 3] and named(source) == ["5", "11"]


def test_unknown_classes_are_named(tmp_path):
    train = folder(tmp_path / "train", CLASSES)
    test = folder(tmp_path / "test", ["bee", "dog", "elk"])
    message = r"data.test has classes that the model was not trained on: dog, elk \(2\); known are "
    with pytest.raises(DataError, match=rf"{message}ant, bee, cat \(3\)"):
        check(tmp_path, test, train)
    # An empty folder has no sample to be of an unknown class.
    (tmp_path / "known/elk").mkdir(parents=True)
    source = check(tmp_path, folder(tmp_path / "known", ["cat"]), train)
    assert named(source) == ["cat", "cat"]


def test_splits_with_equally_many_other_classes(tmp_path):
    """Numbers for names: as many, sorted alike, and nothing that shows the difference."""
    (tmp_path / "list.txt").write_text("0.png 0\n1.png 2\n")
    folder(tmp_path / "flat", [""])
    train = folder(tmp_path / "train", CLASSES)
    with pytest.raises(DataError, match=r"not trained on: 0, 2 \(2\); known are ant, bee, cat"):
        check(tmp_path, f"labels:{tmp_path}/list.txt:{tmp_path}/flat", train)


@pytest.mark.parametrize("own", [True, False])
def test_a_checkpoint_names_the_classes(tmp_path, own):
    """In an order that is not theirs, to show where it comes from."""
    checkpoint = tmp_path / "run/model_final"
    checkpoint.mkdir(parents=True)
    (checkpoint / RECORD).write_text(dumps({"classes": ["cat", "ant", "bee"]}))
    (tmp_path / "run/last_checkpoint").write_text("model_final")
    test = folder(tmp_path / "test", ["bee", "cat"])
    options = {} if own else {"weights": str(checkpoint)}
    source = check(tmp_path, test, **options)
    assert source.classes == ["cat", "ant", "bee"]
    assert (named(source), source.labels.tolist()) == (["bee"] * 2 + ["cat"] * 2, [2, 2, 0, 0])
    # Further training of the same head too.
    train = check(tmp_path, folder(tmp_path / "train", CLASSES), split="train", **options)
    assert train.labels.tolist() == [1, 1, 2, 2, 0, 0]
    (tmp_path / "names.txt").write_text("cat\nant\nbee\n")
    check(tmp_path, test, names=tmp_path / "names.txt", **options)
    (tmp_path / "names.txt").write_text("ant\nbee\ncat\n")
    message = r"names.txt has ant, bee, cat \(3\), the checkpoint of .* cat, ant, bee \(3\)"
    with pytest.raises(DataError, match=message):
        check(tmp_path, test, names=tmp_path / "names.txt", **options)


@pytest.fixture(scope="module")
def named_weights(tmp_path_factory):
    """Folder of the same classifier in files that name its classes: cat, ant, bee."""
    root = tmp_path_factory.mktemp("weights")
    run, model = classified_run(root / "run", num_classes=3, pooling="cls")
    known = replace(describe(run)[1].record, classes=("cat", "ant", "bee"))
    for name in ("x.pth", "x.safetensors"):
        write_fb(weights_of(model), str(root / name), Heads(4), known)
    write_hf(weights_of(model), str(root / "hf"), Heads(4), known=known)
    return root


@pytest.mark.parametrize("file", ["x.pth", "x.safetensors", "hf"])
def test_files_of_weights_name_the_classes_too(tmp_path, named_weights, file, caplog):
    weights = str(named_weights / file)
    source = check(tmp_path, folder(tmp_path / "test", ["ant", "cat"]), weights=weights)
    assert source.classes == ["cat", "ant", "bee"]
    assert (named(source), source.labels.tolist()) == (["ant"] * 2 + ["cat"] * 2, [1, 1, 0, 0])
    assert "do not name their classes" not in caplog.text
    with pytest.raises(DataError, match=r"not trained on: dog \(1\); known are cat, ant, bee"):
        check(tmp_path, folder(tmp_path / "one", ["ant", "bee", "dog"]), weights=weights)


def test_as_many_classes_of_other_names_keep_their_order(tmp_path, named_weights, caplog):
    """ImageNet's folders are n01440764 and so on, Hugging Face's labels words."""
    weights, names = str(named_weights / "hf"), tmp_path / "names.txt"
    test = folder(tmp_path / "test", ["n1", "n2", "n3"])
    source = check(tmp_path, test, weights=weights)
    assert source.classes == ["n1", "n2", "n3"]
    said = "data.test has none of the classes that the weights name (cat, ant, bee)"
    assert said in caplog.text
    with pytest.raises(DataError, match="not trained on: n1, n2"):
        check(tmp_path, folder(tmp_path / "two", ["n1", "n2"]), weights=weights)
    names.write_text("n3\nn1\nn2\n")
    with caplog.at_level(logging.INFO):
        source = check(tmp_path, test, names=names, weights=weights)
    assert source.classes == ["n3", "n1", "n2"] and source.labels.tolist() == [1, 1, 2, 2, 0, 0]
    assert "n3, n1, n2 in place of the weights' cat, ant, bee" in caplog.text
    for wrong in ("n1\nn2\n", "ant\nbee\nn3\n"):
        names.write_text(wrong)
        with pytest.raises(DataError, match="leave task.classes out"):
            check(tmp_path, test, names=names, weights=weights)


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", "[", *(dumps({"classes": names}) for names in (None, [1], [""], "ab"))],
)
def test_checkpoints_that_name_none(tmp_path, content):
    (tmp_path / RECORD).write_text(content)
    assert classes.saved_classes(str(tmp_path)) is None
    assert classes.saved_classes(str(tmp_path / "none")) is None
    assert classes.saved_classes(str(tmp_path / RECORD)) is None


def test_weights_that_name_no_classes(tmp_path, caplog):
    """An official file: as many classes as the head has are its own, in order, and it is said;
    fewer need a list."""
    with caplog.at_level(logging.WARNING):
        source = check(tmp_path, folder(tmp_path / "all", CLASSES))
    assert source.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert "the weights do not name their classes: they are taken to be those of" in caplog.text
    some = folder(tmp_path / "some", ["bee", "cat"])
    with pytest.raises(
        DataError, match=r"data.test has 2 classes \(bee, cat\), the model's head 3"
    ):
        check(tmp_path, some)
    (tmp_path / "names.txt").write_text("ant\nbee\ncat\n")
    source = check(tmp_path, some, names=tmp_path / "names.txt")
    assert source.labels.tolist() == [1, 1, 2, 2]
    for text, message in (("", "names no class"), ("ant\nant\n", "names a class twice")):
        (tmp_path / "names.txt").write_text(text)
        with pytest.raises(DataError, match=message):
            check(tmp_path, some, names=tmp_path / "names.txt")
    with pytest.raises(DataError, match="task.classes /gone cannot be read: No such file"):
        check(tmp_path, some, names="/gone")


@pytest.mark.parametrize("kind", ["flat", "lmdb", "tar", "stl10", "mixed"])
@pytest.mark.parametrize("head", [1, 3])
def test_data_without_classes_are_called_so(tmp_path, kind, head):
    flat = folder(tmp_path / "flat", [""])
    if kind == "lmdb":
        roots = [write_lmdb(tmp_path / "lmdb", [encode(pixels())])]
    elif kind == "tar":
        roots = [write_tar(tmp_path / "x.tar", [("1.png", encode(pixels()))])]
    elif kind == "stl10":
        write_stl10(tmp_path)
        roots = [f"stl10:unlabeled:{tmp_path}"]
    else:
        roots = [flat] if kind == "flat" else [folder(tmp_path / "train", CLASSES), flat]
    with pytest.raises(DataError) as caught:
        check(tmp_path, roots, head=head, split="train")
    assert "data.train: " in str(caught.value) and " samples have no class, such as " in str(
        caught.value
    )
    assert "labels:FILE:FOLDER" in str(caught.value) and "num_classes" not in str(caught.value)


def test_a_wrong_number_of_training_classes_shows_them(tmp_path):
    (tmp_path / "train/annotations").mkdir(parents=True)
    train = folder(tmp_path / "train", CLASSES)
    message = r"data.train has 4 classes \(annotations, ant, bee, cat\), the model's head 3: set "
    with pytest.raises(DataError, match=f"{message}.*; without an image: annotations"):
        check(tmp_path, train, split="train")


def test_training_without_a_mixer_is_called_so(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        check(tmp_path, folder(tmp_path / "train", CLASSES), split="train")
        assert "no label smoothing: dataloader.train.dataset.mixer is null" in caplog.text
        caplog.clear()
        check(tmp_path, str(tmp_path / "train"))
    assert "smoothing" not in caplog.text


DIGITS = f"{CONFIGS}/mae_digits.py"
COLOUR = ["model.in_chans=3", "data.mode=RGB", "data.mean=[0.5,0.5,0.5]", "data.std=[1,1,1]"]


def neighbours(train, test, counts=None, config_file=DIGITS, options=()):
    opts = [f"data.train=[{train}]", f"data.test=[{test}]", "model.depth=1", *COLOUR, *options]
    return nearest_neighbours(load_run(config_file, opts, weights=False), counts)


def test_neighbours_of_exact_copies_without_one_class(tmp_path):
    """Numbered by itself, the test split would call its bees ants."""
    train = folder(tmp_path / "train", CLASSES)
    assert neighbours(train, folder(tmp_path / "test", ["bee", "cat"]))[1] == 100.0
    assert neighbours(train, folder(tmp_path / "one", ["cat"]), [1]) == {1: 100.0}
    with pytest.raises(DataError, match="data.test has classes that .*: dog"):
        neighbours(train, folder(tmp_path / "other", ["ant", "dog"]))
    with pytest.raises(DataError, match="data.train: 2 of 2 samples have no class"):
        neighbours(folder(tmp_path / "flat", [""]), folder(tmp_path / "test", ["bee"]))
    with pytest.raises(DataError, match="data.test: 2 of 2 samples have no class"):
        neighbours(train, str(tmp_path / "flat"))


def test_neighbours_among_few_images(tmp_path):
    """As many of 1, 5, 10 and 20 as there are images; what was asked for is an error."""
    few = folder(tmp_path / "few", CLASSES, each=1)
    assert neighbours(few, few) == {1: 100.0}
    twelve = folder(tmp_path / "twelve", CLASSES, each=4)
    assert list(neighbours(twelve, few)) == [1, 5, 10]
    for count in (20, 0):
        with pytest.raises(DataError, match=f"{count} neighbours among 12 training samples"):
            neighbours(twelve, few, [1, count])


def test_samples_without_a_class_are_no_neighbours(tmp_path, caplog):
    """The unlabelled part of mae_stl10.py's training data."""
    train = folder(tmp_path / "train", CLASSES)
    flat = folder(tmp_path / "flat", [""], start=100 * ord("a"))  # the ants, without a name
    with caplog.at_level(logging.WARNING):
        assert neighbours(f"{train},{flat}", train, [1]) == {1: 100.0}
    assert "data.train: 2 samples without a class are skipped" in caplog.text


@pytest.mark.parametrize("name", ["mae_finetune", "mae_linprobe"])
def test_neighbours_by_a_classifier(tmp_path, name):
    options = ["model.arch=mae_vit_digits", "model.num_classes=3", "model.n_partial=0"]
    options += ["data.std=[0.2,0.2,0.2]"]
    train = folder(tmp_path / "train", CLASSES)
    found = neighbours(train, train, [1], f"{CONFIGS}/{name}.py", options)
    assert found == {1: 100.0}


def test_neighbours_by_the_weights_of_finetune_path(tmp_path):
    """A fine-tuning config without a run of its own yet."""
    sizes = ["img_size=[8,8]", "patch_size=2", "embed_dim=12", "depth=2", "num_heads=3"]
    opts = [f"model.{size}" for size in sizes]
    opts += [f"finetune.path={GOLDEN}/fb_finetune.pth", f"train.output_dir={tmp_path}/none"]
    config_file = f"{CONFIGS}/mae_finetune.py"
    weights, _ = read_weights(f"{GOLDEN}/fb_finetune.pth", Heads(encoder=3))
    for trial in (False, True):
        if trial:  # it leaves a folder without a checkpoint
            (tmp_path / "none/fast_dev_run").mkdir(parents=True)
        loaded = load_run(config_file, opts).model.state_dict()
        for name in ("patch_embed.proj.weight", "blocks.1.mlp.dense_h_to_4h.weight"):
            np.testing.assert_array_equal(loaded[name].numpy(), weights[name])
    # Nothing stands for weights that are named and missing, or for a run from scratch.
    for option in (f"train.load_weight={tmp_path}/gone.pth", "finetune.enable=False"):
        with pytest.raises(CheckpointError, match="gone.pth: no such file|none: "):
            load_run(config_file, [*opts, option])
