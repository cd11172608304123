"""Layouts that cannot be run are refused before anything is built."""

from __future__ import annotations

import pytest

from libai_ext.engine import layout
from libai_ext.errors import ConfigError
from projects.MAE.run import resolve

PRETRAINING = "projects/MAE/configs/mae_pretraining.py"
SMALL = [
    "model.arch=mae_vit_digits",  # 4 + 1 layers of width 64, 4 heads
    "train.global_batch_size=48",
]
DATA = "train.dist.data_parallel_size="
TENSOR = "train.dist.tensor_parallel_size="
PIPELINE = "train.dist.pipeline_parallel_size="
STAGES = "train.dist.custom_pipeline_stage_id="

BAD = [
    (8, [TENSOR + "3"], "data 2 x tensor 3 x pipeline 1 = 6 processes, but 8 are running"),
    (8, [DATA + "4", TENSOR + "4"], "data 4 x tensor 4 x pipeline 1 = 16 .*, but 8 are running"),
    (1, [PIPELINE + "2"], "data 1 x tensor 1 x pipeline 2 = 2 processes, but 1 are running"),
    (8, [TENSOR + "8"], "model.num_heads 4 is not divisible by tensor_parallel_size 8"),
    (8, [TENSOR + "8"], "model.decoder_num_heads 4 is not divisible by tensor_parallel_size 8"),
    (
        2,
        [TENSOR + "2", "model.decoder_embed_dim=63"],
        "decoder_embed_dim 63 .* model.decoder_num_heads 4",
    ),
    (3, [TENSOR + "3"], "model.embed_dim 64 is not divisible by tensor_parallel_size 3"),
    (3, [TENSOR + "3"], "MLP width .model.embed_dim x mlp_ratio. 256 is not divisible by .* 3"),
    (5, [], "global_batch_size 48 is not divisible by .*_steps 1 x data-parallel size 5"),
    (8, ["train.num_accumulation_steps=4"], "48 is not divisible by .* 4 x data-parallel size 8"),
    (6, [PIPELINE + "6"], "pipeline_parallel_size 6 is more than the model's 5 layers"),
    (2, [PIPELINE + "2", STAGES + "[0,1]"], "names 2 layers, the model has 5"),
    (2, [PIPELINE + "2", STAGES + "[0,0,0,0,0]"], "must rise from 0 to 1 without a gap"),
    (2, [PIPELINE + "2", STAGES + "[0,1,0,1,1]"], r"\[0, 1, 0, 1, 1\] must rise from 0 to 1"),
    (2, [PIPELINE + "2", STAGES + "3"], "stage_id must be a list: a whole number .* 0, not 3"),
    (2, [PIPELINE + "2", STAGES + "[0,a,0,1,1]"], "stage_id must be a list: .* not .0, 'a', 0, 1"),
    (2, [PIPELINE + "2", STAGES + "[0,0,0,-1,1]"], "stage_id must be a list: a whole number of at"),
    (2, [TENSOR + "0"], "tensor_parallel_size must be a whole number of at least 1, not 0"),
    (2, [DATA + "null", TENSOR + "null"], "only one size may be unset, not data.* and tensor"),
    (
        2,
        ["train.amp.enabled=True", "train.amp.min_scale=8", "train.amp.init_scale=4"],
        "train.amp.min_scale 8 is above train.amp.init_scale 4",
    ),
    (2, ["graph.enabled=False", "train.activation_checkpoint.enabled=True"], "in graphs only"),
]


@pytest.mark.parametrize("processes, options, message", BAD)
def test_bad_layouts(monkeypatch, processes, options, message):
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    with pytest.raises(ConfigError, match=message):
        resolve(PRETRAINING, [*SMALL, *options])


@pytest.mark.parametrize(
    "option, message",
    [
        ("train.zero_optimization.enabled=True", "OneFlow aborts .* on CPU; .* save memory"),
        (
            "train.amp.enabled=True",
            "bfloat16 products, which need a CPU; set train.amp.enabled=false",
        ),
    ],
)
def test_what_cannot_be_done_on_cpu(monkeypatch, option, message):
    monkeypatch.setattr(layout, "device_type", lambda: "cpu")
    monkeypatch.setattr(layout, "cpu_problem", lambda: "need a CPU")
    with pytest.raises(ConfigError, match=message):
        resolve(PRETRAINING, [*SMALL, option])


@pytest.mark.parametrize("mode", ["True", "False"])
def test_products_of_bfloat16_in_both_modes(monkeypatch, mode):
    monkeypatch.setattr(layout, "cpu_problem", lambda: None)
    cfg = resolve(PRETRAINING, [*SMALL, "train.amp.enabled=True", f"graph.enabled={mode}"])
    assert cfg.train.amp.enabled


def test_nothing_to_divide_among(monkeypatch):
    monkeypatch.setattr(layout, "device_type", lambda: "cuda")
    monkeypatch.setenv("WORLD_SIZE", "2")
    zero = "train.zero_optimization.enabled=True"
    with pytest.raises(ConfigError, match="over data-parallel processes, and .* is 1"):
        resolve(PRETRAINING, [*SMALL, zero, TENSOR + "2"])
    assert resolve(PRETRAINING, [*SMALL, zero]).train.dist.data_parallel_size == 2


@pytest.mark.parametrize("missing", [DATA, TENSOR, PIPELINE])
def test_one_size_follows_from_the_processes(monkeypatch, missing):
    monkeypatch.setenv("WORLD_SIZE", "8")
    given = [name + "2" for name in (DATA, TENSOR, PIPELINE) if name != missing]
    layout = resolve(PRETRAINING, [*SMALL, *given, missing + "null"]).train.dist
    assert (
        layout.data_parallel_size,
        layout.tensor_parallel_size,
        layout.pipeline_parallel_size,
    ) == (2, 2, 2)


def test_stages_by_cost_and_by_hand(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    layout = resolve(PRETRAINING, [*SMALL, PIPELINE + "2"]).train.dist
    # The decoder's one layer has four times the tokens of an encoder layer.
    assert layout.custom_pipeline_stage_id == [0, 0, 0, 0, 1]
    layout = resolve(PRETRAINING, [*SMALL, PIPELINE + "2", STAGES + "[0,1,1,1,1]"]).train.dist
    assert layout.custom_pipeline_stage_id == [0, 1, 1, 1, 1]


@pytest.mark.slow
def test_every_problem_is_listed_before_anything_runs(launch, tmp_path):
    """By the program as a user starts it: status 2, no output folder, no traceback."""
    out = launch.train(
        PRETRAINING,
        2,
        *SMALL,
        TENSOR + "3",
        "train.num_accumulation_steps=5",
        "train.zero_optimization.enabled=True",
        f"train.output_dir={tmp_path}/out",
        status=2,
    )
    lines = [line for line in out.splitlines() if line.startswith("  - ")]
    assert len(lines) == len(set(lines)) == 9
    assert "Traceback" not in out and not (tmp_path / "out").exists()
