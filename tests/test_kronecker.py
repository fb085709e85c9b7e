"""Kronecker factors, EKFAC and the whole Fisher, against per-sample gradients in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_fisher import MODELS, built
from torch import nn

import retain
from retain.beliefs import Eigenbasis, Pairs
from retain.curvature import fisher
from retain.errors import InputError
from retain.likelihoods import Categorical, Gaussian


def gradients(model, x, y, likelihood, labels="exact"):
    """Every sample's and label's gradient with its weight: rows whose outer products sum to n times the Fisher."""
    rows = []
    parameters = [p for p in model.parameters() if p.requires_grad]
    for a, b in zip(x.split(1), y.split(1), strict=True):
        outputs = model(a)
        vectors = likelihood.hessian_root(outputs) if labels == "exact" else None
        for v in vectors if vectors is not None else [None]:
            value = (outputs * v).sum() if v is not None else likelihood.nll(outputs, b).sum()
            found = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
            rows.append(torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(parameters, found, strict=True)]))
    return torch.stack(rows)


def dense(P, model):
    shapes = {name: p.shape for name, p in model.named_parameters() if p.requires_grad}
    sizes = [shape.numel() for shape in shapes.values()]

    def apart(v):
        return {name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), v.split(sizes), strict=True)}

    return torch.stack([torch.cat([P.product(apart(unit))[name].flatten() for name in shapes]) for unit in torch.eye(sum(sizes)).double()])


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("labels", ["exact", "empirical"])
@pytest.mark.parametrize("name", ["mlp", "tied", "no rule", "lora", "text", "conv of one dimension", "cross-attention"])
def test_the_whole_fisher_is_the_mean_of_outer_products(name, labels):
    model, x, y, slow = built(name)
    model.eval()
    found = fisher(model, (x, y), labels, structure="full", batch_size=3)
    rows = gradients(model, x, y, Categorical(), labels)
    assert torch.allclose(dense(found, model), rows.T @ rows / len(x), rtol=1e-9, atol=1e-12)
    assert found.n == 7 and found.labels == labels and set(found.slow) == set(slow)
    diagonal = fisher(model, (x, y), labels)
    assert all(torch.allclose(value, diagonal[key], atol=1e-12) for key, value in found.diagonal().items())


@given(widths=st.lists(st.integers(1, 5), min_size=2, max_size=4), bias=st.booleans(), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_one_sample_and_one_label_is_a_product(widths, bias, seed):
    """With one gradient there is nothing to average: the factors hold every layer's block exactly."""
    torch.manual_seed(seed)
    layers = [layer for a, b in zip(widths, [*widths[1:], 2], strict=True) for layer in (nn.Linear(a, b, bias), nn.Tanh())]
    model, x, y = nn.Sequential(*layers[:-1]).double(), torch.randn(1, widths[0]).double(), torch.randint(2, (1,))
    rows = gradients(model, x, y, Categorical(), "empirical")
    full = rows.T @ rows
    for structure in ("kronecker", "ekfac"):
        M = dense(fisher(model, (x, y), "empirical", structure=structure), model)
        start = 0
        for layer in model:
            size = sum(p.numel() for p in layer.parameters())
            block = slice(start, start + size)
            assert torch.allclose(M[block, block], full[block, block], rtol=1e-9, atol=1e-12)
            assert float(M[block, start + size :].abs().sum()) == 0
            start += size


def test_a_deep_linear_net_with_squared_error_is_a_product():
    """Gaussian labels: the output gradients do not depend on the input, so the factors are exact for many samples (Bernacchia et al. 2018)."""
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 2, bias=False)).double()
    x, y = torch.randn(20, 3).double(), torch.randn(20, 2).double()
    found = fisher(model, (x, y), structure="kronecker", likelihood=Gaussian(0.7), batch_size=6)
    rows = gradients(model, x, y, Gaussian(0.7))
    full, M = rows.T @ rows / 20, dense(found, model)
    assert torch.allclose(M[:12, :12], full[:12, :12]) and torch.allclose(M[12:, 12:], full[12:, 12:])


def test_ekfac_is_the_nearest_in_its_basis_and_nearer_than_kfac():
    model, x, y = retain.models.MLP(5, 6, 3, seed=0).double(), torch.randn(40, 5).double(), torch.randint(3, (40,))
    kfac, ekfac = (fisher(model, (x, y), structure=structure, batch_size=7) for structure in ("kronecker", "ekfac"))
    full = dense(fisher(model, (x, y), structure="full"), model)
    start, off = 0, {"kfac": 0.0, "ekfac": 0.0}
    M, N = dense(kfac, model), dense(ekfac, model)
    for name, layer in ekfac.layers.items():
        size = layer.shape.numel() + layer.shape[0]
        part = slice(start, start + size)
        block, truth = layer.block, full[part, part]
        assert isinstance(block, Eigenbasis) and isinstance(kfac.layers[name].block, Pairs)
        off["kfac"] += float((M[part, part] - truth).square().sum())
        off["ekfac"] += float((N[part, part] - truth).square().sum())
        assert torch.allclose(torch.trace(N[part, part]), torch.trace(truth))
        start += size
    assert off["ekfac"] < off["kfac"]


def test_layers_at_many_positions():
    """Equal inputs at all positions: both ways of sharing are then exact for one sample."""
    model = nn.Sequential(nn.Linear(3, 2), nn.Flatten(), nn.Linear(8, 2)).double()
    model[2].requires_grad_(False)
    x, y = torch.randn(1, 1, 3).double().expand(1, 4, 3), torch.zeros(1).long()
    rows = gradients(model, x, y, Categorical(), "empirical")
    reduce = dense(fisher(model, (x, y), "empirical", structure="kronecker", sharing="reduce"), model)
    assert torch.allclose(reduce, rows.T @ rows)
    expand = fisher(model, (x, y), "empirical", structure="kronecker", sharing="expand").layers["0.weight"].block.pairs[0]
    hidden = model[0](x)
    (g,) = torch.autograd.grad(nn.functional.cross_entropy(model[2](model[1](hidden)), y), hidden)
    assert torch.allclose(expand[0], g[0].T @ g[0])  # G sums over positions
    a = torch.cat([x[0, 0], torch.ones(1).double()])
    assert torch.allclose(expand[1], torch.outer(a, a))  # A is their mean


def test_what_has_no_block_is_in_the_diagonal():
    for name in ("text", "tied text", "depthwise", "conv", "transformer", "gru", "no rule"):
        model, x, y, slow = built(name)
        found = fisher(model, (x, y), structure="kronecker")
        assert set(found.names) == {n for n, p in model.named_parameters() if p.requires_grad} and set(found.slow) == set(slow)
        diagonal = fisher(model, (x, y))
        assert all(torch.allclose(value, diagonal[key]) for key, value in found.rest.values.items())
        fisher(model, (x, y), structure="ekfac")
    assert MODELS["gru"]


def test_sampled_labels_are_unbiased():
    model, x, y = retain.models.MLP(4, 3, seed=0).double(), torch.randn(30, 4).double(), torch.zeros(30).long()
    exact, sampled = (fisher(model, (x, y), labels, structure="kronecker", draws=draws) for labels, draws in (("exact", 1), ("sampled", 3000)))
    a, b = (
        exact.layers["layers.0.weight" if "layers.0.weight" in exact.layers else next(iter(exact.layers))].block.pairs[0],
        next(iter(sampled.layers.values())).block.pairs[0],
    )
    assert torch.allclose(a[0], b[0], rtol=0.1, atol=0.01) and torch.allclose(a[1], b[1])


def test_bad_input():
    x, y = torch.randn(4, 3), torch.zeros(4).long()
    with pytest.raises(InputError, match="'kronecker' or 'diagonal' for more than 20,000"):
        fisher(nn.Linear(3, 6000), (x, y), "sampled", structure="full")
    with pytest.raises(InputError, match="expand"):
        fisher(nn.Linear(3, 2), (x, y), structure="kronecker", sharing="both")
    broken = nn.Linear(3, 2)
    broken.weight.data.fill_(float("inf"))
    for structure in ("kronecker", "full"):
        with pytest.raises(InputError, match="finite"):
            fisher(broken, (x, y), structure=structure)


class Wandering(nn.Module):
    """A layer that is used once or twice, as the data say."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x):
        h = self.layer(x)
        return self.head(self.layer(h) if float(x[0, 0]) > 0 else h)


def test_a_layer_used_otherwise_in_a_later_batch():
    x = torch.cat([torch.randn(4, 3).abs().neg(), torch.randn(4, 3).abs()]).double()
    y, model = torch.arange(8) % 2, Wandering().double()
    with pytest.raises(InputError, match="used in another way"):
        fisher(model, (x, y), structure="kronecker", batch_size=4)
    found = fisher(model, (x, y), "empirical", batch_size=4)  # one by one
    rows = gradients(model, x, y, Categorical(), "empirical")
    assert torch.allclose(torch.cat([value.flatten() for value in found.values()]), rows.square().mean(0)) and set(found.slow) == {"layer.weight", "layer.bias"}
