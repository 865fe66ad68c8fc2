// What a person keeps and rejects: undone and redone, remembered by the browser, saved for "fastsort apply".
const done = [], undone = [];
const memory = `fastsort ${data.mark}`;
// The page of picks calls them otherwise.
const { one = "image", judged = "junk probability at most", list = "kept_images.txt" } = data.words || {};

function choose(chosen, value, words) {
  const usable = Int32Array.from(chosen).filter(i => value <= 0 || !(columns.state[i] & UNUSABLE));
  const changing = usable.filter(i => byHand[i] !== value);
  const refused = chosen.length - usable.length;
  if (changing.length) {
    done.push({ images: changing, before: Int8Array.from(changing, i => byHand[i]), value, words });
    undone.length = 0;
    changing.forEach(i => { byHand[i] = value; });
    remember();
  }
  say(`${words}: ${images(changing.length)}`
    + (refused ? `; ${images(refused)} cannot be kept, since no program can use them` : ""));
  update();
}

const VERBS = { 1: "Kept", "-1": "Rejected", 0: "As the run has it" };

function undo() {
  const last = done.pop();
  if (!last) return;
  last.images.forEach((i, at) => { byHand[i] = last.before[at]; });
  undone.push(last);
  remember();
  say(`Undone: ${last.words}, ${images(last.images.length)}`);
  update();
}

function redo() {
  const next = undone.pop();
  if (!next) return;
  next.images.forEach(i => { byHand[i] = next.value; });
  done.push(next);
  remember();
  say(`Done again: ${next.words}, ${images(next.images.length)}`);
  update();
}

const say = words => { $("said").textContent = words; };

// Pairs of the first and the last of images in a row.
function runsOf(value) {
  const runs = [];
  for (let i = 0; i < N; i++) {
    if (byHand[i] !== value) continue;
    const last = runs[runs.length - 1];
    if (last && last[1] === i - 1) last[1] = i; else runs.push([i, i]);
  }
  return runs;
}

function choices() {
  const moved = { run: null, probability: { probability: threshold.probability }, best: { best: threshold.best } };
  return { kind: "fastsort choices", version: 1, input: data.name, images: N, mark: data.mark,
    threshold: moved[threshold.mode], keep: runsOf(1), reject: runsOf(-1) };
}

function takeChoices(told) {
  if (told.kind !== "fastsort choices" || told.version !== 1) throw new Error("this is no file of choices");
  if (told.mark !== data.mark || told.images !== N) throw new Error("it was saved on the page of another run");
  byHand.fill(0);
  for (const [value, runs] of [[1, told.keep], [-1, told.reject]]) {
    for (const [first, last] of runs) byHand.fill(value, first, last + 1);
  }
  const moved = told.threshold || {};
  threshold.mode = "probability" in moved ? "probability" : "best" in moved ? "best" : "run";
  Object.assign(threshold, moved);
  done.length = undone.length = 0;
}

function remember() {
  // Some browsers allow a page on the disk no memory.
  try { localStorage.setItem(memory, JSON.stringify(choices())); } catch (error) { say(`Not remembered: ${error.message}`); }
}

function recall() {
  try {
    const told = localStorage.getItem(memory);
    if (told) takeChoices(JSON.parse(told));
  } catch (error) { say(`What was chosen before is lost: ${error.message}`); }
}

function saveText(text, name, type) {
  const link = element("a", { href: URL.createObjectURL(new Blob([text], { type })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

function savedList() {
  const lines = [];
  for (let i = 0; i < N; i++) if (isKept(i)) lines.push(i);
  const how = { run: "the run's verdict", probability: `${judged} ${threshold.probability}`,
    best: `the ${images(threshold.best)} with the lowest junk probability` }[threshold.mode];
  const head = [`# fastsort kept ${one}s: ${lines.length} of ${N}, counted from 0`, `# input: ${data.name}`,
    `# chosen by: ${how}${byHand.some(Boolean) ? ", and by hand" : ""}`];
  return head.concat(lines).join("\n") + "\n";
}

function startChoices() {
  $("undo").addEventListener("click", undo);
  $("redo").addEventListener("click", redo);
  $("forget").addEventListener("click", () => choose(Int32Array.from(byHand.keys()).filter(i => byHand[i]), 0,
    "All choices by hand taken back"));
  $("save").addEventListener("click", () => saveText(JSON.stringify(choices()), "choices.json", "application/json"));
  $("save-list").addEventListener("click", () => saveText(savedList(), list, "text/plain"));
  $("load").addEventListener("change", event => {
    const file = event.target.files[0];
    if (file) file.text().then(text => {
      takeChoices(JSON.parse(text));
      remember();
      say(`Choices read from ${file.name}`);
      update();
    }).catch(error => say(`${file.name} was not taken: ${error.message}`));
    event.target.value = "";
  });
  document.addEventListener("keydown", event => {
    if (!(event.ctrlKey || event.metaKey) || !/^[zy]$/i.test(event.key) || /^(text|number|search)$/.test(event.target.type)) return;
    event.preventDefault();
    if (event.key.toLowerCase() === "y" || event.shiftKey) redo(); else undo();
  });
  drawn.push(({ chosen, changed, kinds }) => {
    $("changed").textContent = chosen ? `${images(chosen)} chosen by hand, ${count(changed)} changed` : "nothing chosen by hand";
    $("undo").disabled = !done.length;
    $("redo").disabled = !undone.length;
    $("forget").disabled = !chosen;
    $("now").textContent = `${count(kinds.kept)} kept`;
    $("save-list").textContent = `Save list of kept ${one}s (${count(kinds.kept)})`;
  });
}
