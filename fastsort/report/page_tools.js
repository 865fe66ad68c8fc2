"use strict";
// What the scripts of every page share: elements, numbers, and drawing again when a verdict changes.
const data = JSON.parse(document.getElementById("data").textContent);
const $ = id => document.getElementById(id);
const N = data.n;

const count = n => n.toLocaleString("en-US");

function element(tag, attributes, ...children) {
  const made = tag === "svg" || tag.startsWith("svg:")
    ? document.createElementNS("http://www.w3.org/2000/svg", tag.replace("svg:", ""))
    : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function unpacked(text, Type) {
  const letters = atob(text), bytes = new Uint8Array(letters.length);
  for (let i = 0; i < letters.length; i++) bytes[i] = letters.charCodeAt(i);
  return new Type(bytes.buffer);
}

// Parts of the page that are drawn again when a verdict changes.
const drawn = [];
let waiting = false;

function update() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    const found = tally();
    drawn.forEach(draw => draw(found));
  });
}
