"""Curvature products, solves and spectra against dense matrices in float64."""

import gc
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from retain.curvature.matrixfree import spectrum
from retain.curvature.matrixfree.density import density
from retain.curvature.matrixfree.products import fisher_operator, ggn, hessian
from retain.curvature.matrixfree.solve import conjugate_gradient
from retain.curvature.matrixfree.spectrum import eigenvalues, lanczos, trace
from retain.errors import InputError, RetainError
from retain.figures.draw import draw
from retain.likelihoods import Bernoulli, Categorical, Gaussian, Likelihood, Tokens
from retain.seeds import generator
from retain.tasks import Task, apply
from retain.tasks.batch import Batch


def mlp(inputs=4, outputs=3):
    return nn.Sequential(nn.Linear(inputs, 5), nn.Tanh(), nn.Linear(5, outputs)).double()


class Tied(nn.Module):
    """A weight shared by two layers, a layer never used, a bare parameter, dropout and batch norm."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.unused, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(2, 2), nn.Linear(4, 3)
        self.b.weight = self.a.weight
        self.norm, self.drop, self.scale = nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Parameter(torch.tensor([0.5, 1.5, 1.0]))

    def forward(self, x):
        return self.scale * self.head(self.drop(self.norm(self.b(self.a(x).tanh()).tanh())))


class Attentive(nn.Module):
    """Fused attention and a recurrent layer, whose fast forms can be differentiated only once."""

    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.LSTM(4, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x):
        h = self.cell(x)[0]
        return self.head(nn.functional.scaled_dot_product_attention(h, h, h)[:, -1])


def y_classes(n=9):
    return torch.arange(n) % 3


def y_tokens():
    y = torch.randint(3, (4, 5))
    y[0, 2:], y[3] = -100, -100  # a sequence of padding alone
    return y


CASES = {
    "categorical": (Categorical(), lambda: (mlp(), torch.randn(9, 4).double(), y_classes())),
    "gaussian": (Gaussian(sigma=0.7), lambda: (mlp(), torch.randn(9, 4).double(), torch.randn(9, 3).double())),
    "bernoulli": (Bernoulli(), lambda: (mlp(), torch.randn(9, 4).double(), torch.rand(9, 3).double())),
    "tokens": (Tokens(), lambda: (mlp(), torch.randn(4, 5, 4).double(), y_tokens())),
    "tied": (Categorical(), lambda: (Tied().double(), torch.randn(9, 4).double(), y_classes())),
    "attentive": (Categorical(), lambda: (Attentive().double(), torch.randn(9, 5, 4).double(), y_classes())),
}


class Dense:
    """The matrices written out, from per-sample Jacobians and Hessians by autograd."""

    def __init__(self, model, x, y, likelihood, active=None):
        model.eval()
        self.model, self.x, self.y, self.likelihood = model, x, y, likelihood
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.task = Task((x, y), likelihood=likelihood, active=active)
        self.flat = torch.cat([p.detach().reshape(-1) for p in self.parameters.values()])
        self.n = float(likelihood.units(y).sum())

    def outputs(self, flat, rows=slice(None)):
        parts = flat.split([p.numel() for p in self.parameters.values()])
        values = {name: part.view(p.shape) for (name, p), part in zip(self.parameters.items(), parts, strict=True)}
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            return apply(lambda x: torch.func.functional_call(self.model, values, (x,)), Batch(self.x[rows], self.y[rows], self.task))

    def samples(self):
        for i in range(len(self.x)):
            rows = slice(i, i + 1)
            J = torch.autograd.functional.jacobian(lambda flat, rows=rows: self.outputs(flat, rows), self.flat).flatten(0, -2)
            yield rows, J, self.outputs(self.flat, rows)

    def ggn(self):
        total = 0
        for rows, J, f in self.samples():
            H = torch.autograd.functional.hessian(lambda f, rows=rows: self.likelihood.nll(f, self.y[rows]).sum(), f)
            total = total + J.T @ H.reshape(J.shape[0], J.shape[0]) @ J
        return total / self.n

    def fisher(self, labels):
        """``labels``: one set for all samples, or several."""
        total = 0
        for rows, J, f in self.samples():
            for label in labels:
                g = torch.autograd.functional.jacobian(lambda f, rows=rows, label=label: self.likelihood.nll(f, label[rows]).sum(), f).reshape(-1) @ J
                total = total + torch.outer(g, g)
        return total / self.n / len(labels)

    def hessian(self):
        return torch.autograd.functional.hessian(lambda flat: self.likelihood.nll(self.outputs(flat), self.y).sum(), self.flat) / self.n


def written_out(operator):
    return operator @ torch.eye(operator.size, dtype=torch.float64)


def assert_same(found, expected):
    assert found.shape == expected.shape
    assert expected.abs().max() > 1e-3  # a comparison of zeros says nothing
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-12), (found - expected).abs().max()


# Likelihoods


@pytest.mark.parametrize("general", [False, True], ids=["closed form", "through the root"])
@pytest.mark.parametrize("name", ["categorical", "gaussian", "bernoulli", "tokens"])
def test_the_hessian_at_the_outputs_times_a_vector(name, general):
    likelihood, make = CASES[name]
    model, x, y = make()
    f = model(x).detach()
    if general and name == "tokens":  # a sequence has no root
        with pytest.raises(InputError):
            Likelihood.hessian_product(likelihood, f, f, y)
        return
    u = torch.randn_like(f)
    found = Likelihood.hessian_product(likelihood, f, u, y) if general else likelihood.hessian_product(f, u, y)
    for i in range(len(f)):
        H = torch.autograd.functional.hessian(lambda row, i=i: likelihood.nll(row, y[i : i + 1]).sum(), f[i : i + 1]).reshape(f[i].numel(), -1)
        assert torch.allclose(found[i].reshape(-1), H @ u[i].reshape(-1), atol=1e-12)
    if name == "tokens":
        assert (found[y == -100] == 0).all() and (found[y != -100] != 0).any(-1).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("likelihood", [Categorical(), Tokens(), Bernoulli()], ids=repr)
def test_masked_outputs_have_no_curvature(likelihood, dtype):
    shape = (2, 3, 4) if isinstance(likelihood, Tokens) else (2, 4)
    f = torch.randn(shape).to(dtype)
    f[..., 2] = torch.finfo(dtype).min
    targets = torch.zeros(shape) if isinstance(likelihood, Bernoulli) else torch.zeros(shape[:-1], dtype=torch.long)
    found = likelihood.hessian_product(f, torch.randn(shape).to(dtype), targets)
    assert torch.isfinite(found).all() and (found[..., 2] == 0).all() and (found[..., :2] != 0).all()


def test_a_sure_yes_keeps_its_little_curvature():
    f = torch.tensor([[30.0, -30.0]])
    found = Bernoulli().hessian_product(f, torch.ones(1, 2), f)
    assert torch.allclose(found, torch.full((1, 2), 9.3576e-14), rtol=1e-3, atol=0)


# Products


@pytest.mark.parametrize("batch_size", [None, 4], ids=["one batch", "several"])
@pytest.mark.parametrize("name", CASES)
def test_ggn(name, batch_size):
    likelihood, make = CASES[name]
    model, x, y = make()
    G = ggn(model, (x, y), likelihood, batch_size=batch_size)
    assert_same(written_out(G), Dense(model, x, y, likelihood).ggn())
    assert G.n == likelihood.units(y).sum()


@pytest.mark.parametrize("batch_size", [None, 4], ids=["one batch", "several"])
@pytest.mark.parametrize("name", CASES)
def test_hessian(name, batch_size):
    likelihood, make = CASES[name]
    model, x, y = make()
    assert_same(written_out(hessian(model, (x, y), likelihood, batch_size=batch_size)), Dense(model, x, y, likelihood).hessian())


def drawn(dense, batch_size, draws=1):
    """The labels of every batch in turn, as they come from the stream of labels."""
    draw, f = generator(0, "labels"), dense.outputs(dense.flat)
    batches = [[dense.likelihood.sample(part, draw) for _ in range(draws)] for part in f.split(batch_size)]
    return [dense.likelihood.relabel(torch.cat(parts), dense.y) for parts in zip(*batches, strict=True)]


@pytest.mark.parametrize("batch_size", [None, 4], ids=["one batch", "several"])
@pytest.mark.parametrize("rule", ["empirical", "predicted", "sampled", "exact"])
@pytest.mark.parametrize("name", ["categorical", "gaussian", "bernoulli", "tokens", "tied"])
def test_fisher_products(name, rule, batch_size):
    likelihood, make = CASES[name]
    model, x, y = make()
    if (name, rule) in [("gaussian", "predicted"), ("tokens", "predicted"), ("tokens", "empirical")]:
        with pytest.raises(InputError, match=r"^labels: "):
            fisher_operator(model, (x, y), rule, likelihood)
        return
    F = fisher_operator(model, (x, y), rule, likelihood, batch_size=batch_size, draws=2)
    dense = Dense(model, x, y, likelihood)
    if rule == "exact":
        assert_same(written_out(F), dense.ggn())
        return
    if rule == "sampled":
        labels = drawn(dense, batch_size or len(x), draws=2)
    else:
        labels = [y if rule == "empirical" else likelihood.predict(dense.outputs(dense.flat))]
    first = written_out(F)
    assert_same(first, dense.fisher(labels))
    assert torch.equal(written_out(F), first)  # the labels were drawn once


def test_the_ggn_of_classes_is_the_fisher_with_every_label_weighed():
    likelihood, make = CASES["categorical"]
    model, x, y = make()
    dense = Dense(model, x, y, likelihood)
    p = dense.outputs(dense.flat).softmax(1)
    total = 0
    for rows, J, _ in dense.samples():
        for c in range(3):
            g = (p[rows][0] - torch.eye(3).double()[c]) @ J
            total = total + p[rows][0, c] * torch.outer(g, g) / len(x)
    assert_same(written_out(ggn(model, (x, y))), total)


def test_many_drawn_labels_come_to_the_exact_fisher():
    model, x, y = CASES["categorical"][1]()
    exact = written_out(ggn(model, (x, y)))
    found = written_out(fisher_operator(model, (x, y), "sampled", draws=4000))
    assert torch.allclose(found, exact, atol=0.05 * float(exact.abs().max()))
    other = written_out(fisher_operator(model, (x, y), "sampled", draws=4000, seed=1))
    assert not torch.equal(found, other)


@pytest.mark.parametrize("make", [ggn, hessian, lambda *data, **rest: fisher_operator(*data, "empirical", **rest)], ids=["ggn", "hessian", "fisher"])
def test_outputs_that_do_not_compete_are_left_out(make):
    model, x, y = mlp(outputs=5), torch.randn(6, 4).double(), torch.tensor([1, 3] * 3)
    found = written_out(make(model, Task((x, y), active=(1, 3))))
    assert torch.isfinite(found).all()
    small = mlp(outputs=2)
    with torch.no_grad():
        for p, part in zip(small.parameters(), [*model[0].parameters(), model[2].weight[[1, 3]], model[2].bias[[1, 3]]], strict=True):
            p.copy_(part)
    names = [f"{name}:{i}" for name, p in model.named_parameters() for i in range(p.numel())]
    rows = [
        i
        for i, name in enumerate(names)
        if name.startswith("0.") or name in {f"2.weight:{c * 5 + j}" for c in (1, 3) for j in range(5)} | {"2.bias:1", "2.bias:3"}
    ]
    expected = torch.zeros_like(found)
    expected[torch.tensor(rows)[:, None], torch.tensor(rows)] = written_out(make(small, (x, y // 2)))
    assert_same(found, expected)


@pytest.mark.parametrize("batch_size", [None, 4], ids=["one batch", "several"])
def test_the_model_is_left_as_it_was(batch_size):
    model, x, y = CASES["tied"][1]()
    model.train()
    model.norm.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    model.scale.grad = torch.ones(3).double()
    generator_state = torch.get_rng_state()
    for make in (ggn, hessian, fisher_operator):
        C = make(model, (x, y), batch_size=batch_size)
        C @ torch.ones(C.size)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(model.scale.grad, torch.ones(3)) and model.head.weight.grad is None
    assert torch.equal(torch.get_rng_state(), generator_state)


def test_frozen_layers_are_left_out_and_names_choose():
    model, x, y = CASES["categorical"][1]()
    whole = written_out(ggn(model, (x, y)))
    for p in model[0].parameters():
        p.requires_grad_(False)
    G = ggn(model, (x, y))
    assert G.names == ("2.weight", "2.bias") and G.shape == (18, 18)
    assert_same(written_out(G), whole[25:, 25:])
    model.requires_grad_(True)
    assert_same(written_out(ggn(model, (x, y), names="2.*")), whole[25:, 25:])
    rows = torch.tensor([*range(20, 25), *range(40, 43)])
    assert_same(written_out(hessian(model, (x, y), names=["2.bias", "0.bias"])), written_out(hessian(model, (x, y)))[rows[:, None], rows])
    with pytest.raises(InputError, match=r"names: .*'2.wieght'\. Did you mean '2.weight'"):
        ggn(model, (x, y), names=["2.bias", "2.wieght"])
    with pytest.raises(InputError, match=r"names"):
        ggn(model, (x, y), names=[])


def test_a_model_on_whose_chosen_weights_nothing_depends_has_no_curvature():
    model, x, y = CASES["tied"][1]()
    for make in (ggn, hessian):
        assert torch.equal(make(model, (x, y), names="unused.*", damping=2.0) @ torch.ones(6), torch.full((6,), 2.0))


def test_vectors_of_every_kind():
    model, x, y = CASES["categorical"][1]()
    G = ggn(model, (x, y))
    v = torch.randn(43, 2).double()
    assert torch.allclose(G @ v, torch.stack([G @ v[:, 0], G @ v[:, 1]], 1), rtol=1e-12)
    named = G.unflatten(v[:, 0])
    assert {name: part.shape for name, part in named.items()} == {name: p.shape for name, p in model.named_parameters()}
    assert torch.equal(G.flatten(named), v[:, 0])
    found = G @ dict(reversed(named.items()))
    assert list(found) == list(G.names) and torch.equal(G.flatten(found), G @ v[:, 0])
    assert torch.equal(G(v[:, 0]), G @ v[:, 0])
    assert (G @ v.float()).dtype == torch.float32 and not (G @ v.requires_grad_()).requires_grad
    with torch.no_grad():
        assert torch.equal(G @ v, G(v))


@pytest.mark.parametrize("batch_size", [None, 4], ids=["one batch", "several"])
def test_damping_is_added(batch_size):
    model, x, y = CASES["categorical"][1]()
    plain, damped = ggn(model, (x, y)), ggn(model, (x, y), damping=0.3, batch_size=batch_size)
    assert_same(written_out(damped), written_out(plain) + 0.3 * torch.eye(43).double())
    with pytest.raises(InputError, match=r"damping"):
        ggn(model, (x, y), damping=-1.0)


@pytest.mark.parametrize("batch_size", [None, 3], ids=["one batch", "several"])
def test_samples_are_a_draw(batch_size):
    model, x, y = CASES["categorical"][1]()
    found = written_out(ggn(model, (x, y), samples=5, batch_size=batch_size, seed=3))
    rows = torch.randperm(9, generator=generator(3, "samples"))[:5]
    assert_same(found, Dense(model, x[rows], y[rows], Categorical()).ggn())
    loader = DataLoader(TensorDataset(x, y), batch_size=4)
    assert_same(written_out(ggn(model, loader, samples=5)), Dense(model, x[:5], y[:5], Categorical()).ggn())
    rows = Rows(x, y)
    ggn(model, DataLoader(rows, batch_size=2), samples=3)
    assert rows.readings == 4  # what is not needed is not read
    with pytest.raises(InputError, match=r"samples"):
        ggn(model, (x, y), samples=10)


def test_wrappers_are_seen_through():
    model, x, y = CASES["categorical"][1]()
    assert ggn(nn.DataParallel(model), (x, y)).names == ggn(model, (x, y)).names


# Data read again


class Rows(Dataset):
    """A dataset that changes from reading to reading."""

    def __init__(self, x, y, change=lambda x, reading: x):
        self.x, self.y, self.change, self.readings = x, y, change, 0

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        self.readings += 1
        return self.change(self.x[i], (self.readings - 1) // len(self.x)), self.y[i]


CHANGES = {
    "flipped": lambda x, reading: x.flip(0) if reading else x,
    "shifted": lambda x, reading: x + 1e-6 * reading,
}


@pytest.mark.parametrize("change", CHANGES)
def test_augmentation_is_refused(change):
    model, x, y = CASES["categorical"][1]()
    G = ggn(model, DataLoader(Rows(x, y, CHANGES[change]), batch_size=4))
    with pytest.raises(InputError, match=r"^data: expected the same samples in every pass, found others from batch 1 on\. Turn shuffling"):
        G @ torch.ones(G.size)


def test_shuffling_by_a_generator_of_its_own_is_refused_and_by_ours_repeated():
    model, x, y = CASES["categorical"][1]()
    data = TensorDataset(x, y)
    G = ggn(model, DataLoader(data, batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(1)))
    with pytest.raises(InputError, match=r"^data: expected the same samples"):
        G @ torch.ones(G.size)
    F = fisher_operator(model, DataLoader(data, batch_size=4, shuffle=True), "sampled")
    assert torch.equal(written_out(F), written_out(F))


def test_a_loader_that_grows_or_shrinks_is_refused():
    model, x, y = CASES["categorical"][1]()
    batches = [(x[:4], y[:4]), (x[4:], y[4:])]
    for change in (lambda: batches.append(batches[0]), lambda: batches.clear() or batches.append((x[:4], y[:4]))):
        G = ggn(model, batches)
        change()
        with pytest.raises(InputError, match=r"^data: expected the same samples"):
            G @ torch.ones(G.size)


def test_a_loader_of_one_batch_is_read_once():
    model, x, y = CASES["categorical"][1]()
    rows = Rows(x, y)
    G = ggn(model, DataLoader(rows, batch_size=9))
    first = written_out(G)
    assert rows.readings == 9
    assert_same(first, Dense(model, x, y, Categorical()).ggn())
    assert_same(written_out(ggn(model, rows, batch_size=2)), first)  # a dataset, in batches of ours


class Dict(nn.Module):
    """Inputs by keyword, an object with logits as the output."""

    def __init__(self):
        super().__init__()
        self.net = mlp()

    def forward(self, a, b):
        return {"logits": self.net(a + b)}


def test_inputs_of_several_parts():
    model, x, y = Dict().double(), torch.randn(9, 4).double(), y_classes()
    batches = [{"a": x[rows] - 1, "b": torch.ones(1, 4), "labels": y[rows]} for rows in (slice(0, 4), slice(4, 9))]
    assert_same(written_out(ggn(model, batches)), Dense(model.net, x, y, Categorical()).ggn())


# The graph


def test_the_graph_is_kept_for_one_batch_until_it_is_closed():
    model, x, y = CASES["categorical"][1]()
    outputs = []
    model[2].register_forward_hook(lambda module, inputs, output: outputs.append(weakref.ref(inputs[0])))
    gc.disable()  # so that what goes, goes by itself
    try:
        for make in (ggn, hessian):
            outputs.clear()
            with make(model, (x, y)) as C:
                for _ in range(3):
                    C @ torch.ones(C.size)
                assert len(outputs) == 1 and outputs[0]() is not None
            assert outputs[0]() is None
            with pytest.raises(RetainError, match=r"closed"):
                C @ torch.ones(C.size)
    finally:
        gc.enable()


def test_of_several_batches_one_graph_is_held_at_a_time():
    model, x, y = CASES["categorical"][1]()
    outputs, held = [], []

    def note(module, inputs, output):
        outputs.append(weakref.ref(inputs[0]))
        held.append(sum(one() is not None for one in outputs))

    model[2].register_forward_hook(note)
    G = ggn(model, (x, y), batch_size=2)
    assert len(outputs) == 1  # one look
    G @ torch.ones(G.size, 2)
    assert len(outputs) == 6 and max(held) == 1  # five batches serve both columns


@pytest.mark.parametrize("batch_size", [None, 4], ids=["one batch", "several"])
def test_after_a_step_the_operator_is_stale(batch_size):
    model, x, y = CASES["categorical"][1]()
    G = ggn(model, (x, y), batch_size=batch_size)
    with torch.no_grad():
        model[0].bias += 1
    with pytest.raises(RetainError, match=r"the model has changed"):
        G @ torch.ones(G.size)
    G = ggn(model, (x, y), batch_size=batch_size)
    model[0].bias.requires_grad_(False)
    with pytest.raises(RetainError, match=r"the model has changed"):
        G @ torch.ones(G.size)


def test_a_layer_that_was_replaced_is_noticed():
    model, x, y = CASES["categorical"][1]()
    G = ggn(model, (x, y), batch_size=4)
    model[2] = nn.Linear(5, 3).double()
    with pytest.raises(RetainError, match=r"the model has changed"):
        G @ torch.ones(G.size)


def test_running_statistics_that_changed_are_noticed():
    model, x, y = CASES["tied"][1]()
    G = ggn(model, (x, y))
    with torch.no_grad():
        model.train()(x)
    with pytest.raises(RetainError, match=r"the model has changed"):
        G @ torch.ones(G.size)


# What is refused


class Mean(Categorical):
    """A loss that is already a mean."""

    def nll(self, outputs, targets):
        return super().nll(outputs, targets).mean()


@pytest.mark.parametrize(
    "likelihood", [nn.CrossEntropyLoss(), nn.CrossEntropyLoss, nn.functional.cross_entropy, Mean()], ids=["module", "class", "function", "mean"]
)
@pytest.mark.parametrize("make", [ggn, hessian, lambda *data, **rest: fisher_operator(*data, "empirical", **rest)], ids=["ggn", "hessian", "fisher"])
def test_losses_are_no_likelihoods(make, likelihood):
    model, x, y = CASES["categorical"][1]()
    with pytest.raises(InputError, match=r"^likelihood: expected one .*value per sample"):
        make(model, (x, y), likelihood=likelihood)
    with pytest.raises(InputError, match=r"^likelihood: expected one .*value per sample"):
        make(model, Task((x, y), likelihood=likelihood))


def test_bad_vectors_are_named():
    model, x, y = CASES["categorical"][1]()
    G = ggn(model, (x, y))
    for bad in (torch.ones(42), torch.ones(43, 0), torch.ones(1, 43), torch.ones(43, 1, 1), [1.0] * 43):
        with pytest.raises(InputError, match=r"^vector: .*\[43\]"):
            G @ bad
    named = G.unflatten(torch.ones(43))
    with pytest.raises(InputError, match=r"'2.bias' missing"):
        G @ {name: part for name, part in named.items() if name != "2.bias"}
    with pytest.raises(InputError, match=r"'other' too many"):
        G @ {**named, "other": torch.ones(1)}
    with pytest.raises(InputError, match=r"vector\['2.bias'\]: expected the parameter's shape \[3\], found \[4\]"):
        G @ {**named, "2.bias": torch.ones(4)}
    with pytest.raises(InputError, match=r"vector: expected finite"):
        G @ torch.full((43,), float("nan"))
    with pytest.raises(InputError, match=r"vector"):
        G.unflatten(torch.ones(42))


def test_results_that_are_not_finite_name_the_parameter():
    model, x, y = CASES["gaussian"][1]()
    with torch.no_grad():
        model[2].weight[0, 0] = 1e200
    G = ggn(model, (x, y), Gaussian())
    with pytest.raises(InputError, match=r"^product at '0.weight'"):
        G @ torch.ones(43, dtype=torch.float64)
    with pytest.raises(InputError, match=r"^product at '0.weight'"):
        G @ torch.ones(43, 2, dtype=torch.float64)


class Once(torch.autograd.Function):
    """An operation that can be differentiated only once."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return 2 * g


class Odd(nn.Module):
    """A network whose outputs go through a function."""

    def __init__(self, function):
        super().__init__()
        self.net, self.function = mlp(), function

    def forward(self, x):
        return self.function(self.net(x))


def test_models_that_cannot_be_differentiated_are_named():
    x, y = torch.randn(9, 4).double(), y_classes()
    with pytest.raises(InputError, match=r"^model: expected operations that can be differentiated twice"):
        ggn(Odd(Once.apply), (x, y))
    for make in (ggn, hessian):
        with pytest.raises(InputError, match=r"^model: expected operations that can be differentiated twice"):
            make(Odd(lambda f: f + Once.apply(f)), (x, y))  # not zero along one of two ways
    with pytest.raises(InputError, match=r"^model: expected outputs that depend on its weights"):
        ggn(Odd(torch.Tensor.detach), (x, y))
    for make in (ggn, hessian, fisher_operator):
        with pytest.raises(RetainError, match=r"found none. Unfreeze"):
            make(mlp().requires_grad_(False), (x, y))


def test_settings_are_checked():
    model, x, y = CASES["categorical"][1]()
    with pytest.raises(InputError, match=r"Did you mean 'empirical'"):
        fisher_operator(model, (x, y), "emprical")
    for name in ("draws", "batch_size", "samples"):
        with pytest.raises(InputError, match=rf"^{name}"):
            fisher_operator(model, (x, y), **{name: 0})
    with pytest.raises(InputError, match=r"labels from 0 to 2"):
        ggn(model, (x, y + 1))
    with pytest.raises(InputError, match=r"at least one observation"):
        ggn(model, (torch.randn(2, 5, 4).double(), torch.full((2, 5), -100)), Tokens())


# Solves


def positive(p=12, seed=0, low=0.1):
    g = torch.Generator().manual_seed(seed)
    Q = torch.linalg.qr(torch.randn(p, p, generator=g).double())[0]
    return Q @ torch.diag(torch.linspace(low, 5, p).double()) @ Q.T


@given(p=st.integers(1, 15), seed=st.integers(0, 100), damping=st.sampled_from([0.0, 0.5]))
@settings(max_examples=30, deadline=None)
def test_conjugate_gradients_solve(p, seed, damping):
    A, b = positive(p, seed), torch.randn(p, generator=torch.Generator().manual_seed(seed + 1)).double()
    expected = torch.linalg.solve(A + damping * torch.eye(p).double(), b)
    found = conjugate_gradient(lambda v: A @ v, b, damping, tolerance=1e-12)
    assert found.converged and torch.allclose(found.solution, expected, rtol=1e-9, atol=1e-11)
    exact = float((b - (A @ found.solution + damping * found.solution)).norm() / b.norm())
    assert abs(found.residual - exact) < 1e-15


def test_solving_with_an_operator_and_dicts():
    model, x, y = CASES["categorical"][1]()
    G = ggn(model, (x, y))
    b = torch.randn(43).double()
    expected = torch.linalg.solve(written_out(G) + 0.1 * torch.eye(43).double(), b)
    flat = conjugate_gradient(G, b, damping=0.1, tolerance=1e-12)
    named = conjugate_gradient(G, G.unflatten(b), damping=0.1, tolerance=1e-12)
    assert torch.allclose(flat.solution, expected, rtol=1e-8) and torch.equal(G.flatten(named.solution), flat.solution)
    assert list(named.solution) == list(G.names)
    own = conjugate_gradient(ggn(model, (x, y), damping=0.1), b, tolerance=1e-12)
    assert torch.allclose(own.solution, expected, rtol=1e-8)


def test_starts_and_preconditioners_save_products():
    A, b = positive(40, low=0.01), torch.randn(40).double()
    A = A + torch.diag(torch.logspace(0, 4, 40).double())
    plain = conjugate_gradient(lambda v: A @ v, b, iterations=500)
    preconditioned = conjugate_gradient(lambda v: A @ v, b, preconditioner=lambda r: r / A.diagonal())
    assert plain.converged and preconditioned.converged and preconditioned.iterations < plain.iterations / 3
    assert torch.allclose(preconditioned.solution, torch.linalg.solve(A, b), rtol=1e-4, atol=1e-7)
    started = conjugate_gradient(lambda v: A @ v, b, start=plain.solution)
    assert started.converged and started.iterations == 0 and torch.equal(started.solution, plain.solution)


def test_solves_that_stop_early_say_so():
    A, b = positive(30), torch.randn(30).double()
    found = conjugate_gradient(lambda v: A @ v, b, iterations=3)
    assert not found.converged and found.iterations == 3 and found.residual > 1e-3
    # in single precision the recursion runs far below what is reached, and the measured residual does not
    single = conjugate_gradient(lambda v: A.float() @ v, b.float(), tolerance=1e-12, iterations=200)
    assert not single.converged and 1e-12 < single.residual < 1e-5 and single.iterations < 100 and single.solution.dtype == torch.float32
    zero = conjugate_gradient(lambda v: A @ v, 0 * b)
    assert zero.converged and zero.iterations == 0 and zero.residual == 0 and not zero.solution.any()


def test_negative_curvature_is_an_error():
    A = torch.diag(torch.tensor([1.0, -2.0]).double())
    with pytest.raises(InputError, match=r"positive curvature .*v'Av = -0.5 v'v in product 1. Add damping"):
        conjugate_gradient(lambda v: A @ v, torch.ones(2).double())
    assert conjugate_gradient(lambda v: A @ v, torch.ones(2).double(), damping=2.5).converged
    with pytest.raises(InputError, match=r"preconditioner"):
        conjugate_gradient(lambda v: v, torch.ones(2), preconditioner=lambda r: -r)


def test_solves_check_what_they_get():
    with pytest.raises(InputError, match=r"^b: "):
        conjugate_gradient(lambda v: v, torch.ones(2, 2))
    with pytest.raises(InputError, match=r"^b: expected finite"):
        conjugate_gradient(lambda v: v, torch.tensor([1.0, float("inf")]))
    with pytest.raises(InputError, match=r"^start: "):
        conjugate_gradient(lambda v: v, torch.ones(2), start=torch.ones(3))
    with pytest.raises(InputError, match=r"^operator: .*finite products"):
        conjugate_gradient(lambda v: v * float("nan"), torch.ones(2))
    with pytest.raises(InputError, match=r"^operator: .*names and shapes of b"):
        conjugate_gradient(lambda v: {"b": v["a"]}, {"a": torch.ones(2)})
    for name in ("damping", "tolerance", "iterations"):
        with pytest.raises(InputError, match=rf"^{name}"):
            conjugate_gradient(lambda v: v, torch.ones(2), **{name: -1})


# Spectra


def test_the_trace_lies_within_its_error():
    A = positive(30)
    inside = 0
    for seed in range(40):
        found = trace(lambda v: A @ v, probes=16, seed=seed, like=A[0])
        inside += abs(found.mean - float(A.trace())) < 2 * found.error
    assert inside >= 34 and found.seeds == 16
    # the error is that of 16 probes: Var z'Az = 2 sum of squares off the diagonal
    off = A - torch.diag(A.diagonal())
    assert 0.5 < found.error / float((2 * off.square().sum() / 16).sqrt()) < 2
    model, x, y = CASES["categorical"][1]()
    G = ggn(model, (x, y), damping=0.1)
    found = trace(G, probes=400)
    assert abs(found.mean - float(written_out(G).trace())) < 3 * found.error < 0.3 * found.mean
    assert trace(G, probes=4, seed=1) == trace(G, probes=4, seed=1) != trace(G, probes=4, seed=2)


def test_lanczos_makes_the_matrix_tridiagonal():
    A = positive(25)
    T, Q, remainder = lanczos(lambda v: A @ v, 10, like=A[0])
    assert Q.shape == (25, 10) and torch.allclose(Q.T @ Q, torch.eye(10).double(), atol=1e-13)
    assert torch.allclose(Q.T @ A @ Q, T, atol=1e-12)
    left = A @ Q - Q @ T
    assert left[:, :-1].abs().max() < 1e-12 and abs(float(left[:, -1].norm()) - remainder) < 1e-12
    T, Q, remainder = lanczos(lambda v: A @ v, 99, like=A[0])
    assert torch.allclose(torch.linalg.eigvalsh(T), torch.linalg.eigvalsh(A), atol=1e-10)
    assert len(T) == 25 and remainder < 1e-9


def test_lanczos_keeps_its_basis_orthogonal_where_it_has_converged():
    values = torch.cat([torch.linspace(0, 0.01, 195).double(), torch.tensor([5.0, 20, 80, 300, 1000]).double()])
    T, Q, _ = lanczos(lambda v: values * v, 60, like=values)
    assert len(T) == 60 and (Q.T @ Q - torch.eye(60).double()).abs().max() < 1e-13
    found = torch.linalg.eigvalsh(T)
    assert (found > 1).sum() == 5  # without orthogonalisation there are copies


def test_lanczos_stops_at_an_invariant_space():
    A = torch.diag(torch.tensor([1.0, 1, 1, 4, 4, 0]).double())
    T, Q, remainder = lanczos(lambda v: A @ v, 6, like=A[0])
    assert len(T) == 3 and Q.shape == (6, 3) and remainder == 0
    assert torch.allclose(torch.linalg.eigvalsh(T), torch.tensor([0.0, 1, 4]).double(), atol=1e-12)
    T, Q, _ = lanczos(lambda v: 0 * v, 6, like=A[0])
    assert T.tolist() == [[0.0]]


@pytest.mark.parametrize("which", ["magnitude", "largest", "smallest"])
@pytest.mark.parametrize("k", [1, 3, 8])
def test_eigenvalues_of_a_hessian(which, k):
    model, x, y = CASES["categorical"][1]()
    H = hessian(model, (x, y))
    dense = written_out(H)
    values = torch.linalg.eigvalsh(dense)
    order = (values.abs() if which == "magnitude" else values).argsort(descending=which != "smallest")[:k]
    assert values.min() < -0.01 < 0.01 < values.max()
    found = eigenvalues(H, k, which, tolerance=1e-8)
    assert found.converged and torch.allclose(found.values, values[order], atol=1e-7)
    residuals = (dense @ found.vectors - found.vectors * found.values).norm(dim=0)
    assert torch.allclose(residuals, found.residuals, atol=1e-12) and residuals.max() < 1e-8 * values.abs().max()
    assert torch.allclose(found.vectors.T @ found.vectors, torch.eye(k).double(), atol=1e-12)


@pytest.mark.parametrize("p", [60, 300])
def test_eigenvalues_that_occur_several_times(p):
    values = torch.cat([torch.linspace(-1, 1, p - 6).double(), torch.tensor([3.0, 3, 3, -4, -4, 2]).double()])
    Q = torch.linalg.qr(torch.randn(p, p).double())[0]
    A = Q @ torch.diag(values) @ Q.T
    found = eigenvalues(lambda v: A @ v, 6, like=A[0], tolerance=1e-6)
    assert found.converged and torch.allclose(found.values, torch.tensor([-4.0, -4, 3, 3, 3, 2]).double(), atol=1e-6)


def test_a_crowded_spectrum_needs_restarts(monkeypatch):
    sizes, beside = [], spectrum._beside
    monkeypatch.setattr(spectrum, "_beside", lambda R, Q: sizes.append(Q.shape[1]) or beside(R, Q))
    values = torch.linspace(0, 1, 400).double()
    A = torch.diag(values)
    found = eigenvalues(lambda v: A @ v, 2, like=values, tolerance=1e-5, iterations=300)
    assert found.converged and torch.allclose(found.values, values.flip(0)[:2], atol=1e-5)
    assert 15 < max(sizes) < 20 < len(sizes)
    short = eigenvalues(lambda v: A @ v, 2, like=values, tolerance=1e-5, iterations=3)
    assert not short.converged and short.residuals.max() > 1e-5


def test_new_directions_are_only_as_many_as_there_are():
    Q, r = torch.eye(9).double()[:, :2], torch.randn(9, 1).double()
    found = spectrum._beside(torch.cat([r, Q[:, :1] + Q[:, 1:], 2 * r + Q[:, :1]], 1), Q)
    assert found.shape == (9, 1) and (Q.T @ found).abs().max() < 1e-15
    Q = torch.linalg.qr(torch.randn(3, 2).double())[0]
    found = spectrum._beside(torch.cat([r[:3], Q[:, :1] + 1e-12 * torch.randn(3, 1)], 1), Q)  # what is left of the second is rounding
    assert found.shape == (3, 1) and (Q.T @ found).abs().max() < 1e-15


@pytest.mark.parametrize("k", [1, 4, 5])
def test_all_eigenvalues_of_small_and_odd_matrices(k):
    for A in (torch.eye(5), torch.zeros(5, 5), torch.diag(torch.tensor([1.0, 0, 0, 0, 0])), positive(5).float()):
        expected = torch.linalg.eigvalsh(A).flip(0)[:k].double()
        for tolerance in (1e-4, 1e-15):
            found = eigenvalues(lambda v, A=A: A @ v, k, "largest", tolerance, like=A[0])
            assert torch.allclose(found.values, expected, atol=1e-5)
            assert torch.allclose(found.vectors.T @ found.vectors, torch.eye(k), atol=1e-5)


@pytest.mark.parametrize("width", [None, 0.3])
def test_the_density_integrates_to_one_and_has_the_moments_of_the_spectrum(width):
    A = positive(40)
    found = density(lambda v: A @ v, 20, probes=64, width=width, like=A[0])
    grid, height = found.grid, found.density
    assert abs(float(torch.trapezoid(height, grid)) - 1) < 1e-6 and float(height.min()) >= 0
    first, second = float(torch.trapezoid(height * grid, grid)), float(torch.trapezoid(height * grid.square(), grid))
    assert abs(first - trace(lambda v: A @ v, 64, like=A[0]).mean / 40) < 1e-6  # of the same probes
    assert abs(second - trace(lambda v: A @ (A @ v), 64, like=A[0]).mean / 40 - found.width**2) < 1e-6
    assert abs(first / (float(A.trace()) / 40) - 1) < 0.1
    assert abs(float(found.weights.sum()) - 1) < 1e-12 and abs(float(found.weights @ found.nodes) - first) < 1e-6


def test_the_density_of_a_diagonal_is_exact():
    values = torch.tensor([0.0, 0, 0, 1, 1, 4, 4, 4, 4, 4]).double()
    found = density(lambda v: values * v, probes=2, width=0.05, like=values)
    expected = sum(torch.exp(-0.5 * ((found.grid - v) / 0.05).square()) for v in values) / (10 * 0.05 * (2 * torch.pi) ** 0.5)
    assert torch.allclose(found.density, expected, atol=1e-9)


def test_the_density_of_a_model_draws(tmp_path):
    model, x, y = CASES["categorical"][1]()
    figure = density(hessian(model, (x, y)), 20).figure()
    assert figure.y_log and min(figure.series[0].y) > 0
    assert draw(figure) is not None
    gap = density(lambda v: torch.tensor([0.0, 1.0]) * v, width=0.01, points=301, like=torch.ones(2))
    assert float(gap.density.min()) == 0 and min(gap.figure().series[0].y) > 0  # on a logarithmic axis
    one = density(lambda v: 2 * v, like=torch.ones(3))
    assert abs(float(torch.trapezoid(one.density, one.grid)) - 1) < 1e-6 and 1.9 < float(one.grid[one.density.argmax()]) < 2.1


def test_spectra_check_what_they_get():
    for call in (trace, lanczos, eigenvalues, density):
        with pytest.raises(InputError, match=r"^like: "):
            call(lambda v: v)
        with pytest.raises(InputError, match=r"^operator: .*finite"):
            call(lambda v: v * float("nan"), like=torch.ones(3))
    with pytest.raises(InputError, match=r"^k: expected at most the 3 rows"):
        eigenvalues(lambda v: v, 4, like=torch.ones(3))
    with pytest.raises(InputError, match=r"Did you mean 'largest'"):
        eigenvalues(lambda v: v, which="larges", like=torch.ones(3))
    with pytest.raises(InputError, match=r"^start: "):
        lanczos(lambda v: v, start=torch.zeros(3))
    with pytest.raises(InputError, match=r"^points: "):
        density(lambda v: torch.tensor([0.0, 1.0, 2.0]) * v, width=1e-4, like=torch.ones(3))
