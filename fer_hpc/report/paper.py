"""The numbers of the source report, *Facial Expression Recognition* (AffectNet, eight classes).

What it prints, as it prints it; `NOTES` says what its own notebooks support.
"""

from __future__ import annotations

from dataclasses import dataclass

from fer_hpc.config import CLASSES


@dataclass(frozen=True)
class PaperModel:
    """A model of its tables 2 and 3; losses in nats, accuracies as shares."""

    title: str
    val_loss: float
    val_accuracy: float
    test_loss: float
    test_accuracy: float
    recalls: tuple[float, ...]  # by class, in the order of CLASSES
    figures: str  # their numbers
    note: str = ""

    @property
    def balanced(self) -> float:
        """Balanced accuracy that the recalls imply."""
        return sum(self.recalls) / len(self.recalls)


MODELS = {
    "cnn_baseline": PaperModel(
        "CNN baseline",
        1.35,
        0.6298,
        1.35,
        0.6298,
        (0.31, 0.92, 0.78, 0.20, 0.32, 0.09, 0.36, 0.00),
        "5, 6",
        "last epoch's weights; its val figure is the test figure; val had peaked at .74",
    ),
    "cnn_improved": PaperModel(
        "CNN improved",
        0.75,
        0.7701,
        0.63,
        0.7514,
        (0.76, 0.89, 0.46, 0.35, 0.27, 0.17, 0.51, 0.04),
        "7, 8",
        "its notebooks have test .730 and .723; .63 and .77 are training figures",
    ),
    "resnet_baseline": PaperModel(
        "ResNet baseline",
        2.06,
        0.6591,
        2.05,
        0.6639,
        (0.54, 0.89, 0.45, 0.30, 0.42, 0.24, 0.47, 0.07),
        "9, 10",
        "last epoch's weights; val had peaked at .718",
    ),
    "resnet_improved": PaperModel(
        "ResNet improved",
        1.01,
        0.7449,
        1.02,
        0.7528,
        (0.71, 0.93, 0.55, 0.53, 0.26, 0.19, 0.59, 0.02),
        "11, 12",
        "its losses carry label smoothing .1, whose floor is .467: compare the objective",
    ),
}

# Table 1: train, val, test of each class.
COUNTS = {
    "Neutral": (52410, 11233, 11231),
    "Happiness": (94086, 20166, 20162),
    "Sadness": (17821, 3819, 3819),
    "Surprise": (9862, 2114, 2114),
    "Fear": (4464, 957, 957),
    "Disgust": (2662, 571, 570),
    "Anger": (17417, 3733, 3732),
    "Contempt": (2625, 562, 563),
}
assert tuple(COUNTS) == CLASSES
MAJORITY = 20162 / 43148  # of its test split
NOTES = (
    "The source report has single runs without intervals. Its test split has the classes of "
    "training: 46.7 % of its faces are happy.",
    "The source report's accuracy of the discriminator is plotted as real + generated, on an axis "
    "of 1.9 to 2.0.",
)
