"use strict";
// Read a photo as pixels for the model.

const PART_PIXELS = 4e6; // to read at a time, because the size of a canvas is limited
const MAX_PIXELS = 178956970; // as in `d2ext predict`
// Like Pillow: turned upright, without color management.
const DECODED = {
  imageOrientation: "from-image",
  colorSpaceConversion: "none",
  premultiplyAlpha: "none",
};

const TRANSPARENT = "Transparent pixels have other colors here than in d2ext predict.";
const PRINTED = "Colors for printing (CMYK), as this browser converts them.";
const DEEP = "16 bits per channel, which d2ext predict reduces in another way than this browser.";

/**
 * Decode a photo, and resize it for the model.
 *
 * @returns Width and height of the photo, a `note` for the user, and the model's `input`: pixels
 *   with 3 bytes each, its width and height.
 * @throws Error whose message says why the photo cannot be used.
 */
async function readPhoto(file, model) {
  let bytes;
  try {
    bytes = new Uint8Array(await file.arrayBuffer());
  } catch {
    throw new Error("cannot be read; it is a folder, or was moved or changed");
  }
  const header = readHeader(bytes);
  if (header.width * header.height > MAX_PIXELS) throw tooLarge(header.width * header.height);
  if (header.isCut) throw new Error("is cut off: the end of the file is missing");
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, DECODED);
  } catch {
    throw new Error(
      "cannot be read; it is damaged, or not an image that this browser opens, such as JPEG, PNG,"
        + " WebP or GIF",
    );
  }
  const { width, height } = bitmap;
  try {
    if (width * height > MAX_PIXELS) throw tooLarge(width * height);
    const input = modelInput(bitmap, model);
    const notes = header.notes.concat(input.isTransparent ? [TRANSPARENT] : []);
    return { width, height, note: notes.join(" "), input };
  } finally {
    bitmap.close();
  }
}

function tooLarge(pixels) {
  const millions = (n) => Math.round(n / 1e6);
  return new Error(`has ${millions(pixels)} megapixels; the limit is ${millions(MAX_PIXELS)}`);
}

/**
 * Return a photo's pixels as the model takes them: resized, in its order of channels.
 *
 * Where the photo is transparent, browsers lose a part of its colors.
 */
function modelInput(bitmap, model) {
  const { width, height } = bitmap;
  const [newWidth, newHeight] = resizedSize(width, height, model.short_edge, model.max_size);
  if (!newWidth || !newHeight) {
    throw new Error(`has ${width} x ${height} pixels, too narrow to be resized for the model`);
  }
  const canvas = new OffscreenCanvas(1, 1);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  let isTransparent = false;
  const read = (left, top, columns, rows) => {
    canvas.width = columns; // which also clears the canvas
    canvas.height = rows;
    context.drawImage(bitmap, left, top, columns, rows, 0, 0, columns, rows);
    const { data } = context.getImageData(0, 0, columns, rows);
    for (let i = 3; i < data.length && !isTransparent; i += 4) isTransparent = data[i] < 255;
    return data;
  };
  const resized = resizeImage(read, width, height, newWidth, newHeight, PART_PIXELS);
  const order = model.channels === "BGR" ? [2, 1, 0] : [0, 1, 2];
  const pixels = new Uint8Array(3 * newWidth * newHeight);
  for (let from = 0, at = 0; at < pixels.length; from += 4) {
    for (const channel of order) {
      pixels[at] = resized[from + channel];
      at += 1;
    }
  }
  return { pixels, width: newWidth, height: newHeight, isTransparent };
}

/**
 * Return what the file's header says, for JPEG and PNG: `width` and `height` (0 if unknown),
 * `isCut`, because browsers draw a cut file in part, and `notes` for the user.
 */
function readHeader(bytes) {
  const view = new DataView(bytes.buffer);
  if (bytes.length > 3 && view.getUint16(0) === 0xffd8) return readJpeg(view);
  if (bytes.length > 24 && view.getUint32(0) === 0x89504e47) return readPng(view);
  return { width: 0, height: 0, isCut: false, notes: [] };
}

function readJpeg(view) {
  const header = { width: 0, height: 0, isCut: true, notes: [] };
  let at = 2;
  while (at + 10 <= view.byteLength && view.getUint8(at) === 0xff) {
    const marker = view.getUint8(at + 1);
    const isFrame = marker >= 0xc0 && marker < 0xd0 && ![0xc4, 0xc8, 0xcc].includes(marker);
    if (isFrame) {
      header.height = view.getUint16(at + 5);
      header.width = view.getUint16(at + 7);
      if (view.getUint8(at + 9) === 4) header.notes.push(PRINTED);
    }
    at += 2 + view.getUint16(at + 2);
    if (marker === 0xda) break; // the compressed pixels follow, in which 0xff is marked
  }
  for (; at + 2 <= view.byteLength; at += 1) {
    if (view.getUint16(at) === 0xffd9) return { ...header, isCut: false };
  }
  return header;
}

function readPng(view) {
  const header = { width: view.getUint32(16), height: view.getUint32(20), isCut: true, notes: [] };
  if (view.getUint8(24) === 16) header.notes.push(DEEP);
  for (let at = 8; at + 12 <= view.byteLength; at += 12 + view.getUint32(at)) {
    if (view.getUint32(at + 4) === 0x49454e44) return { ...header, isCut: false }; // IEND
  }
  return header;
}
