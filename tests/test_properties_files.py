"""Every reader of core.files and core.formats, on right files, and on every kind of damage: a right value, or `DataError`."""
import io
import json
import math
import os
import resource
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays, array_shapes

from amcl_suite.core.files import (DataError, decode, encode, json_text, read_json, read_member,
                                   read_text, replacing, shown, sweep_temporaries, walk_files,
                                   write_json_atomic, zip_members)
from amcl_suite.core.formats import (open_hdf5, read_image, read_npy, read_npz, read_weights,
                                     write_weights)
from amcl_suite.core.reading import read_arrays, read_record
from amcl_suite.core.training_files import load_checked

quick = settings(max_examples=60, deadline=None, derandomize=True,
                 suppress_health_check=[HealthCheck.function_scoped_fixture])
plain = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) |
                     st.sampled_from(["NaN", "-Infinity", "\\NaN", "\\\\Infinity", "Infinity "]),
                     lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
                     max_leaves=12)


def same(a, b) -> bool:
    "Equality in which NaN equals itself, and 1, 1.0 and True differ."
    if type(a) is not type(b): return False
    if isinstance(a, float): return a == b and math.copysign(1, a) == math.copysign(1, b) or a != a and b != b
    if isinstance(a, dict): return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list): return len(a) == len(b) and all(map(same, a, b))
    return a == b


@quick
@given(plain)
def test_c7_what_is_encoded_comes_back(tmp_path, value):
    assert same(decode(json.loads(json.dumps(encode(value), allow_nan=False))), value)
    assert same(read_json(write_json_atomic(tmp_path / "a.json", {"value": value}))["value"], value)
    assert json_text(encode(value)) and encode(decode(encode(value))) == encode(value)


@pytest.mark.parametrize("value", [{1: 0, "1": 1}, {None: 0}, {("a",): 0}, {1, 2}, b"x", 1j, object()])
def test_c7_what_has_no_plain_form_is_refused(value):
    with pytest.raises(TypeError, match="value: "): encode(value)


def test_c7_what_contains_itself_is_refused():
    endless = []
    endless.append(endless)
    with pytest.raises(ValueError, match="nested too deeply"): json_text(endless)


# -- damage: one good file of each format, and what reads it --------------------------------------

def _image(path):
    from PIL import Image
    Image.fromarray(np.arange(768, dtype=np.uint8).reshape(16, 16, 3)).save(path, "PNG")

def _hdf5(path):
    import h5py
    with h5py.File(path, "w") as file: file["x"] = np.arange(50.)

def _read_hdf5(path):
    with open_hdf5(path) as file: return file["x"][:]

def _zip(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive: archive.writestr("a/b.txt", b"12345 " * 50)

RECORD = dict(schema=2, state="finished", job="j", name="n", notebook="x", parameters={}, hash="q", rows=[])
WEIGHTS = {"w": torch.arange(40.), "step": 3}
AGREE = {"n": 1, "name": "a"}
FORMATS = {   # name: writer, reader, whether a check sum covers its content
    "json": (lambda p: write_json_atomic(p, {"a": [1, 2.5, "x"]}), read_json, False),
    "record": (lambda p: write_json_atomic(p, RECORD), read_record, False),
    "zip": (_zip, lambda p: read_member(p, "a/b.txt"), True),
    "npz": (lambda p: np.savez_compressed(open(p, "wb"), x=np.arange(30.)), lambda p: read_npz(p)["x"], True),
    "npy": (lambda p: np.save(open(p, "wb"), np.arange(30.)), read_npy, False),
    "weights": (lambda p: write_weights(p, WEIGHTS), lambda p: read_weights(p)["w"], True),
    "checkpoint": (lambda p: write_weights(p, {"agree": AGREE, **WEIGHTS}), lambda p: load_checked(p, AGREE)["w"], True),
    "image": (_image, lambda p: np.asarray(read_image(p)), False),   # a PNG's sums are Pillow's to check
    "hdf5": (_hdf5, _read_hdf5, False),
}
SOUND = dict(max_examples=120, deadline=None, derandomize=True,
             suppress_health_check=[HealthCheck.function_scoped_fixture])


def _good(name, tmp_path) -> tuple[Path, bytes, object]:
    path = tmp_path / f"good.{name}"
    if not path.exists(): FORMATS[name][0](path)
    return path, path.read_bytes(), FORMATS[name][1](path)


def _damaged(name, path, good, content):
    "Read damaged content: the old value, or (where no check sum can tell) another, or `DataError` that names the file."
    path.write_bytes(content)
    try: value = FORMATS[name][1](path)
    except DataError as error:
        assert path.name in str(error) and ("again" in str(error) or "delete" in str(error) or ";" in str(error))
        return
    except ValueError as error:      # a checkpoint that is whole, but of another training
        assert name == "checkpoint" and ("doesn't say which training" in str(error) or "now it is" in str(error))
        return
    except KeyError:                 # a whole archive of other names is another file, not a damaged one
        assert name in ("npz", "weights", "checkpoint", "hdf5")
        return
    if FORMATS[name][2]: assert np.array_equal(value, good) if name != "zip" else value == good


@pytest.mark.parametrize("name", FORMATS)
@settings(**SOUND)
@given(data=st.data())
def test_s8_c9_a_flipped_bit_is_seen_or_harmless(tmp_path, name, data):
    path, content, good = _good(name, tmp_path)
    place, bit = data.draw(st.integers(0, len(content) - 1)), data.draw(st.integers(0, 7))
    flipped = bytearray(content)
    flipped[place] ^= 1 << bit
    _damaged(name, tmp_path / f"bad.{name}", good, bytes(flipped))


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_c9_what_is_cut_off_or_is_another_thing_is_refused(tmp_path, name, data):
    path, content, good = _good(name, tmp_path)
    cut = content[:data.draw(st.integers(0, len(content) - 1))]
    other = data.draw(st.sampled_from([cut, b"", b"[]", b"null", b"\0" * 200, b"{" * 5000, b"PK\3\4" + cut[4:],
                                       b"\x93NUMPY\1\0" + cut, content[::-1]]) | st.binary(max_size=80))
    _damaged(name, tmp_path / f"bad.{name}", good, other)


@pytest.mark.parametrize("name", FORMATS)
def test_c9_no_file_a_folder_a_pipe_and_a_closed_file_are_named(tmp_path, name):
    read = FORMATS[name][1]
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "none", tmp_path, tmp_path / "pipe", tmp_path / ("x" * 300)):
        if name in ("checkpoint", "record") and path in (tmp_path / "none", tmp_path): continue   # None; a run's folder
        if name == "checkpoint" and len(path.name) == 300: continue
        with pytest.raises(DataError): read(path)


def test_s8_the_listed_input(tmp_path):
    path, weights = tmp_path / "c.pt", torch.randn(500)
    write_weights(path, {"agree": AGREE, "w": weights})
    content = bytearray(path.read_bytes())
    content[content.index(weights.numpy().tobytes()) + 3] ^= 64
    path.write_bytes(content)
    with pytest.raises(DataError, match="check sum .* start again"): load_checked(path, AGREE)


@pytest.mark.parametrize("content", [[1, 2], {"w": 1}, {"agree": ["f"]}, "text"])
def test_c9_a_checkpoint_of_other_things_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "c.pt")
    with pytest.raises(ValueError, match="doesn't say which training"): load_checked(tmp_path / "c.pt", AGREE)


def test_c9_a_header_that_promises_terabytes_is_refused(tmp_path):
    header = "{'descr': '<f8', 'fortran_order': False, 'shape': (9999999999999,), }"
    npy = b"\x93NUMPY\1\0" + len(header.ljust(117) + "\n").to_bytes(2, "little") + (header.ljust(117) + "\n").encode()
    (tmp_path / "a.npy").write_bytes(npy + b"\0" * 64)
    with zipfile.ZipFile(tmp_path / "arrays.npz", "w") as archive: archive.writestr("x.npy", npy + b"\0" * 64)
    for read in (lambda: read_npy(tmp_path / "a.npy"), lambda: read_npy(tmp_path / "a.npy", mmap=True),
                 lambda: read_npz(tmp_path / "arrays.npz"), lambda: read_arrays(tmp_path)):
        with pytest.raises(DataError, match="can't hold"): read()


def test_c11_what_would_unpack_to_gigabytes_is_refused_before(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("big", "w") as file:
            for _ in range(16): file.write(bytes(2**24))            # 256 MiB in 1 MB
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for read in (lambda: read_member(tmp_path / "a.zip", "big", max_bytes=10**6),
                 lambda: read_npz(tmp_path / "a.zip", 10**6), lambda: read_weights(tmp_path / "a.zip")):
        with pytest.raises(DataError, match="at most 1,000,000 are expected|not one of torch.save"): read()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024     # KiB


# -- right values --------------------------------------------------------------------------------

@quick
@given(data=st.data())
def test_arrays_come_back_with_shape_order_and_type(tmp_path, data):
    kind = data.draw(st.sampled_from(["?", "i1", ">i4", "u8", "f2", ">f8", "c16", "M8[s]", "S3", "U2"]))
    array = data.draw(arrays(np.dtype(kind), array_shapes(min_dims=0, min_side=0, max_side=4)))
    array = array.T if data.draw(st.booleans()) else array
    np.savez_compressed(tmp_path / "a.npz", x=array)
    np.save(tmp_path / "a.npy", array)
    for read in (read_npz(tmp_path / "a.npz")["x"], read_npy(tmp_path / "a.npy"), read_npy(tmp_path / "a.npy", mmap=True)):
        assert read.shape == array.shape and read.dtype == array.dtype and read.tobytes() == array.tobytes()


@pytest.mark.parametrize("mode, value, expected", [
    ("L", 77, 77), ("I;16", 77 * 257, 77), ("I;16", 65535, 255), ("1", 1, 255), ("P", 5, None), ("RGB", (1, 2, 3), None),
    ("RGBA", (9, 9, 9, 0), 9), ("LA", (7, 255), 7), ("CMYK", (0, 0, 0, 0), 255), ("I", 300, "32-bit"), ("F", .5, "floats")])
def test_s6_depths_of_pictures(mode, value, expected):
    from PIL import Image
    buffer = io.BytesIO()
    Image.new(mode, (6, 5), value).save(buffer, "TIFF")
    if isinstance(expected, str):
        with pytest.raises(DataError, match=expected): read_image(buffer.getvalue(), "a.tif")
        return
    image = read_image(buffer.getvalue(), "a.tif")
    assert (image.mode, image.size) == ("RGB", (6, 5))
    assert expected is None or np.unique(np.asarray(image)).tolist() == [expected]


# -- folders, names, leftovers -------------------------------------------------------------------

def test_s11_one_walk_for_what_people_keep_in_folders(tmp_path):
    root = tmp_path / "c"
    names = ["b/A.WAV", "b/._A.WAV", "a.Wav", ".git/x.wav", "__MACOSX/x.wav", "b/c/d.FLAC", "e.txt", "wav", ".wav"]
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    (root / "b" / "up").symlink_to(root)                                   # a circle
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "f.wav").touch()
    (root / "z").symlink_to(tmp_path / "disk")                             # another disk
    (root / "gone.wav").symlink_to(tmp_path / "nowhere")
    os.mkfifo(root / "pipe.wav")
    open(os.fsencode(root) + b"/n\xe9.wav", "w").close()
    found = [shown(p.relative_to(root)) for p in walk_files(root, (".wav", ".flac"))]
    assert found == ["a.Wav", "b/A.WAV", "b/c/d.FLAC", "gone.wav", "n\\xe9.wav", "z/f.wav"]
    with pytest.raises(DataError, match="gone.wav: .*no such file"): read_text(root / "gone.wav")
    assert str(DataError(f"{walk_files(root, ('.wav',))[3]}: x")).isprintable()


def test_c10_leftovers_of_killed_writers_go_and_work_in_progress_stays(tmp_path):
    code = ("import os, sys\nfrom amcl_suite.core.files import replacing\n"
            "with replacing(sys.argv[1]) as t:\n    t.write_text('half'); os.kill(os.getpid(), 9)\n")
    for _ in range(3): subprocess.run([sys.executable, "-c", code, tmp_path / "sub" / "a.json"])
    (tmp_path / ".keep.tmp").touch()                                       # not ours
    assert len(list((tmp_path / "sub").iterdir())) == 3
    with replacing(tmp_path / "b.json") as temporary:
        temporary.write_text("whole")
        assert sweep_temporaries(tmp_path) == 3
    assert sorted(p.name for p in tmp_path.rglob("*")) == [".keep.tmp", "b.json", "sub"]


def test_c10_threads_that_write_one_file_never_fail(tmp_path):
    failures = []
    def write(text):
        for _ in range(100):
            try: write_json_atomic(tmp_path / "a.json", {"x": text * 100})
            except Exception as error: failures.append(error)
    threads = [threading.Thread(target=write, args=(letter,)) for letter in "abcdefgh"]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    assert not failures and len(set(read_json(tmp_path / "a.json")["x"])) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_c10_a_planted_link_is_not_written_through(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    for name in (f".a.json.{os.getpid()}.tmp", f"a.json.{os.getpid()}.tmp"): (tmp_path / name).symlink_to(victim)
    write_json_atomic(tmp_path / "a.json", {})
    write_weights(tmp_path / "a.json", {"agree": AGREE})
    assert victim.read_text() == "mine"


def test_zip_members_and_damage_on_the_way_in(tmp_path):
    _zip(tmp_path / "a.zip")
    assert list(zip_members(tmp_path / "a.zip")) == ["a/b.txt"]
    content = bytearray((tmp_path / "a.zip").read_bytes())
    for offset in (8, 10):                                                 # method and flags of the central directory
        odd = bytearray(content)
        odd[odd.index(b"PK\1\2") + offset] = 99
        (tmp_path / "b.zip").write_bytes(odd)
        with pytest.raises(DataError, match="b.zip"): read_member(tmp_path / "b.zip", "a/b.txt")
