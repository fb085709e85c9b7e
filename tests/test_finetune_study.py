"""The fine-tuning study: its arms, its controls, the inside of its models, its page, and going on after a break."""

import json

import pytest
import torch
from PIL import Image

from retain import models
from retain.errors import InputError
from retain.report import write_report
from retain.runs import execute
from retain.studies import find
from retain.studies.finetune import common, curves, figures
from retain.studies.finetune.spec import CONTROLS

TINY = [
    "images=digits",
    "size=32",
    "classes=3",
    "tested=30",
    "validation=20",
    "per_class=[1,4]",
    "recipes=[scratch,fine-tune,linear-probe,wise-ft]",
    "controls=[mean-variance,permuted,shuffled-labels,shuffled-blocks]",
    "epochs=2",
    "least_steps=0",
    "batch_size=6",
    "rates=[0.0003,0.001]",
    "own_rates={scratch: 0.002}",
    "tune_at=4",
    "inside_at=4",
    "block=16",
    "looked=8",
    "surface_points=3",
    "augment=0.7",
    "small_dim=5",
    "small_width=16",
    "small_source=200",
    "small_samples=[20,100]",
    "small_steps=20",
    "seeds=2",
]


@pytest.fixture(scope="module")
def study():
    return find("finetune")


@pytest.fixture(scope="module")
def run(study, tmp_path_factory):
    return execute(study, study.spec("quick", TINY), tmp_path_factory.mktemp("finetune"))


def test_every_arm_at_every_size(study, run):
    spec = study.spec("quick", TINY)
    arms = [arm.name for arm in common.arms(spec)]
    assert arms == [
        *("scratch", "fine-tune", "linear-probe", "wise-ft", "mean-variance", "permuted"),
        *("fine-tune, shuffled labels", "scratch, shuffled labels", "fine-tune, shuffled blocks", "scratch, shuffled blocks"),
    ]
    for result in run.results():
        assert [(entry["arm"], entry["n"]) for entry in result["curves"]] == [(arm, n) for arm in arms for n in (1, 4)]
        found = {(entry["arm"], entry["n"]): entry for entry in result["curves"]}
        assert found["fine-tune", 4]["rate"] in spec.rates
        for arm in ("scratch", "scratch, shuffled blocks"):
            assert found[arm, 1]["rate"] == 0.002  # a random start takes the rate of scratch
        assert found["linear-probe", 4]["parameters"]["trained"] == 1280 * 3 + 3
        assert found["linear-probe", 4]["inside"]["numbers"]["distance of the body, relative"] == 0
        assert found["linear-probe", 4]["inside"]["numbers"]["CKA, mean"] == pytest.approx(1)
        assert found["fine-tune", 4]["inside"]["numbers"]["distance of the body, relative"] > 1e-4
        assert len(found["wise-ft", 1]["found"]["curve"]) == 5 and "inside" not in found["wise-ft", 1]
        assert found["linear-probe", 4]["accuracy"]["test"] > 0.6 > found["permuted", 4]["accuracy"]["test"]
    pictured = [[entry["arm"] for entry in result["curves"] if "pictures" in entry] for result in run.results()]
    assert pictured == [["scratch", "fine-tune"], []]  # of the first run alone


def test_wise_ft_begins_at_the_probe(run):
    for result in run.results():
        found = {(entry["arm"], entry["n"]): entry for entry in result["curves"]}
        assert found["wise-ft", 4]["found"]["curve"][0]["test"] == pytest.approx(found["linear-probe", 4]["accuracy"]["test"])


def test_images_of_a_run_are_nested_and_test_images_always_the_same(study):
    spec = study.spec("quick", TINY)
    first, second = (common.pool(spec, seed) for seed in (0, 1))
    assert torch.equal(first.test.images, second.test.images) and not torch.equal(first.data.images, second.data.images)
    one, four = (common.drawn(first, n, 0).data.images for n in (1, 4))
    assert all(any(torch.equal(image, other) for other in four) for image in one) and len(four) == 12
    held = first.validation.images
    assert not any(torch.equal(image, other) for image in first.data.images for other in held)
    cached = common.Cache(spec, first)
    known = models.features(common.network(spec, 3), common.drawn(first, 4, 0))
    assert torch.allclose(cached.drawn(4, 0).data.inputs, known.data.inputs, atol=1e-4)


def test_models_may_be_asked_about_larger_images(study, tmp_path):
    larger = [
        *TINY,
        "test_size=48",
        "per_class=[4]",
        "recipes=[fine-tune,linear-probe]",
        "controls=[shuffled-blocks]",
        "rates=[0.0003]",
        "sections=[curves]",
        "seeds=1",
    ]
    spec = study.spec("quick", larger)
    pool = common.pool(spec, 0)
    assert pool.data.shape[-1] == 32 and pool.test.shape[-1] == pool.validation.shape[-1] == 48
    same = common.pool(study.spec("quick", TINY), 0)
    assert torch.equal(pool.test.targets, same.test.targets) and torch.equal(pool.validation.targets, same.validation.targets)
    found = {entry["arm"]: entry["accuracy"]["test"] for entry in execute(study, spec, tmp_path).results()[0]["curves"]}
    assert found["fine-tune"] > 0.6 and found["linear-probe"] > 0.6  # trained at 32 pixels, asked at 48


def test_controls_do_what_they_say(study):
    spec = study.spec("quick", TINY)
    task = common.drawn(common.pool(spec, 0), 4, 0)
    plain = task.data.tensors()
    labels = common.changed(spec, task, "shuffled-labels", 0)
    assert torch.equal(labels.data.inputs, plain.inputs) and not torch.equal(labels.data.targets, plain.targets)
    assert torch.equal(labels.test.targets, task.test.targets)
    blocks = common.changed(spec, task, "shuffled-blocks", 0)
    assert torch.equal(blocks.data.targets, plain.targets) and not torch.equal(blocks.test.inputs, task.test.tensors().inputs)
    weights = {start: common.network(spec, 3, start, 5).conv_stem.weight.detach() for start in (None, "random", "mean-variance", "permuted")}
    assert torch.equal(weights["permuted"].flatten().sort()[0], weights[None].flatten().sort()[0])
    assert weights["mean-variance"].std() == pytest.approx(float(weights[None].std()), rel=0.1) and weights["random"].std() < 0.5 * weights[None].std()
    assert {arm.change for arm in common.arms(spec)} == {None, "shuffled-labels", "shuffled-blocks"} and len(CONTROLS) == 4


def test_the_page_and_the_differences(study, run):
    text = write_report(run).read_text()
    for words in (
        "Test accuracy, %",
        "Gain over plain fine-tuning, points",
        "What explains the gain",
        "Inside: how far, how alike, how sharp",
        "A function from few points",
        "a flat minimum does not imply it",
    ):
        assert words in text
    assert text.count("<svg") >= 12
    spec, results = study.spec("quick", TINY), run.results()
    found = figures.difference(results, "fine-tune", "scratch", 4)
    pairs = [[entry["accuracy"]["test"] for entry in figures.of(results, arm, 4)] for arm in ("fine-tune", "scratch")]
    assert found.mean == pytest.approx(sum(a - b for a, b in zip(*pairs, strict=True)) / 2)
    assert f"{found.mean * 100:+.1f}" in next(table for table in figures.shown(spec, results)[0] if table.title == "What explains the gain").rows[0][2]
    numbers = run.read("summary.json")["numbers"]
    assert numbers["fine-tune"]["test at 4"]["mean"] == pytest.approx(sum(pairs[0]) / 2) and "pretrained" in str(list(numbers))


def test_a_run_that_was_broken_off_goes_on_with_the_same_numbers(study, run, tmp_path):
    def stop(seed, arm, kind, fields):
        if seed == 0 and arm == "wise-ft@4" and kind == "epoch" and fields["epoch"] == 1:
            raise KeyboardInterrupt

    spec = study.spec("quick", [*TINY, "seeds=1"])
    with pytest.raises(KeyboardInterrupt):
        execute(study, spec, tmp_path, listener=stop)
    again = execute(study, spec, tmp_path, resume=True)
    assert json.dumps(again.results()[0]) == json.dumps(run.results()[0])


def test_plan(study):
    plan = study.plan(study.spec("quick", TINY))
    assert plan.parameters == sum(p.numel() for p in models.pretrained("efficientnet-lite0", 3)[0].parameters())
    assert plan.stages == study.stages(study.spec("quick", TINY)) and plan.seconds > 0 and "inputs [" in plan.batch


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("recipes=[lpft]", "recipes: expected recipes, found 'lpft'. Did you mean 'lp-ft'"),
        ("own_rates={finetune: 0.1}", "own_rates: expected names of recipes and controls, found 'finetune'. Did you mean 'fine-tune'"),
        ("surface_points=4", "surface_points: expected an odd number"),
        ("block=12", "block: expected a divisor of the 64 pixels"),
        ("classes=11", "classes: expected at most the 10 there are"),
        ("per_class=[5,5]", "per_class: expected every entry once"),
        ("per_class=[5000]", "per_class: expected at most"),
        ("model=resnet50", "name: expected 'torchvision/NAME'"),
        ("images=folder", "data: expected a folder with a folder for each class"),
    ],
)
def test_settings_that_do_not_go_together(study, setting, said, tmp_path):
    with pytest.raises(InputError, match=said):
        execute(study, study.spec("quick", ["size=64", "images=digits", setting]), tmp_path)
    assert not list(tmp_path.rglob("*.json"))


def test_a_folder_of_photographs_is_part_of_what_a_run_is(study, tmp_path):
    for root in ("one", "two"):
        for name in ("blue", "red"):
            (tmp_path / root / name).mkdir(parents=True)
            for shot in range(12):
                Image.new("RGB", (40 + shot, 40), name).save(tmp_path / root / name / f"{shot}.png")
    (tmp_path / "two" / "red" / "0.png").unlink()
    settings = [*TINY, "images=folder", "size=64", "classes=null", "sections=[curves]", "controls=[]", "recipes=[linear-probe]", "seeds=1", "crop=1.0"]
    one, two = (study.spec("folder", [*settings, f"data={tmp_path / root}"]) for root in ("one", "two"))
    assert one.fingerprint(study) != two.fingerprint(study)
    found = execute(study, one, tmp_path / "runs")
    assert found.results()[0]["curves"][1]["accuracy"]["test"] == 1.0 and "Split by us" in found.read("summary.json")["notes"][0]
    assert curves.sizes(one) == [1, 4]
