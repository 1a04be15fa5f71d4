// All series, sorted and searched. Only the rows that can be seen are elements: some forty, for 100 series or 100,000.

import { element, number, score, span, write } from "./words.js";

const ROW_PX = 28;
const SPARE_ROWS = 8;
const REST_SHARE = 20; // sorting takes at most a twentieth of the time: every second, but of 100,000 series less often
const MOST_PX = 15_000_000; // browsers give up between 17 and 33 million

const COLUMNS = [
  { name: "state", title: "State", first: 1, value: (row) => row.state },
  { name: "series", title: "Series", first: 1, value: (row) => row.series },
  { name: "score", title: "Score", first: -1, isNumber: true, value: (row) => row.score },
  { name: "value", title: "Value", first: -1, isNumber: true, value: (row) => row.value },
  { name: "expected", title: "Expected", first: -1, isNumber: true, value: (row) => row.expected },
  { name: "heard", title: "Heard", first: -1, isNumber: true, value: (row) => row.heard },
];

export class Table {
  constructor(root, choose) {
    this.choose = choose;
    this.states = [];
    this.all = new Map(); // by slot
    this.order = [];
    this.words = [];
    this.shown = new Set(); // states; empty: all
    this.column = COLUMNS[0];
    this.direction = 1;
    this.chosen = null; // the series' name
    this.now = 0;
    this.isHeld = false; // a row does not slip away from under the pointer
    this.isDirty = false;
    this.restsUntil = 0;
    this.pool = [];

    this.head = element("div", "head");
    this.head.setAttribute("role", "row");
    for (const column of COLUMNS) {
      const cell = element("div", `${column.name}${column.isNumber ? " number" : ""}`);
      cell.setAttribute("role", "columnheader");
      const button = element("button", "", column.title);
      button.type = "button";
      button.addEventListener("click", () => this.sortBy(column));
      cell.append(button);
      column.cell = cell;
      this.head.append(cell);
    }
    this.rows = element("div", "rows");
    this.rows.tabIndex = 0;
    this.rows.setAttribute("role", "rowgroup");
    this.rows.setAttribute("aria-label", "Series: arrow keys move, Enter chooses");
    this.space = element("div");
    this.none = element("p", "none");
    this.rows.append(this.space, this.none);
    root.setAttribute("role", "grid");
    root.append(this.head, this.rows);

    this.rows.addEventListener("scroll", () => this.drawSoon(), { passive: true });
    this.rows.addEventListener("click", (event) => {
      const row = event.target.closest(".row");
      if (row?.series !== undefined) this.choose(row.series);
    });
    this.rows.addEventListener("pointerenter", (event) => { this.isHeld = event.pointerType === "mouse"; });
    this.rows.addEventListener("pointerleave", () => { this.isHeld = false; });
    this.rows.addEventListener("keydown", (event) => this.move(event));
    new ResizeObserver(() => this.drawSoon()).observe(this.rows);
    this.markSorted();
  }

  begin(states) {
    this.states = states;
    this.all.clear();
    this.order = []; // these rows will not change any more
    this.isDirty = true;
  }

  take(columns) {
    const { slot, series, state, score: scores, value, expected, heard } = columns;
    for (let at = 0; at < slot.length; at++) {
      if (this.states[state[at]] === "gone") {
        this.all.delete(slot[at]);
        continue;
      }
      let row = this.all.get(slot[at]);
      if (series) {
        row = { series: series[at], search: series[at].toLowerCase() };
        this.all.set(slot[at], row);
      }
      if (!row) continue;
      row.state = state[at];
      row.score = scores[at];
      row.value = value[at];
      row.expected = expected[at];
      row.heard = heard[at];
    }
    this.isDirty = true;
  }

  /** A second has passed; `now` by the daemon's clock. */
  renew(now) {
    this.now = now;
    const began = performance.now();
    if (this.isDirty && !(this.isHeld && this.order.length) && began >= this.restsUntil) {
      this.arrange();
      const ended = performance.now();
      this.restsUntil = ended + REST_SHARE * (ended - began);
    }
    this.draw();
  }

  counts() {
    const counts = this.states.map(() => 0);
    for (const row of this.all.values()) counts[row.state]++;
    return counts;
  }

  find(series) {
    for (const row of this.all.values()) if (row.series === series) return row;
    return null;
  }

  search(text) {
    this.words = text.toLowerCase().split(/\s+/).filter(Boolean);
    this.arrange();
    this.rows.scrollTop = 0;
    this.draw();
  }

  show(states) {
    this.shown = states;
    this.arrange();
    this.rows.scrollTop = 0;
    this.draw();
  }

  sortBy(column) {
    this.direction = column === this.column ? -this.direction : column.first;
    this.column = column;
    this.markSorted();
    this.arrange();
    this.draw();
  }

  markSorted() {
    for (const column of COLUMNS) {
      const direction = this.direction > 0 ? "ascending" : "descending";
      column.cell.setAttribute("aria-sort", column === this.column ? direction : "none");
    }
  }

  arrange() {
    this.isDirty = false;
    const { words, shown } = this;
    const order = [];
    for (const row of this.all.values()) {
      if (shown.size && !shown.has(row.state)) continue;
      if (words.length && !words.every((word) => row.search.includes(word))) continue;
      order.push(row);
    }
    const { value } = this.column;
    const direction = this.direction;
    order.sort((one, other) => {
      const a = value(one);
      const b = value(other);
      if (a !== b) {
        if (a === null) return 1; // what is not known comes last, whichever way
        if (b === null) return -1;
        return a < b ? -direction : direction;
      }
      return (other.score ?? -1) - (one.score ?? -1) || (one.search < other.search ? -1 : 1);
    });
    this.order = order;
  }

  move(event) {
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: 20, PageUp: -20 };
    if (!(event.key in steps) || !this.order.length) return;
    event.preventDefault();
    const at = this.order.findIndex((row) => row.series === this.chosen);
    const next = Math.min(Math.max(at + steps[event.key], 0), this.order.length - 1);
    this.choose(this.order[next].series);
    const top = next * ROW_PX;
    if (top < this.rows.scrollTop) this.rows.scrollTop = top;
    else if (top + ROW_PX > this.rows.scrollTop + this.rows.clientHeight) {
      this.rows.scrollTop = top + ROW_PX - this.rows.clientHeight;
    }
  }

  mark(series) {
    this.chosen = series;
    this.drawSoon();
  }

  drawSoon() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = null;
      this.draw();
    });
  }

  draw() {
    const { order } = this;
    const height = Math.min(order.length * ROW_PX, MOST_PX);
    if (this.height !== height) {
      this.height = height;
      this.space.style.height = `${height}px`;
    }
    this.none.hidden = order.length > 0;
    const nothing = this.states.length ? "No series so far: nothing has reported yet." : "Loading …";
    write(this.none, this.all.size ? "No series is like that." : nothing);
    this.rows.setAttribute("aria-rowcount", order.length);
    const visible = Math.ceil(this.rows.clientHeight / ROW_PX) + 2 * SPARE_ROWS;
    while (this.pool.length < Math.min(visible, order.length)) this.pool.push(this.newRow());
    const top = this.rows.scrollTop;
    // Where the list is higher than a browser can make it, a pixel of scrolling stands for more than one.
    const most = Math.max(order.length * ROW_PX - this.rows.clientHeight, 0);
    const offset = height < order.length * ROW_PX ? (top / Math.max(height - this.rows.clientHeight, 1)) * most - top : 0;
    const first = Math.max(Math.floor((top + offset) / ROW_PX) - SPARE_ROWS, 0);
    for (const [at, node] of this.pool.entries()) {
      const index = first + at;
      const row = at < visible ? order[index] : undefined;
      node.hidden = row === undefined;
      if (row !== undefined) this.fill(node, row, index, index * ROW_PX - offset);
    }
  }

  newRow() {
    const node = element("div", "row");
    node.setAttribute("role", "row");
    node.cells = {};
    for (const column of COLUMNS) {
      const cell = element("span", `${column.name}${column.isNumber ? " number" : ""}`);
      cell.setAttribute("role", "gridcell");
      node.cells[column.name] = cell;
      node.append(cell);
    }
    node.topic = element("span", "topic");
    node.field = element("span", "field");
    node.cells.series.append(node.topic, node.field);
    this.rows.append(node);
    return node;
  }

  fill(node, row, index, top) {
    const { cells } = node;
    if (node.top !== top) {
      node.top = top;
      node.style.transform = `translateY(${top}px)`;
      node.setAttribute("aria-rowindex", index + 1);
    }
    if (node.series !== row.series) {
      node.series = row.series;
      const cut = row.series.indexOf("#"); // no topic that is published has one
      write(node.topic, cut < 0 ? row.series : row.series.slice(0, cut));
      write(node.field, cut < 0 ? "" : row.series.slice(cut));
      cells.series.title = row.series;
    }
    if (node.state !== row.state) {
      node.state = row.state;
      cells.state.textContent = this.states[row.state];
      cells.state.className = `state ${this.states[row.state]}`;
    }
    write(cells.score, score(row.score));
    write(cells.value, number(row.value));
    write(cells.expected, number(row.expected));
    write(cells.heard, row.heard ? span(Math.max(this.now - row.heard, 0)) : "never");
    const isHigh = row.score !== null && row.score >= 1;
    if (node.isHigh !== isHigh) node.classList.toggle("high", (node.isHigh = isHigh));
    const isChosen = row.series === this.chosen;
    if (node.isChosen !== isChosen) node.setAttribute("aria-selected", (node.isChosen = isChosen));
  }
}
