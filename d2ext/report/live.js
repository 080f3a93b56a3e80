// Renews the page of a training that goes on (see live.py), until the reader has touched something.
(() => {
  "use strict";
  const state = document.querySelector(".live");
  if (!state) return;
  const { written, since, patience } = state.dataset; // seconds since 1970, its words, and seconds
  const line = document.querySelector(".renew");
  const opened = () => [...document.querySelectorAll("details")].map((d) => d.open).join();
  const asWritten = opened();

  // A chart that is zoomed and a name that is clicked on have the focus, as has every control.
  const touch = () => { line.hidden = false; };
  document.addEventListener("focusin", touch);
  document.addEventListener("toggle", () => { if (opened() !== asWritten) touch(); }, true);
  line.querySelector("button").addEventListener("click", () => location.reload());

  function look() {
    if (Date.now() / 1000 - written > patience)
      state.textContent = `Nothing new since ${since}; the training may have ended.`;
  }
  look();
  setInterval(() => (line.hidden ? location.reload() : look()), 60_000);
})();
