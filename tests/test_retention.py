"""The retention law against simulation, and in the loop."""

import pytest
import torch
from torch import nn

import retain
from retain import methods, tasks
from retain.beliefs import Belief, Diagonal, Full, RetentionLaw
from retain.errors import InputError, RetainError

P, OLD, NEW, DELTA = 20, 200, 50, 0.05


def simulated(seed, weight, exact=False):
    """Squared error of the compromise for the new task's weights: p means of unit normal samples."""
    g = torch.Generator().manual_seed(seed)
    anchor = torch.zeros(P) if exact else torch.randn(P, generator=g) / OLD**0.5
    new = DELTA + torch.randn(P, generator=g) / NEW**0.5
    return float((weight * new + (1 - weight) * anchor - DELTA).square().sum())


def weight_of(strength):
    """The new fit's weight in the compromise to which a strength leads."""
    return NEW / (NEW + strength * OLD)


def known(distance):
    """A belief, and a fit whose measured squared distance is its own drift plus the noise of both."""
    old = Belief({"w": torch.zeros(P).double()}, Diagonal({"w": torch.ones(P).double()}), n=OLD, prior=1e-9)
    return old, {"w": torch.full((P,), (distance / P) ** 0.5).double()}


@pytest.mark.parametrize(("anchor", "expected", "noise"), [("estimated", 0.2727, P / OLD + P / NEW), ("exact", 0.1111, P / NEW)])
def test_the_law_finds_the_best_weight(anchor, expected, noise):
    old, new = known(P * DELTA**2 + noise)
    found = RetentionLaw(anchor=anchor)(old, new, NEW)["model"]
    assert weight_of(found.strength) == pytest.approx(expected, abs=1e-4)
    assert found.effective == pytest.approx(P) and found.drift == pytest.approx(P * DELTA**2)
    risks = {w: sum(simulated(seed, w, anchor == "exact") for seed in range(3000)) / 3000 for w in (0.0, expected - 0.1, expected, expected + 0.1, 1.0)}
    assert min(risks, key=risks.get) == expected
    if anchor == "estimated":
        assert risks[expected] == pytest.approx(0.109, abs=0.004)
        assert risks[1.0] == pytest.approx(0.400, abs=0.01) and risks[0.0] == pytest.approx(0.150, abs=0.004)


def test_a_share_for_the_old_task():
    old, new = known(1.0)
    strengths = [RetentionLaw(share=share)(old, new, NEW)["model"].strength for share in (0, 0.4, OLD / (OLD + NEW), 1)]
    assert strengths[2] == pytest.approx(1) and strengths == sorted(strengths) and strengths[0] < 1 < strengths[3]
    near, there = known(0.0)
    assert RetentionLaw(share=0.5)(near, there, NEW)["model"].strength == pytest.approx(1)  # no drift: the Bayesian answer


def test_the_published_form():
    old, new = known(1.0)
    assert RetentionLaw(form="published")(old, new, NEW)["model"].strength * OLD == pytest.approx(P / OLD / 2 * OLD)
    near, there = known(1e-6)
    assert RetentionLaw(form="published")(near, there, NEW)["model"].strength * OLD == pytest.approx(OLD + NEW)


def test_layers_and_precisions_of_any_kind():
    g = torch.Generator().manual_seed(0)
    shapes = {"a.weight": torch.Size([2, 2]), "a.bias": torch.Size([2]), "b.weight": torch.Size([3])}
    values = {name: torch.rand(shape, generator=g).double() + 0.5 for name, shape in shapes.items()}
    centre = {name: torch.zeros(shape).double() for name, shape in shapes.items()}
    moved = {name: torch.full(shape, 0.01 if name == "b.weight" else 1.0).double() for name, shape in shapes.items()}
    diagonal = Belief(centre, Diagonal(values), 100)
    full = Belief(centre, Full(torch.diag(torch.cat([v.flatten() for v in values.values()])), shapes), 100)
    by_layer = RetentionLaw(by="layer")(diagonal, moved, 50)
    assert set(by_layer) == {"a", "b"} and by_layer["b"].strength == pytest.approx(1) and by_layer["a"].strength < 0.2
    for law in (RetentionLaw(), RetentionLaw(by="layer", share=0.3), RetentionLaw(form="published")):
        for layer, one in law(full, moved, 50).items():
            assert one == pytest.approx(law(diagonal, moved, 50)[layer])


def test_in_the_loop(blobs, net):
    stream = tasks.sequence(blobs(1), blobs(2))
    options = {"epochs": 3, "batch_size": 16, "lr": 0.02}
    measured = methods.EWC("optimal")
    result = retain.learn(net(), stream, measured, **options)
    assert measured.retained is None  # the next task will be asked anew

    class Noted(methods.EWC):
        def begin(self, model, task):
            super().begin(model, task)
            self.noted = dict(self.retained or {})

    layered = Noted(RetentionLaw(by="layer"))
    retain.learn(net(), stream, layered, **options)
    noted = Noted("optimal")
    retain.learn(net(), stream, noted, **options)
    assert set(layered.noted) == {"0", "2"} and 0 < noted.noted["model"] <= 1
    fixed = retain.learn(net(), stream, methods.EWC(noted.noted["model"]), **options)
    assert fixed.rows == result.rows  # the law's strength, and nothing else has changed
    by_hand = retain.learn(net(), stream, methods.EWC({f"{layer}.*": s for layer, s in layered.noted.items()}), **options)
    other = retain.learn(net(), stream, methods.EWC(RetentionLaw(by="layer")), **options)
    assert by_hand.rows == other.rows


def test_in_a_loop_of_ones_own(blobs, net):
    model, method = net(), methods.EWC("optimal")
    method.consolidate(model, blobs(1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(RetainError, match=r"method\.scout"):
        retain.attach(method, model, optimizer, blobs(2))
    free = retain.models.copy(model)
    retain.learn(free, [blobs(2)], epochs=2)
    method.scout(free, blobs(2))
    retain.attach(method, model, optimizer, blobs(2)).detach()
    assert 0 < method.strength_of("0.weight") <= 1


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: RetentionLaw(by="weight"), "by"),
        (lambda: RetentionLaw(share=2), "between 0 and 1"),
        (lambda: RetentionLaw(form="published", share=0.5), "new task alone"),
        (lambda: methods.EWC("best"), "optimal"),
        (lambda: methods.EWC({"a.*": -1}), "a\\.\\*"),
        (lambda: RetentionLaw()(Belief({"w": torch.zeros(1)}, Diagonal({"w": torch.ones(1)}), 0), {"w": torch.ones(1)}, 5), "belief's n"),
    ],
)
def test_bad_input(make, words):
    with pytest.raises(InputError, match=words):
        make()


def test_strengths_by_pattern_for_a_full_matrix(net):
    """Where strengths differ by layer, the matrix stands between their square roots, and strength 0 is free."""
    model = nn.Linear(2, 2).double()
    shapes = {name: p.shape for name, p in model.named_parameters()}
    root = torch.randn(6, 6).double()
    belief = Belief({name: torch.zeros_like(p) for name, p in model.named_parameters()}, Full(root @ root.T, shapes), 10)
    for strength in ({"weight": 4.0, "bias": 1.0}, {"weight": 1.0}):
        method = methods.Quadratic(strength)
        method.belief = belief
        method.begin(model, tasks.Task((torch.zeros(5, 2), torch.zeros(5).long()), id="t"))
        for p in model.parameters():
            p.grad = None
        method.before_step(model, torch.optim.SGD(model.parameters(), lr=1e-6))
        scale = torch.cat([torch.full((p.numel(),), strength.get(name, 0.0)).double().sqrt() for name, p in model.named_parameters()])
        theta = torch.cat([p.detach().flatten() for p in model.parameters()])
        expected = 10 / 5 * scale * (root @ root.T @ (scale * theta))
        assert torch.allclose(torch.cat([p.grad.flatten() for p in model.parameters()]), expected)
        before = theta.clone()
        method.pull = "proximal"
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        method.after_step(model, optimizer)
        now = torch.cat([p.detach().flatten() for p in model.parameters()])
        P = scale[:, None] * (root @ root.T) * scale
        solved = torch.linalg.solve(torch.eye(6).double() + 0.1 * 2 * P, before)
        assert torch.allclose(now, solved)
