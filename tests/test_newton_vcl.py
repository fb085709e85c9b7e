"""Newton VCL against exact posteriors, and its optimiser in our loop and in a person's own."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import retain
from retain import methods, models, tasks
from retain.curvature import IVON
from retain.errors import InputError, RetainError
from retain.likelihoods import Gaussian
from retain.methods import NewtonVCL
from retain.seeds import generator, seeded
from retain.tasks import Task

WIDTH, STD = 20, 0.5
FIRST = (torch.zeros(WIDTH), torch.full((WIDTH,), STD**-2))


def regression(seed, n):
    """Columns that are orthogonal and of different lengths, so that X'X is diagonal; always the same line, with noise of variance 1."""
    g = torch.Generator().manual_seed(seed)
    x = torch.linalg.qr(torch.randn(n, WIDTH, generator=g, dtype=torch.float64))[0] * torch.linspace(0.5, 2, WIDTH) * n**0.5
    y = x @ torch.linspace(-1, 1, WIDTH, dtype=torch.float64)[:, None] + torch.randn(n, 1, generator=g, dtype=torch.float64)
    return Task((x, y), likelihood=Gaussian(), id=f"line-{seed}")


def exact(prior, task, *, beta=1.0, strength=1.0):
    """Mean and precision after a task."""
    mean, precision = (value.double().flatten() for value in prior)
    x, y = task.data.inputs, task.data.targets[:, 0]
    data = x.square().sum(0) / beta
    return (strength * precision * mean + x.T @ y / beta) / (data + strength * precision), data + precision


def line():
    return nn.Linear(WIDTH, 1, bias=False).double()


def by_hand(method, model, task, steps=1500, lr=0.1):
    """A loop of one's own on full batches: find the minimum, then average over ever more steps, with a learning rate that falls to 0."""
    optimizer = method.optimizer(model, lr)
    guard = retain.attach(method, model, optimizer, task)
    with seeded(0, "noise"):
        for step in range(steps):
            optimizer.param_groups[0].update(lr=lr * (1 - step / steps), beta2=0.99 if step < 300 else 1 - 1 / (step - 200))
            optimizer.zero_grad()
            with optimizer.sampled():
                (0.5 * (task.data.targets - model(task.data.inputs)).square().mean()).backward()
            optimizer.step()
    guard.consolidate()


@pytest.mark.parametrize(("beta", "strength"), [(1.0, 1.0), (0.1, 1.0), (1.0, 8.0)])
def test_what_one_line_taught_is_the_prior_of_the_next(beta, strength):
    method, model, prior = NewtonVCL(prior_std=STD, hess_init=1.0, beta=beta, strength=strength), line(), FIRST
    for seed, n, factor in ((1, 200, 1.0), (2, 90, strength)):
        task = regression(seed, n)
        by_hand(method, model, task)
        (mean, precision), found = exact(prior, task, beta=beta, strength=factor), method.posterior["weight"]
        assert torch.equal(found[0], model.weight)
        assert ((found[0] - mean).abs() * precision.sqrt()).max() < 0.25
        ratio = found[1][0] / precision
        assert (ratio - 1).abs().max() < 0.2 and abs(float(ratio.mean()) - 1) < 0.05
        assert prior is FIRST or (prior[1] / precision).max() < 0.9  # the data have a say
        prior = found


def test_strength_holds(blobs, net):
    stream, kept = tasks.sequence(blobs(1), blobs(2)), []
    options = {"epochs": 25, "batch_size": 16, "lr": 0.1, "schedule": "cosine", "score_every": 25}
    for strength in (0.0, 1.0, 100.0):
        result = retain.learn(net(), stream, NewtonVCL(beta=0.1, strength=strength, answers=0), **options)
        kept.append(result.accuracy[2, 0])
        assert result.accuracy[1, 0] > 0.85
    assert kept[2] > kept[0] + 0.1 and kept[2] > 0.8 and kept[0] <= kept[1] <= kept[2]


def test_learn_is_the_bare_optimiser_with_the_posterior_carried_on(blobs, net):
    stream = tasks.sequence(blobs(1), blobs(2))
    settings = {"hess_init": 0.05, "beta1": 0.8, "beta2": 0.95}
    result = retain.learn(net(), stream, NewtonVCL(prior_std=2.0, **settings), epochs=3, batch_size=16, lr=0.05, optimizer="sgd", consolidate_last=False)
    assert isinstance(result.method.own, IVON)  # and not SGD
    model, posterior = net(), None
    for t, task in enumerate(stream.tasks):
        optimizer = IVON(model.parameters(), 0.05, ess=60, weight_decay=0.25 / 60, prior=posterior, **settings)
        for epoch in range(3):
            with seeded(0, "noise", t, epoch):
                for batch in task.batches(16, generator(0, "order", t, epoch)):
                    optimizer.zero_grad()
                    with optimizer.sampled():
                        F.cross_entropy(model(batch.inputs), batch.targets).backward()
                    optimizer.step()
        posterior = list(result.method.posterior.values())
        if t == 0:  # what is remembered is the optimiser's posterior
            found = [(m.clone(), s.clone()) for m, s in optimizer.posterior()]
            assert all(torch.equal(m, mean) and torch.equal(s, precision) for (m, s), (mean, precision) in zip(found, posterior, strict=True))
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), result.model.parameters(), strict=True))


def test_separate_heads_keep_the_old_digits_and_learn_the_new():
    stream = tasks.split(tasks.digits(), 2, scenario="task")
    method, ends = NewtonVCL(beta=0.1, strength=10), []

    class Watched(NewtonVCL):
        def consolidate(self, model, task):
            super().consolidate(model, task)
            ends.append(dict(self.posterior))

    options = {"epochs": 20, "lr": 0.1, "schedule": "cosine", "score_every": 20}
    kept = retain.learn(models.MLP(64, 32, 10, seed=0), stream, Watched(**method.settings()), **options)
    lost = retain.learn(models.MLP(64, 32, 10, seed=0), stream, epochs=20, lr=0.005, score_every=20)
    assert kept.accuracy[2, 0] > lost.accuracy[2, 0] + 0.03
    assert kept.accuracy[2, 1] > 0.88 and kept.accuracy[1, 0] > 0.9
    first = method.prior_std**-2
    names = [name for name in ends[0] if name.endswith("weight")]
    (mean, before), (_, after) = (end[names[-1]] for end in ends)
    assert (before[5:] == torch.tensor(first)).all() and not mean[5:].any()  # units that did not compete
    assert torch.equal(after[:5], before[:5]) and (after[5:] > first).any(1).all()
    blank = stream[0].data.inputs.flatten(1).abs().amax(0) == 0
    assert blank.any() and (ends[0][names[0]][1][:, blank] == torch.tensor(first)).all()  # pixels without ink


class Spy(nn.Module):
    """Keeps the weights with which it answers."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[3.0, 1e-9], [0.0, 1e9]]))
        self.seen = []

    def forward(self, x):
        self.seen.append((self.training, self.weight.detach().clone()))
        return F.linear(x, self.weight)


def test_answers_are_draws_about_the_means():
    model, task = Spy(), Task((torch.ones(4, 2), torch.tensor([0, 1, 0, 1])))
    method, batch = NewtonVCL(answers=4000), next(iter(task.batches(4)))
    before = model.weight.detach().clone()
    assert torch.equal(method.predict(model, batch), F.linear(batch.inputs, before))  # nothing learned yet
    method.load_state_dict({"posterior": {"weight": (before, torch.full((2, 2), 16.0))}, "seen": {"weight": torch.ones(2, 2, dtype=torch.bool)}}, model)
    model.seen.clear()
    method.predict(model, batch)
    draws = torch.stack([weight for _, weight in model.seen])[:, :, 0]
    assert len(draws) == 4000 and not any(training for training, _ in model.seen) and model.training
    assert (draws.mean(0) - before[:, 0]).abs().max() < 0.02 and (draws.std(0) - 0.25).abs().max() < 0.01
    assert torch.equal(model.weight, before)

    def fails(x):
        raise ZeroDivisionError

    model.forward = fails
    with pytest.raises(ZeroDivisionError):
        method.predict(model, batch)
    assert torch.equal(model.weight, before)


def test_answers_pool_and_the_means_answer_alone(blobs, net):
    task = blobs(1)
    result = retain.learn(net(), [task], NewtonVCL(beta=0.1, answers=30), epochs=20, batch_size=16, lr=0.1)
    sure = NewtonVCL(beta=0.1, answers=0)
    batch = next(iter(task.batches(60)))
    assert torch.equal(sure.predict(result.model, batch), result.model.eval()(batch.inputs))
    with torch.no_grad(), seeded(0, "draws"):
        pooled = result.method.predict(result.model, batch)
        entropy = [-(torch.softmax(f, 1) * torch.log_softmax(f, 1)).sum(1).mean() for f in (pooled, result.model(batch.inputs))]
    assert entropy[0] > entropy[1]  # what the weights do not know


def test_another_optimiser_is_refused(blobs, net):
    model, method = net(), NewtonVCL()
    own = method.optimizer(model, 0.1)
    for other in (torch.optim.SGD(model.parameters(), lr=0.1), IVON(model.parameters(), ess=60), NewtonVCL().optimizer(model, 0.1)):
        with pytest.raises(RetainError, match=r"optimizer: expected .* newton-vcl .*method\.optimizer\(model, lr\)"):
            retain.attach(method, model, other, blobs(1))
    with pytest.raises(RetainError, match="trains none"):
        retain.attach(method, net(), own, blobs(1))
    guard = retain.attach(method, model, own, blobs(1))
    guard.consolidate()
    with pytest.raises(RetainError, match="optimizer: expected"):  # that of the task before
        retain.attach(method, model, own, blobs(2))
    assert methods.EWC().optimizer(model, 0.1) is None


def test_a_posterior_is_learned_and_not_measured(blobs, net):
    model, method = net(), NewtonVCL()
    with pytest.raises(RetainError, match="own optimiser"):
        method.consolidate(model, blobs(1))
    method.optimizer(model, 0.1)
    with pytest.raises(RetainError, match="own optimiser"):  # no task was begun
        method.consolidate(model, blobs(1))


def test_a_task_that_is_left_without_consolidating_leaves_no_trace(blobs, net):
    model, method = net(), NewtonVCL()
    retain.attach(method, model, method.optimizer(model, 0.1), blobs(1)).consolidate()
    before = {name: precision.clone() for name, (_, precision) in method.posterior.items()}
    for _ in range(2):
        guard = retain.attach(method, model, optimizer := method.optimizer(model, 0.1), blobs(2))
        with optimizer.sampled():
            F.cross_entropy(model(torch.randn(4, 4)), torch.zeros(4).long()).backward()
        optimizer.step()
        guard.detach()
    assert all(torch.equal(before[name], precision) for name, (_, precision) in method.posterior.items())


def test_a_posterior_that_broke_is_no_prior(blobs, net):
    model, method = net(), NewtonVCL()
    guard = retain.attach(method, model, optimizer := method.optimizer(model, 0.1), blobs(1))
    with optimizer.sampled():
        (model(torch.randn(4, 4)).sum() * float("nan")).backward()
    optimizer.step()
    guard.consolidate()
    with pytest.raises(InputError, match="prior of parameter 0: expected a finite"):
        retain.attach(method, model, method.optimizer(model, 0.1), blobs(2))


def test_a_rebuilt_model_is_noticed(blobs, net):
    model, method = net(), NewtonVCL()
    retain.attach(method, model, method.optimizer(model, 0.1), blobs(1)).consolidate()
    wider = nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 3))
    method.optimizer(wider, 0.1)
    with pytest.raises(InputError, match=r"prior of '0.weight': expected a posterior of shape \[9, 4\], found shape \[8, 4\]"):
        method.begin(wider, blobs(2))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("prior_std", 0),
        ("hess_init", -1.0),
        ("beta1", 1.0),
        ("beta2", -0.1),
        ("beta", 0),
        ("strength", -1),
        ("strength", float("nan")),
        ("answers", -1),
        ("answers", 1.5),
    ],
)
def test_bad_settings(name, value):
    with pytest.raises(InputError, match=f"^{name}: expected"):
        NewtonVCL(**{name: value})


def test_nothing_to_train(blobs, net):
    with pytest.raises(RetainError, match="found none"):
        retain.learn(net().requires_grad_(False), [blobs(1)], NewtonVCL())
    with pytest.raises(InputError, match=r"^lr"):
        retain.learn(net(), [blobs(1)], NewtonVCL(), lr=0)
