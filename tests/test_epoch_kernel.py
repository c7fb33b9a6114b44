"""The epoch kernel gives what the torch engine gives: every rule, odd sizes, threads, checkpoints, bad numbers."""
import math
import os
import subprocess
import sys
from functools import partial

import pytest
import torch

from amcl_suite.core.configuration import changed
from amcl_suite.core.stacked import StackedPerceptron
from amcl_suite.core.row_losses import Watched
from amcl_suite.core.timing import limited_threads
from amcl_suite.core.training import ShuffledBatches, TrainingSettings, fit
from amcl_suite.core.training_engines import make_engine, obstacle
from amcl_suite.mcl.assignment import annealed, relaxed, top_n, uniform, winner_takes_all
from amcl_suite.mcl.networks import MultiHypothesisNetwork
from amcl_suite.mcl.regression import UCIConfig
from amcl_suite.mcl.stacked import distortion_loss, stacked_loss
from amcl_suite.mcl.uci_runs import run_uci

RULES = dict(
    wta=lambda epoch: winner_takes_all, uniform=lambda epoch: uniform,
    relaxed=lambda epoch: partial(relaxed, epsilon=0.1),
    falling=lambda epoch: partial(relaxed, epsilon=0.5 - 0.1 * epoch),
    annealed=lambda epoch: partial(annealed, temperature=0.5 * 0.8**epoch),
    ends=lambda epoch: partial(annealed, temperature=[math.inf, 0.5, 0.0][min(epoch, 2)]))


def problem(n_runs=3, n_sets=3, rows=150, features=13, hidden=37, n_hyps=5, dim=1, batch=64):
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(n_sets, rows, features, generator=draw)
    y = torch.randn(n_sets, rows, dim, generator=draw) + x[..., :1] * x[..., -1:]
    index = torch.arange(n_runs) % n_sets
    model = MultiHypothesisNetwork(features, (hidden,), n_hyps, dim, range(n_runs))
    return model, ShuffledBatches(x, y, index, batch, range(n_runs)), x, y, index


def train(engine, rule="annealed", score_weight=1.0, epochs=4, shape={}, checkpoint=None, at=None,
          rate=0.01, spoil=False, double=False, **settings):
    model, batches, x, y, index = problem(**shape)
    if double:
        model, x, y = model.double(), x.double(), y.double()
        batches = ShuffledBatches(x, y, index, batches.batch_size, range(model.n_runs))
    loss = stacked_loss(RULES[rule], model.n_hyps, model.dim, score_weight)
    watched = Watched(index, published=(loss, x[:, :70], y[:, :70]),
                      clean=(distortion_loss(model.n_hyps, model.dim), x[:, 70:], y[:, 70:]))
    if spoil: batches.targets[-1] = math.nan

    def stop(done, total, value):
        if done == at: raise KeyboardInterrupt

    result = fit(model, batches, loss,
                 TrainingSettings(epochs, rate, engine=engine, checkpoint_seconds=0, **settings),
                 watched, {"clean": "clean", "published": "published"}, checkpoint, stop)
    assert result.engine == ("torch" if engine == "torch" else "kernel")
    return model, result, model(x[index]).detach()


def same(a, b):
    assert a[1].history.keys() == b[1].history.keys()
    for name in a[1].history: assert torch.equal(a[1].history[name], b[1].history[name]), name
    for rule in a[1].states:
        for p, q in zip(a[1].states[rule], b[1].states[rule]): assert torch.equal(p, q), rule


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("shape", [{}, dict(features=1, hidden=1, n_hyps=1), dict(n_sets=1),
                                   dict(features=16, hidden=50, n_hyps=7, dim=3, batch=150),
                                   dict(rows=129, batch=128, features=9, hidden=100, n_hyps=20)])
def test_equal_to_the_torch_engine(rule, shape):
    """Both are as far from double precision. Where a gradient nearly cancels, Adam makes a whole step
    of rounding, in either engine, and the outputs of a hidden unit differ: hence the median."""
    for score_weight in (0.0, 1.0):
        fast, slow, right = (train(engine, rule, score_weight, shape=shape, double=double)
                             for engine, double in (("kernel", 0), ("torch", 0), ("torch", 1)))
        scale = float(right[2].abs().max())
        (fast_error, slow_error) = ((one[2] - right[2]).abs() / scale for one in (fast, slow))
        assert fast_error.median() <= 1.5 * slow_error.median() + 1e-8
        assert ((fast[2] - slow[2]).abs() / scale).median() <= 1e-6
        for name, value in slow[1].history.items():
            torch.testing.assert_close(fast[1].history[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("shape", [dict(batch=150), dict(batch=150, features=16, hidden=50, dim=3)])
def test_gradients_as_accurate_as_torch(rule, shape):
    def by_torch(model, batches, loss):
        (inputs, targets), = batches.epoch()
        loss(model(inputs), targets, 1).sum().backward()
        return [p.grad.flatten(1) for p in model.parameters()]

    model, batches, x, y, index = problem(**shape)
    loss = stacked_loss(RULES[rule], model.n_hyps, model.dim)
    single = by_torch(model, batches, loss)
    right = by_torch(problem(**shape)[0].double(),
                     ShuffledBatches(x.double(), y.double(), index, 150, range(3)), loss)
    model, batches, *_ = problem(**shape)
    engine = make_engine("kernel", model, batches, loss, TrainingSettings(1, 0.01))
    engine.train(1, torch.ones(model.n_runs, dtype=torch.bool))
    for mean, torchs, gradient in zip(engine.means, single, right):  # the mean: a tenth of it
        ours, theirs = ((g - gradient).abs().max() / gradient.abs().max()
                        for g in (10 * torch.from_numpy(mean), torchs))
        assert ours <= 2 * theirs + 2e-7


def test_company_and_threads_change_no_bit():
    many = train("kernel", shape=dict(n_runs=5, n_sets=5), epochs=30)
    with limited_threads(2): two = train("kernel", shape=dict(n_runs=5, n_sets=5), epochs=30)
    same(many, two)
    few = train("kernel", shape=dict(n_runs=2, n_sets=5), epochs=30)
    for p, q in zip(many[1].states["last"], few[1].states["last"]): assert torch.equal(p[:2], q)


@pytest.mark.parametrize("patience", [0, 3])
def test_resumed_bit_for_bit(tmp_path, patience):
    settings = dict(epochs=40, rate=0.05, patience=patience)
    through = train("auto", **settings)
    with pytest.raises(KeyboardInterrupt):
        train("auto", checkpoint=tmp_path / "c.pt", at=7, **settings)
    same(through, train("auto", checkpoint=tmp_path / "c.pt", **settings))
    assert patience == 0 or len(through[1].epochs) < 40        # all runs have stopped before


def test_stopped_runs_as_with_torch():
    fast, slow = (train(engine, epochs=25, rate=0.02, patience=2) for engine in ("kernel", "torch"))
    assert fast[1].epochs == slow[1].epochs
    for rule in ("clean", "last"):
        for p, q in zip(fast[1].states[rule], slow[1].states[rule]):
            torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("engine", ["kernel", "torch"])
def test_bad_numbers_stop_the_training(engine):
    with pytest.raises(FloatingPointError, match=r"run\(s\) \[2\] is not finite in epoch 0"):
        train(engine, spoil=True)
    with pytest.raises(FloatingPointError, match="not finite"): train(engine, rate=1e30)


def test_what_the_kernel_refuses():
    model, batches, *_ = problem()
    loss = stacked_loss(RULES["wta"], 5, 1)
    settings = TrainingSettings(1, 0.01)
    assert obstacle(model, batches, loss, settings) == ""
    deep = StackedPerceptron((13, 8, 8, 10), range(3))
    for wrong, reason in (((deep, batches, loss, settings), "one hidden layer"),
                          ((model, batches, loss.plain, settings), "compiled form"),
                          ((model, batches, stacked_loss(RULES["wta"], 3, 1), settings), "outputs"),
                          ((model, batches, stacked_loss(lambda e: partial(top_n, n=2), 5, 1),
                            settings), "compiled form"),
                          ((problem()[0].double(), batches, loss, settings), "single precision")):
        assert reason in obstacle(*wrong)
        with pytest.raises(ValueError, match=f"engine: .*{reason}"):
            fit(*wrong[:3], changed(settings, engine="kernel"))
    bounded = MultiHypothesisNetwork(13, (37,), 5, 1, range(3), bounded=True)
    assert "last layer" in obstacle(bounded, batches, loss, settings)
    assert "dropout" in obstacle(MultiHypothesisNetwork(13, (37,), 5, 1, range(3), dropout=0.1),
                                 batches, loss, settings)
    with pytest.raises(ValueError, match="engine"): TrainingSettings(1, 0.01, engine="fast")


def test_the_benchmark_says_which_engine_ran():
    config = UCIConfig.small(methods="wta, dropout, mixture, ensemble", training=dict(n_epochs=2))
    found = run_uci(config).groupby("method").engine.unique().str.join(",").to_dict()
    assert found == dict(wta="kernel", dropout="torch", mixture="torch", ensemble="kernel")
    assert set(run_uci(changed(config, training=dict(engine="torch"))).engine) == {"torch"}


def test_works_where_nothing_can_be_kept(tmp_path):
    script = ("from amcl_suite.core import epoch_kernel; print(epoch_kernel.ON_DISK)\n"
              "from amcl_suite.mcl import kernel_rules")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True,
                          env=os.environ | {"NUMBA_CACHE_DIR": "/proc/none"}, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
