// The panels of the report. Points and lines are on canvases; tables show what fits and offer more.
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const looks = () => ({ sparse: css("--pos"), dense: css("--neg") });
const kindLook = (i, colours) => colours[W.kind.at(i)] || css("--accent");

function canvas(id, height, least = 300) {
  const made = byId(id), width = Math.max(least, made.parentElement.clientWidth), ratio = window.devicePixelRatio || 1;
  if (made.width !== Math.round(width * ratio) || made.height !== Math.round(height * ratio)) {
    made.width = Math.round(width * ratio); made.height = Math.round(height * ratio);
    made.style.width = `${width}px`; made.style.height = `${height}px`;
  }
  const pen = made.getContext("2d");
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, width, height);
  pen.font = "12px system-ui, sans-serif";
  return [pen, width, height];
}

function ticks(low, high, log) {
  if (log) {
    const found = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++) for (const step of [1, 2, 5]) { const value = step * 10 ** power; if (value >= low && value <= high) found.push(value); }
    return found;
  }
  const rough = (high - low) / 6 || 1, power = 10 ** Math.floor(Math.log10(rough)), step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough);
  const found = [];
  for (let value = Math.ceil(low / step) * step; value <= high + 1e-9; value += step) found.push(value);
  return found;
}

function frame(pen, width, height, x, y, labels) {
  const box = { left: 58, right: width - 30, top: 12, bottom: height - 40 };
  const along = (axis, value) => (axis.log ? Math.log(value) - Math.log(axis.low) : value - axis.low) / ((axis.log ? Math.log(axis.high) - Math.log(axis.low) : axis.high - axis.low) || 1);
  const px = (value) => box.left + along(x, value) * (box.right - box.left), py = (value) => box.bottom - along(y, value) * (box.bottom - box.top);
  pen.strokeStyle = css("--line"); pen.fillStyle = css("--soft"); pen.lineWidth = 1;
  pen.textAlign = "center";
  for (const value of ticks(x.low, x.high, x.log)) { pen.beginPath(); pen.moveTo(px(value), box.top); pen.lineTo(px(value), box.bottom); pen.stroke(); pen.fillText(figure(value), px(value), box.bottom + 16); }
  pen.textAlign = "right";
  for (const value of ticks(y.low, y.high, y.log)) { pen.beginPath(); pen.moveTo(box.left, py(value)); pen.lineTo(box.right, py(value)); pen.stroke(); pen.fillText(figure(value), box.left - 6, py(value) + 4); }
  pen.textAlign = "center";
  pen.fillText(labels[0], (box.left + box.right) / 2, height - 6);
  pen.save(); pen.translate(12, (box.top + box.bottom) / 2); pen.rotate(-Math.PI / 2); pen.fillText(labels[1], 0, 0); pen.restore();
  return [px, py, box];
}

function bounds(values, share = 0.06, log = false) {
  let low = Infinity, high = -Infinity;
  for (const value of values) if (Number.isFinite(value)) { low = Math.min(low, value); high = Math.max(high, value); }
  if (low > high) return null;
  if (log) return { low: low / 1.4, high: high * 1.4, log };
  const pad = (high - low || Math.abs(high) || 1) * share;
  return { low: low - pad, high: high + pad, log };
}

let spots = [], hovered = null;
function drawFrontier() {
  const [pen, width, height] = canvas("frontier", 430), colours = looks(), places = [];
  for (let i = 0; i < N; i++) if (edgesOf(i) >= 0 && Number.isFinite(T.val_loss[i])) places.push(i);
  spots = [];
  byId("frontier-note").textContent = `Down and to the left is better. Circles: sparse, squares: dense; joined: not dominated among the filtered trials; ring: chosen. ${method().note.replace(/^e/, "E")}.`;
  if (!places.length) { pen.fillStyle = css("--soft"); pen.textAlign = "center"; pen.fillText("no trial to compare yet", width / 2, height / 2); return; }
  const [px, py] = frame(pen, width, height, bounds(places.map((i) => T.val_loss[i])), bounds(places.map((i) => Math.max(1, edgesOf(i))), 0, true), ["validation loss (nats per token)", "circuit edges (geometric mean over common tasks)"]);
  const crowd = places.length > 400, size = crowd ? 2.2 : 5.5;
  const at = (i) => [px(T.val_loss[i]), py(Math.max(1, edgesOf(i)))];
  for (const shown of [0, 1]) for (const i of places) {
    if (mask[i] !== shown) continue;
    const [x, y] = at(i);
    pen.globalAlpha = shown ? (crowd ? 0.55 : 0.9) : 0.1;
    pen.fillStyle = kindLook(i, colours);
    if (W.kind.at(i) === "dense") pen.fillRect(x - size, y - size, 2 * size, 2 * size);
    else { pen.beginPath(); pen.arc(x, y, size, 0, 7); pen.fill(); }
    if (shown) spots.push([x, y, i]);
  }
  pen.globalAlpha = 1;
  pen.strokeStyle = css("--ink"); pen.lineWidth = 1.5;
  pen.beginPath();
  front.forEach((i, n) => { const [x, y] = at(i); if (n) { pen.lineTo(x, at(front[n - 1])[1]); pen.lineTo(x, y); } else pen.moveTo(x, y); });
  pen.stroke();
  for (const i of [...state.chosen, ...(hovered === null ? [] : [hovered])]) if (edgesOf(i) >= 0) {
    const [x, y] = at(i);
    pen.strokeStyle = css("--accent"); pen.lineWidth = 2.5;
    pen.beginPath(); pen.arc(x, y, size + 4, 0, 7); pen.stroke();
  }
}

function nearest(event) {
  const box = byId("frontier").getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top;
  let best = null, least = 14 ** 2;
  for (const [sx, sy, i] of spots) { const d = (sx - x) ** 2 + (sy - y) ** 2; if (d < least) { least = d; best = i; } }
  return best;
}

function frontierEvents() {
  const place = byId("frontier"), tipPlace = byId("tip");
  place.addEventListener("pointermove", (event) => {
    const found = nearest(event);
    if (found !== hovered) { hovered = found; drawFrontier(); }
    tipPlace.hidden = found === null;
    if (found === null) return;
    tipPlace.textContent = trialWords(found).join("\n");
    tipPlace.style.left = `${Math.max(4, Math.min(event.clientX + 16, innerWidth - tipPlace.offsetWidth - 8))}px`;
    tipPlace.style.top = `${Math.max(4, Math.min(event.clientY + 16, innerHeight - tipPlace.offsetHeight - 8))}px`;
  });
  place.addEventListener("pointerleave", () => { hovered = null; tipPlace.hidden = true; drawFrontier(); });
  place.addEventListener("click", (event) => { const found = nearest(event); if (found !== null) choose(found); });
  place.addEventListener("keydown", (event) => {
    if (!front.length || !["ArrowLeft", "ArrowRight", "Enter", "Escape"].includes(event.key)) return;
    event.preventDefault();
    if (event.key === "Escape") { hovered = null; tipPlace.hidden = true; change({ chosen: [] }, true); return; }
    if (event.key === "Enter") { if (hovered !== null) choose(hovered); return; }
    const at = front.indexOf(hovered), next = at < 0 ? 0 : Math.min(front.length - 1, Math.max(0, at + (event.key === "ArrowRight" ? 1 : -1)));
    hovered = front[next];
    drawFrontier();
    const spot = spots.find(([, , i]) => i === hovered), box = place.getBoundingClientRect();
    tipPlace.textContent = trialWords(hovered).join("\n"); tipPlace.hidden = false;
    tipPlace.style.left = `${Math.min(box.left + spot[0] + 14, innerWidth - tipPlace.offsetWidth - 8)}px`; tipPlace.style.top = `${Math.min(box.top + spot[1] + 14, innerHeight - tipPlace.offsetHeight - 8)}px`;
  });
}

function drawChosen() {
  const list = state.chosen.length ? state.chosen : front.slice(0, 12);
  clear(byId("chosen"), el("h3", {}, state.chosen.length ? `Chosen (${state.chosen.length})` : `On the front (${front.length})`),
    list.length ? list.map((i) => { const [, ...rest] = trialWords(i); return el("div", {}, el("button", { class: "link", onclick: () => choose(i) }, label(i)), el("p", {}, el("small", {}, rest.flatMap((line, n) => n ? [el("br"), line] : [line])))); }) : el("p", { class: "soft" }, "No trial that can be compared passes the filter."),
    state.chosen.length ? el("button", { onclick: () => change({ chosen: [] }, true) }, "choose none") : el("p", { class: "soft" }, "Click points to choose trials: they stand out in all panels."));
}

function drawCounts() {
  const shown = mask.reduce((a, b) => a + b, 0), counts = W.status.words.map((word, n) => [word || "?", W.status.numbers.reduce((sum, at) => sum + (at === n), 0)]).filter(([, n]) => n);
  clear(byId("counts"), [["trials", N], ["pass the filter", shown], ...counts, ["on the front", front.length]].map(([name, n]) => el("div", {}, el("dt", {}, name), el("dd", {}, n.toLocaleString("en")))));
}

function filterControls() {
  const kinds = W.kind.words.filter(Boolean), text = el("input", { type: "search", placeholder: "trial's key", "aria-label": "filter by trial's key", value: state.text, oninput: (event) => change({ text: event.target.value }) });
  const solved = el("input", { type: "number", min: 0, max: 999, value: state.solved || "", "aria-label": "least tasks solved", oninput: (event) => change({ solved: Number(event.target.value) || 0 }) });
  clear(byId("filter"), choice("Circuits of method", methods.map((one) => [one.method, one.method]), state.method, (value) => change({ method: value })),
    choice("Kind", [["", "all"], ...kinds.map((kind) => [kind, kind])], state.kinds, (value) => change({ kinds: value })),
    el("label", {}, "Solves at least", solved, "tasks"), el("label", {}, "Key", text),
    el("span", { id: "ranges" }), el("button", { id: "reset", onclick: () => { change({ ...EMPTY, ranges: {}, chosen: [] }, true); filterControls(); } }, "reset"));
}

function drawRanges() {
  if (!byId("ranges")) return;
  clear(byId("ranges"), Object.entries(state.ranges).map(([name, [low, high]]) => el("button", { title: "remove this range", onclick: () => { const ranges = { ...state.ranges }; delete ranges[name]; change({ ranges }); } }, `${name} ${figure(low)} to ${figure(high)} ✕`)));
}

let rowsShown = 40;
function drawTasks() {
  const m = method(), K = m.tasks.length;
  if (!K) return clear(byId("tasks"), el("p", { class: "soft" }, "No circuits were looked for."));
  const keys = { val_loss: (i) => T.val_loss[i], edges: edgesOf, tasks_solved: (i) => -T.tasks_solved[i], finished: (i) => T.finished[i] }, key = keys[state.sort];
  const value = (i) => { const found = key(i); return found === found ? found : Infinity; };
  const order = [];
  for (let i = 0; i < N; i++) if (mask[i] && W.status.at(i) === "ok") order.push(i);
  order.sort((a, b) => state.chosen.includes(b) - state.chosen.includes(a) || value(a) - value(b) || a - b);
  const head = el("tr", {}, el("th", {}, "trial"), el("th", { class: "n" }, "val loss"), el("th", { class: "n" }, "edges"), m.tasks.map((task) => el("th", { class: "task", scope: "col" }, task)));
  const body = order.slice(0, rowsShown).map((i) => el("tr", { class: state.chosen.includes(i) ? "chosen" : undefined }, el("td", {}, el("button", { class: "link", onclick: () => choose(i) }, label(i)), el("small", {}, ` ${W.kind.at(i)}`)), el("td", { class: "n" }, figure(T.val_loss[i], 4)), el("td", { class: "n" }, edgesOf(i) >= 0 ? figure(edgesOf(i)) : "–"), m.tasks.map((_, k) => cell(m, i, k))));
  const more = order.length > rowsShown ? el("button", { onclick: () => { rowsShown += 100; drawTasks(); } }, `show ${Math.min(100, order.length - rowsShown)} more of ${order.length.toLocaleString("en")}`) : null;
  return clear(byId("tasks"), el("div", { class: "controls" }, choice("Sorted by", [["val_loss", "validation loss"], ["edges", "edges"], ["tasks_solved", "tasks solved"], ["finished", "time"]], state.sort, (sort) => change({ sort }))),
    el("div", { class: "scroll" }, el("table", { class: "grid-table" }, el("thead", {}, head), el("tbody", {}, body))), el("p", {}, more), el("p", { id: "command" }));
}

function cell(m, i, k) {
  const place = i * m.tasks.length + k, size = m.cells[place], status = m.status.at(place);
  if (size === 65535) return el("td", { class: "cell", title: `${m.tasks[k]}: ${status || "not looked for"}` }, status === "unsolved" ? "·" : status ? "✗" : "");
  const [yes, no] = proofsOf(m.summary.at(place)), share = yes.length / ((yes.length + no.length) || 1);
  const words = `${m.tasks[k]} in ${label(i)}: ${size} edges\npasses ${yes.join(", ") || "none"}\nfails ${no.join(", ") || "none"}`;
  const name = `circuits/${several ? `${W.study.at(i)}/` : ""}${KEYS[i]}/${m.tasks[k]}${m.suffix}.html`;
  const inner = Object.hasOwn(data.pages, name) ? el("a", { href: name.split("/").map(encodeURIComponent).join("/") }, size) : el("button", { onclick: () => showCommand(m, i, k, name) }, size);
  const made = el("td", { class: "cell", title: words }, inner);
  made.style.backgroundColor = `rgba(var(--pos-rgb), ${(0.06 + 0.5 * share ** 2).toFixed(2)})`;
  if (no.length) made.style.boxShadow = `inset 0 -2px 0 ${css("--neg")}`;
  return made;
}

function showCommand(m, i, k, name) {
  const root = data.uris[Math.max(0, data.names.indexOf(W.study.at(i)))] || data.uris[0], quoted = (text) => /^[\w./:@%+=,-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
  const line = ["sweeps circuit page", quoted(`${root}/circuits/${KEYS[i]}/${m.tasks[k]}${m.suffix}.json`), "--model", quoted(`${root}/models/${KEYS[i]}`), "--out", quoted(`${data.out}/${name}`)].join(" ");
  clear(byId("command"), `The page of ${m.tasks[k]} in ${label(i)} is not drawn yet. This draws it:`, el("code", { class: "command" }, line));
  byId("command").scrollIntoView({ block: "nearest" });
}

const curveOf = new Map(data.curves.trials.map((i, n) => [i, n]));
const curveColumns = { tokens: column(data.curves.tokens), train: column(data.curves.train), val: column(data.curves.val) };
function drawCurves() {
  const [pen, width, height] = canvas("curves", 330), colours = looks(), shown = [];
  for (const i of data.curves.trials) if (mask[i]) shown.push(i);
  if (!shown.length) { pen.fillStyle = css("--soft"); pen.textAlign = "center"; pen.fillText(data.curves.trials.length ? "no curve passes the filter" : "no learning curves are stored with these results", width / 2, height / 2); return; }
  const { tokens, train, val } = curveColumns, losses = [], counts = [];
  const points = (i) => { const n = curveOf.get(i); return [data.curves.starts[n], data.curves.starts[n + 1]]; };
  for (const i of shown) { const [a, b] = points(i); for (let p = a; p < b; p++) { losses.push(train[p]); counts.push(tokens[p]); } }
  const x = bounds(counts, 0), y = bounds(losses, 0, true);
  if (!x || !y) return;
  x.low = 0; y.low *= 1.3; y.high /= 1.3;
  const [px, py] = frame(pen, width, height, x, y, ["training tokens", "loss (nats per token)"]);
  const line = (i, column, look, alpha, weight, dash = []) => {
    const [a, b] = points(i);
    pen.strokeStyle = look; pen.globalAlpha = alpha; pen.lineWidth = weight; pen.setLineDash(dash);
    pen.beginPath();
    let begun = false;
    for (let p = a; p < b; p++) if (column[p] === column[p]) { if (begun) pen.lineTo(px(tokens[p]), py(column[p])); else { pen.moveTo(px(tokens[p]), py(column[p])); begun = true; } }
    pen.stroke();
  };
  const faint = Math.max(0.02, Math.min(0.7, 40 / shown.length)) * (state.chosen.length ? 0.4 : 1);
  for (const i of shown) line(i, train, kindLook(i, colours), faint, shown.length > 60 ? 0.8 : 1.4);
  for (const i of state.chosen) if (curveOf.has(i)) { line(i, train, css("--accent"), 1, 2.4); line(i, val, css("--accent"), 1, 1.6, [5, 4]); }
  pen.globalAlpha = 1; pen.setLineDash([]);
}

let brushing = null, axisPlaces = [];
function drawParallel() {
  const all = [...axes, { name: "val_loss", values: T.val_loss }, { name: "edges", values: { at: edgesOf }, log: true }];
  const [pen, width, height] = canvas("parallel", 340, Math.max(320, all.length * 92)), colours = looks(), top = 44, bottom = height - 46, none = height - 22;
  const get = (axis, i) => axis.name === "edges" ? edgesOf(i) : axis.values[i];
  axisPlaces = all.map((axis, n) => {
    const values = [];
    for (let i = 0; i < N; i++) values.push(get(axis, i));
    const log = axis.log || (!axis.words && logarithmic(values)), range = bounds(values, 0, false) || { low: 0, high: 1 };
    if (range.low === range.high) { range.low -= 0.5; range.high += 0.5; }
    const low = log ? Math.log(Math.max(1e-12, range.low > 0 ? range.low : 1)) : range.low, high = log ? Math.log(range.high) : range.high;
    const place = (value) => Number.isFinite(value) ? bottom - ((log ? Math.log(Math.max(1e-12, value)) : value) - low) / ((high - low) || 1) * (bottom - top) : none;
    const back = (y) => { const v = low + (bottom - y) / (bottom - top) * (high - low); return log ? Math.exp(v) : v; };
    return { axis, x: 46 + n * (width - 92) / Math.max(1, all.length - 1), place, back, range };
  });
  const line = (i) => axisPlaces.forEach((one, n) => pen[n ? "lineTo" : "moveTo"](one.x, one.place(get(one.axis, i))));
  for (const shown of [0, 1]) for (let i = 0; i < N; i++) {
    if (mask[i] !== shown || (!shown && N > 2000)) continue;
    pen.globalAlpha = shown ? Math.max(0.04, Math.min(0.75, 60 / N)) : 0.06; pen.strokeStyle = kindLook(i, colours); pen.lineWidth = N > 500 ? 0.7 : 1.5;
    pen.beginPath(); line(i); pen.stroke();
  }
  pen.globalAlpha = 1;
  for (const i of state.chosen) { pen.strokeStyle = css("--accent"); pen.lineWidth = 2.6; pen.beginPath(); line(i); pen.stroke(); }
  pen.textAlign = "center";
  for (const one of axisPlaces) {
    const name = one.axis.name.replace(/^(training|model)\./, "");
    pen.strokeStyle = css("--soft"); pen.lineWidth = 1.2; pen.beginPath(); pen.moveTo(one.x, top); pen.lineTo(one.x, bottom); pen.stroke();
    pen.fillStyle = css("--ink"); pen.font = "600 12px system-ui, sans-serif"; pen.fillText(name, one.x, 14); pen.font = "11px system-ui, sans-serif"; pen.fillStyle = css("--soft");
    if (one.axis.words) one.axis.words.slice(0, 12).forEach((word, n) => word && pen.fillText(word.slice(0, 12), one.x, one.place(n) - 3));
    else { pen.fillText(figure(one.range.high), one.x, top - 8); pen.fillText(figure(one.range.low), one.x, bottom + 13); }
    const range = state.ranges[one.axis.name];
    if (range) { pen.fillStyle = css("--accent"); pen.globalAlpha = 0.3; pen.fillRect(one.x - 7, one.place(range[1]), 14, Math.max(3, one.place(range[0]) - one.place(range[1]))); pen.globalAlpha = 1; }
    if (one.axis !== all[all.length - 2] && one.axis !== all[all.length - 1]) { pen.fillStyle = css("--faint"); pen.fillText("none", one.x, none + 14); }
  }
}

function logarithmic(values) {
  let low = Infinity, high = 0;
  for (const value of values) if (value > 0) { low = Math.min(low, value); high = Math.max(high, value); } else if (value <= 0) return false;
  return high / low > 20;
}

function parallelEvents() {
  const place = byId("parallel"), point = (event) => { const box = place.getBoundingClientRect(); return [event.clientX - box.left, event.clientY - box.top]; };
  place.addEventListener("pointerdown", (event) => {
    const [x, y] = point(event), one = axisPlaces.find((axis) => Math.abs(axis.x - x) < 16);
    if (one) { brushing = { one, y }; place.setPointerCapture(event.pointerId); }
  });
  place.addEventListener("pointerup", (event) => {
    if (!brushing) return;
    const { one, y } = brushing, [, end] = point(event), ranges = { ...state.ranges }, name = one.axis.name;
    brushing = null;
    if (Math.abs(end - y) < 4) delete ranges[name];
    else { const values = [one.back(y), one.back(end)].sort((a, b) => a - b); ranges[name] = values.map((v) => Number(v.toPrecision(6))); }
    change({ ranges });
  });
}

function drawImportances() {
  const { rows, why } = data.importances;
  clear(byId("importances"), rows.length ? table([["parameter"], ["kind"], ["trials", true], ["validation loss", true], [""], ["edges", true], [""]], rows.map((row) => [row.parameter, row.kind, row.trials, percent(row.val_loss), share(row.val_loss), percent(row.circuit_edges), share(row.circuit_edges)])) : el("p", { class: "soft" }, why));
}
const share = (value) => svg("svg", { width: 70, height: 10, "aria-hidden": true }, svg("rect", { class: "fill-pos", width: Math.max(1, 70 * (value || 0)), height: 10 }));

function drawHypervolume() {
  const points = data.hypervolume.flatMap(([n, value], i) => i ? [[n, data.hypervolume[i - 1][1]], [n, value]] : [[n, value]]);
  clear(byId("hypervolume"), plot([{ look: "pos", points }], { width: 460, height: 220, x: "trials finished", y: "nats × decades", marks: points.length < 40 }));
}

function drawFailed() {
  const bad = [];
  for (let i = 0; i < N; i++) if (mask[i] && W.status.at(i) !== "ok") bad.push(i);
  clear(byId("failed"), bad.length ? [table([["trial"], ["kind"], ["status"], ["reason"]], bad.slice(0, 200).map((i) => [el("button", { class: "link", onclick: () => choose(i) }, label(i)), W.kind.at(i), W.status.at(i), el("span", { class: "wrap" }, W.reason.at(i))]), { class: "tall" }), bad.length > 200 ? el("p", { class: "soft" }, `${(bad.length - 200).toLocaleString("en")} more: narrow the filter`) : null] : el("p", { class: "soft" }, "None of those that pass the filter."));
}

function csv() {
  const names = ["val_loss", "tasks_solved", "circuit_edges", "l0", "tokens", "d_model", "n_layer", "fraction", "train_seconds", "prune_seconds"];
  const quoted = (value) => value === null || value === undefined || Number.isNaN(value) ? "" : /[",\n\r]/.test(String(value)) ? `"${String(value).replaceAll('"', '""')}"` : /^[=+@\t-]/.test(String(value)) && typeof value === "string" ? `'${value}` : String(value);
  const lines = [["study", "trial", "kind", "status", "reason", "edges", ...names, ...axes.map((axis) => axis.name)].map(quoted).join(",")];
  for (let i = 0; i < N; i++) if (mask[i]) lines.push([W.study.at(i), KEYS[i], W.kind.at(i), W.status.at(i), W.reason.at(i), edgesOf(i), ...names.map((name) => T[name][i]), ...axes.map((axis) => Number.isNaN(axis.values[i]) ? "" : axis.words ? axis.words[axis.numbers[i]] : axis.values[i])].map(quoted).join(","));
  const address = URL.createObjectURL(new Blob([`${lines.join("\r\n")}\r\n`], { type: "text/csv" }));
  el("a", { href: address, download: "trials.csv" }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
}

// Thousands of lines are drawn only while they can be seen; what has changed meanwhile is drawn when they come into sight.
function whenSeen(id, draw) {
  let seen = false, stale = true;
  const drawn = () => { if (seen) { stale = false; draw(); byId(id).dataset.drawn = "true"; } else stale = true; };
  new IntersectionObserver((entries) => { seen = entries[entries.length - 1].isIntersecting; if (seen && stale) drawn(); }, { rootMargin: "200px" }).observe(byId(id).parentElement);
  addEventListener("beforeprint", () => { if (stale) { stale = false; draw(); } });
  byId(id).style.height = byId(id).style.height || "330px";
  return drawn;
}

panels.push(drawCounts, drawRanges, drawFrontier, drawChosen, drawTasks, whenSeen("curves", drawCurves), whenSeen("parallel", drawParallel), drawFailed);
readFragment();
filterControls();
frontierEvents();
parallelEvents();
drawImportances();
drawHypervolume();
filtered();
panels.forEach((draw) => draw());
byId("csv").addEventListener("click", csv);
window.addEventListener("popstate", () => { readFragment(); filterControls(); drawAll(); });
window.addEventListener("resize", drawAll);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
for (const link of document.querySelectorAll(".bar a")) link.addEventListener("click", (event) => { event.preventDefault(); byId(link.getAttribute("href").slice(1)).scrollIntoView(); });
