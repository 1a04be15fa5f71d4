// The page: follows the daemon's events, and asks for the readings of the series that is open.

import { Alarms } from "./alarms.js";
import { Chart } from "./chart.js";
import { Table } from "./table.js";
import { element, moment, NOTHING, number, score, span, write } from "./words.js";

const AGAIN_MS = 5_000;
const RENEW_MS = 20_000; // a chart of a series that does not report tells the daemon that it is still looked at

const by = (id) => document.getElementById(id);
const table = new Table(by("table"), choose);
const chart = new Chart(by("chart"));
const alarms = new Alarms(by("alarm-list"), by("alarms-title"), (key) => (key.endsWith("#*") ? search(key.slice(0, -1)) : choose(key)));
const tiles = new Map();
let states = [];
let opened = null; // { series, seen, askedAt, isAsking }

// --- What the daemon says ---

function connect() {
  const events = new EventSource(`${location.origin}/api/events`);
  const on = (name, take) => events.addEventListener(name, (event) => take(JSON.parse(event.data)));
  on("hello", (hello) => {
    ({ states } = hello);
    table.begin(states);
    makeFilters();
  });
  on("series", (columns) => table.take(columns));
  on("alarms", (lists) => alarms.take(lists));
  on("health", (health) => {
    showHealth(health);
    table.renew(health.now);
    countFilters();
    follow();
  });
  events.onerror = () => {
    tell("no connection to the daemon; trying again", true);
    if (events.readyState !== EventSource.CLOSED) return; // it tries by itself
    events.close();
    setTimeout(connect, AGAIN_MS);
  };
}

function tell(sentence, isBad) {
  write(by("state"), sentence);
  by("state").className = isBad ? "bad" : "";
}

function showHealth(health) {
  write(by("instance"), health.instance === "default" ? "" : health.instance);
  const isBusy = !health.answers;
  tell(isBusy ? "the engine has not answered; what is below is old" : health.detail, isBusy || !health.ready);
  tile("Series", number(health.series));
  tile("Warming up", number(health.warming));
  tile("Open alarms", number(health.alarms_open), health.alarms_open > 0);
  tile("Readings/s", health.readings_per_second === null ? NOTHING : number(Math.round(health.readings_per_second * 10) / 10));
  tile("Lag", span(health.latency_seconds), health.latency_seconds > 10);
  tile("Waiting", number(health.queued));
  tile("Model", `generation ${health.generation}${health.swapping ? ", changing" : ""}`);
  tile("Retraining", health.retraining ? "now" : retrained(health));
}

function retrained({ retrained_at: at, now, retrainings }) {
  if (at === null) return "none so far";
  const how = Object.entries(retrainings).filter(([, count]) => count).map(([name, count]) => `${name} ${count}`);
  return `${span(Math.max(now - at, 0))} ago (${how.join(", ")})`;
}

function tile(title, text, isBad = false) {
  let shown = tiles.get(title);
  if (!shown) {
    const box = element("div");
    shown = element("dd");
    box.append(element("dt", "", title), shown);
    by("health").append(box);
    tiles.set(title, shown);
  }
  write(shown, text);
  shown.className = isBad ? "bad" : "";
}

// --- Buttons that stay pressed ---

function choice(group, text, onClick) {
  const button = element("button", "", text);
  button.type = "button";
  press(button, false);
  button.addEventListener("click", onClick);
  group.append(button);
  return button;
}

function press(button, isDown) {
  button.setAttribute("aria-pressed", String(isDown));
}

function isPressed(button) {
  return button.getAttribute("aria-pressed") === "true";
}

// --- Which series are shown ---

function makeFilters() {
  if (by("filters").childElementCount) return;
  for (const [state, name] of states.entries()) {
    if (name === "gone") continue;
    const button = choice(by("filters"), name, () => {
      press(button, !isPressed(button));
      const pressed = by("filters").querySelectorAll('[aria-pressed="true"]');
      table.show(new Set([...pressed].map((each) => Number(each.dataset.state))));
    });
    button.dataset.state = state;
  }
}

function countFilters() {
  const counts = table.counts();
  for (const button of by("filters").children) write(button, `${states[button.dataset.state]} ${counts[button.dataset.state]}`);
}

/** A device has no readings of its own: its series are shown. */
function search(text) {
  by("search").value = text;
  table.search(text);
}

by("search").addEventListener("input", (event) => table.search(event.target.value));

// --- The series that is open ---

function makeLengths() {
  for (const most of [200, 1000, Infinity]) {
    const button = choice(by("lengths"), most === Infinity ? "all" : `last ${most}`, () => {
      for (const each of by("lengths").children) press(each, each === button);
      chart.show(most);
    });
  }
  by("lengths").firstChild.click();
}

function choose(series) {
  history.replaceState(null, "", `#${encodeURIComponent(series)}`);
  open(series);
}

function open(series) {
  if (opened?.series === series) return;
  opened = { series, seen: null, askedAt: -Infinity, isAsking: false };
  chart.clear();
  write(by("series-title"), series);
  write(by("figures"), "");
  table.mark(series);
  follow();
}

/** Asks for more when the series has reported, and now and then. */
async function follow() {
  const one = opened;
  if (!one || one.isAsking) return;
  const row = table.find(one.series);
  if (!row) {
    if (table.all.size) write(by("figures"), "This series is not known.");
    return;
  }
  const news = `${row.heard} ${row.state}`;
  if (news === one.seen && performance.now() - one.askedAt < RENEW_MS) return;
  one.isAsking = true;
  one.askedAt = performance.now();
  try {
    const query = new URLSearchParams({ series: one.series, trace: chart.trace, after: chart.next });
    const response = await fetch(`${location.origin}/api/series?${query}`);
    const answer = response.ok ? await response.json() : null;
    if (opened !== one) return;
    if (answer) show(answer);
    else write(by("figures"), "No answer; trying again.");
    one.seen = answer ? news : null;
  } catch {
    one.seen = null; // the daemon is away: the events say so
  } finally {
    one.isAsking = false;
  }
}

function show(answer) {
  write(by("series-title"), answer.key);
  const band = `${number(answer.lower)} to ${number(answer.upper)}`;
  const since = answer.alarms.filter((alarm) => alarm.closed_at === null).map((alarm) => `, since ${moment(alarm.opened_at)}`);
  write(by("figures"), `${answer.state}${since[0] ?? ""}: value ${number(answer.value)}, expected ${number(answer.expected)} ` +
    `(${band}), score ${score(answer.score)}`);
  by("figures").className = answer.state === "alarm" || answer.state === "silent" ? answer.state : "";
  chart.take(answer);
}

function openNamed() {
  try {
    const series = decodeURIComponent(location.hash.slice(1));
    if (series) open(series);
  } catch {
    // not an address of ours
  }
}

addEventListener("hashchange", openNamed);
makeLengths();
openNamed();
connect();
