"use strict";
// Load the model into a worker, take photos, show what it finds, and save it.
//
// <html data-state> is "loading", "ready", "busy" while photos are processed, "done", or "failed"
// if the model cannot be loaded or has crashed.

const PIECE = 4 << 20; // characters of base64 to decode at a time; a multiple of 4
const DRAWN = 4096; // long side of a drawing at most, in pixels

const model = JSON.parse(byId("about").textContent);
const photos = []; // photos that were read, in the order of their image ids, which start with 1
const skipped = []; // {name, reason}
const queue = []; // files to process
const totals = new Map(); // class -> number of objects with the chosen score in all photos
const answers = new Map(); // id of a message to the worker -> its resolve and reject
let asked = 0; // messages to the worker so far
let worker;
let shown = -1; // index of the photo on the screen
let bitmap = null; // its pixels; null until they are decoded
let isLost = false; // whether its file can no longer be read
let isOutdated = false; // whether the screen is about to be updated
let failure = ""; // why the model does not work

function byId(id) {
  return document.getElementById(id);
}

function setState(state) {
  document.documentElement.dataset.state = state;
  byId("files").disabled = state === "loading" || state === "failed";
  const isPartial = state === "busy" || !photos.length;
  for (const id of ["save-json", "save-images"]) byId(id).disabled = isPartial;
}

/** Set the text of an element, which screen readers may announce, if it is another one. */
function write(id, text) {
  if (byId(id).textContent !== text) byId(id).textContent = text;
}

/** Show a status, with the `share` of the work that is done if it is given; 0 means unknown. */
function say(text, share) {
  const bar = byId("progress");
  write("status", text);
  bar.hidden = share === undefined;
  if (share) bar.value = share;
  else bar.removeAttribute("value");
}

function fail(text) {
  failure ||= text;
  queue.length = 0;
  setState("failed");
  say(failure);
}

/** Let the browser draw and handle events. */
function pause() {
  return new Promise((resume) => setTimeout(resume));
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
    await pause();
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
    worker.terminate();
    const reason = event.message || "it crashed";
    fail(`The model stopped working: ${reason}. Save what you need, then reload the page.`);
    for (const { reject } of answers.values()) reject(new Error(`stopped the model: ${reason}`));
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

/** Add files to the queue, in the order of their names. */
function take(files) {
  const { state } = document.documentElement.dataset;
  if (failure) return;
  queue.push(...files.sort((a, b) => (a.name < b.name ? -1 : Number(a.name > b.name))));
  if (queue.length && ["ready", "done"].includes(state)) work();
}

/** Process the files in the queue one after the other. */
async function work() {
  setState("busy");
  for (let done = 0; queue.length; done += 1) {
    const file = queue.shift();
    const total = done + 1 + queue.length;
    say(`${file.name}: photo ${done + 1} of ${total}`, done / total);
    try {
      addPhoto(await ask("detect", { file }));
    } catch (error) {
      skipped.push({ name: file.name, reason: error.message });
      showSkipped();
    }
  }
  if (failure) {
    fail(failure);
    return;
  }
  setState("done");
  const lost = skipped.length ? `, ${skipped.length} skipped` : "";
  say(`${plural(photos.length, "photo")}${lost}.`);
}

function addPhoto(found) {
  const cells = model.mask_size ** 2;
  const objects = Array.from(found.scores, (score, i) => ({
    score,
    label: found.labels[i],
    box: found.boxes.subarray(4 * i, 4 * i + 4),
    mask: found.masks && found.masks.subarray(cells * i, cells * (i + 1)),
  }));
  objects.sort((a, b) => b.score - a.score);
  const { file, orientation, width, height, note } = found;
  photos.push({ name: file.name, file, orientation, width, height, note, objects });
  const button = document.createElement("button");
  const place = photos.length - 1;
  button.type = "button";
  button.addEventListener("click", () => show(place));
  byId("photos").append(document.createElement("li"));
  byId("photos").lastChild.append(button);
  countPhoto(place);
  showTable();
  if (shown < 0) show(place);
}

function threshold() {
  return Math.fround(byId("threshold").value); // scores are float32
}

/** Return the objects of a photo that have at least the chosen score. */
function kept(photo) {
  return photo.objects.filter((object) => object.score >= threshold());
}

// The screen

/** Show a photo; read its file again, so that only one photo is in memory. */
async function show(place) {
  shown = place;
  const photo = photos[place];
  bitmap?.close();
  bitmap = null;
  isLost = false;
  byId("results").hidden = false;
  byId("photos").querySelector("[aria-current]")?.removeAttribute("aria-current");
  photoButton(place).setAttribute("aria-current", "true");
  showTable();
  draw();
  const long = Math.max(photo.width, photo.height);
  const smaller = long > DRAWN ? { resizeQuality: "high" } : {};
  const isWide = (photo.width === long) === (photo.orientation < 5); // in the file
  if (long > DRAWN) smaller[isWide ? "resizeWidth" : "resizeHeight"] = DRAWN;
  let pixels = null;
  try {
    const options = { imageOrientation: "from-image", ...smaller };
    pixels = upright(await createImageBitmap(photo.file, options), photo.orientation);
  } catch {
    // The note says so.
  }
  if (photos[shown] !== photo) {
    pixels?.close();
    return;
  }
  bitmap?.close(); // if the same photo was shown twice
  bitmap = pixels;
  isLost = !pixels;
  draw();
}

function photoButton(place) {
  return byId("photos").children[place].firstChild;
}

/** Draw the photo on the screen, or an empty picture while it is decoded. */
function draw() {
  const photo = photos[shown];
  if (!photo) return;
  const canvas = byId("photo");
  const objects = kept(photo);
  const density = window.devicePixelRatio || 1;
  const room = byId("frame").clientWidth * density;
  const fits = Math.min(room, window.innerHeight * 0.8 * density * (photo.width / photo.height));
  drawPhoto(canvas, bitmap, photo, objects, model, Math.max(fits, 1), density);
  canvas.style.width = `${canvas.width / density}px`;
  const found = describe(objects);
  canvas.setAttribute("aria-label", `${photo.name}: ${found}`);
  const size = `${photo.width} x ${photo.height} pixels`;
  write("caption", `${shown + 1}. ${photo.name}, ${size}: ${found}`);
  write("note", isLost ? "The file can no longer be shown; it was moved or changed." : photo.note);
  byId("save-png").disabled = !bitmap;
  byId("scores").replaceChildren(...objects.map(({ label, score }) => {
    const row = document.createElement("li");
    row.textContent = `${model.classes[label]} ${score.toFixed(2)}`;
    return row;
  }));
}

/** Return how many objects of each class there are, in words. */
function describe(objects) {
  const counts = mostFrequent(countClasses(objects));
  return counts.map(([label, n]) => `${model.classes[label]} ${n}`).join(", ") || "no objects";
}

/** Add the number of objects of each class to `counts`. */
function countClasses(objects, counts = new Map()) {
  for (const { label } of objects) counts.set(label, (counts.get(label) || 0) + 1);
  return counts;
}

function mostFrequent(counts) {
  return [...counts].sort((a, b) => b[1] - a[1] || a[0] - b[0]);
}

/** Show the number of objects of a photo in the list, and add it to the totals. */
function countPhoto(place) {
  const objects = kept(photos[place]);
  photoButton(place).textContent = `${photos[place].name}: ${describe(objects)}`;
  countClasses(objects, totals);
}

function showTable() {
  const here = countClasses(shown < 0 ? [] : kept(photos[shown]));
  const body = byId("counts");
  body.replaceChildren();
  for (const [label, all] of mostFrequent(totals)) {
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
}

/** Update numbers and picture, once for all events before the browser draws next. */
function update() {
  if (isOutdated) return;
  isOutdated = true;
  requestAnimationFrame(() => {
    isOutdated = false;
    byId("least").textContent = Number(byId("threshold").value).toFixed(2);
    totals.clear();
    photos.forEach((_, place) => countPhoto(place));
    showTable();
    draw();
  });
}

function showSkipped() {
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
function cocoResults(photo, imageId, objects) {
  const { width, height } = photo;
  return objects.map(({ score, label, box, mask }) => {
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

async function saveResults() {
  setState("busy"); // large masks take seconds
  const chosen = photos.map(kept);
  const parts = []; // of a file that may be longer than the longest string
  let problem = "";
  try {
    for (const [i, photo] of photos.entries()) {
      say(`predictions.json: photo ${i + 1} of ${photos.length}`, i / photos.length);
      await pause();
      for (const row of cocoResults(photo, i + 1, chosen[i])) {
        parts.push(parts.length ? ",\n" : "[", JSON.stringify(row));
      }
    }
    parts.push(parts.length ? "]\n" : "[]\n");
    save(new Blob(parts, { type: "application/json" }), "predictions.json");
  } catch (error) {
    problem = `predictions.json cannot be saved: ${error.message}`;
  }
  await work(); // with the photos that were added meanwhile
  if (problem) say(problem);
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
  canvas.toBlob((blob) => {
    if (blob) save(blob, `${photo.name.replace(/\.[^.]*$/, "")}.png`);
    else say("The picture cannot be saved: this browser has too little memory for it.");
  });
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
  document.addEventListener("dragleave", (event) => {
    if (event.relatedTarget) return; // to another element of the page
    byId("drop").classList.remove("over");
  });
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
  byId("threshold").addEventListener("input", update);
  byId("previous").addEventListener("click", () => step(-1));
  byId("next").addEventListener("click", () => step(1));
  byId("save-json").addEventListener("click", saveResults);
  byId("save-images").addEventListener("click", saveImages);
  byId("save-png").addEventListener("click", savePicture);
  window.addEventListener("resize", update);
  const notices = byId("third-party");
  notices.addEventListener("toggle", async () => {
    const content = await unpacked("notices", () => {});
    notices.querySelector("pre").textContent = new TextDecoder().decode(content);
  }, { once: true });
}

listen();
load().then(
  () => {
    setState("ready");
    say("Ready. Drop photos on this page, or choose them.");
    if (queue.length) work();
  },
  (error) => fail(`The model cannot be loaded: ${error.message}`),
);
