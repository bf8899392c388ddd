// What the ledger says: what waits for a person, campaigns with their verdicts, findings.
import { make, number } from "/charts.js";

const $ = id => document.getElementById(id);
let doors = { is_open: false, why: "connecting" };
let story = null, helpers = null;

export function use_doors(now) {
  doors = now;
  $("doors").textContent = now.is_open ? "buttons on" : "read-only";
  $("doors").title = now.why ?? "this browser came by the terminal's link";
  $("doors").className = now.is_open ? "lock open" : "lock";
  if (story) show_waiting();
}

export function show_story(now, with_helpers) {
  story = now;
  helpers = with_helpers;
  show_limits();
  show_waiting();
  const shown = story.campaigns.map(campaign);
  $("campaigns").hidden = !shown.length;
  $("campaigns").querySelector(".list").replaceChildren(...shown);
  $("log").hidden = !story.lines.length;
  $("log").querySelector("table").replaceChildren(...story.lines.map(line));
}

function show_limits() {
  const p = story.project, parts = [];
  if (p) parts.push(p.config, `${number(p.flops, 3)} of ${number(p.max_flops, 3)}FLOPs spent`);
  if (p && p.max_usd) parts.push(`${p.usd.toFixed(2)} of ${p.max_usd} USD`);
  if (p && p.adopted.length) parts.push(`adopted: ${p.adopted.join(", ")}`);
  $("limits").textContent = parts.join(" · ");
  if (p && p.is_halted) $("limits").prepend(make("span", { class: "pill crashed" }, "halted"), " ");
  for (const problem of story.problems) $("limits").append(make("span", { class: "alarm" }, problem));
}

const when = seconds => {
  const d = new Date(seconds * 1000), two = n => String(n).padStart(2, "0");
  return `${d.getFullYear()}-${two(d.getMonth() + 1)}-${two(d.getDate())} ${two(d.getHours())}:${two(d.getMinutes())}`;
};
const line = r => make("tr", {}, make("td", { class: "mute" }, String(r.seq)), make("td", { class: "mute" }, when(r.time)), make("td", {}, r.kind), make("td", {}, r.text));
const signed = (v, digits = 4) => (v === null || v === undefined ? "unknown" : (v > 0 ? "+" : v < 0 ? "−" : "±") + Math.abs(v).toFixed(digits));

// -- what waits --------------------------------------------------------------------------------

function show_waiting() {
  $("waiting").hidden = !story.waiting.length;
  $("waiting").querySelector(".list").replaceChildren(...story.waiting.map(waiting));
}

function waiting(w) {
  const diff = w.arms.flatMap(arm => [
    make("span", { class: "arm" }, arm.name + "\n"),
    ...arm.changes.flatMap(c => c.old === c.new ? [`  ${c.field} = ${c.new}\n`] : [
      c.old === null || c.old === undefined ? null : make("del", {}, `- ${c.field} = ${c.old}\n`),
      make("ins", {}, `+ ${c.field} = ${c.new}\n`)]),
  ]);
  const [effect, low, high] = w.predicted;
  const facts = w.act === "adopt" ? {
    "kept": `${w.arm}, confirmed on fresh seeds`,
    "then": "it is part of the project's config; the next proposals start from there",
    "by": w.by,
  } : {
    "runs": `${w.arms.length + 1} arms × ${w.seeds} seeds` + (w.confirm ? `, then ${w.confirm} fresh` : "") + (w.promote.length ? "; also at a larger scale" : ""),
    "expected": `${signed(effect)} ${w.metric} (${signed(low)} to ${signed(high)})`,
    "cost": `at most ${number(w.flops, 3)}FLOPs`,
    "by": w.by,
  };
  const cost = make("div", { class: "cost", title: "spent, this, and the limit" }, make("i", { class: "spent" }), make("i", { class: "this" }));
  const share = flops => Math.min(1, w.flops_limit ? flops / w.flops_limit : 0);
  cost.children[0].style.width = `${100 * share(w.flops_limit - w.flops_left)}%`;
  cost.children[1].style.width = `${100 * share(w.flops)}%`;
  const what = w.act === "approve" ? "Approve" : `Adopt ${w.arm}`;
  const buttons = make("menu", {},
    make("button", { type: "button", class: "main", disabled: !doors.is_open, onclick: () => press(w, what) }, `${what} …`),
    w.act === "approve" ? make("button", { type: "button", disabled: !doors.is_open, onclick: () => press_refuse(w) }, "Refuse …") : null,
    doors.is_open ? null : make("small", {}, `read-only: ${doors.why}`));
  const list = make("dl", {}, ...Object.entries(facts).flatMap(([k, v]) => [make("dt", {}, k), make("dd", {}, v)]));
  const spent = make("small", {}, `${number(w.flops_limit - w.flops_left, 3)} spent, ${number(w.flops, 3)} for this, of ${number(w.flops_limit, 3)}FLOPs`);
  return make("article", { class: "box wait", "data-draft": w.id, "data-act": w.act },
    make("div", {}, make("h3", {}, w.hypothesis), list, ...(w.act === "approve" ? [cost, spent] : []), buttons),
    make("div", {}, make("pre", { class: "diff" }, ...diff), make("p", { class: "hash", title: "the hash of all of it: arms, seeds, rules, data, code, evaluator" }, make("b", {}, w.id.slice(0, 6)), w.id.slice(6))));
}

async function post(path, body) {
  const answer = await fetch(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
  const told = await answer.json();
  if (!answer.ok) throw new Error(told.error);
}

// A dialog that stays until what was typed is accepted, or the person leaves it.
function dialog({ title, what, label, button, send }) {
  const box = $("ask"), error = box.querySelector(".error"), typed = $("typed");
  box.querySelector("h2").textContent = title;
  box.querySelector(".what").textContent = what;
  box.querySelector("label").textContent = label;
  box.querySelector("button.main").textContent = button;
  error.textContent = "";
  typed.value = "";
  box.querySelector("form").onsubmit = async event => {
    event.preventDefault();
    try {
      await send(typed.value);
      box.close();
    } catch (e) { error.textContent = e.message; }
  };
  $("leave").onclick = () => box.close();
  if (!box.open) box.showModal();
  typed.focus();
}

async function press(w, what) {
  const body = { act: w.act, draft: w.id, arm: w.arm };
  const shown = {
    title: `${what}?`,
    what: "The terminal where this dash was started now shows what you would sign, and a code. Read it there.",
    label: "the code at the terminal",
    button: "Sign",
    send: typed => post("/answer", { ...body, typed }),
  };
  try {
    await post("/ask", body);
    dialog(shown);
  } catch (e) {
    dialog({ ...shown, what: "The question could not be put.", send: () => Promise.reject(e) });
    $("ask").querySelector(".error").textContent = e.message;
  }
}

function press_refuse(w) {
  dialog({ title: "Refuse?", what: w.hypothesis, label: "the reason; it is kept", button: "Refuse", send: why => post("/refuse", { draft: w.id, why }) });
}

// -- campaigns ---------------------------------------------------------------------------------

const COLOR = { keep: "var(--good)", discard: "var(--bad)", inconclusive: "var(--c5)" };
const PILL = { keep: "completed", discard: "diverged", inconclusive: "" };

function campaign(c) {
  const runs = c.stages.flatMap(s => s.runs).map(helpers.key_of).filter(Boolean);
  const page = `${c.id.slice(0, 12)}.html`;
  const links = make("span", { class: "links" },
    runs.length ? make("button", { type: "button", class: "bare", onclick: () => { helpers.choose([...new Set(runs)]); scrollTo({ top: 0, behavior: "smooth" }); } }, "show its curves") : null,
    story.pages.includes(page) ? make("a", { href: `/project/${page}`, target: "_blank", rel: "noopener" }, "page") : null);
  return make("article", { class: "box campaign", "data-id": c.id },
    make("div", { class: "head" }, make("h3", {}, c.hypothesis), links),
    make("p", { class: "mute" }, `${when(c.time)} · ${c.id.slice(0, 12)}`),
    ...c.stages.map(stage));
}

function stage(s) {
  const progress = s.planned && !s.is_over ? ` · ${s.done} of ${s.planned} runs` : s.is_over ? ` · ${s.done} runs` : ` · ${s.done} runs so far`;
  const head = make("p", { class: "stage" }, make("b", {}, s.stage), make("span", { class: "mute" }, progress), s.is_exploratory ? make("span", { class: "pill crashed", title: s.departures.join("; ") }, "exploratory") : null);
  const bar = make("i", { class: "bar" });
  bar.style.setProperty("--share", s.planned ? Math.min(1, s.done / s.planned) : 0);
  const parts = [head];
  if (!s.is_over && s.planned) parts.push(bar);
  if (s.finding) parts.push(make("p", {}, s.finding));
  if (s.verdicts.length) parts.push(verdicts(s));
  if (s.claim) parts.push(make("p", {}, `claimed, from fresh seeds: ${signed(s.claim.effect)} ${s.metric} (${signed(s.claim.low)} to ${signed(s.claim.high)})`));
  return make("div", {}, ...parts);
}

// Each arm's effect as a dot with its interval, on one scale with zero and what is worth keeping.
function verdicts(s) {
  const sign = s.direction === "lower" ? -1 : 1;
  const bound = s.margin === null ? sign * s.smallest_effect : -sign * s.margin;
  const ends = [0, bound, ...s.verdicts.flatMap(v => [v.effect, v.low, v.high])].filter(Number.isFinite);
  const low = Math.min(...ends), high = Math.max(...ends), pad = (high - low || 1) * 0.06;
  const x = v => `${(100 * (v - low + pad) / (high - low + 2 * pad)).toFixed(2)}%`;
  const rows = s.verdicts.map(v => {
    const has_effect = Number.isFinite(v.effect), has_interval = Number.isFinite(v.low) && Number.isFinite(v.high);
    const plot = make("svg", { class: "effect", height: 24, color: COLOR[v.decision] ?? "var(--c5)" },
      make("line", { class: "zero", x1: x(0), x2: x(0), y1: 0, y2: 24 }),
      bound ? make("line", { class: "level", x1: x(bound), x2: x(bound), y1: 0, y2: 24 }) : null,
      has_interval ? make("line", { class: "span", x1: x(v.low), x2: x(v.high), y1: 12, y2: 12 }) : null,
      has_effect ? make("circle", { cx: x(v.effect), cy: 12, r: 4.5 }) : null);
    return make("tr", { title: v.reason ?? "" },
      make("th", {}, v.arm),
      make("td", {}, make("span", { class: `pill ${PILL[v.decision] ?? ""}` }, v.decision)),
      make("td", { class: "plot" }, plot),
      make("td", { class: "num" }, signed(v.effect), make("small", {}, has_interval ? ` ${signed(v.low)} to ${signed(v.high)}` : "")));
  });
  return make("table", { class: "verdicts" }, ...rows);
}

// -- findings ----------------------------------------------------------------------------------

export function show_findings(runs) {
  const told = runs.filter(r => r.card && r.answer);
  $("findings").hidden = !told.length;
  $("findings").querySelector(".list").replaceChildren(...told.map(({ card, color, answer }) => {
    const found = answer.findings ?? [];
    const roots = found.filter(f => !f.explained_by), rest = found.filter(f => f.explained_by);
    const head = make("h3", { color }, make("i", { class: "swatch" }), card.label, " ", make("small", {}, answer.step ? `to update ${answer.step.toLocaleString("en")}` : ""));
    const body = answer.problem ? [make("p", { class: "mute" }, answer.problem)]
      : !found.length ? [make("p", { class: "good" }, "healthy: no cause found")]
      : roots.map(finding);
    if (rest.length) body.push(make("p", { class: "mute" }, `and what follows from it: ${rest.map(f => f.cause).join(", ")}`));
    return make("article", { class: "box finding", "data-key": card.key }, head, ...body);
  }));
}

function finding(f) {
  const changes = Object.entries(f.changes).map(([field, value]) => `--set ${field}=${value}`).join(" ");
  return make("details", {},
    make("summary", {}, make("b", {}, f.cause), make("span", { class: "pill diverged" }, f.severity), make("small", {}, ` ${Math.round(100 * f.confidence)}%`), make("span", { class: "meaning" }, f.meaning)),
    make("ul", {}, ...f.evidence.map(e => make("li", {}, e)), ...f.against.map(e => make("li", { class: "mute" }, `against: ${e}`))),
    make("p", {}, f.next, changes ? make("code", {}, ` ${changes}`) : null));
}
