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
const PRINTED = "CMYK photo: this browser converted its colors.";
const DEEP = "16 bits per channel, which d2ext predict reduces in another way than this browser.";

/**
 * Decode a photo, and resize it for the model.
 *
 * @returns Width and height of the photo, a `note` for the user, the model's `input` (pixels with 3
 *   bytes each, its width and height), and what the page needs to show the photo: the `file` and
 *   its `orientation`; see `upright`.
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
  const orientation = takeOrientation(header);
  if (orientation !== 1) file = new File([bytes], file.name);
  if (header.width * header.height > MAX_PIXELS) throw tooLarge(header.width * header.height);
  if (header.isCut) throw new Error("is cut off: the end of the file is missing");
  let bitmap;
  try {
    bitmap = upright(await createImageBitmap(file, DECODED), orientation);
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
    return { width, height, note: notes.join(" "), input, file, orientation };
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
 * Return what the file's header says, for JPEG, PNG and WebP: `width` and `height` (0 if unknown),
 * `isCut`, because browsers draw a cut file in part, `notes` for the user, the bytes of `exif` and
 * `xmp` if there are any, `isTurned`, whether all browsers apply the orientation in EXIF, and
 * `isPng`.
 */
function readHeader(bytes) {
  const view = new DataView(bytes.buffer);
  const header = { width: 0, height: 0, isCut: false, notes: [], isTurned: true, isPng: false };
  if (bytes.length > 3 && view.getUint16(0) === 0xffd8) readJpeg(view, header);
  if (bytes.length > 24 && view.getUint32(0) === 0x89504e47) readPng(view, header);
  if (bytes.length > 20 && view.getUint32(8) === 0x57454250) readWebp(view, header);
  return header;
}

function readJpeg(view, header) {
  header.isCut = true;
  let at = 2;
  while (at + 10 <= view.byteLength && view.getUint8(at) === 0xff) {
    const marker = view.getUint8(at + 1);
    const end = at + 2 + view.getUint16(at + 2);
    const isFrame = marker >= 0xc0 && marker < 0xd0 && ![0xc4, 0xc8, 0xcc].includes(marker);
    if (isFrame) {
      header.height = view.getUint16(at + 5);
      header.width = view.getUint16(at + 7);
      if (view.getUint8(at + 9) === 4) header.notes.push(PRINTED);
    }
    const name = { 0x45786966: "exif", 0x68747470: "xmp" }[view.getUint32(at + 4)]; // "http"
    if (marker === 0xe1 && name) header[name] ??= part(view, at + 4, end);
    at = end;
    if (marker === 0xda) break; // the compressed pixels follow, in which 0xff is marked
  }
  for (; at + 2 <= view.byteLength && header.isCut; at += 1) {
    header.isCut = view.getUint16(at) !== 0xffd9;
  }
}

function readPng(view, header) {
  header.width = view.getUint32(16);
  header.height = view.getUint32(20);
  Object.assign(header, { isCut: true, isTurned: false, isPng: true });
  if (view.getUint8(24) === 16) header.notes.push(DEEP);
  for (let at = 8, end; at + 12 <= view.byteLength && header.isCut; at = end + 4) {
    end = at + 8 + view.getUint32(at); // of the data, which a checksum follows
    if (end + 4 > view.byteLength) return;
    const kind = view.getUint32(at + 4);
    const isXmp = kind === 0x69545874 && view.getUint32(at + 8) === 0x584d4c3a; // iTXt, "XML:"
    if (kind === 0x65584966) header.exif ??= part(view, at + 8, end); // eXIf
    if (isXmp) header.xmp ??= part(view, at + 8, end);
    header.isCut = kind !== 0x49454e44; // IEND
  }
}

function readWebp(view, header) {
  header.isTurned = false;
  for (let at = 12, size; at + 8 <= view.byteLength; at += 8 + size + (size % 2)) {
    size = view.getUint32(at + 4, true);
    const name = { 0x45584946: "exif", 0x584d5020: "xmp" }[view.getUint32(at)];
    if (name) header[name] ??= part(view, at + 8, at + 8 + size);
  }
}

function part(view, start, end) {
  return new DataView(view.buffer, start, Math.max(Math.min(end, view.byteLength) - start, 0));
}

/**
 * Return the orientation, 1 to 8, that some browsers ignore: in EXIF of WebP and PNG, or in XMP.
 *
 * Remove it from the file's bytes, because others apply it. Like Pillow, use XMP only if EXIF has
 * no orientation.
 */
function takeOrientation({ exif, xmp, isTurned, isPng }) {
  let place;
  try {
    place = exif && exifOrientation(exif);
  } catch {
    return 1; // like d2ext predict, ignore damaged EXIF data
  }
  let orientation = 1;
  if (place && !isTurned) {
    orientation = exif.getUint16(place.at, place.isLittle);
    exif.setUint16(place.at, 1, place.isLittle);
    if (isPng) updateChecksum(exif);
  } else if (!place && xmp) {
    const found = /tiff:Orientation(="|>)[0-9]/.exec(new TextDecoder("latin1").decode(xmp));
    const at = found && found.index + found[0].length - 1;
    if (found) {
      orientation = xmp.getUint8(at) - 0x30;
      xmp.setUint8(at, 0x31);
      if (isPng) updateChecksum(xmp);
    }
  }
  return orientation >= 1 && orientation <= 8 ? orientation : 1;
}

/** Write the checksum of the name and data of a PNG chunk, after the data. */
function updateChecksum(data) {
  const chunk = new DataView(data.buffer, data.byteOffset - 4, data.byteLength + 8);
  let sum = -1;
  for (let i = 0; i < data.byteLength + 4; i += 1) {
    sum ^= chunk.getUint8(i);
    for (let bit = 0; bit < 8; bit += 1) sum = (sum >>> 1) ^ (sum & 1 ? 0xedb88320 : 0);
  }
  chunk.setInt32(data.byteLength + 4, ~sum);
}

/** Return where the orientation is in EXIF data, and its order of bytes; undefined without one. */
function exifOrientation(exif) {
  const start = exif.getUint32(0) === 0x45786966 ? 6 : 0; // "Exif", which WebP can do without
  const isLittle = exif.getUint16(start) === 0x4949;
  const entries = start + exif.getUint32(start + 4, isLittle);
  for (let i = 0; i < exif.getUint16(entries, isLittle); i += 1) {
    const at = entries + 2 + 12 * i;
    if (exif.getUint16(at, isLittle) === 0x0112) return { at: at + 8, isLittle };
  }
  return undefined;
}
