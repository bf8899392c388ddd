// The page: runs, the curves of those chosen, and what ledger.js makes of the rest.
// Text from runs and records is put in as text nodes only, never as markup.
import { AXES, Chart, duration, make, number, spark } from "/charts.js";
import { show_findings, show_story, use_doors } from "/ledger.js";

const $ = id => document.getElementById(id);
const COLORS = 10;
const REFRESH_MS = 1500;  // between two readings of a run's curves while it goes on
const DEFAULTS = ["train/loss_nats", "eval/bpb", "optim/lr", "grad/norm_l2", "perf/tokens_per_s", "update/ratio_rms"];

const cards = new Map();   // key -> card
const rows = new Map();    // key -> its <li>
const curves = new Map();  // key -> { version asked for, answer }
const kept = load();       // what a reader chose, kept over a reload
let registry = {}, known = new Set(), charts = [], first = true, hovered = [null, null];

function load() {
  const fresh = { chosen: null, colors: {}, metrics: DEFAULTS, axis: "step", logX: false, logY: false, smooth: 2 };
  try { return { ...fresh, ...JSON.parse(sessionStorage.getItem("dash") || "{}") }; } catch { return fresh; }
}
function save() {
  try { sessionStorage.setItem("dash", JSON.stringify(kept)); } catch { /* then not */ }
}

// -- runs ------------------------------------------------------------------------------------

const chosen = () => (kept.chosen ?? []).filter(key => cards.has(key));

// a run keeps its colour; a new one takes the least used
function color_of(key) {
  if (!(key in kept.colors)) {
    const used = chosen().filter(k => k in kept.colors).map(k => kept.colors[k]);
    const count = i => used.filter(c => c === i).length;
    kept.colors[key] = [...Array(COLORS).keys()].reduce((a, b) => (count(b) < count(a) ? b : a));
  }
  return kept.colors[key];
}

const is_running = card => card.status === "running";
const newest_first = (a, b) => is_running(b) - is_running(a) || b.began - a.began;

function toggle(key) {
  const now = chosen();
  kept.chosen = now.includes(key) ? now.filter(k => k !== key) : [...now, key];
  if (!now.includes(key)) color_of(key);
  changed_choice();
}

export function choose(keys) {
  kept.chosen = keys.filter(key => cards.has(key));
  kept.chosen.forEach(color_of);
  changed_choice();
}

function changed_choice() {
  save();
  show_runs();
  ask_curves();
  draw();
  ask_findings();
}

function show_runs() {
  const words = $("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const listed = [...cards.values()].sort(newest_first);
  const mine = new Set(chosen());
  let place = null;
  for (const card of listed) {
    const text = `${card.label} ${card.name} ${card.status}`.toLowerCase();
    const row = rows.get(card.key);
    row.hidden = !words.every(word => text.includes(word));
    row.setAttribute("aria-pressed", mine.has(card.key));
    if (mine.has(card.key)) row.style.setProperty("--c", `var(--c${color_of(card.key)})`);
    if (place ? place.nextSibling !== row : $("runs").firstChild !== row)
      place ? place.after(row) : $("runs").prepend(row);
    place = row;
  }
  const going = listed.filter(is_running).length;
  $("count").textContent = `${listed.length}${going ? `, ${going} running` : ""}`;
}

function show_card(card) {
  const share = card.num_steps ? card.step / card.num_steps : null;
  const facts = [`${card.step.toLocaleString("en")}${card.num_steps ? ` of ${card.num_steps.toLocaleString("en")}` : ""}`];
  if (card.status === "completed") facts[0] = `${card.step.toLocaleString("en")} done`;
  if (card.tokens_per_s) facts.push(`${number(card.tokens_per_s, 3)} tok/s`);
  if (card.eta_s !== null) facts.push(`${duration(card.eta_s)} left`);
  if (card.num_bad) facts.push(`${card.num_bad} damaged lines`);
  const bar = make("i", { class: "bar" });
  bar.style.setProperty("--share", share === null ? 0 : Math.min(1, share));
  const value = card.bpb !== null ? ["bpb", card.bpb] : ["loss", card.loss];
  const report = card.has_report ? make("a", { href: `/report/${card.key.split("/").map(encodeURIComponent).join("/")}/report.html`, target: "_blank", rel: "noopener", onclick: e => e.stopPropagation() }, "report") : null;
  const row = rows.get(card.key) ?? new_row(card.key);  // the same node, or a press meanwhile would be lost
  row.dataset.status = card.status;
  row.title = card.name;
  row.replaceChildren(
    make("span", { class: "name" }, make("i", { class: "swatch" }), make("b", {}, card.label), card.status === "completed" ? null : make("span", { class: `pill ${card.status}` }, card.status)),
    make("span", { class: "value" }, value[1] === null ? "–" : value[1].toFixed(3), " ", make("small", {}, value[0])),
    bar,
    spark(card.spark),
    make("small", { class: "facts" }, facts.join(" · "), ...(report ? [" · ", report] : [])));
}

function new_row(key) {
  const row = make("li", { tabindex: 0, role: "button", "data-key": key });
  row.addEventListener("click", () => toggle(key));
  row.addEventListener("keydown", e => { if (e.target === row && (e.key === "Enter" || e.key === " ")) { e.preventDefault(); toggle(key); } });
  $("runs").append(row);
  rows.set(key, row);
  return row;
}

function take_cards(news, gone) {
  for (const key of gone) {
    cards.delete(key); curves.delete(key);
    rows.get(key)?.remove(); rows.delete(key);
  }
  for (const card of news) { cards.set(card.key, card); show_card(card); }
  if (kept.chosen === null && cards.size) {  // at first: the newest few
    kept.chosen = [...cards.values()].sort(newest_first).slice(0, 4).map(card => card.key).reverse();
    kept.chosen.forEach(color_of);
    changed_choice();
  } else {
    show_runs();
    ask_curves();
    if (gone.length) draw();
  }
}

// -- curves ----------------------------------------------------------------------------------

async function ask(path) {
  const answer = await fetch(path);
  const body = await answer.json();
  if (!answer.ok) throw new Error(body.error);
  return body;
}

function ask_curves() {
  for (const key of chosen()) {
    const card = cards.get(key), state = curves.get(key) ?? {};
    const wanted = `${card.step} ${card.status} ${card.bpb} ${kept.metrics.join()}`;
    if (state.wanted === wanted || state.is_asking || (state.next ?? 0) > Date.now()) {
      if (state.wanted !== wanted && !state.timer) state.timer = setTimeout(() => { state.timer = null; ask_curves(); }, REFRESH_MS);
      continue;
    }
    curves.set(key, state);
    Object.assign(state, { is_asking: true, next: Date.now() + REFRESH_MS });
    ask(`/curves?run=${encodeURIComponent(key)}&metrics=${encodeURIComponent(kept.metrics.join())}`).then(answer => {
      state.answer = answer;
      state.wanted = answer.is_whole ? wanted : null;
      const before = known.size;
      answer.metrics.forEach(name => known.add(name));
      if (known.size !== before) show_picker();
      draw();
    }).catch(() => { state.wanted = wanted; }).finally(() => {
      state.is_asking = false;
      if (state.wanted === null) ask_curves();
    });
  }
}

function lines_of(metric) {
  return chosen().flatMap((key, i) => {
    const answer = curves.get(key)?.answer, curve = answer?.curves[metric];
    if (!curve || (kept.axis === "flops" && !answer.flops_per_step)) return [];
    const xs = part => (kept.axis === "flops" ? part.step.map(s => s * answer.flops_per_step) : part[kept.axis]);
    const points = part => xs(part).map((x, j) => [x, part.y[j] === null ? NaN : part.y[j]]);
    return [{ key, name: cards.get(key).label, color: `var(--c${color_of(key)})`, dash: i >= COLORS, points: points(curve.points), means: points(curve.means) }];
  });
}

let is_due = false;
function draw() {
  if (is_due) return;
  is_due = true;
  requestAnimationFrame(() => {
    is_due = false;
    for (const chart of charts) {
      const is_exact = chart.metric === "optim/lr" || chart.metric.startsWith("eval/");
      chart.draw(lines_of(chart.metric), { ...kept, smooth: is_exact ? 0 : kept.smooth });
    }
    show_hover();  // a line that grows under the pointer keeps its read-out
    $("legend").replaceChildren(...chosen().map((key, i) => make("li", { color: `var(--c${color_of(key)})`, class: i >= COLORS ? "dash" : null },
      make("span", {}, cards.get(key).label), make("button", { type: "button", class: "bare", title: "take this run away", onclick: () => toggle(key) }, "×"))));
  });
}

const show_hover = () => charts.forEach(chart => chart.mark(hovered[1], chart === hovered[0]));

function show_charts() {
  charts = kept.metrics.map(metric => new Chart(metric, registry[metric.split("@")[0]] ?? { unit: "", meaning: "" }, {
    on_hover: (...now) => { hovered = now; show_hover(); },
    on_close: () => { kept.metrics = kept.metrics.filter(m => m !== metric); changed_metrics(); },
  }));
  $("charts").replaceChildren(...charts.map(chart => chart.node));
  draw();
}

function changed_metrics() {
  save();
  show_charts();
  show_picker();
  ask_curves();
}

function show_picker() {
  const groups = {};
  for (const name of [...known].sort()) if (!kept.metrics.includes(name)) (groups[name.split("/")[0]] ??= []).push(name);
  $("add").replaceChildren(make("option", { value: "" }, "add a chart …"), ...Object.entries(groups).map(([group, names]) =>
    make("optgroup", { label: group }, ...names.map(name => make("option", { value: name }, name)))));
}

// -- findings --------------------------------------------------------------------------------

const diagnosed = new Map();  // key -> answer
async function ask_findings() {
  const keys = chosen();
  const show = () => show_findings(chosen().map(key => ({ card: cards.get(key), color: `var(--c${color_of(key)})`, answer: diagnosed.get(key) })));
  show();
  for (const key of keys) {
    const card = cards.get(key), old = diagnosed.get(key);
    if (!card || !card.step || (old && (old.step === card.step || Date.now() - old.when < 20000))) continue;
    try {
      diagnosed.set(key, { ...await ask(`/findings?run=${encodeURIComponent(key)}`), when: Date.now() });
    } catch (error) {
      diagnosed.set(key, { problem: error.message, when: Date.now() });
    }
    show();
  }
}

// -- controls --------------------------------------------------------------------------------

function set_up() {
  for (const [axis, { name }] of Object.entries(AXES))
    $("axis").append(make("label", {}, make("input", { type: "radio", name: "axis", value: axis, checked: kept.axis === axis }), make("span", {}, name)));
  $("axis").addEventListener("change", e => { kept.axis = e.target.value; save(); draw(); });
  for (const name of ["logX", "logY"]) {
    $(name).checked = kept[name];
    $(name).addEventListener("change", () => { kept[name] = $(name).checked; save(); draw(); });
  }
  $("smooth").value = kept.smooth;
  $("smooth").addEventListener("input", () => { kept.smooth = +$("smooth").value; save(); draw(); });
  $("add").addEventListener("change", () => { if ($("add").value) { kept.metrics = [...kept.metrics, $("add").value]; changed_metrics(); } });
  $("filter").addEventListener("input", show_runs);
  $("controls").addEventListener("submit", e => e.preventDefault());
  new ResizeObserver(draw).observe($("charts"));
  setInterval(ask_findings, 5000);
}

function listen() {
  const events = new EventSource("/events");
  const live = $("live");
  events.onopen = () => { live.textContent = "live"; live.className = "dot on"; };
  events.onerror = () => { live.textContent = "no connection"; live.className = "dot off"; };
  events.onmessage = event => {
    const news = JSON.parse(event.data);
    if (news.cards || news.gone) take_cards(news.cards ?? [], news.gone ?? []);
    if (news.story) show_story(news.story, { choose, key_of: directory => [...cards.keys()].find(key => key.endsWith(`/${directory.split("/").pop()}`)) });
    if (news.doors) use_doors(news.doors);
    if (first) { first = false; document.body.classList.add("ready"); }
  };
}

async function begin() {
  if (location.hash.length > 1) {  // the link from the terminal: changed into a cookie, and forgotten
    const link = location.hash.slice(1);
    history.replaceState(null, "", "/");
    await fetch("/enter", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ link }) });
  }
  registry = await ask("/metrics");
  set_up();
  show_charts();
  show_picker();
  listen();
}

begin();
