from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from libai_ext.data.sampler import GlobalOrder
from libai_ext.engine import derive
from libai_ext.engine.derive import derive_batch, derive_best, derive_mode, derive_schedule
from libai_ext.errors import ConfigError


def config(**train):
    defaults = dict(
        train_micro_batch_size=None,
        global_batch_size=None,
        num_accumulation_steps=1,
        base_lr=1.5e-4,
        train_epoch=None,
        train_iter=None,
        warmup_epoch=0,
        warmup_iter=None,
        scheduler={},
        evaluation=dict(eval_period=5000, eval_epoch=None),
        checkpointer=dict(period=5000, epoch=None),
        dist=dict(data_parallel_size=1, tensor_parallel_size=1, pipeline_parallel_size=1),
    )
    return OmegaConf.create(dict(train=dict(defaults, **train), optim=dict(lr=None)))


@pytest.mark.parametrize(
    "train, ranks, batch, micro, lr",
    [
        (dict(train_micro_batch_size=64), 8, 512, 64, 3.0e-4),
        (dict(train_micro_batch_size=64, num_accumulation_steps=8), 8, 4096, 64, 2.4e-3),
        (dict(global_batch_size=4096, num_accumulation_steps=2), 16, 4096, 128, 2.4e-3),
        (dict(global_batch_size=4096, train_micro_batch_size=1), 4, 4096, 1024, 2.4e-3),
        (dict(train_micro_batch_size=128, base_lr=1e-3), 1, 128, 128, 5e-4),
    ],
)
def test_effective_batch_and_rate(train, ranks, batch, micro, lr):
    cfg = config(**train)
    cfg.train.dist.data_parallel_size = ranks
    derive_batch(cfg)
    assert cfg.train.global_batch_size == batch
    assert cfg.train.train_micro_batch_size == micro
    assert cfg.optim.lr == pytest.approx(lr, rel=1e-12)


def test_a_given_rate_stays():
    cfg = config(train_micro_batch_size=64)
    cfg.optim.lr = 0.3
    derive_batch(cfg)
    assert cfg.optim.lr == 0.3


@pytest.mark.parametrize(
    "train, message",
    [
        (dict(), "train_micro_batch_size or train.global_batch_size"),
        (dict(global_batch_size=10, num_accumulation_steps=3), "10 is not divisible by .*3 x"),
        (dict(train_micro_batch_size=8, base_lr=None), "train.base_lr"),
    ],
)
def test_incomplete_batches(train, message):
    with pytest.raises(ConfigError, match=message):
        derive_batch(config(**train))


@pytest.mark.parametrize(
    "samples, batch, remainder, total, warmup",
    [
        (1_281_167, 4096, "drop", 249_600, 12_480),  # the official code: 312 an epoch
        (1_281_167, 4096, "carry", 250_228, 12_512),
        (1_198, 128, "carry", 7_488, 375),
    ],
)
def test_800_epochs_with_40_of_warmup(samples, batch, remainder, total, warmup):
    cfg = config(train_epoch=800, warmup_epoch=40)
    derive_schedule(cfg, GlobalOrder(samples, batch, 0, remainder))
    assert (cfg.train.train_iter, cfg.train.warmup_iter) == (total, warmup)
    assert dict(cfg.train.scheduler) == {"max_iter": total, "warmup_iter": warmup}


def test_iterations_win_over_epochs():
    cfg = config(train_epoch=800, warmup_epoch=40, train_iter=20, warmup_iter=3)
    derive_schedule(cfg, GlobalOrder(100, 10, 0))
    assert (cfg.train.train_iter, cfg.train.warmup_iter) == (20, 3)


def test_a_run_needs_a_length():
    with pytest.raises(ConfigError, match="train.train_epoch or train.train_iter"):
        derive_schedule(config(), GlobalOrder(100, 10, 0))


def test_evaluation_every_epoch():
    cfg = config(train_iter=100)
    cfg.train.evaluation.eval_epoch = 2
    derive_schedule(cfg, GlobalOrder(1000, 64, 0))
    assert cfg.train.evaluation.eval_period == 32  # 31.25 iterations, the last one begun


WAYS = {"top1": "max", "loss": "min"}


def judged(metric, mode=None, ema=False):
    cfg = config(evaluation=dict(eval_metric=metric, eval_mode=mode), ema=dict(enabled=ema))
    derive_best(cfg, WAYS)
    return cfg.train.evaluation.eval_mode


@pytest.mark.parametrize(
    "metric, mode, ema, derived",
    [
        ("loss", None, False, "min"),
        ("loss", "min", False, "min"),
        ("top1", None, False, "max"),
        ("ema_loss", None, True, "min"),
        ("ema_top1", "max", True, "max"),
        (None, "max", False, "max"),
    ],
)
def test_the_better_way_is_the_metrics(metric, mode, ema, derived):
    assert judged(metric, mode, ema) == derived


@pytest.mark.parametrize(
    "metric, mode, ema, message",
    [
        ("loss", "max", False, "eval_mode=max .* the minimum of loss is best"),
        ("top1", "min", False, "eval_mode=min .* the maximum of top1 is best"),
        ("ema_loss", "max", True, "the minimum of ema_loss"),
        ("accuracy", None, False, "eval_metric 'accuracy' is not one of the results: top1, loss$"),
        ("ema_top1", None, False, "'ema_top1' is not one of the results: top1, loss$"),
        ("top5", None, True, "one of the results: top1, loss, ema_top1, ema_loss$"),
    ],
)
def test_a_metric_that_keeps_no_model_or_the_worst(metric, mode, ema, message):
    with pytest.raises(ConfigError, match=message):
        judged(metric, mode, ema)


def mode(monkeypatch, device, recorded=None, given=None, stages=1, **train):
    """``graph.enabled`` and what the log says of it."""
    monkeypatch.setattr(derive, "device_type", lambda: device)
    off = dict.fromkeys(("activation_checkpoint", "zero_optimization"), dict(enabled=False))
    cfg = config(**{**off, **train})
    cfg.train.dist.pipeline_parallel_size = stages
    cfg.graph = dict(enabled=given)
    notes = derive_mode(cfg, recorded)
    return cfg.graph.enabled, "".join(notes).partition(" is unset: ")[2]


STAGES = "only in a graph do pipeline stages work at the same time"
CHECKPOINT = dict(activation_checkpoint=dict(enabled=True))


@pytest.mark.parametrize(
    "device, options, graph, reason",
    [
        ("cpu", dict(), False, "on CPU it is mostly faster than a graph"),
        ("cuda", dict(), True, "the faster one on a GPU"),
        ("cpu", dict(stages=2, num_accumulation_steps=4), True, STAGES),
        ("cpu", dict(stages=2), False, "on CPU it is mostly faster than a graph"),
        ("cpu", dict(num_accumulation_steps=4), False, "on CPU it is mostly faster than a graph"),
        ("cpu", CHECKPOINT, True, "train.activation_checkpoint needs a graph"),
        ("cuda", dict(recorded=False), False, "that of the checkpoint"),
        ("cpu", dict(recorded=True), True, "that of the checkpoint"),
        ("cpu", dict(given=True, recorded=False), True, ""),
        ("cuda", dict(given=False), False, ""),
    ],
)
def test_graph_or_eager_mode(monkeypatch, device, options, graph, reason):
    found, said = mode(monkeypatch, device, **options)
    assert found is graph
    assert said.startswith(reason) and bool(said) == bool(reason)
