"use strict";
// Resize an image as Pillow's Image.resize with BILINEAR does, byte for byte.
//
// Pillow 13 (src/libImaging/Resample.c) averages with a triangle as wide as the step between output
// pixels, along the rows and along the columns, with fixed-point weights, and rounds to bytes after
// each of the two passes. Images are arrays of bytes, row by row, with 4 bytes for each pixel.

const WEIGHT_BITS = 22;

/**
 * Return which input pixels make each output pixel of a row, and with what weights.
 *
 * Output pixel i is the sum of `weights[i * most + k] * input[first[i] + k]` for k < count[i].
 */
function resizeWeights(size, newSize) {
  const scale = size / newSize;
  const support = Math.max(scale, 1);
  const inverse = 1 / support;
  const most = Math.ceil(support) * 2 + 1;
  const first = new Int32Array(newSize);
  const count = new Int32Array(newSize);
  const weights = new Int32Array(newSize * most);
  const exact = new Float64Array(most);
  for (let i = 0; i < newSize; i += 1) {
    const center = (i + 0.5) * scale;
    const start = Math.max(0, Math.trunc(center - support + 0.5));
    const length = Math.min(size, Math.trunc(center + support + 0.5)) - start;
    let sum = 0;
    for (let k = 0; k < length; k += 1) {
      exact[k] = Math.max(0, 1 - Math.abs((k + start - center + 0.5) * inverse));
      sum += exact[k];
    }
    for (let k = 0; k < length; k += 1) {
      weights[i * most + k] = Math.trunc(0.5 + (exact[k] / sum) * (1 << WEIGHT_BITS));
    }
    first[i] = start;
    count[i] = length;
  }
  return { first, count, weights, most };
}

/** Return whether the columns are resized first, which older versions of Pillow never do. */
function columnsFirst(width, height, newWidth, newHeight) {
  const shrinks = height - newHeight;
  return shrinks > 0 && shrinks > 2 * (width - newWidth);
}

/**
 * Resize rows of pixels to another width.
 *
 * @param pixels Rows of pixels; the fourth byte of a pixel is ignored.
 * @param width Width of the rows.
 * @param plan Result of `resizeWeights(width, newWidth)`.
 * @param output Image that receives the rows from the byte `at` on.
 */
function resizeRows(pixels, width, plan, output, at) {
  const { first, count, weights, most } = plan;
  const half = 1 << (WEIGHT_BITS - 1);
  for (let row = 0; row < pixels.length; row += 4 * width) {
    for (let i = 0; i < first.length; i += 1) {
      let red = half, green = half, blue = half;
      let from = row + 4 * first[i];
      for (let k = i * most; k < i * most + count[i]; k += 1, from += 4) {
        red += pixels[from] * weights[k];
        green += pixels[from + 1] * weights[k];
        blue += pixels[from + 2] * weights[k];
      }
      output[at] = red >> WEIGHT_BITS;
      output[at + 1] = green >> WEIGHT_BITS;
      output[at + 2] = blue >> WEIGHT_BITS;
      at += 4;
    }
  }
}

/** Return an image of `width` pixels with its columns resized by `resizeWeights`. */
function resizeColumns(pixels, width, plan) {
  const { first, count, weights, most } = plan;
  const stride = 4 * width;
  const half = 1 << (WEIGHT_BITS - 1);
  const output = new Uint8Array(stride * first.length);
  const sums = new Int32Array(stride);
  for (let i = 0; i < first.length; i += 1) {
    sums.fill(half);
    for (let k = 0; k < count[i]; k += 1) {
      const weight = weights[i * most + k];
      const from = (first[i] + k) * stride;
      for (let x = 0; x < stride; x += 1) sums[x] += pixels[from + x] * weight;
    }
    for (let x = 0; x < stride; x += 1) output[i * stride + x] = sums[x] >> WEIGHT_BITS;
  }
  return output;
}

/**
 * Resize an image that is read in parts, so that a large one is never in memory as a whole.
 *
 * @param read Function that returns the pixels of the rectangle (left, top, width, height).
 * @param mostPixels Size of the largest part.
 */
function resizeImage(read, width, height, newWidth, newHeight, mostPixels) {
  const across = resizeWeights(width, newWidth);
  const down = resizeWeights(height, newHeight);
  if (columnsFirst(width, height, newWidth, newHeight)) {
    const short = new Uint8Array(4 * width * newHeight);
    const step = Math.max(1, Math.floor(mostPixels / height));
    for (let left = 0; left < width; left += step) {
      const columns = Math.min(step, width - left);
      const part = resizeColumns(read(left, 0, columns, height), columns, down);
      for (let y = 0; y < newHeight; y += 1) {
        const row = part.subarray(4 * columns * y, 4 * columns * (y + 1));
        short.set(row, 4 * (width * y + left));
      }
    }
    const output = new Uint8Array(4 * newWidth * newHeight);
    resizeRows(short, width, across, output, 0);
    return output;
  }
  const narrow = new Uint8Array(4 * newWidth * height);
  const step = Math.max(1, Math.floor(mostPixels / width));
  for (let top = 0; top < height; top += step) {
    const rows = read(0, top, width, Math.min(step, height - top));
    resizeRows(rows, width, across, narrow, 4 * newWidth * top);
  }
  return resizeColumns(narrow, newWidth, down);
}

/**
 * Return the model's size [width, height] of a photo, as Detectron2's ResizeShortestEdge does.
 *
 * The short side becomes `shortEdge` pixels long, or less if the long side would exceed `maxSize`.
 */
function resizedSize(width, height, shortEdge, maxSize) {
  let scale = shortEdge / Math.min(width, height);
  let newWidth = height < width ? scale * width : shortEdge;
  let newHeight = height < width ? shortEdge : scale * height;
  const long = Math.max(newWidth, newHeight);
  if (long > maxSize) {
    scale = maxSize / long;
    newWidth *= scale;
    newHeight *= scale;
  }
  return [Math.trunc(newWidth + 0.5), Math.trunc(newHeight + 0.5)];
}
