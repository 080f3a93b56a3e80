// Reload the page of a running training (see live.py) until the reader interacts with it.
(() => {
  "use strict";
  const state = document.querySelector(".live");
  if (!state) return;
  const { written, since, patience } = state.dataset; // seconds since 1970, same as text, seconds
  const line = document.querySelector(".renew");
  const opened = () => [...document.querySelectorAll("details")].map((d) => d.open).join();
  const asWritten = opened();

  // Zooming a chart, clicking a name and using any control move the focus.
  const touch = () => { line.hidden = false; };
  document.addEventListener("focusin", touch);
  document.addEventListener("toggle", () => { if (opened() !== asWritten) touch(); }, true);
  line.querySelector("button").addEventListener("click", () => location.reload());

  function update() {
    if (Date.now() / 1000 - written > patience)
      state.textContent = `No update since ${since}; training may have ended.`;
  }
  update();
  setInterval(() => (line.hidden ? location.reload() : update()), 60_000);
})();
