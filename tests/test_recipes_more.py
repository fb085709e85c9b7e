"""Recipes that hold feature maps, shrink spectra, draw statistics or train adapters."""

from __future__ import annotations

import copy
import sys
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import retain
from retain import models, tasks
from retain.errors import InputError, RetainError
from retain.recipes import BSS, DELTA, LPFT, LoRA, Place, Recipe, StochasticNormalisation
from retain.recipes.bss import Shrinkage, smallest_squares
from retain.recipes.delta import FeatureMaps, outer, rises
from retain.recipes.lora import adapt, find_targets, unadapt
from retain.recipes.stochnorm import StochNorm, stochastic
from retain.training import evaluate


class Small(nn.Module):
    """Maps of two resolutions, a depthwise convolution, a residual sum and a head."""

    def __init__(self, norm: bool = False) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.deep = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.last = nn.Conv2d(4, 6, 3, stride=2)
        self.norm = nn.BatchNorm2d(6) if norm else nn.Identity()
        self.head = nn.Linear(6 * 9, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.first(x))
        x = F.relu(x + self.deep(x))
        return self.head(F.relu(self.norm(self.last(x))).flatten(1))


def made(norm: bool = False, seed: int = 1) -> Small:
    torch.manual_seed(seed)
    return Small(norm)


def stripes(n: int = 24, dtype: torch.dtype = torch.float32) -> retain.Task:
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % 3
    inputs = 0.5 * torch.randn(n, 1, 7, 7, generator=g)
    for i, label in enumerate(labels):
        inputs[i, 0, :, int(label) * 2] += 2
    return retain.Task((inputs.to(dtype), labels), id="stripes")


def first_batch(task, size=8):
    return next(task.batches(size))


# DELTA


def test_the_penalty_of_maps_is_0_at_the_start_and_what_a_hand_computes_elsewhere():
    task, model = stripes(), made()
    method = FeatureMaps("head", strength=3.0)
    assert method.penalty(model, first_batch(task), torch.zeros(1)) is None  # told of nothing yet
    method.consolidate(model, task)
    assert method.names == ["deep", "last"]  # of each resolution the last block
    batch = method.augment(first_batch(task), model)
    assert method.penalty(model, batch, model(batch.inputs)) == 0

    moved = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    x = batch.inputs
    maps = []
    for net in (model, moved):
        middle = F.relu(net.first(x))
        deep = net.deep(middle)
        maps.append((deep, net.last(F.relu(middle + deep))))
    by_hand = 0.0
    for name, old, new in zip(("deep", "last"), *maps, strict=True):
        for i in range(8):
            for j in range(old.shape[1]):
                by_hand += 3 / 2 / 8 * method.attention[name][j] * ((new - old)[i, j] ** 2).sum() / old[i, j].numel()
    method.augment(batch, moved)
    found = method.penalty(moved, batch, moved(x))
    assert torch.allclose(found, by_hand, rtol=1e-4) and found > 1e-3
    found.backward()
    assert moved.first.weight.grad.abs().sum() > 0 and moved.head.weight.grad is None
    assert not any(module._forward_hooks or module._forward_pre_hooks for net in (moved, model, method._start) for module in net.modules())


def test_vectors_count_each_and_models_without_blocks_are_refused():
    model = models.MLP(64, 8, 8, 8, 10, seed=0)
    batch = first_batch(tasks.digits())
    assert outer(model, "layers.fc4", batch) == ["layers.fc1", "layers.fc2", "layers.fc3"]
    assert outer(model, "layers.fc4", batch, layers=2) == ["layers.fc2", "layers.fc3"]
    with pytest.raises(InputError, match="blocks that give maps"):
        retain.finetune(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), tasks.digits(), DELTA(), epochs=2)


@pytest.mark.parametrize("exact", [True, False])
def test_attention_is_on_the_channel_that_the_loss_depends_on(exact):
    task, model = stripes(), made()
    with torch.no_grad():  # the head reads channel 2 alone, which is far from 0
        model.last.bias[2] = 3.0
        model.head.weight.zero_()
        model.head.bias.zero_()
        model.head.weight[:, 18:27] = torch.tensor([[0.1], [-0.1], [0.0]])
    task = retain.Task((task.data.inputs, torch.zeros(24, dtype=torch.long)), classes=(0, 1, 2))
    method = FeatureMaps("head", exact=exact, temperature=0.1)
    method.consolidate(model, task)
    for attention in method.attention.values():
        assert attention.sum() == pytest.approx(1, abs=1e-6) and bool((attention > 0).all())
    assert method.attention["last"].argmax() == 2 and method.attention["last"][2] > 0.5
    rest = [method.attention["last"][j] for j in (0, 1, 3, 4, 5)]
    assert max(rest) - min(rest) < 1e-6


def test_what_switching_a_channel_off_costs():
    """Exactly: as zero weights of that filter do. To first order: the exact rise with the loss's change replaced by its slope."""
    task, model = stripes(dtype=torch.float64), made().double()
    batch, channels = first_batch(task), {"deep": 4, "last": 6}
    exact, slopes = (rises(model, batch, channels, exact=choice) for choice in (True, False))
    whole = F.cross_entropy(model(batch.inputs), batch.targets)
    for name, count in channels.items():
        for j in range(count):
            other = copy.deepcopy(model)
            with torch.no_grad():
                other.get_submodule(name).weight[j] = 0
                other.get_submodule(name).bias[j] = 0
            assert torch.allclose(exact[name][j], F.cross_entropy(other(batch.inputs), batch.targets) - whole, atol=1e-12)
            with torch.no_grad():  # a filter is linear in its weights: a step of 1e-6 of the way
                other.load_state_dict(model.state_dict())
                other.get_submodule(name).weight[j] *= 1 - 1e-6
                other.get_submodule(name).bias[j] *= 1 - 1e-6
            assert torch.allclose(slopes[name][j], (F.cross_entropy(other(batch.inputs), batch.targets) - whole) / 1e-6, atol=1e-6)


def test_the_attention_is_of_so_many_samples_of_every_class():
    task = stripes()
    order = task.data.targets.argsort()
    task = retain.Task((task.data.inputs[order], task.data.targets[order]))
    seen = []

    class Seeing(Small):
        def forward(self, x):
            seen.append(len(x))
            return super().forward(x)

    method = FeatureMaps("head", samples=10)
    method.consolidate(Seeing(), task)
    assert set(seen) == {10}
    one = FeatureMaps("head", samples=100)
    one.consolidate(made(), task)
    two = FeatureMaps("head", samples=24, seed=5)
    two.consolidate(made(), task)
    assert all(torch.allclose(one.attention[name], two.attention[name], atol=1e-6) for name in one.names)


def test_a_large_strength_keeps_features_closer():
    def distance(strength):
        result = retain.finetune(made(), stripes(), DELTA(strength=strength), epochs=10, lr=0.02, batch_size=8)
        return float((models.features(result.model, stripes().data.inputs) - models.features(made(), stripes().data.inputs)).norm())

    free, light, tight = distance(0.0), distance(1.0), distance(30.0)
    assert tight < light < free and tight < 0.3 * free
    zero, plain = (retain.finetune(made(), stripes(), recipe, epochs=4, lr=0.02) for recipe in (DELTA(strength=0.0), LPFT()))
    assert all(torch.equal(a, b) for a, b in zip(zero.model.parameters(), plain.model.parameters(), strict=True))


# BSS


@pytest.mark.parametrize("shape", [(7, 20), (20, 7), (5, 5), (1, 9)])
@pytest.mark.parametrize("k", [1, 3, 50])
def test_smallest_squares_are_those_of_singular_values(shape, k):
    matrix = torch.randn(shape, dtype=torch.float64)
    expected = torch.linalg.svdvals(matrix).square().flip(0)[:k].sum()
    assert torch.allclose(smallest_squares(matrix, k), expected, rtol=1e-9)
    assert smallest_squares(matrix.float(), k).dtype == torch.float32


def test_the_gradient_of_smallest_squares():
    matrix = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda m: smallest_squares(m, 2), matrix)
    assert torch.autograd.gradcheck(lambda m: smallest_squares(m.T, 2), matrix)
    repeated = torch.ones(5, 8), torch.eye(4, 6), torch.zeros(3, 7), torch.randn(1, 6), torch.randn(6, 1).expand(6, 9)
    for rows in repeated:
        leaf = rows.clone().requires_grad_()
        smallest_squares(leaf, 2).backward()
        assert bool(leaf.grad.isfinite().all())
    leaf = torch.randn(1, 6, requires_grad=True)
    smallest_squares(leaf).backward()
    assert torch.allclose(leaf.grad, 2 * leaf)  # the only singular value is the row's length
    assert not bool(smallest_squares(torch.full((2, 3), float("nan"))).isfinite())


def test_the_penalty_is_of_the_heads_inputs():
    task, model = stripes(), made()
    method = Shrinkage("head", 2, 0.5)
    batch = method.augment(first_batch(task), model)
    found = method.penalty(model, batch, model(batch.inputs))
    features = models.features(model, batch.inputs)
    assert torch.allclose(found, 0.5 * torch.linalg.svdvals(features.double()).square().flip(0)[:2].sum().float(), rtol=1e-3)
    with pytest.raises(InputError, match="features"):
        method.penalty(model, batch, batch.inputs)  # no pass since
    tokens = nn.Sequential(nn.Linear(7, 3))
    method = Shrinkage("0", 1, 1.0)
    method.augment(batch, tokens)
    with pytest.raises(InputError, match=r"inputs of shape \[8, 1, 7, 7\]"):
        method.penalty(tokens, batch, tokens(batch.inputs))


def test_bss_shrinks_and_learns():
    task = tasks.few(tasks.digits(), 4, seed=0)  # 40 images, of which the last batch has one

    def tuned(eta):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Linear(16, 10))
        retain.learn(model, [task], Shrinkage("2", 4, eta), epochs=100, lr=0.01, batch_size=39)
        return float(smallest_squares(models.features(model, task.data.inputs), 4)), evaluate(model, task).score

    (plain, score), (shrunk, accuracy) = tuned(0.0), tuned(0.01)
    assert shrunk < 0.3 * plain and accuracy > score - 0.05


# stochastic normalisation


def layer(p, *, momentum=0.3):
    norm = nn.BatchNorm2d(5, momentum=momentum)
    with torch.no_grad():
        norm.weight.copy_(torch.rand(5) + 0.5)
        norm.bias.copy_(torch.randn(5))
        norm.running_mean.copy_(torch.randn(5))
        norm.running_var.copy_(torch.rand(5) + 0.5)
    other = copy.deepcopy(norm)
    other.__class__ = stochastic(nn.BatchNorm2d)
    other.p = p
    return norm, other


def gradients(norm, x):
    x = x.clone().requires_grad_()
    out = norm(x)
    grads = torch.autograd.grad((out * torch.linspace(-1, 2, out.numel()).view_as(out)).sum(), [x, norm.weight, norm.bias])
    return out, grads


def test_always_the_batch_is_batch_norm_and_never_is_the_running_statistics():
    x = torch.randn(6, 5, 3, 3)
    norm, always = layer(1.0)
    (a, da), (b, db) = gradients(norm, x), gradients(always, x)
    assert torch.equal(a, b) and all(torch.equal(m, n) for m, n in zip(da, db, strict=True))
    assert all(torch.equal(m, n) for m, n in zip(norm.state_dict().values(), always.state_dict().values(), strict=True))

    norm, never = layer(0.0)
    before = copy.deepcopy(norm).eval()
    norm(x)  # its running statistics follow
    (a, da), (b, db) = gradients(before, x), gradients(never, x)
    assert torch.equal(a, b) and all(torch.allclose(m, n, atol=1e-6) for m, n in zip(da, db, strict=True))  # those from before the step, in the gradient too
    assert all(torch.equal(m, n) for m, n in zip(norm.state_dict().values(), never.state_dict().values(), strict=True))
    assert torch.equal(norm.eval()(x), never.eval()(x)) and never.num_batches_tracked == 1


def test_channels_are_drawn_each_for_itself():
    x = torch.randn(6, 5, 3, 3)
    norm, half = layer(0.5)
    counts, patterns = torch.zeros(5), set()
    for _ in range(200):
        one, two = copy.deepcopy(norm), copy.deepcopy(half)
        out, batch, running = two(x), one(x), copy.deepcopy(norm).eval()(x)
        by_batch = (out == batch).all(3).all(2).all(0)
        assert all(torch.equal(out[:, c], (batch if by_batch[c] else running)[:, c]) for c in range(5))
        counts += by_batch
        patterns.add(tuple(by_batch.tolist()))
    assert bool(((counts > 70) & (counts < 130)).all()) and len(patterns) > 20
    flat = nn.BatchNorm1d(4)
    flat.__class__ = stochastic(nn.BatchNorm1d)
    flat.p = 0.5
    assert flat(torch.randn(3, 4)).shape == (3, 4)


def test_stochastic_layers_are_gone_afterwards_and_runs_repeat():
    before = models.ResNet(8, 4, seed=0)
    made_by, during = [], []

    class Noted(StochasticNormalisation):
        def phases(self, place):
            during.extend(type(module) for module in place.model.modules() if isinstance(module, StochNorm))
            return super().phases(place)

    for recipe in (Noted(), Noted(), Noted(p=1.0), LPFT()):
        made_by.append(retain.finetune(copy.deepcopy(before), tasks.digits(), recipe, epochs=2, lr=0.001))
    assert len(during) == 3 * 7 and made_by[0].found == {"layers": 7}
    for result in made_by:
        assert [type(module) for module in result.model.modules()] == [type(module) for module in before.modules()]
        assert list(result.model.state_dict()) == list(before.state_dict())
        assert not any("p" in vars(module) for module in result.model.modules())
    first, second, batch, plain = ([*result.model.state_dict().values()] for result in made_by)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(batch, plain, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, plain, strict=True))


def test_layers_with_an_activation_of_their_own_keep_it():
    from timm.layers import BatchNormAct2d

    norm = BatchNormAct2d(5)
    x = torch.randn(6, 5, 3, 3)
    expected = copy.deepcopy(norm)(x)
    norm.__class__ = stochastic(BatchNormAct2d)
    norm.p = 1.0
    assert torch.equal(norm(x), expected) and bool((expected >= 0).all())
    norm.p = 0.0
    assert bool((norm(x) >= 0).all())


def test_stochastic_normalisation_refuses_what_has_no_two_statistics():
    with pytest.raises(InputError, match="batch norm with running statistics for 'stochnorm', found none in MLP"):
        retain.finetune(models.MLP(64, 8, 10, seed=0), tasks.digits(), "stochnorm", epochs=2)
    model = models.ResNet(8, 4, seed=0)
    with pytest.raises(InputError, match="batchnorm: expected 'track'"):
        retain.finetune(model, tasks.digits(), "stochnorm", epochs=2, batchnorm="freeze")
    with pytest.raises(RetainError, match="no longer finite"):
        retain.finetune(model, tasks.digits(), "stochnorm", epochs=2, lr=1e30)
    assert not any(isinstance(module, StochNorm) for module in model.modules())  # after a failure too


# LoRA


def place_of(model, task=None, head="head"):
    return Place(model, head, task or stripes())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_merging_is_exact(dtype, tolerance):
    model, x = made().to(dtype), stripes(dtype=dtype).data.inputs
    before, names, kinds = model(x), list(model.state_dict()), [type(module) for module in model.modules()]
    old = {name: value.clone() for name, value in model.state_dict().items()}
    targets, _ = find_targets(place_of(model, stripes(dtype=dtype)), 2)
    adapt(model, targets, rank=2, alpha=3.0)
    assert torch.equal(model(x), before) and all(parameter.requires_grad for parameter in model.parameters())
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            assert parameter.dtype == dtype
            torch.nn.init.normal_(parameter, std=0.3)
    adapted = model(x)
    assert (adapted - before).abs().max() > 0.05
    unadapt(model)
    assert (model(x) - adapted).abs().max() < tolerance
    assert list(model.state_dict()) == names and [type(module) for module in model.modules()] == kinds and not hasattr(model, "peft_config")
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, old[name])}
    assert changed == {"first.weight", "last.weight"}
    adapt(model, targets, rank=2, alpha=3.0)
    unadapt(model, merge=False)
    assert list(model.state_dict()) == names


def test_lora_trains_the_head_and_adapters_of_its_rank():
    model = made(norm=True)
    old = {name: value.clone() for name, value in model.state_dict().items()}
    seen = {}

    class Noted(LoRA):
        def finish(self, place, states):
            seen.update(states=states, names=list(place.model.state_dict()))
            return super().finish(place, states)

    result = retain.finetune(model, stripes(), Noted(rank=2, alpha=4.0), epochs=20, lr=0.02, batch_size=8, batchnorm="freeze")
    assert result.found["rank"] == 2 and result.found["targets"] == ["first", "last"] and list(result.found["left_out"]) == ["deep"]
    assert "4 groups" in result.found["left_out"]["deep"]
    assert list(model.state_dict()) == list(old) == seen["names"] == list(result.start) and type(model.first) is nn.Conv2d
    assert all(torch.equal(result.start[name], value) for name, value in old.items())
    for number, state in enumerate(seen["states"]):  # before merging nothing but head and adapters has moved
        for name, value in old.items():
            inner = next((name.replace(f"{target}.", f"{target}.base_layer.") for target in result.found["targets"] if name.startswith(f"{target}.")), name)
            assert torch.equal(state[inner], value) == (not name.startswith("head.") or not number), name
    assert all(not torch.equal(a["head.weight"], b["head.weight"]) for a, b in pairwise(seen["states"]))  # trained in both phases
    for target in result.found["targets"]:
        change = (model.get_submodule(target).weight - old[f"{target}.weight"]).detach()
        assert torch.linalg.matrix_rank(change.flatten(1), rtol=1e-4) == 2
        assert torch.equal(model.get_submodule(target).bias, old[f"{target}.bias"])
    adapters = 2 * 9 + 4 * 2 + 2 * 4 * 9 + 6 * 2
    assert result.parameters == {"total": sum(p.numel() for p in model.parameters()), "trained": adapters + 54 * 3 + 3}
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert result.accuracy["data"] > 0.8


def test_the_rank_of_a_dense_change_and_the_probe_before_it():
    def tuned(recipe, epochs=6):
        return retain.finetune(models.MLP(64, 32, 10, seed=0), tasks.digits(), recipe, epochs=epochs, lr=0.01)

    result, start = tuned(LoRA(rank=3, alpha=3.0, boost=2.0)), models.MLP(64, 32, 10, seed=0)
    change = (result.model.layers.fc1.weight - start.layers.fc1.weight).detach()
    assert torch.linalg.matrix_rank(change, rtol=1e-4) == 3
    again = tuned(LoRA(rank=3, alpha=3.0, boost=2.0))
    assert all(torch.equal(a, b) for a, b in zip(result.model.parameters(), again.model.parameters(), strict=True))
    plain = tuned(LPFT())
    probe = [(a["loss"], a["accuracy"]) for a in result.history if a["phase"] == "probe"]
    assert probe and probe == [(a["loss"], a["accuracy"]) for a in plain.history if a["phase"] == "probe"]


def test_layers_that_cannot_be_adapted_are_left_out_with_a_reason():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 4, 3)
            self.inner = nn.ModuleDict({"conv": nn.Conv2d(4, 4, 3, padding=1, groups=2)})  # the end of whose name is another's whole name
            self.wide = nn.Conv2d(4, 4, 3, dilation=2, padding=2)
            self.around = nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")
            self.frozen = nn.Conv2d(4, 4, 1).requires_grad_(False)
            self.unused = nn.Linear(4, 4)
            self.once, self.twice = nn.Linear(4, 4), nn.Linear(4, 4)
            self.twice.weight = self.once.weight
            self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
            self.fine = nn.Linear(4, 4)
            self.head = nn.Linear(4, 3)

        def forward(self, x):
            x = self.frozen(self.around(self.wide(self.inner["conv"](self.conv(x))))).mean((2, 3))
            return self.head(self.fine(self.normed(self.twice(self.once(x)))))

    torch.manual_seed(0)
    model = Odd()
    targets, left = find_targets(place_of(model), 2)
    assert set(targets) | set(left) == {name for name, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)} - {"head"}
    assert {"conv", "fine"} <= set(targets) and {"inner.conv", "wide", "frozen", "unused", "once", "twice", "normed"} <= set(left)
    assert "2 groups" in left["inner.conv"] and left["frozen"] == "its weights are frozen" and "two places" in left["once"]
    assert left["unused"] == "the model answers without calling it"
    before = list(model.state_dict())
    result = retain.finetune(model, stripes(), LoRA(rank=2), epochs=2, lr=0.001)
    assert result.found["targets"] == targets and list(model.state_dict()) == before and not model.frozen.weight.requires_grad


def test_lora_on_a_network_of_depthwise_convolutions():
    model, _ = models.pretrained("efficientnet-lite0", 3, weights=False)
    names = list(model.state_dict())
    images = torch.randn(6, 3, 32, 32)
    task = retain.Task((images, torch.arange(6) % 3))
    result = retain.finetune(model, task, "lora", epochs=2, lr=1e-3, batchnorm="freeze")
    depthwise = {name for name, m in model.named_modules() if isinstance(m, nn.Conv2d) and m.groups > 1}
    # the first layer pads by a rule of timm's, which the first versions of peft do not take over
    assert depthwise <= set(result.found["left_out"]) <= depthwise | {"conv_stem"} and len(depthwise) == 16 and "conv_head" in result.found["targets"]
    assert list(model.state_dict()) == names and result.parameters["trained"] < 0.1 * result.parameters["total"]


def test_scores_on_the_way_are_those_with_adapters():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Linear(7, 16)
            self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 1, enable_nested_tensor=False)
            self.head = nn.Linear(16, 3)

        def forward(self, x):
            return self.head(self.encoder(self.embed(x[:, 0])).mean(1))

    torch.manual_seed(0)
    task = retain.Task(stripes().data, test=stripes().data)
    result = retain.finetune(Tokens(), task, LoRA(rank=2, boost=5.0), epochs=10, lr=0.02)
    assert list(result.found["left_out"]) == ["encoder.layers.0.self_attn.out_proj"]  # attention reads its weights past it
    assert {"encoder.layers.0.linear1", "encoder.layers.0.linear2"} <= set(result.found["targets"])
    assert result.history[-1]["nll"] == pytest.approx(result.nll["test"], rel=1e-4)
    assert torch.backends.mha.get_fastpath_enabled()


def test_lora_refuses_and_leaves_nothing_behind(monkeypatch):
    with pytest.raises(InputError, match="something for 'lora' to adapt before the head, found nothing in Sequential"):
        retain.finetune(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), tasks.digits(), "lora", epochs=2)
    model = made()
    names = list(model.state_dict())
    before = model.first.weight.detach().clone()
    with pytest.raises(RetainError, match="no longer finite"):
        retain.finetune(model, stripes(), LoRA(boost=1e30), epochs=4, lr=1e5)
    assert list(model.state_dict()) == names and torch.equal(model.first.weight, before)
    adapt(model, ["first"], 2, 1.0)
    with pytest.raises(InputError, match="a model without adapters"):
        retain.finetune(model, stripes(), "lora", epochs=2)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(RetainError, match=r"pip install 'retain\[lora\]'"):
        retain.finetune(made(), stripes(), "lora", epochs=2)


# all four


@pytest.mark.parametrize("recipe", [DELTA, BSS, StochasticNormalisation, LoRA])
def test_settings_make_the_recipe_again(recipe):
    one = recipe()
    assert recipe(**one.settings()).settings() == one.settings() and repr(one).startswith(recipe.__name__)
    assert isinstance(one, Recipe) and one.summary and one.citation


@pytest.mark.parametrize(
    "make",
    [
        lambda: DELTA(strength=-1),
        lambda: DELTA(layers=0),
        lambda: DELTA(samples=0),
        lambda: DELTA(temperature=0),
        lambda: BSS(k=0),
        lambda: BSS(eta=-1),
        lambda: StochasticNormalisation(p=1.5),
        lambda: LoRA(rank=0),
        lambda: LoRA(alpha=0),
        lambda: LoRA(boost=-1),
    ],
)
def test_settings_out_of_range(make):
    with pytest.raises(InputError):
        make()
