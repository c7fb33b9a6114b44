"Streams from files: damaged, hostile or very long ones are read right, or refused by name, in bounded memory."
import os, pickle, re, subprocess, sys, warnings

import numpy as np
import pytest
from amcl_suite.core.files import DataError
from amcl_suite.interactive import manifests
from amcl_suite.interactive.lid_files import read_lid, write_lid
from amcl_suite.interactive.manifests import check_manifest
from amcl_suite.interactive.streams import (Session, Stream, bootstrap_samples, cut_stream, numeric_stream, reversed_stream,
                                            window_blocks, windows)
from amcl_suite.interactive.vtd_files import open_vtd, read_vtd, write_vtd


def damaged(content: bytes, n: int = 40):
    "Yield wrong contents: foreign, cut, and with a flipped bit."
    yield from (b"", b"\x00", b"\x93NUMPY", b"\x93NUMPY\x01\x00", b"PK\x03\x04", b"not an array")
    rng = np.random.default_rng(0)
    for _ in range(n):
        place = int(rng.integers(len(content)))
        yield content[:place]
        place = int(rng.integers(min(160, len(content))))   # in the header, or just behind it
        yield content[:place] + bytes([content[place] ^ 1 << int(rng.integers(8))]) + content[place + 1:]


@pytest.fixture()
def hours(tmp_path):
    stream, _ = numeric_stream(3, session_size=20, dim=5, seed=2)
    write_vtd(tmp_path, stream, "rm1_mc20", {"a": 3, "b": 2})
    return tmp_path, stream


@pytest.mark.parametrize("name", ["labels/rm1_01_1.npy", "a/rm1_01_mc20_a_1.npy", "b/rm1_01_mc20_b_1.npy"])
def test_damaged_hours(hours, name):
    root, stream = hours
    path, content = root / name, (root / name).read_bytes()
    for other in damaged(content):
        path.write_bytes(other)
        try:
            read = open_vtd(root, "rm1_mc20")
            assert windows(read, range(60), 1).shape == (60, 15)
        except DataError as error: assert re.search("rm1_01|session '01_1'", str(error)), error
        if other != content:
            with pytest.raises(DataError, match=path.name): check_manifest(root, "vtd")
    path.write_bytes(content)
    assert np.array_equal(windows(open_vtd(root, "rm1_mc20"), range(60)), windows(stream, range(60)))


def test_damaged_manifest(hours):
    root, _ = hours
    path, content = root / "manifest.json", (root / "manifest.json").read_bytes()
    for other in [*damaged(content), b"[]", b"null", b'{"version": 1, "kind": "vtd"}']:
        path.write_bytes(other)
        try: assert len(open_vtd(root, "rm1_mc20")) == 60
        except ValueError as error: assert len(str(error)) > 30


def test_damaged_clips(tmp_path):
    clips = [f"common_voice_{language}_{k}" for language in ("ha", "yo") for k in range(10)]
    vectors = np.random.default_rng(0).standard_normal((20, 4)).astype(np.float32)
    write_lid(tmp_path, "test", clips, {"x": vectors}, least=5)
    for name in ("x/test/common_voice_ha_3.npy", "orders/random_order_test"):
        path, content = tmp_path / name, (tmp_path / name).read_bytes()
        for other in damaged(content):
            path.write_bytes(other)
            try: stream = read_lid(tmp_path, "x", "ha", order="random", session_size=None)
            except ValueError as error: assert re.search(r"\.npy|random_order_test|target", str(error)), error
            else: assert stream.dim == 4 and np.isfinite(stream.sessions[0].features).all()
        path.write_bytes(content)


class Spy:
    def __reduce__(self): return os._exit, (1,)                # would end the tests if it were unpickled


def test_hostile_arrays(hours):
    root, _ = hours
    path = root / "a" / "rm1_01_mc20_a_1.npy"
    np.save(path, np.array([Spy()]), allow_pickle=True)
    with pytest.raises(DataError, match="pickled objects"): open_vtd(root, "rm1_mc20")
    for shape in ((10**15, 3), (-20, 3), (20, 3, 1), (0, 3), (20, 0), ()):
        with open(path, "wb") as file:
            np.lib.format.write_array_header_1_0(file, dict(descr="<f4", fortran_order=False, shape=shape))
            file.write(bytes(240))
        with pytest.raises(DataError, match="rm1_01_mc20_a_1.npy"): open_vtd(root, "rm1_mc20")
    path.unlink()
    os.mkfifo(path)                                             # must not be waited for
    with pytest.raises(DataError, match="no regular file"): open_vtd(root, "rm1_mc20")
    path.unlink()
    path.symlink_to(path)
    with pytest.raises(DataError, match="rm1_01_mc20_a_1.npy"): open_vtd(root, "rm1_mc20")
    path.unlink()
    path.mkdir()
    with pytest.raises(DataError, match="a folder"): open_vtd(root, "rm1_mc20")


def test_hostile_names(tmp_path):
    stream, _ = numeric_stream(1, session_size=4, dim=2)
    for environment in ("..", "a", "a_b_c", "../a_b", "a_/b", "_b", "a_", "a_\0", "", None, 3, ".a_b"):
        with pytest.raises(ValueError, match="environment"): write_vtd(tmp_path / "x", stream, environment)
    for columns in ({"..": 2}, {"a/b": 2}, {"labels": 2}, {"a": 0, "b": 2}, {"a": 3}, {}, {"a": 2.}):
        with pytest.raises(ValueError, match="columns"): write_vtd(tmp_path / "x", stream, "a_b", columns)
    for name in ("../x", "a/b", "a_b_c", "", "a\0"):
        odd = Stream("odd", [Session(np.ones((2, 2)), [0, 1], name)])
        with pytest.raises(ValueError, match="names of sessions"): write_vtd(tmp_path / "x", odd, "a_b")
    for split in ("..", "a/b", "orders", ""):
        with pytest.raises(ValueError, match="plain name"):
            write_lid(tmp_path / "x", split, ["a_b_c_d"], {"f": np.ones((1, 2))}, least=0)
    assert not (tmp_path / "x").exists()
    (tmp_path / "labels").mkdir()
    np.save(str(tmp_path / "labels" / "rm\udcff_0_1.npy"), np.zeros(3))                    # no UTF-8
    with pytest.raises(ValueError, match="rm1") as caught: read_vtd(tmp_path / "labels", tmp_path / "labels", "rm1_mc1")
    assert "unknown room" in str(caught.value)


def test_writing_goes_on_after_a_kill(tmp_path, monkeypatch):
    stream, _ = numeric_stream(4, session_size=10, dim=4)
    write, left = manifests.sha256_of, [5]

    def dies(content):
        left[0] -= 1
        if left[0] < 0: raise KeyboardInterrupt
        return write(content)
    monkeypatch.setattr(manifests, "sha256_of", dies)
    with pytest.raises(KeyboardInterrupt): write_vtd(tmp_path, stream, "rm1_mc20", {"a": 4})
    monkeypatch.undo()
    with pytest.raises(DataError, match="manifest.json"): open_vtd(tmp_path, "rm1_mc20")     # not finished
    write_vtd(tmp_path, stream, "rm1_mc20", {"a": 4})
    assert check_manifest(tmp_path, "vtd") == 8
    assert np.array_equal(windows(open_vtd(tmp_path, "rm1_mc20"), range(40), 2), windows(stream, range(40), 2))


PASS = """
import resource, sys
from amcl_suite.interactive.streams import window_blocks
from amcl_suite.interactive.vtd_files import read_vtd
def peak():
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) / 1024
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
stream = read_vtd(sys.argv[1] + "/labels", [sys.argv[1] + "/wavlm", sys.argv[1] + "/xvectors"], "rm1_mc20")
before = peak()
n = sum(len(part) for part, x in window_blocks(stream, range(3, len(stream), 14), context=3, block=100))
print(len(stream.sessions), n, round(peak() - before))
"""


def test_memory_and_open_files_do_not_grow_with_hours(tmp_path):
    "100 hours of published size (442 MB, sparse): every other stretch is read, with 64 open files at most."
    (tmp_path / "labels").mkdir()
    for name, dim in dict(wavlm=1024, xvectors=512).items():
        (tmp_path / name).mkdir()
        for k in range(100):
            np.save(tmp_path / "labels" / f"rm1_{k:03d}_1.npy", np.zeros(720, np.int8))
            np.lib.format.open_memmap(tmp_path / name / f"rm1_{k:03d}_mc20_{name}_1.npy", "w+", np.float32, (720, dim))
    output = subprocess.run([sys.executable, "-c", PASS, str(tmp_path)], capture_output=True, text=True, check=True).stdout
    n_sessions, n, grown = map(int, output.split())
    assert (n_sessions, n) == (100, len(range(3, 72_000, 14)))
    assert grown < 120, f"{grown} MB"                 # 16 maps and two blocks of windows

SESSIONS = """
import resource, sys
import torch
from amcl_suite.interactive.learners import LogisticLearner
from amcl_suite.interactive.session import InteractiveSession
from amcl_suite.interactive.streams import Stream
from amcl_suite.interactive.vtd_files import read_vtd
torch.set_num_threads(1)
stream = read_vtd(sys.argv[1] + "/labels", [sys.argv[1] + "/wavlm"], "rm1_mc20")
peaks = []
for hours in (10, len(stream.sessions)):
    part = Stream('cut', stream.sessions[:hours])
    run = InteractiveSession(LogisticLearner(512), part, "rand", None, tuple(int(k % 10 == 0) for k in range(hours)), boot_in=True, context=0, bootstrap=4)
    run.run()
    assert len(run.rows) == hours
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
print(*peaks)
"""


def test_peak_memory_of_a_run_does_not_grow_with_hours(tmp_path):
    "Sessions over 10 and over 100 hours (147 MB, sparse): the peak stays within a few hours' features."
    (tmp_path / "labels").mkdir(), (tmp_path / "wavlm").mkdir()
    for k in range(100):
        np.save(tmp_path / "labels" / f"rm1_{k:03d}_1.npy", (np.arange(720) % 5 == 0).astype(np.int8))
        np.lib.format.open_memmap(tmp_path / "wavlm" / f"rm1_{k:03d}_mc20_wavlm_1.npy", "w+", np.float32, (720, 512))
    output = subprocess.run([sys.executable, "-c", SESSIONS, str(tmp_path)], capture_output=True, text=True, check=True).stdout
    ten, hundred = map(int, output.split())
    assert hundred - ten < 60, f"{ten} MB for 10 hours, {hundred} MB for 100"


def test_windows_against_a_plain_loop():
    rng = np.random.default_rng(1)
    for _ in range(40):
        sizes, dim, context = rng.integers(1, 9, rng.integers(1, 6)), int(rng.integers(1, 4)), int(rng.integers(0, 12))
        stream = Stream("r", [Session(rng.standard_normal((n, dim)), rng.integers(-1, 2, n), f"{k}")
                              for k, n in enumerate(sizes)])
        samples = rng.integers(0, len(stream), 30)                                  # repeats too
        for sample, window in zip(samples, windows(stream, samples, context).reshape(30, -1, dim)):
            session, place = (int(part[0]) for part in stream.places([sample]))
            features = stream.sessions[session].features
            for step, frame in zip(range(-context, context + 1), window):
                inside = 0 <= place + step < len(features)
                assert np.array_equal(frame, features[place + step] if inside else np.zeros(dim))
        blocks = list(window_blocks(stream, samples, context, block=7))
        assert np.array_equal(np.concatenate([x for _, x in blocks]), windows(stream, samples, context))


def test_files_in_other_processes_and_backwards(hours):
    root, stream = hours
    read = open_vtd(root, "rm1_mc20")
    again = pickle.loads(pickle.dumps(read))
    assert np.array_equal(windows(again, range(60), 2), windows(stream, range(60), 2))
    both = reversed_stream(read, samples=True), reversed_stream(stream, samples=True)
    assert np.array_equal(windows(both[0], range(60), 2), windows(both[1], range(60), 2))
    assert np.array_equal(read.sessions[0].read_rows([3, 3, 1]), stream.sessions[0].features[[3, 3, 1]])


def test_streams_of_one_class_and_unlabelled():
    silent = cut_stream("s", np.ones((8, 2)), np.zeros(8), session_size=4)
    with pytest.raises(ValueError, match="no targets"): bootstrap_samples(silent)
    blank = cut_stream("s", np.ones((8, 2)), session_size=4)
    with pytest.raises(ValueError, match="no non-targets"): bootstrap_samples(blank)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert bootstrap_samples(blank, 0).tolist() == []
    late = cut_stream("s", np.ones((8, 2)), [0, 0, 0, 0, 1, 1, 1, 1], session_size=4)
    with pytest.warns(UserWarning, match="later ones are used"): assert bootstrap_samples(late, 4, 1).tolist() == [0, 1, 4, 5]
