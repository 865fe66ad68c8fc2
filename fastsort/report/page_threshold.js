// The histogram of junk probabilities and the threshold, which moves by probability, by number or by share of particles.
const BINS = 50, MARGIN = { left: 64, right: 16, top: 52, bottom: 44 }, HEIGHT = 350;
// Of images kept by a threshold, best first: how many particles are among the first k.
let particles;

const digits = p => (Math.round(1000 * p) / 1000).toFixed(3);
const atThreshold = () => threshold.mode === "probability" ? threshold.probability
  : threshold.mode === "best" ? (threshold.best ? columns.p[order[threshold.best - 1]] : 0) : null;

function ticks(highest, log) {
  if (log) return Array.from({ length: Math.floor(Math.log10(highest)) + 1 }, (_, power) => 10 ** power);
  const rough = highest / 4, power = 10 ** Math.floor(Math.log10(rough));
  const step = Math.max(1, power * [1, 2, 5, 10].find(factor => factor * power >= rough));
  return Array.from({ length: Math.floor(highest / step) + 1 }, (_, place) => place * step);
}

function binned() {
  const bins = Array.from({ length: BINS }, () => ({ kept: 0, rejected: 0, rescued: 0 }));
  for (let i = 0; i < N; i++) {
    const p = columns.p[i];
    if (Number.isFinite(p)) bins[Math.max(0, Math.ceil(p * BINS) - 1)][kindOf(i)]++;
  }
  return bins;
}

function drawHistogram() {
  const log = document.querySelector("[name=axis]:checked").value === "log";
  const width = Math.max(300, $("histogram").clientWidth || 800), bins = binned();
  const highest = Math.max(1, ...bins.map(bin => bin.kept + bin.rejected + bin.rescued));
  const inner = width - MARGIN.left - MARGIN.right, bottom = HEIGHT - MARGIN.bottom;
  const x = p => MARGIN.left + p * inner;
  const share = n => log ? (n > 0 ? Math.log(2 * n) / Math.log(2.2 * highest) : 0) : n / (1.04 * highest);
  const y = n => bottom - share(n) * (bottom - MARGIN.top);
  const cut = atThreshold();
  const svg = element("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", "aria-label":
    `Histogram of the junk probability of ${images(N)}${cut === null ? "" : `; the threshold is ${digits(cut)}`}` });
  svg.innerHTML = `<defs>
    <pattern id="rejected" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">
      <rect width="6" height="6" class="pale-rejected"/><rect width="3" height="6" class="ink-rejected"/></pattern>
    <pattern id="rescued" width="6" height="6" patternUnits="userSpaceOnUse">
      <rect width="6" height="6" class="pale-rescued"/><circle cx="3" cy="3" r="1.8" class="ink-rescued"/></pattern></defs>`;
  const fills = { kept: "var(--kept)", rejected: "url(#rejected)", rescued: "url(#rescued)" };
  const text = (words, at) => svg.append(element("svg:text", at, words));
  for (const n of ticks(highest, log)) {
    svg.append(element("svg:path", { d: `M${MARGIN.left} ${y(n)}h${inner}`, class: "grid-line" }));
    text(count(n), { x: MARGIN.left - 8, y: y(n) + 4, "text-anchor": "end" });
  }
  bins.forEach((bin, place) => {
    let below = 0;
    for (const kind of KINDS) {
      if (!bin[kind]) continue;
      const top = y(below + bin[kind]);
      svg.append(element("svg:rect", { x: x(place / BINS) + 0.5, width: Math.max(1, inner / BINS - 1), y: top,
        height: Math.max(1, (below ? y(below) : bottom) - top), style: `fill:${fills[kind]}` }));
      below += bin[kind];
    }
  });
  svg.append(element("svg:path", { d: `M${MARGIN.left} ${bottom}h${inner}`, class: "axis-line" }));
  for (let p = 0; p <= 10; p += 2) text((p / 10).toFixed(1), { x: x(p / 10), y: bottom + 18, "text-anchor": "middle" });
  text("junk probability", { x: x(0.5), y: HEIGHT - 8, "text-anchor": "middle" });
  text(`images${log ? " (logarithmic)" : ""}`, { transform: `translate(14 ${(MARGIN.top + bottom) / 2}) rotate(-90)`,
    "text-anchor": "middle" });
  if (cut !== null) {
    const at = x(cut), right = cut > 0.5;
    svg.append(element("svg:path", { d: `M${at} ${MARGIN.top - 20}V${bottom}`, class: "cut-back" }));
    svg.append(element("svg:path", { d: `M${at} ${MARGIN.top - 20}V${bottom}`, class: "cut-line" }));
    text(`threshold ${digits(cut)}`, { x: at + (right ? -8 : 8), y: MARGIN.top - 10, "font-weight": 600,
      "text-anchor": right ? "end" : "start" });
  }
  KINDS.forEach((kind, place) => {
    const left = MARGIN.left + 95 * place;
    svg.append(element("svg:rect", { x: left, y: 4, width: 18, height: 13, style: `fill:${fills[kind]}` }));
    text(kind, { x: left + 23, y: 15 });
  });
  $("histogram").replaceChildren(svg);
}

function thresholdWords() {
  return { run: "This is the run's verdict", probability: `Threshold: junk probability at most ${digits(threshold.probability)}`,
    best: `Threshold: the ${images(threshold.best)} with the lowest junk probability` }[threshold.mode];
}

function showCounts({ run, now, kinds, changed, precision, goodShare }) {
  $("live").replaceChildren(element("strong", {}, `${count(kinds.kept)} kept`),
    ` of ${count(N)} (${percent(kinds.kept / N)}), ${count(kinds.rejected)} rejected, ${count(kinds.rescued)} rescued. `
    + thresholdWords() + (changed ? `, with ${images(changed)} changed by hand.` : "."));
  const present = data.reasons.map((_, reason) => reason).filter(reason => reason === VALID || run[reason] || now[reason])
    .sort((a, b) => (b === VALID) - (a === VALID) || run[b] - run[a]);
  $("reasons").tBodies[0].replaceChildren(...present.map(reason => element("tr", { class: data.kinds[reason] },
    element("th", { scope: "row" }, data.labels[reason]),
    ...[count(run[reason]), count(now[reason]), percent(now[reason] / N)].map(words => element("td", { class: "num" }, words)))));
  $("estimates").replaceChildren("Estimated from the junk probabilities: ", element("b", {}, percent(precision)),
    " of the kept images are particles (precision), and ", element("b", {}, percent(goodShare)), " of all particles are kept. ",
    data.doubt ? element("strong", {}, "Do not trust these figures: " + data.doubt + ".") : "",
    changed ? " What was changed by hand is counted by its probability too." : "");
}

// The slider stands for what the way of counting says: a probability, a number of images, or a share of the particles.
function showSlider() {
  const way = $("way").value, slider = $("slider"), number = $("number"), last = order.length;
  const kept = threshold.mode === "best" ? threshold.best : order.reduce((sum, i) => sum + keptByThreshold(i), 0);
  const [top, step] = { probability: [1, 0.001], best: [last, 1], share: [100, 0.1] }[way];
  const cut = atThreshold() ?? (kept ? columns.p[order[kept - 1]] : 0);
  const value = { probability: digits(cut), best: kept, share: particles[last] ? (100 * particles[kept] / particles[last]).toFixed(1) : 0 }[way];
  for (const input of [slider, number]) Object.assign(input, { min: 0, max: top, step });
  slider.value = value;
  if (document.activeElement !== number) number.value = value;
  slider.setAttribute("aria-valuetext", thresholdWords());
}

function moveTo(value) {
  const typed = parseFloat(value), way = $("way").value;
  if (!(typed >= 0 && typed <= +$("number").max)) return;
  if (way === "probability") {
    Object.assign(threshold, { mode: "probability", probability: typed });
  } else {
    const wanted = typed / 100 * particles[order.length] - 1e-9;
    const best = way === "best" ? Math.round(typed) : particles.findIndex(sum => sum >= wanted);
    Object.assign(threshold, { mode: "best", best });
  }
  remember();
  update();
}

function startThreshold() {
  particles = new Float64Array(order.length + 1);
  order.forEach((i, at) => { particles[at + 1] = particles[at] + 1 - columns.p[i]; });
  // Where nearly all probabilities are 0 or 1, only the number of images moves in useful steps.
  const crowded = order.reduce((sum, i) => sum + (columns.p[i] < 0.005 || columns.p[i] > 0.995), 0) > 0.8 * order.length;
  $("way").value = crowded ? "best" : "probability";
  $("slider").addEventListener("input", event => moveTo(event.target.value));
  $("number").addEventListener("input", event => moveTo(event.target.value));
  $("number").addEventListener("blur", showSlider);
  $("way").addEventListener("change", showSlider);
  $("reset").addEventListener("click", () => { threshold.mode = "run"; remember(); update(); });
  document.querySelectorAll("[name=axis]").forEach(radio => radio.addEventListener("change", drawHistogram));
  window.addEventListener("resize", drawHistogram);
  if (!order.length) {
    for (const id of ["slider", "number", "reset", "way"]) $(id).disabled = true;
    $("no-threshold").hidden = false;
  }
  drawn.push(showCounts, drawHistogram, showSlider);
}
