// Draw intervals into a uPlot chart: vertical bars with ends, side by side for several lines.
function intervalBars(plot, lines, first) {
  "use strict";
  const { ctx, bbox } = plot, unit = devicePixelRatio;
  ctx.save();
  ctx.beginPath();
  ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
  ctx.clip();
  ctx.lineWidth = 1.5 * unit;
  lines.forEach(({ bars }, i) => {
    const series = plot.series[first + i];
    if (!series.show) return;
    ctx.strokeStyle = series.stroke(plot, first + i);
    for (const [at, low, high] of bars) {
      const x = plot.valToPos(at, "x", true) - 5 * unit * i, half = 3 * unit;
      const ends = [low, high].map((v) => plot.valToPos(v, "y", true));
      ctx.beginPath();
      for (const y of ends) { ctx.moveTo(x - half, y); ctx.lineTo(x + half, y); }
      ctx.moveTo(x, ends[0]);
      ctx.lineTo(x, ends[1]);
      ctx.stroke();
    }
  });
  ctx.restore();
}
