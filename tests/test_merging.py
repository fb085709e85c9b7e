"""Merging: means against closed forms, alignment against permutations that are known."""

import sys

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

import retain
from retain import Task, models, tasks
from retain.diagnosis import barrier
from retain.errors import InputError, RetainError
from retain.figures import draw
from retain.likelihoods import Gaussian
from retain.merging import align, aligned_barrier, average, fisher_average, symmetries
from retain.merging.symmetries import Example


def shaken(model, seed=0):
    """Weights and statistics of which no two are equal, so that no wrong permutation goes unseen."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * p.std(correction=0).clamp(0.05) * torch.randn(p.shape, generator=generator, dtype=p.dtype))
        for name, b in model.named_buffers():
            if name.endswith("running_mean"):
                b.add_(torch.randn(b.shape, generator=generator, dtype=b.dtype) * 0.1)
            elif name.endswith("running_var"):
                b.mul_(torch.rand(b.shape, generator=generator, dtype=b.dtype) + 0.5)
    return model


def orders(found, seed=0):
    generator = torch.Generator().manual_seed(seed)
    drawn = {name: torch.randperm(group.size, generator=generator) for name, group in found.groups.items()}
    return {name: order.roll(1) if torch.equal(order, torch.arange(len(order))) else order for name, order in drawn.items()}


def gap(first, second, inputs):
    """The largest difference of outputs in double precision, over the largest output."""
    with torch.no_grad():
        a, b = (models.copy(model).double().eval()(inputs.double()) for model in (first, second))
    return float((a - b).abs().max() / a.abs().max())


# means


def test_the_mean_of_linear_models_answers_the_mean():
    torch.manual_seed(0)
    nets = [nn.Linear(5, 3).double() for _ in range(3)]
    x = torch.randn(7, 5).double()
    torch.testing.assert_close(average(nets)(x), sum(net(x) for net in nets) / 3, rtol=0, atol=1e-14)
    torch.testing.assert_close(average(nets, weights=[1, 0, 3])(x), (nets[0](x) + 3 * nets[2](x)) / 4, rtol=0, atol=1e-14)
    assert torch.equal(average([nets[0]])(x), nets[0](x))


def test_buffers_are_averaged_and_counts_are_the_first_ones():
    first, second = (nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)) for _ in range(2))
    second[1].running_var += 2.0
    second[1].num_batches_tracked += 5
    kept = models.copy(first)
    merged = average([first, nn.DataParallel(second)], weights=[1, 3])
    assert torch.equal(merged[1].running_var, torch.full((4,), 2.5)) and int(merged[1].num_batches_tracked) == 0
    second[1].running_mean.fill_(float("nan"))
    assert bool(torch.isfinite(average([first, second], weights=[1, 0])[1].running_mean).all())
    assert torch.equal(first[0].weight, kept[0].weight) and not torch.equal(merged[0].weight, first[0].weight)


def test_means_refuse_what_does_not_fit():
    net = models.MLP(4, 3, 2, seed=0)
    with pytest.raises(InputError, match=r"models\[1\].*'layers.fc2.weight'"):
        average([net, models.MLP(4, 3, 5, seed=0)])
    with pytest.raises(InputError, match=r"'layers.fc1.weight' of shape \[3, 4\]"):
        average([net, models.MLP(4, 6, 2, seed=0)])
    with pytest.raises(InputError, match=r"'1.running_mean'"):
        average([nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, track_running_stats=False))])
    broken = models.copy(net)
    broken.layers.fc1.weight.data[0, 0] = float("nan")
    with pytest.raises(InputError, match=r"models\[1\].*NaN"):
        average([net, broken])
    for models_, weights, said in (
        ([], None, "at least one model"),
        (net, None, "a single model"),
        ([net, net], [1], "2 models"),
        ([net, net], [1, -1], "at least 0"),
        ([net, net], [0, 0], "above 0"),
        ([net, net], [1, float("nan")], "finite"),
    ):
        with pytest.raises(InputError, match=said):
            average(models_, weights)


# Fisher


def regression(n, w, seed):
    """Orthogonal inputs, noisy targets and their least-squares solution."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.linalg.qr(torch.randn(n, len(w), generator=generator).double())[0] * torch.tensor([1.0, 3.0, 0.2]).double() * (1 + seed)
    y = x @ w[:, None] + 0.3 * torch.randn(n, 1, generator=generator).double()
    net = nn.Linear(len(w), 1, bias=False).double()
    net.weight.data = torch.linalg.lstsq(x, y).solution.T.clone()
    return x, y, net


def test_two_regressions_become_the_joint_one():
    w = torch.tensor([1.0, -2.0, 0.5]).double()
    (x1, y1, first), (x2, y2, second) = regression(20, w, 0), regression(50, -w, 1)
    parts = [Task((x, y), likelihood=Gaussian(sigma=0.3)) for x, y in ((x1, y1), (x2, y2))]
    joint = torch.linalg.lstsq(torch.cat([x1, x2]), torch.cat([y1, y2])).solution.T
    merged = fisher_average([first, second], parts, weights=[20, 50], floor=0)
    torch.testing.assert_close(merged.weight.data, joint, rtol=0, atol=1e-12)
    near = fisher_average([first, second], parts, weights=[20, 50])
    torch.testing.assert_close(near.weight.data, joint, rtol=0, atol=1e-3)
    assert float((average([first, second], weights=[20, 50]).weight.data - joint).abs().max()) > 0.1


def test_two_softmax_models_by_hand():
    torch.manual_seed(0)
    nets = [nn.Linear(2, 3).double() for _ in range(2)]
    data = [(torch.randn(6, 2).double() * (1 + i), torch.randint(3, (6,))) for i in range(2)]
    values = []
    for net, (x, _) in zip(nets, data, strict=True):
        p = net(x).softmax(1).detach()
        values.append({"weight": torch.einsum("nc,nd->cd", p * (1 - p), x**2) / 6, "bias": (p * (1 - p)).mean(0)})
    floor = 0.01 * torch.cat([value.flatten() for found in values for value in found.values()]).mean()
    merged = fisher_average(nets, data, weights=[1, 2], floor=0.01)
    for name in ("weight", "bias"):
        a, b = (dict(net.named_parameters())[name].detach() for net in nets)
        f, g = values[0][name] + floor, 2 * (values[1][name] + floor)
        torch.testing.assert_close(dict(merged.named_parameters())[name].detach(), (f * a + g * b) / (f + g), rtol=0, atol=1e-12)
    ready = fisher_average(nets, [retain.fisher(net, part) for net, part in zip(nets, data, strict=True)], weights=[1, 2], floor=0.01)
    assert torch.equal(ready.weight, merged.weight)


@pytest.mark.parametrize("floor", [0.0, 1e-6])
def test_what_no_task_says_anything_about_is_averaged_plainly(floor):
    nets = [nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).double() for _ in range(2)]
    nets[0][1].weight.requires_grad_(False)
    nets[1][1].weight.data.fill_(3.0)
    nets[1][1].running_mean.fill_(4.0)
    for i, net in enumerate(nets):
        net[0].weight.data.fill_(float(i))
    x = torch.randn(8, 2, generator=torch.Generator().manual_seed(0)).double()
    x[:, 1] = 0  # an input that is never on
    merged = fisher_average(nets, [(x, torch.zeros(8, dtype=torch.long)), (2 * x, torch.ones(8, dtype=torch.long))], weights=[1, 3], floor=floor)
    torch.testing.assert_close(merged[0].weight[:, 1].detach(), torch.full((2,), 0.75).double(), rtol=0, atol=1e-12)
    assert float((merged[0].weight[:, 0].detach() - 0.75).abs().min()) > 0.01
    assert torch.equal(merged[1].running_mean, torch.full((2,), 3.0).double())


def test_a_model_that_is_sure_wins_and_equal_models_stay():
    net = models.MLP(4, 3, 2, seed=0)
    other = models.copy(net)
    shaken(other)
    sure, unsure = ({name: torch.full_like(p, value) for name, p in net.named_parameters()} for value in (1.0, 0.0))
    merged = fisher_average([net, other], [sure, unsure], floor=0)
    assert all(torch.equal(p, q) for p, q in zip(merged.parameters(), net.parameters(), strict=True))
    same = fisher_average([net, net], [sure, {name: 3 * f for name, f in sure.items()}])
    assert all(torch.equal(p, q) for p, q in zip(same.parameters(), net.parameters(), strict=True))


def test_fishers_that_do_not_fit_are_refused():
    net = models.MLP(4, 3, 2, seed=0)
    good = {name: torch.ones_like(p) for name, p in net.named_parameters()}
    for tasks_, said in (
        ([good], "for each of the 2 models"),
        ([good, {"fc.weight": torch.ones(1)}], r"tasks\[1\].*fc.weight"),
        ([good, {}], r"tasks\[1\].*none"),
        ([good, good | {"layers.fc1.bias": torch.ones(4)}], r"'layers.fc1.bias' of shape \[3\]"),
        ([good, good | {"layers.fc1.bias": -torch.ones(3)}], "at least 0"),
        ([good, good | {"layers.fc1.bias": torch.full((3,), torch.inf)}], "finite"),
    ):
        with pytest.raises(InputError, match=said):
            fisher_average([net, net], tasks_)
    with pytest.raises(InputError, match="floor"):
        fisher_average([net, net], [good, good], floor=-1)


# symmetries


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.inner, self.outer, self.head = nn.Linear(5, 8), nn.Linear(8, 12), nn.Linear(12, 8), nn.Linear(8, 3)

    def forward(self, x):
        x = self.stem(x)
        x += self.outer(F.gelu(self.inner(x)))
        return self.head(x)


class Twice(nn.Module):
    """A layer that is used twice, so that its rows and columns move together."""

    def __init__(self):
        super().__init__()
        self.stem, self.again, self.head = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        x = self.stem(x).tanh()
        return self.head(self.again(self.again(x).tanh()).tanh())


class Heads(nn.Module):
    """Attention in plain torch: heads may change places, what lies within them may not."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Linear(5, 12), nn.LayerNorm(12)
        self.q, self.k, self.v, self.out = (nn.Linear(12, 12) for _ in range(4))
        self.head = nn.Linear(12, 3)

    def forward(self, x):
        x = self.norm(self.stem(x))
        q, k, v = (layer(x).view(*x.shape[:2], 4, 3).transpose(1, 2) for layer in (self.q, self.k, self.v))
        a = (q @ k.transpose(-2, -1) / 3**0.5).softmax(-1) @ v
        return self.head((x + self.out(a.transpose(1, 2).reshape(x.shape))).mean(1))


class Mixed(nn.Module):
    """Calls without a rule, ties across them, and channels side by side."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.head, self.spare = nn.Linear(5, 6), nn.Linear(6, 7), nn.Linear(6, 4), nn.Linear(11, 3), nn.Linear(9, 9)

    def forward(self, x):
        x = torch.roll(self.a(x).relu(), 1, -1)
        return self.head(torch.cat([self.b(x), self.c(x)], 1))


class Hidden(torch.autograd.Function):
    """A function that no mode sees."""

    @staticmethod
    def forward(ctx, x):
        return x.flip(-1) if x.shape[-1] == 6 else x


class Unseen(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Linear(5, 6), nn.Linear(6, 7), nn.Linear(7, 3)
        self.factor = nn.Parameter(torch.rand(6))

    def forward(self, x):
        return self.head(self.b(x.new_tensor(Hidden.apply(self.a(x).relu()).numpy()) * self.factor).relu())


class Picked(nn.Module):
    """Picking positions leaves the units alone, picking units does not."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Linear(5, 6), nn.Linear(6, 8), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.b(self.a(x).relu()[:, 1:3, None].squeeze(2)[:, 0]).relu()[..., :4])


def convolutional():
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, bias=False),
        nn.BatchNorm2d(6),
        nn.PReLU(6),
        nn.Conv2d(6, 12, 3, groups=6, padding=1, padding_mode="circular"),
        nn.GroupNorm(1, 12),
        nn.MaxPool2d(2),
        nn.ConvTranspose2d(12, 5, 2),
        nn.InstanceNorm2d(5, affine=True),
        nn.Hardswish(),
        nn.Upsample(scale_factor=2),
        nn.Flatten(),
        nn.Linear(5 * 64, 3),
    )


FOUND_OUT = "permuting it changes the outputs"
ZOO = {
    "mlp": (lambda: models.MLP(5, 8, 7, 3, seed=0), (5,), [8, 7]),
    "residual": (Residual, (5,), [8, 12]),
    "twice": (Twice, (5,), [8]),
    "heads": (Heads, (4, 5), [12, 4]),
    "mixed": (Mixed, (5,), []),
    "unseen": (Unseen, (5,), [7]),
    "convolutional": (convolutional, (2, 8, 8), [6, 5]),
    "groups": (
        lambda: nn.Sequential(
            nn.Conv1d(2, 8, 3), nn.GroupNorm(4, 8), nn.ReLU(), nn.Conv1d(8, 12, 3, groups=2), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(12, 3)
        ),
        (2, 9),
        [2],
    ),
    "group norm": (lambda: nn.Sequential(nn.Conv1d(2, 8, 3), nn.GroupNorm(4, 8), nn.ReLU(), nn.Flatten(), nn.Linear(56, 3)), (2, 9), [4]),
    "picked": (Picked, (4, 5), [6]),
    "sequence": (lambda: nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6), nn.Linear(6, 4), nn.Flatten(), nn.Linear(16, 3)), (4, 5), [6]),
    "weight norm": (lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(5, 6)), nn.ReLU(), nn.Linear(6, 3)), (5,), [6]),
    "resnet": (lambda: models.ResNet(8, 4, seed=0), (1, 12, 12), [4, 4, 8, 8, 16, 16]),
    "resnet18": (torchvision.models.resnet18, (3, 32, 32), [64] * 3 + [128] * 3 + [256] * 3 + [512] * 3),
    "efficientnet-lite0": (lambda: models.pretrained("efficientnet-lite0", weights=False)[0], (3, 64, 64), None),
}


@pytest.mark.parametrize("name", ZOO)
def test_every_permutation_of_a_group_leaves_the_function(name):
    make, shape, sizes = ZOO[name]
    torch.manual_seed(0)
    model, x = shaken(make()), torch.rand(8, *shape)
    found = symmetries(model, x)
    assert sizes is None or [group.size for group in found.groups.values()] == sizes
    assert name == "unseen" or FOUND_OUT not in found.left_out.values()  # the rules are right, not rescued by trying
    chosen = orders(found)
    moved = found.permuted(model, chosen)
    assert gap(model, moved, x) < 1e-10
    assert moved is not model and all(
        not torch.equal(moved.get_parameter(m.name), model.get_parameter(m.name)) for g in found.groups.values() for m in g.members if "running" not in m.name
    )
    aligned = align(moved, model, x)
    assert gap(model, aligned.model, x) < 1e-10
    assert aligned.distance[1] == 0 and (not sizes or aligned.distance[0] > 0.1)
    for group, order in chosen.items():
        assert torch.equal(order[aligned.permutations[group]], torch.arange(len(order)))
    for p, q in zip(model.state_dict().values(), aligned.model.state_dict().values(), strict=True):
        assert torch.equal(p, q)  # buffers came along


def test_an_efficientnet_has_a_group_for_every_width():
    model = models.pretrained("efficientnet-lite0", weights=False)[0]
    found = symmetries(model, torch.rand(2, 3, 64, 64))
    assert not found.left_out and len(found.groups) == 24
    stream = {member.name for member in found.groups["blocks.2.0.conv_pwl"].members}
    assert {"blocks.2.0.bn3.running_var", "blocks.2.1.conv_pw.weight", "blocks.3.0.conv_pw.weight"} <= stream
    expanded = {(member.name, member.axis) for member in found.groups["blocks.1.0.conv_pw"].members}
    assert {("blocks.1.0.conv_pw.weight", 0), ("blocks.1.0.conv_dw.weight", 0), ("blocks.1.0.conv_pwl.weight", 1)} <= expanded


def test_a_channel_becomes_a_run_of_positions():
    found = symmetries(nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.Linear(3 * 16, 2)), torch.rand(4, 1, 6, 6))
    assert [tuple(member) for member in found.groups["0"].members] == [("0.weight", 0, 1), ("0.bias", 0, 1), ("2.weight", 1, 16)]


def test_what_cannot_be_followed_is_left_and_listed():
    found = symmetries(Mixed(), torch.rand(4, 5))
    assert found.left_out["a.weight"] == "'roll' is not followed" and "cat" in found.left_out["b.bias"]
    assert found.left_out["spare.weight"] == "not used on the example" and "'roll' is not followed" in found.table().note
    transformer = nn.Sequential(nn.Linear(5, 8), nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Linear(8, 3))
    within = symmetries(transformer, torch.rand(4, 6, 5))
    assert [group.size for group in within.groups.values()] == [16] and "multi_head" in within.left_out["1.self_attn.in_proj_weight"]


def test_what_is_followed_wrongly_is_found_out():
    torch.manual_seed(0)
    found = symmetries(Unseen(), torch.rand(8, 5))
    assert [group.size for group in found.groups.values()] == [7]


def test_a_rule_that_is_wrong_costs_the_symmetry(monkeypatch):
    """Were rolling taken for element-wise, trying would show that it is not."""
    from retain.merging.rules import RULES

    monkeypatch.setitem(RULES, "roll", RULES["relu"])
    torch.manual_seed(0)
    found = symmetries(Mixed(), torch.rand(8, 5))
    assert not found.groups and found.left_out["a.weight"] == FOUND_OUT


class Weighed(nn.Module):
    """Units that meet numbers made on the way, and a change of shape in place."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        x = self.b((self.a(x) * torch.linspace(0.5, 1.5, 8, dtype=x.dtype)).relu()).relu()
        return self.head(x.t_().t())


def test_what_meets_other_tensors_or_is_turned_in_place_stays():
    found = symmetries(Weighed(), torch.rand(8, 5))  # as many samples as units
    assert not found.groups and found.left_out["a.weight"] == "'linspace' is not followed" and found.left_out["head.weight"] == "'t' is not followed"


def test_outputs_that_do_not_compete_do_not_hide_the_others(monkeypatch):
    from retain.merging.rules import RULES

    monkeypatch.setitem(RULES, "roll", RULES["relu"])
    torch.manual_seed(0)
    part = Task((torch.rand(8, 5), torch.arange(8) % 2), active=(0, 1))
    assert not symmetries(Mixed(), part).groups


def test_the_orders_that_are_tried_are_others():
    from retain.merging.symmetries import _another

    assert all(_another(size, i).tolist() != list(range(size)) == sorted(_another(size, i).tolist()) for size in (2, 3, 9) for i in range(20))


def test_permutations_go_with_other_tensors_by_name():
    digits = tasks.digits()
    net = models.MLP(64, 8, 10, seed=0)
    found = symmetries(net, digits)
    chosen = orders(found)
    fisher = retain.fisher(net, digits, samples=100)
    again = retain.fisher(found.permuted(net, chosen), digits, samples=100)
    for name, value in found.apply(fisher, chosen).items():
        torch.testing.assert_close(value, again[name], rtol=1e-4, atol=1e-8)
    with pytest.raises(InputError, match=r"layers.fc1.*'fc1'"):
        found.apply(fisher, {"fc1": torch.arange(8)})
    with pytest.raises(InputError, match="once"):
        found.apply(fisher, {"layers.fc1": torch.zeros(8, dtype=torch.long)})


# alignment


def test_alignment_is_the_best_of_all_permutations():
    from itertools import permutations

    net, other = models.MLP(3, 5, 2, seed=0), models.MLP(3, 5, 2, seed=1)
    found = align(net, other, torch.rand(8, 3))
    groups = symmetries(net, torch.rand(8, 3))

    def distance(order):
        moved = groups.permuted(net, {"layers.fc1": torch.tensor(order)})
        return sum(float((p - q).detach().double().square().sum()) for p, q in zip(moved.parameters(), other.parameters(), strict=True)) ** 0.5

    assert found.distance[1] == pytest.approx(min(distance(order) for order in permutations(range(5))), rel=1e-6)
    assert found.distance[0] == pytest.approx(distance(range(5)), rel=1e-6)


def test_the_better_of_two_starts_is_taken():
    """The order that there is, or one grown from the inputs: each is the better one somewhere."""
    from scipy.optimize import linear_sum_assignment

    from retain.merging.align import _Matching

    groups, better = symmetries(models.MLP(5, 8, 8, 8, 3, seed=0), torch.rand(8, 5)).groups, set()
    for seed in range(10):
        ref, own = (models.MLP(5, 8, 8, 8, 3, seed=2 * seed + i).double() for i in (0, 1))
        weights, ends = [{name: p.detach() for name, p in net.named_parameters()} for net in (ref, own)], []
        for grown in (False, True):
            matching = _Matching(groups, *weights, linear_sum_assignment)
            if grown:
                matching.grow()
            matching.climb(100, 0)
            ends.append(sum(float((p - matching.now[name]).square().sum()) for name, p in weights[0].items()) ** 0.5)
        assert align(own, ref, torch.rand(8, 5)).distance[1] == pytest.approx(min(ends), rel=1e-12)
        better.add(ends.index(min(ends)))
    assert better == {0, 1}


def test_noisy_copies_are_matched_unit_by_unit():
    torch.manual_seed(0)
    net, x = models.ResNet(14, 8, seed=0), torch.rand(8, 1, 12, 12)
    found = symmetries(net, x)
    chosen = orders(found)
    aligned = align(shaken(found.permuted(net, chosen)), net, x)
    assert all(torch.equal(order[aligned.permutations[name]], torch.arange(len(order))) for name, order in chosen.items())
    assert all(before < 0.7 and after > 0.98 for before, after in aligned.similarity.values())


def test_the_model_and_the_generators_are_left_alone():
    digits = tasks.digits()
    net, other = models.ResNet(8, 4, seed=0).train(), models.ResNet(8, 4, seed=1)
    kept, state = models.copy(net), torch.get_rng_state()
    found = align(net, other, (torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.zeros(16, dtype=torch.long)), sweeps=1)
    assert torch.equal(torch.get_rng_state(), state) and net.training and found.model.training and found.sweeps == 1
    assert all(torch.equal(p, q) for p, q in zip(net.state_dict().values(), kept.state_dict().values(), strict=True))
    assert "layers.stage2_block1.conv1" in str(found) and "Distance of all weights" in found._repr_html_() + found.table().note
    assert found.table(rows=2).note.count("4 more groups are not shown") == 1
    again = align(net, other, torch.rand(4, 1, 8, 8), sweeps=1)
    assert all(torch.equal(again.permutations[name], order) for name, order in found.permutations.items()) and digits.id == "digits"


def test_alignment_refuses_what_does_not_fit(monkeypatch):
    net, x = models.MLP(5, 4, 3, seed=0), torch.rand(4, 5)
    with pytest.raises(InputError, match=r"'layers.fc1.weight'"):
        align(net, models.MLP(5, 6, 3, seed=0), x)
    with pytest.raises(InputError, match="sweeps"):
        align(net, net, x, sweeps=0)
    with pytest.raises(InputError, match="what MLP takes"):
        align(net, net, torch.rand(4, 6))
    with pytest.raises(RetainError, match="not finite"):
        symmetries(nn.Sequential(nn.Linear(5, 3), nn.Threshold(1e9, float("inf"))), x)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "scipy.optimize", None)
        with pytest.raises(RetainError, match=r"pip install 'retain\[merging\]'"):
            align(net, net, x)
    answers = iter([True, False])
    monkeypatch.setattr(Example, "agrees", lambda self, model: next(answers))
    with pytest.raises(RetainError, match="not handed over"):
        align(net, models.MLP(5, 4, 3, seed=1), x)


def test_groups_that_only_work_alone_are_refused(monkeypatch):
    answers = iter([False, True, True, False])
    monkeypatch.setattr(Example, "agrees", lambda self, model: next(answers))
    with pytest.raises(RetainError, match="together"):
        symmetries(models.MLP(5, 4, 4, 3, seed=0), torch.rand(4, 5))


# barriers


@pytest.fixture(scope="module")
def trained():
    digits = tasks.digits()
    nets = [models.MLP(64, 64, 64, 10, seed=seed) for seed in (0, 1)]
    for seed, net in enumerate(nets):
        retain.learn(net, [digits], epochs=15, seed=seed)
    return digits, nets


def test_a_permuted_copy_has_a_barrier_until_it_is_aligned(trained):
    digits, (net, _) = trained
    found = symmetries(net, digits)
    moved = found.permuted(net, orders(found))
    assert barrier(net, moved, digits).height["train"] > 0.2
    assert barrier(net, align(moved, net, digits).model, digits).height == pytest.approx({"train": 0.0, "test": 0.0}, abs=1e-12)


def test_most_of_the_barrier_between_two_networks_is_the_order_of_their_units(trained):
    digits, nets = trained
    found = aligned_barrier(*nets, digits)
    assert found.before.height["train"] > 0.4 and found.after.height["train"] < 0.25 * found.before.height["train"]
    assert found.before.height["test"] > 0.3 and found.after.height["test"] < 0.25 * found.before.height["test"]
    assert found.before.loss["test"][-1] == pytest.approx(found.after.loss["test"][-1], abs=1e-5)  # the same function at the end
    assert [row[0] for row in found.table().rows] == ["train, as they came", "test, as they came", "train, aligned", "test, aligned"]
    assert float(found.table().rows[0][-1]) == pytest.approx(found.before.height["train"], abs=1e-4)
    (figure,) = found.figures()
    assert {part: [line.name for line in lines] for part, lines in figure.panels.items()} == {part: ["as they came", "aligned"] for part in ("train", "test")}
    assert figure.panels["test"][1].y == found.after.loss["test"]
    draw(figure)
    assert "<table>" in found._repr_html_() and "aligned" in repr(found)


def test_the_middle_of_aligned_networks_is_better_than_the_middle_of_others(trained):
    digits, (first, second) = trained
    plain, aligned = (retain.evaluate(average([first, other]), digits).score for other in (second, align(second, first, digits).model))
    assert aligned > 0.85 and aligned > plain + 0.05
