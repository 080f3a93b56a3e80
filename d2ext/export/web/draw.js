"use strict";
// Draw a photo with its objects.

// Same colors as the report's charts.
const COLORS = [
  [47, 127, 247], [232, 113, 10], [18, 163, 120], [199, 74, 214],
  [199, 154, 0], [224, 67, 90], [23, 162, 196], [138, 143, 152],
];

/** Return the color of each object: that of its class, or different ones if there is one class. */
function objectColors(objects, classes) {
  return objects.map(({ label }, i) => COLORS[(classes.length > 1 ? label : i) % COLORS.length]);
}

/**
 * Draw a photo with the masks, boxes, class names and scores of its objects.
 *
 * @param canvas Canvas that is resized to `width`.
 * @param bitmap Pixels of the photo, in any size; null for an empty drawing of that size.
 * @param photo The photo, with `width`, `height` and `name`.
 * @param objects Its objects, in descending order of their scores.
 * @param model Metadata of the model.
 * @param width Width of the drawing in pixels.
 * @param unit Pixels of the drawing for a pixel of the screen, which sizes lines and letters.
 */
function drawPhoto(canvas, bitmap, photo, objects, model, width, unit) {
  const scale = width / photo.width;
  canvas.width = Math.max(1, Math.round(width));
  canvas.height = Math.max(1, Math.round(photo.height * scale));
  if (!bitmap) return;
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  const colors = objectColors(objects, model.classes);
  const rising = objects.map((object, i) => ({ ...object, color: colors[i] }));
  rising.reverse(); // the most certain object is drawn last
  for (const object of rising) drawMask(context, object, scale, model);
  for (const object of rising) drawBox(context, object, scale, unit);
  for (const object of rising) drawLabel(context, object, scale, unit, model.classes);
}

function drawMask(context, object, scale, model) {
  if (!object.mask) return;
  const { width, height } = context.canvas;
  const box = object.box.map((value) => value * scale);
  const mask = pasteMask(object.mask, model.mask_size, box, width, height, model.mask_threshold);
  if (mask.width < 1 || mask.height < 1) return;
  const image = new ImageData(mask.width, mask.height);
  const pixels = new Uint32Array(image.data.buffer); // faster than four bytes for each pixel
  const [red, green, blue] = object.color;
  const [fill, edge] = new Uint32Array(
    Uint8Array.of(red, green, blue, 100, red, green, blue, 255).buffer,
  );
  const { inside } = mask; // column by column
  const right = mask.width - 1, bottom = mask.height - 1;
  for (let x = 0, at = 0; x <= right; x += 1) {
    for (let y = 0; y <= bottom; y += 1, at += 1) {
      if (!inside[at]) continue;
      const isEdge = x === 0 || y === 0 || x === right || y === bottom || !inside[at - 1]
        || !inside[at + 1] || !inside[at - mask.height] || !inside[at + mask.height];
      pixels[y * mask.width + x] = isEdge ? edge : fill;
    }
  }
  const layer = new OffscreenCanvas(mask.width, mask.height);
  layer.getContext("2d").putImageData(image, 0, 0);
  context.drawImage(layer, mask.left, mask.top);
}

function drawBox(context, object, scale, unit) {
  const [x0, y0, x1, y1] = object.box.map((value) => value * scale);
  context.lineWidth = 2 * unit;
  context.strokeStyle = `rgb(${object.color})`;
  context.strokeRect(x0, y0, x1 - x0, y1 - y0);
}

function drawLabel(context, object, scale, unit, classes) {
  const { color } = object;
  const text = `${classes[object.label]} ${object.score.toFixed(2)}`;
  context.font = `600 ${13 * unit}px system-ui, sans-serif`;
  context.textBaseline = "middle";
  const width = context.measureText(text).width + 8 * unit;
  const height = 18 * unit;
  const { canvas } = context;
  const left = Math.max(0, Math.min(object.box[0] * scale, canvas.width - width));
  const above = object.box[1] * scale - height;
  const top = Math.min(above < 0 ? object.box[1] * scale : above, canvas.height - height);
  context.fillStyle = `rgb(${color})`;
  context.fillRect(left, top, width, height);
  const isLight = 0.3 * color[0] + 0.59 * color[1] + 0.11 * color[2] > 140;
  context.fillStyle = isLight ? "#000" : "#fff";
  context.fillText(text, left + 4 * unit, top + height / 2);
}
