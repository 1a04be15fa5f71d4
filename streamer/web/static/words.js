// Numbers, times and elements. Whatever a sensor has said becomes text here, never HTML.

export const NOTHING = "–";

export function number(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return NOTHING;
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-4 || size >= 1e9)) return value.toExponential(3);
  return String(Number(value.toPrecision(size >= 1000 ? 6 : 5)));
}

export function score(value) {
  return value === null || value === undefined ? NOTHING : value.toFixed(2);
}

export function span(seconds) {
  if (seconds === null || !Number.isFinite(seconds)) return NOTHING;
  if (seconds < 0.001) return `${Math.round(seconds * 1e6)} µs`;
  if (seconds < 1) return `${Math.round(seconds * 1e3)} ms`;
  if (seconds < 99.5) return `${Math.round(seconds)} s`;
  if (seconds < 90 * 60) return `${Math.round(seconds / 60)} min`;
  if (seconds < 36 * 3600) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86400)} d`;
}

const clock = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });

export function moment(epochSeconds) {
  if (epochSeconds === null || Math.abs(epochSeconds) > 8.64e12) return NOTHING;
  return clock.format(new Date(epochSeconds * 1000));
}

export function element(tag, classes, text) {
  const made = document.createElement(tag);
  if (classes) made.className = classes;
  if (text !== undefined) made.textContent = text;
  return made;
}

/** Writes only what differs: the page is renewed every second, and most of it stays. */
export function write(target, text) {
  if (target.textContent !== text) target.textContent = text;
}
