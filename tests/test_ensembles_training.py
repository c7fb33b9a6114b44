"""Trainings of ensembles that are killed with SIGKILL and go on to the same bits."""
import os
import subprocess
import sys

import pytest

COMMON = """
import json, os, signal, sys, time, warnings
from pathlib import Path
import torch
from torch.utils.data import DataLoader, Dataset
torch.set_num_threads(1)
from amcl_suite.core.trainer import TrainerSettings, train
from amcl_suite.ensembles.loaders import BatchStream, key_batches
from amcl_suite.ensembles.members import make_ensemble
from amcl_suite.ensembles.optimiser import OptimiserConfig
from amcl_suite.ensembles.system import EnsembleSystem

torch.manual_seed(0)
x = torch.randn(60, 2)
y = (x[:, 0] > 0).long() + 2 * (x[:, 1] > 0).long()

class Hooked(Dataset):
    "Points with labels; noise like an augmentation's; calls `hook` before each."
    def __init__(self, hook=None): self.hook = hook
    def __len__(self): return 44
    def __getitem__(self, key):
        if self.hook: self.hook()
        return x[key[1]] + .1 * torch.randn(2), y[key[1]]

def run(folder, hook=None):
    ensemble = make_ensemble("MLP", 3, n_classes=4, n_features=2, hidden=(8,), drop_p=.2, seed=1)
    rates = OptimiserConfig(learning_rate=.3, lr_switch=2, meaning="validations")
    system = EnsembleSystem(ensemble, .7, optimiser=rates, beta_schedule="linear", n_epochs=5)
    settings = TrainerSettings(n_epochs=5, monitor=system.monitor, accelerator="cpu",
                               tensorboard=False, gradient_clip=0.)
    stream = BatchStream(key_batches(44, 8, 0, True, True), n_batches=4)
    val = DataLoader(torch.utils.data.TensorDataset(x[44:], y[44:]), 7)
    trained = train(system, DataLoader(Hooked(hook), batch_sampler=stream), val, settings, folder)
    rows = trained.history.drop(columns="seconds").to_json(double_precision=15)
    weights = [p.detach().double().sum().item() for p in system.parameters()]
    exact = [p.detach().numpy().tobytes().hex() for p in system.parameters()]
    return [rows, weights, exact, system.rate.state()]
"""

KILL = COMMON + """
folder = Path(sys.argv[1])
def hang(): (folder / "now").touch(); time.sleep(600)

def in_an_epoch():
    seen = []
    def hook():
        seen.append(1)
        if len(seen) == 90: hang()                       # in the third block
    run(folder / "in_an_epoch", hook)

def in_a_write():
    save, calls = torch.save, []
    def cut(content, file, *args, **kwargs):
        if "last" in Path(file.name).name: calls.append(file)
        if len(calls) < 3: return save(content, file, *args, **kwargs)
        file.write(b"half a file"); file.flush()
        hang()
    torch.save = cut
    run(folder / "in_a_write")

cases = {"in_an_epoch": in_an_epoch, "in_a_write": in_a_write}
warnings.simplefilter("ignore", DeprecationWarning)      # of forks
for name, case in cases.items():                         # before anything is trained here
    child = os.fork()
    if child == 0:
        case()
        os._exit(1)                                      # was not stopped where it should be
    while not (folder / "now").exists(): time.sleep(.02)
    (folder / "now").unlink()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
assert all((folder / name / "last.ckpt").exists() for name in cases)
through = run(None)
print(json.dumps([run(folder / name) == through for name in cases]))
print(json.loads(through[0])["beta"])
"""


@pytest.mark.slow
def test_sigkill_and_resume_give_the_identical_weights(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(KILL)
    done = subprocess.run([sys.executable, str(script), str(tmp_path)], capture_output=True, text=True,
                          env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[0] == "[true, true]"


STOCK = COMMON + """
import lightning.pytorch as lightning
ensemble = make_ensemble("MLP", 3, n_classes=4, n_features=2, hidden=(8,), seed=1)
system = EnsembleSystem(ensemble, .7, optimiser=OptimiserConfig(learning_rate=.3, lr_switch=(2,), gamma=.1),
                        lowest_rate=.01)
stock = lightning.Trainer(max_epochs=9, accelerator="cpu", logger=False, enable_progress_bar=False,
                          enable_model_summary=False, enable_checkpointing=False)
stream = BatchStream(key_batches(44, 8, 0, True, True), n_batches=4)
val = DataLoader(torch.utils.data.TensorDataset(x[44:], y[44:]), 7)
stock.fit(system, DataLoader(Hooked(), batch_sampler=stream), val)
print(stock.current_epoch, stock.optimizers[0].param_groups[0]["lr"], sorted(stock.callback_metrics))
system.lowest_rate = .1                                 # below the rate after the second epoch
stopped = lightning.Trainer(max_epochs=9, accelerator="cpu", logger=False, enable_progress_bar=False,
                            enable_model_summary=False, enable_checkpointing=False)
system.rate.load_state(EnsembleSystem(ensemble, .7, optimiser=system.optimiser_config).rate.state())
stopped.fit(system, DataLoader(Hooked(), batch_sampler=stream), val)
print(stopped.current_epoch)
"""


@pytest.mark.slow
def test_the_stock_trainer_takes_the_system(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(STOCK)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=300,
                          env=os.environ | {"OMP_NUM_THREADS": "1"}, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = done.stdout.splitlines()
    assert first.startswith("9 0.03") and "val/ens_loss" in first      # the rate fell once
    assert second == "2"                                              # and ended a training
