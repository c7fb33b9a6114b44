"""The command line of joint ensembles, called as a user would."""
import json
import subprocess
import sys

import pandas as pd
import pytest

from amcl_suite.reproduce.cli import main

TINY = ["--set", "n_train=60", "--set", "n_val=40", "--set", "n_test=40", "--set", "seeds=[0]",
        "--set", "betas=[0, 1]", "--set", "n_epochs=1"]


@pytest.fixture
def call(capsys):
    def run(*words):
        with pytest.raises(SystemExit) as end: main(["ensembles", *map(str, words)])
        captured = capsys.readouterr()
        return end.value.code, captured.out, captured.err
    return run


def test_help_and_errors_need_no_heavy_import():
    code = ("import sys; from amcl_suite.ensembles import command_line; "
            "sys.exit('torch' in sys.modules or 'pandas' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_names_are_listed(call):
    for command in ("sweep", "imagenet"):
        status, out, _ = call(command, "--list")
        assert status == 0
        assert all(name in out for name in ("MobileViT_IN", "cifar100", "diabetes", "RMSprop", "prob"))


def test_a_sweep_goes_on_and_is_diagnosed_and_plotted(call, tmp_path):
    first = call("sweep", "--smoke", "--tag", "a b", "--out", tmp_path, *TINY)
    folder = tmp_path / "a-b_synthetic_CNN"
    assert first[0] == 0 and "seed 0, beta 1: epoch" in first[1], first
    table = pd.read_parquet(folder / "table.parquet")
    again = call("sweep", "--smoke", "--tag", "a b", "--out", tmp_path, *TINY)
    assert again[0] == 0 and "epoch" not in again[1]           # nothing was trained again
    pd.testing.assert_frame_equal(pd.read_parquet(folder / "table.parquet"), table)
    other = call("sweep", "--smoke", "--tag", "a b", "--out", tmp_path, *TINY, "--member-scale", "sum")
    assert other[0] == 2 and "member_scale: the run in" in other[2]
    fresh = call("sweep", "--smoke", "--tag", "a b", "--out", tmp_path, *TINY, "--member-scale", "sum",
                 "--no-resume", "--aggregation", "prob", "--device", "cpu")
    assert fresh[0] == 0 and "beta 1: epoch" in fresh[1]
    status, out, _ = call("diagnose", folder)
    assert status == 0 and "probability" in out and "beta 1" in out
    assert call("diagnose", folder, "--split", "tset")[0] == 2
    status, out, _ = call("plot", folder, "--out", tmp_path / "figures")
    assert status == 0 and len(list((tmp_path / "figures").glob("*.png"))) == 4


def test_the_released_files_start_a_sweep(call, tmp_path):
    experiment = dict(dataset="CIFAR-10", base_learner="CNN", num_learners=2, seeds=[3],
                      beta_vals=[0.5], probs=True)
    optim = dict(optimiser="SGD", scheduler="ExponentialLR", learning_rate=0.1, momentum=0.9,
                 weight_decay=5e-4, gamma=0.2, lr_switch=[1], batch_size=20, num_epochs=2)
    for name, values in dict(experiment=experiment, optim=optim).items():
        (tmp_path / f"{name}.json").write_text(json.dumps(values))
    words = ["--config", tmp_path / "experiment.json", "--config", tmp_path / "optim.json", "--out",
             tmp_path, "--set", "dataset=synthetic", *TINY[:6], "--set", "device=cpu"]
    status, _, err = call("sweep", *words)
    assert status == 0, err
    folder = tmp_path / "sweep_synthetic_CNN"
    config = json.loads((folder / "config.json").read_text())
    assert (config["n_members"], config["aggregation"]) == (2, "probability")
    row = pd.read_csv(folder / "results.csv").iloc[0]
    assert row["run"] == 3 and len(json.loads(row["val_acc_ind"])) == 2
    run = json.loads((folder / "seed3_beta0.5" / "run.json").read_text())
    assert [line["learning_rate"] for line in run["history"]] == pytest.approx([.1, .02])


def test_imagenet_on_a_generated_folder(call, tmp_path):
    status, out, err = call("imagenet", "--smoke", "--out", tmp_path, "--set", "n_epochs=1", "--set",
                            "validate_batches=2", "--set", "betas=[1]")
    assert status == 0, err
    folder = tmp_path / "imagenet_imagenet_ResNet18"
    found = json.loads((folder / "results_seed0_beta1.json").read_text())
    assert len(found["val_top_5_acc"]) == 2 and found["beta"] == 1


@pytest.mark.parametrize("dataset, aggregation", [("diabetes", "mse"), ("digits", "score")])
def test_a_table_is_swept_in_one_go(call, tmp_path, dataset, aggregation):
    words = ("--set", f"dataset={dataset}", "--aggregation", aggregation, "--set", "n_epochs=2", "--set",
             "seeds=[0, 1]", "--set", "betas=[0, 1]", "--set", "n_members=3", "--out", tmp_path)
    status, out, err = call("sweep", *words)
    assert status == 0, err
    status, out, err = call("diagnose", tmp_path / f"sweep_{dataset}")
    assert status == 0 and "mean over 2 runs" in out, err
    assert call("plot", tmp_path / f"sweep_{dataset}")[0] == 0
