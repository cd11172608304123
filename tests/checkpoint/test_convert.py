"""The command `tools/convert.py`, as a user runs it."""

from __future__ import annotations

import importlib.util
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from libai_ext.checkpoint import formats, safetensors_file

SCRIPT = pathlib.Path(__file__).parents[2] / "tools" / "convert.py"
HEADS = ("--encoder-heads", "3", "--decoder-heads", "2")


def script():
    """The command as a module."""
    spec = importlib.util.spec_from_file_location("convert", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def convert(*arguments):
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_a_tour_of_all_styles_returns_every_bit(golden, tmp_path):
    tour = [
        (golden / "fb_pretrain.pth", tmp_path / "libai", "oneflow", *HEADS, "--grid", "4x4"),
        (tmp_path / "libai", tmp_path / "hf", "hf"),
        (tmp_path / "hf", tmp_path / "hf.bin", "hf"),
        (tmp_path / "hf.bin", tmp_path / "back.pth", "fb", *HEADS),
    ]
    for source, target, style, *options in tour:
        result = convert(source, target, "--to", style, *options)
        assert (result.returncode, result.stderr) == (0, "")
        assert "50 tensors equal bit for bit" in result.stdout
    original = formats.load(golden / "fb_pretrain.pth")["model"]
    back = formats.load(tmp_path / "back.pth")["model"]
    assert original.keys() == back.keys()
    for name, array in original.items():
        assert array.tobytes() == back[name].tobytes(), name


def test_the_table_says_what_went_where(golden, tmp_path):
    result = convert(golden / "hf_pretrain", tmp_path / "out.pth", "--to", "timm")
    assert result.returncode == 0, result.stderr
    rows = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert "1 x embeddings.position_embeddings -> pos_embed" in rows
    assert (
        "2 x encoder.layer.#.attention.attention.{query,key,value}.weight "
        "-> blocks.#.attn.qkv.weight" in rows
    )
    assert "1 x decoder.mask_token -> left out" in rows
    assert "30 tensors equal bit for bit" in result.stdout
    assert list(formats.load(tmp_path / "out.pth"))[-1].startswith("norm.")


def test_bfloat16_is_widened_and_said_to_be(golden, tmp_path):
    state = formats.load(golden / "timm_cls.safetensors")
    halves = {name: array.view(np.uint16)[..., 1::2] for name, array in state.items()}
    header, content = {}, b""
    for name, bits in halves.items():
        end = len(content) + bits.nbytes
        offsets = [len(content), end]
        header[name] = {"dtype": "BF16", "shape": list(bits.shape), "data_offsets": offsets}
        content += bits.tobytes()
    encoded = json.dumps(header).encode()
    source = tmp_path / "half.safetensors"
    source.write_bytes(len(encoded).to_bytes(8, "little") + encoded + content)
    result = convert(source, tmp_path / "out.pth", "--to", "timm", *HEADS)
    assert result.returncode == 0, result.stderr
    assert "bfloat16 (widened to float32)" in result.stdout
    for name, array in formats.load(tmp_path / "out.pth").items():
        assert array.dtype == np.float32
        expected = halves[name].astype(np.uint32) << 16
        assert array.tobytes() == expected.tobytes(), name


def test_the_grid_of_text_lines_goes_into_the_configuration(golden, tmp_path):
    result = convert(
        golden / "fb_text_line.pth", tmp_path / "hf", "--to", "hf", "--grid", "2x8", *HEADS
    )
    assert result.returncode == 0, result.stderr
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    expected = dict(
        architectures=["ViTMAEForPreTraining"],
        image_size=[4, 16],
        patch_size=2,
        num_channels=3,
        hidden_size=12,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=48,
        decoder_hidden_size=8,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=32,
        layer_norm_eps=1e-6,
    )
    assert {key: config[key] for key in expected} == expected


def test_inspect_shows_names_shapes_types_style_and_size(golden):
    result = convert("--inspect", golden / "fb_finetune.pth")
    assert (result.returncode, result.stderr) == (0, "")
    rows = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert "model/cls_token float32 [1, 1, 12]" in rows
    assert "model/blocks.1.attn.qkv.weight float32 [36, 12]" in rows
    assert "args argparse.Namespace, not read" in rows
    assert "epoch 99" in rows
    assert rows[-2].startswith("32 tensors under 'model', 4,229 elements")
    assert rows[-1] == "style: fb"
    assert "bfloat16 [4]" in convert("--inspect", golden / "tensors.safetensors").stdout


def test_a_bit_that_changes_on_the_way_is_noticed(golden, tmp_path, monkeypatch, capsys):
    program = script()
    write = program.files.write_fb

    def write_wrongly(weights, *others):
        flipped = weights["norm.bias"].copy()
        flipped.view(np.uint32)[3] ^= 1
        write({**weights, "norm.bias": flipped}, *others)

    monkeypatch.setattr(program.files, "write_fb", write_wrongly)
    arguments = [str(golden / "hf_pretrain"), str(tmp_path / "x.pth"), "--to", "fb"]
    assert program.main(arguments) == 2
    assert capsys.readouterr().err.endswith("x.pth: the round trip changed layernorm.bias\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{golden}/none.pth", "{tmp}/x"], "none.pth: no such file"),
        (["{golden}/fb_pretrain.pth", "{tmp}/x"], "must be given: Heads(encoder=...)"),
        (["{golden}/hf_pretrain", "{tmp}/x.pth"], "--to oneflow writes a folder"),
        (["{golden}/hf_pretrain", "{tmp}/x.zip", "--to", "fb"], "must end in one of .pth"),
        (["{golden}/hf_pretrain", "{tmp}/no/x.pth", "--to", "fb"], "cannot be written"),
        (["{golden}/hf_pretrain", "{golden}/hf_pretrain"], "SRC and DST are the same"),
        (["{golden}/fb_finetune.pth", "{tmp}/x", "--to", "hf", *HEADS], "mean-pooled"),
        (["{golden}/tensors.pth", "{tmp}/x", "--to", "fb"], "holds no state dict"),
        (["{golden}/tensors.safetensors", "{tmp}/x"], "no blocks with names of a known style"),
        (["{golden}/fb_pretrain.pth", "{tmp}/x", *HEADS, "--grid", "3x4"], "not a 3 x 4 grid"),
        (["{golden}/fb_pretrain.pth", "{tmp}/x", "--to", "hf", *HEADS], "1x16, 2x8, 4x4, 8x2"),
        (["{golden}/hf_pretrain", "{tmp}/x", "--grid", "2x8"], "config.json says 4 x 4"),
        (["{golden}/hf_pretrain", "{tmp}/x", "--encoder-heads", "2"], "config.json says 3"),
        (["{golden}/hf_pretrain", "{tmp}/x", "--to", "hf", "--grid", "wide"], "--grid"),
        (["{golden}/hf_pretrain"], "SRC and DST are needed"),
        (["--inspect", "{golden}/reference_mae.py"], "not a file that torch.save wrote"),
    ],
)
def test_mistakes_end_in_status_2_and_a_sentence(golden, tmp_path, arguments, message):
    filled = [argument.format(golden=golden, tmp=tmp_path) for argument in arguments]
    result = convert(*filled)
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_names_in_a_file_are_shown_as_text(tmp_path, capsys):
    """No escape of a terminal, no second line."""
    names = {"\x1b[2J": np.ones(2, np.float32), "a\nstyle: fb": np.ones(3, np.float32)}
    path = tmp_path / "\udcff.safetensors"
    safetensors_file.save(names, str(path))
    script().inspect(str(path))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:2]] == [r"\x1b[2J", r"a\nstyle:"]
    assert lines[2].startswith("2 tensors at the top") and "\x1b" not in "".join(lines)
    assert script().main(["--inspect", str(tmp_path / "\x1b\udcff.pth")]) == 2
    assert rf"convert: error: {tmp_path}/\x1b\xff.pth" in capsys.readouterr().err
