// What every page needs: the data, elements, numbers as text, plots. Text of tokens only ever becomes a text node.
const data = JSON.parse(document.getElementById("data").textContent);
const SVG = "http://www.w3.org/2000/svg";

function fill(made, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children.flat()) {
    if (child !== null && child !== undefined) made.append(child);
  }
  return made;
}

const el = (name, attributes, ...children) => fill(document.createElement(name), attributes, children);
const svg = (name, attributes, ...children) => fill(document.createElementNS(SVG, name), attributes, children);
const byId = (id) => document.getElementById(id);
const clear = (place, ...children) => { place.replaceChildren(...children.flat().filter((child) => child !== null)); return place; };

function figure(value, digits = 3) {
  if (value === null || value === undefined) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e5 || size < 1e-3) return value.toExponential(1);
  return Number(value.toPrecision(digits)).toLocaleString("en", { maximumSignificantDigits: digits });
}
const signed = (value, digits = 3) => (value > 0 ? "+" : "") + figure(value, digits);
const percent = (value) => value === null || value === undefined ? "–" : `${(100 * value).toFixed(value < 0.1 && value > 0 ? 1 : 0)}%`;

function numbers(text) {
  const raw = atob(text), bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  return new Int16Array(bytes.buffer);
}

function token(index, attributes) {
  const text = typeof index === "number" ? data.tokens[index] : index;
  return el("bdi", { class: "token", ...attributes }, text);
}

// A table: columns are [heading, numeric]; cells are texts or elements.
function table(columns, rows, attributes) {
  const kind = (i) => columns[i][1] ? "n" : undefined;
  const head = el("tr", {}, columns.map(([name], i) => el("th", { class: kind(i), scope: "col" }, name)));
  const body = rows.map((row) => el("tr", {}, row.map((cell, i) => el("td", { class: kind(i) }, cell))));
  return el("div", { class: "scroll", ...attributes }, el("table", {}, el("thead", {}, head), el("tbody", {}, body)));
}

function choice(label, options, value, changed) {
  const select = el("select", { "aria-label": label, onchange: () => changed(select.value) },
    options.map(([key, text]) => el("option", { value: key, selected: String(key) === String(value) }, text)));
  return el("label", {}, label, select);
}

const tipBox = byId("tip");
function tip(target, words) {
  if (!tipBox) return;
  const show = (event) => {
    const said = words();
    if (!said) return;
    tipBox.textContent = said;
    tipBox.hidden = false;
    const box = event.type === "focus" ? target.getBoundingClientRect() : { right: event.clientX, bottom: event.clientY };
    tipBox.style.left = `${Math.max(4, Math.min(box.right + 14, window.innerWidth - tipBox.offsetWidth - 8))}px`;
    tipBox.style.top = `${Math.max(4, Math.min(box.bottom + 14, window.innerHeight - tipBox.offsetHeight - 8))}px`;
  };
  const hide = () => { tipBox.hidden = true; };
  target.addEventListener("pointerenter", show);
  target.addEventListener("pointermove", show);
  target.addEventListener("pointerleave", hide);
  target.addEventListener("focus", show);
  target.addEventListener("blur", hide);
}

// Lines over an axis: series are {name, class, points: [[x, y]], dash}.
function plot(series, { width = 380, height = 170, x, y, marks = true, zero = false, log = false }) {
  const left = 52, right = 12, top = 10, bottom = 36;
  const points = series.flatMap((one) => one.points).filter(([, v]) => v !== null && isFinite(v));
  if (!points.length) return el("p", { class: "soft" }, "nothing to draw");
  const across = (v) => log ? Math.log10(Math.max(1, v)) : v;
  const xs = points.map(([a]) => across(a)), ys = points.map(([, b]) => b).concat(zero ? [0] : []);
  const [x0, x1, y0, y1] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
  const pad = (y1 - y0 || Math.abs(y1) || 1) * 0.06;
  const px = (v) => left + (across(v) - x0) / (x1 - x0 || 1) * (width - left - right);
  const py = (v) => height - bottom - (v - y0 + pad) / (y1 - y0 + 2 * pad) * (height - bottom - top);
  const made = svg("svg", { class: "plot", viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": `${y} over ${x}` });
  for (const value of [y0, (y0 + y1) / 2, y1]) {
    made.append(svg("line", { class: "axis", x1: left, x2: width - right, y1: py(value), y2: py(value) }),
      svg("text", { x: left - 6, y: py(value) + 4, "text-anchor": "end" }, figure(value, 2)));
  }
  const ends = x1 > x0 ? [x0, x1] : [x0];
  ends.forEach((value, i) => made.append(svg("text", { x: left + (i ? width - left - right : 0), y: height - bottom + 15, "text-anchor": i ? "end" : "start" }, figure(log ? 10 ** value : value))));
  made.append(svg("text", { x: (left + width - right) / 2, y: height - 6, "text-anchor": "middle" }, x),
    svg("text", { x: 11, y: (top + height - bottom) / 2, "text-anchor": "middle", transform: `rotate(-90 11 ${(top + height - bottom) / 2})` }, y));
  for (const one of series) {
    const line = one.points.filter(([, v]) => v !== null && isFinite(v)).map(([a, b]) => `${px(a).toFixed(1)} ${py(b).toFixed(1)}`);
    if (line.length > 1 && !one.dots) made.append(svg("path", { d: `M${line.join("L")}`, fill: "none", class: `stroke-${one.look}`, "stroke-width": 2, "stroke-dasharray": one.dash }));
    if (marks || one.dots) one.points.forEach(([a, b]) => b !== null && made.append(svg("circle", { cx: px(a), cy: py(b), r: one.dots ? 4 : 2.4, class: `fill-${one.look}` }, svg("title", {}, `${one.name ? `${one.name}: ` : ""}${figure(a)}, ${figure(b)}`))));
    if (one.name && one.points.length) {
      const [a, b] = one.points[one.points.length - 1];
      made.append(svg("text", { x: px(a) - 4, y: py(b) - 6, "text-anchor": "end", class: `fill-${one.look}` }, one.name));
    }
  }
  return made;
}

// A token on the colour of a value: blue above zero, orange and underlined below.
function heatToken(index, value, scale, attributes = {}) {
  const share = scale ? Math.min(1, Math.abs(value) / scale) : 0;
  const made = token(index, { ...attributes, title: `${attributes.title || ""}${signed(value)}`, class: `token${value < 0 && share > 0.02 ? " below" : ""}${attributes.class ? ` ${attributes.class}` : ""}` });
  if (share > 0.02) made.style.backgroundColor = `rgba(var(--${value < 0 ? "neg" : "pos"}-rgb), ${(0.08 + 0.62 * share).toFixed(3)})`;
  return made;
}
