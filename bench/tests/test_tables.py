"""What the benchmark writes, from runs that are made up."""

from __future__ import annotations

from typing import Any

import pytest
from http_load import parsed
from peers import PEERS, REACTORS
from shapes import CONNECTIONS, DOWNLOAD, GRID, PINNED, SHAPES, SIZES, grid
from tables import AIMED, figures, ratios, render

WRK = """Running 1s test @ http://127.0.0.1:8080/
  1 threads and 50 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     3.17ms  540.66us  12.40ms   90.60%
    Req/Sec    15.83k     1.04k   17.07k    80.00%
  Latency Distribution
     50%    3.05ms
     75%    3.26ms
     90%    3.60ms
     99%    5.43ms
  15750 requests in 1.00s, 1.86MB read
Requests/sec:  15744.30
Transfer/sec:      1.86MB
"""


def run(shape: str, peer: str, number: int, per_second: float, **more: Any) -> dict[str, Any]:
    return {
        "round": number,
        "shape": shape,
        "peer": peer,
        "repeats": 0,
        "per_second": per_second,
        "cpu_us": 5.0,
        "p50_us": 10.0,
        "p99_us": 20.0,
        "p999_us": 30.0,
        "client_core_percent": 50.0,
        "others_core_percent": 1.0,
    } | more


def results(runs: list[dict[str, Any]], **memory: Any) -> dict[str, Any]:
    return {
        "date": "today",
        "revision": "0",
        "machine": "a machine",
        "kernel": "a kernel",
        "python": "3",
        "uvloop": "1",
        "rloop": "1",
        "otp": "1",
        "rustc": "1",
        "cc": "1",
        "load_average_before": 0.0,
        "load_average_after": 0.0,
        "took_seconds": 1,
        "plan": {
            "rounds": 2,
            "seconds": 1,
            "warmup": 1,
            "idle_seconds": 1,
            "leak_count": 1,
            "leak_warmup": 1,
            "leak_batches": 1,
        },
        "skipped": {},
        "memory": memory,
        "runs": runs,
    }


def test_a_ratio_compares_runs_of_one_round() -> None:
    runs = [
        run("50x64B", "uvloop", 0, 100.0),
        run("50x64B", "uvloop", 1, 200.0),
        run("50x64B", "plain", 0, 110.0),
        run("50x64B", "plain", 1, 180.0),
        run("50x64B", "plain", 2, 9999.0),
    ]
    found = ratios(results(runs), "50x64B", "plain", "per_second")
    assert found.values == pytest.approx([0.9, 1.1])
    assert found.median == pytest.approx(1.0)


def test_a_failed_run_counts_nowhere() -> None:
    runs = [run("50x64B", "uvloop", 0, 100.0), run("50x64B", "plain", 0, 1.0, error="it broke")]
    told = results(runs)
    assert not ratios(told, "50x64B", "plain", "per_second")
    assert not figures(told, "50x64B", "plain", "per_second")
    assert "failed: plain, 50x64B, round 1: it broke" in render(told)


def test_an_aim_that_is_missed_is_told() -> None:
    runs = [
        run("50x64B", "uvloop", 0, 100.0),
        run("50x64B", "epoll", 0, 100.0),
        run("50x64B", "inherited", 0, 96.0),
    ]
    text = render(results(runs))
    assert (
        "| 50x64B: requests/s at least 1.0 of uvloop | inherited | 0.96 (0.96..0.96) | **no** |"
        in text
    )
    assert (
        "| 50x64B: requests/s at least 0.93 of epoll | inherited | 0.96 (0.96..0.96) | yes |"
        in text
    )


def test_a_flow_has_no_latency() -> None:
    runs = [run(DOWNLOAD.name, "uvloop", 0, 100.0, p50_us=0.0, p99_us=0.0, p999_us=0.0)]
    text = render(results(runs))
    assert "| MiB/s |" in text
    assert "| - | - | - | 50 % | 1 % |" in text


def test_a_connection_without_an_answer_leaves_no_latency() -> None:
    for fewest, told in ((0, "| - | - | - |"), (1, "| 10 | 20 | 30 |")):
        starved = run("50x64B", "uvloop", 0, 100.0, mode="steady", fewest_per_connection=fewest)
        assert told in render(results([starved]))


def test_memory_is_told_beside_the_python_object() -> None:
    idle = {
        "bytes_per_connection": 1500.0,
        "object_bytes": 600,
        "cpu_ms": 0.0,
        "cpu_ms_without": 0.0,
        "seconds": 1.0,
    }
    text = render(results([], **{"idle-memory": {"plain": idle}}))
    assert "beside its Python object | plain | 900 | yes |" in text


def test_every_shape_has_a_name_of_its_own_and_somebody_to_serve_it() -> None:
    assert len({shape.name for shape in SHAPES}) == len(SHAPES)
    for shape in SHAPES:
        assert any(shape.protocol in peer.protocols for peer in PEERS), shape.name
    assert {shape.name for shape in AIMED} <= {shape.name for shape in SHAPES}
    assert set(REACTORS) <= {peer.name for peer in PEERS}


def test_the_grid_is_whole() -> None:
    assert {grid(connections, size) for connections in CONNECTIONS for size in SIZES} == set(GRID)
    assert len(GRID) == len(CONNECTIONS) * len(SIZES)
    assert {shape.cores for shape in PINNED} == {"one", "two"}


def test_what_wrk_says_is_understood() -> None:
    found = parsed(WRK)
    assert found["count"] == 15750
    assert found["per_second"] == pytest.approx(15750)
    assert found["p50_us"] == pytest.approx(3050)
    assert found["p99_us"] == pytest.approx(5430)


@pytest.mark.parametrize(
    "line", ["Socket errors: connect 0, read 3, write 0, timeout 0", "Non-2xx or 3xx responses: 7"]
)
def test_a_request_that_failed_is_a_failure(line: str) -> None:
    with pytest.raises(ValueError, match=line.split(":")[0]):
        parsed(WRK + "  " + line + "\n")


def test_nothing_at_all_is_a_failure() -> None:
    with pytest.raises(ValueError, match="unable to connect"):
        parsed("unable to connect to 127.0.0.1:1 Connection refused\n")
