// Draws the page from the data in it. Every text of the run goes in by `textContent` or `fillText`,
// so that none of it is ever taken for markup; see `facts.py` for what the data holds.
"use strict";

const CAUSES = {
  done: ["completed", "calls of the job whose tasks completed"],
  again: ["failed or again", "calls that failed, or whose tasks needed another call"],
  lost: ["lost", "calls in which a process died or was stopped"],
  start: ["start", "interpreter, imports, the spool"],
  load: ["load", "loading the job: import, warm-up, __init__"],
  inputs: ["inputs", "waiting for the inputs of the task in hand"],
  publish: ["publish", "writing outputs, results and journal"],
  work: ["no work", "nothing to claim, or waiting for the end of the run"],
  close: ["close", "the job's close"],
  untold: ["not told", "nobody told: the process was killed, or has not told yet"],
};
const OUTCOMES = ["complete", "failed", "another call needed", "died in it", "in hand"];
const OUTCOME_COLOURS = ["done", "failed", "again", "lost", "hand"];
const GUTTER = 62;
const RIGHT = 12;
const ROWS_SHOWN = 200;

// A part of the page. Strings are text and nothing else.
function el(tag, settings, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(settings || {})) {
    if (name === "class") node.className = value;
    else if (name === "colour") node.style.background = `var(--${value})`;
    else node.setAttribute(name, value);
  }
  for (const child of children) if (child !== null && child !== undefined) node.append(child);
  return node;
}

async function unpack() {
  const text = document.getElementById("data").textContent.trim();
  const packed = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const all = await new Response(stream).arrayBuffer();
  const length = new DataView(all).getUint32(0, true);
  const data = JSON.parse(new TextDecoder().decode(new Uint8Array(all, 4, length)));
  if (data.calls) {
    const total = data.calls.counts.reduce((sum, one) => sum + one, 0);
    const column = (number) => {
      const plane = (byte) => new Uint8Array(all, 4 + length + (4 * number + byte) * total, total);
      const [first, second, third, fourth] = [0, 1, 2, 3].map(plane);
      return Int32Array.from({ length: total }, (_, i) => first[i] | second[i] << 8 | third[i] << 16 | fourth[i] << 24);
    };
    [data.calls.gaps, data.calls.durations, data.calls.steps] = [0, 1, 2].map(column);
  }
  return data;
}

// Numbers as people read them.

const plain = (value) => value.toLocaleString("en-US");
function digits(value) {
  if (value >= 100) return plain(Math.round(value));
  return value >= 10 ? value.toFixed(1) : value >= 1 ? value.toFixed(2) : value.toPrecision(2);
}
function duration(seconds) {
  if (seconds === 0) return "0 s";
  if (seconds < 1e-3) return `${digits(seconds * 1e6)} µs`;
  if (seconds < 1) return `${digits(seconds * 1e3)} ms`;
  if (seconds < 60) return `${digits(seconds)} s`;
  const total = Math.round(seconds);
  const [d, h, m, s] = [Math.floor(total / 86400), Math.floor(total / 3600) % 24, Math.floor(total / 60) % 60, total % 60];
  if (d) return h ? `${d} d ${h} h` : `${d} d`;
  if (h) return m ? `${h} h ${m} min` : `${h} h`;
  return s ? `${m} min ${s} s` : `${m} min`;
}
function hours(seconds) {
  const value = seconds / 3600;
  return value >= 0.995 ? `${digits(value)} h` : duration(seconds);
}
function bytes(count) {
  const units = ["B", "kB", "MB", "GB", "TB", "PB"];
  let at = 0;
  while (count >= 1000 && at < units.length - 1) { count /= 1000; at++; }
  return `${at ? digits(count) : count} ${units[at]}`;
}
function share(part, whole) {
  if (!(whole > 0)) return "–";
  const percent = 100 * part / whole;
  if (percent > 99.9 && part < whole) return "99.9 %";
  return percent > 0 && percent < 0.1 ? "< 0.1 %" : `${percent >= 99.95 || percent === 0 ? percent.toFixed(0) : percent.toFixed(1)} %`;
}
function count(number, one, many) { return `${plain(number)} ${number === 1 ? one : many || one + "s"}`; }
function clock(unix) {
  if (unix === null || unix === undefined || !(Math.abs(unix) < 8.64e12)) return "–";
  const at = new Date(unix * 1000);
  const two = (value) => String(value).padStart(2, "0");
  return `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())} ${two(at.getHours())}:${two(at.getMinutes())}:${two(at.getSeconds())}`;
}
// A moment on the axis, as a label.
function elapsed(seconds, step) {
  if (step < 1) return `${seconds.toFixed(Math.min(6, Math.ceil(-Math.log10(step))))} s`;
  if (seconds < 60 && step < 60) return `${Math.round(seconds)} s`;
  const total = Math.round(seconds);
  const [h, m, s] = [Math.floor(total / 3600), Math.floor(total / 60) % 60, total % 60];
  if (step < 60) return h ? `${h}:${String(m).padStart(2, "0")}:${String(s).padStart(2, "0")}` : `${m}:${String(s).padStart(2, "0")} min`;
  if (step >= 86400) return `${Math.round(total / 86400)} d`;
  return h ? (m ? `${h} h ${m} min` : `${h} h`) : `${m} min`;
}
const STEPS = [60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400, 172800, 432000, 864000];
function tickStep(span, most) {
  const least = span / most;
  if (least > 30) { for (const step of STEPS) if (step >= least) return step; return 864000 * Math.ceil(least / 864000); }
  const power = 10 ** Math.floor(Math.log10(least));
  for (const factor of [1, 2, 5, 10]) if (factor * power >= least) return factor * power;
  return 10 * power;
}
function niceTop(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  for (const factor of [1, 1.5, 2, 3, 4, 5, 6, 8, 10]) if (factor * power >= value * 0.999) return factor * power;
  return 10 * power;
}

// A canvas as sharp as the screen; `draw` is called with its context and size in CSS pixels.
function paint(canvas, height, draw) {
  const width = canvas.clientWidth || 900;
  const ratio = window.devicePixelRatio || 1;
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    canvas.style.height = `${height}px`;
  }
  const pen = canvas.getContext("2d");
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, width, height);
  pen.font = "12px system-ui, 'DejaVu Sans', sans-serif";
  pen.textBaseline = "middle";
  draw(pen, width, height);
}
let palette = {};
function readPalette() {
  const style = getComputedStyle(document.documentElement);
  palette = {};
  for (const name of ["paper", "card", "line", "ink", "soft", "grid", "mark", "line2", "area", "hand", "failed", ...Object.keys(CAUSES)]) {
    palette[name] = style.getPropertyValue(`--${name}`).trim();
  }
}

// What of the axis is seen, shared by all pictures above each other: from `low` to `high` seconds.
class Window {
  constructor(length, least) {
    this.length = Math.max(length, least);
    this.least = least;
    this.low = 0;
    this.high = this.length;
    this.listeners = [];
  }
  get isWhole() { return this.low <= 0 && this.high >= this.length; }
  show(low, high) {
    let span = Math.min(this.length, Math.max(this.least, high - low));
    low = Math.min(Math.max(0, low), this.length - span);
    this.low = low;
    this.high = low + span;
    for (const listen of this.listeners) listen();
  }
  zoom(factor, at) { this.show(at - (at - this.low) * factor, at + (this.high - at) * factor); }
  pan(part) { const by = part * (this.high - this.low); this.show(this.low + by, this.high + by); }
}

function header(data) {
  const { meta, tiles } = data;
  document.title = `${meta.job}: ${meta.says}`;
  const where = tiles.ranks ? ` on ${count(tiles.ranks, "rank")}${tiles.hosts > 1 ? ` of ${count(tiles.hosts, "host")}` : ""}` : "";
  const time = tiles.ranks ? ` in ${duration(tiles.lived_s)}` : "";
  const node = el("header", {},
    el("div", { class: "top" }, el("h1", {}, meta.job), el("span", { class: `badge is-${meta.state}` }, meta.says)),
    el("p", { id: "headline" }, `${plain(tiles.complete)} of ${count(tiles.total, "task")} complete${tiles.failed ? `, ${plain(tiles.failed)} failed` : ""}${time}${where}.`),
  );
  if (meta.message && meta.state === "stopped") node.append(el("p", { class: "soft" }, meta.message.split("\n")[0]));
  if (meta.state !== "complete") node.append(el("p", {}, "Next: ", el("code", {}, meta.next)));
  for (const note of data.notes) node.append(el("p", { class: "note" }, note));
  return node;
}

function tilesOf(data) {
  const t = data.tiles;
  const left = t.total - t.complete - t.failed;
  const rows = [
    [plain(t.complete), `of ${count(t.total, "task")} complete, ${share(t.complete, t.total)}`],
    [plain(t.failed), "failed", t.failed > 0],
    [duration(t.lived_s), `${t.wall_s > 1.02 * t.lived_s ? `at work, of ${duration(t.wall_s)} by the clock` : "elapsed"}${t.starts > 1 ? `; ${count(t.starts, "start")}` : ""}`],
    [plain(t.ranks), `ranks on ${count(t.hosts, "host")}`],
    [hours(t.rank_s), "of ranks, all together"],
    [share(t.busy_s, t.rank_s), "of that in calls of the job"],
    [plain(t.restarts), `${t.restarts === 1 ? "restart" : "restarts"} after a failure; ${count(t.attempts, "process", "processes")} in all`],
  ];
  if (left) rows.splice(2, 0, [plain(left), t.in_hand ? `not finished, ${plain(t.in_hand)} in hand` : "not finished"]);
  if (t.lived_s > 0) rows.push([`${digits(t.complete / t.lived_s)} /s`, "tasks completed, on average"]);
  if (t.gpu_mean !== null) rows.push([`${Math.round(t.gpu_mean)} %`, "GPU use, on average"]);
  if (t.gpu_mem_most) rows.push([bytes(t.gpu_mem_most), "GPU memory of a rank, at most"]);
  if (t.rss_most) rows.push([bytes(t.rss_most), "memory of a rank, at most"]);
  const tiles = rows.map(([value, label, bad]) => el("div", { class: "tile" }, el("b", bad ? { class: "bad" } : {}, value), el("span", {}, label)));
  return el("section", { class: "tiles", "aria-label": "The run in figures" }, ...tiles);
}

function hoursOf(data) {
  const total = data.hours.reduce((sum, [, seconds]) => sum + seconds, 0);
  if (!(total > 0)) return null;
  const bar = el("div", { class: "hours", role: "img", id: "hours" });
  const keys = el("ul", { class: "keys meanings" });
  const words = [];
  for (const [cause, seconds] of data.hours) {
    const [name, meaning] = CAUSES[cause];
    const part = el("div", { colour: cause, title: `${name}: ${hours(seconds)}, ${share(seconds, total)}. ${meaning}` });
    part.style.flex = `${seconds / total} 0 0`;
    if (seconds / total > 0.09) {
      const label = el("span", {}, `${name} ${share(seconds, total)}`);
      label.style.color = "var(--paper)";
      if (cause === "work" || cause === "load" || cause === "inputs") label.style.color = cause === "work" ? "var(--ink)" : "#1b2733";
      part.append(label);
    }
    bar.append(part);
    words.push(`${name} ${share(seconds, total)}`);
    keys.append(el("li", { "data-cause": cause, "data-seconds": String(seconds) }, el("span", { class: "swatch", colour: cause }), el("div", {}, el("b", {}, `${name}: ${hours(seconds)}, ${share(seconds, total)}`), el("span", { class: "soft" }, meaning))));
  }
  bar.setAttribute("aria-label", words.join(", "));
  return el("section", {}, el("h2", {}, "Where the rank-hours went"), el("p", { class: "hint" }, `${hours(total)} of all ranks together, from the start of each process to its end.`), bar, keys);
}

// The calls of each attempt, as numbers on the axis in units.
function spread(data) {
  let at = 0;
  const odd = new Map(data.calls ? data.calls.odd : []);
  data.attempts.forEach((attempt, number) => {
    const n = data.calls ? data.calls.counts[number] : 0;
    attempt.begins = new Float64Array(n);
    attempt.ends = new Float64Array(n);
    attempt.tasks = new Int32Array(n);
    attempt.outcomes = new Uint8Array(n);
    let last = attempt.began;
    let task = 0;
    for (let i = 0; i < n; i++, at++) {
      last += data.calls.gaps[at] >>> 0;
      attempt.begins[i] = last;
      last += data.calls.durations[at] >>> 0;
      attempt.ends[i] = last;
      task += data.calls.steps[at];
      attempt.tasks[i] = task;
      attempt.outcomes[i] = odd.get(at) || 0;
    }
  });
  if (data.calls) data.calls.gaps = data.calls.durations = data.calls.steps = null;
  const ranks = new Map();
  for (const attempt of data.attempts) {
    if (!ranks.has(attempt.rank)) ranks.set(attempt.rank, { rank: attempt.rank, attempts: [] });
    ranks.get(attempt.rank).attempts.push(attempt);
  }
  const lanes = [...ranks.values()].sort((one, other) => one.rank - other.rank);
  for (const lane of lanes) {
    lane.attempts.sort((one, other) => one.began - other.began);
    lane.bins = data.bins ? data.bins[String(lane.rank)] : null;
  }
  return lanes;
}

// The first place in sorted numbers where one is greater than `value`.
function above(numbers, value) {
  let low = 0, high = numbers.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (numbers[middle] > value) high = middle; else low = middle + 1;
  }
  return low;
}

class Timeline {
  constructor(data, view) {
    this.data = data;
    this.view = view;
    this.unit = data.meta.unit;
    this.lanes = spread(data);
    this.chosen = null;
    this.tip = el("div", { class: "tip", role: "status", id: "tip", hidden: "" });
    document.body.append(this.tip);
    this.said = el("p", { class: "sr", "aria-live": "polite", id: "said" });
    const n = this.lanes.length;
    this.laneHeight = Math.max(3, Math.min(24, Math.floor(560 / Math.max(1, n))));
    this.total = this.laneHeight * n;
    this.height = Math.min(this.total, 640);
    this.canvas = el("canvas", { tabindex: "0", id: "timeline", role: "application", "aria-label": `Timeline of ${count(n, "rank")}. Arrow keys move, plus and minus zoom, 0 shows all, up and down choose a rank, comma and full stop the call before and after.` });
    this.inner = el("div", {}, this.canvas);
    this.inner.style.height = `${this.total}px`;
    this.scroller = el("div", { class: "lanes" }, this.inner);
    this.scroller.style.height = `${this.height}px`;
    this.axis = el("canvas", { class: "plot", "aria-hidden": "true" });
    this.shown = el("span", {});
    view.listeners.push(() => this.draw());
    this.scroller.addEventListener("scroll", () => this.draw());
    this.listen();
  }

  node() {
    const button = (label, title, act) => { const one = el("button", { type: "button", title }, label); one.addEventListener("click", act); return one; };
    const middle = () => (this.view.low + this.view.high) / 2;
    const tools = el("div", { class: "tools" },
      button("+", "Zoom in (key +)", () => this.view.zoom(0.5, middle())),
      button("−", "Zoom out (key -)", () => this.view.zoom(2, middle())),
      button("◀", "Earlier (key ←)", () => this.view.pan(-0.5)),
      button("▶", "Later (key →)", () => this.view.pan(0.5)),
      button("all", "Show the whole run (key 0)", () => this.view.show(0, this.view.length)),
      this.shown);
    const item = (shape, colour, text) => el("li", {}, el("span", { class: `swatch ${shape}`, colour }), text);
    const used = new Set();
    for (const attempt of this.data.attempts) for (const [, cause] of attempt.pauses) used.add(this.data.causes[cause]);
    const keys = el("ul", { class: "keys" }, item("", "done", "a call of the job"), item("tick", "failed", "a call that failed, at full height"), item("", "lost", "a call in which the process died"), item("tick", "mark", "a process begins again"));
    for (const cause of Object.keys(CAUSES)) if (used.has(cause)) keys.append(item("thin", cause, `between calls: ${CAUSES[cause][0]}`));
    return el("section", {}, el("h2", {}, "Timeline of the ranks"),
      el("p", { class: "hint" }, "The wheel zooms, dragging moves, and pointing at a call names it. By keys: + − 0 ← →, up and down choose a rank, comma and full stop a call."),
      keys, el("div", { class: "card" }, tools, this.scroller, this.axis, this.said));
  }

  get width() { return Math.max(50, (this.canvas.clientWidth || 900) - GUTTER - RIGHT); }
  place(x) { return this.view.low + (x - GUTTER) / this.width * (this.view.high - this.view.low); }
  x(seconds) { return GUTTER + (seconds - this.view.low) / (this.view.high - this.view.low) * this.width; }

  draw() {
    const height = this.height;
    paint(this.canvas, height, (pen, width) => {
      const top = this.scroller.scrollTop;
      const first = Math.max(0, Math.floor(top / this.laneHeight));
      const last = Math.min(this.lanes.length, Math.ceil((top + height) / this.laneHeight));
      this.grid(pen, height);
      pen.save();
      pen.beginPath();
      pen.rect(GUTTER, 0, this.width, height);
      pen.clip();
      for (let number = first; number < last; number++) this.drawLane(pen, this.lanes[number], number * this.laneHeight - top);
      pen.restore();
      this.labels(pen, first, last, top);
      this.drawChosen(pen, top);
    });
    paint(this.axis, this.data.meta.cuts.length ? 38 : 24, (pen, width, h) => drawTicks(pen, this, h));
    const { low, high } = this.view;
    this.shown.textContent = this.view.isWhole ? `${duration(this.view.length)}, all of it` : `${duration(high - low)} of ${duration(this.view.length)}, from ${clock(wallTime(this.data.meta, low))}`;
    this.canvas.dataset.view = JSON.stringify({ low, high, left: GUTTER, width: this.width, lane: this.laneHeight, ranks: this.lanes.map((lane) => lane.rank), scroll: this.scroller.scrollTop });
  }

  grid(pen, height) {
    pen.fillStyle = palette.grid;
    for (const [, x] of ticks(this)) pen.fillRect(Math.round(x), 0, 1, height);
    pen.fillStyle = palette.soft;
    for (const [where] of this.data.meta.cuts) {
      const x = this.x(where);
      if (x >= GUTTER && x <= GUTTER + this.width) for (let y = 0; y < height; y += 6) pen.fillRect(Math.round(x), y, 1, 3);
    }
  }

  labels(pen, first, last, top) {
    const every = Math.max(1, Math.ceil(13 / this.laneHeight));
    pen.fillStyle = palette.soft;
    pen.textAlign = "right";
    pen.font = `${Math.min(12, Math.max(9, this.laneHeight))}px system-ui, 'DejaVu Sans', sans-serif`;
    if (every > 1) pen.font = "11px system-ui, 'DejaVu Sans', sans-serif";
    for (let number = first; number < last; number++) {
      if (number % every) continue;
      const y = number * this.laneHeight - top + this.laneHeight / 2;
      pen.fillText(number === 0 && this.laneHeight >= 11 ? `rank ${this.lanes[number].rank}` : String(this.lanes[number].rank), GUTTER - 8, Math.max(6, y));
    }
  }

  // Calls that are wide enough have a bar each. Of those that share a pixel it is told by the strength
  // of the colour how much of it they fill; a failed one is always seen.
  drawLane(pen, lane, y) {
    const space = this.laneHeight >= 8 ? 2 : this.laneHeight >= 5 ? 1 : 0;
    const full = this.laneHeight - (this.laneHeight >= 5 ? 1 : 0);
    const thick = Math.max(1, full - 2 * space);
    const thin = Math.max(1, Math.round(full * 0.22));
    const low = this.view.low / this.unit, high = this.view.high / this.unit;
    const scale = this.width / (high - low);
    for (const attempt of lane.attempts) {
      if (attempt.ended < low || attempt.began > high) continue;
      let from = attempt.began;
      for (const [until, cause] of attempt.pauses) {
        const x0 = GUTTER + (from - low) * scale, x1 = GUTTER + (Math.min(until, attempt.ended) - low) * scale;
        pen.fillStyle = palette[this.data.causes[cause]];
        if (x1 > GUTTER && x0 < GUTTER + this.width) pen.fillRect(x0, y + (full - thin) / 2, Math.max(x1 - x0, 0.5), thin);
        from = until;
      }
    }
    if (lane.bins) this.drawBins(pen, lane.bins, y, full);
    else for (const attempt of lane.attempts) this.drawCalls(pen, attempt, y, { space, full, thick, low, high, scale });
    lane.attempts.forEach((attempt, number) => {
      if (number > 0 || attempt.number > 0) this.mark(pen, GUTTER + (attempt.began - low) * scale, y, full, palette.mark);
      if (attempt.state === "failed" || attempt.state === "lost") this.mark(pen, GUTTER + (attempt.ended - low) * scale - 2, y, full, palette.failed);
    });
  }

  mark(pen, x, y, full, colour) {
    pen.fillStyle = colour;
    pen.fillRect(Math.round(x), y, 2, full);
    if (full >= 8) { pen.beginPath(); pen.moveTo(x - 2, y); pen.lineTo(x + 4, y); pen.lineTo(x + 1, y + 4); pen.fill(); }
  }

  drawCalls(pen, attempt, y, { space, full, thick, low, high, scale }) {
    const { begins, ends, outcomes } = attempt;
    const first = above(ends, low - 1e-9);
    const cover = this.cover || (this.cover = new Float32Array(8192));
    const columns = Math.min(cover.length - 2, Math.ceil(this.width) + 1);
    let any = false;
    const ticksAt = [];
    for (let i = first; i < begins.length && begins[i] <= high; i++) {
      const x0 = Math.max(-2, (begins[i] - low) * scale), x1 = Math.min(columns + 2, (ends[i] - low) * scale);
      const outcome = outcomes[i];
      if (x1 - x0 >= 3) {
        pen.fillStyle = palette[OUTCOME_COLOURS[outcome]];
        if (outcome) pen.fillRect(GUTTER + x0, y, x1 - x0 - 0.7, full);
        else pen.fillRect(GUTTER + x0, y + space, x1 - x0 - 0.7, thick);
        continue;
      }
      if (outcome) { ticksAt.push(x0, outcome); continue; }
      let at = Math.max(0, Math.floor(x0));
      const stop = Math.min(columns, x1);
      any = true;
      if (stop <= at + 1) { cover[at] += Math.max(0.02, stop - Math.max(x0, 0)); continue; }
      for (; at < stop; at++) cover[at] += Math.min(stop, at + 1) - Math.max(x0, at);
    }
    if (any) {
      const shade = (from, to, level) => {
        pen.fillStyle = palette.card;
        pen.fillRect(GUTTER + from, y + space, to - from, thick);
        pen.fillStyle = palette.done;
        pen.globalAlpha = 0.2 + 0.8 * level / 12;
        pen.fillRect(GUTTER + from, y + space, to - from, thick);
        pen.globalAlpha = 1;
      };
      let start = 0, level = 0;
      for (let at = 0; at <= columns; at++) {
        const now = cover[at] > 0 ? Math.max(2, Math.min(12, Math.round(cover[at] * 12))) : 0;
        cover[at] = 0;
        if (now === level) continue;
        if (level) shade(start, at, level);
        start = at;
        level = now;
      }
      if (level) shade(start, columns, level);
    }
    for (let i = 0; i < ticksAt.length; i += 2) {
      pen.fillStyle = palette[OUTCOME_COLOURS[ticksAt[i + 1]]];
      pen.fillRect(GUTTER + ticksAt[i] - 0.5, y, 2, full);
    }
  }

  drawBins(pen, bins, y, full) {
    const n = bins.busy.length;
    const width = this.view.length / n;
    const first = Math.max(0, Math.floor(this.view.low / width)), last = Math.min(n, Math.ceil(this.view.high / width));
    for (let at = first; at < last; at++) {
      const x0 = this.x(at * width), x1 = this.x((at + 1) * width);
      if (bins.busy[at]) {
        const tall = Math.max(1, full * bins.busy[at] / 100);
        pen.fillStyle = palette.done;
        pen.fillRect(x0, y + full - tall, x1 - x0 + 0.3, tall);
      }
      if (bins.failed[at]) { pen.fillStyle = palette.failed; pen.fillRect(x0, y, Math.max(2, (x1 - x0) / 3), full); }
    }
  }

  drawChosen(pen, top) {
    if (!this.chosen) return;
    const { lane, low, high } = this.chosen;
    const y = lane * this.laneHeight - top;
    const x0 = Math.max(GUTTER, this.x(low)), x1 = Math.min(GUTTER + this.width, this.x(high));
    pen.strokeStyle = palette.ink;
    pen.lineWidth = 1.5;
    if (x1 >= GUTTER && x0 <= GUTTER + this.width) pen.strokeRect(x0 - 1, y - 0.5, Math.max(3, x1 - x0 + 1.5), this.laneHeight);
  }

  // What lies at a moment in a lane. reach: a call that is narrower than a pixel is found beside it.
  find(number, seconds, reach) {
    const lane = this.lanes[number];
    if (!lane) return null;
    const at = seconds / this.unit, near = reach / this.unit;
    if (lane.bins) {
      const width = this.view.length / lane.bins.busy.length;
      const bin = Math.floor(seconds / width);
      if (bin < 0 || bin >= lane.bins.busy.length) return null;
      return { lane: number, low: bin * width, high: (bin + 1) * width, bin };
    }
    const attempt = lane.attempts.findLast((one) => one.began - near <= at && at <= one.ended + near);
    if (!attempt) return null;
    let i = above(attempt.begins, at) - 1;
    const apart = (k) => k < 0 || k >= attempt.begins.length ? Infinity : Math.max(0, attempt.begins[k] - at, at - attempt.ends[k]);
    if (apart(i + 1) < apart(i)) i++;
    if (apart(i) <= near) return this.call(number, attempt, i);
    const pause = attempt.pauses.find(([until]) => at <= until) || attempt.pauses[attempt.pauses.length - 1];
    const low = i >= 0 && i < attempt.ends.length && attempt.ends[i] <= at ? attempt.ends[i] : attempt.began;
    const next = above(attempt.begins, at);
    const high = next < attempt.begins.length ? attempt.begins[next] : attempt.ended;
    return { lane: number, attempt, cause: pause ? this.data.causes[pause[1]] : "untold", low: low * this.unit, high: high * this.unit };
  }
  call(number, attempt, i) {
    return { lane: number, attempt, i, low: attempt.begins[i] * this.unit, high: attempt.ends[i] * this.unit };
  }

  words(found) {
    const { meta, keys } = this.data;
    const lane = this.lanes[found.lane];
    if (found.bin !== undefined) {
      const { busy, ended, failed } = lane.bins;
      return [`rank ${lane.rank}`, `${busy[found.bin]} % of this time in calls; ${count(ended[found.bin], "call")} ended`, failed[found.bin] ? `${count(failed[found.bin], "call")} failed` : "", `at ${clock(wallTime(meta, found.low))}, ${duration(found.high - found.low)}`];
    }
    const { attempt } = found;
    const place = [`rank ${attempt.rank}, attempt ${attempt.name}`, [attempt.host && `host ${attempt.host}`, attempt.device && `device ${attempt.device}`].filter(Boolean).join(", ")];
    const length = duration(found.high - found.low);
    if (found.i === undefined) return [`between calls: ${CAUSES[found.cause][0]}`, `${length}; ${CAUSES[found.cause][1]}`, ...place];
    const task = attempt.tasks[found.i];
    const key = keys && keys[task] !== null && keys[task] !== undefined ? keys[task] : "(no readable line has its key)";
    return [key, `task #${task}: ${OUTCOMES[attempt.outcomes[found.i]]}, ${length}`, ...place, `at ${clock(wallTime(meta, found.low))}`];
  }

  choose(found, x, y) {
    this.chosen = found;
    this.tip.hidden = !found;
    if (found) {
      const [first, ...others] = this.words(found).filter(Boolean);
      this.tip.replaceChildren(el("b", {}, first), ...others.map((line) => el("div", {}, line)));
      const box = this.tip.getBoundingClientRect();
      this.tip.style.left = `${Math.max(4, Math.min(x + 14, window.innerWidth - box.width - 8))}px`;
      this.tip.style.top = `${y + 18 + box.height > window.innerHeight ? Math.max(4, y - box.height - 12) : y + 18}px`;
    }
    this.draw();
  }
  // The same for who sees no pointer: beside the call, and read aloud.
  chooseByKey(found) {
    if (!found) return;
    const span = this.view.high - this.view.low;
    if (found.low < this.view.low || found.high > this.view.high) {
      const middle = (found.low + found.high) / 2;
      const wide = Math.max(span, (found.high - found.low) * 1.5);
      this.view.show(middle - wide / 2, middle + wide / 2);
    }
    const y = found.lane * this.laneHeight;
    if (y < this.scroller.scrollTop || y + this.laneHeight > this.scroller.scrollTop + this.height) this.scroller.scrollTop = y - this.height / 2;
    const box = this.canvas.getBoundingClientRect();
    this.choose(found, box.left + Math.max(GUTTER, Math.min(this.x(found.low), GUTTER + this.width)), box.top + y - this.scroller.scrollTop + this.laneHeight);
    this.said.textContent = this.words(found).filter(Boolean).join("; ");
  }

  step(direction) {
    const now = this.chosen || this.find(0, this.view.low, this.view.high - this.view.low);
    if (!now) return;
    const lane = this.lanes[now.lane];
    if (now.bin !== undefined) { this.chooseByKey(this.find(now.lane, now.low + (direction + 0.5) * (now.high - now.low), 0)); return; }
    const all = [];
    for (const attempt of lane.attempts) for (let i = 0; i < attempt.begins.length; i++) all.push([attempt, i]);
    let at = all.findIndex(([attempt, i]) => attempt === now.attempt && i === now.i);
    if (!this.chosen && at >= 0) at -= direction;
    if (at < 0) at = direction > 0 ? all.findIndex(([attempt, i]) => attempt.begins[i] * this.unit >= now.high - 1e-12) - 1 : all.findLastIndex(([attempt, i]) => attempt.ends[i] * this.unit <= now.low + 1e-12) + 1;
    const next = all[at + direction];
    if (next) this.chooseByKey(this.call(now.lane, next[0], next[1]));
  }
  rank(direction) {
    const number = this.chosen ? this.chosen.lane + direction : 0;
    if (number < 0 || number >= this.lanes.length) return;
    const middle = this.chosen ? (this.chosen.low + this.chosen.high) / 2 : (this.view.low + this.view.high) / 2;
    this.chooseByKey(this.find(number, middle, this.view.length));
  }

  listen() {
    const canvas = this.canvas;
    canvas.addEventListener("wheel", (event) => {
      if (event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY)) {
        if (this.view.isWhole) return;
        this.view.pan((event.deltaX || event.deltaY) / 1000);
      } else {
        // With all of the run in sight the wheel moves the page, as everywhere.
        if (event.deltaY > 0 && this.view.isWhole) return;
        this.view.zoom(2 ** (event.deltaY / 240), this.place(event.offsetX));
      }
      event.preventDefault();
      this.hover(event);
    }, { passive: false });
    let drag = null;
    canvas.addEventListener("pointerdown", (event) => { drag = { x: event.offsetX, low: this.view.low, high: this.view.high }; canvas.setPointerCapture(event.pointerId); });
    canvas.addEventListener("pointerup", () => { drag = null; });
    canvas.addEventListener("pointermove", (event) => {
      if (drag && Math.abs(event.offsetX - drag.x) > 2) {
        const by = (drag.x - event.offsetX) / this.width * (drag.high - drag.low);
        this.view.show(drag.low + by, drag.high + by);
      }
      this.hover(event);
    });
    canvas.addEventListener("pointerleave", () => this.choose(null));
    canvas.addEventListener("blur", () => this.choose(null));
    canvas.addEventListener("keydown", (event) => {
      const middle = this.chosen ? (this.chosen.low + this.chosen.high) / 2 : (this.view.low + this.view.high) / 2;
      const acts = {
        ArrowLeft: () => this.view.pan(-0.2), ArrowRight: () => this.view.pan(0.2),
        ArrowUp: () => this.rank(-1), ArrowDown: () => this.rank(1),
        "+": () => this.view.zoom(0.5, middle), "=": () => this.view.zoom(0.5, middle), "-": () => this.view.zoom(2, middle),
        0: () => this.view.show(0, this.view.length), Home: () => this.view.show(0, this.view.high - this.view.low),
        End: () => this.view.show(this.view.length - this.view.high + this.view.low, this.view.length),
        ",": () => this.step(-1), ".": () => this.step(1), Escape: () => this.choose(null),
      };
      if (event.ctrlKey || event.metaKey || event.altKey || !acts[event.key]) return;
      event.preventDefault();
      acts[event.key]();
    });
  }
  hover(event) {
    const reach = 3 / this.width * (this.view.high - this.view.low);
    const number = Math.floor((event.offsetY + this.scroller.scrollTop) / this.laneHeight);
    const found = event.offsetX < GUTTER ? null : this.find(number, this.place(event.offsetX), reach);
    this.choose(found, event.clientX, event.clientY);
  }
}

function wallTime(meta, seconds) {
  let at = meta.origin + seconds;
  for (const [where, pause] of meta.cuts) if (seconds > where) at += pause;
  return at;
}
function ticks(plot) {
  const { low, high } = plot.view;
  const step = tickStep(high - low, Math.max(2, plot.width / 96));
  const found = [];
  for (let at = Math.ceil(low / step - 1e-9) * step; at <= high + step * 1e-6; at += step) found.push([elapsed(Math.max(0, at), step), plot.x(at)]);
  return found;
}
function drawTicks(pen, plot, height) {
  pen.fillStyle = palette.soft;
  pen.textAlign = "center";
  for (const [label, x] of ticks(plot)) {
    pen.fillRect(Math.round(x), 0, 1, 4);
    const half = pen.measureText(label).width / 2;
    pen.fillText(label, Math.min(Math.max(x, half), GUTTER + plot.width + RIGHT - half), 14);
  }
  for (const [where, pause] of plot.data.meta.cuts) {
    const x = plot.x(where);
    if (x < GUTTER || x > GUTTER + plot.width) continue;
    pen.fillStyle = palette.soft;
    pen.fillText(`nothing ran for ${duration(pause)}`, Math.max(x, GUTTER + 60), 28);
  }
}

// A curve on the same axis as the timeline.
class Curve {
  constructor(timeline, title, { values, band, format, top, step, of }) {
    Object.assign(this, { timeline, title, values, band, format, step, of });
    let most = 0;
    for (const value of [...values, ...(band ? band[1] : [])]) if (value !== null) most = Math.max(most, value);
    this.top = top || niceTop(most);
    this.canvas = el("canvas", { class: "plot", role: "img" });
    this.canvas.setAttribute("aria-label", `${title}: at most ${format(most)}`);
    this.here = el("span", {});
    timeline.view.listeners.push(() => this.draw());
    this.canvas.addEventListener("pointermove", (event) => {
      const at = Math.floor(timeline.place(event.offsetX) / timeline.view.length * values.length);
      const value = values[at];
      this.here.textContent = value === undefined || value === null ? "" : `${format(value)} at ${elapsed((at + 0.5) / values.length * timeline.view.length, timeline.view.length / 400)}`;
    });
    this.canvas.addEventListener("pointerleave", () => { this.here.textContent = this.of || ""; });
    this.here.textContent = this.of || "";
  }
  node() { return el("div", {}, el("h3", {}, this.title, this.here), this.canvas); }
  draw() {
    const plot = this.timeline;
    paint(this.canvas, 76, (pen, width, height) => {
      const foot = height - 6, head = 8;
      const y = (value) => foot - (foot - head) * Math.min(1, value / this.top);
      pen.fillStyle = palette.grid;
      for (const [, x] of ticks(plot)) pen.fillRect(Math.round(x), head, 1, foot - head);
      pen.fillRect(GUTTER, head, plot.width, 1);
      pen.fillRect(GUTTER, Math.round((foot + head) / 2), plot.width, 1);
      pen.fillStyle = palette.soft;
      pen.fillRect(GUTTER, foot, plot.width, 1);
      pen.textAlign = "right";
      pen.font = "11px system-ui, 'DejaVu Sans', sans-serif";
      pen.fillText(this.format(this.top), GUTTER - 6, head + 4);
      pen.fillText("0", GUTTER - 6, foot - 2);
      pen.save();
      pen.beginPath();
      pen.rect(GUTTER, 0, plot.width, height);
      pen.clip();
      const n = this.values.length, part = plot.view.length / n;
      if (this.band) {
        pen.fillStyle = palette.area;
        for (let i = 0; i < n; i++) {
          if (this.band[0][i] === null) continue;
          const x0 = plot.x(i * part), x1 = plot.x((i + 1) * part), high = y(this.band[1][i]);
          pen.fillRect(x0, high, x1 - x0 + 0.5, Math.max(1, y(this.band[0][i]) - high));
        }
      }
      // Between two moments of which nobody told anything there is no line.
      let path = null;
      const finish = (x) => {
        if (!path) return;
        if (!this.band) { pen.fillStyle = palette.area; const shape = new Path2D(path); shape.lineTo(x, foot); shape.lineTo(path.from, foot); shape.closePath(); pen.fill(shape); }
        pen.strokeStyle = palette.line2;
        pen.lineWidth = 1.5;
        pen.stroke(path);
        path = null;
      };
      for (let i = 0; i < n; i++) {
        const value = this.values[i];
        const x0 = plot.x(i * part), x1 = plot.x((i + 1) * part);
        if (value === null) { finish(x0); continue; }
        if (!path) { path = new Path2D(); path.from = x0; path.moveTo(x0, y(value)); } else path.lineTo(x0, y(value));
        if (this.step) path.lineTo(x1, y(value));
        if (i === n - 1) { path.lineTo(x1, y(value)); finish(x1); }
      }
      pen.restore();
    });
  }
}

function curvesOf(data, timeline) {
  const { rate, used, meta } = data;
  const part = Math.max(meta.length, 1e-9) / rate.counts.length;
  const curves = [];
  let sum = 0;
  const done = rate.counts.map((one) => (sum += one) / Math.max(1, rate.total) * 100);
  if (sum) {
    curves.push(new Curve(timeline, "Tasks a second", { values: rate.counts.map((one) => one / part), format: (value) => digits(value), step: true }));
    curves.push(new Curve(timeline, "Share of all tasks done", { values: done, format: (value) => `${value.toFixed(0)} %`, top: 100 }));
  }
  if (used.gpu) curves.push(new Curve(timeline, "GPU use", { values: used.gpu[0], band: [used.gpu[1], used.gpu[2]], format: (value) => `${Math.round(value)} %`, top: 100, of: "mean of all ranks, and from the least to the most" }));
  if (used.gpu_mem) curves.push(new Curve(timeline, "GPU memory", { values: used.gpu_mem, format: bytes, of: used.gpu_mem_total ? `of ${bytes(used.gpu_mem_total)} on all devices together` : "of all devices together" }));
  if (used.cpu) curves.push(new Curve(timeline, "Cores kept busy", { values: used.cpu, format: (value) => digits(value), of: "by all ranks together" }));
  if (used.rss) curves.push(new Curve(timeline, "Memory", { values: used.rss, format: bytes, of: "resident, of all ranks together" }));
  return curves;
}

function histogramOf(data) {
  const { times } = data;
  if (!times) return null;
  const canvas = el("canvas", { class: "plot", role: "img", "aria-label": `Times of ${count(times.count, "call")}: median ${duration(times.median)}, 90th percentile ${duration(times.p90)}, 99th ${duration(times.p99)}` });
  const draw = () => paint(canvas, 190, (pen, width, height) => {
    const left = 62, right = 14, foot = height - 26, head = 26;
    const n = times.counts.length, bar = (width - left - right) / n;
    const top = Math.max(...times.counts);
    pen.fillStyle = palette.grid;
    for (const part of [0, 0.5, 1]) pen.fillRect(left, Math.round(foot - part * (foot - head)), width - left - right, 1);
    pen.fillStyle = palette.done;
    times.counts.forEach((one, i) => { if (one) { const tall = Math.max(1.5, one / top * (foot - head)); pen.fillRect(left + i * bar + 0.5, foot - tall, Math.max(1, bar - 1), tall); } });
    pen.fillStyle = palette.soft;
    pen.fillRect(left, foot, width - left - right, 1);
    pen.textAlign = "right";
    pen.font = "11px system-ui, 'DejaVu Sans', sans-serif";
    pen.fillText(plain(top), left - 6, head);
    pen.fillText("0", left - 6, foot - 2);
    pen.textAlign = "center";
    const every = Math.max(1, Math.round(n / Math.max(2, Math.floor((width - left) / 110))));
    for (let i = 0; i <= n; i += every) pen.fillText(duration(times.edges[i]), Math.min(left + i * bar, width - 30), foot + 14);
    const place = (value) => {
      let i = Math.min(n - 1, Math.max(0, above(times.edges, value) - 1));
      const [low, high] = [times.edges[i], times.edges[i + 1]];
      return left + (i + (high > low ? (value - low) / (high - low) : 0)) * bar;
    };
    let last = -Infinity;
    [["median", times.median], ["90 %", times.p90], ["99 %", times.p99]].forEach(([name, value], row) => {
      const x = place(value);
      pen.fillStyle = palette.ink;
      for (let y = head - 4; y < foot; y += 5) pen.fillRect(Math.round(x), y, 1.2, 3);
      const half = pen.measureText(name).width / 2;
      const label = Math.max(x, last + half + 6);
      pen.fillText(name, Math.min(label, width - half - 2), head - 14);
      last = label + half;
    });
  });
  const facts = el("table", {}, ...[["median", times.median], ["90 % took at most", times.p90], ["99 % took at most", times.p99], ["shortest", times.least], ["longest", times.most], ["mean", times.total / times.count]].map(([name, value]) => el("tr", {}, el("td", {}, name), el("td", { class: "n" }, duration(value)))));
  const section = el("section", {}, el("h2", {}, "How long tasks took"), el("p", { class: "hint" }, `${count(times.count, "call")} that completed. A task in a batch counts with its share of the call.`), el("div", { class: "two" }, el("div", { class: "card" }, canvas), facts));
  return { section, draw };
}

// A table of which at first only so many rows are made: ten thousand would take a browser seconds.
function tableOf(columns, rows) {
  const body = el("tbody", {});
  const make = (row) => el("tr", {}, ...columns.map(([, kind, cell]) => { const value = cell(row); return el("td", { class: `${kind}${value && value.bad ? " bad" : ""}` }, value && value.bad !== undefined ? value.text : value); }));
  body.append(...rows.slice(0, ROWS_SHOWN).map(make));
  const table = el("table", {}, el("thead", {}, el("tr", {}, ...columns.map(([name, kind]) => el("th", { class: kind, scope: "col" }, name)))), body);
  const node = el("div", { class: "wide" }, table);
  if (rows.length > ROWS_SHOWN) {
    const more = el("button", { type: "button" }, `show all ${plain(rows.length)}`);
    more.addEventListener("click", () => { body.append(...rows.slice(ROWS_SHOWN).map(make)); more.remove(); });
    node.append(more);
  }
  return node;
}
const keyOf = (row) => row.key === null ? "(no readable line has its key)" : row.key;

function slowestOf(data) {
  if (!data.slowest.length) return null;
  const outcome = (row) => ({ text: OUTCOMES[row.outcome], bad: row.outcome !== 0 && row.outcome !== 4 });
  const columns = [
    ["task", "key", keyOf], ["number", "n", (row) => `#${row.task}`], ["time", "n", (row) => duration(row.seconds)],
    ["cost", "n", (row) => row.cost === null ? "–" : plain(row.cost)],
    ["time / cost", "n", (row) => row.cost ? duration(row.seconds / row.cost) : "–"],
    ["came of it", "", outcome], ["attempt", "", (row) => row.attempt], ["host", "", (row) => row.host],
    ["began", "", (row) => clock(wallTime(data.meta, row.at * data.meta.unit))],
  ];
  return el("section", { id: "slowest" }, el("h2", {}, `The ${data.slowest.length} slowest calls`), el("p", { class: "hint" }, "The cost is what the input was said to cost; of a file, its bytes."), tableOf(columns, data.slowest));
}

function failuresOf(data) {
  const { failures } = data;
  if (!failures.count) return null;
  const section = el("section", { id: "failures" }, el("h2", {}, `${count(failures.count, "failed task")}`), el("p", {}, "Give all of them another round: ", el("code", {}, failures.retry)));
  const kinds = tableOf([["tasks", "n", (row) => plain(row.count)], ["error", "key", (row) => `${row.kind}, ${row.type}`], ["where", "", (row) => row.where], ["message of the first", "key", (row) => row.message]], failures.kinds);
  section.append(kinds);
  if (failures.n_other > 0) section.append(el("p", { class: "hint" }, `${count(failures.n_other, "task")} failed in yet other ways.`));
  failures.named.forEach((row) => {
    const facts = el("dl", {});
    const add = (name, value) => { if (value) facts.append(el("dt", {}, name), el("dd", {}, value)); };
    add("failed in", row.attempts.join(", "));
    add("where", [row.host, row.device].filter(Boolean).join(", "));
    add("tries", row.tries > 1 ? String(row.tries) : "");
    if (row.redo) add("again", el("code", {}, row.redo));
    add("its story", el("code", {}, row.explain));
    add("what it printed", el("code", {}, row.logs));
    const inside = el("div", {}, el("p", {}, row.message));
    if (row.traceback) inside.append(...(row.is_log ? [el("p", { class: "hint" }, "The end of its log:")] : []), el("pre", {}, row.traceback));
    inside.append(facts);
    section.append(el("details", {}, el("summary", {}, keyOf(row), el("span", {}, ` #${row.task} · ${row.type}${row.where ? ` at ${row.where}` : ""}`)), inside));
  });
  if (failures.count > failures.named.length) section.append(el("p", {}, `The first ${plain(failures.named.length)} are named here; all: `, el("code", {}, failures.all)));
  return section;
}

function attemptsOf(data) {
  if (!data.attempts.length) return null;
  const columns = [
    ["attempt", "", (row) => row.name], ["start", "n", (row) => row.epoch === null ? "–" : String(row.epoch)], ["host", "", (row) => row.host],
    ["device", "", (row) => row.device_name ? `${row.device} (${row.device_name})` : row.device],
    ["began", "", (row) => clock(wallTime(data.meta, row.began * data.meta.unit))], ["lived", "n", (row) => duration(row.seconds)],
    ["busy", "n", (row) => share(row.busy_s, row.seconds)], ["complete", "n", (row) => plain(row.done)],
    ["failed calls", "n", (row) => ({ text: plain(row.failed), bad: row.failed > 0 })],
    ["ended", "key", (row) => ({ text: row.state === "running" ? "runs" : row.why || row.state, bad: row.state === "failed" || row.state === "lost" })],
  ];
  return el("section", { id: "attempts" }, el("h2", {}, `${count(data.attempts.length, "attempt")}`), el("p", { class: "hint" }, "An attempt is one process of a rank."), tableOf(columns, data.attempts));
}

function howOf(data) {
  const { how, meta } = data;
  const facts = el("dl", {});
  for (const [name, value] of how.facts) facts.append(el("dt", {}, name), el("dd", {}, name === "command" ? el("code", {}, value) : typeof value === "number" ? clock(value) : value));
  const section = el("section", { id: "how" }, el("h2", {}, "How it was run"), facts);
  if (how.starts.length) {
    section.append(el("h3", {}, "Starts"), tableOf([
      ["start", "n", (row) => String(row.epoch)], ["typed", "", (row) => row.command], ["host", "", (row) => row.host], ["job", "", (row) => row.job],
      ["slots", "key", (row) => row.slots], ["began", "", (row) => clock(row.since)], ["ended", "", (row) => clock(row.ended_at)],
      ["how", "", (row) => row.exit_code === null ? row.state : `${row.state}, exit code ${row.exit_code}`], ["it said", "key", (row) => row.message],
    ], how.starts));
  }
  if (how.hosts.length) {
    section.append(el("h3", {}, "Hosts"), tableOf([
      ["host", "", (row) => row.host || "–"], ["ranks", "n", (row) => plain(row.ranks)], ["attempts", "n", (row) => plain(row.attempts)],
      ["devices", "key", (row) => row.devices], ["complete", "n", (row) => plain(row.done)], ["rank-hours", "n", (row) => hours(row.seconds)],
    ], how.hosts));
  }
  return section;
}

async function main() {
  const page = document.getElementById("page");
  if (!("DecompressionStream" in window)) {
    page.replaceChildren(el("p", {}, "This browser is too old for this page. Firefox 113, Chrome 80, Safari 16.4 and later ones show it."));
    return;
  }
  const data = await unpack();
  readPalette();
  const zone = Intl.DateTimeFormat().resolvedOptions().timeZone;
  const view = new Window(data.meta.length, Math.max(data.meta.unit * 20, 1e-6));
  const drawings = [];
  const parts = [header(data), tilesOf(data), hoursOf(data)];
  if (data.attempts.length) {
    const timeline = new Timeline(data, view);
    const curves = curvesOf(data, timeline);
    const section = timeline.node();
    if (curves.length) section.append(el("div", { class: "card plots" }, ...curves.map((one) => one.node())));
    parts.push(section);
    drawings.push(() => timeline.draw(), ...curves.map((one) => () => one.draw()));
  } else parts.push(el("p", {}, "Nothing has run yet."));
  const histogram = histogramOf(data);
  if (histogram) { parts.push(histogram.section); drawings.push(histogram.draw); }
  parts.push(slowestOf(data), failuresOf(data), attemptsOf(data), howOf(data));
  parts.push(el("footer", {}, `Made by gpuspool ${data.meta.version} at ${clock(data.meta.made_at)}. Times are those of this computer's zone${zone ? `, ${zone}` : ""}. This page asks no other computer for anything.`));
  page.replaceChildren(...parts.filter(Boolean));
  const draw = () => { readPalette(); for (const one of drawings) one(); };
  draw();
  let pending = 0;
  const soon = () => { cancelAnimationFrame(pending); pending = requestAnimationFrame(draw); };
  window.addEventListener("resize", soon);
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", soon);
  window.matchMedia("print").addEventListener("change", draw);
  window.addEventListener("beforeprint", draw);
  window.addEventListener("afterprint", draw);
  document.documentElement.dataset.drawn = "yes";
}
main().catch((error) => {
  document.getElementById("page").replaceChildren(el("p", {}, `This page cannot be shown: ${error.message}`));
  throw error;
});
