"""What becomes of counted instructions."""

from __future__ import annotations

import json

from instructions import BASELINE, CASES, TOLERANCE, comparable, differences, judged

ENGINE = next(case for case in CASES if case.protocol is None)
PLAIN = next(case for case in CASES if case.protocol is not None)


def test_the_baseline_has_every_case_and_no_other() -> None:
    kept = json.loads(BASELINE.read_text())
    assert list(kept["instructions_a_request"]) == [case.name for case in CASES]
    assert set(kept["versions"]) == {"rustc", "python", "libc", "machine"}


def test_within_the_tolerance_is_well() -> None:
    for ratio in (1.001 - TOLERANCE, 1.0, 0.999 + TOLERANCE):
        assert judged("a", 1000.0, 1000.0 * ratio)[0]


def test_too_many_and_too_few_are_not() -> None:
    holds, line = judged("a", 1000.0, 1060.0)
    assert not holds
    assert line.startswith("not ok: a: 1,060 instructions, 1,000 in the baseline (+6.0 %")
    assert not judged("a", 1000.0, 940.0)[0]


def test_what_nobody_knows_is_not_well() -> None:
    assert not judged("a", None, 1.0)[0]


def test_another_python_leaves_the_engine_comparable() -> None:
    kept = {"rustc": "1.95", "python": "3.11"}
    other = differences(kept, kept | {"python": "3.13"})
    assert other == ["python is 3.13, and was 3.11"]
    assert comparable(ENGINE, other)
    assert not comparable(PLAIN, other)


def test_another_compiler_leaves_nothing_comparable() -> None:
    other = differences({"rustc": "1.95"}, {"rustc": "1.96"})
    assert not comparable(ENGINE, other)
    assert not comparable(PLAIN, other)


def test_the_same_versions_leave_everything_comparable() -> None:
    assert differences({"rustc": "1.95"}, {"rustc": "1.95"}) == []
    assert comparable(ENGINE, [])
    assert comparable(PLAIN, [])
