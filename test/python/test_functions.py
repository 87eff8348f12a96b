"""Erlang functions as Python sees them. `run_pytest.erl` registers same, fail and sleep."""

from __future__ import annotations

import asyncio
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType

import pytest

import erlang
from erlang import ErlangError, Function, fail, same, sleep


@pytest.mark.parametrize(
    "value",
    [None, True, 0, 1 << 100, -1.5, "", "żółw", [], [1, [2]], (1, (2,)), {}, {"a": {1: [None]}}],
)
def test_values_come_back_as_they_went(value: object) -> None:
    assert same(value) == value
    assert type(same(value)) is type(value)


def test_a_function_is_found_in_three_ways() -> None:
    assert erlang.call("same", 1) == same(1) == erlang.same(1) == 1
    assert erlang.same == same
    assert isinstance(same, Function)


def test_a_function_looks_like_one() -> None:
    assert callable(same)
    assert same.__name__ == "same"
    assert same.__module__ == "erlang"
    assert repr(same) == "<erlang function same>"
    assert pickle.loads(pickle.dumps(same)) == same
    assert len({same, erlang.same, sleep}) == 2
    assert not hasattr(same, "__dict__")


def test_the_package_lists_its_functions() -> None:
    assert {"same", "call", "send", "reactor"} <= set(dir(erlang))
    assert sorted(dir(erlang)) == dir(erlang)
    assert "same" not in erlang.__all__


@pytest.mark.parametrize("name", ["nobody", "__wrapped__", "_private", "two words", ""])
def test_unknown_names_are_attribute_errors(name: str) -> None:
    package: ModuleType = erlang
    assert not hasattr(package, name)
    with pytest.raises(LookupError):
        erlang.call(name)


@pytest.mark.parametrize("kind", ["error", "exit", "throw"])
def test_exceptions_say_what_was_raised(kind: str) -> None:
    with pytest.raises(ErlangError) as caught:
        fail(kind, ("bad", {"key": [1, 2]}))
    error = caught.value
    assert isinstance(error, RuntimeError)
    assert (error.kind, error.reason) == (kind, ("bad", {"key": [1, 2]}))
    assert str(error) == f'{kind}: {{<<"bad">>,#{{<<"key">> => [1,2]}}}}'


def test_an_error_can_be_pickled() -> None:
    error = ErlangError("exit", ("a", 1), "somewhere:f/1", "{a,1}")
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.kind, copy.reason, copy.stacktrace) == (error.kind, error.reason, error.stacktrace)
    assert str(copy) == str(error) == "exit: {a,1}"
    assert copy.__notes__ == error.__notes__ == ["In Erlang:\nsomewhere:f/1"]


def test_an_error_needs_no_text() -> None:
    error = ErlangError("throw", [1])
    assert str(error) == "throw: [1]"
    assert error.stacktrace == ""
    assert not hasattr(error, "__notes__")


def test_a_timeout_is_a_timeout_error() -> None:
    with pytest.raises(TimeoutError, match="'sleep' did not answer"):
        sleep(60_000, timeout=0.01)
    assert sleep(1, timeout=None) == "ok"


@pytest.mark.parametrize("timeout", [-1, -0.001, float("-inf"), float("nan")])
def test_no_time_is_less_than_none(timeout: float) -> None:
    with pytest.raises(ValueError, match="timeout"):
        same(1, timeout=timeout)


def test_arguments_are_checked_at_the_call() -> None:
    with pytest.raises(TypeError, match="object"):
        same(object())
    with pytest.raises(ValueError, match="finite"):
        same(float("nan"))
    with pytest.raises(TypeError, match="does not take 2 argument"):
        same(1, 2)


def test_other_threads_run_while_one_waits() -> None:
    ran = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(sleep, 50, timeout=None)
        pool_free = threading.Thread(target=ran.set)
        pool_free.start()
        assert ran.wait(30)
        pool_free.join()
        assert waiting.result(30) == "ok"


def test_asyncio_calls_by_threads() -> None:
    async def main() -> None:
        calls = [asyncio.to_thread(erlang.call, "same", n) for n in range(10)]
        assert await asyncio.gather(*calls) == list(range(10))

    asyncio.run(main())
