// The sample browser. Every text goes in as text: outputs of models are hostile.
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const frame = document.getElementById("browser");
const MARKS = { right: "\u2713", wrong: "\u2717", none: "\u2013" };
let found = [];
let at = 0;

function make(name, attributes, ...content) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (value !== null && value !== false) node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...content);
  return node;
}

function select(label, options) {
  const box = make("select", {}, ...options.map(([value, text]) => make("option", { value }, text)));
  box.addEventListener("change", search);
  return { box, field: make("label", {}, make("span", {}, label), box) };
}

function verdict(right, total) {
  return total === 0 ? "none" : right === total ? "right" : right === 0 ? "wrong" : "mixed";
}

function told(value) {
  return value === 1 ? MARKS.right : value === 0 ? MARKS.wrong : (100 * value).toFixed(0) + "%";
}

function badge([right, total]) {
  const kind = verdict(right, total);
  const many = total > 1;
  const title = many ? right + " of " + total + " right" : kind === "none" ? "no sample" : kind;
  return make("span", { class: "verdict " + kind + (many ? " many" : ""), title }, many ? right + "/" + total : MARKS[kind]);
}

// Controls

const templates = [...new Set(data.items.map((item) => item.template))];
const decoder = select("decoder", [["", "any"], ...data.runs.map((run, n) => [String(n), run.name])]);
const template = select("template", [["", "all"], ...templates.map((name) => [name, name])]);
const result = select("result", [["", "all"], ["right", "right"], ["wrong", "wrong"]]);
const differ = make("input", { type: "checkbox" });
const query = make("input", { type: "search", placeholder: "prompt, output, answer or id" });
const count = make("p", { class: "count", "aria-live": "polite" });
const list = make("ol", { class: "list", "aria-label": "Samples found" });
const detail = make("div", { class: "detail" });
const previous = make("button", { type: "button" }, "\u2190 previous");
const next = make("button", { type: "button" }, "next \u2192");

differ.addEventListener("change", search);
let pause = 0;
query.addEventListener("input", () => {
  clearTimeout(pause);
  pause = setTimeout(search, 120);
});
previous.addEventListener("click", () => show(at - 1));
next.addEventListener("click", () => show(at + 1));

frame.append(
  make(
    "div",
    { class: "controls" },
    decoder.field,
    template.field,
    result.field,
    make("label", {}, make("span", {}, "text"), query),
    make("label", { class: "check" }, differ, make("span", {}, "decoders differ")),
  ),
  make("div", { class: "bar-row" }, count, make("p", { class: "keys" }, "keys: arrows, or k and j"), previous, next),
  make("div", { class: "panes" }, list, detail),
);
if (data.runs.length < 2) {
  differ.parentNode.remove();
  decoder.field.remove();
}
if (templates.length < 2) template.field.remove();

// Search


function haystack(item) {
  if (item.text === undefined) {
    const outputs = item.samples.flat().map((sample) => sample.output);
    item.text = [item.id, item.prompt, item.answer, ...outputs].join("\n").toLowerCase();
  }
  return item.text;
}

function fits(item) {
  const number = decoder.box.value;
  const some = number === "" ? item.right : [item.right[Number(number)]];
  const wanted = { "": ([, total]) => total > 0, right: ([right]) => right > 0, wrong: ([right, total]) => right < total };
  return (
    (template.box.value === "" || item.template === template.box.value) &&
    (!differ.checked || item.differs) &&
    some.some(wanted[result.box.value]) &&
    haystack(item).includes(query.value.trim().toLowerCase())
  );
}

function search() {
  found = data.items.filter(fits);
  const all = data.items.length;
  count.textContent = found.length.toLocaleString("en") + " of " + all.toLocaleString("en") + " prompts";
  list.replaceChildren(...found.map(entry));
  show(0);
}

function entry(item, place) {
  const button = make(
    "button",
    { type: "button" },
    make("span", { class: "id" }, item.id),
    templates.length > 1 ? make("span", { class: "of" }, item.template) : "",
    make("span", { class: "verdicts" }, ...item.right.map(badge)),
  );
  button.addEventListener("click", () => show(place));
  return make("li", {}, button);
}

// One sample

function show(place) {
  at = Math.max(0, Math.min(place, found.length - 1));
  previous.disabled = at === 0;
  next.disabled = at >= found.length - 1;
  for (const old of list.querySelectorAll("[aria-current]")) old.removeAttribute("aria-current");
  if (found.length === 0) {
    detail.replaceChildren(make("p", { class: "note" }, "Nothing fits."));
    return;
  }
  const button = list.children[at].firstChild;
  button.setAttribute("aria-current", "true");
  const row = list.children[at];
  if (row.offsetTop < list.scrollTop) list.scrollTop = row.offsetTop;
  const below = row.offsetTop + row.offsetHeight - list.clientHeight;
  if (below > list.scrollTop) list.scrollTop = below;
  detail.replaceChildren(...describe(found[at]));
}

function block(title, text, name) {
  const content = text === "" ? make("span", { class: "empty" }, "empty") : text;
  return [make("h4", {}, title), make("pre", { class: name, tabindex: "0" }, content)];
}

function describe(item) {
  const prefix = data.prefixes[item.template];
  const before = make("details", {}, make("summary", {}, "What all prompts of this template begin with"));
  before.append(make("pre", { tabindex: "0" }, prefix));
  const cards = data.runs.map((run, number) => card(run, item.samples[number], item.right[number]));
  return [
    make("h3", {}, item.id, make("span", { class: "of" }, item.template)),
    ...(prefix === "" ? [] : [before]),
    ...block("prompt", item.prompt, "prompt"),
    ...block("reference", item.answer, "answer"),
    make("div", { class: "cards" }, ...cards),
  ];
}

function card(run, samples, right) {
  const title = make("h4", { class: "run-name " + run.series }, badge(right), run.name);
  if (samples.length === 0) return make("article", {}, title, make("p", { class: "note" }, "No sample."));
  if (right[1] === 1) return make("article", {}, title, ...body(samples[0]));
  const folds = samples.map((sample, place) => {
    const head = make("summary", {}, badge([Number(sample.score === 1), 1]), "sample " + (sample.repeat + 1));
    return make("details", { open: place === 0 }, head, ...body(sample));
  });
  return make("article", {}, title, ...folds);
}

function body(sample) {
  const facts = [
    sample.forwards.toLocaleString("en") + " forwards",
    sample.tokens.toLocaleString("en") + " tokens",
    sample.seconds.toPrecision(3) + " s",
  ].join(", ");
  const metrics = sample.metrics.map(([name, value, read]) =>
    make(
      "div",
      {},
      make("dt", {}, name),
      make("dd", { class: value === 1 ? "right" : "wrong" }, told(value)),
      make("dd", {}, read === null ? make("span", { class: "empty" }, "nothing found") : make("code", {}, read)),
    ),
  );
  const parts = [make("p", { class: "figures" }, facts), strip(sample)];
  parts.push(make("pre", { class: "output", tabindex: "0" }, sample.output === "" ? make("span", { class: "empty" }, "empty") : sample.output));
  parts.push(make("dl", { class: "metrics" }, ...metrics));
  if (sample.detail !== "") parts.push(make("p", { class: "ended" }, sample.detail));
  return parts;
}

// A pixel a position, in the colour of the forward that committed it
function strip(sample) {
  const width = sample.order.length;
  if (width === 0) return "";
  const label = "Commit order of " + width + " positions";
  const canvas = make("canvas", { class: "strip", width, height: 1, role: "img", "aria-label": label });
  const pen = canvas.getContext("2d");
  const last = Math.max(1, sample.forwards - 1);
  sample.order.forEach((forward, place) => {
    if (forward < 0) return;
    const share = Math.min(1, forward / last);
    const level = Math.min(Math.floor(share * data.palette.length), data.palette.length - 1);
    pen.fillStyle = "rgb(" + data.palette[level].join(",") + ")";
    pen.fillRect(place, 0, 1, 1);
  });
  canvas.addEventListener("mousemove", (event) => {
    const place = Math.min(width - 1, Math.floor((event.offsetX / canvas.clientWidth) * width));
    const forward = sample.order[place];
    const when = forward < 0 ? "no forward" : "forward " + (forward + 1) + " of " + sample.forwards;
    canvas.title = "position " + place + ": " + when;
  });
  return canvas;
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.shiftKey) return;
  if (event.target.closest("input, select, textarea, .scroll")) return;
  const step = { ArrowRight: 1, j: 1, ArrowLeft: -1, k: -1 }[event.key];
  if (step === undefined || found.length === 0) return;
  event.preventDefault();
  show(at + step);
});

search();
document.documentElement.dataset.ready = String(found.length);
