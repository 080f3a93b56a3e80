"use strict";
// Turn a photo whose orientation browsers do not apply.

/**
 * Return the pixels of a photo in its orientation, a number of EXIF from 1 (upright) to 8.
 *
 * `bitmap` is closed if another one is returned.
 */
function upright(bitmap, orientation) {
  if (orientation === 1) return bitmap;
  const { width: w, height: h } = bitmap;
  const canvas = orientation < 5 ? new OffscreenCanvas(w, h) : new OffscreenCanvas(h, w);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.setTransform(...[
    [-1, 0, 0, 1, w, 0], [-1, 0, 0, -1, w, h], [1, 0, 0, -1, 0, h], [0, 1, 1, 0, 0, 0],
    [0, 1, -1, 0, h, 0], [0, -1, -1, 0, h, w], [0, -1, 1, 0, 0, w],
  ][orientation - 2]);
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  return canvas.transferToImageBitmap();
}
