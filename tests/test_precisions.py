"""One contract over all precisions, against the dense matrix."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from retain import methods
from retain.beliefs import Belief, Diagonal, Eigenbasis, Full, Identity, Kronecker, Layer, LowRankPlusDiagonal, Pairs, Precision
from retain.beliefs.blocks import Block
from retain.beliefs.precision import from_state
from retain.errors import InputError, RetainError
from retain.tasks import Task

SHAPES = {"a.weight": torch.Size([3, 2]), "a.bias": torch.Size([3]), "scale": torch.Size([4])}
SIZE = sum(shape.numel() for shape in SHAPES.values())


def spd(size, g, rank=None):
    root = torch.randn(size, rank or size, generator=g).double()
    return root @ root.T


def pairs(g, count=1):
    return [(spd(3, g), spd(3, g)) for _ in range(count)]


def rest(g):
    return Diagonal({"scale": torch.rand(4, generator=g).double()})


def build(kind, seed=0):
    g = torch.Generator().manual_seed(seed)
    if kind == "diagonal":
        return Diagonal({name: torch.rand(shape, generator=g).double() for name, shape in SHAPES.items()})
    if kind == "identity":
        return Identity(SHAPES).mapped(torch.Tensor.double)
    if kind == "low-rank":
        factors = {name: torch.randn(*shape, 2, generator=g).double() for name, shape in SHAPES.items()}
        return LowRankPlusDiagonal(factors, {name: torch.rand(shape, generator=g).double() for name, shape in SHAPES.items()})
    if kind == "full":
        return Full(spd(SIZE, g, 6), SHAPES)
    bias = None if kind == "kronecker without bias" else "a.bias"
    if kind == "kronecker without bias":
        block = Pairs([(spd(3, g), spd(2, g))])
        return Kronecker({"a.weight": Layer(SHAPES["a.weight"], None, block)}, Diagonal({**rest(g).values, "a.bias": torch.rand(3, generator=g).double()}))
    block = Pairs(pairs(g, 3 if kind == "kronecker of three" else 1))
    made = Kronecker({"a.weight": Layer(SHAPES["a.weight"], bias, block)}, rest(g))
    return made.in_one_basis() if kind == "eigenbasis" else made


KINDS = ["diagonal", "identity", "low-rank", "full", "kronecker", "kronecker without bias", "eigenbasis"]
ALL = [*KINDS, "kronecker of three"]


def apart(flat):
    parts = flat.split([shape.numel() for shape in SHAPES.values()])
    return {name: part.reshape(shape) for (name, shape), part in zip(SHAPES.items(), parts, strict=True)}


def flat(values):
    return torch.cat([values[name].expand(shape).flatten() for name, shape in SHAPES.items()])


def dense(P: Precision):
    return torch.stack([flat(P.product(apart(unit))) for unit in torch.eye(SIZE).double()])


@pytest.mark.parametrize("kind", ALL)
def test_products_traces_and_scales(kind):
    P = build(kind)
    M, delta = dense(P), torch.randn(SIZE).double()
    assert torch.allclose(M, M.T) and float(torch.linalg.eigvalsh(M).min()) > -1e-9
    assert P.quadratic(apart(delta)) == pytest.approx(float(delta @ M @ delta))
    assert torch.allclose(flat(P.diagonal()), M.diagonal())
    assert P.trace() == pytest.approx(float(M.diagonal().sum())) or kind == "identity"  # one number stands for a tensor
    assert torch.allclose(dense(P.scaled(2.5)), 2.5 * M)
    assert set(P.names) == set(SHAPES) and "a.bias" in P and "b" not in P


@pytest.mark.parametrize("kind", KINDS)
def test_the_posterior_is_that_of_the_dense_matrix(kind):
    P, n, prior = build(kind), 7.0, 0.3
    posterior = n * dense(P) + prior * torch.eye(SIZE).double()
    assert P.logdet(n, prior, SHAPES) == pytest.approx(float(posterior.logdet()))
    inverse = torch.linalg.inv(posterior)
    assert torch.allclose(flat(P.variance(n, prior, SHAPES)), inverse.diagonal())
    g = torch.Generator().manual_seed(1)
    draws = torch.stack([flat(P.sample(n, prior, SHAPES, g)) for _ in range(4000)])
    scale = inverse.diagonal().sqrt()
    off = (draws.T @ draws / len(draws) - inverse) / torch.outer(scale, scale)
    assert float(off.abs().max()) < 0.12 and float(draws.mean(0).div(scale).abs().max()) < 0.08


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("metric", ["number", "tensors", "one number a parameter"])
def test_the_proximal_step_is_the_solution(kind, metric):
    P, rate, delta = build(kind), 3.0, torch.randn(SIZE).double()
    if metric == "number":
        sizes = dict.fromkeys(SHAPES, 0.05)
    elif metric == "tensors":
        sizes = {name: 0.01 + torch.rand(shape).double() for name, shape in SHAPES.items()}
        sizes["scale"] = 0.0  # not trained
    else:
        sizes = {name: 0.05 * (1 + i) for i, name in enumerate(SHAPES)}
    size = flat({name: torch.as_tensor(sizes[name]).double() for name in SHAPES})
    expected = torch.linalg.solve(torch.eye(SIZE).double() + rate * size[:, None] * dense(P), delta)
    assert torch.allclose(flat(P.shrink(apart(delta), sizes, rate)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["diagonal", "full", "kronecker", "kronecker without bias"])
def test_sums_are_exact(kind):
    a, b = build(kind, 1), build(kind, 2)
    assert torch.allclose(dense(a.plus(b)), dense(a) + dense(b))


def test_sums_with_a_diagonal():
    d = build("diagonal", 5)
    assert torch.allclose(dense(build("full").plus(d)), dense(build("full")) + dense(d))
    assert torch.allclose(dense(d.plus(build("low-rank"))), dense(build("low-rank")) + dense(d))
    with pytest.raises(InputError, match="same structure"):
        build("low-rank").plus(build("full"))
    with pytest.raises(InputError, match="same structure"):
        build("kronecker").plus(d)


def test_a_low_rank_sum_keeps_the_largest_directions_and_the_diagonal():
    a, b = build("low-rank", 1), build("low-rank", 2)
    both, M = a.plus(b), dense(a) + dense(b)
    assert both.rank == 2
    assert torch.allclose(flat(both.diagonal()), M.diagonal())
    A = torch.cat([torch.cat([one.factors[name].reshape(-1, 2) for name in SHAPES]) for one in (a, b)], 1)
    top = torch.linalg.eigvalsh(A @ A.T)[-2:]
    kept = torch.cat([both.factors[name].reshape(-1, 2) for name in SHAPES])
    assert torch.allclose(torch.linalg.eigvalsh(kept.T @ kept), top)
    same = a.plus(a)  # nothing is lost where the directions are the same
    assert torch.allclose(dense(same), 2 * dense(a))


def test_one_basis_says_how_far_it_is_off():
    for kind, exact in (("kronecker", True), ("kronecker of three", False)):
        P = build(kind)
        Q = P.in_one_basis()
        assert Q.pairs == 0
        off = float((dense(Q) - dense(P))[:9, :9].norm() / dense(P)[:9, :9].norm())
        assert Q.error == pytest.approx(off, abs=1e-7)
        assert (off < 1e-10) is exact
        # the projection: of all matrices diagonal in that basis it is the nearest
        block = Q.layers["a.weight"].block
        nearby = Eigenbasis(block.left, block.right, block.values * 1.05)
        other = Kronecker({"a.weight": Q.layers["a.weight"]._replace(block=nearby)}, Q.rest)
        assert float((dense(other) - dense(P))[:9, :9].norm() / dense(P)[:9, :9].norm()) > off


def test_a_basis_takes_in_more_tasks_and_bounds_its_error():
    tasks = [build("kronecker", seed) for seed in range(6)]
    truth, online = sum(dense(P) for P in tasks), tasks[0].in_one_basis()
    for P in tasks[1:]:
        online = online.plus(P)
    off = float((dense(online) - truth)[:9, :9].norm() / truth[:9, :9].norm())
    assert 0.01 < off <= online.error < 3 * off
    summed = online.plus(tasks[0].in_one_basis())
    assert float((dense(summed) - truth - dense(tasks[0]))[:9, :9].norm() / (truth + dense(tasks[0]))[:9, :9].norm()) <= summed.error


@pytest.mark.parametrize("kind", ALL)
def test_new_rows_are_free(kind):
    P = build(kind)
    new = {**SHAPES, "a.weight": torch.Size([5, 2]), "a.bias": torch.Size([5])}
    delta = {name: torch.randn(shape).double() for name, shape in new.items()}
    grown = P.grown(SHAPES, new)
    old = {"a.weight": delta["a.weight"][:3], "a.bias": delta["a.bias"][:3], "scale": delta["scale"]}
    assert grown.quadratic(delta) == pytest.approx(P.quadratic(old))
    assert float(grown.product(delta)["a.weight"][3:].abs().max()) == 0


@pytest.mark.parametrize("kind", ALL)
def test_states_and_types(kind):
    P = build(kind)
    again = from_state(P.state_dict())
    assert torch.equal(dense(again), dense(P)) and type(again).kind == P.kind
    belief = Belief({name: torch.randn(shape).double() for name, shape in SHAPES.items()}, P, 5, 0.2)
    other = Belief.from_state_dict(belief.state_dict())
    delta = {name: value + 1 for name, value in belief.centre.items()}
    assert other.energy(delta) == belief.energy(delta) and repr(P)
    assert P.mapped(torch.Tensor.float).product({k: v.float() for k, v in delta.items()})["scale"].dtype == torch.float32
    with pytest.raises(RetainError, match="newer version"):
        from_state({"kind": "sparse"})


@given(st.lists(st.integers(0, 50), min_size=3, max_size=3, unique=True), st.sampled_from(["full", "kronecker", "low-rank of full rank"]))
@settings(max_examples=25, deadline=None)
def test_three_quadratic_tasks_in_sequence_are_the_joint_optimum(seeds, kind):
    """And averaging the centres is not."""

    def make(seed):
        if kind == "low-rank of full rank":
            g = torch.Generator().manual_seed(seed)
            return LowRankPlusDiagonal({"scale": torch.randn(4, 4, generator=g).double()}, {"scale": torch.full((4,), 0.01).double()})
        return build(kind, seed)

    names = make(0).names
    width = sum(SHAPES[name].numel() for name in names)

    def matrix(P):
        return torch.stack([torch.cat([P.product(split(unit))[name].flatten() for name in names]) for unit in torch.eye(width).double()])

    def split(v):
        return {name: part.reshape(SHAPES[name]) for name, part in zip(names, v.split([SHAPES[name].numel() for name in names]), strict=True)}

    def joined(values):
        return torch.cat([values[name].flatten() for name in names])

    Ps = [make(seed) for seed in seeds]
    eye = 1e-3 * torch.eye(width).double()  # the losses' own curvature, so that the optimum is unique
    centres = [torch.randn(width, generator=torch.Generator().manual_seed(seed + 100)).double() for seed in seeds]
    ns = [10.0, 20.0, 5.0]
    losses = [n * (matrix(P) + eye) for n, P in zip(ns, Ps, strict=True)]
    joint = torch.linalg.solve(sum(losses), sum(L @ c for L, c in zip(losses, centres, strict=True)))

    def learn(wrong):
        belief, prior = Belief(split(centres[0]), Ps[0], ns[0]), ns[0] * eye
        for P, L, c, n in zip(Ps[1:], losses[1:], centres[1:], ns[1:], strict=True):
            old = belief.n * matrix(belief.precision) + prior
            theta = torch.linalg.solve(L + old, L @ c + old @ joined(belief.centre))
            share = n / (belief.n + n)
            belief = belief.update(split(joined(belief.centre) * (1 - share) + theta * share if wrong else theta), P, n)
            prior = prior + n * eye
        return joined(belief.centre)

    assert torch.allclose(learn(False), joint, rtol=1e-9, atol=1e-10)
    assert float((learn(True) - joint).norm()) > 1e-3


def test_a_belief_knows_its_effective_parameters_and_draws_weights():
    P = Diagonal({"w": torch.tensor([0.0, 1.0, 100.0]).double()})
    belief = Belief({"w": torch.arange(3.0).double()}, P, n=1e6, prior=1.0)
    assert belief.effective_parameters() == pytest.approx(2, abs=1e-5)  # a dead pixel decides nothing
    assert belief.trace_of_inverse() == pytest.approx(1, abs=1e-4)
    assert belief.logdet() == pytest.approx(math.log(1e6 + 1) + math.log(1e8 + 1))
    drawn = belief.sample(torch.Generator().manual_seed(0))["w"]
    assert abs(float(drawn[2] - 2)) < 1e-3 < abs(float(drawn[0]))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Full(torch.eye(3), SHAPES), "number of weights"),
        (lambda: Full(torch.tensor([[1.0, 5.0], [0.0, 1.0]]), {"w": torch.Size([2])}), "symmetric"),
        (lambda: LowRankPlusDiagonal({"w": torch.ones(2, 1)}, {"w": -torch.ones(2)}), "at least 0"),
        (lambda: Kronecker({"w": Layer(torch.Size([1, 1]), "b", Pairs([(torch.eye(1), torch.eye(2))]))}, Diagonal({"b": torch.ones(1)})), "without a block"),
        (lambda: Belief({"w": torch.ones(1)}, {"w": torch.ones(1)}, 1), "a precision such as"),
        (lambda: Belief({}, build("full"), 1), "an entry for"),
    ],
)
def test_bad_input(make, words):
    with pytest.raises(InputError, match=words):
        make()


def test_a_belief_fits_a_grown_head_with_any_precision():
    model = nn.Module()
    model.a, model.scale = nn.Linear(2, 5), nn.Parameter(torch.zeros(4))
    for kind in ALL:
        belief = Belief({name: torch.zeros(shape) for name, shape in SHAPES.items()}, build(kind).mapped(torch.Tensor.float), 3)
        fitted = belief.fitted(model)
        assert fitted.centre["a.weight"].shape == (5, 2)
        assert math.isfinite(fitted.energy({name: p.detach() for name, p in model.named_parameters()}))


def test_a_proximal_step_over_many_products_takes_few_of_them(monkeypatch):
    """Tasks of one kind, with spectra over four decades that have much in common: the nearest single product's basis makes conjugate gradients short."""
    g = torch.Generator().manual_seed(0)
    bases = {size: torch.linalg.qr(torch.randn(size, size, generator=g))[0] for size in (12, 30)}

    def factor(size):
        moved = torch.linalg.qr(bases[size] + 0.1 * torch.randn(size, size, generator=g) / size**0.5)[0]
        return moved @ torch.diag(torch.logspace(-4, 0, size) * torch.rand(size, generator=g)) @ moved.T

    block, W = Pairs([(factor(12), factor(30)) for _ in range(20)]), torch.randn(12, 30, generator=g)
    whole = sum(torch.kron(G.double(), A.double()) for G, A in block.pairs)
    expected = torch.linalg.solve(torch.eye(360).double() + 100.0 * 0.5 * whole, W.double().flatten()).view(12, 30)
    calls, product = [], Pairs.product
    monkeypatch.setattr(Pairs, "product", lambda self, W: calls.append(1) or product(self, W))
    found = block.shrink(W, 0.5, 100.0)
    few, calls[:] = len(calls), []
    monkeypatch.setattr(Pairs, "_near_inverse", Block._near_inverse)
    plain = block.shrink(W, 0.5, 100.0)
    assert torch.allclose(found.double(), expected, atol=1e-5) and torch.allclose(plain, found, atol=1e-5)
    assert few * 2 <= len(calls)


def test_damping_raises_every_factor_by_a_share_of_its_mean_eigenvalue():
    P = build("kronecker of three")
    block = P.layers["a.weight"].block
    wanted = sum(torch.kron(G + 0.3 * G.trace() / 3 * torch.eye(3), A + 0.3 * A.trace() / 3 * torch.eye(3)) for G, A in block.pairs)
    W = torch.randn(3, 3, generator=torch.Generator().manual_seed(5)).double()
    damped = P.damped(0.3)
    assert torch.allclose(damped.layers["a.weight"].block.product(W).flatten(), wanted.double() @ W.flatten())
    assert torch.equal(damped.diagonal()["scale"], P.diagonal()["scale"])
    assert torch.equal(dense(P.damped(0.0)), dense(P))
    one = build("kronecker")
    assert torch.allclose(dense(one.damped(0.3)), dense(one.in_one_basis().damped(0.3)))


def test_damping_holds_what_a_task_says_nothing_of():
    task, far = Task((torch.tensor([[1.0, 0.0], [2.0, 0.0]]), torch.tensor([0, 1])), id="one input"), torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    for damping in (0.0, 0.1):
        model, method = nn.Linear(2, 2), methods.StructuredLaplace(damping=damping)
        method.consolidate(model, task)
        with torch.no_grad():
            model.weight += far
        assert (method.energy(model) > 1e-6) == (damping > 0)
    assert methods.StructuredLaplace(damping=0.1).settings()["damping"] == 0.1
    with pytest.raises(InputError, match="damping"):
        methods.StructuredLaplace(damping=-0.1)
