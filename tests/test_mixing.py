"What the mixing chapter can't check from inside: a killed process, and two at once."
import json
import os
import signal
import subprocess
import sys

import pytest
from amcl_suite.core.audio import audio_info
from amcl_suite.separation.making import synthetic_corpus

OPTIONS = {"sizes": {"tr": 12, "cv": 4, "tt": 4}, "seconds": 1.0, "n_speakers": 6, "n_clips": 3}
SCRIPT = """
import json, sys, time
from amcl_suite.separation.making import synthetic_corpus
def progress(done, total):
    print(done, flush=True)
    time.sleep(float(sys.argv[3]))
print(synthetic_corpus((2, 3), sys.argv[1], **json.loads(sys.argv[2]), progress=progress))
"""


def start(folder, pause):
    command = [sys.executable, "-c", SCRIPT, str(folder), json.dumps(OPTIONS), str(pause)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def content(root):
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


@pytest.mark.slow
def test_a_killed_corpus_is_finished_by_the_next_start(tmp_path):
    whole = synthetic_corpus((2, 3), tmp_path / "whole", **OPTIONS)
    process = start(tmp_path / "cut", 0.2)
    while process.stdout.readline().strip() != "5": assert process.poll() is None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    cut = tmp_path / "cut"
    assert not (cut / "corpus.json").exists()
    files = [p for p in cut.rglob("*.wav") if not p.name.startswith(".")]
    assert files and {audio_info(p).n_samples for p in files} == {8000}    # nothing is half written
    leftover = cut / "2speakers/wav8k/min/tr/mix/.half.wav.1.tmp"
    leftover.write_bytes(b"RIFF")
    assert content(synthetic_corpus((2, 3), cut, **OPTIONS)) == content(whole)


@pytest.mark.slow
def test_two_processes_make_one_corpus(tmp_path):
    both = [start(tmp_path / "shared", 0.01) for _ in range(2)]
    said = [process.communicate(timeout=120)[0].split() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert {lines[-1] for lines in said} == {str(tmp_path / "shared")}
    assert sorted(len(lines) for lines in said) == [1, 41]    # one worked, the other waited
    whole = synthetic_corpus((2, 3), tmp_path / "whole", **OPTIONS)
    assert content(tmp_path / "shared") == content(whole)
