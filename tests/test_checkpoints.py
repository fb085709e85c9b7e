"""Files: written whole or not at all, read without unpickling anything."""

import json
import resource
import subprocess
import sys
import textwrap

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import retain
from retain.beliefs import Belief, Diagonal
from retain.errors import InputError, RetainError
from retain.models import MLP
from retain.training.checkpoints import read_tree, write_file, write_tree

leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**53), 2**53),
    st.floats(allow_nan=False),
    st.text(max_size=5),
    st.lists(st.integers(0, 9), max_size=3).map(lambda values: torch.tensor(values, dtype=torch.int64)),
    st.lists(st.floats(-9, 9), max_size=3).map(lambda values: torch.tensor(values, dtype=torch.float64)),
)
trees = st.dictionaries(
    st.one_of(st.text(max_size=4), st.integers()),
    st.recursive(leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3), max_leaves=8),
    max_size=5,
)


def same(a, b):
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


@given(trees)
@settings(max_examples=80, deadline=None)
def test_trees_go_there_and_back(tmp_path_factory, tree):
    path = tmp_path_factory.mktemp("tree") / "t.safetensors"
    write_tree(path, tree)
    assert same(tree, read_tree(path))


def test_optimiser_states_and_shared_memory(tmp_path):
    model = MLP(4, 3, 2, seed=0)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    x = torch.arange(6.0)
    write_tree(tmp_path / "s", {"optimizer": optimizer.state_dict(), "a": x, "view": x[2:], "row": x.view(2, 3).T})
    found = read_tree(tmp_path / "s")
    again = torch.optim.Adam(model.parameters())
    again.load_state_dict(found["optimizer"])
    assert same(again.state_dict()["state"], optimizer.state_dict()["state"])
    assert torch.equal(found["view"], x[2:]) and torch.equal(found["row"], x.view(2, 3).T)


def test_keys_may_look_alike(tmp_path):
    tree = {"a": {"b": torch.zeros(1)}, "a/b": torch.ones(1), 1: torch.full((1,), 2.0), "1": torch.full((1,), 3.0)}
    write_tree(tmp_path / "s", tree)
    assert same(tree, read_tree(tmp_path / "s"))


def test_saving_again_leaves_no_old_belief_and_nothing_half_done(tmp_path):
    model, other = MLP(4, 2, seed=0), MLP(4, 2, seed=1)
    belief = Belief({"layers.fc1.bias": torch.zeros(2)}, Diagonal({"layers.fc1.bias": torch.ones(2)}), 1)
    retain.save(tmp_path, model, belief)
    with pytest.raises(InputError, match="JSON"):
        retain.save(tmp_path, other, spec={"a": {1, 2}})
    fresh = MLP(4, 2, seed=2)
    assert retain.load(tmp_path, fresh)[1].n == 1 and torch.equal(fresh.layers.fc1.weight, model.layers.fc1.weight)
    retain.save(tmp_path, torch.nn.DataParallel(other))
    assert retain.load(tmp_path, fresh)[1] is None and torch.equal(fresh.layers.fc1.weight, other.layers.fc1.weight)
    (tmp_path / "spec.json").write_text("{")
    with pytest.raises(InputError, match="damaged"):
        retain.load(tmp_path, model)
    assert torch.equal(model.layers.fc1.weight, MLP(4, 2, seed=0).layers.fc1.weight)


def test_what_is_not_plain_is_refused_by_place(tmp_path):
    with pytest.raises(InputError, match=r"state at /a/1: .*found set"):
        write_tree(tmp_path / "s", {"a": [1, {2}]})
    assert not list(tmp_path.iterdir())


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "s"
    with pytest.raises(InputError, match="nothing there"):
        read_tree(path)
    path.write_bytes(b"not safetensors")
    with pytest.raises(InputError, match="something else"):
        read_tree(path)
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(InputError, match="schema"):
        read_tree(path)


def test_save_and_load(tmp_path):
    model = MLP(4, 3, 2, seed=0)
    centre = {k: p.detach() for k, p in model.named_parameters()}
    belief = Belief(centre, Diagonal({k: torch.ones_like(p) for k, p in centre.items()}), 7)
    folder = retain.save(tmp_path / "kept", model, belief, {"note": "x"})
    other = MLP(4, 3, 2, seed=1)
    spec, found = retain.load(folder, other)
    assert spec["note"] == "x" and found.n == 7
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert found.energy(dict(model.named_parameters())) == 0
    from safetensors.torch import load_file

    assert set(load_file(folder / "model.safetensors")) == set(model.state_dict())
    with pytest.raises(InputError, match=r"'layers.fc1.weight': expected shape \(3, 4\)"):
        retain.load(folder, MLP(4, 5, 2))
    with pytest.raises(InputError, match=r"retain\.save"):
        retain.load(tmp_path, model)


def test_an_untouched_file_survives_a_full_disk(tmp_path):
    """A real limit on file sizes stands for a full disk: the old file is as it was, and no scrap is left."""
    path = tmp_path / "state"
    write_file(path, b"old")
    script = textwrap.dedent("""
        import resource, signal, sys
        from pathlib import Path
        from retain.errors import RetainError
        from retain.training.checkpoints import write_file
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            write_file(Path(sys.argv[1]), b"x" * 5000)
        except RetainError as error:
            print(error)
    """)
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    assert "could not be written" in done.stdout and "Nothing that was there is lost" in done.stdout
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["state"]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 1000


def test_a_file_in_the_way_is_one_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RetainError, match="could not be written"):
        write_file(tmp_path / "file" / "state", b"")


def test_spec_is_json(tmp_path):
    folder = retain.save(tmp_path, MLP(2, 2, seed=0), spec={"a": 1})
    assert json.loads((folder / "spec.json").read_text()) == {"schema": 1, "a": 1}
