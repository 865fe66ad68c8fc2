"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const $ = id => document.getElementById(id);
const UNKNOWN = 1023, VALID = data.valid, RARE_VIEW = data.rare_view;
const KINDS = ["kept", "rejected", "rescued"];
const N_SHOWN = 24;
// The page opens with the run's own verdict on each image; the slider replaces it by a threshold.
const state = { moved: false, level: data.level };

const levelOf = code => code & 1023;
const isFixed = code => code >> 15 === 1 || levelOf(code) === UNKNOWN;
const isKept = code => state.moved && !isFixed(code) ? levelOf(code) <= state.level : (code >> 14 & 1) === 1;
const runReason = code => code >> 14 & 1 ? VALID : code >> 10 & 15;
const reasonOf = code => isKept(code) ? VALID : code >> 10 & 15;
const kindOf = reason => data.kinds[reason];
const count = n => n.toLocaleString("en-US");
// The product is off by the last bits, which decide how a tie such as 51.95 is rounded.
const percent = x => Number.isFinite(x) ? Number((100 * x).toPrecision(12)).toFixed(1) + " %" : "unknown";
const thousandths = level => (level / 1000).toFixed(3);

function element(tag, attributes, ...children) {
  const made = tag === "svg" || tag.startsWith("svg:")
    ? document.createElementNS("http://www.w3.org/2000/svg", tag.replace("svg:", ""))
    : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function tally() {
  const run = data.reasons.map(() => 0), now = data.reasons.map(() => 0);
  let judgedKept = 0, goodKept = 0, good = 0;
  for (const [code, n, junk] of data.counts) {
    run[runReason(code)] += n;
    now[reasonOf(code)] += n;
    if (levelOf(code) === UNKNOWN) continue;
    good += n - junk;
    if (isKept(code)) { judgedKept += n; goodKept += n - junk; }
  }
  return { run, now, kept: now[VALID], precision: goodKept / judgedKept, goodShare: goodKept / good };
}

const BINS = 50, MARGIN = { left: 64, right: 16, top: 52, bottom: 44 }, HEIGHT = 350;

function binned() {
  const bins = Array.from({ length: BINS }, () => ({ kept: 0, rejected: 0, rescued: 0 }));
  for (const [code, n] of data.counts) {
    const level = levelOf(code);
    if (level === UNKNOWN) continue;
    bins[Math.max(0, Math.ceil(level * BINS / 1000) - 1)][kindOf(reasonOf(code))] += n;
  }
  return bins;
}

function ticks(highest, log) {
  if (log) return Array.from({ length: Math.floor(Math.log10(highest)) + 1 }, (_, power) => 10 ** power);
  const rough = highest / 4, power = 10 ** Math.floor(Math.log10(rough));
  const step = Math.max(1, power * [1, 2, 5, 10].find(factor => factor * power >= rough));
  return Array.from({ length: Math.floor(highest / step) + 1 }, (_, place) => place * step);
}

function drawHistogram() {
  const log = document.querySelector("[name=axis]:checked").value === "log";
  const width = $("histogram").clientWidth || 800, bins = binned();
  const highest = Math.max(1, ...bins.map(bin => bin.kept + bin.rejected + bin.rescued));
  const inner = width - MARGIN.left - MARGIN.right, bottom = HEIGHT - MARGIN.bottom;
  const x = p => MARGIN.left + p * inner;
  const share = n => log ? (n > 0 ? Math.log(2 * n) / Math.log(2.2 * highest) : 0) : n / (1.04 * highest);
  const y = n => bottom - share(n) * (bottom - MARGIN.top);
  const svg = element("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", "aria-label":
    `Histogram of the junk probability of ${count(data.n)} images; the threshold is ${thousandths(state.level)}` });
  svg.innerHTML = `<defs>
    <pattern id="rejected" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">
      <rect width="6" height="6" fill="#f6dfd0"/><rect width="3" height="6" fill="#a84300"/></pattern>
    <pattern id="rescued" width="6" height="6" patternUnits="userSpaceOnUse">
      <rect width="6" height="6" fill="#f0e6f4"/><circle cx="3" cy="3" r="1.8" fill="#6a3580"/></pattern></defs>`;
  const fills = { kept: "#0060a0", rejected: "url(#rejected)", rescued: "url(#rescued)" };
  const text = (words, at) => svg.append(element("svg:text", { fill: "#1a1a1a", ...at }, words));
  for (const n of ticks(highest, log)) {
    svg.append(element("svg:path", { d: `M${MARGIN.left} ${y(n)}h${inner}`, stroke: "#ddd" }));
    text(count(n), { x: MARGIN.left - 8, y: y(n) + 4, "text-anchor": "end" });
  }
  bins.forEach((bin, place) => {
    let below = 0;
    for (const kind of KINDS) {
      if (!bin[kind]) continue;
      const top = y(below + bin[kind]);
      svg.append(element("svg:rect", { x: x(place / BINS) + 0.5, width: inner / BINS - 1, y: top,
        height: Math.max(1, (below ? y(below) : bottom) - top), fill: fills[kind] }));
      below += bin[kind];
    }
  });
  svg.append(element("svg:path", { d: `M${MARGIN.left} ${bottom}h${inner}`, stroke: "#1a1a1a" }));
  for (let p = 0; p <= 10; p += 2) text((p / 10).toFixed(1), { x: x(p / 10), y: bottom + 18, "text-anchor": "middle" });
  text("junk probability", { x: x(0.5), y: HEIGHT - 8, "text-anchor": "middle" });
  text(`images${log ? " (logarithmic)" : ""}`, { transform: `translate(14 ${(MARGIN.top + bottom) / 2}) rotate(-90)`,
    "text-anchor": "middle" });
  const at = x(state.level / 1000), right = state.level > 500;
  svg.append(element("svg:path", { d: `M${at} ${MARGIN.top - 20}V${bottom}`, stroke: "#fff", "stroke-width": 5 }));
  svg.append(element("svg:path", { d: `M${at} ${MARGIN.top - 20}V${bottom}`, stroke: "#1a1a1a", "stroke-width": 2,
    "stroke-dasharray": "6 3" }));
  text(`threshold ${thousandths(state.level)}`, { x: at + (right ? -8 : 8), y: MARGIN.top - 10, "font-weight": 600,
    "text-anchor": right ? "end" : "start" });
  KINDS.forEach((kind, place) => {
    const left = MARGIN.left + 105 * place;
    svg.append(element("svg:rect", { x: left, y: 4, width: 18, height: 13, fill: fills[kind] }));
    text(kind, { x: left + 25, y: 15 });
  });
  $("histogram").replaceChildren(svg);
}

function showCounts() {
  const { run, now, kept, precision, goodShare } = tally();
  const rescued = now[RARE_VIEW], rejected = data.n - kept - rescued;
  $("live").replaceChildren(element("strong", {}, `${count(kept)} kept`),
    ` of ${count(data.n)} (${percent(kept / data.n)}), ${count(rejected)} rejected, ${count(rescued)} rescued. `
    + (state.moved ? `Threshold: junk probability at most ${thousandths(state.level)}.` : "This is the run's verdict."));
  $("now").textContent = `${count(kept)} kept${state.moved ? `, threshold ${thousandths(state.level)}` : " by the run"}`;
  const order = data.reasons.map((_, reason) => reason).filter(reason => possible.has(reason))
    .sort((a, b) => (b === VALID) - (a === VALID) || run[b] - run[a]);
  $("reasons").tBodies[0].replaceChildren(...order.map(reason => element("tr", { class: kindOf(reason) },
    element("th", { scope: "row" }, data.labels[reason]),
    ...[count(run[reason]), count(now[reason]), percent(now[reason] / data.n)].map(words =>
      element("td", { class: "num" }, words)))));
  $("estimates").replaceChildren("Estimated from the junk probabilities: ", element("b", {}, percent(precision)),
    " of the kept images are particles (precision), and ", element("b", {}, percent(goodShare)),
    " of all particles are kept. ",
    data.doubt ? element("strong", {}, "Do not trust these figures: " + data.doubt + ".") : "");
  if (!$("save").disabled) $("save").textContent = `Save list of kept images (${count(kept)})`;
  $("slider").setAttribute("aria-valuetext", `junk probability at most ${thousandths(state.level)}, ${count(kept)} kept`);
}

const possible = new Set([VALID]);
for (const [code] of data.counts) possible.add(runReason(code)).add(code >> 14 & 1 && isFixed(code) ? VALID : code >> 10 & 15);

function drawTile(canvas, tile) {
  const t = data.tiles, context = canvas.getContext("2d"), side = canvas.width;
  context.drawImage($("tiles"), tile % t.columns * t.size, Math.floor(tile / t.columns) * t.size, t.size, t.size,
    0, 0, side, side);
  if (!$("marks").checked || t.x[tile] === null || t.y[tile] === null) return;
  const x = t.x[tile] * side, y = t.y[tile] * side, radius = t.radius * side;
  // A dark line under a bright one can be seen on any grey.
  for (const [color, width] of [["#000", 3], ["#ffe34d", 1.4]]) {
    context.strokeStyle = color;
    context.lineWidth = width;
    context.beginPath();
    if (radius) context.arc(x, y, radius, 0, 2 * Math.PI);
    context.moveTo(x - 5, y); context.lineTo(x + 5, y);
    context.moveTo(x, y - 5); context.lineTo(x, y + 5);
    context.stroke();
  }
}

function makeTile(tile) {
  const t = data.tiles, p = t.p[tile], reason = element("span", {});
  const figure = element("li", { class: "tile", title: t.name[tile], "data-tile": tile },
    element("canvas", { width: 128, height: 128, role: "img", "aria-label": `image ${t.index[tile]}, ${t.name[tile]}` }),
    element("span", {}, `${t.index[tile]}`),
    element("span", {}, p !== null ? `p ${p.toFixed(3)}` : t.score[tile] !== null ? `score ${t.score[tile]}` : "no score"),
    reason);
  drawTile(figure.firstChild, tile);
  return markTile(figure);
}

function markTile(figure) {
  const reason = reasonOf(data.tiles.code[+figure.dataset.tile]), kind = kindOf(reason);
  const words = kind === "rejected" ? data.reasons[reason] : kind;
  if (figure.lastChild.textContent !== words) {
    figure.lastChild.textContent = words;
    figure.className = `tile ${kind}`;
  }
  return figure;
}

function nearest() {
  const { p, code } = data.tiles, threshold = state.level / 1000;
  const known = p.map((_, tile) => tile).filter(tile => p[tile] !== null && !isFixed(code[tile]));
  known.sort((a, b) => Math.abs(p[a] - threshold) - Math.abs(p[b] - threshold) || a - b);
  return known.slice(0, N_SHOWN).sort((a, b) => p[a] - p[b] || a - b);
}

function makeMontages() {
  for (const { kind, title, tiles } of data.groups) {
    const grid = element("ul", { class: "grid", id: `group-${kind}`, "aria-label": title }, ...tiles.map(makeTile));
    $("montages").append(element("h3", {}, `${title} (${tiles.length})`), tiles.length ? grid : element("p", {}, "none"));
  }
}

function updateMontages() {
  const border = $("group-border");
  if (border) {
    const shown = state.moved ? nearest() : data.groups.find(group => group.kind === "border").tiles;
    if (shown.join() !== Array.from(border.children, figure => figure.dataset.tile).join()) {
      border.replaceChildren(...shown.map(makeTile));
    }
    border.previousElementSibling.textContent =
      `Borderline: nearest to the threshold ${thousandths(state.level)} (${shown.length})`;
  }
  document.querySelectorAll(".tile").forEach(markTile);
}

let chosen = null;

function drawMap() {
  const v = data.views, canvas = $("map"), context = canvas.getContext("2d");
  const unit = canvas.width / 680, edge = 12 * unit, side = canvas.width - 2 * edge;
  context.fillStyle = "#fff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  const points = v.x.map((_, point) => point);
  const inClass = point => chosen === null || v.label[point] === chosen;
  const draw = (point, shape, color, size) => {
    const x = edge + v.x[point] / 4095 * side, y = edge + (1 - v.y[point] / 4095) * side;
    mark(context, shape, x, y, size * unit, color);
  };
  // Kinds with few points are drawn over those with many.
  for (const [kind, shape, color, size] of SHAPES) {
    for (const point of points) {
      if (!inClass(point) && kindOf(reasonOf(v.code[point])) === kind) draw(point, shape, "#d5d5d5", size);
    }
  }
  for (const [kind, shape, color, size] of SHAPES) {
    for (const point of points) {
      if (inClass(point) && kindOf(reasonOf(v.code[point])) === kind) {
        draw(point, shape, color, chosen === null ? size : size * 1.25);
      }
    }
  }
}

const SHAPES = [["rejected", "cross", "#a84300", 3], ["kept", "dot", "#0060a0", 2.4], ["rescued", "triangle", "#6a3580", 5]];

function mark(context, shape, x, y, size, color) {
  context.beginPath();
  context.fillStyle = context.strokeStyle = color;
  context.lineWidth = size / 2.2;
  if (shape === "dot") {
    context.arc(x, y, size, 0, 2 * Math.PI);
    context.fill();
  } else if (shape === "cross") {
    context.moveTo(x - size, y - size); context.lineTo(x + size, y + size);
    context.moveTo(x - size, y + size); context.lineTo(x + size, y - size);
    context.stroke();
  } else {
    context.moveTo(x, y - size); context.lineTo(x + size, y + 0.8 * size); context.lineTo(x - size, y + 0.8 * size);
    context.closePath();
    context.fill();
    context.strokeStyle = "#fff";
    context.lineWidth = 2;
    context.stroke();
  }
}

function chooseClass(number) {
  chosen = number;
  const v = data.views;
  document.querySelectorAll(".class").forEach(button =>
    button.setAttribute("aria-pressed", String(+button.dataset.number === number)));
  if (number === null) {
    $("class-status").textContent = "Choose a class to see where its images lie.";
  } else {
    const members = v.code.filter((_, point) => v.label[point] === number);
    const kept = members.filter(isKept).length;
    $("class-status").textContent = `Class ${number + 1}: ${count(members.length)} points of the map, `
      + `${count(kept)} of them kept (${percent(kept / members.length)}).`;
  }
  drawMap();
}

function makeMap() {
  const v = data.views;
  if (!v) { $("views").hidden = $("to-views").hidden = true; return; }
  $("map-key").append(...SHAPES.map(([kind, shape, color, size]) => {
    const canvas = element("canvas", { width: 28, height: 28, style: "width:14px;height:14px", "aria-hidden": "true" });
    mark(canvas.getContext("2d"), shape, 14, 15, 2.6 * size, color);
    return element("li", {}, canvas, ` ${kind}`);
  }));
  $("map-note").textContent = "Each point is an image. Images that look alike, however they are rotated, lie near each "
    + `other. The map shows ${count(v.x.length)} of ${count(data.n)} images`
    + (v.x.length < v.known ? `, chosen from a sample of ${count(v.known)}` : "")
    + (v.far ? `; ${count(v.far)} of them lie further out and are drawn at the edge.` : ".");
  $("classes-title").textContent = `Class averages (${count(v.classes.length)}`
    + (v.classes.length < v.n_classes ? ` of ${count(v.n_classes)})` : ")");
  $("classes").append(...v.classes.map((number, place) => {
    const canvas = element("canvas", { width: 128, height: 128, "aria-hidden": "true" });
    canvas.getContext("2d").drawImage($("averages"), place % v.columns * v.tile, Math.floor(place / v.columns) * v.tile,
      v.tile, v.tile, 0, 0, 128, 128);
    const resolution = v.resolution[place] === null ? "not resolved" : `${v.resolution[place].toFixed(1)} ${v.unit}`;
    const button = element("button", { type: "button", class: "class", "aria-pressed": "false", "data-number": number },
      canvas, element("b", {}, `class ${number + 1}`), `${count(v.size[place])} ${v.kept[place] ? "kept" : "rejected"}`,
      element("br"), resolution, ...(v.rare[place] ? [element("span", { class: "rare" }, "▲ rare view")] : []));
    button.addEventListener("click", () => chooseClass(number));
    button.addEventListener("focus", () => chooseClass(number));
    return element("li", {}, button);
  }));
  $("all-classes").addEventListener("click", () => chooseClass(null));
  $("views").addEventListener("keydown", event => { if (event.key === "Escape") chooseClass(null); });
}

function savedList() {
  const bytes = atob(data.codes), lines = [];
  let highest = 0;
  for (let image = 0; image < data.n; image++) {
    const code = bytes.charCodeAt(2 * image) | bytes.charCodeAt(2 * image + 1) << 8;
    if (!isKept(code)) continue;
    lines.push(image);
    if (levelOf(code) !== UNKNOWN) highest = Math.max(highest, levelOf(code));
  }
  const most = state.moved ? state.level : highest;
  const head = [`# fastsort kept images: ${lines.length} of ${data.n}, junk probability at most ${thousandths(most)}, `
    + "counted from 0", `# input: ${data.name}`, `# chosen by: ${state.moved ? "a threshold set by hand" : "the run's verdict"}`];
  return head.concat(lines).join("\n") + "\n";
}

function save() {
  const link = element("a", { href: URL.createObjectURL(new Blob([savedList()], { type: "text/plain" })),
    download: "kept_images.txt" });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

function sortMicrographs() {
  const table = $("micrographs");
  if (!table) return;
  const heads = Array.from(table.tHead.rows[0].cells);
  heads.forEach((head, column) => head.firstChild.addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") !== "ascending";
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const keyed = Array.from(table.tBodies[0].rows, row => {
      const cell = row.cells[column], value = cell.dataset.v;
      return { row, key: value === undefined ? cell.textContent : value === "" ? null : +value };
    });
    const order = (a, b) => a < b ? -1 : a > b ? 1 : 0;
    // Unknown values stand last in either order.
    keyed.sort((a, b) => (a.key === null) - (b.key === null) || (up ? 1 : -1) * order(a.key, b.key));
    table.tBodies[0].append(...keyed.map(({ row }) => row));
  }));
}

let waiting = false;

function update() {
  showCounts();
  if (document.activeElement !== $("number")) $("number").value = thousandths(state.level);
  $("slider").value = state.level / 1000;
  drawHistogram();
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    updateMontages();
    if (data.views) chooseClass(chosen);
  });
}

function moveTo(value) {
  const p = parseFloat(value);
  if (!(p >= 0 && p <= 1)) return;
  state.moved = true;
  state.level = Math.round(1000 * p);
  update();
}

$("slider").addEventListener("input", event => moveTo(event.target.value));
$("number").addEventListener("input", event => moveTo(event.target.value));
$("number").addEventListener("blur", event => { event.target.value = thousandths(state.level); });
$("reset").addEventListener("click", () => { state.moved = false; state.level = data.level; update(); });
$("save").addEventListener("click", save);
$("marks").addEventListener("change", () => document.querySelectorAll(".tile").forEach(figure =>
  drawTile(figure.firstChild, +figure.dataset.tile)));
document.querySelectorAll("[name=axis]").forEach(radio => radio.addEventListener("change", drawHistogram));
window.addEventListener("resize", drawHistogram);
if (!data.movable) {
  for (const id of ["slider", "number", "reset"]) $(id).disabled = true;
  $("no-threshold").hidden = false;
}
if (data.codes === null) {
  $("save").disabled = true;
  $("save-note").textContent = "The list cannot be saved from this page: it would be too large. "
    + "Use fastsort apply SORTED -o DIR --probability P instead: it writes the subset for the threshold P.";
}
if (data.differ) {
  $("differ").textContent = `The run's verdict is not a threshold on this probability alone: the `
    + `threshold ${thousandths(data.level)} would change the verdict on ${count(data.differ)} images.`;
}
sortMicrographs();
Promise.all([$("tiles").decode(), $("averages").decode()]).then(() => {
  makeMontages();
  makeMap();
  update();
  document.body.dataset.ready = "yes";
});
