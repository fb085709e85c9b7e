"""Which rule fits which network, and rules in files."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import retain
from retain import tasks
from retain.errors import InputError, RetainError
from retain.models import FeedForwardAssembly, RecurrentAssembly
from retain.plasticity import TABLES, NetworkRule, PostCount, PrePost, PrePostCount, PrePostPercent, TableRule, load_rule, save_rule


def net(layers=2, **kw):
    return FeedForwardAssembly(16, 2, layers=layers, **{"width": 20, "cap": 8, **kw})


def rnn(rounds=2, **kw):
    return RecurrentAssembly(16, 2, rounds=rounds, **{"width": 20, "cap": 8, **kw})


SIZES = {PrePost: (2, 2, 1), PrePostCount: (2, 2, 9), PrePostPercent: (2, 2, 21), PostCount: (2, 2, 9), NetworkRule: (2, 2, 21)}


@pytest.mark.parametrize("kind", SIZES)
def test_tables_have_their_shape_start_and_gradient(kind):
    drawn, again, zero = kind(cap=8, seed=1), kind(cap=8, seed=1), kind(cap=8)
    assert drawn.table().shape == SIZES[kind] and drawn.table().dtype == torch.float64
    assert torch.equal(drawn.table(), again.table()) and not torch.equal(drawn.table(), kind(cap=8, seed=2).table())
    assert not zero.table().any()
    drawn.table().square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in drawn.parameters())
    assert kind(4, 3, cap=8, seed=0).table().shape[:2] == (4, 3)


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("universal", [True, False])
@pytest.mark.parametrize("make", [lambda: net(1), lambda: net(3), lambda: rnn(0), lambda: rnn(2)], ids=["ff1", "ff3", "rnn0", "rnn2"])
def test_every_kind_fits_or_says_why_not(make, universal, table):
    there = make()
    if there.states > 2 and table != "prepost":
        with pytest.raises(
            InputError, match=r"table: expected 'prepost' in recurrent networks: a count .* found 'prepost|table: .* found 'postcount'|found 'network'"
        ):
            TableRule.fit(there, table, universal=universal)
        return
    rule = TableRule.fit(there, table, universal=universal, seed=1)
    found = rule.tables(there)
    matrices = len(there.hidden) + 1
    assert len(found) == matrices and all(t.shape[:2] == (there.states, there.states) for t in found[:-1]) and found[-1].shape[1] == 2
    assert len({tuple(t.flatten().tolist()) for t in found[:-1]}) == (min(1, matrices - 1) if universal else matrices - 1)
    assert not found[-1].any()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: TableRule.fit(net(), "prepostcount").check(net(cap=9)),
            "rule: expected a rule that fits the network's cap, 9, found PrePostCount.*PrePostPercent",
        ),
        (
            lambda: TableRule.fit(net(), "postcount").check(net(cap=None)),
            "rule: expected a rule that fits the network's cap, None, found PostCount.*PrePostPercent",
        ),
        (
            lambda: TableRule("prepost").check(rnn()),
            "rule: expected one for 8 states of a unit, as this recurrent network has, found one for 2. Learn the rule on",
        ),
        (lambda: TableRule("prepost", states=8).check(net()), "rule: expected one for 2 states of a unit, as this feed-forward network has, found one for 8"),
        (lambda: TableRule("prepost", states=4).check(rnn(2)), "rule: expected one for 8 states"),
        (
            lambda: TableRule("prepost", hidden=2).check(net(4)),
            "rule: expected one table for all, or one for each of 3 hidden .* found 2. Learn it with hidden=1",
        ),
        (
            lambda: TableRule("prepost", hidden=3).check(net(1)),
            "rule: expected one table for all, or one for each of 0 hidden .* found 3. Learn it with hidden=1",
        ),
        (
            lambda: TableRule("prepost", hidden=0).check(net(2)),
            "rule: expected one table for all, or one for each of 1 hidden .* found 0. Learn it with hidden=1",
        ),
        (lambda: TableRule("prepost", form="multiplicative").check(net()), "start: expected weights that are not all zero.*Build the net with start='ones'"),
        (lambda: TableRule("prepostcount"), "cap: expected the cap of the networks, since PrePostCount .* found none. Or take PrePostPercent"),
        (lambda: TableRule("prepostcount", cap=0), "cap: expected a whole number of at least 1"),
        (lambda: TableRule("prepots"), "table: expected one of prepost, .* found 'prepots'. Did you mean 'prepost'"),
        (lambda: TableRule(form="multiplicativ"), "form: expected one of additive, multiplicative.*Did you mean 'multiplicative'"),
        (lambda: TableRule(when="mistake"), "when: expected one of always, mistakes.*Did you mean 'mistakes'"),
        (lambda: TableRule(edges="label and prediction"), "edges: expected one of all, label and predicted.*Did you mean 'label and predicted'"),
        (lambda: TableRule(average=True, form="multiplicative"), "average: expected an additive rule .* Pass average=False"),
        (lambda: TableRule(hidden=-1), "hidden: expected a whole number of at least 0"),
        (lambda: TableRule(gated="no"), "gated: expected True or False, found 'no'"),
        (lambda: TableRule(states=512), "states: expected at most 256"),
        (lambda: TableRule(states=1), "states: expected a whole number of at least 2"),
        (lambda: TableRule(rate=0), "rate: expected a finite number above 0"),
        (lambda: TableRule(rate=float("nan")), "rate: expected a finite number above 0"),
        (lambda: TableRule(seed=-1), "seed: expected a whole number of at least 0"),
        (lambda: PrePost(columns=1), "columns: expected a whole number of at least 2"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_way_out(make, words):
    with pytest.raises(InputError, match=words):
        make()


def test_a_multiplicative_rule_fits_weights_that_are_not_zero():
    TableRule("prepost", form="multiplicative").check(net(start="ones"))
    TableRule("prepost", form="multiplicative").check(net(start="uniform"))


def test_one_table_serves_any_depth():
    rule = TableRule("prepost", hidden=1, seed=2)
    for layers in (1, 2, 5):
        found = rule.tables(net(layers))
        assert len(found) == layers and all(torch.equal(t, rule.hidden[0].table()) for t in found[:-1])


def test_descriptions():
    words = TableRule("prepost", hidden=2, when="mistakes", edges="label and predicted", gated=True, average=True).description()
    assert words == "prepost, one a layer, gated, on mistakes, label and predicted, averaged"
    assert TableRule("network", form="multiplicative").description() == "network, multiplicative"


# --- files ---


def example(**settings):
    rule = TableRule.fit(net(3), **{"table": "prepostpercent", "universal": False, "gated": True, "average": True, "rate": 0.02, "seed": 5, **settings})
    rule.output.values.data.normal_()
    rule.facts = {"learned_on": ["halfspace-16"], "accuracy": {"test": 0.1 + 0.2}}
    return rule


@pytest.mark.parametrize("table", TABLES)
def test_a_card_brings_back_the_same_bits(tmp_path, table):
    rule = TableRule.fit(net(3), table, universal=False, when="mistakes", edges="label and predicted", rate=0.1 + 0.2, seed=3)
    with torch.no_grad():
        for p in rule.parameters():
            p.copy_(torch.randn(p.shape, dtype=p.dtype))
    rule.facts = {"learned_on": ["a"], "text": "é", "accuracy": {"test": 1 / 3}}
    back = load_rule(save_rule(tmp_path / "deep" / "rule", rule))
    assert back.settings() == rule.settings() and back.facts == rule.facts and back.description() == rule.description()
    for name, value in rule.numbers().items():
        assert torch.equal(back.numbers()[name].view(torch.int64), value.view(torch.int64))
    for other in (net(3, width=31), net(3, seed=7, width=12)):
        assert all(map(torch.equal, back.tables(other), rule.tables(other)))
    card = json.loads((tmp_path / "deep" / "rule" / "rule.json").read_text())
    assert card["schema"] == 1 and card["family"] == "table" and card["description"] == rule.description()


def test_a_rule_learned_at_one_size_goes_into_another(tmp_path):
    task = tasks.halfspace(8, 600, seed=1)
    rule = TableRule("prepost", hidden=1, seed=4)
    result = retain.meta_learn(rule, task, FeedForwardAssembly(8, 2, layers=1), epochs=2)
    assert result.final() > 0.7
    back = load_rule(save_rule(tmp_path, rule))
    assert back.facts["learned_on"] == ["halfspace-8"] and back.facts["networks"][0]["width"] == 100 and back.facts["meta_epochs"] == 2
    for layers, width, cap in ((1, 40, 20), (2, 40, 20), (3, 130, 65), (1, 40, None)):
        small = FeedForwardAssembly(8, 2, layers=layers, width=width, cap=cap)
        a, b = (retain.learn_online(small, each, task, score_every=0) for each in (rule, back))
        assert a.accuracy == b.accuracy and a.updates == b.updates and a.updates[-1] > 0
    with pytest.raises(InputError, match="PrePostPercent"):
        retain.learn_online(FeedForwardAssembly(8, 2, width=40, cap=20), TableRule("prepostcount", cap=50), task)


def edited(**changes):
    def spoil(folder):
        card = json.loads((folder / "rule.json").read_text())
        for path, value in changes.items():
            place = card
            *inner, last = path.split("__")
            for step in inner:
                place = place[step]
            if value is None:
                del place[last]
            else:
                place[last] = value
        (folder / "rule.json").write_text(json.dumps(card))

    return spoil


def tensors(change):
    def spoil(folder):
        found = load_file(folder / "rule.safetensors")
        change(found)
        save_file(found, folder / "rule.safetensors")

    return spoil


def cut(name, keep):
    def spoil(folder):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(keep * len(content))])

    return spoil


def poison(found):
    found["output.values"][0, 0, 0] = float("nan")


SPOILT = {
    "another schema": (edited(schema=2), "schema: expected 1 in .* found 2. It was written by another version"),
    "no schema": (edited(schema=None), "schema: expected 1 in .* found none"),
    "not an object": (lambda folder: (folder / "rule.json").write_text("[1]"), "schema: expected 1 in .* found list"),
    "unknown family": (edited(family="tabel"), "family: expected a known family .* found 'tabel'. Did you mean 'table'"),
    "no family": (edited(family=None), "family: expected a known family"),
    "a list of families": (edited(family=["table"]), "family: expected a known family"),
    "unknown table": (edited(settings__table="prepercent"), "table: expected one of"),
    "another table": (edited(settings__table="prepost"), "'hidden.0.values': expected 2 2, float64, as the card's settings say|'hidden.0.values': expected"),
    "unknown setting": (edited(settings__speed=3), "card: expected a whole card in .* found a damaged one"),
    "no settings": (edited(settings=None), "card: expected a whole card"),
    "settings of a wrong kind": (edited(settings=[1]), "card: expected a whole card"),
    "no tensors": (edited(tensors=None), "card: expected a whole card"),
    "tensors of a wrong kind": (edited(tensors=["output.values"]), "card: expected a whole card"),
    "a tensor without shape": (edited(tensors={"output.values": {}}), "card: expected a whole card"),
    "facts of a wrong kind": (edited(facts=3), "card: expected a whole card"),
    "fewer tables": (edited(settings__hidden=1), "'hidden.1.values': expected no such tensor, as the card's settings say"),
    "more tables": (edited(settings__hidden=3), "'hidden.2.values': expected .* as the card's settings say, found no such tensor in rule.safetensors"),
    "states without end": (edited(settings__states=10**7), "states: expected at most 256"),
    "a cap without end": (edited(settings__table="prepostcount", settings__cap=10**14), "card: expected a whole card"),
    "no gate": (edited(settings__gated=False), "'output.values': expected .* as the card's settings say"),
    "a gate that is a word": (edited(settings__gated="no"), "gated: expected True or False, found 'no'"),
    "a mean that is a word": (edited(settings__average="no"), "average: expected True or False, found 'no'"),
    "rate below 0": (edited(settings__rate=-1), "rate: expected a finite number above 0"),
    "rate that is a word": (edited(settings__rate="fast"), "rate: expected a finite number above 0"),
    "states out of range": (edited(settings__states=1), "states: expected a whole number of at least 2"),
    "half a state": (edited(settings__states=2.5), "states: expected a whole number"),
    "unknown form": (edited(settings__form="additiv"), "form: expected one of"),
    "a mean of products": (edited(settings__form="multiplicative"), "average: expected an additive rule"),
    "a shape that lies": (
        edited(**{"tensors__output.values__shape": [2, 2, 21]}),
        "'output.values': expected .* card's tensors say",
    ),
    "a type that lies": (edited(**{"tensors__output.values__dtype": "float32"}), "'output.values': expected .* float32, as the card's tensors say"),
    "a tensor too few": (tensors(lambda found: found.pop("output.values")), "'output.values': expected .* found no such tensor in rule.safetensors"),
    "a tensor too many": (tensors(lambda found: found.update(more=torch.ones(2))), "'more': expected no such tensor"),
    "another shape": (tensors(lambda found: found.update({"output.values": torch.ones(2, 3, dtype=torch.float64)})), "'output.values': expected"),
    "another type": (tensors(lambda found: found.update({"output.values": found["output.values"].float()})), "'output.values': expected .* float64"),
    "not a number": (tensors(poison), "'output.values': expected finite numbers, found NaN or infinity"),
    "half a card": (cut("rule.json", 0.5), "folder: expected a rule that can be read in .* found a damaged one"),
    "an empty card": (cut("rule.json", 0), "folder: expected a rule that can be read"),
    "half the numbers": (cut("rule.safetensors", 0.9), "folder: expected a rule that can be read"),
    "hardly any numbers": (cut("rule.safetensors", 0.001), "folder: expected a rule that can be read"),
    "no numbers": (cut("rule.safetensors", 0), "folder: expected a rule that can be read"),
    "not text": (lambda folder: (folder / "rule.json").write_bytes(b"\xff\xfe\x00"), "folder: expected a rule that can be read"),
    "not JSON": (lambda folder: (folder / "rule.json").write_text("rule: 1"), "folder: expected a rule that can be read"),
    "no card": (lambda folder: (folder / "rule.json").unlink(), "folder: expected a rule in .* found no file rule.json"),
    "no tensor file": (lambda folder: (folder / "rule.safetensors").unlink(), "folder: expected a rule in .* found no file rule.safetensors"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_a_card_that_lies_is_one_error(tmp_path, name):
    spoil, words = SPOILT[name]
    save_rule(tmp_path, example())
    spoil(tmp_path)
    with pytest.raises(InputError, match=words):
        load_rule(tmp_path)


def test_what_a_card_cannot_hold(tmp_path):
    rule = example()
    rule.facts = {"net": net()}
    with pytest.raises(InputError, match="facts: expected plain values"):
        save_rule(tmp_path / "a", rule)
    rule.facts = {"loss": float("nan")}
    with pytest.raises(InputError, match="facts: expected plain values"):
        save_rule(tmp_path / "a", rule)
    rule.facts = {}
    rule.output.values.data[0, 0, 0] = float("inf")
    with pytest.raises(InputError, match=r"'output.values': expected finite numbers"):
        save_rule(tmp_path / "a", rule)
    assert not (tmp_path / "a").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(RetainError, match="could not be written"):
        save_rule(tmp_path / "file", example())
