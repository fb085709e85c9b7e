"""Make the embedded subsets of MNIST and Fashion-MNIST and the embedded digits.

    python scripts/make_embedded.py DATA

DATA is a folder in torchvision's layout (MNIST/raw, FashionMNIST/raw). Of each set the first 1,000 training and the first 200
test images of every class are kept, in their original order, so that the subset is even by class and needs no random draw.
The digits are scikit-learn's copy of the UCI optical digits; scikit-learn is needed only here.
"""

import sys
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from torchvision import datasets

TARGET = Path(__file__).parents[1] / "src" / "retain" / "tasks" / "embedded"


def first_of_each(images: np.ndarray, labels: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The first ``count`` images of each class, in file order."""
    rows = np.sort(np.concatenate([np.flatnonzero(labels == label)[:count] for label in range(10)]))
    return images[rows], labels[rows].astype(np.uint8)


def main(root: str) -> None:
    """Write the three files and print their sizes."""
    TARGET.mkdir(exist_ok=True)
    for name, source in (("mnist", datasets.MNIST), ("fashion", datasets.FashionMNIST)):
        parts = {}
        for part, train, count in (("train", True, 1000), ("test", False, 200)):
            data = source(root, train=train, download=False)
            parts[f"{part}_images"], parts[f"{part}_labels"] = first_of_each(data.data.numpy(), data.targets.numpy(), count)
        np.savez_compressed(TARGET / f"{name}.npz", **parts)
    digits = load_digits()
    np.savez_compressed(TARGET / "digits.npz", images=digits.images.astype(np.uint8), labels=digits.target.astype(np.uint8))
    for file in sorted(TARGET.glob("*.npz")):
        print(f"{file.name}: {file.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main(sys.argv[1])
