"""Closed forms of implicit regularisation: where training ends depends on where it starts, and on how it steps."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import retain
from retain.likelihoods import Gaussian


@pytest.fixture
def few():
    """Six samples of a linear function of twenty inputs, and a start."""
    torch.manual_seed(0)
    inputs, truth, start = torch.randn(6, 20).double(), torch.randn(20).double(), torch.randn(20).double()
    return inputs, inputs @ truth, start


def trained(few, steps, **optimizer):
    inputs, targets, start = few
    model = nn.Linear(20, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(start)
    task = retain.Task((inputs, targets[:, None]), likelihood=Gaussian(1.0), id="few")
    retain.learn(model, [task], epochs=steps, batch_size=6, precision="float64", score_every=steps, **optimizer)
    return model.weight.detach()[0]


def test_gradient_descent_ends_at_the_nearest_interpolating_weights(few):
    r"""From theta_0, at a rate below 2 / lambda_max, it ends at theta_0 + X^+ (y - X theta_0)."""
    inputs, targets, start = few
    nearest = start + torch.linalg.pinv(inputs) @ (targets - inputs @ start)
    largest = float(torch.linalg.eigvalsh(inputs.T @ inputs / 6)[-1])
    found = trained(few, 600, optimizer="sgd", lr=1.5 / largest)
    assert torch.allclose(found, nearest, atol=1e-8) and torch.allclose(inputs @ found, targets, atol=1e-8)
    # no interpolating weights are nearer
    other = nearest + torch.linalg.svd(inputs)[2][6:].T @ torch.randn(14).double()
    assert torch.allclose(inputs @ other, targets, atol=1e-8) and (other - start).norm() > (nearest - start).norm()


def test_above_twice_the_inverse_of_the_largest_eigenvalue_it_diverges(few):
    inputs, targets, start = few
    largest = float(torch.linalg.eigvalsh(inputs.T @ inputs / 6)[-1])
    before = (inputs @ start - targets).square().sum()
    found = trained(few, 150, optimizer="sgd", lr=2.05 / largest)
    assert (inputs @ found - targets).square().sum() > 100 * before


def test_adam_ends_elsewhere(few):
    """It interpolates too, but its metric leads it out of the span of the inputs."""
    inputs, targets, start = few
    nearest = start + torch.linalg.pinv(inputs) @ (targets - inputs @ start)
    found = trained(few, 1200, optimizer="adam", lr=0.01)
    assert torch.allclose(inputs @ found, targets, atol=1e-5)
    outside = torch.linalg.svd(inputs)[2][6:]
    assert (outside @ (found - start)).norm() > 0.1 and (found - start).norm() > 1.01 * (nearest - start).norm()


def test_ridge_about_the_start_is_gradient_flow_stopped_at_an_exponential_time(few):
    r"""The mean of theta(t) over t ~ Exp(lambda) is argmin |X theta - y|^2 / 2n + lambda |theta - theta_0|^2 / 2, the L2-SP answer."""
    inputs, targets, start = few
    hessian = inputs.T @ inputs / 6
    values, vectors = torch.linalg.eigh(hessian)
    values = values.clamp(min=0)
    goal = start + torch.linalg.pinv(inputs) @ (targets - inputs @ start)
    for strength in (0.05, 1.0):
        times = torch.linspace(0, 40 / strength, 400_001).double()
        density = strength * torch.exp(-strength * times)
        left = torch.stack([torch.trapezoid(density * torch.exp(-value * times), times) for value in values])  # of each direction's distance to the goal
        stopped = goal + vectors @ (left * (vectors.T @ (start - goal)))
        ridge = torch.linalg.solve(hessian + strength * torch.eye(20).double(), inputs.T @ targets / 6 + strength * start)
        assert torch.allclose(stopped, ridge, atol=1e-5)


def test_l2sp_is_that_ridge(few):
    """And the library's L2-SP, in nats per sample, ends there: 1 / (tau^2 m) is lambda."""
    inputs, targets, start = few
    from retain.methods import L2SP

    model = nn.Linear(20, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(start)
    method = L2SP(1.0, tau=0.5)
    method.consolidate(model)
    task = retain.Task((inputs, targets[:, None]), likelihood=Gaussian(1.0), id="few")
    retain.learn(model, [task], method, epochs=600, batch_size=6, optimizer="sgd", lr=0.2, precision="float64", score_every=600, consolidate_last=False)
    strength = 1 / (0.5**2 * 6)
    ridge = torch.linalg.solve(inputs.T @ inputs / 6 + strength * torch.eye(20).double(), inputs.T @ targets / 6 + strength * start)
    assert torch.allclose(model.weight.detach()[0], ridge, atol=1e-8)
