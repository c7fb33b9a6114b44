"scikit-learn's own checks of the ensemble estimators, none excused (array API: SCIPY_ARRAY_API=1)."
from amcl_suite.ensembles.estimators import JointEnsembleClassifier, JointEnsembleRegressor
from sklearn.utils.estimator_checks import parametrize_with_checks

# small, so that a check takes well under a second; one batch holds all rows, because only then is
# a weight the same as a repetition (with several batches the two differ as two shuffles do)
SMALL = dict(n_members=2, hidden=(16,), n_epochs=40, batch_size=1000, learning_rate=0.05)
ESTIMATORS = [JointEnsembleClassifier(**SMALL), JointEnsembleRegressor(**SMALL, beta=0.9),
              JointEnsembleClassifier(**SMALL, beta=1.0, aggregation="score", scaling="global")]


@parametrize_with_checks(ESTIMATORS)
def test_scikit_learn_check(estimator, check): check(estimator)
