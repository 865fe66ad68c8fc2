// The map of the views with all of its images, regions drawn on it, and the class averages.
const COLORS = { kept: [0, 96, 160], rejected: [168, 67, 0], rescued: [106, 53, 128] };
// Pixels of a point around its place.
const DOT = [[0, 0], [1, 0], [-1, 0], [0, 1], [0, -1], [1, 1], [-1, -1], [1, -1], [-1, 1]];
const CROSS = [[0, 0], [1, 1], [-1, -1], [1, -1], [-1, 1], [2, 2], [-2, -2], [2, -2], [-2, 2]];
const TRIANGLE = [[0, -3], [0, -2], [-1, -1], [0, -1], [1, -1], [-1, 0], [0, 0], [1, 0], [-2, 1], [-1, 1], [0, 1], [1, 1], [2, 1]];
const SHAPES = { kept: DOT, rejected: CROSS, rescued: TRIANGLE };
let mapped, mapX, mapY, region = null, lasso = [], chosenClass = null;

// Places on the canvas; what lies far out is drawn at the edge.
function placeOnMap() {
  const { low, side: width } = data.views, canvas = $("map"), edge = 12, inner = canvas.width - 2 * edge;
  const within = share => Math.min(1, Math.max(0, share));
  mapped = Int32Array.from(columns.map_x.keys()).filter(i => Number.isFinite(columns.map_x[i]));
  mapX = Float32Array.from(mapped, i => edge + within((columns.map_x[i] - low[0]) / width) * inner);
  mapY = Float32Array.from(mapped, i => edge + (1 - within((columns.map_y[i] - low[1]) / width)) * inner);
}

function pointColors() {
  const by = $("color").value;
  if (by === "verdict") return (i, kind) => COLORS[kind];
  if (by === "class") return i => columns.label[i] < 0 ? [150, 150, 150] : hue(columns.label[i] * 137.5 % 360);
  const { get } = sorts[+by], values = Array.from(mapped, get).filter(Number.isFinite).sort((a, b) => a - b);
  const low = values[Math.floor(0.02 * values.length)], high = values[Math.floor(0.98 * (values.length - 1))];
  return i => {
    const share = Math.min(1, Math.max(0, (get(i) - low) / (high - low || 1)));
    return Number.isFinite(share) ? [60 + 190 * share, 40 + 150 * share * share, 150 - 110 * share] : [150, 150, 150];
  };
}

function hue(degrees) {
  const part = k => Math.round(255 * (0.45 + 0.35 * Math.cos((degrees - k) * Math.PI / 180)));
  return [part(0), part(120), part(240)];
}

function drawMap() {
  const canvas = $("map"), context = canvas.getContext("2d"), size = canvas.width;
  const paper = context.createImageData(size, size), pixels = new Uint32Array(paper.data.buffer);
  const colorOf = pointColors();
  pixels.fill(0xffffffff);
  const inClass = i => chosenClass === null || columns.label[i] === chosenClass;
  // Kinds with few points are drawn over those with many, and those of the class over all others.
  for (const [chosen, kind] of [false, true].flatMap(chosen => ["rejected", "kept", "rescued"].map(kind => [chosen, kind]))) {
    const shape = SHAPES[kind];
    for (let at = 0; at < mapped.length; at++) {
      const i = mapped[at];
      if (inClass(i) !== chosen || kindOf(i) !== kind) continue;
      const [red, green, blue] = !chosen ? [213, 213, 213] : colorOf(i, kind);
      const color = 0xff000000 | blue << 16 | green << 8 | red;
      const x = Math.round(mapX[at]), y = Math.round(mapY[at]);
      for (const [dx, dy] of shape) pixels[(y + dy) * size + x + dx] = color;
    }
  }
  context.putImageData(paper, 0, 0);
  if (region) {
    context.fillStyle = "rgba(255, 200, 0, .55)";
    mapped.forEach((i, at) => { if (region[i]) context.fillRect(mapX[at] - 3, mapY[at] - 3, 6, 6); });
  }
  if (lasso.length > 1) {
    Object.assign(context, { strokeStyle: "#000", lineWidth: 2 });
    context.beginPath();
    lasso.forEach(([x, y], at) => at ? context.lineTo(x, y) : context.moveTo(x, y));
    context.stroke();
  }
}

function isInside(x, y, corners) {
  let inside = false;
  for (let a = 0, b = corners.length - 1; a < corners.length; b = a++) {
    const [ax, ay] = corners[a], [bx, by] = corners[b];
    if (ay > y !== by > y && x < (bx - ax) * (y - ay) / (by - ay) + ax) inside = !inside;
  }
  return inside;
}

function closeLasso(takeAway) {
  // A press without a way across the map is no region.
  if (lasso.length > 3) {
    region = region || new Uint8Array(N);
    mapped.forEach((i, at) => { if (isInside(mapX[at], mapY[at], lasso)) region[i] = takeAway ? 0 : 1; });
  }
  lasso = [];
  showRegion();
}

const inRegion = () => region ? mapped.filter(i => region[i]) : new Int32Array(0);

function showRegion() {
  const inside = inRegion(), kept = inside.reduce((sum, i) => sum + isKept(i), 0);
  $("region-status").textContent = inside.length
    ? `The region holds ${images(inside.length)}, ${count(kept)} of them kept (${percent(kept / inside.length)}).`
    : "Draw around points with the mouse to choose a region; several regions add up, and with Alt pressed a region is taken away.";
  for (const id of ["keep-region", "reject-region", "show-region", "clear-region"]) $(id).disabled = !inside.length;
  drawMap();
}

function classPicture(place, size) {
  const v = data.views, canvas = element("canvas", { width: size, height: size, "aria-hidden": "true" });
  canvas.getContext("2d").drawImage($("averages"), place % SHEET_ROWS * v.tile, Math.floor(place / SHEET_ROWS) * v.tile,
    v.tile, v.tile, 0, 0, size, size);
  return canvas;
}

const membersOf = label => Int32Array.from(columns.label.keys()).filter(i => columns.label[i] === label);

function makeClass(label, place) {
  const v = data.views, members = membersOf(label), status = element("span", { class: "class-kept" });
  const resolution = v.resolution[place] === null ? "not resolved" : `${v.resolution[place].toFixed(1)} ${v.unit}`;
  const look = element("button", { type: "button", class: "class", "aria-pressed": "false", "data-label": label },
    classPicture(place, 128), element("b", {}, `class ${label + 1}`), ` ${resolution}`,
    ...(v.rare[place] ? [element("span", { class: "rare" }, "▲ rare view")] : []), status);
  look.addEventListener("click", () => { chosenClass = chosenClass === label ? null : label; showClasses(); drawMap(); });
  const act = (words, name, run) => {
    const made = element("button", { type: "button", "aria-label": `${name} class ${label + 1}` }, words);
    made.addEventListener("click", run);
    return made;
  };
  const rescued = members.filter(i => columns.state[i] & RESCUED);
  const buttons = [act("Keep", "keep", () => choose(members, 1, `Kept: class ${label + 1}`)),
    act("Reject", "reject", () => choose(members, -1, `Rejected: class ${label + 1}`)),
    act("Show", "show the images of", () => showOnly({ label }))];
  if (rescued.length) buttons.unshift(act(`Accept rescue (${count(rescued.length)})`, "accept the rescued images of",
    () => choose(rescued, 1, `Rescue of class ${label + 1} accepted`)));
  return element("li", {}, look, element("div", { class: "class-buttons" }, ...buttons));
}

function showClasses() {
  const size = new Map(), kept = new Map();
  for (let i = 0; i < N; i++) {
    const label = columns.label[i];
    size.set(label, (size.get(label) || 0) + 1);
    if (isKept(i)) kept.set(label, (kept.get(label) || 0) + 1);
  }
  document.querySelectorAll(".class").forEach(button => {
    const label = +button.dataset.label, n = size.get(label) || 0, of = kept.get(label) || 0;
    button.setAttribute("aria-pressed", String(label === chosenClass));
    button.querySelector(".class-kept").textContent = `${count(of)} of ${count(n)} kept`;
  });
}

function startMap() {
  const v = data.views;
  if (!v || !columns.map_x) { $("views").hidden = $("to-views").hidden = true; return; }
  placeOnMap();
  $("color").append(...sorts.slice(1).map(({ title }, at) => element("option", { value: at + 1 }, title)));
  $("color").addEventListener("input", drawMap);
  $("map-note").textContent = "Each point is an image. Images that look alike, however they are rotated, lie near each "
    + `other. All ${images(v.known)} of the map are drawn`
    + (v.known < N ? `: those of ${count(N)} that were compared with each other` : "")
    + (v.far ? `; ${count(v.far)} of them lie further out and are drawn at the edge.` : ".");
  $("classes-title").textContent = `Class averages (${count(v.classes.length)}`
    + (v.classes.length < v.n_classes ? ` of ${count(v.n_classes)})` : ")") + ", those most kept first";
  $("classes").append(...v.classes.map(makeClass));
  $("all-classes").addEventListener("click", () => { chosenClass = null; showClasses(); drawMap(); });
  const canvas = $("map");
  const at = event => [event.offsetX * canvas.width / canvas.clientWidth, event.offsetY * canvas.height / canvas.clientHeight];
  canvas.addEventListener("pointerdown", event => { lasso = [at(event)]; canvas.setPointerCapture(event.pointerId); });
  canvas.addEventListener("pointermove", event => { if (lasso.length) { lasso.push(at(event)); drawMap(); } });
  canvas.addEventListener("pointerup", event => closeLasso(event.altKey));
  $("keep-region").addEventListener("click", () => choose(inRegion(), 1, "Kept: the region of the map"));
  $("reject-region").addEventListener("click", () => choose(inRegion(), -1, "Rejected: the region of the map"));
  $("show-region").addEventListener("click", () => showOnly({ region }));
  $("clear-region").addEventListener("click", () => { region = null; showRegion(); });
  drawn.push(showClasses, showRegion);
}
