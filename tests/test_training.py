"""A benchmark killed with SIGKILL in the middle and resumed gives the identical result."""
import os
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
import torch

from amcl_suite.core.formats import write_weights
from amcl_suite.core.training_files import load_checked

SCRIPT = """
import sys, torch
torch.set_num_threads(1)
from amcl_suite.mcl.regression import UCIConfig
from amcl_suite.mcl.uci_runs import run_uci
config = UCIConfig.small(n_splits=2, methods="amcl, dropout",
                         training=dict(n_epochs=80, checkpoint_seconds=0.))
def progress(done, total, label, loss): print(done, flush=True)
run_uci(config, sys.argv[1], progress).to_pickle(sys.argv[2])
"""


def start(folder, result):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", SCRIPT, str(folder), str(result)],
                            stdout=subprocess.PIPE, text=True, env=environment)


@pytest.mark.slow
def test_sigkill_and_resume_give_the_identical_result(tmp_path):
    through = start(tmp_path / "a", tmp_path / "a.pkl")
    epochs_through = sum(1 for _ in through.stdout)
    assert through.wait() == 0
    killed = start(tmp_path / "b", tmp_path / "b.pkl")
    for _ in range(epochs_through // 3):                      # in the middle of the first method
        assert killed.stdout.readline()
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "b.pkl").exists() and list((tmp_path / "b").glob("*.pt"))
    resumed = start(tmp_path / "b", tmp_path / "b.pkl")
    epochs_resumed = sum(1 for _ in resumed.stdout)
    assert resumed.wait() == 0
    assert epochs_resumed < 0.8 * epochs_through              # it went on, it did not start again
    pd.testing.assert_frame_equal(pd.read_pickle(tmp_path / "a.pkl"),
                                  pd.read_pickle(tmp_path / "b.pkl"), check_exact=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_full_disk_keeps_the_former_checkpoint(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)],
                      capture_output=True).returncode:
        pytest.skip("this machine does not allow mounting a tmpfs")
    try:
        write_weights(disk / "c.pt", {"agree": {"n": 1}, "kept": torch.ones(3)})
        with pytest.raises(OSError, match="free some space"):
            write_weights(disk / "c.pt", {"agree": {"n": 1}, "large": torch.rand(200_000)})
        assert torch.equal(load_checked(disk / "c.pt", {"n": 1})["kept"], torch.ones(3))
        assert [p.name for p in disk.iterdir()] == ["c.pt"]   # no temporary file is left
    finally:
        subprocess.run(["umount", str(disk)], check=True)
        time.sleep(0.1)
