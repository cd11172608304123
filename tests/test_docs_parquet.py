"""docs/parquet.md: its code, and that a table is the folder it was made of."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from libai.config import instantiate
from PIL import Image

from libai_ext.data.sampler import SampleKey
from projects.MAE.run import resolve

PAGE = (Path(__file__).resolve().parents[1] / "docs/parquet.md").read_text()
(CODE,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)
FILE = "birds/train-00000-of-00001.parquet"


@pytest.fixture
def birds(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number in range(20):
        path = Path("birds/train", ("wren", "auk", "owl")[number % 3], f"{number:02d}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (30, 40, 3), np.uint8)
        Image.fromarray(pixels).save(path)


def test_a_table_is_its_folder(birds, capsys):
    exec(CODE, {})
    assert capsys.readouterr().out == f"20 ['auk', 'owl', 'wren'] {FILE}:0 0\n"
    for config, extra in (("mae_pretraining", []), ("mae_finetune", ["model.num_classes=3"])):
        options = ["model.img_size=[32,32]", *extra]
        sets = []
        for root in ("birds/train", FILE, "parquet:birds/train-*.parquet?label=label"):
            cfg = resolve(config, [*options, f"data.train=['{root}']"])
            sets.append(instantiate(cfg.dataloader.train.dataset))
        assert [len(dataset) for dataset in sets] == [20] * 3
        for epoch, index in ((0, 0), (3, 11), (1, 19)):
            samples = [dataset[SampleKey(epoch, index)] for dataset in sets]
            assert samples[0].keys() == samples[1].keys()
            for name in samples[0]:
                for sample in samples[1:]:
                    np.testing.assert_array_equal(sample[name], samples[0][name])
