// The page of picks: one micrograph at a time with its places, which a person keeps and rejects.
const UNUSABLE = 1;
// Filled by readPlaces, one entry a place.
const columns = { state: new Uint8Array(N) };
// The page opens with the run's threshold. The number of the best is not chosen here.
const threshold = { mode: "run", probability: data.threshold, best: 0 };
let byHand, shownPicture = 0, active = -1, circles = new Map();

const images = n => `${count(n)} ${n === 1 ? "place" : "places"}`;

function readPlaces() {
  const packed = data.columns || window.fastsortColumns;
  columns.p = unpacked(packed.p, Float64Array);
  columns.why = unpacked(packed.why, Uint8Array);
  // Where the places of each micrograph begin, and where the last ones end.
  columns.start = unpacked(packed.start, Int32Array);
  columns.pictures = packed.pictures.map(picture => ({ ...picture, x: unpacked(picture.x, Float32Array), y: unpacked(picture.y, Float32Array) }));
  byHand = unpacked(packed.hand, Int8Array);
  data.columns = window.fastsortColumns = null;
}

const least = () => threshold.mode === "run" ? data.threshold : threshold.probability;
const keptByThreshold = i => columns.p[i] >= least();
const isKept = i => byHand[i] === 0 ? keptByThreshold(i) : byHand[i] > 0;
// What was picked and then rejected stays in sight.
const inSight = i => isKept(i) || keptByThreshold(i) || $("rejected").checked;
const placesOf = micrograph => Array.from({ length: columns.start[micrograph + 1] - columns.start[micrograph] },
  (_, at) => columns.start[micrograph] + at);

function tally() {
  const kept = new Int32Array(data.micrographs.length), kinds = { kept: 0 };
  let chosen = 0, changed = 0;
  for (let micrograph = 0; micrograph < kept.length; micrograph++) {
    for (let i = columns.start[micrograph]; i < columns.start[micrograph + 1]; i++) {
      const keep = isKept(i);
      kept[micrograph] += keep;
      if (byHand[i]) { chosen++; changed += keep !== keptByThreshold(i); }
    }
    kinds.kept += kept[micrograph];
  }
  return { kept, kinds, chosen, changed };
}

// A place goes back to the threshold's verdict where that is what is wanted.
const toggle = i => {
  const keep = !isKept(i);
  choose([i], keep === keptByThreshold(i) ? 0 : keep ? 1 : -1, keep ? "Kept" : "Rejected");
};

// All of a micrograph is rejected, for any threshold; only what is in sight is kept.
function chooseMicrograph(micrograph, value) {
  const places = placesOf(micrograph);
  choose(value > 0 ? places.filter(inSight) : places, value, `${VERBS[value]}: ${data.micrographs[micrograph]}`);
}

const picture = () => columns.pictures[shownPicture];

function showPicture(number) {
  shownPicture = Math.min(columns.pictures.length - 1, Math.max(0, number));
  const { micrograph, x, y, width, height, radius, src, area } = picture();
  $("picture").setAttribute("viewBox", `0 0 ${width} ${height}`);
  $("picture").setAttribute("aria-label", `Places in ${data.micrographs[micrograph]}`);
  // Only the micrograph that is shown is loaded.
  for (const [name, value] of Object.entries({ href: src, width, height })) $("pixels").setAttribute(name, value);
  $("contamination").setAttribute("d", area);
  circles = new Map(placesOf(micrograph).map((i, at) => [i, element("svg:circle",
    { id: `place-${i}`, role: "option", cx: x[at], cy: y[at], r: radius }, element("svg:title"))]));
  $("circles").replaceChildren(...circles.values());
  $("micrograph").value = shownPicture;
  $("previous").disabled = shownPicture === 0;
  $("next").disabled = shownPicture === columns.pictures.length - 1;
  active = -1;
  update();
}

function drawPicture({ kept }) {
  const { micrograph } = picture();
  for (const [i, circle] of circles) {
    const keep = isKept(i), words = `probability ${columns.p[i].toFixed(3)}, ${keep ? "picked" : "rejected"}`
      + (byHand[i] ? " by hand" : keep || !columns.why[i] ? "" : `: ${data.reasons[columns.why[i]]}`);
    circle.setAttribute("class", `${keep ? "kept" : "rejected"}${byHand[i] && keep !== keptByThreshold(i) ? " by-hand" : ""}`);
    circle.setAttribute("aria-selected", keep);
    circle.setAttribute("aria-label", words);
    circle.style.display = inSight(i) ? "" : "none";
    circle.firstChild.textContent = words;
  }
  if (active >= 0 && !inSight(active)) active = -1;
  $("caption").textContent = `${data.micrographs[micrograph]}: ${count(kept[micrograph])} picked`;
  $("contamination").style.display = $("legend").style.display = $("area").checked ? "" : "none";
  $("picture").style.width = `${100 * $("zoom").value}%`;
  drawCursor();
}

function drawCursor() {
  const cursor = $("cursor"), circle = circles.get(active);
  cursor.setAttribute("visibility", circle ? "visible" : "hidden");
  if (!circle) { $("picture").removeAttribute("aria-activedescendant"); return; }
  $("picture").setAttribute("aria-activedescendant", circle.id);
  const [x, y, r] = ["cx", "cy", "r"].map(name => +circle.getAttribute(name));
  for (const [name, value] of Object.entries({ x: x - 1.3 * r, y: y - 1.3 * r, width: 2.6 * r, height: 2.6 * r })) cursor.setAttribute(name, value);
  circle.scrollIntoView({ block: "nearest", inline: "nearest" });
}

const middleOf = i => ["cx", "cy"].map(name => +circles.get(i).getAttribute(name));

// The nearest circle on one of the four sides of the active one; the likeliest where none is active.
function step(right, down) {
  const seen = [...circles.keys()].filter(inSight);
  let nearest = active < 0 ? seen[0] ?? -1 : active, distance = Infinity;
  if (active >= 0) {
    const [x, y] = middleOf(active);
    for (const i of seen) {
      const [u, v] = middleOf(i), along = (u - x) * right + (v - y) * down, aside = Math.abs((u - x) * down) + Math.abs((v - y) * right);
      const far = Math.hypot(u - x, v - y);
      if (i !== active && along >= aside && far < distance) [nearest, distance] = [i, far];
    }
  }
  active = nearest;
  drawCursor();
}

function pressInPicture(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  const verbs = { k: 1, r: -1, u: 0 }, key = event.key.toLowerCase();
  if (event.key in steps) step(...steps[event.key]);
  else if (event.key === "PageUp" || event.key === "PageDown") showPicture(shownPicture + (event.key === "PageUp" ? -1 : 1));
  else if (active >= 0 && key in verbs) choose([active], verbs[key], VERBS[verbs[key]]);
  else if (active >= 0 && key === " ") toggle(active);
  else return;
  event.preventDefault();
}

const pointOf = event => {
  const point = new DOMPoint(event.clientX, event.clientY).matrixTransform($("picture").getScreenCTM().inverse());
  return [point.x, point.y];
};

function startPointing() {
  const svg = $("picture"), box = $("box");
  // Where a drag began, on the screen and in the picture.
  let from = null;
  const corners = event => {
    const [x, y] = pointOf(event), [u, v] = from.point;
    return { x: Math.min(x, u), y: Math.min(y, v), width: Math.abs(x - u), height: Math.abs(y - v) };
  };
  const draw = at => {
    for (const name of ["x", "y", "width", "height"]) box.setAttribute(name, at ? at[name] : 0);
    box.style.display = at ? "" : "none";
  };
  draw(null);
  svg.addEventListener("pointerdown", event => {
    if (event.button) return;
    from = { point: pointOf(event), screen: [event.clientX, event.clientY], dragged: false };
    // A finger that moves scrolls.
    if (event.pointerType !== "touch") svg.setPointerCapture(event.pointerId);
  });
  svg.addEventListener("pointermove", event => {
    if (!from || event.pointerType === "touch") return;
    from.dragged ||= Math.hypot(event.clientX - from.screen[0], event.clientY - from.screen[1]) > 4;
    if (!from.dragged) return;
    box.setAttribute("class", `box ${event.shiftKey ? "keeping" : "rejecting"}`);
    draw(corners(event));
  });
  svg.addEventListener("pointercancel", () => { from = null; draw(null); });
  svg.addEventListener("pointerup", event => {
    if (!from) return;
    if (from.dragged) {
      const { x, y, width, height } = corners(event), value = event.shiftKey ? 1 : -1;
      const inside = [...circles.keys()].filter(i => {
        const [u, v] = middleOf(i);
        return u >= x && u <= x + width && v >= y && v <= y + height && (value < 0 || inSight(i));
      });
      choose(inside, value, `${VERBS[value]} in a box`);
    } else {
      const [x, y] = pointOf(event), away = i => Math.hypot(middleOf(i)[0] - x, middleOf(i)[1] - y);
      const near = [...circles.keys()].filter(i => inSight(i) && away(i) <= picture().radius).sort((a, b) => away(a) - away(b));
      if (near.length) { active = near[0]; toggle(active); }
    }
    from = null;
    draw(null);
  });
}

function startPictures() {
  const none = !columns.pictures.length;
  for (const id of ["figure", "picks-hint", "previous", "next"]) $(id).hidden = none;
  $("micrograph").parentElement.hidden = none;
  $("no-pictures").hidden = !none;
  if (none) return;
  $("micrograph").append(...columns.pictures.map(({ micrograph }, at) => element("option", { value: at }, data.micrographs[micrograph])));
  $("micrograph").addEventListener("input", event => showPicture(+event.target.value));
  $("previous").addEventListener("click", () => showPicture(shownPicture - 1));
  $("next").addEventListener("click", () => showPicture(shownPicture + 1));
  for (const [id, value] of [["reject-all", -1], ["keep-all", 1], ["leave-all", 0]]) {
    $(id).addEventListener("click", () => chooseMicrograph(picture().micrograph, value));
  }
  for (const id of ["rejected", "area", "zoom"]) $(id).addEventListener("input", update);
  $("picture").addEventListener("keydown", pressInPicture);
  startPointing();
  drawn.push(drawPicture);
  showPicture(0);
}

function startThreshold() {
  $("cut").addEventListener("input", () => {
    Object.assign(threshold, { mode: "probability", probability: Number($("cut").value) });
    remember();
    update();
  });
  $("reset").addEventListener("click", () => { threshold.mode = "run"; remember(); update(); });
  drawn.push(() => {
    if (threshold.mode === "run" || Number($("cut").value) !== least()) $("cut").value = least();
    $("value").textContent = least().toFixed(2);
    $("reset").disabled = threshold.mode === "run";
  });
}

// The table of all micrographs; a name shows its picture.
function startTable() {
  const pictures = new Map(columns.pictures.map(({ micrograph }, at) => [micrograph, at]));
  const rows = Array.from($("micrographs").tBodies[0].rows, (row, micrograph) => {
    const [head, kept, rejected] = row.cells, hand = element("div", { class: "hand" });
    if (pictures.has(micrograph)) {
      const button = element("button", { type: "button", title: "show its picture" }, head.textContent);
      button.addEventListener("click", () => showPicture(pictures.get(micrograph)));
      head.replaceChildren(button);
    }
    for (const [words, value] of [["Reject", -1], ["Keep", 1], ["As run", 0]]) {
      const button = element("button", { type: "button", "aria-label": `${words}: ${data.micrographs[micrograph]}` }, words);
      button.addEventListener("click", () => chooseMicrograph(micrograph, value));
      hand.append(button);
    }
    head.append(hand);
    return { row, kept, rejected };
  });
  drawn.push(({ kept }) => rows.forEach(({ row, kept: cell, rejected }, micrograph) => {
    row.classList.toggle("shown", pictures.get(micrograph) === shownPicture);
    if (+cell.dataset.v === kept[micrograph]) return;
    const others = columns.start[micrograph + 1] - columns.start[micrograph] - kept[micrograph];
    for (const [place, n] of [[cell, kept[micrograph]], [rejected, others]]) {
      place.dataset.v = n;
      place.textContent = count(n);
    }
  }));
}

window.addEventListener("load", () => {
  if (!data.columns && !window.fastsortColumns) { $("missing").hidden = false; return; }
  readPlaces();
  recall();
  startThreshold();
  startTable();
  startMicrographs();
  startPictures();
  startChoices();
  update();
  requestAnimationFrame(() => requestAnimationFrame(() => { document.body.dataset.ready = "yes"; }));
});
