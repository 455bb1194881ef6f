"""Whole files by other authors, in other styles, are green but for what they do not have."""

import pytest
from statements import ROOT

from tests.documents import several
from tests.documents.test_runner import table

STRANGERS = "fused", "loops"


@pytest.fixture(scope="module")
def judged():
    chapters = [*map(str, sorted((ROOT / "tests/spec").glob("test_[1-35-7]_*.py")))]
    return several.start({
        name: ("few", [f"--impl=tests/other_authors/{name}.py", *chapters]) for name in STRANGERS
    })()  # fmt: skip


@pytest.mark.heavy
@pytest.mark.parametrize("name", STRANGERS)
def test_a_correct_file_in_another_style_is_green(judged, name):
    status, out, err = judged[name]
    assert status == 0 and f"the spec of {name}.py" in out and "fail:" not in out, out + err
    for chapter, (count, hold, _, skipped, *_) in table(out).items():
        reads_files = int(chapter == "7-data")  # DATA-6 is of train.py
        expected = (0, 0) if chapter == "4-text" else (count - reads_files, reads_files)
        assert (hold, skipped) == expected, out
