"scikit-learn's own checks of the estimators, none excused (array API: SCIPY_ARRAY_API=1)."
import numpy as np
import pytest
import torch
from amcl_suite.ensembles.estimators import JointEnsembleClassifier, JointEnsembleRegressor
from amcl_suite.ensembles.posthoc import distill, pooling_weights
from amcl_suite.ensembles.sweep import SweepConfig, run_sweep
from amcl_suite.mcl.estimators import MultiHypothesisRegressor
from amcl_suite.mcl.regression import UCIConfig
from amcl_suite.mcl.uci_runs import run_uci
from sklearn.utils.estimator_checks import parametrize_with_checks

# small, so that a check takes well under a second; one batch holds all rows, because only then is
# a weight the same as a repetition (with several batches the two differ as two shuffles do)
SMALL = dict(n_members=2, hidden=(16,), n_epochs=40, batch_size=1000, learning_rate=0.05)
ESTIMATORS = [JointEnsembleClassifier(**SMALL), JointEnsembleRegressor(**SMALL, beta=0.9),
              JointEnsembleClassifier(**SMALL, beta=1.0, aggregation="score", scaling="global"),
              MultiHypothesisRegressor(n_hyps=2, hidden=(16,), n_epochs=60, batch_size=1000,
                                       learning_rate=0.05),
              MultiHypothesisRegressor(n_hyps=3, rule="wta", hidden=(16,), n_epochs=60,
                                       batch_size=1000, learning_rate=0.05, score_weight=0.)]


@parametrize_with_checks(ESTIMATORS)
def test_scikit_learn_check(estimator, check): check(estimator)


def score(X, y, **options):
    model = JointEnsembleRegressor(n_members=2, n_epochs=100, hidden=(8,), random_state=0, **options)
    return model.fit(X, y).score(X, y)


@pytest.mark.parametrize("scaling", ["feature", "global"])
def test_s5_offsets_and_units_change_nothing(scaling):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 4))
    y = 3 * X[:, 0] + 1
    plain = score(X, y, scaling=scaling)
    assert plain > .3
    # X + 1e12 itself is rounded to steps of 1.2e-4, which the score may show in its fourth digit
    for far in (1e11, -1e12): assert abs(score(X + far, y, scaling=scaling) - plain) < 1e-3
    for far in (1e12,): assert abs(score(X, y + far, scaling=scaling) - plain) < 1e-3
    for unit in (1e-170, 1e150): assert abs(score(unit * X, y, scaling=scaling) - plain) < 1e-6
    # (sums of squares of a target at 1e150 leave what float64 can hold, in scikit-learn's score too)
    for unit in (1e-120,): assert abs(score(X, unit * y, scaling=scaling) - plain) < 1e-6


def test_s5_rounding_noise_is_no_feature():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 2))
    y = X[:, 0]
    noisy = np.c_[X, np.where(np.arange(60) % 2, .3, .1 + .2)]        # differ in the last bit
    fitted = JointEnsembleRegressor(n_members=2, n_epochs=3, hidden=(4,), random_state=0).fit(noisy, y)
    assert fitted.input_standards_.spread[2] == 0


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_small_training_inside_no_grad(context):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(40, 3))
    y = X[:, 0]
    options = dict(n_members=2, n_epochs=5, hidden=(4,), random_state=0)
    outside = JointEnsembleRegressor(**options).fit(X, y).predict(X)
    classes = JointEnsembleClassifier(**options, validation_fraction=.2).fit(X, y > 0).predict_proba(X)
    with context():
        inside = JointEnsembleRegressor(**options, warm_start=True).fit(X, y)
        assert np.array_equal(inside.predict(X), outside) and inside.diagnose(X, y).n_members == 2
        again = JointEnsembleClassifier(**options, validation_fraction=.2).fit(X, y > 0)
        assert np.array_equal(again.predict_proba(X), classes)
        logits = torch.randn(30, 2, 3, dtype=torch.double)
        assert pooling_weights(logits, torch.arange(30) % 3).shape == (2,)
        assert run_sweep(SweepConfig.small(n_epochs=1, seeds=(0,))).frame().value.notna().all()
        assert len(run_uci(UCIConfig.small(n_splits=1, methods="wta", training=dict(n_epochs=1))))
    inside.fit(X, y)                                                  # and goes on outside


def test_small_a_network_made_in_inference_mode_is_named():
    with torch.inference_mode(): network = torch.nn.Linear(3, 1)
    with pytest.raises(ValueError, match="made inside torch.inference_mode"):
        distill(network, torch.randn(9, 3), torch.randn(9), n_epochs=1)
