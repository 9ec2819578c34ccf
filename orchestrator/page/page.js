// Draws the page from the data in it. Every text of the run goes in by `textContent` or `fillText`,
// so that none of it is ever taken for markup; see `facts.py` for what the data holds.
"use strict";

const CAUSES = {
  done: ["completed", "calls of the job whose tasks completed"],
  again: ["failed or again", "calls that failed, or whose tasks needed another call"],
  lost: ["lost", "calls in which a process died or was stopped"],
  hand: ["in hand", "calls that went on when this page was made"],
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
const NO_KEY = "(no readable line has its key)";
const FONT = "system-ui, 'DejaVu Sans', sans-serif";

// The names by which the style has the colours that are painted.
const PAINTED = ["paper", "card", "line", "ink", "soft", "grid", "mark", "line2", "area", "hand"];

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

const code = (text) => el("code", {}, text);
const hint = (text) => el("p", { class: "hint" }, text);
function fill(node, ...children) {
  node.textContent = "";
  node.append(...children);
}

// The data is gzip in base64. Behind the JSON stand columns of numbers of four bytes, of which the
// lowest bytes of all come first, then the next ones, and so on; see `timeline.py`.
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
      return Int32Array.from(
        { length: total },
        (_, i) => first[i] | (second[i] << 8) | (third[i] << 16) | (fourth[i] << 24),
      );
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
  const [d, h, m, s] = [
    Math.floor(total / 86400),
    Math.floor(total / 3600) % 24,
    Math.floor(total / 60) % 60,
    total % 60,
  ];
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
  while (count >= 1000 && at < units.length - 1) {
    count /= 1000;
    at++;
  }
  return `${at ? digits(count) : count} ${units[at]}`;
}
function share(part, whole) {
  if (!(whole > 0)) return "–";
  const percent = (100 * part) / whole;
  if (percent > 99.9 && part < whole) return "99.9 %";
  return percent > 0 && percent < 0.1
    ? "< 0.1 %"
    : `${percent >= 99.95 || percent === 0 ? percent.toFixed(0) : percent.toFixed(1)} %`;
}
function count(number, one, many) {
  return `${plain(number)} ${number === 1 ? one : many || one + "s"}`;
}
function clock(unix) {
  if (unix === null || unix === undefined || !(Math.abs(unix) < 8.64e12)) return "–";
  const at = new Date(unix * 1000);
  const two = (value) => String(value).padStart(2, "0");
  const day = [at.getFullYear(), two(at.getMonth() + 1), two(at.getDate())].join("-");
  return `${day} ${[at.getHours(), at.getMinutes(), at.getSeconds()].map(two).join(":")}`;
}
// How many a second, or a minute or an hour where that would be less than one.
function rate(number, seconds) {
  const each = number / seconds;
  if (each >= 1 || each === 0) return `${digits(each)} /s`;
  return each * 60 >= 1 ? `${digits(each * 60)} /min` : `${digits(each * 3600)} /h`;
}
// A moment on the axis, as a label.
function elapsed(seconds, step) {
  if (step < 1) return `${seconds.toFixed(Math.min(6, Math.ceil(-Math.log10(step))))} s`;
  if (seconds < 60 && step < 60) return `${Math.round(seconds)} s`;
  const total = Math.round(seconds);
  const [h, m, s] = [Math.floor(total / 3600), Math.floor(total / 60) % 60, total % 60];
  if (step < 60)
    return h
      ? `${h}:${String(m).padStart(2, "0")}:${String(s).padStart(2, "0")}`
      : `${m}:${String(s).padStart(2, "0")} min`;
  if (step >= 86400) return `${Math.round(total / 86400)} d`;
  return h ? (m ? `${h} h ${m} min` : `${h} h`) : `${m} min`;
}
const STEPS = [
  60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400, 172800, 432000, 864000,
];
function tickStep(span, most) {
  const least = span / most;
  if (least > 30) {
    for (const step of STEPS) if (step >= least) return step;
    return 864000 * Math.ceil(least / 864000);
  }
  const power = 10 ** Math.floor(Math.log10(least));
  for (const factor of [1, 2, 5, 10]) if (factor * power >= least) return factor * power;
  return 10 * power;
}
function niceTop(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  for (const factor of [1, 1.5, 2, 3, 4, 5, 6, 8, 10]) {
    if (factor * power >= value * 0.999) return factor * power;
  }
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
  pen.font = `12px ${FONT}`;
  pen.textBaseline = "middle";
  draw(pen, width, height);
}
let palette = {};
function readPalette() {
  const style = getComputedStyle(document.documentElement);
  palette = {};
  for (const name of [...PAINTED, "failed", ...Object.keys(CAUSES)]) {
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
  get isWhole() {
    return this.low <= 0 && this.high >= this.length;
  }
  show(low, high) {
    let span = Math.min(this.length, Math.max(this.least, high - low));
    low = Math.min(Math.max(0, low), this.length - span);
    this.low = low;
    this.high = low + span;
    for (const listen of this.listeners) listen();
  }
  zoom(factor, at) {
    this.show(at - (at - this.low) * factor, at + (this.high - at) * factor);
  }
  pan(part) {
    const by = part * (this.high - this.low);
    this.show(this.low + by, this.high + by);
  }
}

function header(data) {
  const { meta, tiles } = data;
  document.title = `${meta.job}: ${meta.says}`;
  let headline = `${plain(tiles.complete)} of ${count(tiles.total, "task")} complete`;
  if (tiles.failed) headline += `, ${plain(tiles.failed)} failed`;
  if (tiles.ranks) headline += ` in ${duration(tiles.lived_s)} on ${count(tiles.ranks, "rank")}`;
  if (tiles.ranks && tiles.hosts > 1) headline += ` of ${count(tiles.hosts, "host")}`;
  const state = el("span", { class: `badge is-${meta.state}` }, meta.says);
  const node = el("header", {}, el("div", { class: "top" }, el("h1", {}, meta.job), state));
  node.append(el("p", { id: "headline" }, `${headline}.`));
  if (meta.message && meta.state === "stopped") {
    node.append(el("p", { class: "soft" }, meta.message.split("\n")[0]));
  }
  if (meta.state !== "complete") node.append(el("p", {}, "Next: ", code(meta.next)));
  for (const note of data.notes) node.append(el("p", { class: "note" }, note));
  return node;
}

// The run in figures: each is a value, what it is a value of, and whether it is bad news.
function tilesOf(data) {
  const t = data.tiles;
  const left = t.total - t.complete - t.failed;
  // No line ends between the number and its sign.
  const part = share(t.complete, t.total).replace(" ", "\u00a0");
  const rows = [
    [plain(t.complete), `of ${count(t.total, "task")} complete, ${part}`],
    [plain(t.failed), "failed", t.failed > 0],
  ];
  if (left) {
    rows.push([
      plain(left),
      t.in_hand ? `not finished, ${plain(t.in_hand)} in hand` : "not finished",
    ]);
  }
  const isCut = t.wall_s > 1.02 * t.lived_s;
  let lived = isCut ? `at work, of ${duration(t.wall_s)} by the clock` : "elapsed";
  if (t.starts > 1) lived += `; ${count(t.starts, "start")}`;
  const restarts = t.restarts === 1 ? "restart" : "restarts";
  const processes = count(t.attempts, "process", "processes");
  rows.push(
    [duration(t.lived_s), lived],
    [plain(t.ranks), `${t.ranks === 1 ? "rank" : "ranks"} on ${count(t.hosts, "host")}`],
    [hours(t.rank_s), "all ranks together: the rank-hours"],
    [share(t.busy_s, t.rank_s), "of the rank-hours in calls of the job"],
    [plain(t.restarts), `${restarts} after a failure; ${processes} in all`],
  );
  if (t.lived_s > 0) rows.push([rate(t.complete, t.lived_s), "tasks completed, on average"]);
  if (t.gpu_mean !== null) rows.push([`${Math.round(t.gpu_mean)} %`, "GPU use, on average"]);
  if (t.gpu_mem_most) rows.push([bytes(t.gpu_mem_most), "GPU memory of a device, at most"]);
  if (t.rss_most) rows.push([bytes(t.rss_most), "memory of a rank, at most"]);
  const tile = ([value, label, isBad]) => {
    const figure = el("b", isBad ? { class: "bad" } : {}, value);
    return el("div", { class: "tile" }, figure, el("span", {}, label));
  };
  const settings = { class: "tiles", "aria-label": "The run in figures" };
  return el("section", settings, ...rows.map(tile));
}

function hoursOf(data) {
  const total = data.hours.reduce((sum, [, seconds]) => sum + seconds, 0);
  if (!(total > 0)) return null;
  const bar = el("div", { class: "hours", role: "img", id: "hours" });
  const keys = el("ul", { class: "keys meanings" });
  for (const [cause, seconds] of data.hours) {
    bar.append(partOfBar(cause, seconds, total));
    keys.append(meaningOf(cause, seconds, total));
  }
  const words = data.hours.map(
    ([cause, seconds]) => `${CAUSES[cause][0]} ${share(seconds, total)}`,
  );
  bar.setAttribute("aria-label", words.join(", "));
  const all = `${hours(total)} of all ranks together, from the start of each process to its end.`;
  return el("section", {}, el("h2", {}, "Where the rank-hours went"), hint(all), bar, keys);
}
// A part that is wide enough has its words in it, in a colour that is seen on its own.
function partOfBar(cause, seconds, total) {
  const [name, meaning] = CAUSES[cause];
  const title = `${name}: ${hours(seconds)}, ${share(seconds, total)}. ${meaning}`;
  const part = el("div", { colour: cause, title });
  part.style.flex = `${seconds / total} 0 0`;
  if (seconds / total > 0.09) {
    const label = el("span", {}, `${name} ${share(seconds, total)}`);
    const dark = ["load", "inputs", "hand"].includes(cause) ? "#1b2733" : "var(--paper)";
    label.style.color = cause === "work" ? "var(--ink)" : dark;
    part.append(label);
  }
  return part;
}
function meaningOf(cause, seconds, total) {
  const [name, meaning] = CAUSES[cause];
  const figure = el("b", {}, `${name}: ${hours(seconds)}, ${share(seconds, total)}`);
  const words = el("div", {}, figure, el("span", { class: "soft" }, meaning));
  const settings = { "data-cause": cause, "data-seconds": String(seconds) };
  return el("li", settings, el("span", { class: "swatch", colour: cause }), words);
}

// The calls of each attempt, as numbers on the axis in units; returns the lanes, one for each rank.
function spread(data) {
  if (data.calls) spreadCalls(data);
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
// Each column tells differences: how long after the end of the call before, how long, how much
// greater the number of the task.
function spreadCalls(data) {
  const { counts, gaps, durations, steps } = data.calls;
  const odd = new Map(data.calls.odd);
  let at = 0;
  data.attempts.forEach((attempt, number) => {
    const n = counts[number];
    attempt.begins = new Float64Array(n);
    attempt.ends = new Float64Array(n);
    attempt.tasks = new Int32Array(n);
    attempt.outcomes = new Uint8Array(n);
    let last = attempt.began;
    let task = 0;
    for (let i = 0; i < n; i++, at++) {
      last += gaps[at] >>> 0;
      attempt.begins[i] = last;
      last += durations[at] >>> 0;
      attempt.ends[i] = last;
      task += steps[at];
      attempt.tasks[i] = task;
      attempt.outcomes[i] = odd.get(at) || 0;
    }
  });
  data.calls.gaps = data.calls.durations = data.calls.steps = null;
  // Only tasks that have a call have a key here, in the order of their numbers.
  const tasks = new Set();
  for (const attempt of data.attempts) for (const task of attempt.tasks) tasks.add(task);
  const inOrder = [...tasks].sort((one, other) => one - other);
  data.keyOf = new Map(inOrder.map((task, place) => [task, data.keys[place]]));
}

// The first place in sorted numbers where one is greater than `value`.
function above(numbers, value) {
  let low = 0;
  let high = numbers.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (numbers[middle] > value) high = middle;
    else low = middle + 1;
  }
  return low;
}

// Adds to each column of pixels how much of it a call from `x0` to `x1` fills.
function addCover(cover, x0, x1) {
  let at = Math.max(0, Math.floor(x0));
  if (x1 <= at + 1) {
    cover[at] += Math.max(0.02, x1 - Math.max(x0, 0));
    return;
  }
  for (; at < x1; at++) cover[at] += Math.min(x1, at + 1) - Math.max(x0, at);
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
    this.canvas = el("canvas", {
      tabindex: "0",
      id: "timeline",
      role: "application",
      "aria-label":
        `Timeline of ${count(n, "rank")}. Arrow keys move, plus and minus zoom, 0 shows all, ` +
        "up and down choose a rank, comma and full stop the call before and after.",
    });
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
    const usage =
      "The wheel zooms, dragging moves, and pointing at a call names it. By keys: + − 0 ← →, " +
      "up and down choose a rank, comma and full stop a call.";
    return el(
      "section",
      {},
      el("h2", {}, "Timeline of the ranks"),
      hint(usage),
      this.meanings(),
      el("div", { class: "card" }, this.tools(), this.scroller, this.axis, this.said),
    );
  }
  tools() {
    const button = (label, title, act) => {
      const one = el("button", { type: "button", title }, label);
      one.addEventListener("click", act);
      return one;
    };
    const { view } = this;
    const middle = () => (view.low + view.high) / 2;
    return el(
      "div",
      { class: "tools" },
      button("+", "Zoom in (key +)", () => view.zoom(0.5, middle())),
      button("−", "Zoom out (key -)", () => view.zoom(2, middle())),
      button("◀", "Earlier (key ←)", () => view.pan(-0.5)),
      button("▶", "Later (key →)", () => view.pan(0.5)),
      button("all", "Show the whole run (key 0)", () => view.show(0, view.length)),
      this.shown,
    );
  }
  // What the colours mean, of those that are there.
  meanings() {
    const item = (shape, colour, text) =>
      el("li", {}, el("span", { class: `swatch ${shape}`, colour }), text);
    const keys = el(
      "ul",
      { class: "keys" },
      item("", "done", "a call of the job"),
      item("tick", "failed", "a call that failed, at full height"),
      item("", "lost", "a call in which the process died"),
      item("tick", "mark", "a process begins again"),
    );
    const used = new Set();
    for (const attempt of this.data.attempts) {
      for (const [, cause] of attempt.pauses) used.add(this.data.causes[cause]);
    }
    for (const cause of Object.keys(CAUSES)) {
      if (used.has(cause)) keys.append(item("thin", cause, `between calls: ${CAUSES[cause][0]}`));
    }
    return keys;
  }

  get width() {
    return Math.max(50, (this.canvas.clientWidth || 900) - GUTTER - RIGHT);
  }
  place(x) {
    return this.view.low + ((x - GUTTER) / this.width) * (this.view.high - this.view.low);
  }
  x(seconds) {
    return GUTTER + ((seconds - this.view.low) / (this.view.high - this.view.low)) * this.width;
  }

  draw() {
    paint(this.canvas, this.height, (pen) => this.drawLanes(pen));
    const tall = this.data.meta.cuts.length ? 38 : 24;
    paint(this.axis, tall, (pen) => drawTicks(pen, this));
    const { low, high, length } = this.view;
    const from = clock(wallTime(this.data.meta, low));
    this.shown.textContent = this.view.isWhole
      ? `${duration(length)}, all of it`
      : `${duration(high - low)} of ${duration(length)}, from ${from}`;
    this.canvas.dataset.view = JSON.stringify({
      low,
      high,
      left: GUTTER,
      width: this.width,
      lane: this.laneHeight,
      ranks: this.lanes.map((lane) => lane.rank),
      scroll: this.scroller.scrollTop,
    });
  }
  drawLanes(pen) {
    const height = this.height;
    const top = this.scroller.scrollTop;
    const first = Math.max(0, Math.floor(top / this.laneHeight));
    const last = Math.min(this.lanes.length, Math.ceil((top + height) / this.laneHeight));
    this.grid(pen, height);
    pen.save();
    pen.beginPath();
    pen.rect(GUTTER, 0, this.width, height);
    pen.clip();
    for (let number = first; number < last; number++) {
      this.drawLane(pen, this.lanes[number], number * this.laneHeight - top);
    }
    pen.restore();
    this.labels(pen, first, last, top);
    this.drawChosen(pen, top);
  }

  grid(pen, height) {
    pen.fillStyle = palette.grid;
    for (const [, x] of ticks(this)) pen.fillRect(Math.round(x), 0, 1, height);
    pen.fillStyle = palette.soft;
    for (const [where] of this.data.meta.cuts) {
      const x = this.x(where);
      if (x >= GUTTER && x <= GUTTER + this.width) {
        for (let y = 0; y < height; y += 6) pen.fillRect(Math.round(x), y, 1, 3);
      }
    }
  }

  labels(pen, first, last, top) {
    const every = Math.max(1, Math.ceil(13 / this.laneHeight));
    pen.fillStyle = palette.soft;
    pen.textAlign = "right";
    pen.font = `${Math.min(12, Math.max(9, this.laneHeight))}px ${FONT}`;
    if (every > 1) pen.font = `11px ${FONT}`;
    for (let number = first; number < last; number++) {
      if (number % every) continue;
      const y = number * this.laneHeight - top + this.laneHeight / 2;
      pen.fillText(
        number === 0 && this.laneHeight >= 11
          ? `rank ${this.lanes[number].rank}`
          : String(this.lanes[number].rank),
        GUTTER - 8,
        Math.max(6, y),
      );
    }
  }

  // Pauses lie below the calls, and what began or ended badly above them.
  drawLane(pen, lane, y) {
    const space = this.laneHeight >= 8 ? 2 : this.laneHeight >= 5 ? 1 : 0;
    const full = this.laneHeight - (this.laneHeight >= 5 ? 1 : 0);
    const thick = Math.max(1, full - 2 * space);
    const thin = Math.max(1, Math.round(full * 0.22));
    const low = this.view.low / this.unit;
    const high = this.view.high / this.unit;
    const scale = this.width / (high - low);
    for (const attempt of lane.attempts) {
      if (attempt.ended >= low && attempt.began <= high) {
        this.drawPauses(pen, attempt, y + (full - thin) / 2, thin, low, scale);
      }
    }
    if (lane.bins) {
      this.drawBins(pen, lane.bins, y, full);
    } else {
      for (const attempt of lane.attempts) {
        this.drawCalls(pen, attempt, y, { space, full, thick, low, high, scale });
      }
    }
    lane.attempts.forEach((attempt, number) => {
      if (number > 0 || attempt.number > 0) {
        this.mark(pen, GUTTER + (attempt.began - low) * scale, y, full, palette.mark);
      }
      if (attempt.state === "failed" || attempt.state === "lost") {
        this.mark(pen, GUTTER + (attempt.ended - low) * scale - 2, y, full, palette.failed);
      }
    });
  }

  drawPauses(pen, attempt, y, thin, low, scale) {
    let from = attempt.began;
    for (const [until, cause] of attempt.pauses) {
      const x0 = GUTTER + (from - low) * scale;
      const x1 = GUTTER + (Math.min(until, attempt.ended) - low) * scale;
      pen.fillStyle = palette[this.data.causes[cause]];
      if (x1 > GUTTER && x0 < GUTTER + this.width) {
        pen.fillRect(x0, y, Math.max(x1 - x0, 0.5), thin);
      }
      from = until;
    }
  }

  mark(pen, x, y, full, colour) {
    pen.fillStyle = colour;
    pen.fillRect(Math.round(x), y, 2, full);
    if (full >= 8) {
      pen.beginPath();
      pen.moveTo(x - 2, y);
      pen.lineTo(x + 4, y);
      pen.lineTo(x + 1, y + 4);
      pen.fill();
    }
  }

  // Calls that are wide enough have a bar each. Of those that share a pixel it is told by the
  // strength of the colour how much of it they fill; a failed one is always seen.
  drawCalls(pen, attempt, y, { space, full, thick, low, high, scale }) {
    const { begins, ends, outcomes } = attempt;
    const cover = this.cover || (this.cover = new Float32Array(8192));
    const columns = Math.min(cover.length - 2, Math.ceil(this.width) + 1);
    const narrow = [];
    for (let i = above(ends, low - 1e-9); i < begins.length && begins[i] <= high; i++) {
      const x0 = Math.max(-2, (begins[i] - low) * scale);
      const x1 = Math.min(columns + 2, (ends[i] - low) * scale);
      const outcome = outcomes[i];
      if (x1 - x0 >= 3) {
        pen.fillStyle = palette[OUTCOME_COLOURS[outcome]];
        if (outcome) pen.fillRect(GUTTER + x0, y, x1 - x0 - 0.7, full);
        else pen.fillRect(GUTTER + x0, y + space, x1 - x0 - 0.7, thick);
      } else if (outcome) {
        narrow.push([x0, outcome]);
      } else {
        addCover(cover, x0, Math.min(columns, x1));
      }
    }
    this.drawCover(pen, cover, columns, y + space, thick);
    for (const [x, outcome] of narrow) {
      pen.fillStyle = palette[OUTCOME_COLOURS[outcome]];
      pen.fillRect(GUTTER + x - 0.5, y, 2, full);
    }
  }

  // Draws how much of each column is filled, in twelve steps, and empties the columns.
  drawCover(pen, cover, columns, y, thick) {
    const shade = (from, to, level) => {
      pen.fillStyle = palette.card;
      pen.fillRect(GUTTER + from, y, to - from, thick);
      pen.fillStyle = palette.done;
      pen.globalAlpha = 0.2 + (0.8 * level) / 12;
      pen.fillRect(GUTTER + from, y, to - from, thick);
      pen.globalAlpha = 1;
    };
    let start = 0;
    let level = 0;
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

  drawBins(pen, bins, y, full) {
    const n = bins.busy.length;
    const width = this.view.length / n;
    const first = Math.max(0, Math.floor(this.view.low / width));
    const last = Math.min(n, Math.ceil(this.view.high / width));
    for (let at = first; at < last; at++) {
      const x0 = this.x(at * width);
      const x1 = this.x((at + 1) * width);
      if (bins.busy[at]) {
        const tall = Math.max(1, (full * bins.busy[at]) / 100);
        pen.fillStyle = palette.done;
        pen.fillRect(x0, y + full - tall, x1 - x0 + 0.3, tall);
      }
      if (bins.failed[at]) {
        pen.fillStyle = palette.failed;
        pen.fillRect(x0, y, Math.max(2, (x1 - x0) / 3), full);
      }
    }
  }

  drawChosen(pen, top) {
    if (!this.chosen) return;
    const { lane, low, high } = this.chosen;
    const y = lane * this.laneHeight - top;
    const x0 = Math.max(GUTTER, this.x(low));
    const x1 = Math.min(GUTTER + this.width, this.x(high));
    pen.strokeStyle = palette.ink;
    pen.lineWidth = 1.5;
    if (x1 >= GUTTER && x0 <= GUTTER + this.width) {
      pen.strokeRect(x0 - 1, y - 0.5, Math.max(3, x1 - x0 + 1.5), this.laneHeight);
    }
  }

  // What lies at a moment in a lane. reach: so far beside it a call is found that is narrower than
  // a pixel.
  find(number, seconds, reach) {
    const lane = this.lanes[number];
    if (!lane) return null;
    if (lane.bins) return this.findBin(number, seconds);
    const at = seconds / this.unit;
    const near = reach / this.unit;
    const there = lane.attempts.filter((one) => one.began - near <= at && at <= one.ended + near);
    const attempt = there[there.length - 1];
    if (!attempt) return null;
    const { begins, ends } = attempt;
    const apart = (i) => {
      if (i < 0 || i >= begins.length) return Infinity;
      return Math.max(0, begins[i] - at, at - ends[i]);
    };
    let i = above(begins, at) - 1;
    if (apart(i + 1) < apart(i)) i++;
    return apart(i) <= near ? this.call(number, attempt, i) : this.pause(number, attempt, at);
  }
  findBin(number, seconds) {
    const { busy } = this.lanes[number].bins;
    const width = this.view.length / busy.length;
    const bin = Math.floor(seconds / width);
    if (bin < 0 || bin >= busy.length) return null;
    return { lane: number, low: bin * width, high: (bin + 1) * width, bin };
  }
  // What an attempt waits for at a moment in units, from the call before to the next one.
  pause(number, attempt, at) {
    const { begins, ends, pauses } = attempt;
    const pause = pauses.find(([until]) => at <= until) || pauses[pauses.length - 1];
    const next = above(begins, at);
    const low = next > 0 && ends[next - 1] <= at ? ends[next - 1] : attempt.began;
    const high = next < begins.length ? begins[next] : attempt.ended;
    return {
      lane: number,
      attempt,
      cause: pause ? this.data.causes[pause[1]] : "untold",
      low: low * this.unit,
      high: high * this.unit,
    };
  }
  call(number, attempt, i) {
    return {
      lane: number,
      attempt,
      i,
      low: attempt.begins[i] * this.unit,
      high: attempt.ends[i] * this.unit,
    };
  }

  // What is said of what was found, line by line.
  words(found) {
    if (found.bin !== undefined) return this.wordsOfBin(found);
    const { attempt } = found;
    const place = [
      attempt.host && `host ${attempt.host}`,
      attempt.device && `device ${attempt.device}`,
    ];
    const where = [
      `rank ${attempt.rank}, attempt ${attempt.name}`,
      place.filter(Boolean).join(", "),
    ];
    const length = duration(found.high - found.low);
    if (found.i === undefined) {
      const [name, meaning] = CAUSES[found.cause];
      return [`between calls: ${name}`, `${length}; ${meaning}`, ...where];
    }
    const task = attempt.tasks[found.i];
    const key = this.data.keyOf.get(task);
    const came = OUTCOMES[attempt.outcomes[found.i]];
    const began = attempt.began_at + found.low - attempt.began * this.unit;
    return [
      key === null || key === undefined ? NO_KEY : key,
      `task #${task}: ${came}, ${length}`,
      ...where,
      `at ${clock(began)}`,
    ];
  }
  wordsOfBin(found) {
    const { rank, bins } = this.lanes[found.lane];
    const ended = count(bins.ended[found.bin], "call");
    const failed = bins.failed[found.bin];
    const from = clock(wallTime(this.data.meta, found.low));
    return [
      `rank ${rank}`,
      `${bins.busy[found.bin]} % of this time in calls; ${ended} ended`,
      failed ? `${count(failed, "call")} failed` : "",
      `at ${from}, ${duration(found.high - found.low)}`,
    ];
  }

  choose(found, x, y) {
    this.chosen = found;
    this.tip.hidden = !found;
    if (found) {
      const [first, ...others] = this.words(found).filter(Boolean);
      fill(this.tip, el("b", {}, first), ...others.map((line) => el("div", {}, line)));
      const { width, height } = this.tip.getBoundingClientRect();
      const left = Math.max(4, Math.min(x + 14, window.innerWidth - width - 8));
      // Above the pointer where there is no room below it.
      const fits = y + 18 + height <= window.innerHeight;
      const top = fits ? y + 18 : Math.max(4, y - height - 12);
      this.tip.style.left = `${left}px`;
      this.tip.style.top = `${top}px`;
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
    if (
      y < this.scroller.scrollTop ||
      y + this.laneHeight > this.scroller.scrollTop + this.height
    ) {
      this.scroller.scrollTop = y - this.height / 2;
    }
    const box = this.canvas.getBoundingClientRect();
    this.choose(
      found,
      box.left + Math.max(GUTTER, Math.min(this.x(found.low), GUTTER + this.width)),
      box.top + y - this.scroller.scrollTop + this.laneHeight,
    );
    this.said.textContent = this.words(found).filter(Boolean).join("; ");
  }

  // To the call before or after the chosen one, or after the beginning of what is seen.
  step(direction) {
    const now = this.chosen || this.find(0, this.view.low, this.view.high - this.view.low);
    if (!now) return;
    if (now.bin !== undefined) {
      const middle = now.low + (direction + 0.5) * (now.high - now.low);
      this.chooseByKey(this.find(now.lane, middle, 0));
      return;
    }
    const all = [];
    for (const attempt of this.lanes[now.lane].attempts) {
      for (let i = 0; i < attempt.begins.length; i++) all.push([attempt, i]);
    }
    let at = all.findIndex(([attempt, i]) => attempt === now.attempt && i === now.i);
    if (!this.chosen && at >= 0) at -= direction;
    if (at < 0) {
      // A pause is chosen: the calls behind it begin when it ends, or later.
      const behind = all.findIndex(([one, i]) => one.begins[i] * this.unit >= now.high - 1e-12);
      const next = behind < 0 ? all.length : behind;
      at = direction > 0 ? next - 1 : next;
    }
    const next = all[at + direction];
    if (next) this.chooseByKey(this.call(now.lane, next[0], next[1]));
  }
  rank(direction) {
    const number = this.chosen ? this.chosen.lane + direction : 0;
    if (number < 0 || number >= this.lanes.length) return;
    const middle = this.chosen
      ? (this.chosen.low + this.chosen.high) / 2
      : (this.view.low + this.view.high) / 2;
    this.chooseByKey(this.find(number, middle, this.view.length));
  }

  listen() {
    const canvas = this.canvas;
    canvas.addEventListener(
      "wheel",
      (event) => {
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
      },
      { passive: false },
    );
    let drag = null;
    canvas.addEventListener("pointerdown", (event) => {
      drag = { x: event.offsetX, low: this.view.low, high: this.view.high };
      canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointerup", () => {
      drag = null;
    });
    canvas.addEventListener("pointermove", (event) => {
      if (drag && Math.abs(event.offsetX - drag.x) > 2) {
        const by = ((drag.x - event.offsetX) / this.width) * (drag.high - drag.low);
        this.view.show(drag.low + by, drag.high + by);
      }
      this.hover(event);
    });
    canvas.addEventListener("pointerleave", () => this.choose(null));
    canvas.addEventListener("blur", () => this.choose(null));
    canvas.addEventListener("keydown", (event) => {
      const middle = this.chosen
        ? (this.chosen.low + this.chosen.high) / 2
        : (this.view.low + this.view.high) / 2;
      const acts = {
        ArrowLeft: () => this.view.pan(-0.2),
        ArrowRight: () => this.view.pan(0.2),
        ArrowUp: () => this.rank(-1),
        ArrowDown: () => this.rank(1),
        "+": () => this.view.zoom(0.5, middle),
        "=": () => this.view.zoom(0.5, middle),
        "-": () => this.view.zoom(2, middle),
        0: () => this.view.show(0, this.view.length),
        Home: () => this.view.show(0, this.view.high - this.view.low),
        End: () =>
          this.view.show(this.view.length - this.view.high + this.view.low, this.view.length),
        ",": () => this.step(-1),
        ".": () => this.step(1),
        Escape: () => this.choose(null),
      };
      if (event.ctrlKey || event.metaKey || event.altKey || !acts[event.key]) return;
      event.preventDefault();
      acts[event.key]();
    });
  }
  hover(event) {
    const reach = (3 / this.width) * (this.view.high - this.view.low);
    const number = Math.floor((event.offsetY + this.scroller.scrollTop) / this.laneHeight);
    const found =
      event.offsetX < GUTTER ? null : this.find(number, this.place(event.offsetX), reach);
    this.choose(found, event.clientX, event.clientY);
  }
}

// The clock at a place of the axis. Where that is cut one start ends and the next begins: the next
// is meant.
function wallTime(meta, seconds) {
  let at = meta.origin + seconds;
  for (const [where, pause] of meta.cuts) if (seconds >= where) at += pause;
  return at;
}
function ticks(plot) {
  const { low, high } = plot.view;
  const step = tickStep(high - low, Math.max(2, plot.width / 96));
  const found = [];
  for (let at = Math.ceil(low / step - 1e-9) * step; at <= high + step * 1e-6; at += step) {
    found.push([elapsed(Math.max(0, at), step), plot.x(at)]);
  }
  return found;
}
function drawTicks(pen, plot) {
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
    Object.assign(this, { timeline, title, values, band, format, step, of: of || "" });
    const all = [...values, ...(band ? band[1] : [])].filter((value) => value !== null);
    const most = all.reduce((one, other) => Math.max(one, other), 0);
    this.top = top || niceTop(most);
    this.canvas = el("canvas", { class: "plot", role: "img" });
    this.canvas.setAttribute("aria-label", `${title}: at most ${format(most)}`);
    this.here = el("span", {}, this.of);
    timeline.view.listeners.push(() => this.draw());
    this.canvas.addEventListener("pointermove", (event) => this.hover(event));
    this.canvas.addEventListener("pointerleave", () => {
      this.here.textContent = this.of;
    });
  }
  node() {
    return el("div", {}, el("h3", {}, this.title, this.here), this.canvas);
  }
  hover(event) {
    const { view } = this.timeline;
    const part = view.length / this.values.length;
    const at = Math.floor(this.timeline.place(event.offsetX) / part);
    const value = this.values[at];
    const isTold = value !== undefined && value !== null;
    const when = elapsed((at + 0.5) * part, view.length / 400);
    this.here.textContent = isTold ? `${this.format(value)} at ${when}` : "";
  }
  draw() {
    paint(this.canvas, 76, (pen, width, height) => {
      const plot = this.timeline;
      const foot = height - 6;
      const head = 8;
      this.frame(pen, head, foot);
      pen.save();
      pen.beginPath();
      pen.rect(GUTTER, 0, plot.width, height);
      pen.clip();
      const part = plot.view.length / this.values.length;
      const x = (at) => plot.x(at * part);
      const y = (value) => foot - (foot - head) * Math.min(1, value / this.top);
      if (this.band) this.drawBand(pen, x, y);
      this.drawLine(pen, x, y, foot);
      pen.restore();
    });
  }
  frame(pen, head, foot) {
    const plot = this.timeline;
    pen.fillStyle = palette.grid;
    for (const [, x] of ticks(plot)) pen.fillRect(Math.round(x), head, 1, foot - head);
    pen.fillRect(GUTTER, head, plot.width, 1);
    pen.fillRect(GUTTER, Math.round((foot + head) / 2), plot.width, 1);
    pen.fillStyle = palette.soft;
    pen.fillRect(GUTTER, foot, plot.width, 1);
    pen.textAlign = "right";
    pen.font = `11px ${FONT}`;
    pen.fillText(this.format(this.top), GUTTER - 6, head + 4);
    pen.fillText("0", GUTTER - 6, foot - 2);
  }
  drawBand(pen, x, y) {
    const [least, most] = this.band;
    pen.fillStyle = palette.area;
    for (let i = 0; i < this.values.length; i++) {
      if (least[i] === null) continue;
      const high = y(most[i]);
      pen.fillRect(x(i), high, x(i + 1) - x(i) + 0.5, Math.max(1, y(least[i]) - high));
    }
  }
  // Between two moments of which nobody told anything there is no line.
  drawLine(pen, x, y, foot) {
    const { values } = this;
    let path = null;
    for (let i = 0; i <= values.length; i++) {
      const value = i < values.length ? values[i] : null;
      if (value === null) {
        if (path) this.finish(pen, path, x(i), foot);
        path = null;
        continue;
      }
      if (path) path.lineTo(x(i), y(value));
      else {
        path = new Path2D();
        path.from = x(i);
        path.moveTo(x(i), y(value));
      }
      const isLast = i === values.length - 1 || values[i + 1] === null;
      if (this.step || isLast) path.lineTo(x(i + 1), y(value));
    }
  }
  finish(pen, path, x, foot) {
    if (!this.band) {
      pen.fillStyle = palette.area;
      const shape = new Path2D(path);
      shape.lineTo(x, foot);
      shape.lineTo(path.from, foot);
      shape.closePath();
      pen.fill(shape);
    }
    pen.strokeStyle = palette.line2;
    pen.lineWidth = 1.5;
    pen.stroke(path);
  }
}

function curvesOf(data, timeline) {
  const { rate: done, used, meta } = data;
  const part = Math.max(meta.length, 1e-9) / done.counts.length;
  const curves = [];
  const add = (title, settings) => curves.push(new Curve(timeline, title, settings));
  let sum = 0;
  const shares = done.counts.map((one) => ((sum += one) / Math.max(1, done.total)) * 100);
  if (sum) {
    const values = done.counts.map((one) => one / part);
    add("Tasks a second", { values, format: digits, step: true });
    const format = (value) => `${value.toFixed(0)} %`;
    add("Share of all tasks done", { values: shares, format, top: 100 });
  }
  if (used.gpu) {
    const [values, ...band] = used.gpu;
    const format = (value) => `${Math.round(value)} %`;
    const of = "mean of all ranks, and from the least to the most";
    add("GPU use", { values, band, format, top: 100, of });
  }
  if (used.gpu_mem) {
    const there = used.gpu_mem_total ? `of ${bytes(used.gpu_mem_total)} on` : "of";
    const of = `${there} all devices together`;
    add("GPU memory", { values: used.gpu_mem, format: bytes, of });
  }
  if (used.cpu) {
    add("Cores kept busy", { values: used.cpu, format: digits, of: "by all ranks together" });
  }
  if (used.rss) {
    add("Memory", { values: used.rss, format: bytes, of: "resident, of all ranks together" });
  }
  return curves;
}

function histogramOf(data) {
  const { times } = data;
  if (!times) return null;
  const label =
    `Times of ${count(times.count, "call")}: median ${duration(times.median)}, ` +
    `90th percentile ${duration(times.p90)}, 99th ${duration(times.p99)}`;
  const canvas = el("canvas", { class: "plot", role: "img", "aria-label": label });
  const rows = [
    ["median", times.median],
    ["90 % took at most", times.p90],
    ["99 % took at most", times.p99],
    ["shortest", times.least],
    ["longest", times.most],
    ["mean", times.total / times.count],
  ];
  const row = ([name, value]) =>
    el("tr", {}, el("td", {}, name), el("td", { class: "n" }, duration(value)));
  const what =
    `${count(times.count, "call")} that completed. ` +
    "A task in a batch counts with its share of the call.";
  const section = el(
    "section",
    {},
    el("h2", {}, "How long tasks took"),
    hint(what),
    el(
      "div",
      { class: "two" },
      el("div", { class: "card" }, canvas),
      el("table", {}, ...rows.map(row)),
    ),
  );
  const draw = () =>
    paint(canvas, 190, (pen, width, height) => drawBars(pen, times, width, height));
  return { section, draw };
}
function drawBars(pen, times, width, height) {
  const left = 62;
  const right = width - 14;
  const head = 26;
  const foot = height - 26;
  const n = times.counts.length;
  const bar = (right - left) / n;
  const top = Math.max(...times.counts);
  pen.fillStyle = palette.grid;
  for (const part of [0, 0.5, 1]) {
    pen.fillRect(left, Math.round(foot - part * (foot - head)), right - left, 1);
  }
  pen.fillStyle = palette.done;
  times.counts.forEach((one, i) => {
    const tall = Math.max(1.5, (one / top) * (foot - head));
    if (one) pen.fillRect(left + i * bar + 0.5, foot - tall, Math.max(1, bar - 1), tall);
  });
  pen.fillStyle = palette.soft;
  pen.fillRect(left, foot, right - left, 1);
  pen.textAlign = "right";
  pen.font = `11px ${FONT}`;
  pen.fillText(plain(top), left - 6, head);
  pen.fillText("0", left - 6, foot - 2);
  pen.textAlign = "center";
  const every = Math.max(1, Math.round(n / Math.max(2, Math.floor((width - left) / 110))));
  for (let i = 0; i <= n; i += every) {
    pen.fillText(duration(times.edges[i]), Math.min(left + i * bar, width - 30), foot + 14);
  }
  const place = (value) => {
    const i = Math.min(n - 1, Math.max(0, above(times.edges, value) - 1));
    const [low, high] = [times.edges[i], times.edges[i + 1]];
    return left + (i + (high > low ? (value - low) / (high - low) : 0)) * bar;
  };
  drawQuantiles(pen, times, place, { head, foot, width });
}
// A dotted line each, and their names above, none of which lies over another.
function drawQuantiles(pen, times, place, { head, foot, width }) {
  const quantiles = [
    ["median", times.median],
    ["90 %", times.p90],
    ["99 %", times.p99],
  ];
  let last = -Infinity;
  pen.fillStyle = palette.ink;
  for (const [name, value] of quantiles) {
    const x = place(value);
    for (let y = head - 4; y < foot; y += 5) pen.fillRect(Math.round(x), y, 1.2, 3);
    const half = pen.measureText(name).width / 2;
    const label = Math.max(x, last + half + 6);
    pen.fillText(name, Math.min(label, width - half - 2), head - 14);
    last = label + half;
  }
}

// A table of which at first only so many rows are made: ten thousand would take a browser seconds.
// columns: of each its name, its class, and what a row has there: a text, or one that may be bad.
function tableOf(columns, rows) {
  const cellOf = (row, kind, tell) => {
    const value = tell(row);
    if (!value || value.bad === undefined) return el("td", { class: kind }, value);
    return el("td", { class: value.bad ? `${kind} bad` : kind }, value.text);
  };
  const make = (row) => el("tr", {}, ...columns.map(([, kind, tell]) => cellOf(row, kind, tell)));
  const names = columns.map(([name, kind]) => el("th", { class: kind, scope: "col" }, name));
  const body = el("tbody", {}, ...rows.slice(0, ROWS_SHOWN).map(make));
  const table = el("table", {}, el("thead", {}, el("tr", {}, ...names)), body);
  const node = el("div", { class: "wide" }, table);
  if (rows.length > ROWS_SHOWN) {
    const more = el("button", { type: "button" }, `show all ${plain(rows.length)}`);
    more.addEventListener("click", () => {
      body.append(...rows.slice(ROWS_SHOWN).map(make));
      more.remove();
    });
    node.append(more);
  }
  return node;
}
const keyOf = (row) => (row.key === null ? NO_KEY : row.key);

function slowestOf(data) {
  if (!data.slowest.length) return null;
  const outcome = (row) => ({
    text: OUTCOMES[row.outcome],
    bad: row.outcome !== 0 && row.outcome !== 4,
  });
  const columns = [
    ["task", "key", keyOf],
    ["number", "n", (row) => `#${row.task}`],
    ["time", "n", (row) => duration(row.seconds)],
    ["cost", "n", (row) => (row.cost === null ? "–" : plain(row.cost))],
    ["time / cost", "n", (row) => (row.cost ? duration(row.seconds / row.cost) : "–")],
    ["came of it", "", outcome],
    ["attempt", "", (row) => row.attempt],
    ["host", "", (row) => row.host],
    ["began", "", (row) => clock(row.began_at)],
  ];
  return el(
    "section",
    { id: "slowest" },
    el("h2", {}, `The ${data.slowest.length} slowest calls`),
    hint("The cost is what the input was said to cost; of a file, its bytes."),
    tableOf(columns, data.slowest),
  );
}

function failuresOf(data) {
  const { failures } = data;
  if (!failures.count) return null;
  const kinds = [
    ["tasks", "n", (row) => plain(row.count)],
    ["error", "key", (row) => `${row.kind}, ${row.type}`],
    ["where", "", (row) => row.where],
    ["message of the first", "key", (row) => row.message],
  ];
  const section = el(
    "section",
    { id: "failures" },
    el("h2", {}, count(failures.count, "failed task")),
    el("p", {}, "Give all of them another round: ", code(failures.retry)),
    tableOf(kinds, failures.kinds),
  );
  if (failures.n_other > 0) {
    section.append(hint(`${count(failures.n_other, "task")} failed in yet other ways.`));
  }
  section.append(...failures.named.map(failureOf));
  const n = failures.named.length;
  if (failures.count > n) {
    const words = `The first ${plain(n)} are named here; all: `;
    section.append(el("p", {}, words, code(failures.all)));
  }
  return section;
}
// One failed task, of which all but its name is folded away.
function failureOf(row) {
  const facts = el("dl", {});
  const add = (name, value) => {
    if (value) facts.append(el("dt", {}, name), el("dd", {}, value));
  };
  add("failed in", row.attempts.join(", "));
  add("where", [row.host, row.device].filter(Boolean).join(", "));
  add("tries", row.tries > 1 ? String(row.tries) : "");
  add("again", row.redo && code(row.redo));
  add("its story", code(row.explain));
  add("what it printed", code(row.logs));
  const inside = el("div", {}, el("p", {}, row.message));
  if (row.traceback && row.is_log) inside.append(hint("The end of its log:"));
  if (row.traceback) inside.append(el("pre", {}, row.traceback));
  inside.append(facts);
  const where = row.where ? ` at ${row.where}` : "";
  const name = el("summary", {}, keyOf(row), el("span", {}, ` #${row.task} · ${row.type}${where}`));
  return el("details", {}, name, inside);
}

function attemptsOf(data) {
  if (!data.attempts.length) return null;
  const ended = (row) => ({
    text: row.state === "running" ? "runs" : row.why || row.state,
    bad: row.state === "failed" || row.state === "lost",
  });
  const columns = [
    ["attempt", "", (row) => row.name],
    ["start", "n", (row) => (row.epoch === null ? "–" : String(row.epoch))],
    ["host", "", (row) => row.host],
    ["device", "", (row) => (row.device_name ? `${row.device} (${row.device_name})` : row.device)],
    ["began", "", (row) => clock(row.began_at)],
    ["lived", "n", (row) => duration(row.seconds)],
    ["busy", "n", (row) => share(row.busy_s, row.seconds)],
    ["complete", "n", (row) => plain(row.done)],
    ["failed calls", "n", (row) => ({ text: plain(row.failed), bad: row.failed > 0 })],
    ["ended", "key", ended],
  ];
  return el(
    "section",
    { id: "attempts" },
    el("h2", {}, count(data.attempts.length, "attempt")),
    hint("An attempt is one process of a rank."),
    tableOf(columns, data.attempts),
  );
}

function howOf(data) {
  const { facts, starts, hosts } = data.how;
  const list = el("dl", {});
  for (const [name, value] of facts) {
    const shown = typeof value === "number" ? clock(value) : value;
    list.append(el("dt", {}, name), el("dd", {}, name === "command" ? code(shown) : shown));
  }
  const section = el("section", { id: "how" }, el("h2", {}, "How it was run"), list);
  if (starts.length) section.append(el("h3", {}, "Starts"), tableOf(STARTS, starts));
  if (hosts.length) section.append(el("h3", {}, "Hosts"), tableOf(HOSTS, hosts));
  return section;
}
const STARTS = [
  ["start", "n", (row) => String(row.epoch)],
  ["typed", "", (row) => row.command],
  ["host", "", (row) => row.host],
  ["job", "", (row) => row.job],
  ["slots", "key", (row) => row.slots],
  ["began", "", (row) => clock(row.since)],
  ["ended", "", (row) => clock(row.ended_at)],
  ["how", "", (row) => row.state + (row.exit_code === null ? "" : `, exit code ${row.exit_code}`)],
  ["it said", "key", (row) => row.message],
];
const HOSTS = [
  ["host", "", (row) => row.host || "–"],
  ["ranks", "n", (row) => plain(row.ranks)],
  ["attempts", "n", (row) => plain(row.attempts)],
  ["devices", "key", (row) => row.devices],
  ["complete", "n", (row) => plain(row.done)],
  ["rank-hours", "n", (row) => hours(row.seconds)],
];

function footer(meta) {
  const zone = Intl.DateTimeFormat().resolvedOptions().timeZone;
  const words =
    `Made by gpuspool ${meta.version} at ${clock(meta.made_at)}. ` +
    `Times are those of this computer's zone${zone ? `, ${zone}` : ""}. ` +
    "This page asks no other computer for anything.";
  return el("footer", {}, words);
}

async function main() {
  const page = document.getElementById("page");
  if (!("DecompressionStream" in window)) {
    const words = "This browser is too old for this page. Firefox 113, Chrome 80, Safari 16.4 ";
    fill(page, el("p", {}, `${words}and later ones show it.`));
    return;
  }
  const data = await unpack();
  readPalette();
  const drawings = [];
  const parts = [header(data), tilesOf(data), hoursOf(data)];
  if (data.attempts.length) {
    const view = new Window(data.meta.length, Math.max(data.meta.unit * 20, 1e-6));
    const timeline = new Timeline(data, view);
    const curves = curvesOf(data, timeline);
    const section = timeline.node();
    if (curves.length) {
      section.append(el("div", { class: "card plots" }, ...curves.map((one) => one.node())));
    }
    parts.push(section);
    drawings.push(() => timeline.draw(), ...curves.map((one) => () => one.draw()));
  } else {
    parts.push(el("p", {}, "Nothing has run yet."));
  }
  const histogram = histogramOf(data);
  if (histogram) {
    parts.push(histogram.section);
    drawings.push(histogram.draw);
  }
  parts.push(slowestOf(data), failuresOf(data), attemptsOf(data), howOf(data), footer(data.meta));
  fill(page, ...parts.filter(Boolean));
  keepDrawn(() => {
    readPalette();
    for (const one of drawings) one();
  });
  document.documentElement.dataset.drawn = "yes";
}
// Draws now, and again when the window, the colours or the medium change.
function keepDrawn(draw) {
  draw();
  let pending = 0;
  const soon = () => {
    cancelAnimationFrame(pending);
    pending = requestAnimationFrame(draw);
  };
  window.addEventListener("resize", soon);
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", soon);
  window.matchMedia("print").addEventListener("change", draw);
  window.addEventListener("beforeprint", draw);
  window.addEventListener("afterprint", draw);
}
main().catch((error) => {
  const page = document.getElementById("page");
  fill(page, el("p", {}, `This page cannot be shown: ${error.message}`));
  throw error;
});
