"""Likelihoods against torch's distributions and autograd."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import distributions as D

from retain.errors import InputError
from retain.likelihoods import Bernoulli, Categorical, Gaussian, Likelihood, Tokens

CASES = {
    "categorical": (Categorical(), lambda: (torch.randn(5, 4).double(), torch.tensor([0, 3, 1, 2, 2]))),
    "bernoulli": (Bernoulli(), lambda: (torch.randn(5, 3).double(), torch.tensor([[0.0, 1, 1]] * 5).double())),
    "gaussian": (Gaussian(sigma=0.7), lambda: (torch.randn(5, 3).double(), torch.randn(5, 3).double())),
}


def test_nll_is_that_of_the_distribution():
    f, y = CASES["categorical"][1]()
    assert torch.allclose(Categorical().nll(f, y), -D.Categorical(logits=f).log_prob(y))
    f, y = CASES["bernoulli"][1]()
    assert torch.allclose(Bernoulli().nll(f, y), -D.Bernoulli(logits=f).log_prob(y).sum(1))
    f, y = CASES["gaussian"][1]()
    assert torch.allclose(Gaussian(0.7).nll(f, y), -D.Normal(f, 0.7).log_prob(y).sum(1))


@pytest.mark.parametrize("name", CASES)
def test_hessian_root_squares_to_the_hessian_of_the_nll(name):
    likelihood, make = CASES[name]
    f, y = make()
    root = likelihood.hessian_root(f)
    for b in range(len(f)):
        hessian = torch.autograd.functional.hessian(lambda row, b=b: likelihood.nll(row[None], y[b : b + 1]).sum(), f[b])
        assert torch.allclose(root[:, b].T @ root[:, b], hessian, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_samples_come_from_the_predictive_distribution(name):
    likelihood, make = CASES[name]
    f = make()[0][:1].expand(20_000, -1)
    drawn = likelihood.sample(f, torch.Generator().manual_seed(0))
    # the mean gradient of the nll at the model's own samples is zero, its second moment is the Fisher
    free = f.clone().requires_grad_()
    (g,) = torch.autograd.grad(likelihood.nll(free, drawn).sum(), free)
    assert g.mean(0).abs().max() < 0.03
    root = likelihood.hessian_root(f[:1])[:, 0]
    assert torch.allclose(g.T @ g / len(g), root.T @ root, atol=0.06)
    again = likelihood.sample(f, torch.Generator().manual_seed(0))
    assert torch.equal(drawn, again)


@given(st.lists(st.floats(-30, 30), min_size=2, max_size=6))
@settings(max_examples=50, deadline=None)
def test_categorical_root_is_finite_however_confident(logits):
    root = Categorical().hessian_root(torch.tensor([logits]))
    assert torch.isfinite(root).all()
    assert float(root.sum(2).abs().max()) < 1e-5  # a constant added to all logits changes nothing


def test_tokens_count_tokens_and_leave_padding_out():
    f, y = torch.randn(2, 3, 4), torch.tensor([[1, 2, -100], [0, -100, -100]])
    likelihood = Tokens()
    expected = -torch.stack([f[0, 0].log_softmax(0)[1] + f[0, 1].log_softmax(0)[2], f[1, 0].log_softmax(0)[0]])
    assert torch.allclose(likelihood.nll(f, y), expected)
    assert likelihood.units(y).tolist() == [2, 1]
    assert torch.allclose(likelihood.mean_nll(f, y), expected.sum() / 3)
    drawn = likelihood.relabel(likelihood.sample(f), y)
    assert (drawn[y == -100] == -100).all() and (drawn[y != -100] >= 0).all()
    with pytest.raises(InputError, match="sampled"):
        likelihood.hessian_root(f)


@pytest.mark.parametrize("name", CASES)
def test_weights_weigh(name):
    likelihood, make = CASES[name]
    f, y = make()
    weight = torch.tensor([1.0, 0, 0, 3, 0]).double()
    nll = likelihood.nll(f, y)
    assert torch.allclose(likelihood.mean_nll(f, y, weight), (nll[0] + 3 * nll[3]) / 4)
    assert torch.allclose(likelihood.mean_nll(f, y), nll.mean())


def test_scores():
    f = torch.tensor([[2.0, 1, 0], [0, 1, 0], [1, 0, 0]])
    y = torch.tensor([0, 1, 2])
    assert Categorical().score(Categorical().tally(f, y)) == pytest.approx(2 / 3)
    g, t = Gaussian(), torch.tensor([[1.0], [2.0], [3.0]])
    assert g.score(g.tally(t, t)) == 1
    assert g.score(g.tally(torch.full((3, 1), 2.0), t)) == pytest.approx(0)
    halves = g.tally(t[:1] + 1, t[:1]) + g.tally(t[1:] + 1, t[1:])
    assert g.score(halves) == pytest.approx(1 - 3 / 2)
    assert Bernoulli().score(Bernoulli().tally(torch.tensor([[1.0, -1]]), torch.tensor([[1.0, 1]]))) == 0.5


@pytest.mark.parametrize(
    ("likelihood", "outputs", "targets", "words"),
    [
        (Categorical(), torch.zeros(2, 3), torch.tensor([0, 3]), "labels from 0 to 2"),
        (Categorical(), torch.zeros(2, 3), torch.tensor([-1, 0]), "labels from 0 to 2"),
        (Categorical(), torch.zeros(2, 3), torch.zeros(2), "Gaussian"),
        (Categorical(), torch.zeros(2, 3, 4), torch.zeros(2).long(), "Tokens"),
        (Gaussian(), torch.zeros(2, 1), torch.zeros(2), "shape"),
        (Gaussian(), torch.zeros(2, 1), torch.zeros(2, 1).long(), "float"),
        (Bernoulli(), torch.zeros(2, 1), torch.full((2, 1), 2.0), "0 to 1"),
        (Tokens(), torch.zeros(2, 3, 4), torch.full((2, 3), 4), "tokens from 0 to 3"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(likelihood: Likelihood, outputs, targets, words):
    with pytest.raises(InputError, match=words):
        likelihood.check(outputs, targets)


def test_equality_and_repr():
    assert Gaussian(1.0) == Gaussian(1.0) != Gaussian(2.0)
    assert len({Categorical(), Categorical(), Tokens()}) == 2
    assert repr(Gaussian(sigma=2.0)) == "Gaussian(sigma=2.0)"
    with pytest.raises(InputError, match="sigma"):
        Gaussian(sigma=0)
