// Start when the columns, which may lie in a file of their own, and the class averages are there.
window.addEventListener("load", () => $("averages").decode().catch(() => {}).then(() => {
  if (!data.columns && !window.fastsortColumns) {
    $("missing").hidden = false;
    return;
  }
  readColumns();
  recall();
  startThreshold();
  startImages();
  startMap();
  startPictures();
  startMicrographs();
  startChoices();
  update();
  requestAnimationFrame(() => requestAnimationFrame(() => { document.body.dataset.ready = "yes"; }));
}));
