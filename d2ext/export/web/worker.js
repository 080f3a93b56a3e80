"use strict";
// Answer the page's messages: {id, task, ...} -> {id, result} or {id, error}.
//
// The page puts ONNX Runtime's script, resize.js, turn.js and photo.js before this file.

let session = null;
let model = null;

const tasks = {
  /** Load the model; `message` has the bytes `wasm`, `glue` and `onnx`, and `model`. */
  async load(message) {
    model = message.model;
    ort.env.logLevel = "error";
    ort.env.wasm.numThreads = 1; // pages opened from a disk may not share memory between threads
    ort.env.wasm.wasmBinary = message.wasm;
    // The URL must be of this worker: those of a page from a disk belong to another origin.
    const glue = new Blob([message.glue], { type: "text/javascript" });
    ort.env.wasm.wasmPaths = { mjs: URL.createObjectURL(glue) };
    session = await ort.InferenceSession.create(new Uint8Array(message.onnx), {
      executionProviders: ["wasm"],
      logSeverityLevel: 3,
    });
  },

  /** Detect objects in the photo `message.file`; see `readPhoto` and `detect`. */
  async detect(message) {
    const { input, ...photo } = await readPhoto(message.file, model);
    try {
      return { ...photo, ...(await detect(input, photo.width, photo.height)) };
    } catch (error) {
      throw new Error(`cannot be processed by the model (${error.message || error})`);
    }
  },
};

/**
 * Return the objects in an image, in descending order of their scores.
 *
 * @param input Pixels for the model, with width and height; see `modelInput`.
 * @param width Width of the photo.
 * @returns Arrays with the objects' `boxes` (x0, y0, x1, y1 in pixels of the photo), `scores`,
 *   `labels` (indices of classes) and, for models with masks, `masks`.
 */
async function detect(input, width, height) {
  const image = new ort.Tensor("uint8", input.pixels, [input.height, input.width, 3]);
  const found = await session.run({ image });
  const boxes = photoBoxes(found.boxes.data, width / input.width, height / input.height);
  const kept = [];
  for (let i = 0; i < found.scores.data.length; i += 1) {
    for (let k = 4 * i; k < 4 * i + 4; k += 1) {
      boxes[k] = Math.min(Math.max(boxes[k], 0), k % 2 ? height : width);
    }
    if (boxes[4 * i + 2] > boxes[4 * i] && boxes[4 * i + 3] > boxes[4 * i + 1]) kept.push(i);
  }
  const rows = (array, length) => {
    const chosen = new Float32Array(kept.length * length);
    kept.forEach((i, k) => chosen.set(array.subarray(i * length, (i + 1) * length), k * length));
    return chosen;
  };
  return {
    boxes: rows(boxes, 4),
    scores: rows(found.scores.data, 1),
    labels: kept.map((i) => Number(found.classes.data[i])),
    masks: found.masks ? rows(found.masks.data, model.mask_size ** 2) : null,
  };
}

/** Return boxes of the resized image in pixels of the photo, in float32 as in torch. */
function photoBoxes(boxes, scaleX, scaleY) {
  const scales = [Math.fround(scaleX), Math.fround(scaleY)];
  return boxes.map((value, k) => value * scales[k % 2]);
}

self.onmessage = async ({ data: { id, task, ...message } }) => {
  try {
    self.postMessage({ id, result: await tasks[task](message) });
  } catch (error) {
    self.postMessage({ id, error: error.message || String(error) });
  }
};
