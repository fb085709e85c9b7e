"""The Fisher's diagonal against a per-sample loop in float64."""

import random

import pytest
import torch
from conftest import fisher_by_loop
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import retain
from retain.curvature import fisher
from retain.errors import InputError, RetainError
from retain.likelihoods import Bernoulli, Categorical, Gaussian, Tokens
from retain.tasks import Task

RULES = ("exact", "empirical", "predicted")


def assert_same(found, expected, tolerance=1e-12):
    assert set(found) == set(expected)
    for name in expected:
        assert torch.allclose(found[name], expected[name], rtol=1e-9, atol=tolerance), name


class Tied(nn.Module):
    """Shared weights, layers used twice, a layer never used, a bare parameter."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.unused = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(2, 2)
        self.b.weight = self.a.weight
        self.norm, self.head, self.scale = nn.LayerNorm(6), nn.Linear(6, 3, bias=False), nn.Parameter(torch.ones(3))

    def forward(self, x):
        x = self.norm(self.a(self.b(x).relu()))
        return self.scale * self.head(self.norm(self.a(x)))


class TiedByHand(nn.Module):
    """A layer's weight used beside the layer, as tied auto-encoders do."""

    def __init__(self):
        super().__init__()
        self.a, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(nn.functional.linear(self.a(x).tanh(), self.a.weight))


class Folded(nn.Module):
    """Positions folded into the batch: no axis of the layer's input is the samples."""

    def __init__(self):
        super().__init__()
        self.a, self.head = nn.Linear(3, 4), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.a(x.reshape(-1, 3)).tanh().reshape(len(x), 8))


class Swapped(nn.Module):
    """Positions before samples, with as many of one as of the other."""

    def __init__(self):
        super().__init__()
        self.a, self.norm, self.head = nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(28, 3)

    def forward(self, x):
        return self.head(self.norm(self.a(x.transpose(0, 1))).tanh().transpose(0, 1).flatten(1))


class Hooked(nn.Module):
    """A layer whose output a hook changes."""

    def __init__(self, hook=lambda module, inputs, output: 2 * output):
        super().__init__()
        self.a, self.head = nn.Linear(6, 4), nn.Linear(4, 3)
        self.a.register_forward_hook(hook)

    def forward(self, x):
        return self.head(self.a(x).tanh())


class Recurrent(nn.Module):
    """A recurrent layer of any kind."""

    def __init__(self, kind, first=True, state=False, **options):
        super().__init__()
        self.cell, self.first, self.state = kind(3, 4, batch_first=first, **options), first, state
        width = (options.get("proj_size") or 4) * (2 if options.get("bidirectional") else 1)
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        x = x if self.first else x.transpose(0, 1)
        given = torch.full((1, x.shape[0 if self.first else 1], 4), 0.5, dtype=x.dtype) if self.state else None
        out, last = self.cell(x, hx=given)
        last = last[0] if isinstance(last, tuple) else last
        out = out if self.first else out.transpose(0, 1)
        return self.head(input=out[:, -1] * out[:, 0]) + last.sum((0, 2))[:, None]  # and a layer called by keyword


class Attention(nn.Module):
    """Attention to itself and to something else, with masks."""

    def __init__(self, kind):
        super().__init__()
        self.kind, first = kind, kind != "positions first"
        self.into = nn.Linear(3, 4)
        self.attend = nn.MultiheadAttention(
            4, 2, batch_first=first, bias=kind != "no bias", kdim=3 if kind == "other" else None, vdim=3 if kind == "other" else None
        )
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        q, n = self.into(x), x.shape[1]
        if self.kind == "positions first":
            q = q.transpose(0, 1)
            return self.head(self.attend(q, q, q, need_weights=False)[0].mean(0))
        if self.kind == "other":
            return self.head(self.attend(q, x, value=x)[0].sum(1))
        if self.kind == "cross":
            padding = (torch.arange(n) > n - 2).expand(len(x), n)
            out, weights = self.attend(q, q.flip(1), q * 2, key_padding_mask=padding)
            return self.head(out[:, 0]) + weights.square().sum((1, 2))[:, None]
        mask = torch.triu(torch.ones(n, n, dtype=torch.bool), 1)
        return self.head(self.attend(q, q, q, attn_mask=mask, average_attn_weights=False)[0].mean(1))


class Text(nn.Module):
    """A table of vectors, with padding, its transpose used as the last layer."""

    def __init__(self, tied=False):
        super().__init__()
        self.table = nn.Embedding(5, 4, padding_idx=None if tied else 0)
        self.norm, self.head = nn.RMSNorm(4), nn.Linear(4, 5 if tied else 3, bias=False)
        if tied:
            self.head.weight = self.table.weight

    def forward(self, x):
        return self.head(self.norm(self.table(x.abs().mul(3).long() % 5)).tanh().mean(1))[:, :3]


class LoRA(nn.Module):
    """A frozen layer and a low-rank change of it, as peft lays them out."""

    def __init__(self):
        super().__init__()
        self.base_layer = nn.Linear(6, 5).requires_grad_(False)
        self.lora_A, self.lora_B = nn.ModuleDict({"default": nn.Linear(6, 2, bias=False)}), nn.ModuleDict({"default": nn.Linear(2, 5, bias=False)})
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        return self.head((self.base_layer(x) + 2.0 * self.lora_B["default"](self.lora_A["default"](x))).tanh())


class Twice(nn.Module):
    """Convolutions used twice."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(2, 2, 3, padding=1), nn.GroupNorm(1, 2), nn.Linear(50, 3)

    def forward(self, x):
        return self.head(self.norm(self.conv(self.norm(self.conv(x)).relu())).flatten(1))


class Switched(nn.Module):
    """Features that are computed without gradients."""

    def __init__(self):
        super().__init__()
        self.features, self.head = nn.Linear(6, 4), nn.Linear(4, 3)

    def forward(self, x):
        with torch.no_grad():
            h = self.features(x).tanh()
        return self.head(h)


class Odd(nn.Linear):
    """A subclass computes something else."""

    def forward(self, x):
        return super().forward(x) * x.sum(1, keepdim=True)


def flat(*layers):
    """Layers, and a linear layer on what comes out."""
    return nn.Sequential(*layers, nn.Tanh(), nn.Flatten(), nn.LazyLinear(3))


# how to build it, shape of a sample, parameters without a closed form
MODELS = {
    "mlp": (lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(inplace=True), nn.Linear(5, 3)), (6,), ()),
    "tied": (Tied, (6,), ("unused.weight", "unused.bias", "scale")),
    "sequence": (lambda: nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Flatten(), nn.Linear(20, 3)), (4, 6), ()),
    "long sequence": (lambda: flat(nn.Linear(2, 3), nn.LayerNorm([30, 3])), (30, 2), ()),
    "tied by hand": (TiedByHand, (6,), ("a.weight",)),
    "folded": (Folded, (6,), ("a.weight", "a.bias")),
    "swapped": (Swapped, (7, 3), ()),
    "hooked": (Hooked, (6,), ()),
    "hooked with the weight": (lambda: Hooked(lambda module, inputs, output: output * module.weight.sum()), (6,), ("a.weight",)),
    "features without gradients": (Switched, (6,), ("features.weight", "features.bias")),
    "subclass": (lambda: nn.Sequential(Odd(6, 4), nn.Tanh(), nn.Linear(4, 3)), (6,), ("0.weight", "0.bias")),
    "lora": (LoRA, (6,), ()),
    "lstm": (lambda: Recurrent(nn.LSTM), (5, 3), ()),
    "lstm of two layers": (lambda: Recurrent(nn.LSTM, first=False, num_layers=2, bidirectional=True, proj_size=2), (5, 3), ()),
    "gru": (lambda: Recurrent(nn.GRU, bidirectional=True, bias=False), (5, 3), ()),
    "gru with a state": (lambda: Recurrent(nn.GRU, state=True), (5, 3), ()),
    "rnn": (lambda: Recurrent(nn.RNN, nonlinearity="relu", num_layers=2), (5, 3), ()),
    "attention": (lambda: Attention("causal"), (5, 3), ()),
    "attention, positions first": (lambda: Attention("positions first"), (5, 3), ()),
    "attention without bias": (lambda: Attention("no bias"), (5, 3), ()),
    "cross-attention": (lambda: Attention("cross"), (5, 3), ()),
    "attention to other widths": (lambda: Attention("other"), (5, 3), ()),
    "transformer": (lambda: flat(nn.TransformerEncoderLayer(4, 2, 6, dropout=0.1, batch_first=True)), (5, 4), ()),
    "text": (Text, (6,), ()),
    "tied text": (lambda: Text(tied=True), (6,), ()),
    "conv": (
        lambda: flat(
            nn.Conv2d(2, 4, 3, groups=2, stride=2, padding=1, padding_mode="reflect"),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Conv2d(4, 3, 3, padding="same", dilation=2, bias=False),
            nn.ReLU(inplace=True),
        ),
        (2, 6, 6),
        (),
    ),
    "conv used twice": (Twice, (2, 5, 5), ()),
    "conv of one dimension": (lambda: flat(nn.Conv1d(2, 4, 3, padding=1, groups=2), nn.BatchNorm1d(4)), (2, 7), ()),
    "conv of three dimensions": (lambda: flat(nn.Conv3d(2, 3, (1, 2, 2), stride=(1, 2, 1)), nn.BatchNorm3d(3)), (2, 3, 4, 4), ()),
    "depthwise": (lambda: flat(nn.Conv2d(4, 8, 3, groups=4)), (4, 6, 6), ()),
    "no rule": (lambda: flat(nn.PReLU(6), nn.Linear(6, 4)), (6,), ("0.weight",)),
}


def built(name):
    build, shape, slow = MODELS[name]
    model = build()
    with torch.no_grad():
        model.eval()(torch.randn(2, *shape))  # the lazy layers get their shape
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
        if isinstance(module, nn.GroupNorm | nn.LayerNorm):
            nn.init.normal_(module.weight)
    return model.double(), torch.randn(7, *shape).double(), torch.randint(3, (7,)), slow


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", MODELS)
def test_equals_the_loop(name, rule):
    model, x, y, slow = built(name)
    found = fisher(model, (x, y), rule, batch_size=3)
    assert_same(found, fisher_by_loop(model, x, y, Categorical(), rule))
    assert set(found.slow) == set(slow)
    assert found.n == 7


@given(
    channels=st.sampled_from([1, 2, 4]),
    groups=st.sampled_from([1, 2]),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.integers(1, 3),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
    mode=st.sampled_from(["zeros", "reflect", "circular", "replicate"]),
    bias=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_convolutions_of_every_kind(channels, groups, kernel, stride, padding, dilation, mode, bias):
    torch.manual_seed(1)
    conv = nn.Conv2d(2 * channels, 2 * groups, kernel, stride, padding, dilation, groups=groups, padding_mode=mode, bias=bias)
    x = torch.randn(3, 2 * channels, 7, 8).double()
    width = conv.double()(x).flatten(1).shape[1]
    model = nn.Sequential(conv, nn.Tanh(), nn.Flatten(), nn.Linear(width, 2)).double()
    y = torch.tensor([0, 1, 1])
    found = fisher(model, (x, y))
    assert not found.slow
    assert_same(found, fisher_by_loop(model, x, y, Categorical(), "exact"))


@given(widths=st.lists(st.integers(1, 6), min_size=2, max_size=4), n=st.integers(1, 9), batch=st.integers(1, 5), rule=st.sampled_from(RULES))
@settings(max_examples=40, deadline=None)
def test_linear_layers_of_every_width(widths, n, batch, rule):
    torch.manual_seed(2)
    layers = [layer for a, b in zip(widths, [*widths[1:], 3], strict=True) for layer in (nn.Linear(a, b), nn.Tanh())]
    model, x, y = nn.Sequential(*layers[:-1]).double(), torch.randn(n, widths[0]).double(), torch.randint(3, (n,))
    assert_same(fisher(model, (x, y), rule, batch_size=batch), fisher_by_loop(model, x, y, Categorical(), rule))


def test_gaussian_and_bernoulli():
    model, x = nn.Linear(3, 2).double(), torch.randn(6, 3).double()
    y = torch.randn(6, 2).double()
    assert_same(fisher(model, (x, y), likelihood=Gaussian(0.5)), fisher_by_loop(model, x, y, Gaussian(0.5), "exact"))
    assert_same(fisher(model, (x, y), "empirical", likelihood=Gaussian(0.5)), fisher_by_loop(model, x, y, Gaussian(0.5), "empirical"))
    z = (y > 0).double()
    p = model(x).sigmoid()
    expected = (p * (1 - p)).T @ x.square() / 6
    assert torch.allclose(fisher(model, (x, z), likelihood=Bernoulli())["weight"], expected)


def test_sampled_labels_are_unbiased_and_draws_average():
    model, x = nn.Linear(4, 3).double(), torch.randn(5, 4).double()
    y = torch.zeros(5).long()
    exact = fisher(model, (x, y))["weight"]
    few, many = (fisher(model, (x, y), "sampled", draws=draws)["weight"] for draws in (1, 4000))
    assert torch.allclose(many, exact, rtol=0.15, atol=0.01)
    assert (few - exact).norm() > 5 * (many - exact).norm()
    assert torch.equal(few, fisher(model, (x, y), "sampled", seed=0)["weight"])
    assert not torch.equal(few, fisher(model, (x, y), "sampled", seed=1)["weight"])


def test_samples_are_drawn_at_random_and_with_replacement_if_asked():
    x = torch.arange(1.0, 101)[:, None]
    model = nn.Linear(1, 1, bias=False)
    likelihood = Gaussian()

    def mean_square(**options):
        return float(fisher(model, (x, x), likelihood=likelihood, **options)["weight"])

    full = mean_square()
    assert full == pytest.approx(float(x.square().mean()))
    part = mean_square(samples=50, seed=3)
    assert part == mean_square(samples=50, seed=3) != mean_square(samples=50, seed=4)
    assert mean_square(samples=100) == pytest.approx(full)  # all, in another order
    assert mean_square(samples=100, replacement=True) != pytest.approx(full)
    loader = DataLoader(TensorDataset(x, x), batch_size=8)
    assert float(fisher(model, loader, likelihood=likelihood, samples=20)["weight"]) == pytest.approx(float(x[:20].square().mean()))
    with pytest.raises(InputError, match="at most the 100 samples"):
        mean_square(samples=101)


def test_model_is_left_as_it_was():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 2))
    model[2].eval()
    modes = [m.training for m in model.modules()]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model[0].weight.grad = torch.ones(4, 4)
    x, y = torch.randn(8, 4), torch.zeros(8).long()
    first = fisher(model, (x, y))
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert torch.equal(model[0].weight.grad, torch.ones(4, 4)) and model[3].weight.grad is None
    assert all(torch.equal(first[k], v) for k, v in fisher(model, (x, y)).items())  # no dropout in it
    assert all(not m._forward_hooks for m in model.modules())


def test_hidden_units_may_be_permuted():
    model, x, y = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)).double(), torch.randn(6, 3).double(), torch.randint(2, (6,))
    found = fisher(model, (x, y))
    order = torch.randperm(5)
    with torch.no_grad():
        model[0].weight.copy_(model[0].weight[order].clone())
        model[0].bias.copy_(model[0].bias[order].clone())
        model[2].weight.copy_(model[2].weight[:, order].clone())
    permuted = fisher(model, (x, y))
    assert torch.allclose(permuted["0.weight"], found["0.weight"][order])
    assert torch.allclose(permuted["2.weight"], found["2.weight"][:, order])


def test_masked_outputs_are_left_out():
    x, y = torch.randn(6, 3).double(), torch.tensor([0, 1] * 3)
    wide, narrow = nn.Linear(3, 4).double(), nn.Linear(3, 2).double()
    with torch.no_grad():
        narrow.weight.copy_(wide.weight[:2])
        narrow.bias.copy_(wide.bias[:2])
    found = fisher(wide, Task((x, y), active=(0, 1)))
    assert torch.allclose(found["weight"][:2], fisher(narrow, (x, y))["weight"])
    assert (found["weight"][2:] == 0).all()


def test_frozen_layers_are_left_out_and_batches_do_not_matter():
    model, x, y = MODELS["mlp"][0](), torch.randn(20, 6), torch.randint(3, (20,))
    model[0].requires_grad_(False)
    found = fisher(model, (x, y), batch_size=7)
    assert list(found) == ["2.weight", "2.bias"]
    whole = fisher(model, (x, y))
    assert all(torch.allclose(found[k], whole[k]) for k in found)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m, d: fisher(m, d, "exakt"), "Did you mean 'exact'"),
        (lambda m, d: fisher(m, d, structure="fill"), "Did you mean 'full'"),
        (lambda m, d: fisher(m, (d[0], d[1].float()[:, None]), "predicted", likelihood=Gaussian()), "every gradient is 0"),
        (lambda m, d: fisher(m, (d[0], d[1] + 5)), "labels from 0 to 1"),
        (lambda m, d: fisher(nn.Linear(3, 101), d), "sampled"),
        (lambda m, d: fisher(m, d, samples=0), "at least 1"),
        (lambda m, d: fisher(m, (d[0], torch.zeros(4, 2).long()), "empirical", likelihood=Tokens()), "sampled"),
        (lambda m, d: fisher(m, Task(d), likelihood=Gaussian()), "that of the task"),
        (lambda m, d: fisher(m, (torch.randn(4, 5), d[1])), "what Linear takes"),
    ],
)
def test_bad_input(call, words):
    with pytest.raises(InputError, match=words):
        call(nn.Linear(3, 2), (torch.randn(4, 3), torch.tensor([0, 1, 0, 1])))


def test_no_parameters_and_broken_weights():
    data = (torch.randn(4, 2), torch.tensor([0, 1, 0, 1]))
    with pytest.raises(RetainError, match="trainable parameters"):
        fisher(nn.Identity(), data)
    model = nn.Linear(2, 2)
    model.weight.data.fill_(float("nan"))
    with pytest.raises(InputError, match="'weight'"):
        fisher(model, data)


STRUCTURES = ("diagonal", "low-rank", "kronecker", "ekfac", "full")


class Counted(nn.Module):
    """Parameters that are whole numbers, and cannot be trained."""

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.arange(1, 4), requires_grad=False)
        self.layer = nn.Linear(3, 2)

    def forward(self, x):
        return self.layer(x * self.factor)


class Reduced(Categorical):
    """A loss that is already a mean."""

    def nll(self, outputs, targets):
        return super().nll(outputs, targets).mean()


@pytest.mark.parametrize("structure", STRUCTURES)
def test_odd_models_and_losses_in_every_structure(structure):
    options = {"structure": structure, "rank": 2}
    x, y = torch.randn(6, 3), torch.tensor([0, 1] * 3)
    assert set(fisher(Counted(), (x, y), **options).names if structure != "diagonal" else fisher(Counted(), (x, y))) == {"layer.weight", "layer.bias"}
    frozen = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    frozen[0].weight.requires_grad_(False)
    found = fisher(frozen, (x, y), **options)
    assert set(found if structure == "diagonal" else found.names) == {"0.bias", "1.weight", "1.bias"}
    with pytest.raises(InputError, match=r"Categorical\(\)"):
        fisher(nn.Linear(3, 2), (x, y), likelihood=nn.CrossEntropyLoss(), **options)
    with pytest.raises(InputError, match=r"already a mean|unreduced"):
        fisher(nn.Linear(3, 2), (x, y), "empirical", likelihood=Reduced(), **options)
    with pytest.raises(RetainError, match="trainable parameters"):
        fisher(nn.Identity(), (x, y), **options)
    alone = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2, track_running_stats=False))
    with pytest.raises(InputError):
        fisher(alone, (x, y), **options)
    broken = nn.Linear(3, 2)
    broken.bias.data[0] = float("nan")
    with pytest.raises(InputError, match=r"'weight'|'all'"):
        fisher(broken, (x, y), **options)


class Centred(nn.Module):
    """An answer that depends on the other samples of its batch."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x):
        return self.layer(x - x.mean(0) / 2)


def test_samples_have_to_be_answered_alone():
    with pytest.raises(InputError, match="does not depend on the others"):
        fisher(Centred(), (torch.randn(6, 3), torch.tensor([0, 1] * 3)))


def test_a_loader_that_gives_other_samples_is_refused_where_it_is_read_again():
    class Jittered(torch.utils.data.Dataset):
        def __len__(self):
            return 8

        def __getitem__(self, i):
            return torch.tensor([float(i), random.random()]), i % 2

    loader = DataLoader(Jittered(), batch_size=4)
    assert fisher(nn.Linear(2, 2), loader).n == 8
    with pytest.raises(InputError, match="same samples in every pass"):
        fisher(nn.Linear(2, 2), loader, structure="low-rank", rank=2)


def test_low_rank_keeps_the_largest_directions_and_the_diagonal():
    model, x, y = retain.models.MLP(5, 4, 3, seed=0).double(), torch.randn(30, 5).double(), torch.randint(3, (30,))
    full = fisher(model, (x, y), structure="full")
    for labels in ("exact", "sampled"):
        truth = fisher(model, (x, y), labels, structure="full", batch_size=7).matrix
        found = fisher(model, (x, y), labels, structure="low-rank", rank=4, batch_size=7)
        A = torch.cat([found.factors[name].reshape(-1, 4) for name in full.shapes])
        assert torch.allclose(torch.linalg.eigvalsh(A.T @ A), torch.linalg.eigvalsh(truth)[-4:], rtol=1e-5)
        diagonal = torch.cat([value.flatten() for value in found.diagonal().values()])
        assert torch.allclose(diagonal, truth.diagonal(), atol=1e-10)
    few = fisher(nn.Linear(2, 2, bias=False).double(), (x[:, :2], y % 2), structure="low-rank", rank=4)  # a Fisher of rank 2
    assert few.rank == 4 and few.n == 30


def test_golden_values():
    """Changes with the definition, not with the implementation."""
    model = retain.models.MLP(64, 16, 10, seed=0)
    found = {rule: fisher(model, retain.tasks.digits(), rule, samples=200, seed=0) for rule in ("exact", "sampled", "empirical", "predicted")}
    traces = {rule: round(sum(float(v.double().sum()) for v in f.values()), 4) for rule, f in found.items()}
    assert traces == pytest.approx({"exact": 5.1711, "sampled": 5.1598, "empirical": 5.3289, "predicted": 5.3365}, rel=1e-3)
