"use strict";
// Load the model into a worker, take photos, show what it finds, and save it.
//
// <html data-state> is "loading", "ready", "busy" while photos are processed, "done", or "failed"
// if the model cannot be loaded.

const PIECE = 4 << 20; // letters of base64 to decode at a time; a multiple of 4
const DRAWN = 4096; // long side of a drawing at most, in pixels

const model = JSON.parse(byId("about").textContent);
const photos = []; // that could be read, in the order of their image ids, which start with 1
const skipped = []; // {name, reason}
const queue = [];
const answers = new Map(); // id of a message to the worker -> how to take the answer
let asked = 0; // messages to the worker so far
let worker;
let shown = -1; // index of the photo on the screen
let bitmap = null; // its pixels

function byId(id) {
  return document.getElementById(id);
}

function setState(state) {
  document.documentElement.dataset.state = state;
}

function say(text, share) {
  byId("status").textContent = text;
  byId("progress").hidden = share === undefined;
  if (share !== undefined) byId("progress").value = share;
}

function plural(count, word) {
  return `${count} ${word}${count === 1 ? "" : "s"}`;
}

// Loading

/** Return the bytes of an embedded file, which is compressed and in base64, and remove it. */
async function unpacked(id, advance) {
  const element = byId(id);
  const text = element.textContent;
  element.remove();
  const padding = text.slice(-2).replace(/[^=]/g, "").length;
  const packed = new Uint8Array((text.length / 4) * 3 - padding);
  for (let from = 0, at = 0; from < text.length; from += PIECE) {
    const piece = atob(text.slice(from, from + PIECE));
    for (let i = 0; i < piece.length; i += 1, at += 1) packed[at] = piece.charCodeAt(i);
    advance(piece.length);
    await new Promise((resume) => setTimeout(resume)); // let the browser draw
  }
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}

/** Send a task to the worker, and return its result. */
function ask(task, message, transfer = []) {
  asked += 1;
  const id = asked;
  return new Promise((resolve, reject) => {
    answers.set(id, { resolve, reject });
    worker.postMessage({ id, task, ...message }, transfer);
  });
}

function startWorker(...code) {
  worker = new Worker(URL.createObjectURL(new Blob(code, { type: "text/javascript" })));
  worker.onmessage = ({ data }) => {
    const { resolve, reject } = answers.get(data.id);
    answers.delete(data.id);
    if (data.error === undefined) resolve(data.result);
    else reject(new Error(data.error));
  };
  worker.onerror = (event) => {
    event.preventDefault();
    for (const { reject } of answers.values()) reject(new Error(event.message || "it crashed"));
    answers.clear();
  };
}

async function load() {
  if (!window.DecompressionStream || !window.OffscreenCanvas || !window.WebAssembly) {
    throw new Error("this browser is too old; use Chrome or Edge 113, Firefox 113, Safari 17");
  }
  const ids = ["runtime", "glue", "wasm", "onnx"];
  const total = ids.reduce((sum, id) => sum + (byId(id).textContent.length / 4) * 3, 0);
  let done = 0;
  const advance = (bytes) => {
    done += bytes;
    say("Unpacking the model …", (0.6 * done) / total);
  };
  const files = {};
  for (const id of ids) files[id] = await unpacked(id, advance);
  say("Starting the model …", 0.7);
  startWorker(files.runtime, "\n", byId("worker").textContent);
  const { glue, wasm, onnx } = files;
  await ask("load", { glue, wasm, onnx, model }, [wasm, onnx]);
}

// Photos

/** Process files one after the other, in the order of their names. */
async function take(files) {
  const { state } = document.documentElement.dataset;
  if (state === "loading" || state === "failed" || !files.length) return;
  queue.push(...[...files].sort((a, b) => (a.name < b.name ? -1 : 1)));
  if (state === "busy") return;
  setState("busy");
  for (let done = 0; queue.length; done += 1) {
    const file = queue.shift();
    say(`${file.name}: photo ${done + 1} of ${done + 1 + queue.length}`,
      done / (done + 1 + queue.length));
    try {
      addPhoto(file, await ask("detect", { file }));
    } catch (error) {
      skipped.push({ name: file.name, reason: error.message });
      showSkipped();
    }
    showCounts();
  }
  setState("done");
  const lost = skipped.length ? `, ${skipped.length} skipped` : "";
  say(`${plural(photos.length, "photo")} with ${plural(countAll(), "object")}${lost}.`);
}

function addPhoto(file, found) {
  const cells = model.mask_size ** 2;
  const objects = Array.from(found.scores, (score, i) => ({
    score,
    label: found.labels[i],
    box: found.boxes.subarray(4 * i, 4 * i + 4),
    mask: found.masks && found.masks.subarray(cells * i, cells * (i + 1)),
  }));
  objects.sort((a, b) => b.score - a.score);
  const { width, height, note } = found;
  photos.push({ file, name: file.name, width, height, note, objects });
  const button = document.createElement("button");
  const place = photos.length - 1;
  button.type = "button";
  button.addEventListener("click", () => show(place));
  byId("photos").append(document.createElement("li"));
  byId("photos").lastChild.append(button);
  if (shown < 0) show(place);
}

function threshold() {
  return Math.fround(byId("threshold").value); // scores are float32
}

/** Return the objects of a photo that have at least the chosen score. */
function kept(photo) {
  return photo.objects.filter((object) => object.score >= threshold());
}

function countAll() {
  return photos.reduce((sum, photo) => sum + kept(photo).length, 0);
}

// The screen

/** Show a photo; read its file again, so that only one photo is in memory. */
async function show(place) {
  shown = place;
  const photo = photos[place];
  showCounts();
  const long = Math.max(photo.width, photo.height);
  const smaller = long > DRAWN ? { resizeQuality: "high" } : {};
  if (long > DRAWN) smaller[photo.width === long ? "resizeWidth" : "resizeHeight"] = DRAWN;
  let pixels = null;
  try {
    pixels = await createImageBitmap(photo.file, { imageOrientation: "from-image", ...smaller });
  } catch {
    photo.note = "The file cannot be shown any more; it was moved or changed.";
  }
  if (shown !== place) {
    pixels?.close();
    return;
  }
  bitmap?.close();
  bitmap = pixels;
  byId("results").hidden = false;
  draw();
}

function draw() {
  const photo = photos[shown];
  if (!photo) return;
  const canvas = byId("photo");
  canvas.hidden = !bitmap;
  const objects = kept(photo);
  if (bitmap) {
    const density = window.devicePixelRatio || 1;
    const room = byId("frame").clientWidth * density;
    const fits = Math.min(room, window.innerHeight * 0.8 * density * (photo.width / photo.height));
    drawPhoto(canvas, bitmap, photo, objects, model, Math.max(fits, 1), density);
    canvas.style.width = `${canvas.width / density}px`;
  }
  const found = objects.length ? describe(objects) : "no objects";
  canvas.setAttribute("aria-label", `${photo.name}: ${found}`);
  byId("caption").textContent =
    `${shown + 1}. ${photo.name}, ${photo.width} x ${photo.height} pixels: ${found}`;
  byId("note").textContent = photo.note;
  byId("save-png").disabled = !bitmap;
}

/** Return how many objects of each class there are, in words. */
function describe(objects) {
  return countClasses(objects).map(([label, n]) => `${model.classes[label]} ${n}`).join(", ");
}

/** Return [class, number of objects] of the classes that have some, most frequent first. */
function countClasses(objects) {
  const counts = new Map();
  for (const { label } of objects) counts.set(label, (counts.get(label) || 0) + 1);
  return [...counts].sort((a, b) => b[1] - a[1] || a[0] - b[0]);
}

/** Update the numbers: the list of photos and the table of classes. */
function showCounts() {
  const value = Number(byId("threshold").value).toFixed(2);
  byId("least").textContent = value;
  photos.forEach((photo, i) => {
    const button = byId("photos").children[i].firstChild;
    const objects = kept(photo);
    button.textContent = `${photo.name}: ${objects.length ? describe(objects) : "no objects"}`;
    button.setAttribute("aria-current", i === shown);
  });
  const here = new Map(shown < 0 ? [] : countClasses(kept(photos[shown])));
  const body = byId("counts");
  body.replaceChildren();
  for (const [label, all] of countClasses(photos.flatMap(kept))) {
    const row = body.insertRow();
    const name = document.createElement("th");
    name.scope = "row";
    name.textContent = model.classes[label];
    row.append(name);
    for (const count of [here.get(label) || 0, all]) {
      const cell = row.insertCell();
      cell.className = "n";
      cell.textContent = count;
    }
  }
  for (const id of ["save-json", "save-images"]) byId(id).disabled = !photos.length;
}

function showSkipped() {
  byId("skipped").hidden = false;
  const row = document.createElement("li");
  const { name, reason } = skipped.at(-1);
  row.textContent = `${name} ${reason}.`;
  byId("skipped").append(row);
}

function step(by) {
  if (photos.length) show((shown + by + photos.length) % photos.length);
}

// Files

function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

/** Return the COCO results of a photo, as in the predictions.json of `d2ext predict`. */
function cocoResults(photo, imageId) {
  const { width, height } = photo;
  return kept(photo).map(({ score, label, box, mask }) => {
    const [x0, y0, x1, y1] = box;
    const result = {
      image_id: imageId,
      category_id: label + 1,
      bbox: [x0, y0, x1 - x0, y1 - y0],
      score,
    };
    if (mask) {
      const pasted = pasteMask(mask, model.mask_size, box, width, height, model.mask_threshold);
      result.segmentation = encodeMask(pasted, width, height);
    }
    return result;
  });
}

function saveResults() {
  const rows = photos.flatMap((photo, i) => cocoResults(photo, i + 1));
  const text = `[${rows.map((row) => JSON.stringify(row)).join(",\n")}]\n`;
  save(new Blob([text], { type: "application/json" }), "predictions.json");
}

/** Save the images and categories that the ids in predictions.json refer to. */
function saveImages() {
  const index = {
    info: { description: "d2ext predict" },
    images: photos.map(({ name, width, height }, i) => ({
      id: i + 1,
      file_name: name,
      width,
      height,
    })),
    annotations: [],
    categories: model.classes.map((name, i) => ({ id: i + 1, name })),
    skipped: skipped.map(({ name, reason }) => ({ file_name: name, reason })),
  };
  const text = `${JSON.stringify(index, null, 1)}\n`;
  save(new Blob([text], { type: "application/json" }), "images.json");
}

function savePicture() {
  const photo = photos[shown];
  const canvas = document.createElement("canvas");
  const width = photo.width * Math.min(1, DRAWN / Math.max(photo.width, photo.height));
  const unit = Math.max(1, width / 1000);
  drawPhoto(canvas, bitmap, photo, kept(photo), model, width, unit);
  canvas.toBlob((blob) => save(blob, `${photo.name.replace(/\.[^.]*$/, "")}.png`));
}

// Events

function listen() {
  const input = byId("files");
  input.addEventListener("change", () => {
    take([...input.files]);
    input.value = ""; // so that the same photo can be chosen again
  });
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    byId("drop").classList.add("over");
  });
  document.addEventListener("dragleave", () => byId("drop").classList.remove("over"));
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    byId("drop").classList.remove("over");
    take([...event.dataTransfer.files]);
  });
  document.addEventListener("keydown", (event) => {
    const isCommand = event.ctrlKey || event.altKey || event.metaKey;
    if (event.target === byId("threshold") || isCommand) return;
    if (event.key === "ArrowLeft") step(-1);
    if (event.key === "ArrowRight") step(1);
  });
  byId("threshold").addEventListener("input", () => {
    showCounts();
    draw();
  });
  byId("previous").addEventListener("click", () => step(-1));
  byId("next").addEventListener("click", () => step(1));
  byId("save-json").addEventListener("click", saveResults);
  byId("save-images").addEventListener("click", saveImages);
  byId("save-png").addEventListener("click", savePicture);
  window.addEventListener("resize", draw);
}

listen();
load().then(
  () => {
    byId("files").disabled = false;
    setState("ready");
    say("Ready. Drop photos on this page, or choose them.");
  },
  (error) => {
    setState("failed");
    say(`The model cannot be loaded: ${error.message}`);
  },
);
