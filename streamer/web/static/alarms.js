// The alarms that are open, the newest first, and below them those that were closed of late.

import { element, moment, number, score, span, write } from "./words.js";

export class Alarms {
  constructor(root, title, choose) {
    this.root = root;
    this.title = title;
    this.choose = choose;
    this.items = new Map(); // by id: an alarm that is updated keeps its element, and who has its focus keeps it
  }

  take({ total_open: total, open, closed }) {
    write(this.title, total ? `Alarms: ${total} open` : "Alarms: none open");
    const alarms = [...open, ...closed];
    const known = this.items;
    this.items = new Map();
    for (const alarm of alarms) {
      if (this.items.has(alarm.id)) continue; // opened anew since
      const item = known.get(alarm.id) ?? this.newItem(alarm);
      this.items.set(alarm.id, item);
      this.fill(item, alarm);
    }
    const wanted = [...this.items.values()].map((item) => item.node);
    if (!wanted.length) wanted.push(element("li", "none", "No alarm since the daemon was started."));
    const present = [...this.root.children];
    if (wanted.length !== present.length || wanted.some((node, at) => node !== present[at])) {
      this.root.replaceChildren(...wanted);
    }
  }

  newItem(alarm) {
    const node = element("li");
    const what = element("div", "what");
    const key = element("button", "key", alarm.key);
    key.type = "button";
    key.title = alarm.key;
    key.addEventListener("click", () => this.choose(alarm.key));
    const kind = element("span", "");
    const when = element("span", "when");
    const why = element("div", "why");
    what.append(kind, key, when);
    node.append(what, why);
    return { node, kind, when, why };
  }

  fill(item, alarm) {
    const isOpen = alarm.closed_at === null;
    item.node.className = isOpen ? "open" : "closed";
    item.kind.className = isOpen ? (alarm.kind === "silent" ? "silent" : "alarm") : "gap";
    write(item.kind, alarm.kind);
    const lasted = isOpen ? "" : `, closed after ${span(alarm.closed_at - alarm.opened_at)}`;
    write(item.when, `${moment(alarm.opened_at)}${lasted}${alarm.reason ? `: ${alarm.reason}` : ""}`);
    write(item.why, reason(alarm));
  }
}

function reason(alarm) {
  if (alarm.kind === "silent") {
    const { quiet_seconds: quiet, allowed_seconds: allowed } = alarm.detail;
    return `nothing for ${span(quiet ?? null)}, ${span(allowed ?? null)} allowed`;
  }
  const usual = alarm.usual === null ? "" : `, usually ${number(alarm.usual)}`;
  const band = `${number(alarm.lower)} to ${number(alarm.upper)}`;
  const others = alarm.channels.slice(1).map(({ key, share }) => `${key} ${Math.round(share * 100)} %`);
  const also = others.length ? `; also ${others.join(", ")}` : "";
  return `${number(alarm.value)}${usual}, expected ${number(alarm.expected)} (${band}), ${alarm.direction ?? ""}, ` +
    `score ${score(alarm.score)} by ${alarm.view}, ${alarm.readings} readings${also}`;
}
