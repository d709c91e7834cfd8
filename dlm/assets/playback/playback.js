// Plays rows forward by forward. Every text goes in as text: outputs of models are hostile.
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const AGES = 8; // forwards for which a token that stands is underlined
const PACE = 180; // milliseconds of a forward

function make(name, attributes, ...content) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...content);
  return node;
}

function play(row) {
  // tokens[k] is the row after k forwards, born[k] the forward that wrote each token then.
  const tokens = [row.start];
  const born = [row.start.map(() => 0)];
  for (const [number, changes] of row.frames.entries()) {
    const now = [...tokens[number]];
    const when = [...born[number]];
    for (const [place, token] of changes) {
      now[place] = token;
      when[place] = token === data.mask ? 0 : number + 1;
    }
    tokens.push(now);
    born.push(when);
  }

  const last = row.frames.length;
  const range = make("input", { type: "range", min: 0, max: last, value: last, "aria-label": "forward" });
  const button = make("button", { type: "button" }, "play");
  const told = make("output", { class: "told" });
  const canvas = make("div", { class: "canvas" });
  let timer = 0;

  function draw() {
    const at = Number(range.value);
    const sure = new Map(at ? row.frames[at - 1].map(([place, , p]) => [place, p]) : []);
    canvas.replaceChildren(...tokens[at].map((token, place) => {
      const before = at ? tokens[at - 1][place] : token;
      const masked = token === data.mask;
      const changed = token !== before;
      const [text, name] = data.pieces[masked && changed ? before : token];
      const node = make("span", { class: "token" }, masked && !changed ? "\u2591" : text);
      const age = at - born[at][place];
      if (masked) node.classList.add(changed ? "back" : "mask");
      else if (changed) node.classList.add(before === data.mask ? "new" : "edited");
      else if (born[at][place] && age < AGES) {
        node.classList.add("aged");
        node.style.setProperty("--age", 100 - (100 * age) / AGES + "%");
      }
      if (born[at][place]) {
        const p = sure.get(place);
        const how = typeof p === "number" ? ", p " + p.toFixed(3) : "";
        node.title = name + ", position " + place + ", forward " + born[at][place] + how;
      }
      return node;
    }));
    const left = tokens[at].filter((token) => token === data.mask).length;
    told.textContent = "forward " + at + " of " + last + ", " + left + " masks left";
  }

  function stop() {
    clearInterval(timer);
    timer = 0;
    button.textContent = "play";
  }

  button.addEventListener("click", () => {
    if (timer) return stop();
    if (Number(range.value) === last) range.value = 0;
    button.textContent = "stop";
    draw();
    timer = setInterval(() => {
      range.value = Number(range.value) + 1;
      draw();
      if (Number(range.value) === last) stop();
    }, PACE);
  });
  range.addEventListener("input", () => {
    stop();
    draw();
  });
  draw();
  const controls = make("div", { class: "controls" }, button, range, told);
  return make("section", {}, make("p", { class: "prompt" }, row.title), controls, canvas);
}

document.getElementById("rows").replaceChildren(...data.rows.map(play));
