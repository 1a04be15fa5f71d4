"""Telegraf's JSON: `{"fields":{"usage_idle":98.1},"name":"cpu","tags":{"host":"a"},"timestamp":1458229140}`.

Also as a batch, `{"metrics":[...]}`. Keys are those of the line protocol: `topic#cpu,host=a.usage_idle`.
"""

from __future__ import annotations

from streamer.payloads.names import head
from streamer.payloads.times import from_value
from streamer.payloads.tree import Reading, Tree


def metrics_of(document: dict[str, object]) -> list[dict[str, object]] | None:
    """The metrics in a document, None where it is not Telegraf's."""
    if _is_metric(document):
        return [document]
    batch = document.get("metrics")
    if isinstance(batch, list) and batch:
        metrics = [item for item in batch if isinstance(item, dict) and _is_metric(item)]
        if len(metrics) == len(batch):
            return metrics
    return None


def read(tree: Tree, reading: Reading, metrics: list[dict[str, object]]) -> None:
    """Append the readings of a batch of metrics. Raises Refused."""
    sources, source = tree.sources, reading.source
    reading.fixed_time = True
    for metric in metrics:
        name, tags, fields = metric.get("name"), metric.get("tags"), metric.get("fields")
        if not isinstance(name, str) or not isinstance(fields, dict):
            continue
        texts = {tag: value for tag, value in tags.items() if isinstance(value, str)} if isinstance(tags, dict) else {}
        path = head(name, texts)  # no line of Influx ends without a space before its fields, so no two names meet
        node = source.heads.get(path + "\n") or sources.tagged(source, path + "\n", path)
        reading.fields = 0  # the limit is for one metric
        when = from_value(metric.get("timestamp"), source.zone), "timestamp"
        tree.read_object(reading, node, fields, when)
    reading.keep_last()


def _is_metric(item: dict[str, object]) -> bool:
    return (
        isinstance(item.get("fields"), dict)
        and isinstance(item.get("name"), str)
        and ("tags" in item or "timestamp" in item)
    )
