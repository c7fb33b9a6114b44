"""C9 in the ensembles: every stored file, damaged in any way, is read right or refused by name; one damaged run doesn't take the others with it."""
import json

import numpy as np
import pytest
import torch
from amcl_suite.core.files import DataError, write_json_atomic
from amcl_suite.core.formats import write_weights
from amcl_suite.ensembles.command_line import read_tables
from amcl_suite.ensembles.experiments import run_images
from amcl_suite.ensembles.image_config import ImageConfig
from amcl_suite.ensembles.members import make_ensemble
from amcl_suite.ensembles.storage import (FORMAT, find_predictions, load_ensemble, read_predictions, read_reference_json,
                                          save_ensemble, save_predictions, stored_predictions, write_reference_json)

SPOILT = [b"", b"\x00", b"PK\x03\x04", b"{", b"[1]", b"null", b"\xff\xfe", b'{"a": 1}', b'{"a": {"beta": 1}}']


def damaged(content, n=25):
    "Yield wrong contents: short ones, cut ones, and ones with a flipped bit."
    yield from SPOILT
    rng = np.random.default_rng(0)
    for _ in range(n):
        place = int(rng.integers(len(content)))
        yield content[:place]
        yield content[:place] + bytes([content[place] ^ 1 << int(rng.integers(8))]) + content[place + 1:]


def read_all(path, read, same, n=25):
    "Read a file damaged in many ways: what comes is right, or an error that names the file."
    content = path.read_bytes()
    for other in damaged(content, n):
        path.write_bytes(other)
        try: value = read(path)
        except DataError as error: assert path.name in str(error) and len(str(error)) > 40
        else: assert same(value)
    path.write_bytes(content)


def test_c9_predictions(tmp_path):
    logits, labels = torch.randn(6, 2, 3), torch.arange(6) % 3
    save_predictions(tmp_path / "preds_test_seed0_beta1.npz", logits, labels)
    read_all(tmp_path / "preds_test_seed0_beta1.npz", read_predictions,
             lambda v: v[0].equal(logits) and v[1].equal(labels))
    np.savez(tmp_path / "texts.npz", logits=np.full((2, 2, 2), "a"), y=np.array(["b", "c"]))
    with pytest.raises(DataError, match="texts.npz"): read_predictions(tmp_path / "texts.npz")
    (tmp_path / "config.json").write_bytes(b"")
    with pytest.raises(DataError, match="config.json"): find_predictions(tmp_path)


def test_c9_the_released_analysis(tmp_path):
    stored = stored_predictions([0., 1.], np.random.default_rng(0).normal(size=(2, 2, 3, 2)), np.arange(3.))
    path = write_reference_json(tmp_path / "deep_ensemble_a.json", stored)
    same = lambda v: v.betas.shape == (2,) and np.isfinite(v.predictions).all()   # JSON has no check sum
    read_all(path, read_reference_json, same)
    read_all(path.with_suffix(".npz"), read_reference_json,
             lambda v: np.array_equal(v.predictions, stored.predictions))
    good = stored._asdict() | {"run_ids": np.array(stored.run_ids)}
    for name, value in dict(betas=np.zeros(5), predictions=np.zeros(3), targets=np.array(["x"]),
                            run_ids=np.array("a")).items():
        np.savez(path.with_suffix(".npz"), **(good | {name: value}))
        with pytest.raises(DataError, match="deep_ensemble_a.npz"): read_reference_json(path.with_suffix(".npz"))


def test_c9_ensembles(tmp_path):
    ensemble = make_ensemble("CNN", 2, 3)
    path = save_ensemble(tmp_path / "e.pt", ensemble, beta=.5)
    same = lambda v: all(a.equal(b) for a, b in zip(v.state_dict().values(), ensemble.state_dict().values()))
    read_all(path, load_ensemble, same, n=12)
    whole = torch.load(path, weights_only=True)
    for content in ([1], 3, dict(format=FORMAT), whole | dict(members=[]), whole | dict(members=[{}, {}]),
                    whole | dict(members=[[1], [2]]), whole | dict(recipe={"name": "CNN"}),
                    whole | dict(settings={"turn": 1}), whole | dict(settings=None),
                    whole | dict(members=[{k: v[..., None] for k, v in s.items()} for s in whole["members"]])):
        write_weights(path, content)
        with pytest.raises(DataError, match="e.pt"): load_ensemble(path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    config = ImageConfig.small(n_epochs=1, seeds=(0, 1), betas=(0.,), n_train=40, n_val=20, n_test=20,
                               n_members=2)
    run_images(config, folder)
    return config, folder


@pytest.mark.parametrize("spoil", [b"", b"[]", b"{}", b'{"seed": 0, "beta": 0.0, "best_epoch": 0, '
                                   b'"lr_switch": [], "history": [1], "final": []}'])
def test_c9_one_damaged_record_is_named_and_the_others_go_on(finished, spoil):
    config, folder = finished
    done, other = (folder / f"seed{s}_beta0" / "run.json" for s in (0, 1))
    whole = done.read_bytes()
    done.write_bytes(spoil)
    moved = other.read_bytes()
    (folder / "table.parquet").unlink(missing_ok=True)
    with pytest.raises(DataError) as error: run_images(config, folder)
    assert "1 of 2 runs" in str(error.value) and str(done) in str(error.value) and "delete" in str(error.value)
    assert other.read_bytes() == moved and (folder / "table.parquet").is_file()       # seed 1 is there
    done.write_bytes(whole)
    assert len(run_images(config, folder).frame()) > 0


def test_c9_tables(finished):
    config, folder = finished
    run_images(config, folder)
    read_all(folder / "table.parquet", lambda path: read_tables([folder]), lambda v: len(v[0]), n=8)
    with pytest.raises(DataError, match="config.json"):
        (folder / "config.json").write_bytes(b"[]")
        read_tables([folder])
    write_json_atomic(folder / "config.json", {})


def test_c9_checkpoint_of_a_run(finished):
    config, folder = finished
    (folder / "seed1_beta0" / "last.ckpt").write_text(json.dumps([1]))
    with pytest.raises(DataError, match="1 of 2 runs.*seed1_beta0/last.ckpt"): run_images(config, folder)
