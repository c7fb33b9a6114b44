"Sound files of every format: a part is the part of the whole, and damage is named, never more."
import io
import resource
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from amcl_suite.core import audio
from amcl_suite.core.audio import SOUND_SUFFIXES, AudioError, audio_info, read_audio
from amcl_suite.core.sound import check_heard, is_silent
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

N = 12_000
RNG = np.random.default_rng(0)
VOICE = np.clip(.1 * RNG.normal(size=N) + .3 * np.sin(np.arange(N) * .2), -1, 1)
BOUNDS = dict(deadline=None, derandomize=True,
              suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


def writable():
    "All pairs of format and subtype that the library writes and reads here, in mono or stereo."
    for form in soundfile.available_formats():
        for subtype in soundfile.available_subtypes(form):
            if form not in ("RAW", "SD2"): yield form, subtype      # these need more than one file


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    "(format, subtype, channels) -> file and what reading it whole gives."
    folder, found = tmp_path_factory.mktemp("sounds"), {}
    for form, subtype in writable():
        for n in (1, 2):
            path = folder / f"{form}-{subtype}-{n}.{form.lower()}"
            samples = VOICE if n == 1 else np.stack([VOICE, -.5 * VOICE], 1)
            try: soundfile.write(path, samples, 8000, format=form, subtype=subtype)
            except (RuntimeError, ValueError): continue              # no encoder, or mono only
            found[form, subtype, n] = path, read_audio(path)[0]
    return found


def test_s1_every_format_is_there(sounds):
    forms = {form for form, _, _ in sounds}
    assert {"WAV", "FLAC", "OGG", "MP3", "AIFF", "CAF", "W64", "RF64", "AU", "NIST"} <= forms
    assert {"GSM610", "IMA_ADPCM", "MS_ADPCM", "VORBIS", "ALAC_16"} <= {s for _, s, _ in sounds}
    for path, whole in sounds.values():                             # blocks are padded in some
        assert N <= len(whole) == audio_info(path).n_samples < N + 2048, path


@settings(max_examples=4, **BOUNDS)
@given(start=st.integers(0, N - 1), length=st.integers(1, 4000))
def test_s1_a_part_is_the_part_of_the_whole_in_every_format(sounds, start, length):
    for path, whole in sounds.values():
        n = min(length, len(whole) - start)
        assert (read_audio(path, start=start, n_samples=n)[0] == whole[start:start + n]).all(), path


def test_s1_the_input_of_the_list(tmp_path):
    x = np.tile(.3 * np.sin(2 * np.pi * 440 * np.arange(8000) / 8000), 3).astype("float32")
    for suffix in ("mp3", "ogg"):
        soundfile.write(tmp_path / f"a.{suffix}", x, 16000)
        whole = read_audio(tmp_path / f"a.{suffix}")[0]
        part = read_audio(tmp_path / f"a.{suffix}", start=5145, n_samples=4000)[0]
        assert (whole[5145:9145] == part).all()


def test_s1_members_of_archives_and_longer_files_than_a_block(tmp_path):
    long = np.tile(VOICE, 25)                                       # more than 2**18 samples
    for suffix in ("mp3", "flac", "ogg"):
        soundfile.write(tmp_path / f"a.{suffix}", long, 8000)
        with zipfile.ZipFile(tmp_path / f"{suffix}.zip", "w") as pack:
            pack.write(tmp_path / f"a.{suffix}", "b/a")
        whole = read_audio(tmp_path / f"a.{suffix}")[0]
        assert len(whole) == len(long)
        part = read_audio(tmp_path / f"{suffix}.zip/b/a", start=262_000, n_samples=500)[0]
        assert (part == whole[262_000:262_500]).all()


DAMAGED = [("WAV", "PCM_16"), ("WAV", "GSM610"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"),
           ("MP3", "MPEG_LAYER_III"), ("AIFF", "PCM_24"), ("W64", "FLOAT")]


def samples_or_error(path):
    "Read a file whole and in part; the answer is samples, or an error that names the file."
    for options in ({}, {"start": 1000, "n_samples": 1000}):
        try: waveform = read_audio(path, **options)[0]
        except AudioError as error:
            assert path.name in str(error)
            continue
        assert waveform.ndim == 1 and 1 <= len(waveform) <= 20 * N and waveform.isfinite().all()
    try: assert audio_info(path).n_samples >= 1
    except AudioError as error: assert path.name in str(error)


@settings(max_examples=120, **BOUNDS)
@given(which=st.sampled_from(DAMAGED), data=st.data())
def test_c4_damage_is_samples_or_an_error_that_names_the_file(sounds, which, data):
    content = bytearray(sounds[*which, 1][0].read_bytes()[:30_000])
    near = st.integers(0, min(300, len(content) - 1))               # headers, where it hurts most
    for place in data.draw(st.lists(near | st.integers(0, len(content) - 1), max_size=4)):
        content[place] ^= 1 << data.draw(st.integers(0, 7))
    content = content[:data.draw(st.integers(0, len(content)))]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"x{data.draw(st.sampled_from(SOUND_SUFFIXES + ('',)))}"
        path.write_bytes(content)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        samples_or_error(path)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000   # kB


def streamed(content: bytes) -> bytearray:
    "Return a FLAC file whose header says 0 samples: the recorder didn't know yet."
    content = bytearray(content)
    content[21] &= 0xF0
    content[22:26] = bytes(4)
    return content


def test_c4_a_streamed_flac_is_read_to_its_end(tmp_path):
    soundfile.write(tmp_path / "a.flac", VOICE, 8000)
    whole = read_audio(tmp_path / "a.flac")[0]
    (tmp_path / "b.flac").write_bytes(streamed((tmp_path / "a.flac").read_bytes()))
    assert audio_info(tmp_path / "b.flac").n_samples == N
    assert (read_audio(tmp_path / "b.flac")[0] == whole).all()
    assert (read_audio(tmp_path / "b.flac", start=9000, n_samples=70)[0] == whole[9000:9070]).all()
    with pytest.raises(AudioError, match=f"has {N}"): read_audio(tmp_path / "b.flac", start=N - 5, n_samples=9)


def test_c4_names_that_are_not_utf8(tmp_path):
    soundfile.write(tmp_path / "a.wav", VOICE, 8000)
    odd = Path(str(tmp_path) + "/b\udce9.wav")
    odd.write_bytes((tmp_path / "a.wav").read_bytes())
    assert (read_audio(odd)[0] == read_audio(tmp_path / "a.wav")[0]).all()
    odd.write_bytes(b"RIFF")
    with pytest.raises(AudioError) as caught: read_audio(odd)
    assert "b\\xe9.wav" in str(caught.value) and str(caught.value).encode()


def test_s11_a_mac_file_beside_an_mp3_does_no_harm(tmp_path, monkeypatch):
    soundfile.write(tmp_path / "a.mp3", VOICE, 16000)
    whole = read_audio(tmp_path / "a.mp3")[0]
    for name in ("._a.mp3", "._"): (tmp_path / name).write_bytes(b"\0\5\x16\7" + bytes(4092))
    monkeypatch.chdir(tmp_path)                                     # the library looks there, too
    with zipfile.ZipFile("a.zip", "w") as pack: pack.write("a.mp3")
    for path in ("a.mp3", "a.zip/a.mp3"): assert (read_audio(path)[0] == whole).all()


def test_small_gsm_in_wav_is_read(tmp_path):
    soundfile.write(tmp_path / "a.wav", VOICE, 8000, subtype="GSM610")
    waveform = read_audio(tmp_path / "a.wav")[0]
    assert len(waveform) >= N and not is_silent(waveform)


def peak_of(call) -> int:
    "Return by how many kB a call raises the largest memory that this process has had."
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    call()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before


def test_c11_a_small_archive_takes_no_large_memory(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "z.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as pack:
        for name, head in (("zeros.wav", b""), ("voice.wav", b"RIFF")):
            with pack.open(name, "w") as file:
                file.write(head)
                for _ in range(150): file.write(bytes(2**20))
    monkeypatch.setattr(audio, "_LARGEST", 2**24)                   # else the test would be large
    def refused(name, words):
        with pytest.raises(AudioError, match=words): read_audio(tmp_path / "z.zip" / name)
    assert peak_of(lambda: refused("zeros.wav", "zeros.wav: not a sound file")) < 50_000
    assert peak_of(lambda: refused("voice.wav", "at most 16,777,216")) < 50_000


@settings(max_examples=60, **BOUNDS)
@given(offset=st.floats(-.9, .9), level=st.floats(-60, -20), steps=st.sampled_from([0, .5, 1]))
def test_s4_silence_is_no_variation_about_the_mean(offset, level, steps):
    rounding = steps / 32768 * RNG.choice([-.5, .5], 4000)          # what averaging may leave
    assert bool(is_silent(offset + rounding))
    voice = VOICE[:4000] / VOICE[:4000].std() * 10 ** (level / 20)
    assert not bool(is_silent((offset + voice).astype(np.float32)))


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT"])
def test_s4_opposite_channels_are_silent(tmp_path, subtype):
    soundfile.write(tmp_path / "a.wav", np.stack([VOICE, -VOICE], 1), 8000, subtype=subtype)
    with pytest.raises(AudioError, match="a.wav: silent"):
        check_heard(read_audio(tmp_path / "a.wav")[0], tmp_path / "a.wav")
