// All images as tiles: filtered, sorted, scrolled, chosen with the mouse or with keys, and one of them large.
const CAPTION = 34, GAP = 6, SHEET_ROWS = data.rows, PER_SHEET = SHEET_ROWS ** 2;
// Which images are shown, in which order; which are selected, and which one is current: places in `shown`.
let shown = new Int32Array(0), selected = new Set(), current = -1, anchor = 0;
// Set by the other parts of the page: a class, a micrograph, images of the map.
const only = { label: null, micrograph: null, region: null };

const sortable = () => [
  { title: order.length ? "junk probability and score" : "verdict and score", get: i => columns.place[i] },
  ...(order.length ? [{ title: "junk probability", get: i => columns.p[i] }] : []),
  { title: "score", get: i => columns.score[i] },
  { title: "place in the input", get: i => i },
  ...(columns.micrograph ? [{ title: "micrograph", get: i => columns.micrograph[i] }] : []),
  ...(columns.label ? [{ title: "class", get: i => columns.label[i] }] : []),
  ...columns.numbers.map(({ title, values }) => ({ title, get: i => values[i] })),
];
let sorts;

function filtered() {
  const verdict = $("of-verdict").value, reason = $("of-reason").value, words = $("of-name").value.trim().toLowerCase();
  const ranged = sorts[+$("range").value], low = parseFloat($("low").value), high = parseFloat($("high").value);
  const named = words && columns.stacks ? columns.stacks.map(stack => stack.toLowerCase().includes(words)) : null;
  const from = words && columns.micrographs ? columns.micrographs.map(name => name.toLowerCase().includes(words)) : null;
  const found = [];
  for (let i = 0; i < N; i++) {
    if (verdict === "changed" ? !byHand[i] : verdict && kindOf(i) !== verdict) continue;
    if (reason && (columns.why[i] !== +reason || runReason(i) === VALID)) continue;
    if (only.label !== null && columns.label[i] !== only.label) continue;
    if (only.micrograph !== null && columns.micrograph[i] !== only.micrograph) continue;
    if (only.region && !only.region[i]) continue;
    if (words && !(named && named[columns.stack[i]]) && !(from && from[columns.micrograph[i]])
      && String(i) !== words && !(named === null && nameOf(i).toLowerCase().includes(words))) continue;
    if (!Number.isNaN(low) && !(ranged.get(i) >= low)) continue;
    if (!Number.isNaN(high) && !(ranged.get(i) <= high)) continue;
    found.push(i);
  }
  return found;
}

function refresh() {
  const { get } = sorts[+$("sort").value], down = $("down").checked ? -1 : 1;
  const found = filtered(), keys = new Float64Array(N);
  for (const i of found) keys[i] = get(i);
  // Unknown values stand last in either order.
  found.sort((a, b) => {
    const x = keys[a], y = keys[b], unknown = Number.isNaN(x) - Number.isNaN(y);
    return unknown || (Number.isNaN(x) ? 0 : down * (x < y ? -1 : x > y ? 1 : 0)) || columns.place[a] - columns.place[b];
  });
  shown = Int32Array.from(found);
  selected.clear();
  current = shown.length ? 0 : -1;
  anchor = 0;
  $("scroll").scrollTop = 0;
  const limits = [only.label !== null && `class ${only.label + 1}`,
    only.micrograph !== null && `micrograph ${columns.micrographs[only.micrograph]}`, only.region && "the region of the map"].filter(Boolean);
  $("limits").textContent = limits.length ? `Only of ${limits.join(" and ")}.` : "";
  $("all-images").hidden = !limits.length;
  drawGrid();
  showLarge();
}

const side = () => +$("size").value;

function layout() {
  const width = $("scroll").clientWidth - 2, across = Math.max(1, Math.floor((width + GAP) / (side() + GAP + 6)));
  return { across, height: side() + CAPTION + GAP + 6, rows: Math.ceil(shown.length / across) };
}

// The tiles in sight, by their place in `shown`.
const inSight = new Map();

function drawGrid() {
  inSight.clear();
  $("grid").replaceChildren();
  $("grid").style.filter = +$("contrast").value === 1 ? "" : `contrast(${$("contrast").value})`;
  showRows();
  const scroll = $("scroll");
  $("shown").textContent = `${images(shown.length)} shown, ${count(selected.size)} selected.`;
  for (const [id, value, verb] of [["keep-shown", 1, "Keep"], ["reject-shown", -1, "Reject"]]) {
    const n = selected.size || shown.length;
    $(id).textContent = `${verb} ${selected.size ? "selected" : "all shown"} (${count(n)})`;
    $(id).disabled = !n;
  }
  const active = $("grid").querySelector(".current");
  if (active) scroll.setAttribute("aria-activedescendant", active.id); else scroll.removeAttribute("aria-activedescendant");
}

// Only rows in sight are made; what stays in sight stays as it is.
function showRows() {
  const { across, height, rows } = layout(), scroll = $("scroll");
  $("grid").style.height = `${rows * height}px`;
  const first = Math.max(0, Math.floor(scroll.scrollTop / height) - 1) * across;
  const last = Math.min(shown.length, (Math.ceil((scroll.scrollTop + scroll.clientHeight) / height) + 1) * across);
  for (const [at, tile] of inSight) {
    if (at >= first && at < last) continue;
    tile.remove();
    inSight.delete(at);
  }
  const made = document.createDocumentFragment();
  for (let at = first; at < last; at++) {
    if (inSight.has(at)) continue;
    const tile = makeTile(at);
    tile.style.transform = `translate(${at % across * (side() + GAP + 6)}px, ${Math.floor(at / across) * height}px)`;
    inSight.set(at, tile);
    made.append(tile);
  }
  $("grid").append(made);
}

function picture(i, size) {
  const place = columns.place[i], sheet = Math.floor(place / PER_SHEET), at = place % PER_SHEET;
  const kind = $("without-noise").checked ? "denoised" : "tiles";
  return `background-image:url("${data.sheets[kind][sheet]}");background-size:${SHEET_ROWS * size}px auto;`
    + `background-position:${-(at % SHEET_ROWS) * size}px ${-Math.floor(at / SHEET_ROWS) * size}px;`
    + `width:${size}px;height:${size}px`;
}

// A circle where the particle was found, in an image of this many pixels.
function circle(i, size) {
  if (!$("marks").checked || !columns.x || !Number.isFinite(columns.x[i]) || !data.radius) return "";
  const width = 2 * data.radius * size;
  return element("i", { class: "mark", style: `left:${columns.x[i] * size - width / 2}px;`
    + `top:${columns.y[i] * size - width / 2}px;width:${width}px;height:${width}px` });
}

function makeTile(at) {
  const i = shown[at], kind = kindOf(i), p = columns.p[i];
  const words = verdictOf(i);
  const odds = Number.isFinite(p) ? `p ${digits(p)}` : Number.isFinite(columns.score[i]) ? `score ${columns.score[i].toPrecision(3)}` : "no score";
  const frame = element("span", { class: "frame", style: `width:${side()}px;height:${side()}px` });
  if (data.tile) frame.append(element("span", { class: "picture", style: picture(i, side()) }), circle(i, side()));
  const tile = element("div", { class: `tile ${kind}${at === current ? " current" : ""}${byHand[i] ? " by-hand" : ""}`, role: "option",
    id: `tile-${at}`, "aria-selected": selected.has(at), "data-at": at,
    title: nameOf(i) }, frame, element("span", {}, `${i} · ${odds}`), element("span", {}, words));
  return tile;
}

function drawLarge(canvas, i) {
  const context = canvas.getContext("2d"), size = canvas.width, sheet = new Image();
  const place = columns.place[i], at = place % PER_SHEET;
  sheet.onload = () => {
    if (shown[current] !== i) return;
    context.imageSmoothingQuality = "high";
    context.filter = `contrast(${$("contrast").value})`;
    context.drawImage(sheet, at % SHEET_ROWS * data.tile, Math.floor(at / SHEET_ROWS) * data.tile, data.tile, data.tile, 0, 0, size, size);
    context.filter = "none";
    if ($("marks").checked && columns.x && Number.isFinite(columns.x[i]) && data.radius) {
      // A dark line under a bright one can be seen on any grey.
      for (const [color, width] of [["#000", 3], ["#ffe34d", 1.4]]) {
        Object.assign(context, { strokeStyle: color, lineWidth: width });
        context.beginPath();
        context.arc(columns.x[i] * size, columns.y[i] * size, data.radius * size, 0, 2 * Math.PI);
        context.stroke();
      }
    }
    if (data.width) scaleBar(context, size);
  };
  sheet.src = data.sheets[$("without-noise").checked ? "denoised" : "tiles"][Math.floor(place / PER_SHEET)];
}

// A bar of a round number of angstroms.
function scaleBar(context, size) {
  const decade = 10 ** Math.floor(Math.log10(data.width / 2));
  const length = Math.max(...[1, 2, 5, 10].map(step => step * decade).filter(step => step <= data.width / 2));
  const bar = length / data.width * size;
  for (const [color, grow] of [["#000", 2], ["#fff", 0]]) {
    context.fillStyle = color;
    context.fillRect(size - 12 - bar - grow, size - 14 - grow, bar + 2 * grow, 4 + 2 * grow);
  }
  Object.assign(context, { font: "600 13px sans-serif", textAlign: "right", lineWidth: 3, strokeStyle: "#000", fillStyle: "#fff" });
  context.strokeText(`${length} Å`, size - 12, size - 20);
  context.fillText(`${length} Å`, size - 12, size - 20);
}

const shortNumber = value => Number.isFinite(value) ? Number(value.toPrecision(4)).toString() : "unknown";

function showLarge() {
  const panel = $("large");
  if (current < 0) { panel.replaceChildren(element("p", { class: "hint" }, "No image is shown.")); return; }
  const i = shown[current];
  const facts = [["image", i], ["name", nameOf(i)], ...(columns.micrographs ? [["micrograph", micrographOf(i)]] : []),
    ["verdict", verdictOf(i)],
    ["the run's verdict", data.labels[runReason(i)]],
    ...(isKept(i) && columns.why[i] !== VALID ? [["would be rejected as", data.labels[columns.why[i]]]] : []),
    ...(order.length ? [["junk probability", Number.isFinite(columns.p[i]) ? columns.p[i].toFixed(4) : "unknown"]] : []),
    ["score", shortNumber(columns.score[i])],
    ...columns.numbers.map(({ title, values }) => [title, shortNumber(values[i])])];
  const pictures = element("div", { class: "pictures" });
  if (data.tile) {
    const canvas = element("canvas", { width: 256, height: 256, role: "img", "aria-label": `image ${i}, enlarged` });
    pictures.append(element("figure", {}, canvas, element("figcaption", {}, `image ${i}`)));
    drawLarge(canvas, i);
  }
  const label = columns.label ? columns.label[i] : -1, average = data.views ? data.views.classes.indexOf(label) : -1;
  if (average >= 0) {
    pictures.append(element("figure", {}, classPicture(average, 128), element("figcaption", {}, `average of class ${label + 1}`)));
  }
  const button = (words, value) => {
    const made = element("button", { type: "button", "aria-pressed": String(byHand[i] === value) }, words);
    made.disabled = value > 0 && (columns.state[i] & UNUSABLE) !== 0;
    made.addEventListener("click", () => choose([i], value, `${VERBS[value]}: image ${i}`));
    return made;
  };
  panel.replaceChildren(pictures, element("div", { class: "controls" }, button("Keep", 1), button("Reject", -1), button("As the run", 0)),
    element("dl", { class: "known" }, ...facts.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, String(value))])));
}

function moveCurrent(to, extend) {
  if (!shown.length) return;
  current = Math.min(shown.length - 1, Math.max(0, to));
  if (extend) {
    selected = new Set();
    for (let at = Math.min(anchor, current); at <= Math.max(anchor, current); at++) selected.add(at);
  } else {
    anchor = current;
    selected.clear();
  }
  const { across, height } = layout(), top = Math.floor(current / across) * height, scroll = $("scroll");
  if (top < scroll.scrollTop) scroll.scrollTop = top;
  if (top + height > scroll.scrollTop + scroll.clientHeight) scroll.scrollTop = top + height - scroll.clientHeight;
  drawGrid();
  showLarge();
}

function chooseInGrid(value) {
  const places = selected.size ? [...selected] : current >= 0 ? [current] : [];
  if (places.length) choose(places.map(at => shown[at]), value, VERBS[value]);
}

function pressInGrid(event) {
  if (event.ctrlKey && event.key.toLowerCase() === "a") {
    event.preventDefault();
    selected = new Set(shown.keys());
    drawGrid();
    return;
  }
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const { across, height } = layout(), page = across * Math.max(1, Math.floor($("scroll").clientHeight / height));
  const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -across, ArrowDown: across, PageUp: -page, PageDown: page,
    Home: -shown.length, End: shown.length };
  const verbs = { k: 1, r: -1, u: 0 };
  if (event.key in steps) moveCurrent(current + steps[event.key], event.shiftKey);
  else if (event.key.toLowerCase() in verbs) chooseInGrid(verbs[event.key.toLowerCase()]);
  else if (event.key === " " && current >= 0) choose([shown[current]], isKept(shown[current]) ? -1 : 1, isKept(shown[current]) ? "Rejected" : "Kept");
  else if (event.key === "Escape") { selected.clear(); drawGrid(); } else return;
  event.preventDefault();
}

function clickInGrid(event) {
  const tile = event.target.closest(".tile");
  if (!tile) return;
  const at = +tile.dataset.at;
  if (event.shiftKey) { moveCurrent(at, true); return; }
  if (event.ctrlKey || event.metaKey) {
    if (!selected.delete(at)) selected.add(at);
    current = anchor = at;
    drawGrid();
    showLarge();
    return;
  }
  moveCurrent(at, false);
}

function startImages() {
  sorts = sortable();
  for (const id of ["sort", "range"]) $(id).append(...sorts.map(({ title }, at) => element("option", { value: at }, title)));
  $("range").value = 1;
  const present = data.reasons.map((_, reason) => reason).filter(reason => reason !== VALID && columns.why.includes(reason));
  $("of-reason").append(...present.map(reason => element("option", { value: reason }, data.labels[reason])));
  $("to-denoised").hidden = !data.sheets.denoised;
  $("no-tiles").hidden = data.tile > 0;
  for (const id of ["of-verdict", "of-reason", "of-name", "range", "low", "high", "sort", "down"]) $(id).addEventListener("input", refresh);
  for (const id of ["size", "marks", "contrast", "without-noise"]) {
    $(id).addEventListener("input", () => {
      $("denoised-note").hidden = !$("without-noise").checked;
      drawGrid();
      showLarge();
    });
  }
  $("keep-shown").addEventListener("click", () => choose(selected.size ? [...selected].map(at => shown[at]) : shown, 1, VERBS[1]));
  $("reject-shown").addEventListener("click", () => choose(selected.size ? [...selected].map(at => shown[at]) : shown, -1, VERBS[-1]));
  $("all-images").addEventListener("click", () => showOnly({}));
  $("scroll").addEventListener("scroll", showRows);
  $("scroll").addEventListener("keydown", pressInGrid);
  $("grid").addEventListener("click", clickInGrid);
  $("grid").addEventListener("dblclick", event => {
    if (!event.target.closest(".tile")) return;
    const i = shown[current];
    choose([i], isKept(i) ? -1 : 1, isKept(i) ? "Rejected" : "Kept");
  });
  window.addEventListener("resize", drawGrid);
  drawn.push(drawGrid, showLarge);
  refresh();
}

function showOnly(what) {
  Object.assign(only, { label: null, micrograph: null, region: null }, what);
  refresh();
  if (Object.keys(what).length) $("images").scrollIntoView();
}
