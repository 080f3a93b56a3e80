"use strict";
// Paste the mask of an object into its box as Detectron2 does, and encode it as COCO does.

/**
 * Return which pixels of an image are inside a mask, for the pixels around its box.
 *
 * This is Detectron2's paste_masks_in_image: the mask is stretched to the box with bilinear
 * interpolation, in float32, and zero outside of it.
 *
 * @param mask Probabilities, `side` x `side`, row by row.
 * @param box Corners x0, y0, x1, y1 in pixels of the image.
 * @param threshold Lowest probability inside.
 * @returns Position and size of the pixels around the box, and `inside`, column by column: 1 for
 *   each pixel in the mask.
 */
function pasteMask(mask, side, box, width, height, threshold) {
  const [x0, y0, x1, y1] = box;
  const columns = maskPlaces(x0, x1, width, side);
  const rows = maskPlaces(y0, y1, height, side);
  const inside = new Uint8Array(columns.count * rows.count);
  const line = new Float64Array(side + 3); // zero before and after the mask
  for (let x = 0, at = 0; x < columns.count; x += 1) {
    const left = columns.index[x] - 1;
    const share = columns.share[x];
    for (let r = 0; r < side; r += 1) {
      const here = left >= 0 && left < side ? mask[r * side + left] : 0;
      const next = left + 1 < side ? mask[r * side + left + 1] : 0;
      line[r + 1] = here * (1 - share) + next * share;
    }
    for (let y = 0; y < rows.count; y += 1, at += 1) {
      const place = rows.index[y];
      const value = line[place] * (1 - rows.share[y]) + line[place + 1] * rows.share[y];
      inside[at] = value >= threshold ? 1 : 0;
    }
  }
  return { left: columns.start, top: rows.start, width: columns.count, height: rows.count, inside };
}

/**
 * Return the pixels around one side of a box, and where each lies in the mask.
 *
 * A pixel lies between the cells `index - 1` and `index` of the mask, at `share` of the way. The
 * index is side + 1 where the pixel is outside of both.
 */
function maskPlaces(low, high, size, side) {
  const start = Math.max(Math.floor(low) - 1, 0);
  const count = Math.min(Math.ceil(high) + 1, size) - start;
  const index = new Int32Array(count).fill(side + 1);
  const share = new Float64Array(count);
  const { fround } = Math;
  const length = fround(high - low);
  for (let i = 0; i < count; i += 1) {
    const relative = fround(fround(fround(start + i + 0.5) - low) / length);
    const place = fround(fround(fround(relative * 2 - 1) + 1) * (side / 2)) - 0.5;
    if (place > -1 && place < side) {
      const cell = Math.floor(place);
      index[i] = cell + 1;
      share[i] = place - cell;
    }
  }
  return { start, count, index, share };
}

/** Return a pasted mask as a compressed COCO RLE of the whole image, as pycocotools encodes it. */
function encodeMask(pasted, width, height) {
  const counts = [];
  let start = 0, end = 0, last = 0; // of a run of pixels inside, and of the counts so far
  for (let x = 0, at = 0; x < pasted.width; x += 1) {
    let place = (pasted.left + x) * height + pasted.top;
    for (let y = 0; y < pasted.height; y += 1, at += 1, place += 1) {
      if (!pasted.inside[at]) continue;
      if (place !== end || start === end) {
        if (start < end) counts.push(start - last, end - start);
        last = end;
        start = place;
      }
      end = place + 1;
    }
  }
  if (start < end) counts.push(start - last, end - start);
  if (end < width * height || !counts.length) counts.push(width * height - end);
  return { size: [height, width], counts: compressed(counts) };
}

/** Return the counts of an RLE as a string: differences in groups of 5 bits (COCO's maskApi.c). */
function compressed(counts) {
  const letters = [];
  counts.forEach((count, i) => {
    let value = i > 2 ? count - counts[i - 2] : count;
    let more = true;
    while (more) {
      const group = value & 31;
      value >>= 5;
      more = group & 16 ? value !== -1 : value !== 0;
      letters.push(String.fromCharCode((more ? group | 32 : group) + 48));
    }
  });
  return letters.join("");
}
