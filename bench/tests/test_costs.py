"""What is made of counts."""

from __future__ import annotations

from costs import CONNECTIONS, ROUNDS, per_request, rows, table


def test_what_a_start_costs_is_no_part_of_a_request() -> None:
    for number in CONNECTIONS:
        few, more = ROUNDS[number]
        counts = [1_000_000 + 3 * number * few, 1_000_000 + 3 * number * (few + more)]
        assert per_request(counts, number) == 3


def test_every_server_has_a_row_and_every_number_of_connections_a_column() -> None:
    found = {row.title: ["1.00"] * len(CONNECTIONS) for row in rows()}
    head, rule, *body = table("calls", found)
    assert head == "| calls | 1 | 50 | 500 |"
    assert rule == "|---|---|---|---|"
    assert len(body) == len(rows()) + 1
    assert all(line.count("|") == head.count("|") for line in body[:-1])
