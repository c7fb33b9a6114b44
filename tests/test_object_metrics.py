"""Scores of segmentations over random label maps, and pickles that want to do harm."""
import io
import os
import pickle
import pickletools
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import adjusted_rand_score

from amcl_suite.core.files import DataError
from amcl_suite.objects.disentanglement import dci_scores
from amcl_suite.objects.matching import match_objects
from amcl_suite.objects.metrics import (adjusted_rand_index, boundary_f, contingency, mean_iou,
                                        segmentation_covering)
from amcl_suite.objects.published_outputs import read_rinfo

bounded = settings(max_examples=80, deadline=None, derandomize=True)
LABELS = (0, 1, 2, 3, 7, 255, 256, 10**6, 2**62)
shapes = st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(1, 6))


def label_maps(shape):
    """Two label maps of one shape; values may be few, many, missing or huge."""
    one = arrays(np.int64, shape, elements=st.sampled_from(LABELS))
    return st.tuples(one, one, st.sampled_from((np.int64, np.uint8, np.int32)))


pairs = shapes.flatmap(label_maps)


def as_type(maps):
    """Label maps in a number type that may wrap large ones, non-negative."""
    true, guess, dtype = maps
    return [torch.as_tensor(np.abs(m.astype(dtype).astype(np.int64)).astype(dtype))
            for m in (true, guess)]


@bounded
@given(pairs, st.booleans())
def test_rand_index_is_that_of_scikit_learn(maps, foreground):
    true, guess = as_type(maps)
    found = adjusted_rand_index(true, guess, foreground).numpy()
    for t, g, value in zip(true.numpy(), guess.numpy(), found):
        keep = t > 0 if foreground else np.ones_like(t, bool)
        if not keep.any(): assert np.isnan(value); continue
        assert value == pytest.approx(adjusted_rand_score(t[keep], g[keep]), abs=1e-9)


@bounded
@given(pairs, st.integers(0, 10**6))
def test_scores_know_no_names_and_no_neighbours(maps, seed):
    true, guess = as_type(maps)
    rng = np.random.default_rng(seed)
    names = dict(zip(np.unique(guess), rng.permutation(len(np.unique(guess)))))
    renamed = torch.as_tensor(np.vectorize(names.get, otypes=[np.int64])(guess.numpy()))
    order = torch.as_tensor(rng.permutation(len(true)))
    for score in (adjusted_rand_index, mean_iou, segmentation_covering, boundary_f):
        value = score(true, guess)
        torch.testing.assert_close(score(true, renamed), value, equal_nan=True)
        torch.testing.assert_close(score(true[order], guess[order]), value[order], equal_nan=True)
        assert (value[~value.isnan()] <= 1 + 1e-12).all()
    assert contingency(true, guess).sum() == true.numel()


@bounded
@given(pairs)
def test_pairs_are_one_to_one_and_overlap(maps):
    true, guess = as_type(maps)
    true = true.long() % 256
    found = match_objects(true, guess)
    for part in (found.entity, found.slot):
        assert len(torch.stack([found.image, part]).unique(dim=1).T) == len(found)
    assert ((found.iou > 0) & (found.iou <= 1)).all() and (found.entity > 0).all()
    total = torch.zeros(len(true), dtype=torch.float64).index_add(0, found.image, found.iou)
    n = torch.stack([(t[t > 0].unique()).numel() * torch.ones(()) for t in true])
    torch.testing.assert_close((total / n).float(), mean_iou(true, guess).float(), equal_nan=True)


@bounded
@given(arrays(np.float64, st.tuples(st.integers(2, 6), st.integers(2, 6)),
              elements=st.floats(0, 1e6)), st.integers(0, 10**6))
def test_dci_is_bounded_and_knows_no_order(table, seed):
    found, rng = dci_scores(table), np.random.default_rng(seed)
    assert all(0 <= score <= 1 for score in found)
    mixed = table[rng.permutation(len(table))][:, rng.permutation(table.shape[1])]
    assert dci_scores(mixed) == pytest.approx(found, abs=1e-9)


# pickles

class Call:
    """Pickled as a call of `function`."""
    def __init__(self, function, *arguments): self.parts = function, arguments
    def __reduce__(self): return self.parts


def layout(**changes):
    """A file in the published layout."""
    rng = np.random.default_rng(0)
    masks = rng.random((1, 4, 3, 5, 6, 1)).astype(np.float32)
    masks /= masks.sum(2, keepdims=True)
    truth = np.zeros((1, 2, 1, 5, 6), np.float32); truth[:, 0] = 255.
    return {"data": {"image": rng.random((1, 5, 6, 3)).astype(np.float32), "true_mask": truth},
            "outputs": {"pred_mask": masks,
                        "recons": rng.random((1, 4, 5, 6, 3)).astype(np.float32)} | changes}


def reading(content, folder):
    """What the reader says about these bytes."""
    path = Path(folder) / "rinfo_0.pkl"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught: read_rinfo(path)
    assert "rinfo_0.pkl" in str(caught.value)
    return str(caught.value)


TARGETS = [Call(os.system, "touch trapped"), Call(eval, "open('trapped', 'w')"),
           Call(exec, "open('trapped', 'w')"), Call(getattr, "text", "upper"),
           Call(open, "trapped", "w"), Call(np.load, "trapped"), Call(bytearray, 10**15),
           Call(np.lib.format.open_memmap, "trapped", "w+")]


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: getattr(t.parts[0], "__name__", "call"))
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_calls_are_not_made(target, protocol, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    reading(pickle.dumps(layout(extra=target), protocol), tmp_path)
    reading(pickle.dumps(target, protocol), tmp_path)
    assert os.listdir(tmp_path) == ["rinfo_0.pkl"]


def _array(state=b"", shape=b"K\x01\x85", kind=b"f4", steps=b""):
    """An array by hand: numpy's reconstruction and its state."""
    start = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R"
    kind = b"cnumpy\ndtype\nX" + len(kind).to_bytes(4, "little") + kind + b"\x89\x88\x87R"
    return start + b"(K\x01" + shape + kind + steps + b"\x89" + state + b"tb"


def _state(steps):
    """The state of a type: version, order, parts, names, fields, size, alignment, flags."""
    return b"(K\x03X\x01\x00\x00\x00<" + steps + b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"


BYTES = b"C\x04\x00\x00\x80?"                    # one float32
RAW = {
    "object array": _array(BYTES, kind=b"O8"),
    "pointers by state": _array(b"C\x08" + bytes(8), kind=b"u8",
                                steps=_state(b"X\x01\x00\x00\x00ONN")),
    "a type with parts": _array(BYTES, steps=_state(b"NX\x01\x00\x00\x00aN")),
    "too few bytes": _array(BYTES, shape=b"J\x00\x00\x00\x40\x85"),
    "negative length": _array(BYTES, shape=b"J\xff\xff\xff\xff\x85"),
    "no bytes": _array(b"N"),
    "a list of bytes": _array(b"]K\x01a"),
    "dotted name": b"cnumpy\ncore.multiarray._reconstruct\n",
    "stack global": b"\x8c\x05posix\x8c\x06system\x93\x8c\x04true\x85R",
    "name from memory": b"\x8c\x02osq\x00h\x00\x8c\x06system\x93",
    "new object": b"cbuiltins\nlist\n)\x81", "old instance": b"(S'true'\nios\nsystem\n",
    "old object": b"(cos\nsystem\nS'true'\no", "persistent": b"Psome\n",
    "binary persistent": b"K\x01Q",
    "extension": b"\x82\x01", "build a dictionary": b"}X\x04\x00\x00\x00datas0b",
    "build on a name": b"cnumpy\nndarray\n}b", "reduce a number": b"K\x01)R",
    "ndarray called": b"cnumpy\nndarray\n)R",
    "encode by others": b"c_codecs\nencode\nK\x01K\x02\x86R",
    "long bytes": b"\x96" + (2**40).to_bytes(8, "little") + b"x",
    "long text": b"\x8d" + (2**40).to_bytes(8, "little") + b"x",
    "long frame": b"\x95" + (2**40).to_bytes(8, "little") + b"x",
    "buffer from outside": b"\x97", "nothing": b"",
    "deep": b"]" * 10**5 + b"a" * (10**5 - 1),
    "out of memory slots": b"h\x07", "self": b"]q\x00h\x00a"}


@pytest.mark.parametrize("name", RAW)
def test_steps_by_hand(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tracemalloc.start()
    try:
        inside = b"}(X\x04\x00\x00\x00data" + RAW[name] + b"X\x07\x00\x00\x00outputs}u"
        for steps in (RAW[name], inside): reading(b"\x80\x04" + steps + b".", tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 2**28
    finally: tracemalloc.stop()
    assert os.listdir(tmp_path) == ["rinfo_0.pkl"]


def test_torch_tensors_are_named(tmp_path):
    said = reading(pickle.dumps(layout(pred_mask=torch.ones(1))), tmp_path)
    assert "torch" in said and "nothing of it was run" in said


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.data())
def test_changed_bytes_give_a_recording_or_a_clear_error(tmp_path_factory, data):
    """A flipped byte may change a number; it never raises anything but a `DataError`."""
    content = bytearray(pickle.dumps(layout(), data.draw(st.sampled_from((2, 3, 4, 5)))))
    heads = [*range(700), *range(len(content) - 300, len(content))]
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.sampled_from(heads))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("flip") / "rinfo_0.pkl"
    path.write_bytes(content)
    try: read_rinfo(path)
    except DataError as error: assert "rinfo_0.pkl" in str(error)


def test_the_hand_made_array_is_one(tmp_path):
    """The attacks above differ from a good array in one thing each."""
    good = b"\x80\x04" + _array(BYTES) + b"."
    assert pickle.load(io.BytesIO(good)).tolist() == [1.]
    assert [o.name for o, _, _ in pickletools.genops(good)][-1] == "STOP"
    path = tmp_path / "rinfo_0.pkl"
    path.write_bytes(pickle.dumps(layout()))
    assert len(read_rinfo(path)) == 1
