// The panel of the chosen node.
function nodeLink(i, text) {
  return el("button", { class: "link", onclick: () => select(i) }, text || shortName(i));
}

function bar(share, look) {
  return svg("svg", { width: 90, height: 10, "aria-hidden": true }, svg("rect", { class: `fill-${look}`, width: Math.max(1, 88 * Math.min(1, share)), height: 10 }));
}

function weightRows(list, end) {
  const most = Math.max(1e-9, ...list.map((i) => Math.abs(G.edges[i][4])));
  return table([[end ? "to" : "from"], ["weight", true], ["ablated: loss", true], [""]], list.sort((a, b) => Math.abs(G.edges[b][4]) - Math.abs(G.edges[a][4])).map((i) => {
    const weight = G.edges[i][4];
    return [nodeLink(G.edges[i][end ? 1 : 0]), signed(weight), edgeEffects[i] ? signed(edgeEffects[i][0]) : "–", bar(Math.abs(weight) / most, weight > 0 ? "pos" : "neg")];
  }));
}

function drawPanel() {
  const i = state.node;
  if (i === null) return clear(byId("panel"), overview());
  const node = data.nodes[i], name = fullName(i), [into, out] = G.weights[i];
  const inside = G.edges.flatMap((edge, e) => edge[1] === i ? [e] : []), outside = G.edges.flatMap((edge, e) => edge[0] === i ? [e] : []);
  const kind = siteKind(G.nodes[i][0]), final = kind === "final.in";
  clear(byId("panel"),
    el("h3", { id: "panel-name" }, name, el("small", {}, `  ${kind === "final.in" ? "read by the unembedding" : `layer ${name.split(".")[1]}`}`)),
    nameFields(name),
    el("ul", {}, node.words.map((word) => el("li", {}, word))),
    el("p", {}, el("b", {}, `Ablated: loss ${signed(effects[i][0])} nats`), `, mean margin ${signed(-effects[i][1])} nats, ${percent(effects[i][2])} right. `, el("small", {}, `In the circuit, calibrated, ${data.ablations.measured_on} held-out pairs; held at its mean.`)),
    valueTable(node),
    el("h3", {}, "Weights in ", el("small", {}, kind.endsWith("in") ? "it reads its residual channel" : `${inside.length} of the ${into} nonzero ones it has in the model`)),
    inside.length ? weightRows(inside, false) : null,
    streamList(i, G.stream.filter(([, to]) => to === i).map(([from]) => from), kind.endsWith("in") ? "Written to that channel before it by" : null, true),
    el("h3", {}, "Weights out ", el("small", {}, final ? `${G.unembedding.filter(([channel]) => channel === G.nodes[i][1]).length} to the answers shown, of ${out} nonzero unembedding weights` : /\.(q|k)$/.test(kind) ? "it ends in the head's scores" : kind.endsWith("out") ? "it writes to its residual channel" : `${outside.length} of the ${out} nonzero ones it has in the model`)),
    outside.length ? weightRows(outside, true) : null,
    final ? answerWeights(i) : null,
    streamList(i, G.stream.filter(([from]) => from === i).map(([, to]) => to), kind.endsWith("out") ? "Read there after it by" : null, false),
    meetingList(i), doseOf(node), stepOf(i), textOf(node));
}

function overview() {
  const order = effects.map((_, i) => i).sort((a, b) => effects[b][0] - effects[a][0]).slice(0, 12);
  return [el("h3", {}, "Choose a node"), el("p", { class: "soft" }, order.length ? "Those of the largest effect, ablated one at a time:" : "This circuit has no nodes: the bigram table and the biases do the task alone."),
    ...order.map((i) => el("p", {}, nodeLink(i), ` loss ${signed(effects[i][0])}`, el("br"), el("small", {}, data.nodes[i].words.join("; "), "; highest at ", data.nodes[i].circuit.highest.slice(0, 2).map(([index, mean]) => [token(index), ` ${signed(mean, 2)} `]).flat(), "lowest at ", data.nodes[i].circuit.lowest.slice(0, 2).map(([index, mean]) => [token(index), ` ${signed(mean, 2)} `]).flat())))];
}

function valueTable(node) {
  const row = (name, pick) => [name, ...["circuit", "model"].map((run) => pick(node[run]))];
  const sides = (pair) => pair[0] === null && pair[1] === null ? "–" : `${figure(pair[0])} | ${figure(pair[1])}`;
  const at = (list) => list.map(([index, mean]) => el("span", {}, token(index), ` ${signed(mean, 2)}  `));
  return el("div", {}, el("h3", {}, "Values ", el("small", {}, "held-out prompts")),
    table([[""], ["in the circuit", true], ["in the whole model", true]], [
      row("range", (one) => `${figure(one.low)} to ${figure(one.high)}`), row("mean ± deviation", (one) => `${figure(one.mean)} ± ${figure(one.deviation, 2)}`),
      row("not zero", (one) => percent(one.active)), row("at the cue, A | B", (one) => sides(one.cue)), row("at the answer, A | B", (one) => sides(one.answer))]),
    el("p", {}, "In the circuit highest at ", ...at(node.circuit.highest), el("br"), "lowest at ", ...at(node.circuit.lowest), el("small", {}, " (mean over the prompts' tokens)"), node.alike === null ? null : [el("br"), `Correlation of its values in the two runs: ${figure(node.alike, 2)}`]));
}

function streamList(i, list, words, before) {
  const lane = G.lanes.find((one) => one.channel === G.nodes[i][1]), embedded = before && lane && lane.embedded;
  if (words === null) return null;
  const parts = [...(embedded ? ["the embedding"] : []), ...list.map((j) => nodeLink(j))];
  return el("p", {}, `${words} `, parts.length ? parts.flatMap((part, n) => n ? [", ", part] : [part]) : "nothing kept", ".", embedded ? el("small", {}, ` Tokens that write most: ${embeddedTokens(G.nodes[i][1])}`) : null);
}

function embeddedTokens(channel) {
  return G.embedding.filter((one) => one[1] === channel).sort((a, b) => Math.abs(b[2]) - Math.abs(a[2])).slice(0, 6).map(([index, , weight]) => `${data.tokens[G.tokens[index][0]]} ${signed(weight, 2)}`).join("  ") || "none of those drawn";
}

function answerWeights(i) {
  return table([["answer"], ["weight", true]], G.unembedding.filter(([channel]) => channel === G.nodes[i][1]).map(([, index, weight]) => [token(G.answers[index][0]), signed(weight)]));
}

function meetingList(i) {
  const found = G.pairs.filter((pair) => pair.includes(i)).map(([q, k]) => q === i ? k : q);
  const kind = KIND[siteKind(G.nodes[i][0])];
  if (kind !== "q" && kind !== "k") return null;
  return el("p", {}, found.length ? "Meets " : `The ${kind === "q" ? "key" : "query"} channel it meets is at its mean.`, found.map((j) => nodeLink(j)));
}

function doseOf(node) {
  if (!node.dose) return null;
  const points = (side) => node.dose.grid.map((value, n) => [value, node.dose[side][n]]);
  return el("div", {}, el("h3", {}, "Dose and response ", el("small", {}, `held at a value at every token; circuit, calibrated, ${data.ablations.few} pairs`)),
    plot([{ name: "A", look: "pos", points: points("a") }, { name: "B", look: "neg", points: points("b"), dash: "5 3" }], { x: "value", y: "mean margin (nats)", zero: true }));
}

function stepOf(i) {
  const steps = data.ablations.steps, step = steps && steps.nodes[i];
  if (!step) return null;
  return el("div", {}, el("h3", {}, "As a step of two values"), el("p", {}, `${figure(step[1])} up to ${figure(step[0])}, ${figure(step[2])} above: loss ${figure(step[3])} nats with it alone binary, ${figure(steps.before)} as it is, ${figure(steps.together)} with all nodes binary. `, el("small", {}, `Circuit, each calibrated anew, fitted on ${steps.pairs} training pairs, measured on as many held out.`)));
}

function textOf(node) {
  if (!node.text) return null;
  const found = node.text, counts = found.histogram.counts, most = Math.max(...counts, 1);
  const bars = svg("svg", { class: "plot", viewBox: "0 0 380 78", width: 380, height: 78, role: "img", "aria-label": "histogram of its values other than zero" });
  counts.forEach((count, n) => bars.append(svg("rect", { class: "fill-soft", x: 6 + n * 368 / counts.length, y: 60 - 54 * count / most, width: Math.max(1, 368 / counts.length - 1), height: 54 * count / most }, svg("title", {}, count.toLocaleString("en")))));
  bars.append(svg("text", { x: 6, y: 74 }, figure(found.histogram.low)), svg("text", { x: 374, y: 74, "text-anchor": "end" }, figure(found.histogram.high)));
  const scale = Math.max(1e-9, ...found.passages.flatMap((one) => one[4].map(Math.abs)));
  let group = "";
  return el("div", {}, el("h3", {}, "In pretraining text ", el("small", {}, `whole model; not zero at ${percent(found.active)} of ${found.tokens.toLocaleString("en")} tokens`)), bars,
    found.passages.flatMap(([name, value, at, tokens, values]) => {
      const heading = name === group ? [] : [el("h3", {}, name)];
      group = name;
      return [...heading, el("div", { class: "passage heat" }, el("b", {}, `${signed(value)} `), tokens.map((index, n) => heatToken(index, values[n], scale, n === at ? { class: "here" } : {})))];
    }));
}
