"The small network learns to separate voices that it has never heard (acceptance property 16)."
import pytest

from amcl_suite.separation.experiments import prepare_corpus, run_separation

MARGIN = 2.0    # dB above the mixture; measured: see the assertion's message


@pytest.mark.slow
def test_pit_and_annealed_mcl_learn_to_separate(tmp_path, monkeypatch):
    monkeypatch.setenv("AMCL_CACHE", str(tmp_path / "cache"))
    corpus = prepare_corpus("synthetic", 2, (200, 10, 20))
    found = run_separation(("pit-2", "amcl-2"), corpus, tmp_path, (0,), n_epochs=4, segment=1.0)
    gain = found.runs.set_index("configuration")["pit_si_sdri"]
    assert (gain > MARGIN).all(), gain.round(2).to_dict()
