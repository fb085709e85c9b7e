"""Barriers, landscapes and trajectories."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import retain
from retain import Task, likelihoods, models
from retain.diagnosis import Trajectory, barrier, directions, landscape, random_walk
from retain.diagnosis.walk import reestimate
from retain.errors import InputError
from retain.figures import svg


class Log:
    """A recorder that counts."""

    def __init__(self):
        self.events = []

    def event(self, kind, **fields):
        self.events.append((kind, fields))


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def unchanged(model, before):
    return all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def trained(task, seed, **settings):
    model = models.MLP(4, 16, 16, 3, seed=seed)
    retain.learn(model, [task], epochs=40, lr=1e-2, seed=seed, **settings)
    return model


def permuted(model, order):
    """The same function with the first hidden layer's units in another order."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.layers.fc1.weight.copy_(model.layers.fc1.weight[order])
        other.layers.fc1.bias.copy_(model.layers.fc1.bias[order])
        other.layers.fc2.weight.copy_(model.layers.fc2.weight[:, order])
    return other


def test_a_convex_loss_has_no_barrier_and_the_line_is_the_loss(blobs):
    task = blobs(0)
    first, second = nn.Linear(4, 3), nn.Linear(4, 3)
    before = state(first), state(second)
    log = Log()
    found = barrier(first, second, task, points=5, recorder=log)
    assert found.height == {"train": 0.0, "test": 0.0} and not found.stored and len(log.events) == 5
    for i, t in enumerate(found.t):
        W, b = ((1 - t) * x + t * y for x, y in zip(first.parameters(), second.parameters(), strict=True))
        expected = F.cross_entropy(F.linear(task.test.inputs, W, b), task.test.targets)
        assert found.loss["test"][i] == pytest.approx(expected.item(), rel=1e-5)
    assert unchanged(first, before[0]) and unchanged(second, before[1])
    assert "barrier" in found.table().text() and len(found.figures()) == 2


def test_permuted_units_make_a_barrier_and_matching_removes_it(blobs):
    task = blobs(0)
    model = trained(task, 0)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    other = permuted(model, order)
    assert torch.allclose(model(task.data.inputs), other(task.data.inputs), atol=1e-4)
    found = barrier(model, other, task)
    assert found.height["train"] > 0.05 and found.loss["train"][0] == pytest.approx(found.loss["train"][-1], abs=1e-5)
    assert barrier(model, permuted(other, order.argsort()), task).height["train"] < 1e-6


def norm_net():
    return nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))


def test_statistics_are_those_of_all_samples():
    net, inputs = norm_net().double(), 3 + 2 * torch.randn(30, 4).double()
    task = Task([(x, torch.zeros(len(x)).long()) for x in inputs.split([7, 7, 14, 2])], n=30)
    reestimate(net, task)
    seen = net[0](inputs)
    assert torch.allclose(net[1].running_mean, seen.mean(0)) and torch.allclose(net[1].running_var, seen.var(0))
    assert net.training and net[1].momentum == 0.1


def test_statistics_estimated_anew_are_most_of_some_barriers(blobs):
    task = blobs(1)
    first = norm_net()
    retain.learn(first, [task], epochs=20, lr=1e-2)
    second = copy.deepcopy(first)
    with torch.no_grad():  # the same function in training: its statistics alone are wrong
        second[0].weight *= 30
        second[0].bias *= 30
    found = barrier(first, second, task)
    assert found.height["train"] < 0.01 and max(found.stored["train"]) > 10 * max(found.loss["train"])
    assert found.stored["train"][0] == pytest.approx(retain.evaluate(first, task, part="data").nll, rel=1e-5)
    plain = barrier(first, second, task, reestimate=False)
    assert plain.loss == found.stored and plain.stored == {}


@pytest.mark.parametrize(
    ("second", "settings", "words"),
    [
        (models.MLP(4, 16, 8, 3), {}, r"second: expected the same architecture, with 'layers\.fc2\.weight' of shape \[16, 16\], found \[8, 16\]"),
        (models.MLP(4, 16, 16, 5), {}, r"second: expected 'layers\.fc3\.weight' of shape \[3, 16\], found \[5, 16\]\. There is no line"),
        (models.MLP(4, 16, 16, 3), {"points": 2}, "points: expected a whole number of at least 3, found 2"),
        (models.MLP(4, 16, 16, 3), {"samples": 0}, "samples: expected a whole number of at least 1, found 0"),
    ],
)
def test_bad_lines(blobs, second, settings, words):
    with pytest.raises(InputError, match=words):
        barrier(models.MLP(4, 16, 16, 3), second, blobs(0), **settings)


def rescaled(model, factor):
    """The same function, hidden units of a ReLU network rescaled one by one."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.layers.fc1.weight.mul_(factor[:, None])
        other.layers.fc1.bias.mul_(factor)
        other.layers.fc2.weight.div_(factor)
    return other


def test_directions_have_the_filters_norms():
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 4)).double()
    model[3].weight.data[1] = 0
    first, second = directions(model, 2, seed=0)
    assert set(first) == {"0.weight", "3.weight"} and not torch.equal(first["0.weight"], second["0.weight"])
    for name, d in first.items():
        own = model.get_parameter(name).detach().flatten(1).norm(dim=1)
        assert torch.allclose(d.flatten(1).norm(dim=1), own, atol=1e-12)
    assert torch.equal(first["0.weight"], directions(model, 1, seed=0)[0]["0.weight"])
    assert not torch.equal(first["0.weight"], directions(model, 1, seed=1)[0]["0.weight"])


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_the_surface_is_the_loss_at_moved_weights(blobs, dims):
    task, model, log = blobs(0), models.MLP(4, 8, 3, seed=0), Log()
    before = state(model)
    found = landscape(model, task, dims=dims, points=3, radius=0.5, seed=4, recorder=log)
    drawn = directions(model, dims, seed=4)
    assert found.offsets == [-0.5, 0.0, 0.5] and found.loss.shape == (3,) * dims and len(log.events) == 3 ** (dims - 1)
    assert found.centre == pytest.approx(retain.evaluate(model, task, part="data").nll, rel=1e-6)
    at = (2, 0, 1)[:dims]
    moved = copy.deepcopy(model)
    with torch.no_grad():
        for i, direction in zip(at, drawn, strict=True):
            for name, d in direction.items():
                moved.get_parameter(name).add_(d, alpha=found.offsets[i])
    there = retain.evaluate(moved, task, part="data")
    assert found.loss[at] == pytest.approx(there.nll, rel=1e-5) and found.score[at] == pytest.approx(there.score)
    assert found.along(dims - 1)[1] == found.centre
    assert unchanged(model, before) and "does not imply generalisation" in found.table().note
    assert "<svg" in svg(found.figures()[0]) and found.plot("surface") is not None
    if dims == 2:
        assert found.figures()[0].panels[""][0][2] == found.loss[2, 0]  # a row is one y


def test_rescaling_relu_layers_leaves_the_surface(blobs):
    task, model = blobs(0), models.MLP(4, 8, 8, 3, seed=0).double()
    layers, units = rescaled(model, torch.full((8,), 50.0).double()), rescaled(model, torch.logspace(-2, 2, 8).double())
    surfaces = [landscape(net, task, points=3) for net in (model, layers, units)]
    assert surfaces[0].loss.max() > 1.1 * surfaces[0].centre and surfaces[0].loss == pytest.approx(surfaces[1].loss, rel=1e-9)
    # units of their own scale are filters of one layer but columns of the next: this normalisation does not see them
    assert surfaces[2].centre == pytest.approx(surfaces[0].centre, rel=1e-9) and surfaces[2].loss != pytest.approx(surfaces[0].loss, rel=1e-2)


def test_a_surface_with_statistics_estimated_anew(blobs):
    task = blobs(1)
    model = norm_net()
    retain.learn(model, [task], epochs=5, lr=1e-2)
    before = state(model)
    stored, anew = (landscape(model, task, dims=1, points=3, reestimate=flag).loss for flag in (False, True))
    assert stored[1] == pytest.approx(retain.evaluate(model, task, part="data").nll, rel=1e-5)
    assert abs(stored[0] - anew[0]) > 1e-3 and unchanged(model, before)


def test_losses_that_are_no_numbers_are_drawn_white(blobs):
    class Root(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)
            nn.init.constant_(self.layer.weight, 0.5)

        def forward(self, x):
            return self.layer(x) + (self.layer.weight.sum() - 5.9).sqrt()

    found = landscape(Root(), blobs(0), points=3, radius=2)
    assert math.isinf(found.loss.max()) and math.isfinite(found.centre) and "<svg" in svg(found.figures()[0]) and found.plot("surface")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"dims": 4}, "dims: expected 1, 2 or 3 directions, found 4"),
        ({"points": 1}, "points: expected a whole number of at least 3, found 1"),
        ({"points": 4}, "points: expected an odd number.*found 4. Take 5"),
        ({"radius": 0}, "radius: expected a finite number above 0"),
        ({"samples": 0}, "samples: expected a whole number of at least 1, found 0"),
    ],
)
def test_bad_grids(blobs, settings, words):
    with pytest.raises(InputError, match=words):
        landscape(models.MLP(4, 8, 3), blobs(0), **settings)


def test_models_without_directions():
    with pytest.raises(InputError, match="weights of at least two axes"):
        directions(nn.BatchNorm1d(3))


def test_components_are_those_of_the_whole_matrix():
    torch.manual_seed(3)
    model = models.MLP(4, 8, 3, seed=0).double()
    trajectory = Trajectory(model)
    for _ in range(5):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn_like(p))
        trajectory.add(model)
    D = torch.stack(trajectory.points)
    D = D - D.mean(0)
    _, S, V = torch.linalg.svd(D, full_matrices=False)
    coordinates, lines, explained, off = trajectory.components()
    assert torch.allclose(lines @ lines.T, torch.eye(2).double(), atol=1e-12)
    assert torch.allclose((lines @ V[:2].T).abs(), torch.eye(2).double(), atol=1e-8)
    assert explained == pytest.approx((S[:5].square() / S.square().sum()).tolist())
    assert torch.allclose(coordinates, D @ lines.T, atol=1e-10) and bool((coordinates[0] <= 0).all())
    assert off == pytest.approx((D - D @ lines.T @ lines).norm(dim=1).tolist(), abs=1e-7)


def test_components_in_parts(monkeypatch):
    import sys

    model = models.MLP(4, 8, 3, seed=0)
    trajectory = Trajectory(model)
    for seed in (1, 2, 3):
        trajectory.add(models.MLP(4, 8, 3, seed=seed))
    whole = trajectory.components()
    monkeypatch.setattr(sys.modules["retain.diagnosis.trajectory"], "_PART", 7)
    assert torch.allclose(trajectory.components()[1], whole[1], atol=1e-6)


@pytest.mark.parametrize("points", [3, 10, 200])
def test_a_random_walk_has_a_high_first_component(points):
    shares = random_walk(points)
    steps = torch.randn(points, 20_000, dtype=torch.float64).cumsum(0)
    D = steps - steps.mean(0)
    values = torch.linalg.eigvalsh(D @ D.T).flip(0)
    assert math.fsum(shares) == pytest.approx(1) and len(shares) == points - 1
    assert shares[:2] == pytest.approx((values[:2] / values.sum()).tolist(), rel=0.05)
    if points == 200:
        assert shares[0] == pytest.approx(6 / math.pi**2, abs=1e-3)


def test_gradient_descent_in_a_bowl():
    """Squared loss of a linear model: weights decay along eigenvectors, so two of them hold the whole path."""
    inputs = torch.diag(torch.tensor([2.0, 1.0, 0.5])).double()
    task = Task((inputs, torch.zeros(3, 1).double()), likelihood=likelihoods.Gaussian(sigma=1.0))
    model = nn.Linear(3, 1, bias=False).double()
    model.weight.data = torch.tensor([[1.0, 1.0, 0.0]]).double()
    trajectory = Trajectory(model)
    for _ in range(8):
        with torch.no_grad():
            model.weight -= 0.3 * model.weight @ inputs.square() / 3
        trajectory.add(model)
    found = trajectory.plane(task, points=5)
    assert sum(found.explained[:2]) == pytest.approx(1) and max(found.off) < 1e-7
    assert found.true == pytest.approx(found.projected, rel=1e-9)
    constant = 0.5 * math.log(2 * math.pi)
    expected = [float((point * torch.tensor([2.0, 1.0, 0.5])).square().sum() / 6) + constant for point in trajectory.points]
    assert found.true == pytest.approx(expected, rel=1e-9)
    for i in (0, 4):  # corners of the grid: the bowl again
        mean = torch.stack(trajectory.points).mean(0)
        lines = trajectory.components()[1]
        at = mean + found.x[i] * lines[0] + found.y[0] * lines[1]
        assert found.loss[0][i] == pytest.approx(float((at * torch.tensor([2.0, 1.0, 0.5])).square().sum() / 6) + constant, rel=1e-9)
    assert "random walk" in found.note and all("<svg" in svg(figure) for figure in found.figures())


def test_a_trajectory_records_the_loop_and_hands_it_on(blobs):
    task, model = blobs(0), norm_net()
    before = state(model)
    inner = Log()
    inner.saved = 0
    inner.save = lambda state, final=False: setattr(inner, "saved", inner.saved + len(state()["rows"]))
    inner.load = lambda: None
    trajectory = Trajectory(model, recorder=inner)
    retain.learn(model, [task], epochs=5, lr=1e-2, recorder=trajectory)
    assert len(trajectory) == 6 and len([kind for kind, _ in inner.events if kind == "epoch"]) == 5 and inner.saved > 0
    flat = torch.cat([before[name].flatten() for name, _ in model.named_parameters()])
    assert torch.equal(trajectory.points[0], flat)
    assert torch.equal(trajectory.points[-1], torch.cat([p.detach().flatten() for p in model.parameters()]))
    after, log = state(model), Log()
    found = trajectory.plane(task, points=3, recorder=log)
    assert unchanged(model, after) and len(log.events) == 3
    assert found.true[-1] == pytest.approx(retain.evaluate(model, task, part="data").nll, rel=0.2)  # other statistics
    stored = trajectory.plane(task, points=3, reestimate=False)
    assert stored.true[-1] == pytest.approx(retain.evaluate(model, task, part="data").nll, rel=1e-5)
    assert found.true[0] > found.true[-1] and len(found.table(rows=3).rows) == 3


def test_bad_trajectories(blobs):
    model = models.MLP(4, 8, 3, seed=0)
    trajectory = Trajectory(model)
    with pytest.raises(InputError, match="at least 3 points, found 1"):
        trajectory.plane(blobs(0))
    trajectory.add(model)
    trajectory.add(model)
    with pytest.raises(InputError, match="found the same point again and again"):
        trajectory.plane(blobs(0))
    for _ in range(2):
        with torch.no_grad():
            model.layers.fc1.weight += 1
        trajectory.add(model)
    with pytest.raises(InputError, match="found points on a line"):
        trajectory.components()
    with pytest.raises(InputError, match=r"model: expected the same architecture, with 'layers\.fc1\.weight'"):
        trajectory.add(models.MLP(4, 9, 3))
    with pytest.raises(InputError, match="points: expected a whole number of at least 3"):
        trajectory.plane(blobs(0), points=2)
    with pytest.raises(InputError, match=r"states of a model with 'layers\.fc1\.weight'"):
        trajectory.save(lambda: {"model": {}})
