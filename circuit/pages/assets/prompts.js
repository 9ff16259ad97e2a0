// Heat maps of the chosen node over the prompts' tokens: A, B and their difference, circuit and whole model.
const P = data.prompts, K = G.nodes.length;
const runs = { circuit: numbers(P.circuit), model: numbers(P.model) };
const starts = P.rows.reduce((found, row) => [...found, found[found.length - 1] + row.tokens.length], [0]);
const value = (run, row, position, i) => runs[run][(starts[row] + position) * K + i] / 32767 * P.scales[i];

// Positions of A and B that belong together: tokens outside the cue in order, those of the cue as far as they go.
function aligned(a, b) {
  const cueA = new Set(a.cue), cueB = new Set(b.cue), found = [];
  let i = 0, j = 0;
  while (i < a.tokens.length || j < b.tokens.length) {
    const left = i < a.tokens.length, right = j < b.tokens.length;
    if (left && right && cueA.has(i) === cueB.has(j)) found.push([i++, j++]);
    else if (left && (cueA.has(i) || !right)) found.push([i++, null]);
    else found.push([null, j++]);
  }
  return found;
}

function heatRow(run, row, i) {
  const one = P.rows[row], cue = new Set(one.cue);
  return el("div", { class: "heat" }, one.tokens.map((index, position) => heatToken(index, value(run, row, position, i), P.scales[i], cue.has(position) ? { class: "here" } : {})));
}

function differenceRow(run, rowA, i) {
  const a = P.rows[rowA], b = P.rows[rowA + 1];
  return el("div", { class: "heat" }, aligned(a, b).map(([p, q]) => {
    const difference = (p === null ? 0 : value(run, rowA, p, i)) - (q === null ? 0 : value(run, rowA + 1, q, i));
    const same = p !== null && q !== null && a.tokens[p] === b.tokens[q];
    const text = same ? a.tokens[p] : `${p === null ? "∅" : data.tokens[a.tokens[p]]}/${q === null ? "∅" : data.tokens[b.tokens[q]]}`;
    return heatToken(text, difference, 2 * P.scales[i], same ? {} : { class: "here" });
  }));
}

function marginWords(margin, words) {
  return el("small", {}, margin <= 0 ? el("span", { class: "wrongmark" }, "✗ wrong ") : "", `margin ${signed(margin)} ${words}`);
}

function drawPrompts() {
  const i = state.node === null ? effects.map((_, n) => n).sort((a, b) => effects[b][0] - effects[a][0])[0] : state.node;
  const pairs = P.rows.length / 2, order = [...Array(pairs).keys()], worst = (pair, key) => Math.min(P.rows[2 * pair][key], P.rows[2 * pair + 1][key]);
  if (state.sort === "best") order.sort((a, b) => worst(b, "margin") - worst(a, "margin"));
  else if (state.sort === "model") order.sort((a, b) => worst(a, "model_margin") - worst(b, "model_margin"));
  const shown = state.all ? order : order.slice(0, 8);
  clear(byId("prompts-controls"),
    el("span", {}, i === undefined ? "no nodes: margins only" : ["Values of ", el("b", {}, shortName(i)), state.node === null ? " (of the largest effect; choose another in the graph)" : ""]),
    choice("Sorted by", [["worst", "margin in the circuit, worst first"], ["best", "margin in the circuit, best first"], ["model", "margin in the whole model, worst first"]], state.sort, (chosen) => change({ sort: chosen })),
    el("button", { "aria-pressed": String(state.all), onclick: () => change({ all: !state.all }) }, state.all ? "show 8 pairs" : `show all ${pairs} pairs`),
    el("small", {}, `Wrong: ${P.wrong} of ${2 * P.of} held-out prompts in the circuit, ${P.wrong_model} in the whole model. Outlined: the cue. Blue: above zero; orange, dotted underline: below.`));
  clear(byId("prompts"), shown.map((pair) => el("div", { class: "pairbox" },
    el("div", { class: "sides" }, ["circuit", "model"].map((run) => el("div", {},
      el("small", {}, el("b", {}, run === "circuit" ? "In the circuit, calibrated" : "In the whole model, its own logits")),
      [0, 1].map((side) => {
        const row = 2 * pair + side, one = P.rows[row];
        return el("div", {}, el("span", { class: "tag" }, "AB"[side]), marginWords(run === "circuit" ? one.margin : one.model_margin, "nats"), " → ", token(one.right),
          i === undefined ? el("div", { class: "heat" }, one.tokens.map((index) => token(index))) : heatRow(run, row, i));
      }),
      i === undefined ? null : [el("span", { class: "tag" }, "A − B"), differenceRow(run, 2 * pair, i)]))))));
}
