"""NaN, infinity, overflow and non-probabilities never look good in a metric, nor are they counted."""
import math

import numpy as np
import pytest
import torch

from amcl_suite.core.statistics import summarise
from amcl_suite.core.tables import pivot
from amcl_suite.ensembles import calibration, codependence, confidence, diagnostics, metrics, objectives, posthoc
from amcl_suite.mcl import metrics as mcl
from amcl_suite.separation import metrics as separation
from amcl_suite.separation.distances import neg_si_sdr

NAN = float("nan")


def draw(*shape): return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_s2_listed_inputs():
    h = draw(3, 2) + 5
    h[1] = NAN
    with pytest.raises(ValueError, match="hypotheses"):
        mcl.wasserstein2(h, torch.ones(3), torch.zeros(50, 2))
    with pytest.raises(ValueError, match="probabilities"):
        mcl.wasserstein2(draw(3, 2) + 5, torch.tensor([2., -1., 1.]), torch.zeros(50, 2))
    hypotheses = draw(10, 3, 2)
    hypotheses[:, 1] = NAN
    assert mcl.usage(hypotheses, draw(10, 2)).isnan().all()


@pytest.mark.parametrize("weights", ([NAN, 1., 1.], [0., 0., 0.], [math.inf, 1., 1.], [1., 1.]))
def test_s2_wasserstein_refuses_what_is_no_distribution(weights):
    with pytest.raises(ValueError, match="probabilities"):
        mcl.wasserstein2(draw(3, 2), torch.tensor(weights), draw(50, 2))
    for bad in (NAN, math.inf, 1e200):
        with pytest.raises(ValueError, match="samples"):
            mcl.wasserstein2(draw(3, 2), torch.ones(3), draw(50, 2).double() * bad)


@pytest.mark.parametrize("bad", (NAN, math.inf, 1e30))
def test_s2_means_of_multiple_choice(bad):
    hypotheses, targets, scores = draw(2, 20, 3, 2), draw(2, 20, 2), torch.full((2, 20, 3), 1 / 3)
    hypotheses[0, 4] = bad                                        # in the first run only
    for value in (mcl.distortion(hypotheses, targets), mcl.rmse(hypotheses, scores, targets),
                  mcl.kernel_nll(hypotheses, scores, targets, 1.),
                  mcl.best_bandwidth(hypotheses, scores, targets, torch.tensor([1., 2.]))):
        assert not value[0].isfinite() and value[1].isfinite(), value
    shares = mcl.usage(hypotheses, targets)
    for value in (shares.sum(-1), mcl.dead_fraction(shares), mcl.usage_perplexity(shares)):
        assert value[0].isnan() and value[1].isfinite()


def test_s2_scores_and_shares_that_are_none():
    hypotheses, targets = draw(20, 3, 2), draw(20, 2)
    for scores in (-torch.ones(20, 3), torch.full((20, 3), math.inf)):
        with pytest.raises(ValueError, match="scores"): mcl.rmse(hypotheses, scores, targets)
    assert mcl.rmse(hypotheses, torch.full((20, 3), NAN), targets).isnan()
    assert not mcl.rmse(hypotheses, torch.full((20, 3), 3e38), targets).isfinite()
    tiny = mcl.mean_prediction(hypotheses, torch.full((20, 3), 1e-44))       # sums below 1e-38
    assert torch.allclose(tiny, hypotheses.mean(-2), atol=1e-5)
    for probabilities in ([1., 1., 1.], [0., 0., 0.], [2., -1., 0.]):
        probabilities = torch.tensor(probabilities).expand(20, 3)
        with pytest.raises(ValueError, match="probabilities"):
            mcl.kernel_nll(hypotheses, probabilities, targets, 1.)
    for shares in ([.5, .2], [1.5, -.5], [0., 0.]):
        for metric in (mcl.dead_fraction, mcl.usage_perplexity):
            with pytest.raises(ValueError, match="shares"): metric(torch.tensor(shares))
    for bad in (NAN, -.1, 1.1):
        with pytest.raises(ValueError, match="scores"):
            mcl.score_reliability(torch.tensor([.5, bad]), torch.ones(2))
        with pytest.raises(ValueError, match="wins"):
            mcl.score_reliability(torch.ones(2), torch.tensor([.5, bad]))
    assert math.isnan(summarise([1., NAN])["mean"])


def test_s2_classification():
    logits, labels = draw(30, 3, 4), torch.arange(30) % 4
    for bad in (NAN, math.inf, -math.inf):
        broken = logits.clone()
        broken[5, 1, 2] = bad
        for work in (metrics.evaluate_classification, metrics.example_metrics,
                     calibration.fit_temperature, objectives.decompose, posthoc.pooling_weights,
                     posthoc.greedy_selection):
            with pytest.raises(ValueError, match="logits"): work(broken, labels)
    with pytest.raises(ValueError, match="values"):
        metrics.label_rank(torch.tensor([NAN, 1.]), torch.tensor(0))
    for correct in (NAN, 2., -1.):
        for work in (confidence.reliability, confidence.risk_coverage, confidence.aurc):
            with pytest.raises(ValueError, match="correct"):
                work(torch.tensor([.5, .6]), torch.tensor([1., correct]))
    assert confidence.Reliability(*torch.tensor([[NAN, .5], [NAN, .4], [3., 1.]])).ece.isnan()
    with pytest.raises(ValueError, match="weights"):
        objectives.pooled_log_probabilities(logits, "score", torch.zeros(30, 3))
    for weights in ([NAN, 1., 0.], [2., -1., 0.], [0., 0., 0.]):
        for outputs, kind in ((logits, "score"), (logits[..., 0], "squared_error")):
            with pytest.raises(ValueError, match="weights"):
                posthoc.weighted_prediction(outputs, torch.tensor(weights), kind)
    with pytest.raises(ValueError, match="threshold"):
        calibration.conformal_sets(logits[:, 0].softmax(-1), torch.tensor(NAN))


def test_s2_regression_and_diagnostics():
    predictions, targets = draw(30, 3).double(), draw(30).double()
    for bad in (NAN, math.inf, 1e200):
        broken = predictions.clone()
        broken[5, 1] = bad
        for work in (metrics.evaluate_regression, diagnostics.diagnose,
                     lambda f, y: posthoc.greedy_selection(f, y, "squared_error"),
                     lambda f, y: posthoc.pooling_weights(f, y, "squared_error")):
            with pytest.raises(ValueError, match="predictions"): work(broken, targets)
    assert codependence.debiased_share(predictions * 1e200).isnan()
    found = diagnostics._warnings({"offsets": NAN}, diagnostics.Thresholds(), "squared_error")
    assert "offsets" in found["non_finite"]                       # never "nothing suspicious"


def test_s2_separation():
    values, mask = 10 * draw(2, 2, 3).double(), torch.ones(2, 2, dtype=torch.bool)
    scores = torch.full((2, 3), .5).double()
    for bad in (NAN, math.inf, -math.inf):
        broken = values.clone()
        broken[1, 0, 1] = bad
        for work in (lambda v: separation.match_outputs(v, mask),
                     lambda v: separation.winners(v, mask),
                     lambda v: separation.emd_si_sdr(v, scores, mask),
                     lambda v: separation.best_of_kept(v, scores, mask),
                     lambda v: separation.penalised_si_sdr(v, scores > 0, mask)):
            with pytest.raises(ValueError, match="values"): work(broken)
    for bad in (NAN, -1., math.inf):
        with pytest.raises(ValueError, match="scores"):
            separation.emd_si_sdr(values, scores * bad, mask)
    tone = np.sin(np.arange(4000) / 5)
    for bad in (NAN, math.inf):
        with pytest.raises(ValueError, match="estimate"): separation.sdr(tone[:9] + bad, tone)
    noisy = tone + draw(4000).numpy()
    assert abs(separation.sdr(noisy, tone) - separation.sdr(1e-12 * noisy, tone)) < 1e-6
    assert separation.sdr(0 * tone, tone) == -200
    loud = 1e100 * draw(1, 2, 100).double()                       # squares overflow
    assert not (neg_si_sdr(loud, loud.flip(1)) < 0).any()


def test_s2_only_numbers_are_best():
    rows = [dict(dataset="d", method=m, metric="x", better="lower", value=v)
            for m, v in dict(a=-math.inf, b=1., c=2., d=NAN).items()]
    assert pivot(rows).bold == {(0, 2)}
