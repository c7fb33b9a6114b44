"""Assignment rules and losses over number types, strides, empty axes, masks and temperatures."""
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from amcl_suite.ensembles.family import family_loss, family_weights, pooled_loss
from amcl_suite.ensembles.objectives import augmented_loss, decompose, output_gradient
from amcl_suite.mcl.assignment import (annealed, permutation, relaxed, sampled, top_n, transport,
                                       uniform, winner_takes_all)
from amcl_suite.mcl.conditional import SyntheticConfig, train_synthetic
from amcl_suite.mcl.losses import (absolute_distance, assigned_loss, euclidean_distance,
                                   free_energy, score_loss, score_targets, squared_distance)
from amcl_suite.mcl.matching import (permutation_marginals, sinkhorn_permutation,
                                     transport_cost)
from amcl_suite.mcl.schedules import exponential
from amcl_suite.mcl.stacked import fast_rule, stacked_objective

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
        with pytest.raises(ValueError, match="at least as many"): permutation(costs, real)
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


@bounded
@given(shapes, dtypes, st.sampled_from(("usual", "ties", "negative", "zero", "offset")), layouts,
       seeds, temperatures)
def test_s7_losses_of_costs(shape, dtype, kind, layout, seed, temperature):
    costs = make_costs(shape, dtype, kind, layout, seed)
    real, costs = masked(costs, seed)
    clean, eps = torch.where(real[..., None], costs, 0.).double(), torch.finfo(dtype).eps
    weights = annealed(costs, temperature, real)
    loss = assigned_loss(torch.where(real[..., None], costs, 0.), weights, real)
    wanted = (weights.double() * clean).sum() / max(1, int(real.sum()))
    assert loss.dtype == dtype and abs(float(loss) - float(wanted)) <= 8 * eps * (
        1 + float(clean.abs().max() if clean.numel() else 0.))
    hits = torch.nn.functional.one_hot(clean.argmin(-1), shape[-1]) * real[..., None]
    assert torch.equal(score_targets(costs, real).double(), hits.sum(-2).clamp(max=1).double())
    energies = pooled_loss(clean.to(dtype), temperature)
    assert energies.dtype == dtype and energies.isfinite().all()
    assert (energies.double() >= clean.amin(-1) - 8 * eps * (1 + clean.amin(-1).abs())).all()
    assert (family_weights(clean.to(dtype), .5, temperature).double().sum(-1) - 1).abs().max(
        ).item() <= 4 * eps if clean.numel() else True
    if 0 < temperature <= 1e4:
        found = free_energy(clean.to(dtype), temperature).double()
        best = clean.amin(-1, keepdim=True)
        exact = best[..., 0] - temperature * (-(clean - best) / max(temperature, 1e-290)
                                              ).logsumexp(-1)
        assert ((found - exact).abs() <= 8 * eps * (1 + exact.abs())).all()


@bounded
@given(dtypes, seeds, st.sampled_from((1e-25, 1e-3, 1., 1e2, 1e25)))
def test_s7_distances(dtype, seed, size):
    g = torch.Generator().manual_seed(seed)
    f, y = (size * torch.randn(2, n, 3, generator=g, dtype=torch.float64) for n in (4, 2))
    f, y = f.to(dtype), y.to(dtype)
    if not (f.isfinite().all() and y.isfinite().all()): return
    gap = (f.double()[:, None] - y.double()[:, :, None])
    for distance, exact in ((squared_distance, gap.square().sum(-1)),
                            (euclidean_distance, gap.norm(dim=-1)),
                            (absolute_distance, gap.abs().sum(-1))):
        found, wanted = distance(f, y), exact.to(dtype).double()
        assert found.dtype == dtype
        close = (found.double() - wanted).abs() <= 8 * torch.finfo(dtype).eps * wanted + (
            torch.finfo(dtype).smallest_normal)
        assert (close | (found.double() == wanted)).all()


@bounded
@given(dtypes, seeds)
def test_s7_scores_stack_and_ensembles(dtype, seed):
    g, eps = torch.Generator().manual_seed(seed), torch.finfo(dtype).eps
    def draw(*shape): return torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)
    logits, hits = 20 * draw(3, 5), (draw(3, 5) > 0).to(dtype)
    wanted = float(score_loss(logits.double(), hits.double()))
    assert abs(float(score_loss(logits, hits)) - wanted) <= 4 * eps * (1 + wanted)
    outputs, y = draw(2, 9, 6), draw(2, 2, 6)
    found = stacked_objective(outputs, y, 3, winner_takes_all)
    exact = stacked_objective(outputs.double(), y.double(), 3, winner_takes_all)
    assert found.dtype == dtype and ((found - exact).abs() <= 8 * eps * (1 + exact)).all()
    z, labels = draw(6, 3, 4), torch.arange(6) % 4
    for name in ("probability", "score"):
        found, exact = decompose(z, labels, name), decompose(z.double(), labels, name)
        assert all(abs(float(a - b)) <= 4 * eps * 5 for a, b in zip(found[:3], exact[:3]))
        assert abs(float(augmented_loss(found, .5) - augmented_loss(exact, .5))) <= 20 * eps
        gradient = output_gradient(z, labels, .5, name)
        assert gradient.dtype == dtype
        assert (gradient - output_gradient(z.double(), labels, .5, name)).abs().max() <= 4 * eps


def test_s7_listed_inputs():
    assert annealed(torch.tensor([[.3, .1, .9]]), .9 ** 1000).tolist() == [[0., 1., 0.]]
    for dtype in DTYPES:
        assert winner_takes_all(torch.zeros(1, 3000, dtype=dtype)).double().sum() == 1
    costs = torch.rand(1, 2, 3, dtype=torch.float64,
                       generator=torch.Generator().manual_seed(0)) * 1e4
    assert (transport(costs, .5).sum(1) - 2 / 3).abs().max() < 1e-9
    with pytest.raises(ValueError, match="costs"):
        transport(torch.tensor([[[math.nan, 1.], [2., 3.]]]))


def test_s7_nan_is_never_a_preference():
    costs = torch.tensor([[1., math.nan, 2.], [1., 2., 3.]])
    for rule in (winner_takes_all, uniform, lambda c: relaxed(c, .1), lambda c: top_n(c, 2),
                 lambda c: annealed(c, 1.), lambda c: annealed(c, math.inf)):
        found = rule(costs)
        assert found[0].isnan().all() and found[1].isfinite().all()
        with pytest.raises(ValueError, match="costs"): assigned_loss(costs, found)
    for rule in (permutation, transport, lambda c: sampled(c, 1.)):
        with pytest.raises(ValueError, match="costs"): rule(costs)


def test_s7_means_of_the_largest_costs():
    costs = torch.full((5, 2), 3e38)
    assert torch.isclose(assigned_loss(costs, uniform(costs)), torch.tensor(3e38))
    losses = torch.full((200, 1), 1000., dtype=torch.float16)     # their sum is above 65,504
    assert float(assigned_loss(losses, winner_takes_all(losses))) == 1000.


@pytest.mark.parametrize("temperature", (0., 1e-300, 1e-3, 1., 1e300, math.inf))
@pytest.mark.parametrize("shape", ((2, 0, 3), (0, 2, 3), (2, 2, 3)))
def test_s7_separation_rules(shape, temperature):
    costs = 50 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    for rule in (permutation_marginals, sinkhorn_permutation):
        weights = rule(costs, temperature)
        assert weights.shape == costs.shape and weights.isfinite().all()
        assert torch.allclose(weights.sum(-1), torch.ones(shape[:2]), atol=1e-4)
    assert transport_cost(costs)[0].isfinite().all()


@pytest.mark.slow
def test_s7_long_trainings_cool_through_the_end_of_float32():
    config = SyntheticConfig.preset("fast", methods="amcl", n_seeds=1, n_hyps=3, hidden=(4,),
                                    n_steps=1, batch_size=8, n_probe=5, n_test=50,
                                    training=dict(n_epochs=1100, evaluate_every=1100))
    assert train_synthetic(config).results.distortion.notna().all()
    targets = torch.tensor([[-.5, -.5], [0., .5], [.5, -.5]])
    hypotheses = (.01 * torch.eye(3, 2) - 2.).requires_grad_()
    temperature = exponential(initial=1., decay=.9)
    optimiser = torch.optim.Adam([hypotheses], lr=.05)
    for epoch in range(1100):                                     # README's loop
        costs = squared_distance(hypotheses, targets)
        loss = assigned_loss(costs, annealed(costs, temperature(epoch)))
        optimiser.zero_grad(); loss.backward(); optimiser.step()
    assert loss.isfinite()
    assert family_loss(costs, 1., temperature(1099)).isfinite()
