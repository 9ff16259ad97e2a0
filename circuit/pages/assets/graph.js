// The graph: lanes of the residual stream, heads, neurons, weights. All places come from the data.
const G = data.graph, effects = data.ablations.nodes, edgeEffects = data.ablations.edges;
const KIND = { "attn.in": "in", "attn.q": "q", "attn.k": "k", "attn.v": "v", "attn.out": "out", "mlp.in": "in", "mlp.act": "act", "mlp.out": "out", "final.in": "in" };
const siteKind = (site) => site === "final.in" ? site : site.split(".").slice(2).join(".");
const fullName = (i) => `${G.nodes[i][0]}.${G.nodes[i][1]}`;
const shortName = (i) => notes.names[fullName(i)] || fullName(i).replace("layers.", "L");
const nodeEffect = (i) => effects[i][0];
const mostEffect = Math.max(1e-9, ...effects.map((effect) => effect[0]));
const mostWeight = Math.max(1e-9, ...G.edges.map((edge) => Math.abs(edge[4])));
const mostEdgeEffect = Math.max(1e-9, ...edgeEffects.map((effect) => effect ? effect[0] : 0));
const radius = (i) => 8 + 8 * Math.sqrt(Math.max(0, nodeEffect(i)) / mostEffect);

// Below and above: weights, the residual stream, tokens being attended to.
const below = G.nodes.map(() => []), above = G.nodes.map(() => []);
for (const [from, to] of [...G.edges, ...G.stream, ...G.patterns]) { above[from].push(to); below[to].push(from); }

function cone(start, joined) {
  const found = new Set([start]), waiting = [start];
  while (waiting.length) for (const next of joined[waiting.pop()]) if (!found.has(next)) { found.add(next); waiting.push(next); }
  return found;
}

const drawn = { nodes: [], edges: [], pairs: [], lanes: [], boxes: [] };

function curve(x1, y1, x2, y2) {
  const middle = (y1 + y2) / 2;
  return `M${x1} ${y1}C${x1} ${middle} ${x2} ${middle} ${x2} ${y2}`;
}

function edgeWords(i) {
  const [from, to, matrix, layer, weight] = G.edges[i], effect = edgeEffects[i];
  const fellows = G.edges.filter((edge) => edge[1] === to).map((edge) => Math.abs(edge[4])).sort((a, b) => b - a);
  const rank = fellows.indexOf(Math.abs(weight)) + 1;
  return `${shortName(from)} → ${shortName(to)}\nweight ${signed(weight)} in ${matrix} of layer ${layer}: when the first rises by 1, ${matrix === "out" && KIND[siteKind(G.nodes[from][0])] === "v" ? "as attention mixes it, " : ""}the second ${weight > 0 ? "rises" : "falls"} by ${figure(Math.abs(weight))}${siteKind(G.nodes[to][0]) === "mlp.act" ? " before its activation function" : ""}\n${rank === 1 ? "the largest" : `number ${rank}`} of ${fellows.length} edge${fellows.length > 1 ? "s" : ""} into it`
    + (effect ? `\nablated in the circuit: loss ${signed(effect[0])} nats, mean margin ${signed(-effect[1])} nats` : "\neffect not measured");
}

function nodeWords(i) {
  return `${shortName(i)}${notes.names[fullName(i)] ? ` (${fullName(i)})` : ""}\nablated in the circuit: loss ${signed(effects[i][0])} nats, mean margin ${signed(-effects[i][1])} nats\n${data.nodes[i].words.join("\n")}`;
}

function laneWords(lane) {
  const on = G.nodes.map((node, i) => [node, i]).filter(([node]) => /(\.in|\.out)$/.test(node[0]) && node[1] === lane.channel).map(([, i]) => i);
  const writers = on.filter((i) => G.nodes[i][0].endsWith(".out")), readers = on.filter((i) => !G.nodes[i][0].endsWith(".out"));
  return `residual channel ${lane.channel}\nwritten by ${[...(lane.embedded ? ["the embedding"] : []), ...writers.map(shortName)].join(", ") || "nothing kept: it is at its mean"}\nread by ${readers.map(shortName).join(", ") || "nothing kept"}`;
}

function pill(text, x, y, attributes) {
  const made = svg("g", { class: `pill ${attributes.class || ""}` }), label = svg("text", { x, y: y + 4 }, (text.length > 14 ? `${text.slice(0, 13)}…` : text).replaceAll(" ", "␣"));
  const width = Math.max(22, Math.min(text.length, 14) * 6.8 + 12);
  made.append(svg("rect", { x: x - width / 2, y: y - 10, width, height: 20 }), label);
  return made;
}

function link(x1, y1, x2, y2, weight, most, words) {
  const path = curve(x1, y1, x2, y2);
  const made = svg("g", {}, svg("path", { class: `edge ${weight > 0 ? "pos" : "neg"}`, d: path, "stroke-width": 0.8 + 3.4 * Math.abs(weight) / most }), svg("path", { class: "edge-hit", d: path }));
  tip(made, () => words);
  return made;
}

function drawGraph() {
  const picture = svg("svg", { viewBox: `0 0 ${G.width} ${G.height}`, "aria-label": "graph of the circuit, tokens below, answers on top", role: "group", id: "picture" });
  for (const [, label, y] of G.rows) picture.append(svg("line", { class: "row-line", x1: 0, x2: G.width, y1: y, y2: y }), svg("text", { class: "row-name", x: 5, y: y - 24 }, label));
  for (const lane of G.lanes) {
    const made = svg("g", {}, svg("line", { class: "lane", x1: lane.x, x2: lane.x, y1: lane.bottom, y2: lane.top }), svg("line", { class: "lane-hit", x1: lane.x, x2: lane.x, y1: lane.bottom, y2: lane.top }));
    if (lane.embedded) made.append(svg("rect", { class: "foot", x: lane.x - 3, y: G.foot - 3, width: 6, height: 6 }));
    tip(made, () => laneWords(lane));
    drawn.lanes.push(made);
    picture.append(made);
  }
  for (const [layer, head, x, y, width, height] of G.boxes) {
    const made = svg("g", {}, svg("rect", { class: "box", x, y, width, height }), svg("text", { class: "box-name", x: x + width + 4, y: y + 4 }, `head ${layer}.${head}`));
    drawn.boxes.push(made);
    picture.append(made);
  }
  drawEnds(picture);
  G.edges.forEach(([from, to, , , weight], i) => {
    const [, , x1, y1] = G.nodes[from], [, , x2, y2] = G.nodes[to];
    const made = svg("g", { "data-edge": i }, svg("path", { class: `edge ${weight > 0 ? "pos" : "neg"}`, d: curve(x1, y1, x2, y2) }), svg("path", { class: "edge-hit", d: curve(x1, y1, x2, y2) }));
    tip(made, () => edgeWords(i));
    made.addEventListener("click", () => select(to));
    drawn.edges.push(made);
    picture.append(made);
  });
  for (const [q, k] of G.pairs) {
    const [, , x1, y1] = G.nodes[q], [, , x2] = G.nodes[k];
    const made = svg("path", { class: "pair", d: `M${x1} ${y1 - 12}C${x1} ${y1 - 24} ${x2} ${y1 - 24} ${x2} ${y1 - 12}` });
    tip(made, () => `query and key channel ${G.nodes[q][1]} meet in the head: their product is a term of its scores`);
    drawn.pairs.push([made, q, k]);
    picture.append(made);
  }
  G.nodes.forEach(([site, channel, x, y], i) => {
    const made = svg("g", { class: "node", tabindex: 0, role: "button", "data-node": i, "aria-label": `${fullName(i)}: ablated, loss ${signed(effects[i][0])} nats` });
    made.append(svg("circle", { cx: x, cy: y, r: radius(i) }), svg("text", { class: "kind", x, y: y + 3 }, KIND[siteKind(site)]), svg("text", { class: "channel", x, y: y + radius(i) + 11 }, channel));
    tip(made, () => nodeWords(i));
    made.addEventListener("click", () => select(i));
    made.addEventListener("keydown", (event) => graphKey(event, i));
    drawn.nodes.push(made);
    picture.append(made);
  });
  clear(byId("graph"), picture);
  byId("graph").addEventListener("wheel", (event) => { if (event.ctrlKey) { event.preventDefault(); zoom(event.deltaY < 0 ? 1.15 : 1 / 1.15); } }, { passive: false });
}

function drawEnds(picture) {
  const laneX = new Map(G.lanes.map((lane) => [lane.channel, lane.x]));
  const most = Math.max(1e-9, ...G.embedding.map((one) => Math.abs(one[2])), ...G.unembedding.map((one) => Math.abs(one[2])));
  for (const [index, channel, weight] of G.embedding) {
    const [text, x, y] = G.tokens[index];
    picture.append(link(x, y - 10, laneX.get(channel), G.foot, weight, most, `embedding of ${data.tokens[text]}: ${signed(weight)} to residual channel ${channel}`));
  }
  for (const [channel, index, weight] of G.unembedding) {
    const [text, x, y] = G.answers[index], i = G.nodes.findIndex((node) => node[0] === "final.in" && node[1] === channel);
    picture.append(link(G.nodes[i][2], G.nodes[i][3], x, y + 10, weight, most, `unembedding: when ${shortName(i)} rises by 1, the logit of ${data.tokens[text]} ${weight > 0 ? "rises" : "falls"} by ${figure(Math.abs(weight))}`));
  }
  for (const [text, x, y, cue] of G.tokens) picture.append(pill(data.tokens[text], x, y, { class: cue ? "cue-pill" : "" }));
  G.answers.forEach(([text, x, y, bias], i) => {
    const made = pill(data.tokens[text], x, y, {});
    tip(made, () => `answer to prompts ${"AB"[i]}${G.n_answers > 2 ? `, the most frequent of ${G.n_answers} answers` : ""}\nbias of its logit ${signed(bias)}`);
    picture.append(made, svg("text", { class: "row-name", x, y: y - 15, "text-anchor": "middle" }, `answer ${"AB"[i]}`));
  });
}

// What is shown how, from the state: widths, threshold, cone, the chosen node.
function paintGraph() {
  const byEffect = state.width === "effect";
  const chosen = state.node, inCone = new Set(chosen === null ? [] : [chosen]);
  if (chosen !== null && state.cone !== "above") cone(chosen, below).forEach((i) => inCone.add(i));
  if (chosen !== null && state.cone !== "below") cone(chosen, above).forEach((i) => inCone.add(i));
  for (const pair of G.pairs) if (pair.includes(chosen)) pair.forEach((i) => inCone.add(i));
  const faded = (...ends) => chosen !== null && state.cone !== "off" && !ends.every((i) => inCone.has(i));
  const gone = (i) => nodeEffect(i) < state.least;
  drawn.nodes.forEach((made, i) => {
    made.setAttribute("class", `node${i === chosen ? " chosen" : ""}${faded(i) ? " dim" : ""}${gone(i) && i !== chosen ? " gone" : ""}`);
    made.querySelector(".channel").textContent = notes.names[fullName(i)] || G.nodes[i][1];
  });
  drawn.edges.forEach((made, i) => {
    const [from, to, , , weight] = G.edges[i], effect = edgeEffects[i];
    const share = byEffect ? Math.max(0, effect ? effect[0] : 0) / mostEdgeEffect : Math.abs(weight) / mostWeight;
    made.firstChild.setAttribute("stroke-width", (0.8 + 5 * share).toFixed(2));
    const hidden = gone(from) || gone(to) || (state.least > 0 && effect && effect[0] < state.least);
    made.setAttribute("class", `${faded(from, to) ? "dim" : ""}${hidden ? " gone" : ""}`);
  });
  drawn.pairs.forEach(([made, q, k]) => made.setAttribute("class", `pair${faded(q, k) ? " dim" : ""}${gone(q) || gone(k) ? " gone" : ""}`));
}

let zoomed = 1;
function zoom(factor) {
  zoomed = Math.min(6, Math.max(0.15, factor === null ? fitted() : zoomed * factor));
  const picture = byId("picture");
  picture.setAttribute("width", Math.round(G.width * zoomed));
  picture.setAttribute("height", Math.round(G.height * zoomed));
}
const fitted = () => Math.min(1.15, Math.max(0.5, Math.min((byId("graph").clientWidth - 4) / G.width, Math.max(420, window.innerHeight * 0.87) / G.height)));

function graphKey(event, i) {
  const move = { ArrowUp: [0, -1], ArrowDown: [0, 1], ArrowLeft: [-1, 0], ArrowRight: [1, 0] }[event.key];
  if (event.key === "Enter" || event.key === " ") { event.preventDefault(); select(i); }
  else if (event.key === "Escape") select(null);
  else if (event.key === "+" || event.key === "=") zoom(1.2);
  else if (event.key === "-") zoom(1 / 1.2);
  else if (event.key === "0") zoom(null);
  else if (move) {
    event.preventDefault();
    const next = neighbour(i, move);
    if (next !== null) drawn.nodes[next].focus();
  }
}

// The nearest node that is shown in a direction: distance across it counts double.
function neighbour(i, [dx, dy]) {
  const [, , x, y] = G.nodes[i];
  let best = null, least = Infinity;
  G.nodes.forEach(([, , otherX, otherY], j) => {
    const along = (otherX - x) * dx + (otherY - y) * dy, across = Math.abs((otherX - x) * dy) + Math.abs((otherY - y) * dx);
    if (j === i || along <= 1 || (dx && Math.abs(otherY - y) > 1) || nodeEffect(j) < state.least) return;
    if (along + 2 * across < least) { least = along + 2 * across; best = j; }
  });
  return best;
}

function graphControls() {
  const sorted = [...new Set([0, ...effects.map((effect) => Math.max(0, effect[0]))])].sort((a, b) => a - b);
  const said = el("output", {});
  const say = () => { said.textContent = state.least > 0 ? `≥ ${figure(state.least)} nats: ${effects.filter((effect) => effect[0] >= state.least).length} of ${effects.length} nodes` : "all"; };
  const slider = el("input", { type: "range", min: 0, max: sorted.length - 1, step: 1, id: "threshold", value: sorted.filter((v) => v < state.least).length, oninput: () => { change({ least: Number(slider.value) ? sorted[slider.value] : 0 }); say(); } });
  say();
  clear(byId("graph-controls"),
    choice("Width of edges", [["weight", "weight"], ["effect", "effect of ablating"]], state.width, (value) => change({ width: value })),
    choice("Of the chosen node", [["both", "what it depends on and reaches"], ["below", "what it depends on"], ["above", "what it reaches"], ["off", "everything"]], state.cone, (value) => change({ cone: value })),
    el("label", {}, "Show nodes and edges of effect", slider, said),
    el("span", {}, el("button", { onclick: () => zoom(1.25), "aria-label": "zoom in" }, "+"), " ", el("button", { onclick: () => zoom(1 / 1.25), "aria-label": "zoom out" }, "−"), " ", el("button", { onclick: () => zoom(null) }, "fit"), " ", el("button", { onclick: () => select(null), id: "unselect" }, "choose none")));
  const line = (look) => svg("svg", { width: 44, height: 10 }, svg("line", { class: `edge ${look}`, x1: 0, x2: 44, y1: 5, y2: 5, "stroke-width": 3 }));
  clear(byId("legend"), line("pos"), " positive weight  ", line("neg"), " negative weight (dashed)  · size of a node: rise of the loss when it is ablated  · vertical lines: channels of the residual stream, numbered at their nodes; a square: the embedding writes to it  · box: q, k and v of a head; an arch joins a query and a key channel that meet  · arrow keys move, Enter chooses, + − 0 zoom");
}
