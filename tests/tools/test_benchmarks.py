"""The tables of tools/benchmarks."""

from __future__ import annotations

from pathlib import Path

import pytest

from projects.MAE.run import resolve

BENCHMARKS = Path(__file__).resolve().parents[2] / "tools/benchmarks"
with pytest.MonkeyPatch.context() as patch:  # for now: data.py there would hide the tests' folder
    patch.syspath_prepend(BENCHMARKS)
    import cifar10_pytorch
    from markers import Place
    from protocols import RECIPES
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
        *((f"protocols.py {recipe}", "projects/MAE/README.md") for recipe in RECIPES),
    ],
)
def test_a_page_has_a_place_for_each_table(program, page, tmp_path):
    copy = tmp_path / "page.md"
    copy.write_text((BENCHMARKS.parents[1] / page).read_text())
    Place(copy, f"tools/benchmarks/{program}").write("the table\n")
    assert copy.read_text().count(f"{program} -->\nthe table\n<!-- end -->") == 1


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
