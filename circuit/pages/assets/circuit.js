// The page: its state, which lives in the address's fragment, and the reader's notes.
const EMPTY = { node: null, width: "weight", cone: "both", least: 0, sort: "worst", all: false, head: 0, prompt: 0 };
const FIELDS = { width: ["weight", "effect"], cone: ["both", "below", "above", "off"], sort: ["worst", "best", "model"] };
const KINDS_OF_NOTES = ["names", "groups", "notes"];
let state = { ...EMPTY };
let notes = readNotes(data.notes);

function readNotes(raw) {
  const known = new Set(["", ...(data.graph ? data.graph.nodes.map((node) => `${node[0]}.${node[1]}`) : [])]);
  const found = {};
  for (const kind of KINDS_OF_NOTES) {
    const given = raw && typeof raw[kind] === "object" && raw[kind] !== null ? Object.entries(raw[kind]) : [];
    found[kind] = Object.fromEntries(given.filter(([name, text]) => known.has(name) && typeof text === "string" && text).map(([name, text]) => [name, text.slice(0, kind === "notes" ? 4000 : 60)]));
  }
  return found;
}

// Notes are in the fragment where they differ from those the page came with.
function fragment() {
  const parts = new URLSearchParams();
  if (state.node !== null) parts.set("node", fullName(state.node));
  for (const name of ["width", "cone", "sort", "least", "all", "head", "prompt"]) if (state[name] !== EMPTY[name]) parts.set(name, state[name]);
  if (JSON.stringify(notes) !== JSON.stringify(readNotes(data.notes))) parts.set("notes", JSON.stringify(notes));
  return `#${parts}`;
}

function readFragment() {
  const raw = location.hash.slice(1);
  if (raw.endsWith("-part") && !raw.includes("=")) return;
  const parts = new URLSearchParams(raw), found = { ...EMPTY };
  const node = G.nodes.findIndex((_, i) => fullName(i) === parts.get("node"));
  found.node = node < 0 ? null : node;
  for (const [name, allowed] of Object.entries(FIELDS)) if (allowed.includes(parts.get(name))) found[name] = parts.get(name);
  for (const [name, most] of [["least", Infinity], ["head", A.heads.length - 1], ["prompt", A.rows.length - 1]]) {
    const value = Number(parts.get(name));
    if (Number.isFinite(value) && value >= 0 && value <= most) found[name] = value;
  }
  found.all = parts.get("all") === "true";
  try { notes = readNotes(parts.has("notes") ? JSON.parse(parts.get("notes")) : data.notes); } catch { notes = readNotes(data.notes); }
  state = found;
}

// A choice of node is a step that "back" undoes; everything else replaces the address.
function select(i) { change({ node: i }, true); }

function change(changes, step = false) {
  const before = state;
  state = { ...state, ...changes };
  if (step && before.node !== state.node) history.pushState(null, "", fragment());
  else history.replaceState(null, "", fragment());
  draw(before);
}

function draw(before) {
  const changed = (...names) => !before || names.some((name) => before[name] !== state[name]);
  paintGraph();
  if (changed("node")) drawPanel();
  if (changed("node", "sort", "all")) drawPrompts();
  if (changed("head", "prompt")) drawAttention();
}

function drawAll() {
  graphControls();
  draw(null);
  drawAblations();
  drawNotes();
}

function setNote(kind, name, text) {
  notes = { ...notes, [kind]: { ...notes[kind], [name]: text } };
  if (!text) delete notes[kind][name];
  history.replaceState(null, "", fragment());
  paintGraph();
  drawNotes();
}

function nameFields(name) {
  const field = (kind, label, attributes) => el(kind === "notes" ? "textarea" : "input", { "aria-label": label, placeholder: label, maxlength: kind === "notes" ? 4000 : 60, onchange: (event) => setNote(kind, name, event.target.value), ...attributes });
  const named = field("names", "a name of your own", { class: "name-input" }), group = field("groups", "group", {}), note = field("notes", "note", { rows: 2 });
  named.value = notes.names[name] || ""; group.value = notes.groups[name] || ""; note.value = notes.notes[name] || "";
  return el("details", { open: Boolean(notes.names[name] || notes.groups[name] || notes.notes[name]) }, el("summary", {}, "Name, group, note"), named, group, note);
}

function drawNotes() {
  const named = G.nodes.map((_, i) => i).filter((i) => KINDS_OF_NOTES.some((kind) => notes[kind][fullName(i)]));
  // made once: a reader may be writing in it while notes on nodes change
  const whole = byId("whole-note") || el("textarea", { "aria-label": "note on the circuit", placeholder: "What this circuit does, in your words", maxlength: 4000, id: "whole-note", onchange: (event) => setNote("notes", "", event.target.value) });
  if (document.activeElement !== whole) whole.value = notes.notes[""] || "";
  if (!byId("whole-note")) byId("notes").append(whole, el("div", { id: "notes-list" }));
  const groups = [...new Set(named.map((i) => notes.groups[fullName(i)] || ""))].sort();
  clear(byId("notes-list"),
    groups.map((group) => el("div", {}, el("h3", {}, group || (named.length ? "without a group" : "")),
      table([["node"], ["name"], ["note"], ["loss when ablated", true]], named.filter((i) => (notes.groups[fullName(i)] || "") === group).map((i) => [nodeLink(i, fullName(i)), notes.names[fullName(i)] || "", notes.notes[fullName(i)] || "", signed(effects[i][0])])))),
    el("p", {}, el("button", { id: "download", onclick: download }, "Download notes as JSON"), " ", el("small", {}, "They are also in this page's address. `sweeps circuit page … --notes FILE` puts a downloaded file into a new page.")));
}

function download() {
  const content = { format: "circuit-sweeps/notes", version: 1, task: data.notes.task, model: data.notes.model, ...notes };
  const address = URL.createObjectURL(new Blob([JSON.stringify(content, null, 1)], { type: "application/json" }));
  el("a", { href: address, download: `${data.head.task.replace(/[^\w.-]+/g, "_")}-notes.json` }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
}

if (data.graph) {
  readFragment();
  drawGraph();
  drawAll();
  zoom(null);
  const again = () => { if (location.hash.endsWith("-part")) return; readFragment(); drawAll(); };
  window.addEventListener("popstate", again);
  for (const link of document.querySelectorAll(".bar a")) {
    link.addEventListener("click", (event) => { event.preventDefault(); byId(link.getAttribute("href").slice(1)).scrollIntoView(); });
  }
  window.addEventListener("resize", () => zoom(null));
}
