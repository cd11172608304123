"""The tables of tools/benchmarks."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from libai_ext.checkpoint import safetensors_file
from projects.MAE.modeling.pos_embed import sincos_pos_embed
from projects.MAE.run import resolve

BENCHMARKS = Path(__file__).resolve().parents[2] / "tools/benchmarks"
with pytest.MonkeyPatch.context() as patch:  # for now: data.py there would hide the tests' folder
    patch.syspath_prepend(BENCHMARKS)
    import cifar10_pytorch
    from markers import Place
    from protocols import LOGS, PAGE, RECIPES, check_logs, check_options, parse_args, read, table
    from steps import AUTOCAST, FLOAT32, PRODUCTS_ONLY, Measured, as_markdown
    from steps_side import flops


def test_a_table_of_steps_has_medians_ratios_of_pairs_memory_and_shares():
    times = {FLOAT32: [2.0, 1.0, 4.0], "eager": [1.0, 0.9, 8.0]}
    row = Measured(
        "pretrain", "tiny", times, {FLOAT32: 0.5, "eager": 0.75}, flops("pretrain", "tiny")
    )
    lines = as_markdown("float32", [row]).splitlines()
    assert lines[0].startswith("| float32 | PyTorch, s | eager, s |")
    assert lines[2] == (
        "| tiny, batch 64, pre-training | 2.00 | 1.00 (0.90) | 0.5, 0.8 | 50, 100 |"
    )

    times = {PRODUCTS_ONLY: [0.4], AUTOCAST: [0.2], "eager-bf16": [0.1]}
    row = Measured("finetune", "cifar", times, dict.fromkeys(times, 1.0), 1e12)
    line = as_markdown("bfloat16 products", [row]).splitlines()[2]
    assert "fine-tuning | 0.400 (2.00) | 0.200 | 0.100 (0.50) |" in line


def test_flops_of_a_step_of_vit_b():
    """12 layers of 24 N D^2 + 4 N^2 D, the patch embedding, twice more for the gradients."""
    tokens, dim = 197, 768
    layers = 12 * (24 * tokens * dim**2 + 4 * tokens**2 * dim)
    assert flops("finetune", "base") == 3 * 8 * (layers + 2 * 196 * 768 * dim)


def test_only_the_text_between_the_markers_changes(tmp_path):
    page = tmp_path / "page.md"
    before = "a\n<!-- x.py -->\n1\n<!-- end -->\nb\n<!-- y.py -->\n2\n<!-- end -->\n"
    page.write_text(before)
    Place(page, "y.py").write("\\1\n")
    assert page.read_text() == before.replace("2", "\\1")
    with pytest.raises(ValueError, match=r"page\.md has no place for a table: <!-- z"):
        Place(page, "z.py")


@pytest.mark.parametrize(
    "program, page",
    [
        ("steps.py", "README.md"),
        ("cifar10_pytorch.py", "projects/MAE/README.md"),
        *((f"protocols.py {name}", page) for name in RECIPES for page in RECIPES[name].pages),
    ],
)
def test_a_page_has_a_place_for_each_table(program, page, tmp_path):
    copy = tmp_path / "page.md"
    copy.write_text((BENCHMARKS.parents[1] / page).read_text())
    Place(copy, f"tools/benchmarks/{program}").write("the table\n")
    assert copy.read_text().count(f"{program} -->\nthe table\n<!-- end -->") == 1


def test_the_command_beside_the_table():
    page = (BENCHMARKS.parents[1] / "README.md").read_text()
    (command,) = re.findall(r"`\.venv/bin/python tools/benchmarks/protocols.py (.*?)`", page, re.S)
    args = parse_args(command.split())
    assert (args.recipe, args.seeds) == ("cifar10", 2)
    assert args.options == ["train.amp.enabled=True", "data.download=True"]


def test_results_with_other_options_are_not_mixed(tmp_path):
    for _ in range(2):
        check_options(tmp_path / "new", ["model.depth=2"])
    with pytest.raises(
        SystemExit, match=r'new has results with other options: \["model.depth=2"\]'
    ):
        check_options(tmp_path / "new", [])


def test_logs_of_more_seeds_are_not_mixed(tmp_path):
    for name in ("pretraining", "pretraining_float32", "head_scratch_0", "head_scratch_1"):
        (tmp_path / name).mkdir()
    check_logs(tmp_path, RECIPES["cifar10"].protocols, 2)
    with pytest.raises(SystemExit, match="has logs of more seeds: .* remove head_scratch_1$"):
        check_logs(tmp_path, RECIPES["cifar10"].protocols, 1)


@pytest.mark.parametrize("name", RECIPES)
def test_tables_of_protocols_are_those_of_the_logs(name):
    text = table(RECIPES[name].protocols, LOGS / name)
    for page in RECIPES[name].pages:
        assert text in (BENCHMARKS.parents[1] / page).read_text()


def test_the_table_beside_pytorch_is_that_of_the_logs():
    text = cifar10_pytorch.comparison(cifar10_pytorch.LOG, LOGS / "cifar10")
    assert text in (BENCHMARKS.parents[1] / PAGE).read_text()


def losses_apart(name: str) -> dict[int, float]:
    """By iteration, how far the losses of a repeated pre-training are from those of the first."""
    first, again = (
        {line["iteration"]: line["total_loss"] for line in read(LOGS / "cifar10" / run)}
        for run in ("pretraining", name)
    )
    return {at: abs(again[at] / first[at] - 1) for at in again if at in first}


def test_products_of_bfloat16_hardly_change_the_loss():
    """As libai_ext/csrc/README.md says of the logs."""
    apart = losses_apart("pretraining_float32")
    assert len(apart) == 22 and max(apart) == 1050
    share = [round(100 * of(list(apart.values())), 1) for of in (np.median, max)]
    assert share == [0.1, 1.1]
    assert apart[1000] < 0.002


def test_stops_do_not_change_the_curve():
    """As projects/MAE/README.md says of the logs."""
    apart = losses_apart("pretraining_stopped")
    assert len(apart) == len(read(LOGS / "cifar10/pretraining")) and max(apart) == 3907
    share = [round(100 * of(list(apart.values())), 2) for of in (np.median, max)]
    assert share == [0.02, 0.27]


def test_the_comparison_with_pytorch_is_of_the_last_epoch(tmp_path):
    log = [
        {"torch": "2.13"},
        *({"stage": "pretrain", "epoch": n, "loss": 1.0 / n} for n in (1, 2, 3, 4)),
        {"stage": "probe", "epoch": 1, "loss": 2.0, "top1": 44.44},
        *({"stage": "finetune", "epoch": n, "loss": 1.0, "top1": 30.0 * n} for n in (1, 2)),
    ]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    runs = {
        # The last of four epochs has 10 of 40 iterations, the last line 4 of them.
        "pretraining": [(30, 9.0, {}), (36, 0.5, {}), (40, 0.75, {"knn/top1": 50.0})],
        "head_pretrained_0": [(10, 1.0, {"top1": 30.0}), (20, 1.0, {"top1": 45.67})],
        "everything_pretrained_0": [(20, 1.0, {"top1": 59.96})],
    }
    for name, lines in runs.items():
        (tmp_path / name).mkdir()
        rows = [{"iteration": n, "total_loss": loss, **more} for n, loss, more in lines]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / name / "metrics.jsonl").write_text(text)
    table = cifar10_pytorch.comparison(tmp_path / "log.jsonl", tmp_path)
    assert table.splitlines()[2:] == [
        "| loss of pre-training | 0.600 | 0.250 |",
        "| the head (linear probe), top-1 | 45.7 | 44.4 |",
        "| everything, top-1 | 60.0 | 60.0 |",
    ]


@pytest.mark.slow
def test_the_recipe_in_pytorch_runs(launch, oracle_python, tmp_path):
    """In an environment without OneFlow; what has ended is not repeated."""
    rng = np.random.default_rng(0)
    for number in range(300):
        path = tmp_path / f"images/{number % 2}/{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(256, size=(32, 32, 3), dtype=np.uint8)).save(path)
    root, output = tmp_path / "images", tmp_path / "output"
    options = ["--train", root, "--test", root, "--epochs", 1, "--label-epochs", 1, "--bf16"]
    command = [oracle_python, BENCHMARKS / "cifar10_pytorch.py", output, *options]
    for stages in (["probe"], ["probe", "finetune"]):
        launch(*command, "--stages", *stages, env={"PYTHONPATH": "."})
    lines = [json.loads(line) for line in (output / "results.jsonl").read_text().splitlines()]
    epochs = [line for line in lines if "stage" in line]
    assert [line["stage"] for line in epochs] == ["pretrain", "probe", "finetune"]
    assert 1 < epochs[0]["loss"] < 3 and epochs[1]["loss"] == pytest.approx(np.log(2), abs=0.1)
    assert all(line["images"] == 300 and line["commit"] for line in lines if "torch" in line)
    weights = safetensors_file.load(output / "pretrained/model.safetensors")
    for name in ("vit.embeddings.position_embeddings", "decoder.decoder_pos_embed"):
        positions = weights[name]  # transformers leaves them at zero in a new model
        np.testing.assert_array_equal(positions, sincos_pos_embed((8, 8), positions.shape[-1]))


@pytest.mark.parametrize(
    "config, options, recipe",
    [
        ("mae_cifar10_small", [], cifar10_pytorch.PRETRAINING),
        ("mae_cifar10_small_finetune", ["finetune.enable=False"], cifar10_pytorch.LABELS),
    ],
)
def test_the_recipe_in_pytorch_is_that_of_the_config(config, options, recipe):
    cfg = resolve(f"projects/MAE/configs/{config}.py", options)
    train, optim = cfg.train, cfg.optim
    crop, _, to_array = cfg.dataloader.train.dataset.transform.transforms
    assert recipe == (
        train.train_epoch,
        train.warmup_epoch,
        train.base_lr,
        train.scheduler.min_lr,
        tuple(optim.betas),
        tuple(crop.scale),
        optim.params.get("decay", 1.0),
    )
    assert cifar10_pytorch.BATCH == train.global_batch_size
    assert cifar10_pytorch.WEIGHT_DECAY == optim.params.weight_decay
    assert (list(to_array.mean), list(to_array.std)) == (cifar10_pytorch.MEAN, cifar10_pytorch.STD)
    size, *sizes = cifar10_pytorch.MODEL.values()
    keys = ("patch_size", "embed_dim", "depth", "num_heads")
    assert list(cfg.model.img_size) == [size, size]
    assert sizes == [cfg.model[key] for key in keys]
    if config == "mae_cifar10_small":
        keys = ("decoder_embed_dim", "decoder_depth", "decoder_num_heads")
        assert list(cifar10_pytorch.DECODER.values()) == [cfg.model[key] for key in keys]
        assert cfg.model.norm_pix_loss
