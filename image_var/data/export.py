"""Fashion-MNIST as folders of PNG files: all of it, or a small part that can be shipped."""

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from image_var.data.fashion import LABELS, SIZE, FashionMNIST
from image_var.io import to_picture
from next_scale.licence import MIT
from next_scale.splits import SPLITS

_LICENCE = f"""## Attribution

Fashion-MNIST is copyright 2017 Zalando SE, https://tech.zalando.com, released under the MIT licence:

{MIT}"""

_DEMO = f"""# Demo images

{{count}} gray images of clothes, {SIZE} x {SIZE}, PNG: {{each}} of each of the ten classes of Fashion-MNIST, one folder
a class. They are enough to try every command without the whole set. A file's name is its number in the published test
part, so a model trained on the training part has not seen them. Around the published 28 x 28 pixels is a black border
of 2, as everywhere here.

Made by `image-var data demo --out samples/demo_images`.

{_LICENCE}"""

_WHOLE = f"""# Fashion-MNIST

{{count}} gray images of clothes in ten classes, {SIZE} x {SIZE}, PNG: {{splits}}. Around the published 28 x 28 pixels
is a black border of 2. Validation is the last 5,000 of the published training images; a file's name is its number in
its split.

Made by `image-var data fashion --out FOLDER`.

{_LICENCE}"""


def write_fashion(
    out: str | os.PathLike, source: str | os.PathLike | None = None, advance: Callable[[int], None] | None = None
) -> Counter[str]:
    """Write all images to ``out/SPLIT/CLASS/NUMBER.png`` with a README, and return how many of each split.

    Args:
        out: a folder, made where missing.
        source: of the idx files, see :func:`image_var.data.fashion.find_fashion`.
        advance: called with 1 after each image.
    """
    out, counts = Path(out), Counter()
    for split in SPLITS:
        data = FashionMNIST(source, split)
        for index in range(len(data)):
            _write(out / split, data, index)
            if advance is not None:
                advance(1)
        counts[split] = len(data)
    splits = ", ".join(f"{count:,} {split}" for split, count in counts.items())
    (out / "README.md").write_text(_WHOLE.format(count=f"{counts.total():,}", splits=splits), encoding="utf-8")
    return counts


def write_demo(out: str | os.PathLike, source: str | os.PathLike | None = None, count: int = 30) -> int:
    """Write the first `count` test images of each class to ``out/CLASS/NUMBER.png`` with a README; returns how many."""
    out, data, made = Path(out), FashionMNIST(source, "test"), Counter()
    for index, label in enumerate(data.labels.tolist()):
        if made[label] < count:
            _write(out, data, index)
            made[label] += 1
    (out / "README.md").write_text(_DEMO.format(count=made.total(), each=count), encoding="utf-8")
    return made.total()


def _write(folder: Path, data: FashionMNIST, index: int) -> None:
    path = folder / LABELS[int(data.labels[index])] / f"{index:05}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    to_picture(data.image_batch([index])[0]).save(path, optimize=True)
