"use strict";
// Resize an image as Pillow's Image.resize with BILINEAR does, byte for byte.
//
// Pillow (src/libImaging/Resample.c) averages with a triangle as wide as the step between output
// pixels, first along the rows and then along the columns, with fixed-point weights, and rounds
// to bytes after each of the two passes.

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

/**
 * Resize rows of RGBA pixels to another width.
 *
 * @param rgba Pixels of the rows, 4 bytes each; the fourth is ignored.
 * @param width Width of the rows.
 * @param plan Result of `resizeWeights(width, newWidth)`.
 * @param output Pixels with 3 bytes each, which receive the rows from the byte `at` on.
 */
function resizeRows(rgba, width, plan, output, at) {
  const { first, count, weights, most } = plan;
  const half = 1 << (WEIGHT_BITS - 1);
  for (let row = 0; row < rgba.length; row += 4 * width) {
    for (let i = 0; i < first.length; i += 1) {
      let red = half, green = half, blue = half;
      let from = row + 4 * first[i];
      for (let k = i * most; k < i * most + count[i]; k += 1, from += 4) {
        red += rgba[from] * weights[k];
        green += rgba[from + 1] * weights[k];
        blue += rgba[from + 2] * weights[k];
      }
      output[at] = red >> WEIGHT_BITS;
      output[at + 1] = green >> WEIGHT_BITS;
      output[at + 2] = blue >> WEIGHT_BITS;
      at += 3;
    }
  }
}

/** Resize the columns of an image with rows of `stride` bytes; return the new image. */
function resizeColumns(pixels, stride, plan) {
  const { first, count, weights, most } = plan;
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
