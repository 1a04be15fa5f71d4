// One series: its readings, what was expected, the band, the readings that were anomalous, and the alarms it was in.

import { number, score } from "./words.js";

const MOST = 4096; // readings, as many as the daemon keeps
const COLUMNS = ["time", "value", "expected", "lower", "upper", "score"];
const SCORE_PX = 84;
const LEGEND_PX = 22;
const LEAST_PX = 120;

export class Chart {
  constructor(root) {
    this.root = root;
    this.most = MOST; // readings that are shown
    this.plots = [];
    this.clear();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.rebuild());
    new ResizeObserver(() => this.resize()).observe(root);
  }

  clear() {
    this.trace = "";
    this.next = 0;
    this.alarms = [];
    this.data = Object.fromEntries(COLUMNS.map((name) => [name, []]));
    this.isZoomed = false;
    this.remove();
  }

  /** What /api/series has said since `next`. */
  take({ trace, first, next, readings, alarms }) {
    if (trace !== this.trace || first !== this.next) for (const name of COLUMNS) this.data[name] = [];
    this.trace = trace;
    this.next = next;
    this.alarms = alarms;
    for (const name of COLUMNS) {
      const column = this.data[name];
      for (const each of readings[name]) column.push(each);
      if (column.length > MOST) column.splice(0, column.length - MOST);
    }
    this.draw();
  }

  /** Only so many of the last readings. */
  show(most) {
    this.most = most;
    this.isZoomed = false;
    this.draw();
  }

  /** Time of the first one shown, and of the last. */
  window() {
    const { time } = this.data;
    return [time[Math.max(time.length - this.most, 0)], time[time.length - 1]];
  }

  draw() {
    if (!this.data.time.length) return;
    if (!this.plots.length) return this.rebuild();
    const columns = this.columns();
    for (const [at, plot] of this.plots.entries()) {
      plot.setData(columns[at], !this.isZoomed);
      if (this.isZoomed) plot.redraw();
    }
  }

  columns() {
    const { time, value, expected, lower, upper, score: scores } = this.data;
    const odd = value.map((each, at) => (scores[at] !== null && scores[at] >= 1 ? each : null));
    return [[time, upper, lower, expected, value, odd, scores], [time, scores, scores.map((each) => (each >= 1 ? each : null))]];
  }

  remove() {
    for (const plot of this.plots) plot.destroy();
    this.plots = [];
  }

  rebuild() {
    this.remove();
    if (!this.data.time.length) return;
    const [above, below] = this.columns();
    this.plots = [new uPlot(this.valueOptions(), above, this.root), new uPlot(this.scoreOptions(), below, this.root)];
  }

  /** Of both plots. */
  sizes() {
    const { clientWidth: width, clientHeight: height } = this.root;
    const above = Math.max(height - SCORE_PX - LEGEND_PX, LEAST_PX);
    return [above, SCORE_PX].map((each) => ({ width: Math.max(width, LEAST_PX), height: each }));
  }

  resize() {
    const sizes = this.sizes();
    for (const [at, plot] of this.plots.entries()) plot.setSize(sizes[at]);
  }

  options(size, series, extra) {
    const colour = colours();
    const axis = { stroke: colour("--faint"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false } };
    return {
      ...size,
      padding: [8, 24, 6, 0],
      cursor: { sync: { key: "series" }, drag: { x: true, y: false }, points: { show: false } },
      scales: { x: { time: true, range: (_, min, max) => this.range(min, max) } },
      axes: [axis, { ...axis, size: 64, values: (_, ticks) => ticks.map(number) }],
      hooks: {
        drawClear: [(plot) => this.shade(plot, colour("--shade"))],
        setScale: [(plot, key) => { if (key === "x") this.notice(plot); }],
      },
      series: [{ label: "time" }, ...series],
      ...extra,
    };
  }

  valueOptions() {
    const colour = colours();
    const value = (_, each) => number(each);
    const edge = { stroke: "transparent", width: 0, points: { show: false }, value };
    const options = this.options(
      this.sizes()[0],
      [
        { ...edge, label: "upper" },
        { ...edge, label: "lower" },
        { label: "expected", stroke: colour("--expected"), width: 1, dash: [4, 3], points: { show: false }, value },
        { label: "value", stroke: colour("--value"), width: 1.5, points: { size: 4 }, value },
        dots("anomalous", colour("--alarm"), value),
        { label: "score", scale: "score", paths: () => null, points: { show: false }, value: (_, each) => score(each) },
      ],
      { bands: [{ series: [1, 2], fill: colour("--band") }] },
    );
    options.scales.y = { range: (plot) => extent(plot) };
    return options;
  }

  scoreOptions() {
    const colour = colours();
    const options = this.options(this.sizes()[1], [
      { stroke: colour("--expected"), width: 1, points: { show: false } },
      dots("", colour("--alarm")),
    ], { legend: { show: false } });
    options.scales.y = { range: (_, low, high) => [0, Math.max(high ?? 0, 1.2) * 1.05] };
    options.hooks.draw = [(plot) => line(plot, 1, colour("--alarm"))];
    options.axes[0] = { ...options.axes[0], show: false };
    options.axes[1] = { ...options.axes[1], splits: () => [0, 1], values: () => ["0", "score 1"] };
    return options;
  }

  /** Behind the lines: when the series was in an alarm. */
  shade(plot, colour) {
    const { ctx, bbox } = plot;
    ctx.save();
    ctx.fillStyle = colour;
    for (const alarm of this.alarms) {
      const from = Math.max(plot.valToPos(alarm.opened_at, "x", true), bbox.left);
      const until = alarm.closed_at === null ? Infinity : plot.valToPos(alarm.closed_at, "x", true);
      const to = Math.min(until, bbox.left + bbox.width);
      if (to >= from) ctx.fillRect(from, bbox.top, Math.max(to - from, 1), bbox.height);
    }
    ctx.restore();
  }

  range(min, max) {
    const { time } = this.data;
    return min === time[0] && max === time[time.length - 1] ? this.window() : [min, max];
  }

  /** A part was chosen with the mouse: it stays where it is; a double click follows the readings again. */
  notice(plot) {
    const [first, last] = this.window();
    this.isZoomed = plot.scales.x.min !== first || plot.scales.x.max !== last;
  }
}

/** Of the readings that are shown. In a fault the band can be a thousand times as wide: it may double the range. */
function extent(plot) {
  const [, upper, lower, expected, values] = plot.data;
  const [first, last] = plot.series[0].idxs ?? [0, values.length - 1];
  let [low, high] = [Infinity, -Infinity];
  for (let at = first; at <= last; at++) {
    if (values[at] === null) continue;
    low = Math.min(low, values[at]);
    high = Math.max(high, values[at]);
  }
  if (low > high) return [0, 1];
  const most = (high - low || Math.abs(high) * 0.01 || 1) / 2;
  let [bottom, top] = [low, high];
  for (let at = first; at <= last; at++) {
    for (const each of [upper[at], lower[at], expected[at]]) {
      if (each === null) continue;
      bottom = Math.min(bottom, Math.max(each, low - most));
      top = Math.max(top, Math.min(each, high + most));
    }
  }
  const margin = (top - bottom || most) * 0.06;
  return [bottom - margin, top + margin];
}

function dots(label, colour, value) {
  return { label, stroke: colour, paths: () => null, points: { show: true, size: 7, fill: colour, stroke: colour }, value };
}

function line(plot, at, colour) {
  const { ctx, bbox } = plot;
  const y = plot.valToPos(at, "y", true);
  ctx.save();
  ctx.strokeStyle = colour;
  ctx.setLineDash([2, 3]);
  ctx.beginPath();
  ctx.moveTo(bbox.left, y);
  ctx.lineTo(bbox.left + bbox.width, y);
  ctx.stroke();
  ctx.restore();
}

function colours() {
  const style = getComputedStyle(document.documentElement);
  return (name) => style.getPropertyValue(name).trim();
}
