"""The table of faults in the documentation names tests that there are."""

from __future__ import annotations

import re
from pathlib import Path

HERE = Path(__file__).parent
TABLE = (HERE.parent / "docs" / "recovery.md").read_text("utf-8").partition("\n## Tested faults\n")[2]
ROWS = [line for line in TABLE.splitlines() if line.startswith("| ")][1:]


def test_every_row_is_a_test() -> None:
    assert len(ROWS) > 30
    for row in ROWS:
        named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", row)
        assert named, row
        for file, name in named:
            assert re.search(rf"^ *def {name}\(", (HERE / file).read_text("utf-8"), re.MULTILINE), (file, name)


def test_every_fault_has_a_row() -> None:
    names = set(re.findall(r"::(test_\w+)`", TABLE))
    for file in ("test_faults.py", "test_fuzz.py"):
        tests = set(re.findall(r"^def (test_\w+)\(", (HERE / file).read_text("utf-8"), re.MULTILINE))
        unnamed = (
            tests
            - names
            - {
                "test_good_files",
                "test_a_signal_without_a_run_means_what_it_did",
                "test_no_pickle_is_written",
                "test_a_model_with_an_impossible_number_of_levels_is_refused",
            }
        )
        assert not unnamed
