"""Parts of the report: escaping, embedded data, axes and pixels."""

import base64
import io
import json

import pytest
from PIL import Image

from dlm.eval.report.axes import Axis, cost_axis, log_ticks, share_axis
from dlm.eval.report.heat import means, when
from dlm.eval.report.html import Markup, element, several
from dlm.eval.report.image import PALETTE, png
from dlm.eval.report.samples import embedded, shared
from dlm.eval.sample import Sample


def sample(order: list[int], forwards: int) -> Sample:
    return Sample(
        task="", template="", id="", index=0, prompt="", prompt_tokens=1, output="", tokens=[],
        order=order, response_tokens=1, decoded_tokens=1, forwards=forwards, query_tokens=1,
        seconds=1.0, answer="", extracted={}, scores={}, score=1.0, detail="", seed=0, settings="",
    )  # fmt: skip


def test_commit_order_is_a_share_of_the_forwards() -> None:
    assert when(sample([0, 2, 1, -1], 3)) == [0.0, 1.0, 0.5, None]
    assert when(sample([0, -1], 1)) == [0.0, None]
    assert means([[0.0, 1.0, None], [0.5, None, None], [1.0]]) == [0.5, 1.0, None]


def test_an_image_has_a_pixel_for_each_share() -> None:
    content = base64.b64decode(png([[0.0, 1.0, None], [0.5]]).partition(",")[2])
    image = Image.open(io.BytesIO(content)).convert("RGBA")
    assert image.size == (3, 2)
    dark, bright = image.getpixel((0, 0)), image.getpixel((1, 0))
    assert dark == (*PALETTE[0], 255) == (68, 1, 84, 255)
    assert bright == (*PALETTE[-1], 255) == (253, 231, 37, 255)
    assert image.getpixel((0, 1)) == (*PALETTE[32], 255)
    for place in ((2, 0), (1, 1), (2, 1)):
        pixel = image.getpixel(place)
        assert isinstance(pixel, tuple)
        assert pixel[3] == 0


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(9, 120, [10, 20, 50, 100]), (1, 20000, [1, 10, 100, 1000, 10000]), (3, 4, [])],
)
def test_logarithmic_ticks(low: float, high: float, expected: list[float]) -> None:
    assert log_ticks(low, high) == pytest.approx(expected)


def test_axes_hold_their_values() -> None:
    wide = cost_axis([2.0, 200.0], 0.0, 100.0)
    assert wide.log
    assert 0 < wide.at(2) < wide.at(20) < wide.at(200) < 100
    assert wide.at(20) == pytest.approx(50)
    narrow = cost_axis([10.0, 40.0], 0.0, 100.0)
    assert (narrow.log, narrow.low, narrow.ticks) == (False, 0.0, [0, 10, 20, 30, 40])
    assert cost_axis([0.0], 0.0, 100.0).at(0) == 0
    for low, high in ((0.0, 1.0), (0.93, 1.0), (0.0, 0.02), (0.5, 0.5001), (0.41, 0.67)):
        axis = share_axis(low, high, 300.0, 0.0)
        assert axis.low <= low < high <= axis.high
        assert 2 <= len(axis.ticks) <= 9
    assert Axis(0.0, 1.0, 100.0, 0.0).at(0.25) == 75


def test_embedded_json_cannot_end() -> None:
    told = embedded({"</script><!--": "\u2028&]]>"})
    assert not set(told) & set("<>&\u2028")
    assert json.loads(told) == {"</script><!--": "\u2028&]]>"}


def test_elements_escape_all_but_markup() -> None:
    inner = element("b", "<i>", title='"<&')
    assert inner == '<b title="&quot;&lt;&amp;">&lt;i&gt;</b>'
    assert element("p", inner, 1.50, class_="x", id=None) == f'<p class="x">{inner}1.5</p>'
    assert inner + "<" == f"{inner}&lt;"
    assert isinstance(inner + inner, Markup)
    assert several(["<", inner], between=", ") == f"&lt;, {inner}"


def test_whole_lines_of_some_length_are_shared() -> None:
    shots = "Question: solved\nAnswer: 1\n\n" * 10
    assert shared([f"{shots}Question: a", f"{shots}Question: b"]) == shots
    assert shared(["Question: a", "Question: b"]) == ""
    assert shared([f"{shots}Question: a"]) == ""
