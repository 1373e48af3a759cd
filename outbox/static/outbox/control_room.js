/* The live view: fetches the page again and swaps its middle; draws the rates that it has seen.
   Without it the page is reloaded by the browser, or by hand. */
(() => {
  "use strict";
  const SECONDS = 5;
  const KEPT = 360; // half an hour of looks
  const area = document.getElementById("ob-live");
  const button = document.getElementById("ob-live-switch");
  if (!area) return;

  function remember() {
    let seen = {};
    try { seen = JSON.parse(sessionStorage.getItem("outbox-rates") || "{}"); } catch { /* starts anew */ }
    for (const span of area.querySelectorAll(".ob-spark")) {
      const { name, value } = span.dataset;
      const rates = (seen[name] || []).concat(Number(value)).slice(-KEPT);
      seen[name] = rates;
      draw(span, rates);
    }
    try { sessionStorage.setItem("outbox-rates", JSON.stringify(seen)); } catch { /* storage is full or refused */ }
  }

  function draw(span, rates) {
    if (rates.length < 2) return;
    const space = "http://www.w3.org/2000/svg";
    const svg = document.createElementNS(space, "svg");
    const line = document.createElementNS(space, "polyline");
    const most = Math.max(...rates, 1);
    const step = 100 / (rates.length - 1);
    line.setAttribute("points", rates.map((rate, i) => `${i * step},${19 - (18 * rate) / most}`).join(" "));
    svg.setAttribute("viewBox", "0 0 100 20");
    svg.setAttribute("preserveAspectRatio", "none");
    svg.setAttribute("aria-hidden", "true");
    svg.append(line);
    span.replaceChildren(svg);
  }

  async function look() {
    if (area.dataset.live !== "on") return;
    const isBusy = document.hidden || area.contains(document.activeElement);
    if (!isBusy) {
      try {
        const answer = await fetch(location.href, { credentials: "same-origin" });
        const page = new DOMParser().parseFromString(await answer.text(), "text/html");
        const fresh = page.getElementById("ob-live");
        if (answer.ok && fresh && area.dataset.live === "on") {
          area.replaceChildren(...fresh.childNodes);
          remember();
        }
      } catch { /* the next look tries again */ }
    }
    setTimeout(look, SECONDS * 1000);
  }

  if (button) {
    button.addEventListener("click", (event) => {
      event.preventDefault();
      const isOn = area.dataset.live === "on";
      area.dataset.live = isOn ? "off" : "on";
      button.textContent = isOn ? button.dataset.off : button.dataset.on;
      const address = new URL(location.href);
      if (isOn) address.searchParams.delete("live"); else address.searchParams.set("live", "on");
      history.replaceState(null, "", address);
      button.href = isOn ? "?live=on" : "?";
      if (!isOn) look();
    });
    button.addEventListener("keydown", (event) => {
      if (event.key === " ") { event.preventDefault(); button.click(); }
    });
  }
  remember();
  look();
})();
