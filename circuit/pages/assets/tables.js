// Ablations: parts one by one, two by two, one after the other; losses of other kinds of ablation.
function drawAblations() {
  const B = data.ablations, order = effects.map((_, i) => i).sort((a, b) => effects[b][0] - effects[a][0]);
  const edges = edgeEffects.map((_, i) => i).filter((i) => edgeEffects[i]).sort((a, b) => edgeEffects[b][0] - edgeEffects[a][0]);
  const row = (name, effect, most) => [name, signed(effect[0]), signed(-effect[1]), percent(effect[2]), bar(Math.max(0, effect[0]) / most, "soft")];
  const heads = [["ablated"], ["loss", true], ["mean margin", true], ["right", true], [""]];
  const pairs = ["redundant", "synergistic"].flatMap((word) => B.pairs.filter((pair) => pair[5] === word).slice(0, 15));
  clear(byId("ablations"),
    el("p", { class: "soft" }, `In the circuit, with its calibration, on ${B.measured_on} held-out pairs; nothing ablated: loss ${figure(B.before[0])} nats, mean margin ${figure(B.before[1])} nats, ${percent(B.before[2])} right. Ablated: held at its mean.`),
    el("div", { class: "columns" },
      el("div", {}, el("h3", {}, `Nodes (${order.length})`), table(heads, order.map((i) => row(nodeLink(i), effects[i], mostEffect)), { class: "tall" })),
      el("div", {}, el("h3", {}, `Edges (${edgeEffects.length})`), edges.length ? table(heads, edges.slice(0, 400).map((i) => row(nodeLink(G.edges[i][1], `${shortName(G.edges[i][0])} → ${shortName(G.edges[i][1])}`), edgeEffects[i], mostEdgeEffect)), { class: "tall" }) : el("p", { class: "soft" }, "It has none.")),
      el("div", {}, el("h3", {}, "Pairs of nodes ", el("small", {}, `fall of the mean margin in nats, ${B.few} pairs of prompts`)),
        el("p", { class: "soft" }, "Redundant: both together are missed more than the two falls add up to, so each can stand in for the other. Synergistic: less than that, so each is worth little without the other."),
        pairs.length ? table([["pair"], ["first", true], ["second", true], ["both", true], [""]], pairs.map(([i, j, a, b, both, word]) => [el("span", {}, nodeLink(i), " and ", nodeLink(j)), figure(a), figure(b), figure(both), word]), { class: "tall" }) : el("p", { class: "soft" }, "No two of those tried depend on each other.")),
      el("div", {}, el("h3", {}, "Loss against size"), plot([{ look: "pos", points: B.shrinking }], { x: "nodes left, those of least effect ablated first", y: "loss (nats)", zero: true }),
        B.relatives.length > 1 ? [el("p", { class: "soft" }, "Circuits of this task and model at other targets:"), plot([["node", "pos"], ["edge", "neg"], ["faithful", "accent"]].map(([method, look]) => ({ name: method, look, dots: true, points: B.relatives.filter((one) => one[4] === method).map((one) => [one[0], one[3]]) })), { x: "edges", y: "held-out loss (nats)", zero: true, log: true })] : null),
      data.head.curves.map((one) => el("div", {}, el("h3", {}, `${one.name} `, el("small", {}, one.words)), plot([{ look: "pos", points: one.points }], { x: "strength", y: "loss (nats)", zero: true })))));
}
