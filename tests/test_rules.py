"""Every closed form against a per-sample loop in float64, over shapes, groups, strides and ties drawn at random."""

import pytest
import torch
from conftest import fisher_by_loop
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from retain.curvature import fisher, sensitivity
from retain.curvature.pieces import Dense, Outer, Rows, total_power
from retain.likelihoods import Categorical

RULE = st.sampled_from(["exact", "empirical"])


def check(model, x, rule="exact", slow=()):
    """The Fisher of the model equals the loop's to 1e-10, by closed forms alone."""
    model, y = model.double().eval(), torch.arange(len(x)) % 3
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    found, expected = fisher(model, (x, y), rule, batch_size=2), fisher_by_loop(model, x, y, Categorical(), rule)
    assert found.slow == slow
    for name, value in expected.items():
        assert torch.allclose(found[name], value, rtol=1e-10, atol=1e-10 * max(1e-3, float(value.max()))), name


class Into(nn.Module):
    """Layers, and a linear layer on their first entries."""

    def __init__(self, *layers):
        super().__init__()
        self.layers, self.head = nn.Sequential(*layers), nn.Linear(6, 3)

    def forward(self, x):
        h = self.layers(x)
        h = (h[0] if isinstance(h, tuple) else h).flatten(1).tanh()
        return self.head(nn.functional.pad(h, (0, 6))[:, :6] + h.sum(1, keepdim=True))


@given(
    dimensions=st.integers(1, 3),
    groups=st.sampled_from([1, 2, 4]),
    wide=st.integers(1, 2),
    kernel=st.lists(st.integers(1, 3), min_size=3, max_size=3),
    stride=st.lists(st.integers(1, 2), min_size=3, max_size=3),
    padding=st.lists(st.integers(0, 1), min_size=3, max_size=3),
    dilation=st.integers(1, 2),
    bias=st.booleans(),
    mode=st.sampled_from(["zeros", "reflect", "circular", "replicate"]),
    rule=RULE,
)
@settings(max_examples=60, deadline=None)
def test_convolutions(dimensions, groups, wide, kernel, stride, padding, dilation, bias, mode, rule):
    torch.manual_seed(1)
    kind, d = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dimensions - 1], dimensions
    layer = kind(4, 4 * wide, kernel[:d], stride[:d], padding[:d], dilation, groups=groups, bias=bias, padding_mode=mode)
    check(Into(layer), torch.randn(3, 4, *(6, 5, 7)[:d]).double(), rule)


@given(
    dimensions=st.integers(1, 3),
    groups=st.sampled_from([1, 2]),
    kernel=st.lists(st.integers(1, 3), min_size=3, max_size=3),
    stride=st.integers(1, 3),
    padding=st.integers(0, 1),
    more=st.integers(0, 2),
    dilation=st.integers(1, 3),
    bias=st.booleans(),
    rule=RULE,
)
@settings(max_examples=60, deadline=None)
def test_transposed_convolutions(dimensions, groups, kernel, stride, padding, more, dilation, bias, rule):
    torch.manual_seed(1)
    kind, d = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[dimensions - 1], dimensions
    more = min(more, max(stride, dilation) - 1)
    layer = kind(2, 4, kernel[:d], stride, padding, more, groups, bias, dilation)
    check(Into(layer), torch.randn(3, 2, *(4, 3, 3)[:d]).double(), rule)


@given(positions=st.integers(1, 40), wide=st.integers(1, 5), out=st.integers(1, 40), bias=st.booleans(), rule=RULE)
@settings(max_examples=40, deadline=None)
def test_linear_layers_at_positions(positions, wide, out, bias, rule):
    torch.manual_seed(1)
    check(Into(nn.Linear(wide, out, bias)), torch.randn(3, positions, wide).double(), rule)
    check(Into(nn.Linear(wide, out, bias)), torch.randn(3, 2, positions, wide).double(), rule)


@given(width=st.sampled_from([2, 4, 6]), positions=st.integers(2, 4), which=st.integers(0, 6), rule=RULE)
@settings(max_examples=40, deadline=None)
def test_norms(width, positions, which, rule):
    torch.manual_seed(1)
    channels = (nn.GroupNorm(2, width), nn.BatchNorm1d(width), nn.GroupNorm(1, width))
    last = (nn.LayerNorm(positions), nn.LayerNorm([width, positions], bias=False), nn.RMSNorm(positions), nn.RMSNorm([width, positions]))
    layer = (*channels, *last)[which]
    nn.init.normal_(layer.weight)
    check(Into(layer), torch.randn(3, width, positions).double(), rule)


@given(
    kind=st.sampled_from([nn.RNN, nn.LSTM, nn.GRU]),
    layers=st.integers(1, 2),
    both=st.booleans(),
    first=st.booleans(),
    bias=st.booleans(),
    steps=st.integers(1, 4),
)
@settings(max_examples=30, deadline=None)
def test_recurrent_layers(kind, layers, both, first, bias, steps):
    torch.manual_seed(1)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Into(kind(2, 3, layers, bias=bias, batch_first=first, bidirectional=both))

        def forward(self, x):
            cell = self.inner.layers[0]
            out = cell(x if first else x.transpose(0, 1))[0]
            out = (out if first else out.transpose(0, 1)).flatten(1)
            return self.inner.head(nn.functional.pad(out, (0, 6))[:, :6] + out.sum(1, keepdim=True))

    check(Net(), torch.randn(3, steps, 2).double())


@given(heads=st.sampled_from([1, 2]), length=st.integers(1, 4), first=st.booleans(), bias=st.booleans(), mask=st.booleans(), other=st.booleans())
@settings(max_examples=30, deadline=None)
def test_attention(heads, length, first, bias, mask, other):
    torch.manual_seed(1)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.attend, self.head = nn.MultiheadAttention(4, heads, bias=bias, batch_first=first), nn.Linear(4, 3)
            if bias:
                nn.init.normal_(self.attend.in_proj_bias)

        def forward(self, x):
            q = x if first else x.transpose(0, 1)
            k = q.flip(0 if not first else 1) if other else q
            hide = torch.triu(torch.full((length, length), -torch.inf, dtype=x.dtype), 1) if mask else None
            out = self.attend(q, k, k, attn_mask=hide)[0]
            return self.head((out if first else out.transpose(0, 1)).sum(1))

    check(Net(), torch.randn(3, length, 4).double())


@given(uses=st.integers(1, 3), tied=st.booleans(), padding=st.booleans(), length=st.integers(1, 5), rule=RULE)
@settings(max_examples=30, deadline=None)
def test_tables_and_ties(uses, tied, padding, length, rule):
    """A table, a layer used several times, and the table's transpose as the last layer."""
    torch.manual_seed(1)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.layer, self.head = nn.Embedding(5, 4, padding_idx=0 if padding else None), nn.Linear(4, 4), nn.Linear(4, 5, bias=False)
            if tied:
                self.head.weight = self.table.weight

        def forward(self, x):
            h = self.table(x.round().long().abs() % 5)
            for _ in range(uses):
                h = self.layer(h).tanh()
            return self.head(h.sum(1))[:, :3]

    check(Net(), torch.randn(4, length).double() * 3, rule)


@given(uses=st.integers(1, 3), groups=st.sampled_from([1, 2]))
@settings(max_examples=10, deadline=None)
def test_convolutions_used_again(uses, groups):
    torch.manual_seed(1)
    layer = nn.Conv2d(2, 2, 3, padding=1, groups=groups)
    check(Into(*[part for _ in range(uses) for part in (layer, nn.Tanh())]), torch.randn(3, 2, 4, 4).double())


@given(
    K=st.integers(1, 5),
    B=st.integers(1, 4),
    S=st.integers(1, 2),
    M=st.integers(1, 40),
    P=st.integers(1, 30),
    N=st.integers(1, 6),
    exponent=st.sampled_from([1, 2]),
)
@settings(max_examples=60, deadline=None)
def test_sums_of_outer_products_in_all_their_ways(K, B, S, M, P, N, exponent):
    g, a = torch.randn(K, B, S, M, P).double(), torch.randn(B, S, P, N).double()
    whole = torch.einsum("kbsmp,bspn->kbsmn", g, a)
    piece = Outer(g, a, torch.Size([S * M, N]))
    expected = whole.abs().pow(exponent).sum((0, 1)).reshape(S * M, N)
    assert torch.allclose(piece.power(exponent), expected, rtol=1e-9, atol=1e-12)
    assert torch.allclose(piece.rows(slice(0, B)), whole.reshape(K, B, S * M, N))
    flipped = Outer(g, a, torch.Size([S * N, M]), transposed=True)
    assert torch.allclose(flipped.power(exponent), expected.reshape(S, M, N).transpose(1, 2).reshape(S * N, M), rtol=1e-9, atol=1e-12)
    again = total_power([(None, piece), (None, Outer(-2 * g, a, piece.shape))], piece.shape, exponent)
    assert torch.allclose(again, expected, rtol=1e-9, atol=1e-12)  # g - 2g
    other = total_power([(None, piece), (None, Dense(whole.reshape(K, B, S * M, N)))], piece.shape, exponent)
    assert torch.allclose(other, 2**exponent * expected, rtol=1e-9, atol=1e-12)


def test_rows_met_several_times_are_summed_before_they_are_squared():
    g, index = torch.ones(1, 1, 3, 2), torch.tensor([[1, 1, 2]])
    piece = Rows(g, index, torch.Size([3, 2]))
    assert piece.power(2)[:, 0].tolist() == [0, 4, 1] == piece.rows(slice(0, 1)).square().sum((0, 1))[:, 0].tolist()


@pytest.mark.parametrize("slow", [False, True])
def test_absolute_gradients(slow):
    """What MAS needs: the mean of absolute values per sample."""
    model = nn.Sequential(nn.Linear(3, 4), nn.PReLU() if slow else nn.Tanh(), nn.Linear(4, 2)).double()
    x, y = torch.randn(6, 3).double(), torch.zeros(6).long()
    found = sensitivity(model, (x, y), lambda outputs: 2 * outputs, batch_size=4)
    for name, p in model.named_parameters():
        rows = [torch.autograd.grad(model(row[None]).square().sum(), p)[0].abs() for row in x]
        assert torch.allclose(found[name], torch.stack(rows).mean(0), rtol=1e-9)
