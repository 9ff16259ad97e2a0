// The study's columns, the one filter and the one selection of all panels. State lives in the address's fragment.
function column(packed) {
  const kind = packed.f4 !== undefined ? "f4" : "u2", raw = atob(packed[kind]), bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  return kind === "f4" ? new Float32Array(bytes.buffer) : new Uint16Array(bytes.buffer);
}
function wordColumn(packed) {
  const numbers = column(packed);
  return { at: (i) => packed.words[numbers[i]], words: packed.words, numbers };
}

const N = data.trials.n, KEYS = data.trials.trial;
const T = Object.fromEntries(Object.entries(data.trials).filter(([, packed]) => packed.f4 !== undefined).map(([name, packed]) => [name, column(packed)]));
const W = Object.fromEntries(["study", "kind", "status", "reason"].map((name) => [name, wordColumn(data.trials[name])]));
const several = data.names.length > 1;
const label = (i) => several ? `${W.study.at(i)} / ${KEYS[i]}` : KEYS[i];
const methods = data.methods.map((one) => ({ ...one, edges: column(one.edges), cells: column(one.cells), summary: wordColumn(one.summary), status: wordColumn(one.status) }));
const axes = data.axes.map((one) => one.words ? { name: one.name, ...wordColumn(one), text: (i) => one.words[column(one)[i]] } : { name: one.name, values: column(one) });
for (const axis of axes) if (axis.words) { const numbers = axis.numbers; axis.values = Float32Array.from(numbers, (n) => axis.words[n] === "" ? NaN : n); }
const axisText = (axis, i) => Number.isNaN(axis.values[i]) ? null : axis.words ? axis.words[axis.numbers[i]] : figure(axis.values[i]);

const EMPTY = { method: methods[0].method, kinds: "", text: "", ranges: {}, chosen: [], solved: 0, sort: "val_loss" };
let state = { ...EMPTY };
let mask = new Uint8Array(N).fill(1), front = [];
const panels = [];

const method = () => methods.find((one) => one.method === state.method) || methods[0];
const edgesOf = (i) => method().edges[i];
const rangeColumns = { val_loss: (i) => T.val_loss[i], edges: edgesOf };
axes.forEach((axis) => { rangeColumns[axis.name] = (i) => axis.values[i]; });

function filtered() {
  const text = state.text.toLowerCase(), ranges = Object.entries(state.ranges);
  mask = new Uint8Array(N);
  for (let i = 0; i < N; i++) {
    if (state.kinds && W.kind.at(i) !== state.kinds) continue;
    if (state.solved && !(T.tasks_solved[i] >= state.solved)) continue;
    if (text && !label(i).toLowerCase().includes(text)) continue;
    if (ranges.some(([name, [low, high]]) => { const value = rangeColumns[name](i); return !(value >= low && value <= high); })) continue;
    mask[i] = 1;
  }
  front = frontOf();
}

// Not bettered in one figure without being worse in the other, among the filtered trials that are compared.
function frontOf() {
  const order = [];
  for (let i = 0; i < N; i++) if (mask[i] && edgesOf(i) >= 0 && T.val_loss[i] === T.val_loss[i]) order.push(i);
  order.sort((a, b) => T.val_loss[a] - T.val_loss[b] || edgesOf(a) - edgesOf(b));
  const found = [];
  let best = Infinity, last = -1;
  for (const i of order) {
    const size = edgesOf(i);
    if (size < best) { best = size; last = i; found.push(i); }
    else if (size === best && T.val_loss[i] === T.val_loss[last]) found.push(i);
  }
  return found;
}

function fragment() {
  const parts = new URLSearchParams();
  for (const name of ["method", "kinds", "text", "solved", "sort"]) if (state[name] !== EMPTY[name]) parts.set(name, state[name]);
  for (const [name, [low, high]] of Object.entries(state.ranges)) parts.append("range", `${name}:${low}:${high}`);
  if (state.chosen.length) parts.set("trials", state.chosen.map((i) => label(i)).join(","));
  return `#${parts}`;
}

function readFragment() {
  const parts = new URLSearchParams(location.hash.slice(1)), found = { ...EMPTY, ranges: {}, chosen: [] };
  if (methods.some((one) => one.method === parts.get("method"))) found.method = parts.get("method");
  if (W.kind.words.includes(parts.get("kinds"))) found.kinds = parts.get("kinds");
  found.text = (parts.get("text") || "").slice(0, 200);
  const solved = Number(parts.get("solved"));
  if (solved > 0) found.solved = solved;
  if (["val_loss", "edges", "tasks_solved", "finished"].includes(parts.get("sort"))) found.sort = parts.get("sort");
  for (const range of parts.getAll("range")) {
    const [high, low, ...name] = range.split(":").reverse(), known = name.reverse().join(":");
    if (rangeColumns[known] && Number.isFinite(Number(low)) && Number.isFinite(Number(high))) found.ranges[known] = [Number(low), Number(high)];
  }
  const wanted = new Set((parts.get("trials") || "").split(","));
  if (parts.has("trials")) for (let i = 0; i < N; i++) if (wanted.has(label(i))) found.chosen.push(i);
  state = found;
}

function change(changes, step = false) {
  state = { ...state, ...changes };
  history[step ? "pushState" : "replaceState"](null, "", fragment());
  drawAll();
}
function choose(i) { change({ chosen: state.chosen.includes(i) ? state.chosen.filter((j) => j !== i) : [...state.chosen, i] }, true); }

let waiting = 0;
function drawAll() {
  filtered();
  cancelAnimationFrame(waiting);
  waiting = requestAnimationFrame(() => panels.forEach((draw) => draw()));
}

// Proofs of a cell, read from its words: [passed, failed] as lists of names.
function proofsOf(text) {
  const part = (said) => { const found = text.split("; ").find((one) => one.startsWith(said)); return found ? found.slice(said.length).trim().split(", ") : []; };
  return [part("passes "), part("fails ")];
}

function trialWords(i) {
  const m = method(), K = m.tasks.length, lines = [label(i), `${W.kind.at(i)} · ${W.status.at(i)} · width ${figure(T.d_model[i])} · ${figure(T.n_layer[i])} layers · fraction ${figure(T.fraction[i])}`];
  lines.push(`validation loss ${figure(T.val_loss[i], 4)} nats · ${figure(T.tasks_solved[i])} of ${figure(T.tasks_tried[i])} tasks solved`);
  if (edgesOf(i) >= 0) lines.push(`${figure(edgesOf(i))} edges over the common tasks (${m.method})`);
  if (T.circuit_edges[i] >= 0) lines.push(`${figure(T.circuit_edges[i])} edges over its own solved tasks, 95% interval ${figure(T.circuit_edges_low[i])} to ${figure(T.circuit_edges_high[i])}`);
  const drawn = axes.map((axis) => [axis.name, axisText(axis, i)]).filter(([, text]) => text !== null).map(([name, text]) => `${name} ${text}`);
  if (drawn.length) lines.push(drawn.join(" · "));
  const passed = new Map(), measured = new Map();
  for (let k = 0; k < K; k++) {
    const [yes, no] = proofsOf(m.summary.at(i * K + k));
    for (const name of [...yes, ...no]) measured.set(name, (measured.get(name) || 0) + 1);
    for (const name of yes) passed.set(name, (passed.get(name) || 0) + 1);
  }
  if (measured.size) lines.push(`proofs passed: ${[...measured].map(([name, of]) => `${name} ${passed.get(name) || 0}/${of}`).join(", ")}`);
  return lines;
}
