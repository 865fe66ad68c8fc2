// Pictures of micrographs, with the images that were picked in them.
let circles = new Map();

function showMicrograph(number) {
  const { micrograph, src, width, height, radius, area, chosen, x, y } = columns.pictures[number];
  $("picture").setAttribute("viewBox", `0 0 ${width} ${height}`);
  // Only the micrograph that is shown is loaded.
  for (const [name, value] of Object.entries({ href: src, width, height })) $("pixels").setAttribute(name, value);
  $("contamination").setAttribute("d", area);
  circles = new Map(Array.from(chosen, (i, at) => [i, element("svg:circle", { cx: x[at], cy: y[at], r: radius, "data-image": i },
    element("svg:title"))]));
  $("circles").replaceChildren(...circles.values());
  $("micrograph").value = number;
  $("previous").disabled = number === 0;
  $("next").disabled = number === columns.pictures.length - 1;
  $("picture").setAttribute("aria-label", `Micrograph ${columns.micrographs[micrograph]} with the images picked in it`);
  $("to-area").hidden = !area;
  drawCircles();
}

function drawCircles() {
  let kept = 0;
  for (const [i, circle] of circles) {
    const kind = kindOf(i), odds = Number.isFinite(columns.p[i]) ? `, junk probability ${digits(columns.p[i])}` : "";
    kept += kind === "kept";
    circle.setAttribute("class", `${kind}${byHand[i] ? " by-hand" : ""}`);
    circle.style.display = kind === "kept" || $("rejected-too").checked ? "" : "none";
    circle.firstChild.textContent = `image ${i}: ${verdictOf(i)}${odds}`;
  }
  $("contamination").style.display = $("area").checked ? "" : "none";
  const { micrograph } = columns.pictures[+$("micrograph").value];
  $("picked-caption").textContent = `${columns.micrographs[micrograph]}: ${count(kept)} of ${images(circles.size)} kept`;
}

function startPictures() {
  if (!columns.pictures || !columns.pictures.length || !columns.micrographs) return;
  $("picked").hidden = false;
  $("micrograph").append(...columns.pictures.map(({ micrograph }, number) =>
    element("option", { value: number }, columns.micrographs[micrograph])));
  $("micrograph").addEventListener("input", event => showMicrograph(+event.target.value));
  for (const [id, step] of [["previous", -1], ["next", 1]]) {
    $(id).addEventListener("click", () => showMicrograph(+$("micrograph").value + step));
  }
  for (const id of ["rejected-too", "area"]) $(id).addEventListener("input", drawCircles);
  $("circles").addEventListener("click", event => {
    const circle = event.target.closest("circle");
    if (circle) choose([+circle.dataset.image], isKept(+circle.dataset.image) ? -1 : 1, isKept(+circle.dataset.image) ? "Rejected" : "Kept");
  });
  showMicrograph(0);
  drawn.push(drawCircles);
}
