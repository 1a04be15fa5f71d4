"""The dashboards as JSON: `python deploy/grafana/generate.py` writes `dashboards/` anew. Nothing but Python is needed.

A dashboard is rows of panels, 24 columns wide; a panel is a title, a sentence that Grafana shows beside it, queries.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "dashboards"
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
Json = dict[str, Any]

HERE = 'instance=~"$instance"'
"""the daemons that somebody has chosen"""
ONE = 'instance=~"$instance", topic="$topic", field="$field"'
DAYS_A_MONTH, HOURS_A_MONTH = 30.44, 730.56  # as the daemon's budget has them
OWN = f" * on (instance, job) group_left () streamer_build_info{{{HERE}}}"
"""`process_...` comes from every target of Prometheus: only ours"""

RED, GREEN, BLUE, YELLOW, GREY = "red", "green", "blue", "yellow", "text"


def selected(name: str) -> str:
    """A metric, with matchers or without, of the daemons that are chosen."""
    name, _, matchers = name.removesuffix("}").partition("{")
    return f"{name}{{{', '.join([HERE, *filter(None, [matchers])])}}}"


def sums(name: str, by: str = "", of: str = "{}") -> str:
    """The sum over daemons, and over labels but the one that is named."""
    return f"sum{f' by ({by}) ' if by else ''}({of.format(selected(name))})"


def rates(name: str, by: str = "", window: str = "$__rate_interval", what: str = "rate") -> str:
    """The same of a counter, a second; or its increase over a window."""
    return sums(name, by, f"{what}({{}}[{window}])")


@dataclass(frozen=True)
class Panel:
    """One panel; `queries` are (expression, legend) pairs."""

    title: str
    says: str
    queries: list[tuple[str, str]]
    width: int = 8
    height: int = 8
    kind: str = "timeseries"
    unit: str = "short"
    decimals: int | None = None
    steps: list[tuple[float | None, str]] = field(default_factory=lambda: [(None, GREEN)])
    """thresholds: from this value on, this colour"""
    shows_steps: bool = False
    """the thresholds as lines"""
    stacked: bool = False
    least: float | None = 0.0
    most: float | None = None
    mappings: dict[str, str] = field(default_factory=dict)
    overrides: list[Json] = field(default_factory=list)
    no_value: str | None = None
    link: tuple[str, str] | None = None

    def json(self, number: int, x: int, y: int) -> Json:
        defaults: Json = {
            "unit": self.unit,
            "color": {"mode": "palette-classic" if self.kind == "timeseries" else "thresholds"},
            "thresholds": {"mode": "absolute", "steps": [{"value": at, "color": color} for at, color in self.steps]},
        }
        if self.decimals is not None:
            defaults["decimals"] = self.decimals
        if self.least is not None:
            defaults["min"] = self.least
        if self.most is not None:
            defaults["max"] = self.most
        if self.no_value is not None:
            defaults["noValue"] = self.no_value
        if self.mappings:
            texts = {value: {"text": text} for value, text in self.mappings.items()}
            defaults["mappings"] = [{"type": "value", "options": texts}]
        if self.link is not None:
            defaults["links"] = [{"title": self.link[0], "url": self.link[1], "targetBlank": False}]
        is_instant = self.kind != "timeseries"
        defaults |= {"custom": self._custom()} if self.kind in ("timeseries", "table") else {}
        return {
            "id": number,
            "type": self.kind,
            "title": self.title,
            "description": self.says,
            "datasource": SOURCE,
            "gridPos": {"x": x, "y": y, "w": self.width, "h": self.height},
            "fieldConfig": {"defaults": defaults, "overrides": self.overrides},
            "options": self._options(),
            "targets": [
                {
                    "refId": chr(ord("A") + k),
                    "datasource": SOURCE,
                    "editorMode": "code",
                    "expr": expression,
                    "legendFormat": legend,
                    "instant": is_instant,
                    "range": not is_instant,
                    "format": "table" if self.kind == "table" else "time_series",
                }
                for k, (expression, legend) in enumerate(self.queries)
            ],
            **({"transformations": self._transformations()} if self.kind == "table" else {}),
        }

    def _custom(self) -> Json:
        if self.kind == "table":
            return {"align": "auto", "inspect": False, "cellOptions": {"type": "auto"}}
        return {
            "drawStyle": "line",
            "lineWidth": 1,
            "fillOpacity": 25 if self.stacked else 0,
            "showPoints": "never",
            "spanNulls": False,
            "stacking": {"mode": "normal" if self.stacked else "none", "group": "A"},
            "thresholdsStyle": {"mode": "line" if self.shows_steps else "off"},
        }

    def _options(self) -> Json:
        reduce = {"reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False}, "orientation": "auto"}
        if self.kind == "timeseries":
            return {
                "legend": {"showLegend": True, "displayMode": "list", "placement": "bottom", "calcs": []},
                "tooltip": {"mode": "multi", "sort": "none"},
            }
        if self.kind == "stat":
            look = {"colorMode": "value", "graphMode": "none", "justifyMode": "auto", "textMode": "auto"}
            return {
                **reduce,
                **look,
                "wideLayout": True,
                "showPercentChange": False,
                "percentChangeColorMode": "standard",
            }
        if self.kind == "bargauge":
            sizes = {"minVizWidth": 8, "minVizHeight": 16, "maxVizHeight": 300, "sizing": "auto"}
            look = {"displayMode": "basic", "valueMode": "color", "namePlacement": "auto", "showUnfilled": True}
            legend = {"showLegend": False, "displayMode": "list", "placement": "bottom", "calcs": []}
            return {**reduce, "orientation": "horizontal", **sizes, **look, "legend": legend}
        return {
            "showHeader": True,
            "frameIndex": 0,
            "cellHeight": "sm",
            "sortBy": [{"displayName": "Value", "desc": True}],
        }

    def _transformations(self) -> list[Json]:
        hidden = dict.fromkeys(("Time", "__name__", "job"), True)
        return [{"id": "organize", "options": {"excludeByName": hidden, "indexByName": {}, "renameByName": {}}}]


def stat(title: str, says: str, query: str, legend: str = "", **options: Any) -> Panel:
    """One number; a `legend` where there is one for each daemon."""
    return Panel(title, says, [(query, legend)], **({"kind": "stat", "width": 4, "height": 4} | options))


def by_name(name: str, **properties: Any) -> Json:
    """How the series of one legend looks; `custom_` stands for `custom.`."""
    wanted = [{"id": key.replace("custom_", "custom."), "value": value} for key, value in properties.items()]
    return {"matcher": {"id": "byName", "options": name}, "properties": wanted}


def color(name: str) -> Json:
    return {"mode": "fixed", "fixedColor": name}


def variable(name: str, label: str, query: str, *, many: bool = False) -> Json:
    """Its values are asked of Prometheus whenever the time range changes."""
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": SOURCE,
        "query": {"qryType": 1, "query": query, "refId": "variable"},
        "refresh": 2,
        "sort": 7,
        "multi": many,
        "includeAll": many,
        **({"allValue": ".*", "current": {"text": ["All"], "value": ["$__all"]}} if many else {}),
    }


def annotation(name: str, expression: str, icon_color: str, title: str, text: str) -> Json:
    return {
        "name": name,
        "datasource": SOURCE,
        "enable": True,
        "iconColor": icon_color,
        "expr": expression,
        "step": "",
        "titleFormat": title,
        "textFormat": text,
        "tagKeys": "",
        "useValueForTime": False,
    }


ALARMS = annotation(
    "Alarms",
    f'ALERTS{{alertname=~"StreamerAnomaly|StreamerSensorsSilent", alertstate="firing", {HERE}}}',
    "orange",
    "{{alertname}}",
    "{{instance}}",
)


def dashboard(uid: str, title: str, says: str, variables: list[Json], annotations: list[Json], rows: list[Any]) -> Json:
    """`rows`: a text begins a row of that name, a list of panels fills the next lines of it from the left."""
    panels: list[Json] = []
    y = 0
    for row in rows:
        if isinstance(row, str):
            at = {"x": 0, "y": y, "w": 24, "h": 1}
            panels.append(
                {"id": len(panels) + 1, "type": "row", "title": row, "collapsed": False, "gridPos": at, "panels": []}
            )
            y += 1
            continue
        x = 0
        for panel in row:
            panels.append(panel.json(len(panels) + 1, x, y))
            x += panel.width
        if x > 24:
            raise ValueError(f"wider than the page: the row of {row[0].title}")
        y += max(panel.height for panel in row)
    source = {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus", "refresh": 1}
    link = {"type": "dashboards", "title": "Streamer", "tags": ["streamer"], "icon": "external link", "tooltip": ""}
    return {
        "uid": uid,
        "title": title,
        "description": says,
        "tags": ["streamer"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "time": {"from": "now-6h", "to": "now"},
        "refresh": "30s",
        "timezone": "browser",
        "links": [{**link, "asDropdown": False, "includeVars": True, "keepTime": True, "targetBlank": False}],
        "templating": {"list": [source, *variables]},
        "annotations": {"list": annotations},
        "panels": panels,
    }


ONE_AND_ABOVE: list[tuple[float | None, str]] = [(None, GREEN), (1, RED)]
SCORE: list[tuple[float | None, str]] = [(None, GREEN), (0.6, YELLOW), (1, RED)]
TO_SERIES = (
    "This series",
    "/d/streamer-series?var-datasource=${datasource}&var-instance=${__data.fields.instance:percentencode}"
    "&var-topic=${__data.fields.topic:percentencode}&var-field=${__data.fields.field:percentencode}&${__url_time_range}",
)
OPENED_IN_A_DAY = rates('streamer_alarms_opened_total{kind="value"}', window="1d", what="increase")
BUDGET = f"sum(streamer_alarm_budget_per_series_month{{{HERE}}} * streamer_series{{{HERE}}})"
JUDGED = " - ".join(selected(f"streamer_series{state}") for state in ("", "_warming", "_paused"))
BY_LSTM = sums('streamer_forecaster_in_charge{forecaster="lstm"}')
INSTANCE = "label_values(streamer_build_info, instance)"

FLEET = dashboard(
    "streamer-fleet",
    "Streamer: fleet",
    "What is wrong now, whether there are more alarms than the budget has room for, and whether anybody watches.",
    [variable("instance", "Daemon", INSTANCE, many=True)],
    [ALARMS],
    [
        [
            stat(
                "Odd values",
                "Alarms of odd values that are open.",
                sums('streamer_alarms_open{kind="value"}'),
                steps=ONE_AND_ABOVE,
            ),
            stat(
                "Silent sensors",
                "Alarms of silence that are open.",
                sums('streamer_alarms_open{kind="silent"}'),
                steps=ONE_AND_ABOVE,
            ),
            stat("Series", "Numbers that are watched, over all daemons.", sums("streamer_series")),
            stat(
                "Scored a second",
                "Readings that got a score.",
                rates("streamer_readings_scored_total"),
                unit="rps",
                decimals=1,
            ),
            stat(
                "Budget of a day used",
                "Alarms of odd values of the last 24 hours, true ones too, against the false ones that are allowed: "
                "100 % is what chance alone would make of it.",
                f"{OPENED_IN_A_DAY} / ({BUDGET} / {DAYS_A_MONTH})",
                unit="percentunit",
                steps=[(None, GREEN), (1, YELLOW), (3, RED)],
            ),
            stat(
                "Lag",
                "From arrival to score, input.lateness_seconds included: 99 of 100 readings are faster.",
                f"histogram_quantile(0.99, {rates('streamer_scored_latency_seconds_bucket', 'le')})",
                unit="s",
                steps=[(None, GREEN), (1, YELLOW), (10, RED)],
                no_value="no reading",
            ),
        ],
        "Alarms",
        [
            Panel(
                "Alarms opened an hour",
                "By kind; the grey line is what the budget allows of odd values.",
                [
                    (rates("streamer_alarms_opened_total", "kind", "1h", "increase"), "{{kind}}"),
                    (f"{BUDGET} / {HOURS_A_MONTH}", "budget"),
                ],
                width=12,
                overrides=[by_name("budget", color=color(GREY), custom_lineStyle={"fill": "dash", "dash": [10, 10]})],
            ),
            Panel("Open alarms", "By kind.", [(sums("streamer_alarms_open", "kind"), "{{kind}}")], width=12),
        ],
        "Who",
        [
            Panel(
                "Worst devices",
                "The highest score among the series of a topic, now. 1 is the rarity that the alarm budget allows.",
                [(f"topk(15, max by (instance, topic) (streamer_anomaly_score{{{HERE}}}))", "{{topic}}")],
                width=10,
                height=12,
                kind="bargauge",
                decimals=2,
                most=2,
                steps=SCORE,
            ),
            Panel(
                "Worst series",
                "The highest scores now; a click leads to the series. A score may fall while its alarm stays open.",
                [(f"topk(20, streamer_anomaly_score{{{HERE}}})", "")],
                width=14,
                height=12,
                kind="table",
                decimals=2,
                steps=SCORE,
                link=TO_SERIES,
                overrides=[by_name("Value", displayName="score", custom_cellOptions={"type": "color-text"})],
            ),
        ],
        "Series",
        [
            Panel(
                "Series by state",
                "Judged, warming up (no verdict yet), in maintenance; and how many are missed.",
                [
                    (f"sum({JUDGED})", "judged"),
                    (sums("streamer_series_warming"), "warming"),
                    (sums("streamer_series_paused"), "paused"),
                    (sums('streamer_alarms_open{kind="silent"}'), "silent"),
                ],
            ),
            Panel(
                "LSTM in charge",
                "Share of the series that the LSTM forecasts; the rest the seasonal baseline forecasts better.",
                [(f"{BY_LSTM} / {sums('streamer_forecaster_in_charge')}", "LSTM")],
                unit="percentunit",
                most=1,
            ),
            Panel(
                "Lag",
                "From arrival to score, and what waits for the engine, in seconds of what comes in.",
                [
                    (
                        f"histogram_quantile({q}, {rates('streamer_scored_latency_seconds_bucket', 'le')})",
                        f"{q:.0%} are faster",
                    )
                    for q in (0.5, 0.99)
                ]
                + [(f"{sums('streamer_messages_queued')} / {rates('streamer_messages_received_total')}", "backlog")],
                unit="s",
            ),
        ],
    ],
)

BAND = [
    by_name("upper", color=color(BLUE), custom_lineWidth=0, custom_fillBelowTo="lower", custom_fillOpacity=15),
    by_name("lower", color=color(BLUE), custom_lineWidth=0),
    by_name("expected", color=color(BLUE), custom_lineStyle={"fill": "dash", "dash": [6, 6]}),
    by_name("value", color=color(GREEN), custom_lineWidth=2),
]

SERIES = dashboard(
    "streamer-series",
    "Streamer: one series",
    "What a sensor said, what was expected of it, and how odd that is. metrics.per_series says which series are shown.",
    [
        variable("instance", "Daemon", "label_values(streamer_y, instance)"),
        variable("topic", "Topic", f"label_values(streamer_y{{{HERE}}}, topic)"),
        variable("field", "Field", f'label_values(streamer_y{{{HERE}, topic="$topic"}}, field)'),
    ],
    [
        annotation("Score of 1 and more", f"streamer_anomaly_score{{{ONE}}} >= 1", RED, "odd", "{{topic}} {{field}}"),
        ALARMS,
    ],
    [
        [
            stat("Value", "The last reading.", f"streamer_y{{{ONE}}}", width=6, least=None),
            stat(
                "Expected",
                "The median of the forecast that was made for it.",
                f"streamer_yhat{{{ONE}}}",
                width=6,
                least=None,
            ),
            stat(
                "Error", "Value minus expected.", f"streamer_y{{{ONE}}} - streamer_yhat{{{ONE}}}", width=6, least=None
            ),
            stat(
                "Score",
                "1 is the rarity that the alarm budget allows.",
                f"streamer_anomaly_score{{{ONE}}}",
                width=6,
                decimals=2,
                steps=SCORE,
            ),
        ],
        [
            Panel(
                "$topic $field",
                "The value, and the forecast that was made before it was known: its median and its 99 % band.",
                [
                    (f"streamer_yhat_upper{{{ONE}}}", "upper"),
                    (f"streamer_yhat_lower{{{ONE}}}", "lower"),
                    (f"streamer_yhat{{{ONE}}}", "expected"),
                    (f"streamer_y{{{ONE}}}", "value"),
                ],
                width=24,
                height=12,
                least=None,
                overrides=BAND,
            )
        ],
        [
            Panel(
                "Score",
                "The line at 1 is the rarity that the alarm budget allows. It may fall while the alarm stays open, "
                "since a new level becomes predictable; what is abnormal then is the level.",
                [(f"streamer_anomaly_score{{{ONE}}}", "score")],
                width=24,
                decimals=2,
                steps=ONE_AND_ABOVE,
                shows_steps=True,
            )
        ],
    ],
)


def balance(total: str, *parts: str) -> str:
    """What is left when all that became of something is taken from it, by daemon."""
    each = [f"streamer_{part}{{{HERE}}}" for part in parts]
    labelled = [
        f"sum without (reason) ({name})" if "rejected" in name or "unscored" in name or "dropped" in name else name
        for name in each
    ]
    return " - ".join([f"streamer_{total}{{{HERE}}}", *labelled])


MESSAGES = ("decoded_total", "retained_total", "ignored_total", "rejected_total", "dropped_total")
READINGS = ("scored_total", "unscored_total", "rejected_total")
ZERO = [(None, RED), (0, GREEN), (1, RED)]

OPERATIONS = dashboard(
    "streamer-operations",
    "Streamer: operations",
    "The daemon itself: what becomes of every message and reading, disk, retraining, memory.",
    [variable("instance", "Daemon", INSTANCE, many=True)],
    [ALARMS],
    [
        [
            stat(
                "Up for",
                "Time since the daemon was started.",
                f"time() - streamer_start_time_seconds{{{HERE}}}",
                legend="{{instance}}",
                unit="s",
            ),
            stat(
                "Broker",
                "Whether every subscription is granted.",
                f"min(streamer_mqtt_subscribed{{{HERE}}})",
                mappings={"0": "away", "1": "subscribed"},
                steps=[(None, RED), (1, GREEN)],
            ),
            stat(
                "State",
                "Whether the start found the state of an earlier run.",
                f"min(streamer_state_restored{{{HERE}}})",
                mappings={"0": "began anew", "1": "restored"},
                steps=[(None, YELLOW), (1, GREEN)],
            ),
            stat(
                "Disk",
                "Whether the disk takes the journal. While it does not, nothing is acknowledged.",
                f"max(streamer_journal_failing{{{HERE}}})",
                mappings={"0": "takes it", "1": "refuses"},
                steps=ONE_AND_ABOVE,
            ),
            stat(
                "Room for series",
                "Series against limits.max_series; above it idle ones are forgotten for new ones.",
                f"max(streamer_series{{{HERE}}} / streamer_series_limit{{{HERE}}})",
                unit="percentunit",
                steps=[(None, GREEN), (0.9, YELLOW), (1, RED)],
            ),
            stat(
                "Engine",
                "Time since the engine last finished a turn, an idle one included, by the clocks of two machines.",
                f"max(time() - streamer_last_progress_timestamp_seconds{{{HERE}}})",
                unit="s",
                steps=[(None, GREEN), (60, RED)],
                least=None,
            ),
        ],
        "What comes in",
        [
            Panel(
                "Messages",
                "What became of them, a second.",
                [(rates(f"streamer_messages_{each}"), each.removesuffix("_total")) for each in MESSAGES],
                unit="short",
                stacked=True,
            ),
            Panel(
                "Readings",
                "What became of them, a second.",
                [(rates(f"streamer_readings_{each}"), each.removesuffix("_total")) for each in READINGS],
                stacked=True,
            ),
            Panel(
                "Not used",
                "Messages and readings by the reason why they were rejected, left unscored or dropped, a second.",
                [
                    (rates("streamer_messages_rejected_total", "reason"), "message: {{reason}}"),
                    (rates("streamer_messages_dropped_total", "reason"), "message: {{reason}}"),
                    (rates("streamer_readings_rejected_total", "reason"), "reading: {{reason}}"),
                    (rates("streamer_readings_unscored_total", "reason"), "reading: {{reason}}, unscored"),
                ],
            ),
        ],
        "Nothing is lost between two counters",
        [
            stat(
                "Messages unaccounted for",
                "Received minus decoded, retained, ignored, rejected, dropped and queued: 0 at every scrape.",
                balance("messages_received_total", *(f"messages_{each}" for each in (*MESSAGES, "queued"))),
                legend="{{instance}}",
                steps=ZERO,
                width=6,
                height=6,
                least=None,
            ),
            stat(
                "Readings unaccounted for",
                "Decoded minus scored, unscored, rejected and pending: 0 at every scrape.",
                balance("readings_decoded_total", *(f"readings_{each}" for each in (*READINGS, "pending"))),
                legend="{{instance}}",
                steps=ZERO,
                width=6,
                height=6,
                least=None,
            ),
            Panel(
                "What waits",
                "Messages for the engine; readings for late ones (input.lateness_seconds).",
                [(sums("streamer_messages_queued"), "messages"), (sums("streamer_readings_pending"), "readings")],
                width=6,
                height=6,
            ),
            Panel(
                "Turns of the engine",
                "How long one takes, and how many readings it has.",
                [
                    (f"histogram_quantile(0.99, {rates('streamer_turn_seconds_bucket', 'le')})", "99% take less"),
                    (f"{rates('streamer_turn_seconds_sum')} / {rates('streamer_turn_seconds_count')}", "mean"),
                    (f"{rates('streamer_turn_readings_sum')} / {rates('streamer_turn_readings_count')}", "readings"),
                ],
                width=6,
                height=6,
                unit="s",
                overrides=[by_name("readings", unit="short", custom_axisPlacement="right")],
            ),
        ],
        "Broker",
        [
            Panel(
                "Bytes",
                "Payload that the broker has delivered, a second.",
                [(rates("streamer_mqtt_received_bytes_total"), "received")],
                unit="Bps",
            ),
            Panel(
                "Connection",
                "Connections made again, and acknowledgements that could not be sent since theirs was gone, an hour.",
                [
                    (rates("streamer_mqtt_reconnects_total", window="1h", what="increase"), "reconnects"),
                    (
                        rates("streamer_mqtt_stale_acknowledgements_total", window="1h", what="increase"),
                        "acknowledgements not sent",
                    ),
                ],
            ),
            Panel(
                "What it says",
                "Events and states handed to the broker, refused by it, given up, a second; operators' commands.",
                [
                    (rates("streamer_publishes_total"), "published"),
                    (rates("streamer_publishes_refused_total"), "refused"),
                    (rates("streamer_publishes_dropped_total"), "given up"),
                    (rates("streamer_commands_total", "result", "1h", "increase"), "commands {{result}}, an hour"),
                ],
            ),
        ],
        "Disk",
        [
            Panel(
                "Journal",
                "Records a second.",
                [(f"sum(rate(streamer_journal_records{{{HERE}}}[$__rate_interval]))", "records")],
            ),
            Panel(
                "Waiting for the disk",
                "Readings in memory that are not acknowledged yet.",
                [(sums("streamer_journal_pending_bytes"), "bytes")],
                unit="bytes",
            ),
            Panel(
                "Snapshots",
                "Age of the last good one, how long it took, and how many failed in an hour.",
                [
                    (f"max(time() - streamer_snapshot_timestamp_seconds{{{HERE}}})", "age"),
                    (f"max(streamer_snapshot_seconds{{{HERE}}})", "took"),
                    (rates('streamer_snapshot_total{result="failed"}', window="1h", what="increase"), "failed"),
                    (f"max(streamer_snapshot_bytes{{{HERE}}})", "size"),
                ],
                unit="s",
                overrides=[
                    by_name("failed", unit="short", color=color(RED)),
                    by_name("size", unit="bytes", custom_axisPlacement="right"),
                ],
            ),
        ],
        "Model",
        [
            Panel(
                "Generation of the weights",
                "A step is another set of weights: promoted, taken back by itself, or by hand.",
                [(f"streamer_model_generation{{{HERE}}}", "{{instance}}")],
                decimals=0,
            ),
            Panel(
                "Retrainings of a week",
                "How they ended, how often other weights came to serve, and how often they were taken back.",
                [
                    (rates("streamer_retrain_total", "result", "7d", "increase"), "{{result}}"),
                    (rates("streamer_model_swaps_total", window="7d", what="increase"), "swaps"),
                    (rates("streamer_model_rollbacks_total", window="7d", what="increase"), "rolled back"),
                ],
            ),
            stat(
                "Last retraining",
                "Time since the last one of this run ended.",
                f"max(time() - streamer_retrain_timestamp_seconds{{{HERE}}})",
                unit="s",
                height=8,
                no_value="none yet",
            ),
            stat(
                "At work",
                "Whether a retraining runs, and whether other weights come in.",
                f"max(streamer_retrain_running{{{HERE}}}) + 2 * max(streamer_model_swapping{{{HERE}}})",
                mappings={"0": "no", "1": "training", "2": "swapping", "3": "training and swapping"},
                height=8,
            ),
        ],
        "Process",
        [
            Panel(
                "Memory",
                "Resident; the trainer is another process.",
                [(f"process_resident_memory_bytes{OWN}", "{{instance}}")],
                unit="bytes",
            ),
            Panel(
                "CPU",
                "Cores that it keeps busy.",
                [(f"rate(process_cpu_seconds_total[$__rate_interval]){OWN}", "{{instance}}")],
                decimals=2,
            ),
            Panel(
                "Open files",
                "Connections included.",
                [(f"process_open_fds{OWN}", "{{instance}}"), (f"process_max_fds{OWN}", "limit of {{instance}}")],
            ),
        ],
    ],
)


def dashboards() -> dict[str, str]:
    """File name to text."""
    made = {"fleet.json": FLEET, "series.json": SERIES, "operations.json": OPERATIONS}
    return {name: json.dumps(content, indent=2) + "\n" for name, content in made.items()}


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, text in dashboards().items():
        (FOLDER / name).write_text(text)
