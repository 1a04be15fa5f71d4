"""What a scrape says, as numbers; and the two identities that hold at every one."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

Numbers = dict[tuple[str, str], float]
"""sample name without `streamer_`, and its label values joined by commas -> value"""


def parse(text: str) -> Numbers:
    """Every sample of our own, after both identities have been checked."""
    found: Numbers = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name.startswith("streamer_"):
                found[sample.name.removeprefix("streamer_"), ",".join(sample.labels.values())] = sample.value
    check_identities(found)
    return found


def total(numbers: Numbers, name: str) -> float:
    """Over all label values."""
    return sum(value for (other, _), value in numbers.items() if other == name)


def check_identities(numbers: Numbers) -> None:
    """Nothing is lost between two counters."""
    fates = ("decoded_total", "retained_total", "ignored_total", "rejected_total", "dropped_total", "queued")
    assert numbers["messages_received_total", ""] == sum(total(numbers, f"messages_{fate}") for fate in fates)
    verdicts = ("scored_total", "unscored_total", "rejected_total", "pending")
    assert numbers["readings_decoded_total", ""] == sum(total(numbers, f"readings_{each}") for each in verdicts)
