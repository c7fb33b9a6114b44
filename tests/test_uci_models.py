"""Networks of the UCI benchmark: kept, and tested again without training, in our form and in the released one."""
import fractions
import os
from dataclasses import replace
from pathlib import Path

import pandas
import pytest
import torch
from amcl_suite.core.data import checksum
from amcl_suite.core.files import DataError
from amcl_suite.core.pickles import Unread, read_foreign
from amcl_suite.mcl.regression import UCIConfig
from amcl_suite.mcl.uci_models import evaluate_models, read_kept, read_released
from amcl_suite.mcl.uci_runs import run_uci

DATASET = "yacht" if checksum("yacht") else "bimodal"   # the real set where it is at hand


def as_released(kept, rule, path):
    "Write weights as the released code's Lightning checkpoints have them: a linear layer per head."
    hidden, bias, heads, offsets = (p[0] for p in kept.weights[rule])
    state = torch.nn.ModuleDict(dict(
        layers=torch.nn.ModuleList([torch.nn.Linear(*reversed(hidden.shape))]),
        final_hyp_layers=torch.nn.ModuleDict({f"hyp_{k}": torch.nn.Linear(hidden.shape[0], 1)
                                              for k in range(kept.n_hyps)}),
        final_conf_layers=torch.nn.ModuleDict({f"hyp_{k}": torch.nn.Linear(hidden.shape[0], 1)
                                               for k in range(kept.n_hyps)})))
    with torch.no_grad():
        state["layers"][0].weight.copy_(hidden), state["layers"][0].bias.copy_(bias)
        for k in range(kept.n_hyps):
            for row, part in ((k, "final_hyp_layers"), (kept.n_hyps + k, "final_conf_layers")):
                state[part][f"hyp_{k}"].weight.copy_(heads[row:row + 1])
                state[part][f"hyp_{k}"].bias.copy_(offsets[row:row + 1])
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"epoch": kept.epochs[rule] - 1, "pytorch-lightning_version": "2.2.0", "state_dict": state.state_dict(),
                "optimizer_states": [{"lr": .01}], "hyper_parameters": {"hparams": fractions.Fraction(1, 3)},
                "callbacks": {"best": torch.tensor(1.)}}, path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    "A run under the paper's protocol, its networks, and those networks in the released layout."
    folder = tmp_path_factory.mktemp("uci")
    config = UCIConfig.paper(DATASET, methods="wta, relaxed_0.1, amcl", n_splits=3, training=dict(n_epochs=8))
    results = run_uci(config, keep_models=folder / "kept")
    names = {"wta": "vanilla_mcl/{}/vwta-seed-1-split-{}", "amcl": "amcl/{}/annealed_wta-split-{}_scheduler_exponential",
             "relaxed_0.1": "relaxed_wta/{}/epsilon_wta-5-hyps-split-{}_epsilon_0.1"}
    for file in (folder / "kept").rglob("*.pt"):
        kept = read_kept(file)
        as_released(kept, "published", folder / "released" / names[kept.method].format(DATASET, kept.split)
                    / "checkpoints/best.ckpt")
    return config, results, folder


def test_kept_networks_give_the_numbers_of_their_run(trained):
    _, results, folder = trained
    pandas.testing.assert_frame_equal(evaluate_models(folder / "kept"), results, check_exact=True)


def test_the_released_layout_gives_the_same_numbers(trained):
    _, results, folder = trained
    theirs, ours = evaluate_models(folder / "released"), results[results.rule == "published"]
    columns = ["dataset", "method", "rule", "protocol", "split", "seed", "epoch", "distortion", "rmse", "dead_fraction"]
    pandas.testing.assert_frame_equal(theirs[columns], ours[columns].reset_index(drop=True), check_exact=True)


def test_an_epsilon_that_the_table_lacks_is_tested_too(trained, tmp_path):
    _, results, folder = trained
    kept = read_kept(next((folder / "kept").rglob("relaxed_0.1/*split01.pt")))
    as_released(kept, "last", tmp_path / DATASET / "epsilon_wta-split-1_epsilon_0.05/last.ckpt")
    row, = evaluate_models(tmp_path).to_dict("records")
    wanted = results.query("method == 'relaxed_0.1' and split == 1 and rule == 'last'").iloc[0]
    assert (row["method"], row["rule"], row["distortion"]) == ("relaxed_0.05", "last", wanted.distortion)
    assert row["label"] == "relaxed WTA 0.05"


class Bomb:
    def __reduce__(self): return os.system, ("touch exploded",)


def test_nothing_of_a_checkpoint_is_run(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, _, folder = trained
    kept = read_kept(next((folder / "kept").rglob("wta/*split00.pt")))
    path = tmp_path / DATASET / "vwta-split-0/best.ckpt"
    as_released(kept, "published", path)
    content = torch.load(path, weights_only=False)
    torch.save(content | {"hyper_parameters": Bomb(), "loops": [Bomb()]}, path)
    found = read_released(path)
    for ours, theirs in zip(kept.weights["published"], found.weights["published"]): assert ours.equal(theirs)
    assert isinstance(read_foreign(path)["hyper_parameters"], Unread)
    torch.save(dict(format="amcl_suite.mcl.uci 1", bomb=Bomb()), tmp_path / "a.pt")
    with pytest.raises(DataError, match="a.pt: can't be loaded"): read_kept(tmp_path / "a.pt")
    assert not Path("exploded").exists()


def test_damage_is_told_by_file(trained, tmp_path):
    _, _, folder = trained
    kept = read_kept(next((folder / "kept").rglob("wta/*split00.pt")))
    path = tmp_path / DATASET / "vwta-split-0/best.ckpt"
    as_released(kept, "published", path)
    whole = path.read_bytes()
    weight = kept.weights["published"][0].numpy().tobytes()
    for content in (whole[:len(whole) // 2], b"", whole.replace(weight, bytes(len(weight)))):
        path.write_bytes(content)
        with pytest.raises(DataError, match="best.ckpt"): evaluate_models(tmp_path)
    content = torch.load(folder / "released" / next((folder / "released").rglob("best.ckpt")), weights_only=False)
    del content["state_dict"]["final_conf_layers.hyp_2.bias"]
    torch.save(content, path)
    with pytest.raises(DataError, match="not a network of the released code.*final_conf_layers.hyp_2.bias"):
        evaluate_models(tmp_path)


def test_own_table_and_seeds_are_kept_and_found_again(tmp_path):
    table = pandas.DataFrame(dict(a=range(40), b=[k % 7 for k in range(40)], price=[(k * 13) % 17 for k in range(40)]))
    table.to_csv(tmp_path / "homes.csv", index=False)
    config = UCIConfig.small(dataset="homes", data_path=str(tmp_path / "homes.csv"), target="price", n_splits=2, n_seeds=2,
                             methods="amcl, ensemble, dropout", training=dict(n_epochs=4))
    results = run_uci(config, keep_models=tmp_path / "models")
    again = evaluate_models(tmp_path / "models", str(tmp_path / "homes.csv"), "price")
    pandas.testing.assert_frame_equal(again, results.sort_values(
        ["seed"], kind="stable").pipe(lambda f: f.assign(_o=f.method.map({"amcl": 0, "dropout": 1, "ensemble": 2})))
        .sort_values(["seed", "_o"], kind="stable").drop(columns="_o").reset_index(drop=True), check_exact=True)
    table.assign(price=table.price * 2).to_csv(tmp_path / "homes.csv", index=False)
    with pytest.raises(DataError, match="other rows of homes"):
        evaluate_models(tmp_path / "models", str(tmp_path / "homes.csv"), "price")


def test_resumed_run_keeps_the_same(tmp_path):
    config = UCIConfig.small(methods="wta", n_splits=2, training=dict(n_epochs=3))
    run_uci(config, tmp_path / "checkpoints", keep_models=tmp_path / "a")
    run_uci(replace(config), tmp_path / "checkpoints", keep_models=tmp_path / "b")     # all is done: nothing is trained
    for file in (tmp_path / "a").rglob("*.pt"):
        one, two = read_kept(file), read_kept(tmp_path / "b" / file.relative_to(tmp_path / "a"))
        for rule in one.weights:
            for p, q in zip(one.weights[rule], two.weights[rule]): assert p.equal(q)
