"""CK+ as its authors give it: frames of sequences, with an emotion file for some of them."""

from __future__ import annotations

import collections
import re

import numpy as np

from fer_hpc.config import CLASSES, UserError
from fer_hpc.data.annotations import Collector, Face, Rows, landmarks_of
from fer_hpc.data.classes import NO_CLASSES, ORDERS, Numbering, StatedClasses, map_classes
from fer_hpc.data.faces import Reject
from fer_hpc.data.pictures import is_picture, kind_of, printable
from fer_hpc.data.sequences import stem
from fer_hpc.data.tally import Tally
from fer_hpc.data.tree import DAMAGED, Tree

NUMBERING = Numbering("CK+", ORDERS["ckplus"], refusal="emotion {label}, wanted 0 to {last}")
FRAME = re.compile(r"((S\d{3})_\d{3})_(\d{8})")  # sequence, person, frame
EMOTION, LANDMARKS = "_emotion", "_landmarks"  # ends of the stems of .txt files
PEAK_FRAMES = 3
MAX_TEXT_BYTES = 1 << 16
NEUTRAL = "0"


class CkPlus:
    """`cohn-kanade-images/S005/001/S005_001_00000001.png` and so on, beside
    `Emotion/S005/001/S005_001_00000011_emotion.txt`; `Landmarks/` is used if it is there.

    A sequence begins neutral and ends at the peak. Of one with an emotion, the last three frames
    have it, and the first is neutral. The frames between, and sequences without an emotion, are
    ignored and counted. The person is the group.
    """

    def __init__(self, tree: Tree, stated: StatedClasses = NO_CLASSES) -> None:
        self.tree, self.stated = tree, stated
        self.classes: tuple[str, ...] = CLASSES
        if not any(emotion_of(name) for name, _ in tree.files()):
            raise UserError(
                f"--input {tree.root}: no S005_001_00000011_emotion.txt or the like in it (CK+'s "
                "folder Emotion/); frames in class folders: --source folder"
            )

    def rows(self) -> Rows:
        """List the first and last frames of the sequences that have an emotion."""
        collector, ignored = Collector(), Tally()
        frames: dict[str, dict[str, str]] = collections.defaultdict(dict)
        points: dict[str, str] = {}
        emotions: dict[str, tuple[str, str]] = {}  # sequence -> (last frame, file)
        for name, _ in self.tree.files():
            match = FRAME.fullmatch(stem(name)) if is_picture(name) else None
            if match and match[3] in frames[match[1]]:
                ignored.add("frames that are there twice", printable(name), limited=True)
            elif match:
                frames[match[1]][match[3]] = name
            elif (labelled := emotion_of(name)) and labelled[1] not in emotions:
                emotions[labelled[1]] = labelled[3], name
            elif name.endswith(f"{LANDMARKS}.txt"):
                points[stem(name).removesuffix(LANDMARKS)] = name
            else:
                ignored.add(f"{kind_of(name)} files", printable(name), limited=is_picture(name))
        for sequence, listed in sorted(frames.items()):
            if sequence not in emotions:
                ignored.add("frames of sequences without an emotion", sequence, len(listed))
        for sequence, (last, file) in sorted(emotions.items()):
            self._add(collector, ignored, frames[sequence], last, file, points)
        class_map = map_classes(
            collector.labels(), self.stated, f"--input {self.tree.root}", NUMBERING, CLASSES
        )
        self.classes = class_map.classes
        notes = [
            f"the last {PEAK_FRAMES} frames of a sequence have its emotion, the first is neutral",
            "persons (group) are those in CK+'s file names",
        ]
        if not points:
            notes.append("no Landmarks/ in it: --crop detect finds the faces in these photographs")
        ignored.update(self.tree.ignored)
        return collector.rows(self.tree.root, class_map, "", notes, ignored)

    def _add(
        self,
        collector: Collector,
        ignored: Tally,
        frames: dict[str, str],
        last: str,
        file: str,
        points: dict[str, str],
    ) -> None:
        """Add the frames of a sequence up to the one that its emotion file names."""
        numbers = sorted(number for number in frames if number <= last)
        for number in sorted(frames.keys() - set(numbers)):
            ignored.add("frames after the peak", printable(frames[number]))
        if last not in frames:
            collector.add(file, Reject(f"missing image: the peak {last}"))
            for number in numbers:
                ignored.add("frames of sequences without their peak", printable(frames[number]))
            return
        emotion = self._emotion(file)
        peak = numbers[-PEAK_FRAMES:] if len(numbers) > PEAK_FRAMES else numbers[1:] or numbers
        for number in numbers:
            name = frames[number]
            if number not in (numbers[0], *peak):
                ignored.add("frames between the first and the peak", printable(name))
                continue
            label = emotion if number in peak else NEUTRAL
            stamp = self.tree.stamp(name)
            label = stamp if isinstance(stamp, Reject) else label
            marks = points.get(stem(name), "")
            stamps = (stamp, self.tree.stamp(marks) if marks else 0)
            person = stem(name).partition("_")[0]
            collector.add(name, label, "", (name, marks), stamp=stamps, group=person)

    def _emotion(self, file: str) -> str | Reject:
        """The number in an emotion file, as `   3.0000000e+00`."""
        try:
            number = float(self.tree.read(file, MAX_TEXT_BYTES).decode("ascii"))
            return str(int(number)) if number.is_integer() else Reject("emotion is no number")
        except (*DAMAGED, ValueError, OverflowError):
            return Reject("its emotion file holds no number from 0 to 7")

    def face(self, locator: tuple[str, str]) -> Face:
        """Read one frame, and its landmarks if there are some."""
        name, marks = locator
        picture = self.tree.picture(name)
        if not marks:
            return Face(picture)
        try:
            text = self.tree.read(marks, MAX_TEXT_BYTES).decode("ascii")
            return Face(picture, landmarks=landmarks_of(np.array(text.split(), np.float64)))
        except (*DAMAGED, ValueError):
            raise Reject("landmarks are not a list of points") from None

    def close(self) -> None:
        """Remove what was unpacked."""
        self.tree.close()


def emotion_of(name: str) -> re.Match[str] | None:
    """Sequence, person and frame of an emotion file; None for any other file."""
    file_stem = stem(name)
    if not file_stem.endswith(EMOTION) or not name.endswith(".txt"):
        return None
    return FRAME.fullmatch(file_stem.removesuffix(EMOTION))
