"""What the notebooks of images can't check: batches shared out to processes, and a reader killed while it fills the cache."""
import json
import os
import subprocess
import sys

import pytest
import torch
from amcl_suite.core.order import share_out, start_epoch
from amcl_suite.ensembles.images import make_stand_in
from amcl_suite.ensembles.loaders import image_loaders


@pytest.fixture(scope="session")
def stand_in():
    return make_stand_in(n_train=129, n_val=20, n_test=20)


@pytest.mark.parametrize("batch_size", [16, 17, 43])       # 129 = 8 * 16 + 1: one left over
@pytest.mark.parametrize("n", [2, 3])
def test_processes_share_each_batch(stand_in, batch_size, n):
    def epoch(rank, n):
        loader = share_out(image_loaders(stand_in, batch_size).train, rank, n)
        start_epoch(loader, seed=0, epoch=2, rank=rank)
        batches = list(loader)
        assert len(batches) == len(loader)
        return batches

    shares, alone = [epoch(rank, n) for rank in range(n)], epoch(0, 1)
    for whole, *parts in zip(alone, *shares):              # the same images, dealt out in turn
        sizes = {len(labels) for _, labels in parts}
        assert len(sizes) == 1                             # all processes step equally often
        for rank, (inputs, labels) in enumerate(parts):
            torch.testing.assert_close(inputs, whole[0][rank::n][:len(inputs)], rtol=0, atol=0)
            assert labels.tolist() == whole[1][rank::n][:len(labels)].tolist()


KILLED = """
import os, sys
import numpy as np
from amcl_suite.ensembles import image_files as images
save = np.save
def broken(file, array):
    save(file, array[:2])
    os._exit(9)
if sys.argv[2] == "kill": images.np.save = broken
pixels = images._jpeg_pixels(sys.argv[1], "c" * 64, "train", 6, np.arange(6))
print(pixels[:, 0, 4, 4].tolist())
"""


@pytest.mark.slow
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


def cifar(folder, n=20, change=None):
    "Write a small CIFAR-10 of generated images; `change` maps file names to other content."
    import pickle
    import numpy as np
    where, rng = folder / "cifar-10-batches-py", np.random.default_rng(0)
    where.mkdir(parents=True)
    for file in [*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]:
        batch = {"data": rng.integers(0, 256, (n, 3072), dtype=np.uint8),
                 "labels": [i % 10 for i in range(n)]}
        (where / file).write_bytes(pickle.dumps(batch, protocol=2))
    (where / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}, protocol=2))
    for file, content in (change or {}).items(): (where / file).write_bytes(content)
    return where


def picture(pixels, path, kind="PNG"):
    from PIL import Image
    Image.fromarray(pixels).save(path, kind)
    return path


@pytest.mark.parametrize("dtype, factor", [("uint8", 1), ("uint16", 257)])
def test_s6_bit_depths_are_scaled(tmp_path, dtype, factor):
    import numpy as np
    from amcl_suite.core.formats import read_image as read_photograph
    grey = (np.linspace(0, 255, 3072).reshape(48, 64) * factor).astype(dtype)
    for kind in ("PNG", "TIFF"):
        image = read_photograph(picture(grey, tmp_path / "a.JPEG", kind))
        assert image.mode == "RGB" and abs(np.asarray(image).mean() - 127.5) < 1


@pytest.mark.parametrize("dtype", ["int32", "float32"])
def test_s6_unknown_ranges_are_refused_by_name(tmp_path, dtype):
    import numpy as np
    from amcl_suite.core.files import DataError
    from amcl_suite.core.formats import read_image as read_photograph
    path = picture(np.linspace(0, 1e5, 3072).reshape(48, 64).astype(dtype), tmp_path / "b.JPEG", "TIFF")
    with pytest.raises(DataError, match="b.JPEG"): read_photograph(path)


def test_s9_other_files_of_cifar_are_refused(tmp_path, monkeypatch):
    import hashlib
    import tarfile
    from amcl_suite.core.files import DataError
    from amcl_suite.ensembles import image_files, images
    where = cifar(tmp_path)
    with pytest.raises(DataError, match="data_batch_1: not the published file of cifar10"):
        images.read_images("cifar10", tmp_path)
    note = images.read_images("cifar10", tmp_path, verify=False).note
    assert "not the published files" in note
    md5 = lambda name: hashlib.md5((where / name).read_bytes()).hexdigest()
    train, test, meta, *_ = image_files._CIFAR["cifar10"]
    known = {file: md5(file) for file in (*train, *test, meta)}
    monkeypatch.setattr(image_files, "_sums", lambda name: known)          # as if these were published
    whole = images.read_images("cifar10", tmp_path)
    assert "not the published" not in whole.note
    with tarfile.open(tmp_path / "c.tar.gz", "w:gz") as tar: tar.add(where, where.name)
    assert (images.read_images("cifar10", tmp_path / "c.tar.gz").train.images == whole.train.images).all()
    for file in ("batches.meta", "data_batch_4", "test_batch"):       # one bit, unpacked
        before = (where / file).read_bytes()
        (where / file).write_bytes(before[:60] + bytes([before[60] ^ 1]) + before[61:])
        with pytest.raises(DataError, match=f"{file}: not the published file"):
            images.read_images("cifar10", tmp_path)
        (where / file).write_bytes(before)
    content = (tmp_path / "c.tar.gz").read_bytes()                    # one bit, packed
    for place in range(20, len(content), len(content) // 25):
        spoilt = content[:place] + bytes([content[place] ^ 16]) + content[place + 1:]
        (tmp_path / "c.tar.gz").write_bytes(spoilt)
        for verify in (True, False):
            with pytest.raises(DataError): images.read_images("cifar10", tmp_path / "c.tar.gz", verify=verify)


def test_s9_other_files_of_svhn_are_refused(tmp_path):
    import numpy as np
    from amcl_suite.core.files import DataError
    from amcl_suite.ensembles.images import read_images
    from scipy.io import savemat
    for file in ("train_32x32.mat", "test_32x32.mat"):
        savemat(tmp_path / file, dict(X=np.random.default_rng(0).integers(0, 256, (32, 32, 3, 60), np.uint8),
                                      y=np.arange(60, dtype=np.uint8)[:, None] % 10 + 1))
    with pytest.raises(DataError, match="train_32x32.mat: not the published file of svhn"):
        read_images("svhn", tmp_path)
    assert "not the published" in read_images("svhn", tmp_path, verify=False).note


def test_s9_a_changed_cache_of_decoded_images_is_made_anew(tmp_path, monkeypatch):
    import io
    import h5py
    import numpy as np
    from amcl_suite.ensembles.image_files import _jpeg_pixels
    monkeypatch.setenv("AMCL_CACHE", str(tmp_path / "cache"))
    files = []
    for i in range(6):
        buffer = io.BytesIO()
        picture(np.full((32, 32, 3), 40 * i, np.uint8), buffer, "JPEG")
        files.append(buffer.getvalue())
    with h5py.File(tmp_path / "few.h5", "w") as file:
        file["train/jpeg"] = np.frombuffer(b"".join(files), np.uint8)
        file["train/offset"] = np.cumsum([0] + [len(f) for f in files]).astype(np.int32)
    read = lambda source: _jpeg_pixels(source, "d" * 64, "train", 6, np.arange(6))
    right = read(tmp_path / "few.h5")
    cache, = (tmp_path / "cache").rglob("*.npy")
    assert (read(tmp_path / "gone.h5") == right).all()                # from the cache
    content = bytearray(cache.read_bytes())
    content[5000] ^= 64                                               # shape and type still fit
    cache.write_bytes(content)
    assert (read(tmp_path / "few.h5") == right).all()
    cache.with_suffix(".json").write_text(cache.with_suffix(".json").read_text().replace("d" * 64, "e" * 64))
    with pytest.raises(ValueError, match="gone.h5"): read(tmp_path / "gone.h5")   # another source


def test_s9_a_changed_index_of_imagenet_is_made_anew(tmp_path, monkeypatch):
    import numpy as np
    from amcl_suite.ensembles.imagenet_index import index_imagenet, make_tiny_imagenet
    monkeypatch.setenv("AMCL_CACHE", str(tmp_path / "cache"))
    root = make_tiny_imagenet(tmp_path / "tiny", 2, 3, 2, size=8)
    right = index_imagenet(root)
    cache, = (tmp_path / "cache").rglob("*.npz")
    with np.load(cache) as file: arrays = dict(file)
    whole = cache.read_bytes()
    flipped = bytearray(whole)
    flipped[whole.index(right.labels["train"].numpy().tobytes()) + 8] ^= 1
    for spoilt in (b"", b"PK", bytes(flipped), whole[:-30]):
        cache.write_bytes(spoilt)
        assert index_imagenet(root).labels["train"].equal(right.labels["train"])
    for name in ("train_labels", "val_files"):
        np.savez(cache, **{**arrays, name: arrays[name][:1]})
        assert index_imagenet(root).labels["train"].equal(right.labels["train"])


def test_s11_capitals_mac_files_and_odd_names_in_imagenet(tmp_path, monkeypatch):
    from amcl_suite.ensembles.imagenet import ImageNetFolder
    from amcl_suite.ensembles.imagenet_index import TRAIN_FOLDER, VAL_FOLDER, index_imagenet, make_tiny_imagenet
    monkeypatch.setenv("AMCL_CACHE", str(tmp_path / "cache"))
    root = make_tiny_imagenet(tmp_path / "tiny", 2, 3, 2, size=8)
    before = index_imagenet(root)
    synset = root / TRAIN_FOLDER / "n00000001"
    (synset / "n00000001_1.JPEG").rename(synset / "n00000001_1.jpg")
    os.rename(synset / "n00000001_2.JPEG", os.fsencode(synset) + b"/n00000001_\xe92.Jpeg")
    (root / VAL_FOLDER / "ILSVRC2012_val_00000001.JPEG").rename(root / VAL_FOLDER / "ilsvrc2012_val_00000001.JPG")
    for folder in (synset, root / VAL_FOLDER): (folder / "._n00000001_0.JPEG").write_bytes(b"Mac OS X")
    (root / TRAIN_FOLDER / "__MACOSX").mkdir()
    index = index_imagenet(root)
    for part in ("train", "val"):
        assert sorted(index.labels[part].tolist()) == sorted(before.labels[part].tolist())
        data = ImageNetFolder(index, part, image_size=8, resize=8)
        assert all(data[i][0].shape == (3, 8, 8) for i in range(len(data)))
    index = index_imagenet(root)                                      # from the cache
    assert ImageNetFolder(index, image_size=8, resize=8)[2][0].shape == (3, 8, 8)


FUZZ = """
import sys, pickle
import numpy as np
from amcl_suite.core.files import DataError
from amcl_suite.ensembles.image_files import _cifar_batch
rng = np.random.default_rng(0)
batch = {"data": rng.integers(0, 256, (4, 3072), dtype=np.uint8), "labels": [1, 2, 3, 4],
         "filenames": ["a.png"] * 4, "batch_label": "testing"}
whole = [pickle.dumps(batch, protocol=p) for p in (1, 2, 3, 4)]
for content in whole:
    try: data, labels = _cifar_batch(content, "whole", "labels")
    except DataError as error: assert "numpy" in str(error), error; continue
    assert (data == batch["data"]).all() and labels == batch["labels"]
for i in range(300):
    content = bytearray(whole[i % 2 + 1])
    head = [k for k in range(len(content)) if k < 300 or k > len(content) - 120]
    for _ in range(rng.integers(1, 4)):
        k = head[rng.integers(len(head))]
        if i % 3: content[k] = rng.integers(256)
        elif i % 2: del content[k:k + rng.integers(1, 9)]
        else: content[k:k] = rng.bytes(rng.integers(1, 9))
    try: _cifar_batch(bytes(content), "fuzz", "labels")
    except DataError as error: assert "fuzz" in str(error)
print("survived")
"""


def test_c2_a_damaged_batch_is_an_error_and_never_a_fault(tmp_path):
    script = tmp_path / "fuzz.py"
    script.write_text("import resource; resource.setrlimit(resource.RLIMIT_AS, (6 << 30,) * 2)\n" + FUZZ)
    done = subprocess.run([sys.executable, script], text=True, capture_output=True, timeout=120)
    assert done.returncode == 0 and "survived" in done.stdout, done.stderr[-2000:]


ADDRESS = (0x4141414141414141).to_bytes(8, "little").decode("latin1")


def attack(kind):
    "Return a pickle that makes numpy take bytes for pointers, or calls what it names."
    import pickle
    import numpy as np
    class Call:
        def __init__(self, *parts): self.parts = parts
        def __reduce__(self): return self.parts
    array = np._core.multiarray._reconstruct
    types = {"object": Call(np.dtype, ("O8", False, True)),
             "state": Call(np.dtype, ("V8", False, True), (3, "|", None, ("f",), {"f": (np.dtype("O"), 0)},
                                                         8, 1, 27)),
             "parts": Call(np.dtype, ("i8", False, True), (3, "|", None, ("f",), {"f": (np.dtype("O"), 0)},
                                                         8, 1, 27)),
             "alias": Call(np.dtype, (np.dtype("i8"),)), "code": Call(eval, ("1 + 1",)),
             "bomb": np.dtype("u1")}
    shape = (2**40, 3072) if kind == "bomb" else (1,)
    data = Call(array, (np.ndarray, (0,), b"b"), (1, shape, types[kind], False, ADDRESS))
    return pickle.dumps({"data": data, "labels": [0]}, protocol=2)


C2 = """
import sys
from pathlib import Path
from amcl_suite.core.files import DataError
from amcl_suite.ensembles.image_files import _unpickled
for name in sys.argv[1:]:
    try: value = _unpickled(Path(name).read_bytes(), name)
    except DataError as error: print("refused", flush=True)
    else: print(name, repr(value["data"]), flush=True)
"""


def test_c2_attacks_are_refused(tmp_path):
    kinds = ["object", "state", "parts", "alias", "code", "bomb"]
    for kind in kinds: (tmp_path / kind).write_bytes(attack(kind))
    (tmp_path / "read.py").write_text(C2)
    done = subprocess.run([sys.executable, "read.py", *kinds], text=True, capture_output=True,
                          timeout=120, cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.split() == ["refused"] * 6, (done.stdout, done.stderr)


def test_c2_steps_that_arrays_need_no_more(tmp_path):
    import pickle
    from amcl_suite.core.files import DataError
    from amcl_suite.ensembles.image_files import _unpickled
    for content in (b"r\xff\xff\xff\x7f.", b"\x80\x05\x96\xff\xff\xff\xff\x00\x00\x00\x00.", b"cos\ngetcwd\n(tR.",
                    b"cnumpy\ndtype\n}b.", b"(cnumpy\ndtype\no.", b"\x80\x02cnumpy\ndtype\n)\x81.", b"", b".",
                    pickle.dumps({1: 2})[:-1], b"}(]]s.", b"N(N(u."):
        with pytest.raises(DataError, match="bad"): _unpickled(content, "bad")
