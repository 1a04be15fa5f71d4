// The report: what `#data` holds, as tables and as charts that are drawn when they come into view.

import { Chart } from "../../web/static/chart.js";
import { element, moment, NOTHING, number, score, span } from "../../web/static/words.js";

const NAMES = ["time", "low", "high", "last", "expected", "lower", "upper", "score"];
const MARGIN_PX = 400; // a chart is drawn before it comes into view
const LEAST_SHOWN = 40; // points around an alarm that is looked at
const [VALUE, ODD] = [4, 5]; // where the chart of values has them

const data = JSON.parse(document.getElementById("data").textContent);

/** One series that is over: each point stands for `span` readings. */
class Recorded extends Chart {
  /** `alarms` and `labels`: the spans to be shaded. */
  constructor(root, series, alarms, labels) {
    super(root);
    Object.assign(this, { series, labels, isVisible: false });
    this.alarms = alarms;
  }

  appear() {
    this.isVisible = true;
    this.data = decode(this.series);
    this.draw();
  }

  vanish() {
    this.isVisible = false;
    this.remove();
    this.data = Object.fromEntries([...NAMES, "value"].map((name) => [name, []]));
  }

  rebuild() {
    if (this.isVisible) super.rebuild();
  }

  columns() {
    const columns = super.columns();
    if (this.series.span === 1) return columns;
    const { low, high, expected, score: scores } = this.data;
    const [above, below] = columns;
    const farther = (at) => (Math.abs(high[at] - expected[at]) >= Math.abs(low[at] - expected[at]) ? high[at] : low[at]);
    above[ODD] = scores.map((each, at) => (each !== null && each >= 1 ? farther(at) : null));
    return [[...above, high, low], below];
  }

  valueOptions() {
    const options = super.valueOptions();
    if (this.series.span === 1) return options;
    const colour = getComputedStyle(document.documentElement).getPropertyValue("--value");
    const edge = { stroke: colour, width: 1, points: { show: false }, value: (_, each) => number(each) };
    const at = options.series.push({ ...edge, label: "highest" }, { ...edge, label: "lowest" });
    options.bands.push({ series: [at - 2, at - 1], fill: colour });
    options.series[VALUE] = { ...options.series[VALUE], label: "last", width: 0, points: { show: false } };
    options.scales.y = { range: (plot) => this.extent(plot) };
    return options;
  }

  /** Of the lowest and the highest values in view. */
  extent(plot) {
    const [time, upper, lower, expected, , , , high, low] = plot.data;
    const { series } = plot;
    const ranges = [high, low].map((values) => extent({ series, data: [time, upper, lower, expected, values] }));
    return [Math.min(...ranges.map(([least]) => least)), Math.max(...ranges.map(([, most]) => most))];
  }

  shade(plot, colour) {
    const alarms = this.alarms;
    this.alarms = this.labels;
    super.shade(plot, getComputedStyle(document.documentElement).getPropertyValue("--label"));
    this.alarms = alarms;
    super.shade(plot, colour);
  }

  /** The time around an alarm, once it is drawn. */
  look(opened, closed) {
    const { time } = this.data;
    const last = time[time.length - 1];
    const step = (last - time[0]) / Math.max(time.length - 1, 1);
    const margin = Math.max(((closed ?? last) - opened) * 2, step * LEAST_SHOWN);
    const [min, max] = [Math.max(opened - margin, time[0]), Math.min((closed ?? last) + margin, last)];
    for (const plot of this.plots) plot.setScale("x", { min, max });
  }
}

function decode({ columns, origin, span: readings }) {
  const bytes = (text) => Uint8Array.from(atob(text), (each) => each.charCodeAt(0)).buffer;
  const time = Array.from(new Float64Array(bytes(columns.time)));
  const found = { time };
  for (const name of NAMES.slice(1)) {
    const text = columns[name] ?? (readings === 1 && (name === "low" || name === "high") ? columns.last : undefined);
    const add = name === "score" ? 0 : origin;
    found[name] = text === undefined
      ? time.map(() => null)
      : Array.from(new Float32Array(bytes(text)), (each) => (Number.isFinite(each) ? each + add : null));
  }
  return { ...found, value: found.last };
}

// --- The page ---

const charts = new Map(); // by the element they are in
const watcher = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    const chart = charts.get(target);
    if (isIntersecting === chart.isVisible) continue;
    if (isIntersecting) chart.appear();
    else chart.vanish();
  }
}, { rootMargin: `${MARGIN_PX}px` });

function show() {
  const names = data.files.map((file) => file.name);
  document.title = `${names.join(", ").slice(0, 200)} – Streamer`;
  const settings = Object.entries(data.settings).map(([name, value]) => `${name} = ${JSON.stringify(value)}`);
  document.getElementById("about").textContent =
    `made ${moment(data.made)} by streamer ${data.version}, weights ${data.weights.slice(0, 16)}; ${settings.join(", ")}; ` +
    `times are those of ${Intl.DateTimeFormat().resolvedOptions().timeZone}`;
  for (const [name, count] of Object.entries(data.counts)) {
    if (!count && !["readings", "scored", "alarms"].includes(name)) continue;
    const tile = element("div");
    tile.append(element("dt", "", name), element("dd", name === "alarms" && count ? "bad" : "", String(count)));
    document.getElementById("health").append(tile);
  }
  for (const file of data.files) document.getElementById("parts").append(part(file));
}

/** Spans by the number of their series, and those of all series under null: each is looked for once. */
function spans(kinds) {
  const found = new Map([[null, []]]);
  for (const [names, opened_at, closed_at] of kinds) {
    for (const name of names) {
      if (!found.has(name)) found.set(name, []);
      found.get(name).push({ opened_at, closed_at });
    }
  }
  return found;
}

function part(file) {
  const box = element("section", "part");
  const times = file.span ? `, ${moment(file.span[0])} to ${moment(file.span[1])}` : "";
  box.append(
    element("h2", "", file.name),
    element("p", "facts", `${plural(file.rows, "row")}, ${plural(file.count, "series", "series")}${times}`),
  );
  const shown = file.charts.map((series) => ({ series, name: file.names[series.name] }));
  const alarms = spans(file.alarms.map((alarm) => [alarm.names, alarm.opened, alarm.closed]));
  const labels = spans(file.labels.map((label) => [[label.name], label.start, label.end]));
  const sections = new Map(shown.map((each) => [each.series.name, section(each, alarms, labels)]));
  if (file.figures) box.append(...judgement(file));
  box.append(alarmList(file, sections));
  box.append(tools(file, sections), ...sections.values());
  return box;
}

function section({ series, name }, alarmsOf, labelsOf) {
  const box = element("section", "series block");
  const alarms = alarmsOf.get(series.name) ?? [];
  const own = labelsOf.get(series.name);
  const labels = own ? [...labelsOf.get(null), ...own] : labelsOf.get(null);
  const told = Object.entries(series.counts).filter(([, count]) => count).map(([kind, count]) => `${count} ${kind}`);
  const peak = series.peak === null ? "no score" : `highest score ${score(series.peak)} at ${moment(series.peak_at)}`;
  const each = series.span > 1 ? `; a point stands for ${series.span} readings: their lowest to their highest value, their highest score` : "";
  const root = element("div", "chart");
  box.append(
    element("h4", "", name),
    element("p", "meta", `${told.join(", ") || "no readings"}; ${peak}; ${plural(alarms.length, "alarm")}${each}`),
    root,
  );
  box.chart = new Recorded(root, series, alarms, labels);
  charts.set(root, box.chart);
  watcher.observe(root);
  return box;
}

function judgement(file) {
  const { figures } = file;
  const share = figures.delay === null ? NOTHING : `${Math.round(figures.delay * 100)} % of the window, ${span(figures.delay_seconds)}`;
  const box = element("section", "block figures");
  const heads = ["labelled events", "caught by an alarm", "median delay", "alarms", "false alarms", "per 10,000 rows", "labels outside the file"];
  const row = [figures.events, figures.caught, share, figures.alarms, figures.false_alarms,
    number(figures.false_alarms_per_10k_rows), figures.labels_without_rows];
  box.append(element("h3", "", "Labels"), table(heads, [row.map((cell) => element("td", "", String(cell)))]));
  const rows = file.labels.map((label) => {
    const fate = label.rows === 0 ? ["", "no row in it"] : label.delay === null ? ["bad", "missed"]
      : ["good", `caught after ${span(label.delay_seconds)}, ${Math.round(label.delay * 100)} % of it`];
    return [
      element("td", "", moment(label.start)), element("td", "", moment(label.end)),
      text(label.name === null ? "the whole file" : file.names[label.name]), element("td", fate[0], fate[1]),
    ];
  });
  const list = table(["from", "to", "series", "what became of it"], rows);
  list.classList.add("labels");
  box.append(list);
  return [box];
}

function alarmList(file, sections) {
  const box = element("section", "block alarms");
  const left = file.alarm_count - file.alarms.length;
  box.append(element("h3", "", `Alarms: ${file.alarm_count || "none"}${left ? `; the ${file.alarms.length} strongest are listed` : ""}`));
  if (!file.alarms.length) return box;
  const heads = ["opened", "lasted", "series", "value", "expected (99 % band)", "usual", "score", "view", "channels"];
  if (file.figures) heads.push("by the labels");
  const rows = file.alarms.map((alarm) => {
    const name = element("td", "text");
    const link = element("button", "", file.names[alarm.name]);
    link.type = "button";
    link.title = file.names[alarm.name].slice(0, 1000);
    link.disabled = !sections.has(alarm.name);
    link.addEventListener("click", () => look(sections.get(alarm.name), alarm));
    name.append(link);
    const channels = alarm.channels.map(([each, share]) => `${file.names[each].slice(0, 80)} ${Math.round(share * 100)} %`);
    const cells = [
      element("td", "", moment(alarm.opened)),
      element("td", "", alarm.closed === null ? "to the end" : span(alarm.closed - alarm.opened)),
      name,
      element("td", "", number(alarm.value)),
      element("td", "", `${number(alarm.expected)} (${number(alarm.lower)} to ${number(alarm.upper)})`),
      element("td", "", number(alarm.usual)),
      element("td", "", score(alarm.score)),
      element("td", "", alarm.view ?? NOTHING),
      text(channels.join(", ")),
    ];
    if (file.figures) cells.push(element("td", alarm.false ? "bad" : "good", alarm.false ? "false" : "in or just after one"));
    return cells;
  });
  box.append(table(heads, rows));
  return box;
}

function look(box, alarm) {
  box.hidden = false;
  box.scrollIntoView({ block: "center" });
  if (!box.chart.isVisible) box.chart.appear();
  box.chart.look(alarm.opened, alarm.closed);
}

function tools(file, sections) {
  const box = element("div", "tools");
  const left = file.count - file.charts.length;
  const title = element("h3", "", `Series${left ? `: the ${file.charts.length} most anomalous of ${file.count}` : ", the most anomalous first"}`);
  const search = element("input");
  search.type = "search";
  search.placeholder = "Search";
  search.setAttribute("aria-label", "Search series");
  search.addEventListener("input", () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const [name, each] of sections) {
      const lower = file.names[name].toLowerCase();
      each.hidden = !words.every((word) => lower.includes(word));
    }
  });
  const key = element("span", "key");
  const kinds = [["value", "value"], ["expected", "expected"], ["", "99 % band"], ["alarm", "alarm"]];
  if (file.figures) kinds.push(["label", "labelled"]);
  for (const [kind, word] of kinds) key.append(element("i", kind), word);
  key.append(element("span", "hint", "The mouse enlarges a part, a double click goes back."));
  box.append(title, search, key);
  return box;
}

function table(heads, rows) {
  const box = element("div", "scroll");
  const made = element("table", "list");
  const head = element("thead");
  const line = element("tr");
  line.append(...heads.map((each) => element("th", "", each)));
  head.append(line);
  const body = element("tbody");
  for (const cells of rows) {
    const row = element("tr");
    row.append(...cells);
    body.append(row);
  }
  made.append(head, body);
  box.append(made);
  return box;
}

function text(content) {
  const cell = element("td", "text", content);
  cell.title = content.slice(0, 1000);
  return cell;
}

function plural(count, one, many = `${one}s`) {
  return `${count} ${count === 1 ? one : many}`;
}

show();
