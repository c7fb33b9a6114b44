"""Data from the network and from damaged folders, against a local server of the published bytes."""
import contextlib
import http.server
import os
import shutil
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from amcl_suite.core.files import DataError
from amcl_suite.core.data import Part, catalogue, check, checksum, fetch, locate, state
from amcl_suite.mcl.uci import UCI_NAMES, read_uci
from amcl_suite.reproduce.cli import main

DATA = Path(os.environ.get("AMCL_DATA", ""))
ARCHIVE, CONTAINER = DATA / "uci_raw.zip", DATA / "uci_regression.h5"
needs_archive = pytest.mark.skipif(not (os.environ.get("AMCL_DATA") and ARCHIVE.is_file()),
                                   reason="AMCL_DATA holds no uci_raw.zip")


class Server:
    "Serve the files of an archive; `mode` decides how badly, `sent` counts the megabytes of an endless one."
    sent = 0

    def __init__(self, files: dict[str, bytes]):
        self.mode, self.requests, outer = "good", [], self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                outer.requests.append(self.path)
                content = files.get(self.path.lstrip("/"))
                if content is None or outer.mode == "missing":
                    return self.send_error(404)
                if outer.mode == "other":
                    content = content[:-2] + b"9\n"
                self.send_response(200)
                if outer.mode != "endless": self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if outer.mode == "endless":
                    with contextlib.suppress(OSError):
                        for outer.sent in range(400): self.wfile.write(bytes(2**20))   # 400 MB
                    return
                if outer.mode == "breaks off":
                    content = content[: len(content) // 2]
                self.wfile.write(content)

            def log_message(self, *args): pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def server(tmp_path, monkeypatch):
    "A server with the published files, an empty cache, and no other data on the machine."
    files = {}
    if ARCHIVE.is_file():
        with zipfile.ZipFile(ARCHIVE) as archive:
            files = {name: archive.read(name) for name in archive.namelist()
                     if not name.endswith("/")}
    server = Server(files)
    monkeypatch.delenv("AMCL_DATA", raising=False)
    monkeypatch.setenv("AMCL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("AMCL_DATA_URL", server.url)
    yield server
    server.server.shutdown()


def leftovers(tmp_path):
    return [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]


@needs_archive
def test_fetch_gets_the_published_bytes_once(server, tmp_path):
    assert checksum("yacht") == ""
    data = read_uci("yacht")                     # nowhere on this machine: fetched
    assert data.x.shape == (308, 6) and len(server.requests) == 3
    assert checksum("yacht") != ""
    read_uci("yacht"), fetch("yacht")
    assert len(server.requests) == 3             # what is there is not fetched again


@needs_archive
@pytest.mark.parametrize("mode", ["breaks off", "other", "missing"])
def test_bad_downloads_leave_nothing_and_say_why(server, tmp_path, mode):
    server.mode = mode
    with pytest.raises(DataError, match="could not fetch .*data.txt"):
        locate("yacht")
    assert leftovers(tmp_path) == []
    server.mode = "good"
    assert read_uci("yacht").x.shape == (308, 6)  # the next try works


@needs_archive
def test_c11_a_server_that_never_stops_is_cut_off(server, tmp_path):
    server.mode = "endless"
    with pytest.raises(DataError, match="sends more than 11,487 bytes"): fetch("yacht")
    assert leftovers(tmp_path) == [] and server.sent < 100       # what fits into the sockets' buffers


def test_c10_a_killed_download_is_swept_up(server, tmp_path):
    left = tmp_path / "cache" / "UCI_Datasets" / ".data.txt.0123456789abcdef.tmp"
    left.parent.mkdir(parents=True)
    left.write_text("half")
    with contextlib.suppress(DataError): fetch("yacht")
    assert not left.exists()


@pytest.mark.slow
@needs_archive
def test_c3_one_flipped_bit_in_an_archive_is_named(tmp_path, monkeypatch, capsys):
    content = bytearray(ARCHIVE.read_bytes())
    with zipfile.ZipFile(ARCHIVE) as archive:
        entry = archive.getinfo(next(f.path for f in catalogue()["yacht"].files))
    content[entry.header_offset + 400] ^= 4                       # inside its compressed bytes
    (tmp_path / "uci_raw.zip").write_bytes(content)
    assert state("yacht", tmp_path).word == "incomplete" and "uci_raw.zip" in state("yacht", tmp_path).detail
    monkeypatch.setenv("AMCL_DATA", str(tmp_path))
    monkeypatch.setenv("AMCL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("AMCL_RUNS_PATH", str(tmp_path / "runs"))
    for command in (["data", "check"], ["data", "list"], ["doctor"], ["show", "headline"], ["status"], ["clean"]):
        with pytest.raises(SystemExit): main(command)            # and no other exception
        assert command != ["data", "check"] or "uci_raw.zip" in "".join(capsys.readouterr())


@pytest.mark.parametrize("name", ["imagenet", "wsj0-mix", "librimix", "cifar10"])
def test_s10_an_empty_folder_is_no_data_set(tmp_path, monkeypatch, name):
    folder = tmp_path / (catalogue()[name].folder)
    folder.mkdir()
    monkeypatch.delenv("AMCL_DATA", raising=False)
    monkeypatch.setenv("AMCL_CACHE", str(tmp_path))
    assert state(name).word == "missing" and checksum(name) == ""
    with pytest.raises(DataError, match="holds nothing of it"): locate(name, download=False)
    part = catalogue()[name].layouts[0][0]
    file = folder / part.pattern.replace("*", "n1", 1).replace("*", "a")
    file.parent.mkdir(parents=True, exist_ok=True)
    (file.parent / "._a.JPEG").touch()                            # a Mac's shadow of a file is none
    assert state(name).word == "missing"
    file.touch()
    assert state(name, thorough=False).word == "found" and state(name).word == "incomplete"
    with pytest.raises(DataError, match=r"holds 1 of|damaged or not the published"): check(name)


def test_a_4_a_complete_corpus_is_verified(tmp_path, monkeypatch):
    monkeypatch.setenv("AMCL_DATA", str(tmp_path))
    small = replace(catalogue()["imagenet"], layouts=((Part("train/n*/*.JPEG", 4), Part("classes.json")),))
    monkeypatch.setattr("amcl_suite.core.data.resource", lambda name: small)
    for name in ("n1/a.JPEG", "n1/b.jpeg", "n2/c.JPEG", "n2/._c.JPEG"):
        (tmp_path / "imagenet" / "train" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "imagenet" / "train" / name).touch()
    assert "train/n*/*.JPEG holds 3 of 4 files" in state("imagenet").detail
    (tmp_path / "imagenet" / "train" / "n2" / "d.JPEG").touch()
    assert "classes.json holds 0 of 1 files" in state("imagenet").detail
    (tmp_path / "imagenet" / "classes.json").touch()
    assert state("imagenet").word == "verified"


@needs_archive
def test_half_finished_downloads_are_completed(server, tmp_path):
    fetch("yacht")
    file = next(p for p in leftovers(tmp_path) if p.name == "data.txt")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(DataError, match="100 bytes instead of 11487"):
        read_uci("yacht")
    fetch("yacht")
    assert check("yacht") and len(server.requests) == 4   # only the damaged file was fetched again


def test_no_network_says_where_to_put_the_files(tmp_path, monkeypatch):
    monkeypatch.delenv("AMCL_DATA", raising=False)
    monkeypatch.setenv("AMCL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("AMCL_DATA_URL", "http://127.0.0.1:9")   # nobody listens
    with pytest.raises(DataError, match="AMCL_DATA"):
        locate("boston")


@needs_archive
def test_three_forms_give_the_same_numbers(tmp_path, monkeypatch):
    with zipfile.ZipFile(ARCHIVE) as archive:
        archive.extractall(tmp_path / "text")
    shutil.copy(ARCHIVE, tmp_path)
    moved = tmp_path / "moved"                                    # sets directly below the folder
    (tmp_path / "text" / "UCI_Datasets").rename(moved)
    (tmp_path / "zip").mkdir()
    shutil.copy(ARCHIVE, tmp_path / "zip")
    folders = [moved, tmp_path / "zip"] + ([DATA] if CONTAINER.is_file() else [])
    for name in UCI_NAMES:
        first, *others = [read_uci(name, str(folder)) for folder in folders]
        for other in others:
            np.testing.assert_array_equal(first.x, other.x)
            np.testing.assert_array_equal(first.y, other.y)
            for a, b in zip(first.splits, other.splits):
                np.testing.assert_array_equal(a[1], b[1])


@needs_archive
@pytest.mark.skipif(not CONTAINER.is_file(), reason="AMCL_DATA holds no uci_regression.h5")
@pytest.mark.parametrize("name", ["uci_regression.h5", "uci_raw.zip"])
def test_damaged_containers_are_refused(tmp_path, name):
    content = bytearray((DATA / name).read_bytes())
    (tmp_path / name).write_bytes(content[: len(content) // 2])   # truncated
    with pytest.raises(DataError, match="damaged"):
        check("yacht", tmp_path)
    middle = len(content) // 2
    content[middle] ^= 0xFF                                       # one bit pattern changed
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match="damaged"):
        for key in catalogue():
            if key != "year":
                check(key, tmp_path)
