"""Trainings of slot models on two processes, and what a killed one leaves."""
import os
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest

COMMON = """
import os, sys
from dataclasses import replace
from pathlib import Path
import torch
torch.set_num_threads(1)
from amcl_suite.core.trainer import train
from amcl_suite.objects.config import preset
from amcl_suite.objects.datasets import scene_loader, scene_set
from amcl_suite.objects.geco import GecoConfig
from amcl_suite.objects.system import ObjectsSystem, train_objects, training_loader

small = preset("micro", n_steps=12, every=4, geco=GecoConfig(-2., warm_start=3, step_size=1e-3), beta_ramp=0,
               data=dict(n_train=64, n_val=8, batch_size=4), training=dict(accelerator="cpu", tensorboard=False))
"""

TWO = COMMON + """
folder = Path(sys.argv[1])

class Quiet(ObjectsSystem):
    "Without noise while training, so that processes can be compared."
    noise = staticmethod(torch.zeros_like)

def run(name, **training):
    config = replace(small, training=replace(small.training, **training))
    system = Quiet(config)
    data, val = scene_set("tetrominoes-micro", "train", 64), scene_set("tetrominoes-micro", "val", 8)
    trained = train(system, training_loader(data, config), scene_loader(val, 4), config.training, folder / name)
    return system, trained

two, trained = run("two", n_devices=2)
states = torch.tensor([float(two.geco.zeta), float(two.geco.average)])
(folder / f"zeta{os.environ.get('LOCAL_RANK', '0')}").write_text(repr(states.tolist()))
if trained.is_main:
    one, alone = run("one")
    trained.history.to_pickle(folder / "two.pkl"); alone.history.to_pickle(folder / "one.pkl")
"""

KILLED = COMMON + """
train_objects(replace(small, n_steps=400, every=4), sys.argv[1])
"""


def start(code, tmp_path, *arguments):
    script = tmp_path / "script.py"
    script.write_text(code)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    environment.pop("AMCL_PROCESSES", None)
    return subprocess.Popen([sys.executable, str(script), *map(str, arguments)], env=environment,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=tmp_path)


@pytest.mark.slow
def test_two_processes_move_one_multiplier_and_agree_with_one(tmp_path):
    process = start(TWO, tmp_path, tmp_path)
    text, _ = process.communicate(timeout=300)
    assert process.returncode == 0, text[-3000:]
    one, two = (pd.read_pickle(tmp_path / f"{name}.pkl").drop(columns="seconds") for name in ("one", "two"))
    pd.testing.assert_frame_equal(two, one, rtol=2e-3, atol=2e-3)
    assert (tmp_path / "zeta0").read_text() == (tmp_path / "zeta1").read_text()     # one state, two processes
    assert one["zeta"].iloc[-1] > .55


@pytest.mark.slow
def test_a_killed_training_goes_on_from_its_checkpoint(tmp_path):
    process, history = start(KILLED, tmp_path, tmp_path / "run"), tmp_path / "run" / "history.csv"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if history.is_file() and len(history.read_text().splitlines()) > 2: break
        time.sleep(.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = len(history.read_text().splitlines()) - 1
    code = COMMON + f"""
config = replace(small, n_steps={4 * (done + 2)}, every=4)
resumed, trained = train_objects(config, sys.argv[1])
through, _ = train_objects(config, sys.argv[1] + "-through")
assert len(trained.history) == {done + 2}
for name, value in through.state_dict().items(): assert value.equal(resumed.state_dict()[name]), name
"""
    again = start(code, tmp_path, tmp_path / "run")
    text, _ = again.communicate(timeout=300)
    assert again.returncode == 0, text[-3000:]


@pytest.mark.slow
def test_objects_are_found_within_300_steps(tmp_path):
    code = COMMON + """
system, trained = train_objects(preset("micro", n_steps=300, every=100, training=dict(tensorboard=False, seed=2)))
black = 588 * torch.log(torch.tensor(.1)) + (system.shown.images ** 2).sum((1, 2, 3)).mean() / .02
last = trained.history.iloc[-1]
assert last["val/nll"] < black, (last["val/nll"], black)         # better than a black picture
assert last["val/ari"] > .5, last["val/ari"]
"""
    text, _ = (process := start(code, tmp_path)).communicate(timeout=300)
    assert process.returncode == 0, text[-3000:]
