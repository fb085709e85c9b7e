"""Recipes of fine-tuning: what each trains, what it leaves alone, and what it tells."""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from conftest import Memory
from torch import nn

import retain
from retain import models, recipes, tasks
from retain.errors import InputError
from retain.recipes import (
    LPFT,
    RECIPES,
    BiasesOnly,
    FineTune,
    GradualUnfreezing,
    HeldL2SP,
    LayerwiseDecay,
    LinearProbe,
    NormsOnly,
    Scratch,
    Soup,
    WiSEFT,
    blocks,
)
from retain.recipes.layerwise import Decayed
from retain.recipes.solve import PENALTIES, solve_head
from retain.recipes.tune import frozen_statistics, shared_out
from retain.recipes.wise import between
from retain.training.evaluation import evaluate

NOT_SOLVED = ("scratch", "fine-tune", "norms-only", "biases-only")


@pytest.fixture(scope="module")
def pair():
    """A network that knows the digits 0-4, and the digits 5-9 as a task of five classes with held-out images."""
    first, second = tasks.split(tasks.digits(), 2, scenario="class")
    model = models.MLP(64, 32, 10, seed=0)
    retain.learn(model, [first], epochs=15, lr=0.005)
    moved = {part: (getattr(second, part).inputs, getattr(second, part).targets - 5) for part in ("data", "test")}
    task = retain.Task(moved["data"], test=moved["test"], id="5-9").hold_out(150, torch.Generator().manual_seed(0))
    return model, task


def tuned(pair, recipe, **settings):
    model, task = copy.deepcopy(pair[0]), pair[1]
    return retain.finetune(model, task, recipe, **{"epochs": 4, "lr": 0.05, **settings})


@pytest.mark.parametrize("name", sorted(set(RECIPES) - {"norms-only", "stochnorm"}))
def test_every_recipe_learns_and_tells(pair, name):
    recorder = Memory(after=10**9)
    result = tuned(pair, name, recorder=recorder, epochs=6, lr=0.02)
    assert result.recipe == name and result.accuracy["test"] > 0.65 and set(result.accuracy) == {"data", "validation", "test"}
    assert result.gap == result.accuracy["data"] - result.accuracy["test"]
    solved = [] if name in NOT_SOLVED else [0]
    assert [entry["epoch"] for entry in result.history] == solved + ([] if name == "linear-probe" else [1, 2, 3, 4, 5, 6])
    assert all({"phase", "loss", "score", "accuracy", "nll", "validation", "validation_nll"} <= set(entry) for entry in result.history)
    model = result.model
    assert model.layers.fc2.out_features == 5 and result.head == "layers.fc2"
    total = sum(p.numel() for p in model.parameters())
    trained = {"linear-probe": 32 * 5 + 5, "biases-only": 32 + 32 * 5 + 5, "lora": 8 * (64 + 32) + 32 * 5 + 5}
    assert result.parameters == {"total": total, "trained": trained.get(name, total)}
    assert all(p.requires_grad for p in model.parameters())
    assert "head 'layers.fc2'" in result.table().note and result.plot() is not None
    again = tuned(pair, name, epochs=6, lr=0.02)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.model.parameters(), strict=True))


def test_the_probe_leaves_the_body_alone_and_solves_for_the_head(pair):
    result = tuned(pair, LinearProbe(penalty=1e-2))
    assert torch.equal(result.model.layers.fc1.weight, pair[0].layers.fc1.weight)
    known = models.features(result.model, pair[1])
    x, y = known.data.inputs.double(), known.data.targets
    weight, bias = (p.detach().double().requires_grad_() for p in result.model.layers.fc2.parameters())
    scale = (x - x.mean(0)).square().sum(1).mean()
    loss = nn.functional.cross_entropy(x @ weight.T + bias, y) + 1e-2 * scale / 2 * weight.square().sum()
    gradient = torch.autograd.grad(loss, [weight, bias])
    assert max(float(part.abs().max()) for part in gradient) < 1e-5  # a convex problem's only minimum, to single precision
    assert result.history[0]["score"] == pytest.approx(result.accuracy["data"])


def test_the_penalty_is_chosen_on_held_out_data(pair):
    known = models.features(pair[0], pair[1])
    head = nn.Linear(32, 5)
    tried = {}
    for penalty in PENALTIES:
        solve_head(head, known, penalty)
        tried[penalty] = evaluate(head, known, part="validation").nll
    assert solve_head(head, known)["penalty"] == min(tried, key=tried.get)
    assert solve_head(head, replace(known, validation=None))["penalty"] == 1e-3
    assert len({round(nll, 4) for nll in tried.values()}) == len(PENALTIES)


def test_features_computed_before_give_the_same(pair):
    model = copy.deepcopy(pair[0])
    models.replace_head(model, 5, zero=True)
    known = models.features(model, pair[1])
    for recipe in ("linear-probe", "lp-ft"):
        one, two = (retain.finetune(copy.deepcopy(model), pair[1], recipe, epochs=2, cached=cached) for cached in (None, known))
        assert one.accuracy == pytest.approx(two.accuracy) and one.nll == pytest.approx(two.nll, rel=1e-5)
        assert all(torch.equal(a, b) for a, b in zip(one.model.parameters(), two.model.parameters(), strict=True))
    fresh = copy.deepcopy(pair[0])
    for cached, said in ((tasks.few(known, 2), r"cached: expected 32 features of each of the \d+ samples"), (7, "cached: expected the task")):
        with pytest.raises(InputError, match=said):
            retain.finetune(fresh, pair[1], cached=cached)
    assert fresh.layers.fc2.out_features == 10  # nothing was changed before


def test_scores_only_at_the_end(pair):
    result = retain.finetune(copy.deepcopy(pair[0]), pair[1], "lp-ft", epochs=4, score_every=0)
    often = retain.finetune(copy.deepcopy(pair[0]), pair[1], "lp-ft", epochs=4, score_every=2)
    assert [entry["accuracy"] is None for entry in result.history] == [True] * 5
    assert [entry["accuracy"] is None for entry in often.history] == [False, True, False, True, False]
    assert result.accuracy == often.accuracy and often.history[-1]["accuracy"] == often.accuracy["test"]


def test_scratch_forgets_and_fine_tuning_does_not(pair):
    other = copy.deepcopy(pair[0])
    with torch.no_grad():
        other.layers.fc1.weight.mul_(3)
    one, two = (retain.finetune(copy.deepcopy(model), pair[1], Scratch(), epochs=1, lr=0.05) for model in (pair[0], other))
    assert torch.equal(one.model.layers.fc1.weight, two.model.layers.fc1.weight)
    one, two = (retain.finetune(copy.deepcopy(model), pair[1], FineTune(), epochs=1, lr=0.05) for model in (pair[0], other))
    assert not torch.equal(one.model.layers.fc1.weight, two.model.layers.fc1.weight)


def test_features_orthogonal_to_the_training_span_do_not_move():
    """Kumar et al. 2022, lemma A.3: in a two-layer linear network gradient descent changes features only inside the span of the training inputs."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4, bias=False), nn.Linear(4, 2, bias=False))
    before = model[0].weight.detach().clone()
    inputs = torch.randn(3, 6)
    task = retain.Task((inputs, torch.tensor([0, 1, 1])), id="few")
    retain.finetune(model, task, FineTune(), epochs=50, lr=0.1, optimizer="sgd", schedule="constant")
    _, _, rows = torch.linalg.svd(inputs)
    change = model[0].weight.detach() - before
    assert (change @ rows[3:].T).abs().max() < 1e-6 < 1e-2 < (change @ rows[:3].T).abs().max()


def test_a_strong_prior_holds_the_body_and_not_the_head(pair):
    loose, tight = (tuned(pair, HeldL2SP(tau=tau), epochs=6) for tau in (10.0, 1e-4))
    distance = [float((result.model.layers.fc1.weight - pair[0].layers.fc1.weight).detach().norm()) for result in (loose, tight)]
    assert distance[1] < 1e-3 * distance[0]
    assert tight.accuracy["test"] > 0.7  # the head is free
    probed = tuned(pair, LinearProbe())
    assert not torch.allclose(tight.model.layers.fc2.weight, probed.model.layers.fc2.weight, atol=1e-2)


def test_only_norms_or_biases_and_the_head_move(pair):
    before = models.ResNet(8, 4, seed=0)
    model = copy.deepcopy(before)
    result = retain.finetune(model, tasks.digits(), NormsOnly(), epochs=1)
    old = dict(before.named_parameters())
    moved = {name for name, p in model.named_parameters() if old[name].shape != p.shape or not torch.equal(old[name], p)}
    norms = {name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    assert moved == {f"{name}.{inner}" for name in norms for inner in ("weight", "bias")} | {f"{result.head}.{inner}" for inner in ("weight", "bias")}
    with pytest.raises(InputError, match="something for 'norms-only' to train before the head, found nothing in MLP"):
        tuned(pair, "norms-only")
    result = tuned(pair, BiasesOnly())
    assert torch.equal(result.model.layers.fc1.weight, pair[0].layers.fc1.weight) and not torch.equal(result.model.layers.fc1.bias, pair[0].layers.fc1.bias)


def test_blocks_are_unfrozen_from_the_head_down():
    place = recipes.Place(models.ResNet(8, 4, seed=0), models.find_head(models.ResNet(8, 4, seed=0))[0], tasks.digits())
    phases = GradualUnfreezing(stages=3).phases(place)
    names = [name for name, _ in place.model.named_parameters()]
    trained = [{name for name in names if phase.trains(name)} for phase in phases]
    assert trained[0] == {name for name in names if place.in_head(name)} and trained[-1] == set(names) and phases[0].solved
    assert all(a < b for a, b in pairwise(trained)) and sum(phase.share for phase in phases[1:]) == pytest.approx(1)
    first = blocks(place.model)[0][0]
    assert not any(name.startswith(f"{first}.") for name in trained[-2])


def test_learning_rates_fall_by_blocks():
    model = models.ResNet(8, 4, seed=0)
    groups = Decayed(0.5).groups(model, 0.8)
    order = blocks(model)
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    head = next(group for group in groups if any(p is order[-1][1].weight for p in group["params"]))
    assert head["lr"] == 0.8
    rates = [group["lr"] for group in groups]
    assert rates == [0.8 * 0.5**i for i in range(len(rates))] and len(rates) == len(order) >= 4


def test_decay_of_one_is_lp_ft(pair):
    one, two = tuned(pair, LayerwiseDecay(1.0)), tuned(pair, LPFT())
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(one.model.parameters(), two.model.parameters(), strict=True))


def test_the_way_back_chooses_on_held_out_data(pair):
    result = tuned(pair, WiSEFT(alphas=(0.0, 0.5, 1.0)), epochs=6)
    curve, alpha = result.found["curve"], result.found["alpha"]
    assert [point["alpha"] for point in curve] == [0.0, 0.5, 1.0]
    assert max(point["validation"] for point in curve) == next(point["validation"] for point in curve if point["alpha"] == alpha)
    chosen = next(point for point in curve if point["alpha"] == alpha)
    assert result.accuracy["test"] == chosen["test"]
    end = tuned(pair, LPFT(), epochs=6)
    assert curve[-1]["test"] == end.accuracy["test"]  # alpha 1 is LP-FT
    half = tuned(pair, WiSEFT(alphas=(0.5,)), epochs=6)
    probed = tuned(pair, LinearProbe())
    for mine, first, last in zip(half.model.parameters(), probed.model.parameters(), end.model.parameters(), strict=True):
        assert torch.allclose(mine, (first + last) / 2, atol=1e-6)
    without = retain.Task(pair[1].data, test=pair[1].test, id="no validation")
    assert retain.finetune(copy.deepcopy(pair[0]), without, "wise-ft", epochs=2).found["alpha"] == 1.0
    assert retain.finetune(copy.deepcopy(pair[0]), without, WiSEFT((0.25,)), epochs=2).found["alpha"] == 0.25


def test_a_soup_is_the_mean_of_runs_from_one_probe(pair):
    class Seen(Soup):
        def finish(self, place, states):
            self.states = states
            return super().finish(place, states)

    recipe = Seen(members=3)
    result = tuned(pair, recipe, epochs=6, lr=0.002)
    probe, members = recipe.states[1], recipe.states[2:]
    assert len(members) == 3 and [sum(e["phase"] == f"member {i}" for e in result.history) for i in (1, 2, 3)] == [2, 2, 2]
    for name, value in result.model.state_dict().items():
        mean = sum(member[name] for member in members) / 3
        assert torch.allclose(value, mean, atol=1e-6)
    apart = [float((a["layers.fc1.weight"] - b["layers.fc1.weight"]).norm()) for a, b in pairwise(members)]
    gone = [float((a["layers.fc1.weight"] - probe["layers.fc1.weight"]).norm()) for a in members]
    assert min(apart) > 0 and max(gone) < 1.5 * min(gone)  # none goes on from another's end
    assert all(torch.equal(a, b) for a, b in zip(tuned(pair, Soup(1)).model.parameters(), tuned(pair, LPFT()).model.parameters(), strict=True))
    half = tuned(pair, Soup(3, alphas=(0.5,)), epochs=6, lr=0.002).model.state_dict()
    assert torch.allclose(half["layers.fc1.weight"], (probe["layers.fc1.weight"] + result.model.state_dict()["layers.fc1.weight"]) / 2, atol=1e-6)


def test_between_leaves_counters_whole():
    start, end = nn.BatchNorm1d(2).state_dict(), nn.BatchNorm1d(2).state_dict()
    end["num_batches_tracked"] = torch.tensor(7)
    end["weight"] = torch.full((2,), 3.0)
    half = between(start, end, 0.25)
    assert int(half["num_batches_tracked"]) == 0 and torch.equal(half["weight"], torch.full((2,), 1.5))


@pytest.mark.parametrize("policy", ["track", "freeze"])
def test_batch_norm(policy):
    model = models.ResNet(8, 4, seed=0)
    before = [module.running_mean.clone() for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    retain.finetune(model, tasks.digits(), "fine-tune", epochs=1, batchnorm=policy)
    after = [module.running_mean for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(before) > 3 and all(torch.equal(a, b) == (policy == "freeze") for a, b in zip(before, after, strict=True))
    with frozen_statistics(model, True):
        model.train()
        assert not any(module.training for module in model.modules() if isinstance(module, nn.BatchNorm2d)) and model.training
    model.train()
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("start", sorted(recipes.STARTS))
def test_starts(start):
    model = models.ResNet(8, 4, seed=0)
    changed = recipes.STARTS[start](copy.deepcopy(model), seed=1)
    again = recipes.STARTS[start](copy.deepcopy(model), seed=1)
    weights = [(a, b) for (name, a), (_, b) in zip(model.named_parameters(), changed.named_parameters(), strict=True) if a.ndim > 1]
    assert all(not torch.equal(a, b) for a, b in weights)
    assert all(torch.equal(a, b) for a, b in zip(changed.state_dict().values(), again.state_dict().values(), strict=True))
    if start == "permuted":
        assert all(torch.equal(a.detach().flatten().sort()[0], b.detach().flatten().sort()[0]) for a, b in weights)


def test_shares():
    phases = [recipes.Phase("a", 0.5), recipes.Phase("b", 0.5)]
    assert shared_out(phases, 10) == [5, 5] and shared_out(phases, 1) == [1, 1]
    probe = recipes.Phase("probe", solved=True)
    assert shared_out([probe, *phases], 7) == [0, 4, 3] and shared_out([probe], 7) == [0]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"recipe": "lpft"}, "recipe: expected a recipe's name, found 'lpft'. Did you mean 'lp-ft'"),
        ({"recipe": LPFT}, "recipe: expected a recipe or its name"),
        ({"epochs": 0}, "epochs: expected"),
        ({"lr": -1.0}, "lr: expected"),
        ({"head": "nothing"}, "nothing"),
        ({"batchnorm": "per-task"}, "batchnorm: expected 'track' or 'freeze'"),
    ],
)
def test_what_cannot_be(pair, settings, said):
    model = copy.deepcopy(pair[0])
    with pytest.raises(InputError, match=said):
        retain.finetune(model, pair[1], **{"recipe": "lp-ft", **settings})
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), pair[0].parameters(), strict=True))


def test_settings_out_of_range():
    for make in (lambda: LPFT(penalty=0.0), lambda: LayerwiseDecay(0.0), lambda: WiSEFT(alphas=(2.0,)), lambda: WiSEFT(alphas=()), lambda: HeldL2SP(tau=0)):
        with pytest.raises(InputError):
            make()
