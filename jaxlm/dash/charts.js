// One chart of one metric over several runs: lines, a scale, and the numbers under the pointer.
const NS = "http://www.w3.org/2000/svg";
const LEFT = 54, RIGHT = 14, TOP = 10, BOTTOM = 28, HEIGHT = 236;

export function make(tag, attributes = {}, ...children) {
  const is_svg = ["svg", "g", "path", "line", "text", "circle", "rect", "title"].includes(tag);
  const node = is_svg ? document.createElementNS(NS, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes))
    if (name === "color") node.style.setProperty("--c", value);
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) node.setAttribute(name, value === true ? "" : value);
  node.append(...children.filter(c => c !== null && c !== undefined && c !== ""));
  return node;
}

// 0.000312 -> 3.12e-4, 12345678 -> 12.3M; as jaxlm/telemetry/readable.py has it
export function number(value, digits = 4) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size === 0) return "0";
  for (const [scale, suffix] of [[1e18, "E"], [1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]])
    if (size >= Math.max(scale, 1e4)) return trimmed(value / scale, digits) + suffix;
  return size >= 1e-3 ? trimmed(value, digits) : value.toExponential(Math.min(2, digits - 1)).replace(/\.?0+e/, "e");
}
const exact = v => (Math.abs(v) >= 1e-3 && Math.abs(v) < 1e4 ? v.toPrecision(4) : number(v, 4));
const trimmed = (value, digits) => value.toLocaleString("en", { maximumSignificantDigits: digits });

export function duration(seconds) {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return "–";
  if (seconds < 9.95) return `${+seconds.toFixed(1)}s`;
  const whole = Math.round(seconds);
  for (const [name, size, below, part] of [["d", 86400, "h", 3600], ["h", 3600, "m", 60], ["m", 60, "s", 1]])
    if (whole >= size) {
      const rest = Math.floor((whole % size) / part);
      return `${Math.floor(whole / size)}${name}${rest ? String(rest).padStart(2, "0") + below : ""}`;
    }
  return `${whole}s`;
}

// multiples of 1, 2, 2.5 or 5 times a power of ten; for time, of what clocks are divided in
function ticks(low, high, count, is_time) {
  const rough = (high - low) / count;
  if (!(rough > 0)) return [low];
  const clock = [1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 21600, 43200, 86400];
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = (is_time && clock.find(c => c >= rough)) || [1, 2, 2.5, 5, 10].map(m => m * power).find(s => s >= rough * (1 - 1e-9));
  const first = Math.ceil(low / step - 1e-9), last = Math.floor(high / step + 1e-9);
  return Array.from({ length: last - first + 1 }, (_, i) => (first + i) * step);
}
function log_ticks(low, high, most) {
  for (const digits of [[1], [1, 2, 5], [1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9]]) {
    const every = Math.max(1, Math.ceil((high - low) / most));
    const marks = [];
    for (let k = Math.floor(low); k <= Math.ceil(high); k += every)
      marks.push(...digits.map(d => k + Math.log10(d)).filter(m => m >= low - 1e-9 && m <= high + 1e-9));
    if (marks.length >= 3) return marks;
  }
  return ticks(10 ** low, 10 ** high, most).map(Math.log10);
}

export const AXES = {
  step: { name: "updates", show: v => trimmed(Math.round(v), 12) },
  tokens: { name: "tokens", show: v => number(v, 4) },
  time: { name: "time", show: duration },
  flops: { name: "FLOPs", show: v => number(v, 4) },
};

// a centred mean over a share of the line's length; what is missing breaks nothing
function smoothed(points, share) {
  const half = Math.round(points.length * share / 2);
  if (half < 1) return points;
  return points.map(([x], i) => {
    const near = points.slice(Math.max(0, i - half), i + half + 1).map(p => p[1]).filter(Number.isFinite);
    return [x, near.length ? near.reduce((a, b) => a + b, 0) / near.length : NaN];
  });
}

export class Chart {
  constructor(metric, { unit, meaning }, { on_hover, on_close }) {
    this.metric = metric;
    this.lines = [];
    this.on_hover = on_hover;
    this.picture = make("div", { class: "picture" });
    this.tip = make("div", { class: "tip", hidden: true });
    const close = make("button", { type: "button", class: "bare", title: "take this chart away", onclick: on_close }, "×");
    const heading = make("figcaption", { title: meaning }, make("b", {}, metric), " ", make("small", {}, unit === "1" ? "" : unit), close);
    this.node = make("figure", { class: "box chart", "data-metric": metric }, heading, make("div", { class: "frame" }, this.picture, this.tip));
    this.picture.addEventListener("pointermove", event => this.hover(event));
    this.picture.addEventListener("pointerleave", () => on_hover(this, null));
  }

  // lines: [{key, name, color, dash, points: [[x, y]...], means: [[x, y]...]}]
  draw(lines, { axis, logX, logY, smooth }) {
    this.axis = axis;
    const at = [logX ? Math.log10 : v => v, logY ? Math.log10 : v => v];
    const scale = points => points.map(([x, y]) => [at[0](x), at[1](y)]).filter(p => Number.isFinite(p[0]));
    this.lines = lines.map(line => {
      const strong = smoothed(line.means, smooth / 100);
      return { ...line, faint: scale(line.points), strong: scale(strong), readout: strong.filter(p => Number.isFinite(p[1]) && Number.isFinite(at[0](p[0]))) };
    });
    this.place = this.bounds();
    if (!this.place) {
      this.picture.replaceChildren(make("p", { class: "mute empty" }, "no data yet"));
      return;
    }
    this.logs = { x: logX, y: logY };
    this.paint();
  }

  bounds() {
    const all = this.lines.flatMap(l => [...l.faint, ...l.strong]).filter(p => Number.isFinite(p[1]));
    if (!all.length) return null;
    const xs = all.map(p => p[0]);
    const ys = [];  // of each line no more than its middle 98 %: a spike must not flatten the rest
    for (const line of this.lines) {
      const sorted = line.faint.map(p => p[1]).filter(Number.isFinite).sort((a, b) => a - b);
      const cut = Math.floor(sorted.length / 100);
      ys.push(...sorted.slice(cut, cut + 1), ...sorted.slice(-1 - cut).slice(0, 1));
    }
    const least = values => values.reduce((a, b) => Math.min(a, b)), most = values => values.reduce((a, b) => Math.max(a, b));
    let [x0, x1, y0, y1] = [least(xs), most(xs), least(ys), most(ys)];
    if (x0 === x1) [x0, x1] = [x0 - 1, x1 + 1];
    if (y0 === y1) [y0, y1] = [y0 - (Math.abs(y0) / 10 || 1), y1 + (Math.abs(y1) / 10 || 1)];
    const pad = 0.05 * (y1 - y0);
    return { x0, x1, y0: y0 - pad, y1: y1 + pad };
  }

  paint() {
    const width = this.picture.clientWidth || 420, { x0, x1, y0, y1 } = this.place;
    const w = width - LEFT - RIGHT, h = HEIGHT - TOP - BOTTOM;
    this.sx = x => (x - x0) / (x1 - x0) * w;
    this.sy = y => (y1 - y) / (y1 - y0) * h;
    const grid = make("g", {});
    const ys = this.logs.y ? log_ticks(y0, y1, 5) : ticks(y0, y1, 4);
    for (const y of ys) {
      const text = number(this.logs.y ? 10 ** y : Math.abs(y) < 1e-12 ? 0 : y, 4);
      grid.append(make("line", { x2: w, y1: this.sy(y), y2: this.sy(y) }), make("text", { class: "end", x: -8, y: this.sy(y) + 4 }, text));
    }
    const wanted = Math.max(2, Math.floor(w / 90));
    const xs = this.logs.x ? log_ticks(x0, x1, wanted) : ticks(x0, x1, wanted, this.axis === "time");
    for (const x of xs) {
      const place = this.sx(x), anchor = place > w - 14 ? "end" : place < 14 ? "start" : "middle";
      grid.append(make("text", { class: anchor, x: place, y: h + 19 }, AXES[this.axis].show(this.logs.x ? 10 ** x : x)));
    }
    const id = `clip-${this.metric.replace(/\W/g, "-")}`;
    const clip = document.createElementNS(NS, "clipPath");
    clip.setAttribute("id", id);
    clip.append(make("rect", { width: w, height: h }));
    const lines = make("g", { "clip-path": `url(#${id})` });
    const has_noise = line => line.faint.length > 1 && line.strong.some((p, i) => line.faint[i] && p[1] !== line.faint[i][1]);
    for (const line of this.lines)
      if (has_noise(line)) lines.append(make("path", { class: "faint", color: line.color, d: this.path(line.faint) }));
    for (const line of this.lines)
      lines.append(make("path", { class: "strong" + (line.dash ? " dash" : ""), color: line.color, d: this.path(line.strong) }));
    this.cursor = make("g", { class: "cursor" }, make("line", { y2: h }));
    this.dots = this.lines.map(line => make("circle", { r: 3.5, color: line.color }));
    this.cursor.append(...this.dots);
    const place = make("g", { transform: `translate(${LEFT} ${TOP})` }, clip, grid, lines, this.cursor);
    const picture = make("svg", { width, height: HEIGHT, role: "img", "aria-label": this.described() }, place);
    this.picture.replaceChildren(picture);
  }

  path(points) {
    let text = "", pen = "M";
    for (const [x, y] of points) {
      if (!Number.isFinite(y)) { pen = "M"; continue; }
      const place = Math.max(-1e4, Math.min(1e4, this.sy(y)));
      text += `${pen}${this.sx(x).toFixed(1)} ${place.toFixed(1)}`;
      pen = "L";
    }
    return text && !text.includes("L") ? text + "h0" : text;
  }

  described() {
    const last = this.lines.filter(l => l.readout.length).map(l => `${l.name}: last ${number(l.readout.at(-1)[1])}`);
    return `${this.metric} over ${AXES[this.axis].name}. ${last.join(", ")}`;
  }

  hover(event) {
    if (!this.place) return;
    const box = this.picture.getBoundingClientRect(), { x0, x1 } = this.place;
    const share = (event.clientX - box.left - LEFT) / (box.width - LEFT - RIGHT);
    if (share < -0.02 || share > 1.02) return this.on_hover(this, null);
    const x = x0 + Math.min(1, Math.max(0, share)) * (x1 - x0);
    this.on_hover(this, this.logs.x ? 10 ** x : x);
  }

  // marks the place x in every chart; only the one under the pointer says the numbers
  mark(x, is_mine) {
    if (!this.cursor) return;
    const inside = x !== null && this.place && this.at(x) >= this.place.x0 && this.at(x) <= this.place.x1;
    this.cursor.classList.toggle("on", inside);
    this.tip.hidden = !(inside && is_mine);
    if (!inside) return;
    this.cursor.firstChild.setAttribute("transform", `translate(${this.sx(this.at(x))} 0)`);
    const rows = [];
    this.lines.forEach((line, i) => {
      const near = nearest(line.readout, x, this.logs.x), y = near && (this.logs.y ? Math.log10(near[1]) : near[1]);
      this.dots[i].setAttribute("visibility", Number.isFinite(y) ? "inherit" : "hidden");
      if (!Number.isFinite(y)) return;
      this.dots[i].setAttribute("cx", this.sx(this.at(near[0])));
      this.dots[i].setAttribute("cy", Math.max(-9, Math.min(999, this.sy(y))));
      rows.push([near[1], line]);
    });
    if (is_mine) this.say(x, rows.sort((a, b) => b[0] - a[0]));
  }

  say(x, rows) {
    const lines = rows.map(([y, line]) => make("li", { color: line.color }, make("span", {}, line.name), make("b", {}, exact(y))));
    this.tip.replaceChildren(make("p", {}, `${AXES[this.axis].name} ${AXES[this.axis].show(x)}`), make("ul", {}, ...lines));
    const left = LEFT + this.sx(this.at(x)), width = this.tip.offsetWidth, room = this.picture.clientWidth;
    this.tip.style.left = `${left + 14 + width > room ? Math.max(0, left - 14 - width) : left + 14}px`;
  }

  at(x) { return this.logs.x ? Math.log10(x) : x; }
}

// the point nearest to x, unless the line ends well before it
function nearest(points, x, is_log) {
  if (!points.length) return null;
  const off = is_log ? p => Math.abs(Math.log(p[0] / x)) : p => Math.abs(p[0] - x);
  let low = 0, high = points.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (points[middle][0] < x) low = middle; else high = middle;
  }
  const best = off(points[low]) <= off(points[high]) ? points[low] : points[high];
  const span = points.at(-1)[0] - points[0][0];
  return x > points.at(-1)[0] + 0.02 * span + 1e-9 ? null : best;
}

export function spark(values, width = 84, height = 22) {
  const known = values.filter(v => v !== null);
  const low = Math.min(...known), high = Math.max(...known), pad = 2;
  const x = i => pad + i / Math.max(1, values.length - 1) * (width - 2 * pad);
  const y = v => high === low ? height / 2 : pad + (high - v) / (high - low) * (height - 2 * pad);
  let d = "", pen = "M";
  values.forEach((v, i) => {
    if (v === null) { pen = "M"; return; }
    d += `${pen}${x(i).toFixed(1)} ${y(v).toFixed(1)}`;
    pen = "L";
  });
  return make("svg", { class: "spark", viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" }, make("path", { d: d || "M0 0" }));
}
