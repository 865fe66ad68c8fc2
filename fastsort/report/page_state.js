// What is known of each image, and the verdict on it now.
const VALID = data.valid, RARE_VIEW = data.rare_view;
const KEPT = 1, RESCUED = 2, FIXED = 4, UNUSABLE = 8;
const KINDS = ["kept", "rejected", "rescued"];
// Filled by readColumns, one entry an image.
const columns = {};
// The page opens with the run's own verdict on each image; a threshold replaces it, and a person both.
const threshold = { mode: "run", probability: 0.5, best: 0 };
let byHand, order, rank;

const images = n => `${count(n)} ${n === 1 ? "image" : "images"}`;
// As Python writes it. The product is off by the last bits, which decide how 51.95 is rounded; the only ties that a
// number can hold end in 25 or 75, and the even digit is meant, while toFixed takes the larger one.
function percent(x) {
  if (!Number.isFinite(x)) return "unknown";
  const value = Number((100 * x).toPrecision(12));
  return (value % 1 === 0.25 ? value - 0.05 : value).toFixed(1) + " %";
}

function readColumns() {
  const packed = data.columns || window.fastsortColumns;
  const types = { state: Uint8Array, why: Uint8Array, p: Float64Array, score: Float64Array, place: Int32Array,
    x: Float32Array, y: Float32Array, label: Int32Array, map_x: Float32Array, map_y: Float32Array,
    micrograph: Int32Array, stack: Int32Array, number: Int32Array };
  for (const [name, Type] of Object.entries(types)) columns[name] = packed[name] ? unpacked(packed[name], Type) : null;
  for (const name of ["micrographs", "stacks", "names"]) columns[name] = packed[name] || null;
  columns.width = packed.width;
  columns.pictures = (packed.pictures || []).map(picture => ({ ...picture, chosen: unpacked(picture.images, Int32Array),
    x: unpacked(picture.x, Float32Array), y: unpacked(picture.y, Float32Array) }));
  columns.numbers = (packed.numbers || []).map(({ title, values }) => ({ title, values: unpacked(values, Float32Array) }));
  // The packed text is no longer needed.
  data.columns = window.fastsortColumns = null;
  byHand = new Int8Array(N);
  // Images that a threshold can move, best first, and the place of each among them.
  order = new Int32Array(N);
  for (let i = 0; i < N; i++) order[columns.place[i]] = i;
  order = order.filter(i => !(columns.state[i] & FIXED));
  rank = new Int32Array(N).fill(-1);
  order.forEach((i, at) => { rank[i] = at; });
}

function keptByThreshold(i) {
  if (threshold.mode === "run" || columns.state[i] & FIXED) return (columns.state[i] & KEPT) !== 0;
  return threshold.mode === "best" ? rank[i] < threshold.best : columns.p[i] <= threshold.probability;
}

const isKept = i => byHand[i] === 0 ? keptByThreshold(i) : byHand[i] > 0;
const runReason = i => columns.state[i] & KEPT ? VALID : columns.why[i];
// An image that a person rejected is no longer set aside as a rare view.
const reasonOf = i => isKept(i) ? VALID : columns.why[i];
const kindOf = i => byHand[i] < 0 ? "rejected" : data.kinds[reasonOf(i)];
const verdictOf = i => byHand[i] ? `${kindOf(i)} by hand` : kindOf(i) === "rejected" ? data.labels[reasonOf(i)] : kindOf(i);

function nameOf(i) {
  if (columns.stacks) return `${String(columns.number[i]).padStart(columns.width, "0")}@${columns.stacks[columns.stack[i]]}`;
  return columns.names ? columns.names[i] : `image ${i}`;
}

const micrographOf = i => columns.micrographs ? columns.micrographs[columns.micrograph[i]] : null;

// How many images are kept, rejected and rescued now, and how many of them are particles.
function tally() {
  const run = data.reasons.map(() => 0), now = data.reasons.map(() => 0), kinds = { kept: 0, rejected: 0, rescued: 0 };
  let judgedKept = 0, goodKept = 0, good = 0, chosen = 0, changed = 0;
  for (let i = 0; i < N; i++) {
    const kept = isKept(i), p = columns.p[i];
    run[runReason(i)]++;
    now[kept ? VALID : columns.why[i]]++;
    kinds[kindOf(i)]++;
    if (byHand[i]) { chosen++; changed += kept !== keptByThreshold(i); }
    // Images over an edge are rejected at any threshold: they are no particles that one could keep.
    if (!Number.isFinite(p) || data.reasons[columns.why[i]] === "outside") continue;
    good += 1 - p;
    if (kept) { judgedKept++; goodKept += 1 - p; }
  }
  return { run, now, kinds, chosen, changed, precision: goodKept / judgedKept, goodShare: goodKept / good };
}
