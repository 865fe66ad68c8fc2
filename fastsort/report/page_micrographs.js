// The table of micrographs: sorted by its headings; a name shows the images of its micrograph.
function startMicrographs() {
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
    const ordered = (a, b) => a < b ? -1 : a > b ? 1 : 0;
    // Unknown values stand last in either order.
    keyed.sort((a, b) => (a.key === null) - (b.key === null) || (up ? 1 : -1) * ordered(a.key, b.key));
    table.tBodies[0].append(...keyed.map(({ row }) => row));
  }));
  if (!columns.micrographs) return;
  const places = new Map(columns.micrographs.map((name, place) => [name, place]));
  for (const { cells: [head] } of table.tBodies[0].rows) {
    const micrograph = places.get(head.textContent);
    if (micrograph === undefined) continue;
    const button = element("button", { type: "button", title: "show its images" }, head.textContent);
    button.addEventListener("click", () => showOnly({ micrograph }));
    head.replaceChildren(button);
  }
}
