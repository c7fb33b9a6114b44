"""Assignment rules and losses over number types, strides, empty axes, masks and temperatures."""
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from amcl_suite.mcl.assignment import (annealed, permutation, relaxed, sampled, top_n, transport,
                                       uniform, winner_takes_all)

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
bounded = settings(max_examples=60, deadline=None, derandomize=True)
dtypes, seeds = st.sampled_from(DTYPES), st.integers(0, 10**6)
# relative to the type: as small and as large as it goes, whole numbers with ties, and usual ones
kinds = st.sampled_from(("usual", "ties", "huge", "tiny", "negative", "zero", "offset"))
layouts = st.sampled_from(("plain", "transposed", "expanded", "sliced", "reversed"))
temperatures = st.sampled_from((0., 5e-324, 1e-300, 1e-45, 1e-40, 1e-20, 1e-3, .5, 3., 1e4, 1e30,
                                3e38, 1e39, 1e200, 1.7e308, math.inf))


def make_costs(shape, dtype, kind, layout, seed):
    """Costs of a kind, in a memory layout."""
    g = torch.Generator().manual_seed(seed)
    x = torch.rand(shape, generator=g, dtype=torch.float64)
    info = torch.finfo(dtype)
    x = {"usual": x, "ties": (3 * x).round(), "huge": (2 * x - 1) * info.max, "zero": 0 * x,
         "tiny": x * 8 * info.smallest_normal * info.eps, "negative": -50 * x,
         "offset": 1000 + x}[kind].to(dtype)
    if layout == "transposed": return x.mT.contiguous().mT
    if layout == "expanded": return x[:1].expand(shape) if shape[0] else x
    if layout == "sliced": return torch.stack([x, x + 1], -1).flatten(-2)[..., ::2]
    if layout == "reversed": return x.flip(1).as_strided(x.shape, x.stride())
    return x


shapes = st.tuples(st.integers(0, 3), st.integers(0, 4), st.integers(1, 5))


def oracle_softmax(costs, temperature):
    """Boltzmann weights in float64; power-of-two scaling keeps it in range."""
    x = costs.double()
    if temperature == math.inf: return torch.full_like(x, 1 / x.shape[-1])
    gaps = x / 4 - x.amin(-1, keepdim=True) / 4
    up = 2.**60 if temperature < 1e-200 else 1.
    w = (-(gaps * up) / (temperature / 4 * up)).exp()
    return w / w.sum(-1, keepdim=True)


def masked(costs, seed, poison=True):
    """A mask, and the costs with NaN where it is False."""
    real = torch.rand(costs.shape[:-1], generator=torch.Generator().manual_seed(seed)) < .7
    return real, torch.where(real[..., None], costs, math.nan) if poison else costs


def check_contract(weights, costs, before, real):
    """Type, shape, no gradient, input unchanged, rows of real targets sum to one, others are 0."""
    assert weights.shape == costs.shape and weights.dtype == costs.dtype
    assert not weights.requires_grad and torch.equal(costs.nan_to_num(7.), before.nan_to_num(7.))
    assert weights.isfinite().all() and (weights >= 0).all()
    eps = torch.finfo(costs.dtype).eps
    total = weights.double().sum(-1)
    assert ((total - real.double()).abs() <= 4 * eps).all()


@bounded
@given(shapes, dtypes, kinds, layouts, seeds, temperatures)
def test_s7_one_target_rules(shape, dtype, kind, layout, seed, temperature):
    costs = make_costs(shape, dtype, kind, layout, seed)
    real, costs = masked(costs, seed)
    before, n_hyps = costs.clone(), shape[-1]
    clean = torch.where(real[..., None], costs, 0.).double()
    eps = torch.finfo(dtype).eps
    winner = torch.nn.functional.one_hot(clean.argmin(-1), n_hyps).double() * real[..., None]
    found = winner_takes_all(costs, real)
    check_contract(found, costs, before, real)
    assert torch.equal(found.double(), winner)                   # argmin takes the first on a tie
    n = 1 + seed % n_hyps
    nearest = clean.sort(dim=-1, stable=True).indices[..., :n]
    for rule, wanted in (
            (lambda c, m: annealed(c, temperature, m),
             oracle_softmax(clean, temperature) if temperature else winner),
            (lambda c, m: relaxed(c, .3, m), winner if n_hyps == 1 else
             winner * (.7 - .3 / (n_hyps - 1)) + .3 / (n_hyps - 1)),
            (lambda c, m: top_n(c, n, m), torch.zeros_like(clean).scatter(-1, nearest, 1 / n)),
            (uniform, torch.full_like(clean, 1 / n_hyps))):
        weights = rule(costs, real)
        check_contract(weights, costs, before, real)
        wanted = wanted * real[..., None]
        assert ((weights.double() - wanted).abs() <= 4 * max(eps, 1e-15)).all()
    drawn = sampled(costs, temperature, torch.Generator().manual_seed(seed), real)
    check_contract(drawn, costs, before, real)
    assert ((drawn == 0) | (drawn == 1)).all()
    assert (oracle_softmax(clean, temperature)[drawn == 1] > 0).all() if temperature else (
        torch.equal(drawn.double(), winner))


@bounded
@given(shapes, dtypes, kinds, layouts, seeds)
def test_s7_permutation_and_exact_transport(shape, dtype, kind, layout, seed):
    costs = make_costs(shape, dtype, kind, layout, seed)
    real, costs = masked(costs, seed)
    before, n_hyps = costs.clone(), shape[-1]
    shares = transport(costs, target_mask=real)
    check_contract(shares, costs, before, real)
    eps = torch.finfo(dtype).eps
    wanted = (real.double().sum(-1, keepdim=True) / n_hyps).expand(*shape[:-2], n_hyps)
    assert ((shares.double().sum(-2) - wanted).abs() <= 8 * eps).all()
    if (real.sum(-1) > n_hyps).any():
        with pytest.raises(ValueError, match="at least as many hypotheses"): permutation(costs, real)
        return
    match = permutation(costs, real)
    check_contract(match, costs, before, real)
    assert (match.double().sum(-2) <= 1).all()
    for matrix, plan, rows in zip(costs, match, real):           # cheapest: by enumeration
        matrix = matrix[rows].double()
        size = max(float(matrix.abs().max()) if matrix.numel() else 1., 1e-323)
        matrix = matrix / size
        best = min(math.fsum(float(matrix[j, i]) for j, i in enumerate(way))
                   for way in itertools.permutations(range(n_hyps), len(matrix)))
        assert float((plan[rows].double() * matrix).sum()) <= best + 1e-9


@bounded
@given(shapes, dtypes, kinds, layouts, seeds, st.sampled_from((1e-320, 1e-9, 1e-4, .01, .1, 1.,
                                                               1e6, math.inf)))
def test_s7_entropic_transport(shape, dtype, kind, layout, seed, share):
    costs = make_costs(shape, dtype, kind, layout, seed)
    real, costs = masked(costs, seed)
    spread = float(costs.nan_to_num(0.).double().abs().max()) if costs.numel() else 1.
    before, weight = costs.clone(), min(share * spread, 1e308) if share < math.inf else share
    shares = transport(costs, weight, real)
    check_contract(shares, costs, before, real)
    eps = torch.finfo(dtype).eps
    wanted = (real.double().sum(-1, keepdim=True) / shape[-1]).expand(*shape[:-2], shape[-1])
    assert ((shares.double().sum(-2) - wanted).abs() <= 8 * eps + 1e-8).all()
    if share == math.inf:
        assert ((shares.double() - real[..., None].double() / shape[-1]).abs() <= eps).all()
