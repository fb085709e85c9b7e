"""What is learned: tasks, batches, streams, and where the data come from.

A :class:`Task` is data with a likelihood and, where there is one, a test set. A :class:`Stream` is tasks in order and the
scenario that says which outputs compete for each of them.
"""

from retain.tasks.augment import augment
from retain.tasks.batch import Batch, apply
from retain.tasks.controls import shuffle_blocks, shuffle_labels
from retain.tasks.data import Data, LoaderData, TensorData
from retain.tasks.folder import flowers102, folder
from retain.tasks.images import ImageData, as_images, few
from retain.tasks.sources import arrays, digits, fashion_mnist, mnist
from retain.tasks.stream import Stream, as_stream, sequence, split, union
from retain.tasks.streams import blurry, joint
from retain.tasks.synthetic import halfspace, relu_network, teacher
from retain.tasks.task import Task, as_task
from retain.tasks.transforms import permute, rotate, shift_labels

SOURCES = {
    "mnist": mnist,
    "fashion_mnist": fashion_mnist,
    "digits": digits,
    "flowers102": flowers102,
    "folder": folder,
    "arrays": arrays,
    "halfspace": halfspace,
    "relu_network": relu_network,
}

__all__ = [
    "SOURCES",
    "Batch",
    "Data",
    "ImageData",
    "LoaderData",
    "Stream",
    "Task",
    "TensorData",
    "apply",
    "arrays",
    "as_images",
    "as_stream",
    "as_task",
    "augment",
    "blurry",
    "digits",
    "fashion_mnist",
    "few",
    "flowers102",
    "folder",
    "halfspace",
    "joint",
    "mnist",
    "permute",
    "relu_network",
    "rotate",
    "sequence",
    "shift_labels",
    "shuffle_blocks",
    "shuffle_labels",
    "split",
    "teacher",
    "union",
]
