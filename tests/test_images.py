"""Photographs as tasks: folders, Flowers-102, bytes instead of floats, grey pictures in colour."""

import io
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as tv

import retain
from retain import likelihoods, models, tasks
from retain.errors import InputError, RetainError
from retain.tasks import ImageData, Task, TensorData

COLOURS = {"blue": (0, 0, 255), "green": (0, 128, 0), "red": (255, 0, 0)}


def picture(seed, width=40, height=30):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def fill(root, classes=("a", "b", "c"), count=10, **size):
    """A folder a class; every picture is different, and knows its class and number by its corner."""
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for number in range(count):
            image = picture(100 * label + number, **size)
            image.save(root / name / f"{number:02}.png")
    return root


def rows(data):
    return {row.numpy().tobytes() for row in data.inputs}


def everything(task):
    return [(part.inputs, part.targets) for part in (task.data, task.validation, task.test)]


# reading


@pytest.mark.parametrize(("interpolation", "mode"), [("bilinear", InterpolationMode.BILINEAR), ("bicubic", InterpolationMode.BICUBIC)])
@pytest.mark.parametrize(("width", "height", "size", "crop"), [(50, 50, 24, 1), (60, 40, 20, 1), (40, 60, 20, 1), (60, 40, 10, 0.5), (20, 20, 30, 1)])
def test_pictures_are_those_of_torchvision(tmp_path, interpolation, mode, width, height, size, crop):
    """Shorter side resized, middle cropped, normalised: the last sizes are chosen so that no pixel is cut."""
    fill(tmp_path, count=2, width=width, height=height)
    task = tasks.folder(tmp_path, size=size, crop=crop, test=0, validation=0, interpolation=interpolation, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    wanted = []
    for file in sorted(tmp_path.rglob("*.png")):
        small = tv.center_crop(tv.resize(Image.open(file), round(size / crop), mode), size)
        wanted.append(tv.normalize(tv.to_tensor(small), (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)))
    distances = (task.data.inputs[:, None] - torch.stack(wanted)[None]).abs().amax((2, 3, 4))
    assert distances.shape == (6, 6) and float(distances.amin(1).max()) < 1e-6 and sorted(distances.argmin(1).tolist()) == list(range(6))


def test_large_photographs_are_decoded_small_and_look_the_same(tmp_path, monkeypatch):
    seen = []
    real = Image.Image.convert
    monkeypatch.setattr(Image.Image, "convert", lambda self, *args: seen.append(self.size) or real(self, *args))
    for number, name in enumerate("ab"):
        (tmp_path / name).mkdir()
        picture(number, 60, 40).resize((1200, 800), Image.Resampling.BICUBIC).save(tmp_path / name / "x.jpg", quality=95)
    task = tasks.folder(tmp_path, size=32, test=0, validation=0)
    assert seen == [(150, 100)] * 2
    for row, name in zip(task.data.inputs, "ab", strict=True):
        exact = tv.to_tensor(tv.center_crop(tv.resize(real(Image.open(tmp_path / name / "x.jpg"), "RGB"), 32), 32))
        assert float((row - exact).abs().mean()) < 1 / 255 and float((row - exact).abs().max()) < 8 / 255


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "LA"])
def test_every_mode_becomes_three_channels(tmp_path, mode):
    for name in "ab":
        (tmp_path / name).mkdir()
        picture(1).convert("RGB" if mode == "LA" else mode).convert(mode).save(tmp_path / name / ("x.tiff" if mode == "CMYK" else "x.png"))
    assert tasks.folder(tmp_path, size=8, test=0, validation=0).data.shape == (3, 8, 8)


def test_a_palette_with_transparency_is_read_without_a_warning(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        picture(1).convert("P").save(tmp_path / name / "x.png", transparency=bytes(range(256)))
    assert tasks.folder(tmp_path, size=8, test=0, validation=0).n == 2


def test_a_turned_photograph_is_turned_back(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    for name in "ab":
        (tmp_path / name).mkdir()
        image = Image.new("RGB", (32, 32))
        image.paste((255, 255, 255), (0, 0, 32, 16))
        image.save(tmp_path / name / "x.png", exif=exif)
    inputs = tasks.folder(tmp_path, size=32, test=0, validation=0).data.inputs
    assert float(inputs[:, :, :16].max()) == 0 and float(inputs[:, :, 16:].min()) == 1


# splitting


def test_parts_are_disjoint_even_by_class_and_repeat(tmp_path):
    fill(tmp_path, count=20)
    task = tasks.folder(tmp_path, size=8)
    assert (task.n, task.validation.size, task.test.size) == (42, 6, 12)
    for part, count in ((task.data, 14), (task.validation, 2), (task.test, 4)):
        assert part.targets.bincount().tolist() == [count] * 3
    parts = [rows(part) for part in (task.data, task.validation, task.test)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 60
    again = tasks.folder(tmp_path, size=8)
    assert all(torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in zip(everything(task), everything(again), strict=True))
    assert rows(tasks.folder(tmp_path, size=8, seed=1).test) != parts[2]
    assert task.class_names == ("a", "b", "c") and task.classes == (0, 1, 2) and "seed 0" in task.note
    assert task.data.targets[:6].tolist() == [0, 1, 2, 0, 1, 2]


def test_labels_are_those_of_the_folders(tmp_path):
    for name, colour in COLOURS.items():
        (tmp_path / name).mkdir()
        for number in range(6):
            Image.new("RGB", (20 + number, 20), colour).save(tmp_path / name / f"{number}.png")
    task = tasks.folder(tmp_path, size=8)
    for inputs, labels in everything(task):
        wanted = torch.tensor([COLOURS[task.class_names[label]] for label in labels]) / 255
        assert torch.allclose(inputs.mean((2, 3)), wanted)


def test_few_a_class_are_nested_and_leave_the_test_set(tmp_path):
    fill(tmp_path, count=20)
    whole = tasks.folder(tmp_path, size=8)
    small, large = (tasks.folder(tmp_path, size=8, per_class=count) for count in (3, 7))
    assert small.data.targets.bincount().tolist() == [3, 3, 3] and large.n == 21
    assert rows(small.data) < rows(large.data) < rows(whole.data)
    assert torch.equal(small.test.inputs, whole.test.inputs) and torch.equal(small.validation.inputs, whole.validation.inputs)


def test_another_class_leaves_the_split_of_the_others(tmp_path):
    fill(tmp_path, ("a", "c"))
    before = rows(tasks.folder(tmp_path, size=8).test)
    fill(tmp_path, ("b",))
    assert before < rows(tasks.folder(tmp_path, size=8).test)


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_a_split_that_is_there_is_taken(tmp_path, name):
    for part, count in (("train", 5), ("test", 3), (name, 2)):
        fill(tmp_path / part, ("a", "b"), count)
    task = tasks.folder(tmp_path, size=8)
    assert (task.n, task.validation.size, task.test.size, task.note) == (10, 4, 6, "")
    whole = tasks.folder(tmp_path / "train", size=8, test=0, validation=0)
    assert rows(task.data) == rows(whole.data)


def test_what_a_split_lacks_is_drawn_from_train(tmp_path):
    fill(tmp_path / "train", ("a", "b"), 10)
    fill(tmp_path / "test", ("a", "b"), 3)
    task = tasks.folder(tmp_path, size=8)
    assert (task.n, task.validation.size, task.test.size) == (18, 2, 6)


def test_classes_may_be_called_train_and_test(tmp_path):
    fill(tmp_path, ("train", "test"), 5)
    assert tasks.folder(tmp_path, size=8).class_names == ("test", "train")


def test_other_files_and_hidden_folders_are_no_pictures(tmp_path):
    fill(tmp_path)
    (tmp_path / ".thumbnails").mkdir()
    (tmp_path / "__MACOSX").mkdir()
    for name in ("README.txt", "a/notes.txt", "a/._00.png"):
        (tmp_path / name).write_text("no picture")
    assert tasks.folder(tmp_path, size=8, test=0, validation=0).n == 30


# what goes wrong


def test_bad_folders_are_named(tmp_path):
    with pytest.raises(InputError, match=r"path: expected a folder with a folder for each class, found nothing at .*nowhere"):
        tasks.folder(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="found a file at"):
        tasks.folder(tmp_path / "file")
    with pytest.raises(InputError, match=r"at least two classes in .*found no folder"):
        tasks.folder(tmp_path)
    fill(tmp_path, ("a",))
    with pytest.raises(InputError, match="found only 'a'"):
        tasks.folder(tmp_path)
    with pytest.raises(InputError, match="found pictures without folders"):
        tasks.folder(tmp_path / "a")
    (tmp_path / "b").mkdir()
    with pytest.raises(InputError, match=r"class 'b': expected pictures in .*, found none"):
        tasks.folder(tmp_path)
    picture(0).save(tmp_path / "b" / "0.png")
    picture(1).save(tmp_path / "b" / "1.png")
    with pytest.raises(InputError, match="class 'b': expected more pictures than the 2 that validation and test take, found 2"):
        tasks.folder(tmp_path)
    with pytest.raises(InputError, match="per_class: expected at most 1, the training pictures of class 'b', found 5"):
        tasks.folder(tmp_path, validation=0, per_class=5)


def test_classes_of_a_split_have_to_agree(tmp_path):
    fill(tmp_path / "train", ("daisy", "rose"), 4)
    fill(tmp_path / "test", ("daisy", "roses"), 2)
    with pytest.raises(InputError, match=r"class 'roses' in .*Did you mean 'rose'"):
        tasks.folder(tmp_path)
    for place in ("daisy", "roses"):
        for file in (tmp_path / "test" / place).iterdir():
            file.unlink()
        (tmp_path / "test" / place).rmdir()
    with pytest.raises(InputError, match=r"a folder for each class in .*test, found none"):
        tasks.folder(tmp_path)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"size": 0}, "size: expected a whole number"),
        ({"per_class": 0}, "per_class: expected a whole number"),
        ({"test": 2}, "test: expected a number between 0 and 1"),
        ({"std": 0}, "std: expected a number or one a channel, above 0"),
        ({"mean": (1, 2)}, "mean: expected one number, or one for each of 3 channels"),
        ({"mean": "grey"}, "mean: expected a number"),
        ({"crop": 0}, "crop: expected a share"),
        ({"broken": "ignore"}, "broken: expected 'raise' or 'skip'"),
        ({"storage": "disk"}, "storage: expected 'float' or 'bytes'"),
        ({"interpolation": "linear"}, "interpolation: .*'bilinear'"),
    ],
)
def test_bad_options_are_named(tmp_path, options, text):
    fill(tmp_path, count=4)
    with pytest.raises(InputError, match=text):
        tasks.folder(tmp_path, **options)


def broken_ones():
    whole = io.BytesIO()
    picture(0).save(whole, "png")
    return {"empty": b"", "text": b"no picture", "half": whole.getvalue()[: len(whole.getvalue()) // 2]}


@pytest.mark.parametrize("kind", broken_ones())
def test_a_broken_image_is_named_and_skipped_only_if_asked(tmp_path, kind):
    fill(tmp_path, count=10)
    (tmp_path / "b" / "03.png").write_bytes(broken_ones()[kind])
    with pytest.raises(InputError, match=rf"image .*03\.png: expected a picture, found {'an empty file' if kind == 'empty' else 'one that cannot be decoded'}"):
        tasks.folder(tmp_path, size=8)
    task = tasks.folder(tmp_path, size=8, broken="skip")
    assert task.n + task.validation.size + task.test.size == 29
    assert "Skipped 1 broken image: 03.png." in task.note


def test_a_picture_of_sixteen_bits_is_not_clipped_in_silence(tmp_path):
    fill(tmp_path, ("a", "b"), 2)
    Image.fromarray(np.full((8, 8), 40000, dtype=np.uint16)).save(tmp_path / "a" / "deep.png")
    with pytest.raises(InputError, match=r"deep\.png.*8 bits"):
        tasks.folder(tmp_path, size=8, test=0, validation=0)


def test_the_next_picture_stands_in_for_a_broken_one(tmp_path):
    fill(tmp_path, ("a", "b"), 10)
    chosen = rows(tasks.folder(tmp_path, size=8, per_class=4).data)
    for number in range(4):
        (tmp_path / "a" / f"{number:02}.png").write_bytes(b"")
    task = tasks.folder(tmp_path, size=8, per_class=4, broken="skip", test=0, validation=0)
    assert task.data.targets.bincount().tolist() == [4, 4] and rows(task.data) != chosen
    for file in (tmp_path / "a").iterdir():
        file.write_bytes(b"")
    with pytest.raises(InputError, match="class 'a': expected 4 pictures that can be read, found 0"):
        tasks.folder(tmp_path, size=8, per_class=4, broken="skip", test=0, validation=0)


# progress


def test_progress_is_told(tmp_path):
    fill(tmp_path, count=10)
    told = []
    tasks.folder(tmp_path, size=8, per_class=2, progress=lambda done, total: told.append((done, total)))
    assert told == [(i, 15) for i in range(1, 16)]


def test_long_reading_shows_a_line_on_a_terminal(tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    fill(tmp_path, count=4)
    monkeypatch.setattr(sys, "stderr", Terminal())
    tasks.folder(tmp_path, size=8)
    assert sys.stderr.getvalue() == ""  # over in a moment
    clock = iter(range(1000))
    monkeypatch.setattr(sys.modules["retain.tasks.folder"].time, "monotonic", lambda: float(next(clock)))
    tasks.folder(tmp_path, size=8)
    assert sys.stderr.getvalue().endswith("12 of 12 images read\n")
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    tasks.folder(tmp_path, size=8)
    assert sys.stderr.getvalue() == ""


# bytes


def test_bytes_give_the_bits_of_floats(tmp_path):
    fill(tmp_path, count=10)
    options = {"size": 8, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    floats, small = (tasks.folder(tmp_path, **options, storage=storage) for storage in ("float", "bytes"))
    assert isinstance(small.data, ImageData) and small.data.images.dtype == torch.uint8 and small.n == floats.n
    for part in ("data", "validation", "test"):
        for seed in (None, 3):
            one, two = ([*task.batches(4, seed and torch.Generator().manual_seed(seed), part)] for task in (floats, small))
            assert len(one) == small.get(part).steps(4)
            assert all(torch.equal(a.inputs, b.inputs) and torch.equal(a.targets, b.targets) for a, b in zip(one, two, strict=True))
    assert torch.equal(small.data.tensors().inputs, floats.data.inputs)
    double = next(small.to(torch.device("cpu"), torch.float64).batches(4)).inputs
    assert torch.equal(double, floats.data.inputs[:4].double())


def test_training_on_bytes_is_training_on_floats(tmp_path):
    fill(tmp_path, count=8)
    found = []
    for storage in ("float", "bytes"):
        model = models.MLP(3 * 64, 8, 3, seed=0)
        result = retain.learn(model, [tasks.folder(tmp_path, size=8, storage=storage)], epochs=2, batch_size=4, seed=0)
        found.append((model.layers.fc1.weight.detach(), result.accuracy[-1, 0]))
    assert torch.equal(found[0][0], found[1][0]) and found[0][1] == found[1][1]


def test_grey_bytes_with_three_means_are_coloured():
    data = ImageData(torch.full((2, 1, 4, 4), 255, dtype=torch.uint8), torch.tensor([0, 1]), mean=(0.0, 0.5, 1.0), std=0.5)
    inputs, _ = next(data.batches(2))
    assert data.shape == tuple(inputs.shape[1:]) == (3, 4, 4)
    assert inputs[0, :, 0, 0].tolist() == [2.0, 1.0, 0.0]


def test_bad_bytes_are_refused():
    bytes_ = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    labels = torch.tensor([0, 1])
    for images, targets, text in (
        (bytes_.float(), labels, "images: expected bytes"),
        (bytes_[0], labels, "images: expected bytes"),
        (bytes_[:0], labels[:0], "images: expected bytes"),
        (bytes_, labels[:1], "targets: expected one for each of the 2 images"),
    ):
        with pytest.raises(InputError, match=text):
            ImageData(images, targets)
    with pytest.raises(InputError, match="std: expected as many numbers as mean, 2"):
        ImageData(bytes_[:, :1], labels, mean=(0.1, 0.2), std=(1.0, 1.0, 1.0))


# few


@pytest.mark.parametrize("kind", ["float", "bytes"])
def test_few_are_nested_draws_of_the_training_data(tmp_path, kind):
    fill(tmp_path, count=20)
    task = tasks.folder(tmp_path, size=8, storage=kind)
    if kind == "bytes":
        found = [{row.numpy().tobytes() for row in tasks.few(task, count).data.images} for count in (2, 6)]
        assert found[0] < found[1] and len(found[1]) == 18
        return
    small, large, other = tasks.few(task, 2), tasks.few(task, 6), tasks.few(task, 2, seed=1)
    assert rows(small.data) < rows(large.data) < rows(task.data) and rows(other.data) != rows(small.data)
    assert small.n == 6 and small.data.targets.tolist() == [0, 1, 2, 0, 1, 2] and small.test is task.test
    with pytest.raises(InputError, match="per_class: expected at most 14, the training samples of class 0"):
        tasks.few(task, 15)
    with pytest.raises(InputError, match="task: expected classes"):
        tasks.few(Task((torch.zeros(3, 2), torch.zeros(3, 1)), likelihood=likelihoods.Gaussian(1.0)), 1)


# small pictures as large ones


def test_grey_pictures_are_resized_repeated_and_normalised():
    task = tasks.digits()
    made = tasks.as_images(task, 32, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    grey = torch.nn.functional.interpolate(task.data.inputs[:50], (32, 32), mode="bilinear", antialias=True)
    wanted = tv.normalize(grey.repeat(1, 3, 1, 1), (0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    assert torch.allclose(made.data.inputs[:50], wanted, atol=1e-6)
    assert made.id == "digits-32px" and made.class_names == task.class_names and made.test.shape == (3, 32, 32) and made.n == task.n


def test_grey_pictures_as_bytes_differ_by_their_rounding():
    floats, small = (tasks.as_images(tasks.digits(), 16, mean=0.5, std=0.25, storage=storage) for storage in ("float", "bytes"))
    assert small.data.images.shape == (1437, 1, 16, 16) and small.data.shape == (3, 16, 16)
    assert float((small.data.tensors().inputs - floats.data.inputs).abs().max()) <= 0.5 / 255 / 0.25 + 1e-6


def test_only_pictures_become_pictures():
    labels = torch.tensor([0, 1])
    for inputs, text in (
        (torch.zeros(2, 5), r"data of task 'task': expected pictures \[N, 1 or 3, H, W\]"),
        (torch.zeros(2, 2, 4, 4), r"expected pictures \[N, 1 or 3, H, W\]"),
        (torch.zeros(2, 1, 4, 4) - 1, r"expected values in \[0, 1\], found -1 to -1"),
    ):
        with pytest.raises(InputError, match=text):
            tasks.as_images(Task((inputs, labels)), 8)
    with pytest.raises(InputError, match="pictures held in tensors"):
        tasks.as_images(Task([(torch.zeros(2, 1, 4, 4), labels)], n=2), 8)


# Flowers-102


@pytest.fixture
def flowers(tmp_path, monkeypatch):
    """Twelve pictures of three flowers in the format of Flowers-102, whose checksums stand for the real ones."""
    import hashlib

    from scipy.io import savemat

    base = tmp_path / "flowers-102"
    (base / "jpg").mkdir(parents=True)
    labels = np.array([1, 1, 1, 1, 2, 2, 2, 2, 7, 7, 7, 7])
    for number, label in enumerate(labels, 1):
        Image.new("RGB", (60, 50), (30 * int(label), 10 * number, 0)).save(base / "jpg" / f"image_{number:05}.jpg", quality=95)
    savemat(base / "imagelabels.mat", {"labels": labels[None]})
    savemat(base / "setid.mat", {"trnid": [[1, 2, 5, 6, 9, 10]], "valid": [[3, 7, 11]], "tstid": [[4, 8, 12]]})
    files = {"image": ("102flowers.tgz", "")}
    for key, name in (("label", "imagelabels.mat"), ("setid", "setid.mat")):
        files[key] = (name, hashlib.md5((base / name).read_bytes()).hexdigest())
    monkeypatch.setattr(datasets.Flowers102, "_file_dict", files)
    return tmp_path


def test_flowers_have_their_own_split(flowers):
    task = tasks.flowers102(flowers, size=16)
    assert (task.id, task.n, task.validation.size, task.test.size, len(task.classes), len(task.class_names)) == ("flowers102", 6, 3, 3, 102, 102)
    assert task.test.targets.tolist() == [0, 1, 6] and sorted(task.data.targets.tolist()) == [0, 0, 1, 1, 6, 6]
    # red tells the label, green the number of the picture
    for part in (task.data, task.validation, task.test):
        assert torch.allclose(part.inputs[:, 0].mean((1, 2)) * 255, 30.0 * (part.targets + 1), atol=3)
    assert torch.allclose(task.test.inputs[:, 1].mean((1, 2)) * 255, torch.tensor([40.0, 80.0, 120.0]), atol=3)
    assert tasks.flowers102(flowers, size=16, per_class=1).n == 3


def test_flowers_that_cannot_be_read_say_so(flowers, monkeypatch):
    monkeypatch.setenv("RETAIN_DATA", str(flowers / "elsewhere"))
    with pytest.raises(InputError, match=r"data: expected .*flowers-102.*jpg, found no such folder"):
        tasks.flowers102()
    (flowers / "flowers-102" / "setid.mat").write_bytes(b"damaged")
    with pytest.raises(RetainError, match="could not be read from"):
        tasks.flowers102(flowers)
    (flowers / "flowers-102" / "setid.mat").unlink()
    with pytest.raises(InputError, match=r"setid\.mat, found 1 of 3 missing"):
        tasks.flowers102(flowers)


def test_flowers_without_a_network_or_scipy_say_what_to_do(tmp_path, monkeypatch):
    monkeypatch.delenv("RETAIN_DATA", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))

    def offline(self):
        raise OSError("no network")

    monkeypatch.setattr(datasets.Flowers102, "download", offline)
    with pytest.raises(RetainError, match=r"could not be downloaded to .*no network.*Put 102flowers\.tgz"):
        tasks.flowers102()
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(RetainError, match=r"pip install 'retain\[images\]'"):
        tasks.flowers102()


def test_image_tasks_are_listed():
    assert {"folder", "flowers102"} <= set(tasks.SOURCES)
    assert isinstance(tasks.digits().data, TensorData)


def test_augmented_images_are_parts_of_the_images_and_only_where_they_are_shuffled():
    """A picture whose brightness is its column, so that a part and its mirror image can be told."""
    columns = torch.linspace(0, 1, 32).expand(50, 1, 32, 32).clone()
    plain = Task((columns, torch.arange(50) % 2), test=(columns, torch.arange(50) % 2), classes=(0, 1))
    task = tasks.augment(plain, 0.25)
    assert torch.equal(next(task.batches(50)).inputs, columns) and torch.equal(task.test.inputs, columns)
    found = next(task.batches(50, torch.Generator().manual_seed(1)))
    slopes = (found.inputs[:, 0, 16, -4] - found.inputs[:, 0, 16, 3]) / (columns[0, 0, 16, -4] - columns[0, 0, 16, 3])
    assert 0.4 < float(slopes.abs().min()) < 0.65 and 0.85 < float(slopes.abs().max()) <= 1.001  # half the side is a quarter of the area
    assert 10 < int((slopes < 0).sum()) < 40
    assert float(found.inputs.min()) >= 0 and float(found.inputs.max()) <= 1
    again = next(task.batches(50, torch.Generator().manual_seed(1)))
    other = next(task.batches(50, torch.Generator().manual_seed(2)))
    assert torch.equal(found.inputs, again.inputs) and not torch.equal(found.inputs, other.inputs)
    unmirrored = next(tasks.augment(plain, 0.25, mirror=False).batches(50, torch.Generator().manual_seed(1))).inputs
    assert bool((unmirrored[:, 0, 16, -4] > unmirrored[:, 0, 16, 3]).all())
    whole = next(tasks.augment(plain, 1.0, mirror=False).batches(50, torch.Generator().manual_seed(1))).inputs
    assert torch.allclose(whole, columns, atol=1e-6)
    assert task.n == 50 and task.data.steps(20) == 3 and task.to(torch.device("cpu")).data.least == 0.25


def test_what_cannot_be_augmented():
    with pytest.raises(InputError, match=r"least: expected a number in \(0, 1\]"):
        tasks.augment(tasks.digits(), 0.0)
    with pytest.raises(InputError, match=r"task: expected images \[N, C, H, W\], found inputs of shape \[3\]"):
        tasks.augment(Task((torch.rand(4, 3), torch.tensor([0, 1, 0, 1]))))
