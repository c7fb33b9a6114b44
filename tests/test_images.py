"""What the notebooks of images can't check: batches shared out to processes, and a reader killed while it fills the cache."""
import json
import os
import subprocess
import sys

import pytest
import torch
from amcl_suite.core import trainer
from amcl_suite.ensembles.images import image_loaders, make_stand_in


@pytest.fixture(scope="session")
def stand_in():
    return make_stand_in(n_train=129, n_val=20, n_test=20)


@pytest.mark.parametrize("batch_size", [16, 17, 43])       # 129 = 8 * 16 + 1: one left over
@pytest.mark.parametrize("n", [2, 3])
def test_processes_share_each_batch(stand_in, monkeypatch, batch_size, n):
    shares = []
    for rank in range(n):
        monkeypatch.setattr(trainer, "_world", lambda rank=rank: (rank, n))
        loader = trainer.EpochLoader(image_loaders(stand_in, batch_size).train, seed=0)
        loader.epoch = 2
        batches = list(loader)
        assert len(batches) == len(loader)
        shares.append(batches)
    monkeypatch.setattr(trainer, "_world", lambda: (0, 1))
    alone = trainer.EpochLoader(image_loaders(stand_in, batch_size).train, seed=0)
    alone.epoch = 2
    for whole, *parts in zip(alone, *shares):              # the same images, dealt out in turn
        sizes = {len(labels) for _, labels in parts}
        assert len(sizes) == 1                             # all processes step equally often
        for rank, (inputs, labels) in enumerate(parts):
            torch.testing.assert_close(inputs, whole[0][rank::n][:len(inputs)], rtol=0, atol=0)
            assert labels.tolist() == whole[1][rank::n][:len(labels)].tolist()


KILLED = """
import os, sys
import numpy as np
from amcl_suite.ensembles import images
save = np.save
def broken(file, array):
    save(file, array[:2])
    os._exit(9)
if sys.argv[2] == "kill": images.np.save = broken
pixels = images._jpeg_pixels(sys.argv[1], "c" * 64, "train", 6, np.arange(6))
print(pixels[:, 0, 4, 4].tolist())
"""


def test_a_killed_reader_leaves_no_half_cache(tmp_path):
    import io
    import h5py
    import numpy as np
    from PIL import Image
    files = []
    for i in range(6):
        buffer = io.BytesIO()
        Image.new("RGB", (32, 32), (40 * i, 0, 0)).save(buffer, "JPEG", quality=95)
        files.append(buffer.getvalue())
    with h5py.File(tmp_path / "few.h5", "w") as file:
        file["train/jpeg"] = np.frombuffer(b"".join(files), np.uint8)
        file["train/offset"] = np.cumsum([0] + [len(f) for f in files]).astype(np.int32)
    script = tmp_path / "read.py"
    script.write_text(KILLED)
    def read(mode):
        return subprocess.run([sys.executable, script, tmp_path / "few.h5", mode], text=True,
                              capture_output=True, timeout=120,
                              env=os.environ | {"AMCL_CACHE": str(tmp_path / "cache")})
    assert read("kill").returncode == 9
    assert not list((tmp_path / "cache").rglob("*.npy"))
    done = read("whole")
    assert done.returncode == 0, done.stderr
    levels = json.loads(done.stdout)
    assert all(abs(level - 40 * i) < 4 for i, level in enumerate(levels))
    assert len(list((tmp_path / "cache").rglob("*.npy"))) == 1
