"""Reads metrics on standard input with Prometheus' own parser and prints them as Erlang terms.

One line for each sample, `{Name, Type, [{Label, Value}], Number}.`, all names and labels as
binaries. Fails if there is a family without help, a family or a sample that comes twice, or a
counter that is not called one.
"""

from __future__ import annotations

import sys

from prometheus_client.parser import text_string_to_metric_families


def binary(text: str) -> str:
    return "<<" + ",".join(str(byte) for byte in text.encode()) + ">>"


def main() -> None:
    families: set[str] = set()
    samples: set[tuple[str, tuple[tuple[str, str], ...]]] = set()
    for family in text_string_to_metric_families(sys.stdin.read()):
        assert family.documentation, family
        assert family.type in ("counter", "gauge"), family
        assert family.name not in families, family
        families.add(family.name)
        for sample in family.samples:
            labels = tuple(sorted(sample.labels.items()))
            assert (sample.name, labels) not in samples, sample
            assert sample.name.endswith("_total") == (family.type == "counter"), sample
            samples.add((sample.name, labels))
            pairs = ",".join(f"{{{binary(label)},{binary(value)}}}" for label, value in labels)
            number = f"{sample.value:.9f}"  # As Erlang reads one.
            print(f"{{{binary(sample.name)},{family.type},[{pairs}],{number}}}.")


main()
