"""The report of a comparison says what the records say, whatever is missing."""

import base64
import re
import wave
from html.parser import HTMLParser

import pytest

from next_scale.compare import verdict
from next_scale.compare.cli import main
from next_scale.compare.crossing import crossings
from next_scale.compare.report import write_report
from tests.next_scale.comparison_records import records, write


def page(folder, found):
    return write_report(write(folder, found), folder / "report.html").read_text()


class Check(HTMLParser):
    """Fails where elements do not nest, and lists the addresses a page needs."""

    void = {"meta", "img", "br", "path", "use", "rect", "circle"}

    def __init__(self):
        super().__init__()
        self.open, self.addresses = [], []

    def handle_starttag(self, tag, attributes):
        self.addresses += [value for name, value in attributes if name in ("src", "href", "xlink:href")]
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.addresses += [value for name, value in attributes if name in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag):
        if tag not in self.void:
            assert self.open.pop() == tag


def check(text):
    parser = Check()
    parser.feed(text)
    assert not parser.open
    assert all(address.startswith(("#", "data:")) for address in parser.addresses)  # needs nothing but itself
    return text


@pytest.mark.parametrize(
    ("one", "two", "seeds", "said"),
    [
        (1.0, 0.7, 3, "helps more in 2D than in 1D here"),
        (0.7, 1.0, 3, "helps more in 1D than in 2D here"),
        (0.8, 0.8, 3, "The data do not decide"),
        (1.0, 0.7, 1, "there is one seed"),
    ],
)
def test_the_answer_follows_the_data(tmp_path, one, two, seeds, said):
    text = check(page(tmp_path, records(one, two, seeds, families=("next_scale", "next_token"))))
    assert said in text
    assert ("next-scale is better than next-token" in text) == (seeds > 1)


def test_the_ratio_is_that_of_the_records():
    cells = verdict.Cells(records(0.9, 0.6, noise=0.001))
    found = verdict.headlines(cells, verdict.FRECHET)
    assert len(found) == 2 and all(h.ratio.seeds == 3 and h.ratio.decided for h in found)
    for headline in found:
        value, low, high = headline.ratio.interval
        assert low < value < high and value == pytest.approx(-0.405, abs=0.005)
        assert all(low < ratio.interval.high and ratio.interval.low < high for _, ratio in headline.each_seed)
    # seeds that scatter leave it open
    wide = verdict.headlines(verdict.Cells(records(1.0, 0.95, noise=0.4)), verdict.FRECHET)
    assert not any(h.ratio.decided for h in wide)


@pytest.mark.parametrize(("axis", "said"), [("dimension", "more in 2D than in 1D"), ("modality", "more in tone than")])
def test_dimension_and_modality_are_told_apart(tmp_path, axis, said):
    def part(modality, other):
        ratios = (1.0, 0.7) if axis == "dimension" else (other, other)
        return records(*ratios, places=((modality, "1d"), (modality, "2d")), sizes=("small",))

    found = part("tone", 0.7) + part("shade", 1.0)
    (crossing,) = crossings(verdict.Cells(found), verdict.FRECHET)
    effects = {name: getattr(crossing, name) for name in ("dimension", "modality", "interaction")}
    for name, ratio in effects.items():
        assert ratio.interval.value == pytest.approx(-0.357 if name == axis else 0, abs=0.02)
    assert effects[axis].decided
    text = check(page(tmp_path, found))
    assert said in text and "Dimension and modality apart" in text


def test_everything_is_on_the_page(tmp_path):
    found = records(0.9, 0.6)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.png").write_bytes(b"picture")
    with wave.open(str(tmp_path / "a" / "x.wav"), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(b"\0\0" * 80)
    cells = [record for record in found if "cell" in record]
    cells[0]["samples"] = [
        {"kind": "sound", "file": "a/x.wav", "picture": "a/x.png", "label": "<script>x</script> 60"},
        {"kind": "picture", "file": "../../etc/passwd", "picture": "../../../../../../etc/passwd", "label": "b"},
        {"kind": "picture", "file": "a/gone.png", "picture": "a/gone.png", "label": "c"},
    ]
    found.append({"id": "broken", "cell": cells[0]["cell"], "key": "2", "error": "out of <memory>"})
    text = check(page(tmp_path, found))
    assert base64.b64encode(b"picture").decode() in text and 'controls preload="none" src="data:audio/' in text
    assert "<script" not in text and "&lt;script&gt;x" in text and "out of &lt;memory&gt;" in text
    assert "etc/passwd is not there" in text and "a/gone.png is not there" in text and "root:" not in text
    assert "48 finished cells (24 of tone, 24 of shade), 1 failed." in text
    for figure in ("60 ± 0", "≤ 72 ± 0", "123,456", "1 T", "10 ms", "512 MiB", "revision abcdef012345", "flow (0."):
        assert figure in text, figure
    assert len(re.findall("<svg", text)) >= 12


def test_the_fit_is_that_of_the_curves(tmp_path):
    text = page(tmp_path, records(families=("next_scale", "next_token"), seeds=1))
    exponents = [float(x) for x in re.findall(r"<td>[\d.e+]+</td><td>([\d.]+) \([\d.]+ to [\d.]+\)</td></tr>", text)]
    assert len(exponents) == 4 and all(abs(exponent - 0.1) < 0.02 for exponent in exponents)


@pytest.mark.parametrize(
    "options",
    [
        {"families": ("flow",), "seeds": 1},
        {"families": ("next_scale",), "places": (("tone", "1d"),), "sizes": ("small",)},
        {"places": (("tone", "1d"), ("tone", "2d"), ("shade", "2d"), ("shade", "1d")), "seeds": 1, "sizes": ("small",)},
        {"seeds": 0},
    ],
)
def test_what_is_missing_is_left_out(tmp_path, options):
    text = check(page(tmp_path, records(**options)))
    assert "nan" not in re.sub(r"(?s)<svg.*?</svg>", "", text).lower().replace("finance", "")


def test_cells_without_speed_or_draws(tmp_path):
    found = records(seeds=2, families=("next_scale", "next_token"), sizes=("small",))
    for record in found:
        if "cell" in record:
            del record["sampling"]
            record["quality"]["frechet_resampled"] = []
            record["likelihood"]["bits_resampled"] = []
    assert "Speed has not been measured yet" in check(page(tmp_path, found))


def test_as_a_user_runs_it(tmp_path, capsys):
    assert main(["compare", "report", str(tmp_path / "none")]) == 2
    assert "holds no results.jsonl" in capsys.readouterr().err
    write(tmp_path, records(seeds=1))
    assert main(["compare", "report", str(tmp_path), "--out", str(tmp_path / "report.txt")]) == 2
    assert "end its name in .html" in capsys.readouterr().err
    assert main(["compare", "report", str(tmp_path)]) == 0
    assert (tmp_path / "report.html").is_file() and not list(tmp_path.glob(".*part"))
