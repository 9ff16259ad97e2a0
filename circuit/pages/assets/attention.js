// Attention of the kept heads: the softmax is computed here, from q and k.
const A = data.attention;

function scoresOf(head, run, row, asking) {
  const one = head.runs[run], D = one.channels.length, length = P.rows[A.rows[row]].tokens.length;
  const first = A.rows.slice(0, row).reduce((sum, other) => sum + P.rows[other].tokens.length, 0) * D;
  const raw = head.raw[run], scale = one.q_scale * one.k_scale / 32767 ** 2 * A.scale, scores = [];
  for (let t = 0; t <= Math.min(asking, length - 1); t++) {
    let sum = 0;
    for (let c = 0; c < D; c++) sum += raw.q[first + asking * D + c] * raw.k[first + t * D + c];
    scores.push(sum * scale);
  }
  return scores;
}

function sharesOf(scores, sink) {
  const all = sink === null ? scores : [...scores, sink], most = Math.max(...all);
  const powers = all.map((score) => Math.exp(score - most)), sum = powers.reduce((a, b) => a + b, 0);
  return powers.slice(0, scores.length).map((power) => power / sum);
}

function patternPicture(head, run, row) {
  const tokens = P.rows[A.rows[row]].tokens, n = tokens.length, cell = Math.max(7, Math.min(16, 300 / n)), left = 74;
  const made = svg("svg", { class: "plot", viewBox: `0 0 ${left + n * cell + 2} ${n * cell + 78}`, width: left + n * cell + 2, height: n * cell + 78, role: "img", "aria-label": "attention pattern: rows ask, columns are attended to" });
  for (let q = 0; q < n; q++) {
    const label = data.tokens[tokens[q]], short = label.length > 10 ? `${label.slice(0, 9)}…` : label;
    if (cell >= 7) made.append(svg("text", { x: left - 5, y: (q + 0.8) * cell, "text-anchor": "end" }, short), svg("text", { x: 0, y: 0, "text-anchor": "end", transform: `translate(${left + (q + 0.8) * cell} ${n * cell + 6}) rotate(-90)` }, short));
    sharesOf(scoresOf(head, run, row, q), head.sink).forEach((share, k) => {
      if (share >= 0.004) made.append(svg("rect", { class: "fill-pos", x: left + k * cell, y: q * cell, width: cell - 0.6, height: cell - 0.6, "fill-opacity": share.toFixed(3) }, svg("title", {}, `${data.tokens[tokens[q]]} attends to ${data.tokens[tokens[k]]}: ${percent(share)}`)));
    });
  }
  made.append(svg("rect", { x: left, y: 0, width: n * cell, height: n * cell, fill: "none", class: "axis" }));
  return made;
}

function headSide(head, run) {
  const one = head.runs[run], row = Math.min(state.prompt, A.rows.length - 1);
  const channels = one.channel_shares.map(([channel, share]) => {
    const kept = ["q", "k"].filter((kind) => head.kept[kind].includes(channel));
    return [`channel ${channel}`, kept.length ? `${kept.join(" and ")} kept` : "not kept", percent(share), bar(Math.abs(share), share > 0 ? "pos" : "neg")];
  });
  const parts = [el("h3", {}, run === "circuit" ? "In the circuit" : "In the whole model"),
    el("p", {}, `Over all held-out prompts the answer position gives ${percent(one.cue)} to the cue, ${percent(one.self)} to itself${one.sink_share === null ? "" : `, ${percent(one.sink_share)} to the sink`}. Most to `, one.tokens.map(([index, share]) => el("span", {}, token(index), ` ${percent(share)}  `)))];
  if (A.rows.length) {
    const last = P.rows[A.rows[row]], shares = sharesOf(scoresOf(head, run, row, last.tokens.length - 1), head.sink);
    const rest = 1 - shares.reduce((a, b) => a + b, 0);
    parts.push(el("p", { class: "heat", "data-answer-row": run }, "Answer row: ", last.tokens.map((index, k) => heatToken(index, shares[k], 1, last.cue.includes(k) ? { class: "here" } : {}))), head.sink === null ? null : el("p", {}, `sink ${percent(rest)}`), el("div", { class: "scroll" }, patternPicture(head, run, row)));
  }
  parts.push(channels.length ? table([["q · k"], [""], ["share of the scores' variance", true], [""]], channels) : el("p", { class: "soft" }, "All scores of a prompt are alike: it attends to every token equally."));
  return el("div", {}, parts);
}

function drawAttention() {
  if (!A.heads.length) return clear(byId("attention"), el("p", { class: "soft" }, data.omitted.some((line) => line.startsWith("Left out attention")) ? "Left out: the page would be too large." : "The circuit keeps no node of any head."));
  const head = A.heads[Math.min(state.head, A.heads.length - 1)];
  if (!head.raw) head.raw = Object.fromEntries(Object.entries(head.runs).map(([run, one]) => [run, { q: numbers(one.q), k: numbers(one.k) }]));
  const kept = ["q", "k", "v"].map((kind) => `${kind} ${head.kept[kind].join(", ") || "none"}`).join(" · ");
  const label = (row) => { const one = P.rows[A.rows[row]]; return `${"AB"[row % 2]} of pair ${Math.floor(row / 2) + 1}, margin ${signed(one.margin, 2)}`; };
  clear(byId("attention-controls"),
    choice("Head", A.heads.map((one, n) => [n, `layer ${one.layer}, head ${one.head}`]), state.head, (n) => change({ head: Number(n) })),
    A.rows.length ? choice("Prompt", A.rows.map((_, row) => [row, label(row)]), state.prompt, (n) => change({ prompt: Number(n) })) : null,
    el("small", {}, `Kept channels of the head: ${kept}${head.sink === null ? "" : ` · sink logit ${figure(head.sink)}`}`));
  return clear(byId("attention"), el("div", { class: "sides" }, headSide(head, "circuit"), headSide(head, "model")));
}
