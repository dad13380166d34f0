"""Small files that stand for something huge: refused, or read in little memory. Each is met in a process of its own."""

import json
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# imports, then meets: prints what is refused, and last by how many bytes the peak of memory grew since the imports
_CHILD = """
import resource, sys, time
from pathlib import Path
from next_scale.errors import UserError
folder = Path(sys.argv[1])
def met(read):
    began = time.process_time()
    try:
        read()
        print("read")
    except UserError as error:
        print("refused:", error)
    assert time.process_time() - began < 15  # an image of 67 M pixels takes some
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
{imports}
before = peak()
{lines}
print(peak() - before)
"""
LITTLE, MOST = 150 << 20, 3 << 29


def meet(folder: Path, imports: str, lines: str) -> tuple[list[str], int]:
    """What was said of each bomb, and how much memory that took; none may take long."""
    command = [sys.executable, "-c", _CHILD.format(imports=imports, lines=lines), str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    *said, peak = done.stdout.splitlines()
    return said, int(peak)


def chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def png(width: int, height: int, rows: int) -> bytes:
    """A gray image with transparency that has so many rows of what its header claims."""
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 4, 0, 0, 0])
    row = b"\0" + b"\xff\x80" * width
    packer = zlib.compressobj(1)
    data = b"".join(packer.compress(row) for _ in range(rows)) + packer.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_pictures(tmp_path):
    (tmp_path / "claims.png").write_bytes(png(60_000, 60_000, 1))
    (tmp_path / "large.png").write_bytes(png(8192, 8192, 8192))  # the most that is read
    (tmp_path / "chunk.png").write_bytes(png(4, 4, 4)[:33] + b"\xff\xff\xff\xf0IDAT")
    (tmp_path / "rows.png").write_bytes(png(100, 100, 100_000))  # more data than pixels
    assert (tmp_path / "large.png").stat().st_size < 2_000_000
    said, peak = meet(
        tmp_path,
        "import torch\nfrom image_var.io import read_image",
        "for name in ('claims', 'chunk', 'rows', 'large'):\n    met(lambda: read_image(folder / f'{name}.png'))",
    )
    assert "more than 67,108,864 pixels" in said[0] and said[1].startswith("refused") and said[3:] == ["read"]
    assert peak < MOST, f"{peak / 2**20:.0f} MiB"


def test_recordings(tmp_path):
    """20 s of silence at 655 kHz: 57 KB, and 105 MB as numbers. Ten minutes are the most that is read."""
    import numpy as np
    import soundfile

    with soundfile.SoundFile(tmp_path / "long.flac", "w", 655_350, 2, "PCM_16", format="FLAC") as file:
        for _ in range(20):
            file.write(np.zeros((655_350, 2), np.int16))
    with soundfile.SoundFile(tmp_path / "long.ogg", "w", 1000, 1, "VORBIS", format="OGG") as file:
        for _ in range(700):
            file.write(np.zeros(1000, np.float32))
    whole = (tmp_path / "long.flac").read_bytes()
    # the number of frames stands in the last 36 bits before the checksum of the stream's first block
    understated = bytearray(whole)
    understated[22:26] = (1000).to_bytes(4, "big")
    (tmp_path / "understated.flac").write_bytes(understated)
    wav = b"RIFF\xff\xff\xff\xffWAVEfmt \x10\0\0\0\1\0\1\0\x80\x3e\0\0\0\x7d\0\0\2\0\x10\0data\xfe\xff\xff\xff"
    (tmp_path / "claims.wav").write_bytes(wav + bytes(100))  # 2^31 - 1 frames
    (tmp_path / "64.wav").write_bytes(b"RF64" + wav[4:12] + b"ds64\x1c\0\0\0" + b"\xff" * 7 + b"\x7f" + b"\xff" * 7
                                      + b"\x7f" + b"\xff" * 7 + b"\x7f" + bytes(4) + wav[12:] + bytes(100))  # fmt: skip
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 1e6
    said, peak = meet(
        tmp_path,
        "import soundfile, soxr\nfrom audio_var.io import read_audio",
        "for name in ('long.ogg', 'claims.wav', '64.wav', 'understated.flac', 'long.flac'):\n"
        "    met(lambda: read_audio(folder / name, 16_000))",
    )
    assert "more than 600 s" in said[0] and said[4] == "read"
    assert peak < 60 << 20, f"{peak / 2**20:.0f} MiB"


LAUGHS = "\n".join(f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 9)}]" if i else "l0: &l0 [a, a]" for i in range(12))
DEEP = "data: " + "[" * 50_000 + "]" * 50_000
INSIDE = "data: &a [*a]"
WIDE = "seeds: [" + "0, " * 300_000 + "0]"
DIGITS = "a: " + "9" * 10**6
MANY = ", ".join(map(str, range(22)))
CELLS = f"""data: {{}}
tokenizers: {{a: {{modality: audio, dimension: 1d, schedule: s, scales: 1 2}}}}
sizes: {{b: {{width: 8, depth: 1, heads: 2}}}}
predictors: {{next_scale: {{family: next_scale}}}}
cells: [{{tokenizers: [{"a, " * 21} a], predictors: [{"next_scale, " * 21} next_scale], sizes: [b], seeds: [{MANY}]}}]
"""


def test_recipes_and_plans(tmp_path):
    """Aliases that stand for 9^11 values, nesting without end, a value inside of itself, lists, 10,648 cells."""
    bombs = {
        "laughs": LAUGHS,
        "deep": DEEP,
        "inside": INSIDE,
        "wide": WIDE,
        "cells": CELLS,
        "digits": DIGITS,
    }
    for name, text in bombs.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    said, peak = meet(
        tmp_path,
        "from next_scale.compare.cells import read_plan",
        f"for name in {list(bombs)}:\n    met(lambda: read_plan(folder / f'{{name}}.yaml'))",
    )
    assert all(line.startswith("refused: ") for line in said) and len(said) == len(bombs), said
    assert "aliases written out" in said[0] and "10,000 cells" in said[4]
    assert peak < LITTLE, f"{peak / 2**20:.0f} MiB"


BOMBS = {
    "width": (("predictor", "width"), 1 << 20),
    "depth": (("predictor", "depth"), 1 << 30),
    "codes": (("quantizer", "codebook_size"), 1 << 31),
    "phis": (("quantizer", "phis"), 1 << 30),
    "schedule": (("quantizer", "schedule"), [[1], [1 << 40]]),
    "scales": (("quantizer", "schedule"), [[1]] * 100_000),
    "layers": (("autoencoder", "encoder_depth"), 1 << 30),
    "window": (("autoencoder", "fft_size"), 1 << 30),
    "kernel": (("autoencoder", "kernel"), (1 << 31) - 1),
    "hop": (("autoencoder", "hop"), 1 << 30),
    "rate": (("autoencoder", "sample_rate"), 1 << 30),
    "polish": (("autoencoder", "polish"), 1 << 30),
    "values": (("predictor", "vectors"), {"a": 1 << 31}),
}


def test_configurations(tmp_path, tiny_checkpoint):
    """A checkpoint of a few hundred kilobytes that asks for terabytes, or for a billion layers."""
    from safetensors.torch import load_file, save_file

    state = load_file(tiny_checkpoint / "model.safetensors")
    for name, ((part, key), value) in BOMBS.items():
        config = json.loads((tiny_checkpoint / "config.json").read_text())
        config[part][key] = value
        save_file(state, tmp_path / f"{name}.safetensors", metadata={"config": json.dumps(config)})
    deep = '{"format": ' + "[" * 100_000 + "]" * 100_000 + "}"
    save_file(state, tmp_path / "deep.safetensors", metadata={"config": deep})
    names = [*BOMBS, "deep"]
    said, peak = meet(
        tmp_path,
        "import audio_var.codecs.spectral\nfrom next_scale.checkpoint import from_pretrained",
        f"for name in {names}:\n    met(lambda: from_pretrained(folder / f'{{name}}.safetensors'))",
    )
    told = dict(zip(names, said, strict=True))
    assert all(line.startswith("refused: ") for line in said), told
    for name in ("width", "depth", "codes", "phis", "layers", "window", "kernel"):
        assert "describes a model far larger than its weights" in told[name], told[name]
    assert peak < LITTLE, f"{peak / 2**20:.0f} MiB"


def test_token_files(tmp_path):
    """A header that claims 2^31 pyramids of 2^22 tokens, and one of a gigabyte."""
    from next_scale.errors import UserError
    from next_scale.token_file import read_token_file

    header = {"schedule": [[1 << 22]], "codebook_size": 2, "fingerprint": "", "pyramids": 1 << 31, "details": {}}
    text = json.dumps(header).encode()
    for claim in (len(text), 1 << 30):
        (tmp_path / "a.nst").write_bytes(b"NSTK\1\0" + claim.to_bytes(4, "little") + text + bytes(8))
        with pytest.raises(UserError, match="truncated"):
            read_token_file(tmp_path / "a.nst")
