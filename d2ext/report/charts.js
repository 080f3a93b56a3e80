// Draw every `.chart` with uPlot from the JSON inside it (written by charts.py), and handle zoom.
(() => {
  "use strict";
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const short = (v, digits) => (v == null ? "–" : String(+v.toPrecision(digits)));
  const WHOLE = [...Array(16).keys()].flatMap((k) => [1, 2, 5].map((n) => n * 10 ** k));
  const FONT = "12px system-ui, sans-serif";
  const AXIS = {
    font: FONT, labelFont: FONT, labelSize: 18, stroke: () => css("--dim"),
    grid: { stroke: () => css("--line"), width: 1 },
    ticks: { stroke: () => css("--line"), width: 1, size: 5 },
    values: (_, splits) => splits.map((v) => short(v, 6)),
  };

  const PALE = { class: "pale", alpha: 0.35, width: 1, points: { show: false } };
  function series(line, [xs], more) {
    const color = () => css(`--c${line.color % 8}`);
    return {
      label: line.label, stroke: color, width: 2,
      dash: line.dashed ? [6, 4] : undefined,
      points: { show: xs.length <= 30, size: 6, fill: color },
      value: (_, v) => short(v, 4),
      ...more,
    };
  }

  function draw(box, content, size) {
    const pale = content.lines.filter((line) => line.raw[0].length);
    const options = {
      ...size,
      series: [
        { label: content.xlabel, value: (_, v) => short(v, 16) },
        ...pale.map((line) => series(line, line.raw, PALE)),
        ...content.lines.map((line) => series(line, line.curve, {})),
      ],
      scales: { x: { time: false }, y: content.ylim ? { range: content.ylim } : {} },
      axes: [
        {
          ...AXIS, label: content.xlabel, size: 34,
          space: (_, i, min, max) => Math.max(44, 12 + 8 * String(Math.round(max)).length),
          ...(content.xlabel === "iteration" ? { incrs: WHOLE } : {}),
        },
        {
          ...AXIS, label: content.ylabel,
          size: (_, values) => 14 + 7 * Math.max(3, ...(values ?? []).map((v) => v.length)),
        },
      ],
      legend: { markers: { dash: (plot, i) => (plot.series[i].dash ? "dashed" : "solid") } },
      hooks: {
        draw: [(plot) => intervalBars(plot, content.lines, 1 + pale.length)],
        // Pale lines are not in the legend; hide them with their strong line.
        setSeries: [(plot, i, { show }) => {
          const k = pale.indexOf(content.lines[i - 1 - pale.length]);
          if (show != null && k >= 0) plot.setSeries(k + 1, { show });
        }],
      },
    };
    const curves = [...pale.map((line) => line.raw), ...content.lines.map((line) => line.curve)];
    return new uPlot(options, uPlot.join(curves), box);
  }

  // By key: factor of the visible span, and shift as a fraction of the span.
  const MOVES = {
    "+": [0.5, 0], "=": [0.5, 0], "-": [2, 0], 0: [Infinity, 0],
    ArrowLeft: [1, -0.25], ArrowRight: [1, 0.25],
  };

  function move(plot, [factor, shift]) {
    const xs = plot.data[0], low = xs[0], high = xs[xs.length - 1];
    const { min, max } = plot.scales.x;
    const span = Math.min(high - low, Math.max((max - min) * factor, (high - low) / 1000));
    const wanted = (min + max) / 2 + shift * (max - min) - span / 2;
    const left = Math.max(low, Math.min(wanted, high - span));
    if (span > 0) plot.setScale("x", { min: left, max: left + span });
  }

  const boxes = [...document.querySelectorAll(".chart")];
  for (const box of boxes) {
    const content = JSON.parse(box.querySelector("script").textContent);
    // Draw in the next frame, because drawing changes the observed size. Charts in closed details
    // are drawn when these are opened.
    new ResizeObserver(() => requestAnimationFrame(() => {
      const width = box.clientWidth, height = Math.round(Math.min(320, 120 + width / 3));
      if (!width || box.plot?.width === width) return;
      if (box.plot) box.plot.setSize({ width, height });
      else box.plot = draw(box, content, { width, height });
    })).observe(box);
    box.querySelector(".zoom").hidden = false;
    box.addEventListener("click", ({ target: { value } }) => {
      if (value in MOVES && box.plot) move(box.plot, MOVES[value]);
    });
    box.addEventListener("keydown", (e) => {
      if (!(e.key in MOVES) || e.ctrlKey || e.metaKey || e.altKey || !box.plot) return;
      e.preventDefault();
      move(box.plot, MOVES[e.key]);
    });
  }
  matchMedia("(prefers-color-scheme: dark)")
    .addEventListener("change", () => boxes.forEach((box) => box.plot?.redraw(false)));
})();
