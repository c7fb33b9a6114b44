"""Trainings of the separation system that are killed with SIGKILL, and trainings on two processes."""
import os
import subprocess
import sys

import pandas as pd
import pytest

COMMON = """
import gc, os, signal, sys, time, warnings
from pathlib import Path
import torch
from torch.utils.data import Dataset
torch.set_num_threads(1)
from amcl_suite.core.trainer import TrainerSettings, train
from amcl_suite.separation.datasets import make_loader
from amcl_suite.separation.dynamic import DynamicMixing
from amcl_suite.separation.models import model_config
from amcl_suite.separation.objectives import ObjectiveConfig
from amcl_suite.separation.system import SeparationOptimiser, SeparationSystem
from amcl_suite.separation.temperature import Annealing, TemperatureConfig
from amcl_suite.separation.voices import synthetic_voices

voices = synthetic_voices(n_speakers=4, n_clips=2, seconds=1., seed=0)
drawn = DynamicMixing(voices, n_src=2, segment=.25, n_per_epoch=16, seed=0)
other = DynamicMixing(voices, n_src=2, segment=.25, n_per_epoch=5, seed=1)
network = model_config("convtasnet", "small", n_blocks=2)

class Hooked(Dataset):
    "New mixtures in every epoch; calls `hook` with (epoch, index)."
    def __init__(self, hook=None): self.hook = hook
    def __len__(self): return len(drawn)
    def __getitem__(self, key):
        if self.hook: self.hook(key)
        return drawn[key]

def system():
    schedule = Annealing(TemperatureConfig("linear", initial=1., end=3), 2.5)
    return SeparationSystem(network, ObjectiveConfig("amcl_sisdr"), schedule,
                            SeparationOptimiser(learning_rate=3e-3, halve_patience=1))

def run(folder, hook=None, **changes):
    settings = TrainerSettings(**(dict(n_epochs=5, monitor="val/pit_si_sdr", mode="max", keep_best=2,
                                       accelerator="cpu", tensorboard=False) | changes))
    loaders = make_loader(Hooked(hook), 4, shuffle=True), make_loader(other, 2)
    return train(system(), *loaders, settings, folder)
"""

KILL = COMMON + """
folder = Path(sys.argv[1])
def hang(): (folder / "now").touch(); time.sleep(600)

def in_an_epoch():
    seen = []
    def hook(key):
        seen.append(key)
        if len(seen) == 2 * 16 + 7: hang()               # in the third epoch, after some steps
    run(folder / "in_an_epoch", hook)

def in_a_write(name):
    save, calls = torch.save, []
    def cut(content, file, *args, **kwargs):
        if name in Path(file.name).name: calls.append(file)
        if len(calls) < 3: return save(content, file, *args, **kwargs)
        file.write(b"half a file"); file.flush()
        hang()
    torch.save = cut
    run(folder / f"in_a_write_{name}")

cases = {"in_an_epoch": in_an_epoch, "in_a_write_best": lambda: in_a_write("best"),
         "in_a_write_last": lambda: in_a_write("last")}
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
run(folder / "through").history.to_pickle(folder / "through.pkl")
for name in cases:
    files = sorted(p.name for p in (folder / name).glob("[!.]*"))
    trained = run(folder / name)
    trained.history.to_pickle(folder / f"{name}.pkl")
    after = sorted(p.name for p in (folder / name).glob("[!.]*"))
    print(name, files, after)
"""


def python(code, tmp_path, *arguments):
    script = tmp_path / "script.py"
    script.write_text(code)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default"}
    environment.pop("AMCL_PROCESSES", None)
    done = subprocess.run([sys.executable, str(script), *map(str, arguments)], env=environment,
                          capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def history(path):
    return pd.read_pickle(path).drop(columns="seconds")


@pytest.mark.slow
def test_sigkill_in_an_epoch_or_a_write_and_resume_give_the_identical_losses(tmp_path):
    done = python(KILL, tmp_path, tmp_path)
    through = history(tmp_path / "through.pkl")
    assert len(through) == 5 and through["temperature"].tolist()[3:] == [0, 0]
    for name in ("in_an_epoch", "in_a_write_best", "in_a_write_last"):
        pd.testing.assert_frame_equal(history(tmp_path / f"{name}.pkl"), through, check_exact=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 3 and all("last.ckpt" in line.split("]")[0] for line in lines)   # was whole
    for line in lines:
        assert line.split("]")[1].count("best-") == 2     # and no orphan is left


TWO = COMMON + """
folder = Path(sys.argv[1])
two = run(folder / "two", n_devices=2, n_epochs=3)
assert two.is_main == (os.environ.get("LOCAL_RANK", "0") == "0")
assert not torch.distributed.is_initialized()
two_again = run(folder / "two", n_devices=2, n_epochs=4)      # goes on, in the same processes
if two.is_main:
    one = run(folder / "one", n_epochs=4)
    one.history.to_pickle(folder / "one.pkl")
    two_again.history.to_pickle(folder / "two.pkl")

class Wrong(SeparationSystem):
    "Loses its mind in one of the processes only."
    def training_step(self, batch, i):
        values = super().training_step(batch, i)
        if self.global_step == 2 and self.global_rank == 1: values["loss"] = values["loss"] * float("nan")
        return values

settings = TrainerSettings(2, monitor="val/pit_si_sdr", mode="max", n_devices=2, accelerator="cpu",
                           tensorboard=False)
try: train(Wrong(network), make_loader(Hooked(), 4, shuffle=True), None, settings, folder / "wrong")
except FloatingPointError as error:
    kept = sum(type(o).__name__ == "DistributedDataParallel" for o in gc.get_objects())
    os.write(1, f"{two.is_main} {error} (kept: {kept})\\n".encode())                  # in one piece
"""


@pytest.mark.slow
def test_two_processes_of_a_script_give_the_metrics_of_one(tmp_path):
    done = python(TWO, tmp_path, tmp_path)
    one, two = history(tmp_path / "one.pkl"), history(tmp_path / "two.pkl")
    pd.testing.assert_frame_equal(two, one, rtol=1e-3, atol=1e-3)
    assert one["val/pit_si_sdr"].iloc[-1] > one["val/pit_si_sdr"].iloc[0]
    stopped = [line for line in done.stdout.splitlines() if "loss is nan" in line]
    assert any(line.startswith("True") for line in stopped), done.stdout
    assert all(line.endswith("(kept: 0)") for line in stopped), done.stdout     # else it may hang
    assert "Warning" not in done.stderr, done.stderr


STOCK = COMMON + """
import lightning.pytorch as lightning
from amcl_suite.mcl.assignment import annealed
from amcl_suite.mcl.losses import assigned_loss

def trainer(n_epochs, **options):
    return lightning.Trainer(max_epochs=n_epochs, accelerator="cpu", logger=False,
                             enable_progress_bar=False, enable_model_summary=False, **options)

best = lightning.callbacks.ModelCheckpoint(sys.argv[1], monitor="val/pit_si_sdr", mode="max")
stock, trained = trainer(4, callbacks=[best]), system()
before = [p.clone() for p in trained.parameters()]
stock.fit(trained, make_loader(Hooked(), 4, shuffle=True), make_loader(other, 2))
assert trained.temperature == 0 and stock.global_step == 16
assert not all(torch.equal(a, b) for a, b in zip(before, trained.parameters()))
assert float(best.best_model_score) >= float(stock.callback_metrics["val/pit_si_sdr"])
assert torch.load(best.best_model_path, weights_only=True)["separation"]["annealing"]

ours = run(None, n_epochs=1)                      # one epoch is the same as with our loop
first = trainer(1, enable_checkpointing=False, gradient_clip_val=5.)
first.fit(system(), make_loader(Hooked(), 4, shuffle=True), make_loader(other, 2))
difference = float(first.callback_metrics["val/pit_si_sdr"]) - ours.history["val/pit_si_sdr"].iloc[0]
assert abs(difference) < 1e-5, difference

class Own(lightning.LightningModule):
    "A user's module: three guesses at targets that are -1, 0 or 1."
    def __init__(self):
        super().__init__()
        self.guesses = torch.nn.Parameter(torch.tensor([.1, .2, .3]))
    def training_step(self, batch, i):
        costs = (self.guesses - batch[0]).square()
        return assigned_loss(costs, annealed(costs, max(0., 1 - self.current_epoch / 20)))
    def configure_optimizers(self): return torch.optim.SGD(self.parameters(), lr=.2)

own = Own()
targets = torch.utils.data.TensorDataset(torch.tensor([-1., 0., 1.]).repeat(20)[:, None])
trainer(40, enable_checkpointing=False).fit(own, torch.utils.data.DataLoader(targets, batch_size=12))
assert torch.allclose(own.guesses.detach().sort().values, torch.tensor([-1., 0., 1.]), atol=.01)
"""


@pytest.mark.slow
def test_the_stock_trainer_takes_the_system_and_the_annealed_loss(tmp_path):
    python(STOCK, tmp_path, tmp_path / "best")
