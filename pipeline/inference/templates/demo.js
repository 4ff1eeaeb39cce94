"use strict";
const at = id => document.getElementById(id);
const original = at("image"), paint = at("paint"), pen = paint.getContext("2d"), ring = at("ring");
const results = [...document.querySelectorAll("img.result")];
const part = (result, name) => result.closest("figure").querySelector(name);
const say = text => { at("message").textContent = text; };
const size = () => Number(at("size").value);
let bytes = null, stem = "image";  // of the image that is painted on
let opening = null, loading = null, run = null;  // the newest request of each kind
let stroke = null;  // that is being painted

async function ask(path, options) {
  const answer = await fetch(path, { headers: { "X-Lacuna": "demo" }, ...options }).catch(() => {
    throw new Error("no answer: is the command demo still running?");
  });
  if (!answer.ok) throw new Error(await answer.text());
  return answer.blob();
}
const post = (path, body, signal) => ask(path, { method: "POST", body, signal });

// The image
async function open(source, name) {
  opening = source;
  try {
    const content = await source;
    const image = await createImageBitmap(await post("upright", content));
    if (opening !== source) return;
    start(content, image);
    stem = name;
    zoom(0);
  } catch (error) { if (opening === source) say(error.message); }
}
const openFile = file => open(file, file.name.replace(/\.[^.]*$/, ""));
function start(content, image) {
  bytes = content;
  opening = loading = stroke = null;
  const { width, height } = image;
  for (const canvas of [original, paint]) Object.assign(canvas, { width, height });
  original.getContext("2d").drawImage(image, 0, 0);
  document.body.style.setProperty("--ratio", width / height);
  at("tools").disabled = false;
  steps.length = 0;
  setDone(0);
  results.forEach(forget);
  say("");
}

// The mask: steps, of which the first `done` are drawn
const steps = [];
let done = 0;
function setDone(number) {
  done = number;
  at("undo").disabled = !done;
  at("redo").disabled = done === steps.length;
  drop();
}
function add(step) {
  steps.splice(done, Infinity, step);
  setDone(done + 1);
}
const clear = () => pen.clearRect(0, 0, paint.width, paint.height);
function redraw() {
  clear();
  for (const step of steps.slice(0, done)) step();
  stroke?.step();
}
function line([x, y], [toX, toY], width, erase) {
  pen.globalCompositeOperation = erase ? "destination-out" : "source-over";
  Object.assign(pen, { lineWidth: width, lineCap: "round", strokeStyle: "#ff2d55" });
  pen.beginPath();
  pen.moveTo(x, y);
  pen.lineTo(toX + 0.01, toY);  // a click is a dot: canvases draw no line without length
  pen.stroke();
}
function newStroke() {
  const width = size() * paint.width / paint.getBoundingClientRect().width;
  const erase = at("eraser").checked, points = [];
  const draw = (point, i) => line(points[Math.max(0, i - 1)], point, width, erase);
  const extend = point => draw(point, points.push(point) - 1);
  return { extend, step: () => points.forEach(draw) };
}
async function loadMask(file) {
  const image = bytes;
  loading = file;
  try {
    const answer = await post(`mask/${paint.width}x${paint.height}`, file);
    const layer = await createImageBitmap(answer);
    if (loading !== file || bytes !== image) return;
    add(() => {
      pen.globalCompositeOperation = "copy";
      pen.drawImage(layer, 0, 0);
      pen.globalCompositeOperation = "source-in";
      pen.fillStyle = "#ff2d55";
      pen.fillRect(0, 0, paint.width, paint.height);
    });
    redraw();
  } catch (error) { if (loading === file && bytes === image) say(error.message); }
}
function mask() {
  const flat = document.createElement("canvas"), { width, height } = paint;
  const image = pen.getImageData(0, 0, width, height), pixels = new Uint32Array(image.data.buffer);
  for (let i = 0; i < pixels.length; i++) pixels[i] = pixels[i] >>> 31 ? 0xffffffff : 0xff000000;
  Object.assign(flat, { width, height }).getContext("2d").putImageData(image, 0, 0);
  return new Promise(resolve => flat.toBlob(resolve, "image/png"));
}

// The view: images are shown `scale` times as large as the stage and moved by parts of it
const view = { scale: 1, x: 0, y: 0 };
// Zoom at the point x, y of the stage, then pan by dx, dy of it.
function zoom(factor, x = 0.5, y = 0.5, dx = 0, dy = 0) {
  const scale = Math.min(40, Math.max(1, view.scale * factor)), larger = scale / view.scale;
  const [left, top] = [x - (x - view.x) * larger + dx, y - (y - view.y) * larger + dy];
  const within = part => Math.min(0, Math.max(1 - scale, part));  // the image covers the stage
  Object.assign(view, { scale, x: within(left), y: within(top) });
  const transform = `translate(${view.x * 100}%, ${view.y * 100}%) scale(${scale})`;
  for (const each of document.querySelectorAll(".view")) each.style.transform = transform;
}
function inside(element, x, y) {
  const box = element.getBoundingClientRect();
  return [(x - box.left) / box.width, (y - box.top) / box.height];
}
document.querySelector(".panes").addEventListener("wheel", event => {
  const stage = event.target.closest(".stage");
  if (!stage || !bytes) return;
  event.preventDefault();
  const speed = event.ctrlKey ? 0.02 : 0.003;  // a pinch on a touchpad is a slow wheel with Ctrl
  zoom(2 ** (-event.deltaY * speed), ...inside(stage, event.clientX, event.clientY));
}, { passive: false });

// The pointer: one finger or the left button paints, all else pans
const fingers = new Map();
function extend({ clientX, clientY }) {
  const [x, y] = inside(paint, clientX, clientY);
  stroke.extend([x * paint.width, y * paint.height]);
}
function endStroke(keep) {
  const step = stroke?.step;
  stroke = null;
  if (step) keep ? add(step) : redraw();
}
function hand() {  // the middle of the fingers, in the stage, and their distance
  const [[x, y], [x2, y2]] = [...fingers.values(), ...fingers.values()];
  return [...inside(at("stage"), (x + x2) / 2, (y + y2) / 2), Math.hypot(x - x2, y - y2) || 1];
}
paint.addEventListener("pointerdown", event => {
  if (!bytes || event.button > 1) return;
  paint.setPointerCapture(event.pointerId);
  fingers.set(event.pointerId, [event.clientX, event.clientY]);
  endStroke(false);  // what was painted before a second finger touched is not meant
  if (fingers.size > 1 || event.button || document.body.matches(".pan")) return;
  stroke = newStroke();
  extend(event);
});
paint.addEventListener("pointermove", event => {
  const [left, top] = inside(at("stage"), event.clientX, event.clientY);
  Object.assign(ring.style, { left: `${left * 100}%`, top: `${top * 100}%` });
  ring.hidden = !bytes || event.pointerType === "touch";
  if (!fingers.has(event.pointerId)) return;
  if (stroke) return extend(event);
  const [x, y, apart] = hand();
  fingers.set(event.pointerId, [event.clientX, event.clientY]);
  const [toX, toY, toApart] = hand();
  zoom(toApart / apart, x, y, toX - x, toY - y);
});
for (const kind of ["pointerup", "pointercancel"]) paint.addEventListener(kind, event => {
  if (fingers.delete(event.pointerId)) endStroke(kind === "pointerup");
});
paint.addEventListener("pointerleave", () => { ring.hidden = true; });
paint.addEventListener("mousedown", event => event.button === 1 && event.preventDefault());

// Filling
function forget(result) {
  URL.revokeObjectURL(part(result, "a").href);
  result.removeAttribute("src");
  part(result, ".done").hidden = true;
  part(result, ".clock").textContent = "";
}
function drop() {  // the answer that is awaited: it is of an earlier image or mask
  say(run ? "the mask changed: press Remove again" : "");
  run?.abort();
  if (run) results.forEach(forget);
  run = null;
  at("run").disabled = !bytes;
}
async function fill(result, hole, signal) {
  const form = new FormData(), began = performance.now(), link = part(result, "a");
  form.append("image", new Blob([bytes]));
  form.append("mask", hole);
  for (const name of ["grow", "feather"]) form.append(name, at(name).value);
  const clock = setInterval(() => {
    part(result, ".clock").textContent = `${((performance.now() - began) / 1000).toFixed(1)} s`;
  }, 100);
  try {
    result.filled = await post(`fill/${result.dataset.model}`, form, signal);
  } finally { clearInterval(clock); }
  result.src = link.href = URL.createObjectURL(result.filled);
  part(result, ".done").hidden = false;
}
at("run").addEventListener("click", async () => {
  const mine = run = new AbortController();
  at("run").disabled = true;
  say("");
  results.forEach(forget);
  results[0].closest("figure").scrollIntoView({ block: "nearest" });
  try {
    const hole = await mask();
    for (const result of results) await fill(result, hole, mine.signal);
  } catch (error) { if (run === mine) say(error.message); }
  if (run !== mine) return;
  run = null;
  at("run").disabled = false;
});
for (const result of results) {
  part(result, ".stage").addEventListener("click", () => {
    if (part(result, ".done").hidden) return;
    const own = part(result, "a").href;
    result.src = result.src === own ? original.toDataURL() : own;
  });
  part(result, ".continue").addEventListener("click", async () => {
    const content = opening = result.filled, image = await createImageBitmap(content);
    if (opening === content) start(content, image);
  });
}

// Buttons, files and keys
const CLICKS = {
  sample: () => open(ask("sample"), "sample"),
  undo: () => { setDone(done - 1); redraw(); },
  redo: () => { setDone(done + 1); redraw(); },
  clear: () => { add(clear); redraw(); },
  in: () => zoom(1.5),
  out: () => zoom(1 / 1.5),
  fit: () => zoom(0),
  save: async () => {
    const href = URL.createObjectURL(await mask()), link = document.createElement("a");
    Object.assign(link, { href, download: `${stem}_mask.png` }).click();
  },
};
for (const [id, action] of Object.entries(CLICKS)) at(id).addEventListener("click", action);
const KEYS = { b: "brush", e: "eraser", "+": "in", "=": "in", "-": "out", 0: "fit",
               "ctrl+z": "undo", "ctrl+shift+z": "redo", "ctrl+y": "redo" };
addEventListener("keydown", event => {
  if (event.target.matches("[type=number]") || fingers.size) return;
  const command = (event.ctrlKey || event.metaKey) && !event.altKey;
  const held = command ? event.shiftKey ? "ctrl+shift+" : "ctrl+" : "";
  const key = held + event.key.toLowerCase();
  const factor = { "[": 0.8, "]": 1.25 }[key];
  if (key === " " && !event.target.matches("button, a, [type=file]")) {
    document.body.classList.add("pan");
  } else if (factor) {
    at("size").value = Math.round(size() * factor);
    outline();
  } else if (KEYS[key]) at(KEYS[key]).click();
  else return;
  event.preventDefault();
});
for (const kind of ["keyup", "blur"]) addEventListener(kind, event => {
  if (kind === "blur" || event.key === " ") document.body.classList.remove("pan");
});
addEventListener("click", event => {  // Space is to pan again, not to press what was clicked
  if (event.detail) event.target.closest("button, a")?.blur();
});
function outline() {
  at("stage").style.setProperty("--brush", `${size()}px`);
}
at("size").addEventListener("input", outline);
outline();
for (const name of ["grow", "feather"]) {
  at(name).addEventListener("input", drop);
  at(name).addEventListener("change", () => {  // feather is a part of grow
    const other = at(name === "grow" ? "feather" : "grow");
    if (Number(at("feather").value) > at("grow").value) other.value = at(name).value;
  });
}
for (const [id, take] of [["file", openFile], ["load", loadMask]]) {
  at(id).addEventListener("change", ({ target }) => {
    if (target.files[0]) take(target.files[0]);
    target.value = "";  // the same file can be chosen again
    target.blur();
  });
}
document.addEventListener("dragover", event => event.preventDefault());
document.addEventListener("drop", event => {
  event.preventDefault();
  if (event.dataTransfer.files[0]) openFile(event.dataTransfer.files[0]);
});
