"use strict";
(() => {
  const root = document.documentElement;
  root.classList.add("js");
  const form = document.getElementById("filters");
  if (!form) return;
  const all = (selector, from = document) => [...from.querySelectorAll(selector)];
  const one = (id) => document.getElementById(id);
  const cards = all(".card");
  const prints = all(".print[data-patch]");
  const section = one("cards");
  const still = matchMedia("(prefers-reduced-motion: reduce)");
  const BLINK_MS = 1000; // a change a second at most: faster could harm

  // ---- choosing and sorting

  function wanted() {
    const data = new FormData(form);
    return {
      verdicts: form.elements.verdict ? data.getAll("verdict") : null,
      least: Number(data.get("least")),
      largest: Number(data.get("largest")),
      place: data.get("place") || "",
      image: data.get("image") || "",
    };
  }

  function fits(is, want) {
    const sure = Number(is.confidence);
    return (
      (!want.verdicts || want.verdicts.includes(is.verdict)) &&
      sure >= want.least &&
      (sure <= want.largest || want.largest >= 1) &&
      (!want.place || is.place === want.place) &&
      (!want.image || is.image === want.image)
    );
  }

  function choose() {
    const want = wanted();
    for (const card of cards) card.hidden = !fits(card.dataset, want);
    for (const print of prints) print.classList.toggle("off", !fits(print.dataset, want));
    const shown = cards.filter((card) => !card.hidden).length;
    const told = `${shown} of ${cards.length} patches`;
    if (one("count").textContent !== told) one("count").textContent = told;
    one("nothing").hidden = shown > 0;
    for (const name of ["least", "largest"]) {
      one(`${name}-told`).textContent = Number(form.elements[name].value).toFixed(2);
    }
  }

  function sort() {
    const by = form.elements.sort.value;
    const falling = by.startsWith("-");
    const key = by.replace("-", "");
    const value = (card) => Number(card.dataset[key]);
    const order = (a, b) => (falling ? value(b) - value(a) : value(a) - value(b));
    cards.sort((a, b) => order(a, b) || a.dataset.order - b.dataset.order);
    section.append(...cards);
  }

  // ---- the two dates

  function dress() {
    const data = new FormData(form);
    section.dataset.view = data.get("view");
    section.dataset.colour = data.get("colour") || "natural";
    if (data.get("view") !== "blink") stop();
    one("blink").disabled = data.get("view") !== "blink" || still.matches;
    one("blink").title = still.matches ? "Off, since your system asks for less motion" : "";
  }

  function flip(card, toFound = !card.classList.contains("flipped")) {
    card.classList.toggle("flipped", toFound);
    card.querySelector(".flip").textContent = `Showing ${toFound ? "what was found" : "the query"}: flip`;
  }

  function cut(card, percent) {
    const share = Math.min(100, Math.max(0, percent));
    card.querySelector(".cut").value = share;
    card.querySelector(".stage").style.setProperty("--cut", `${share}%`);
  }

  let clock = 0;
  function stop() {
    clearInterval(clock);
    clock = 0;
    one("blink").setAttribute("aria-pressed", "false");
    one("blink").textContent = "Blink each second";
  }
  function start() {
    let found = false;
    clock = setInterval(() => {
      found = !found;
      for (const card of cards) if (!card.hidden && card.querySelector(".flip")) flip(card, found);
    }, BLINK_MS);
    one("blink").setAttribute("aria-pressed", "true");
    one("blink").textContent = "Stop blinking";
  }

  for (const card of cards) {
    const stage = card.querySelector(".stage");
    if (!stage) continue;
    card.querySelector(".cut").addEventListener("input", (event) => cut(card, Number(event.target.value)));
    card.querySelector(".flip").addEventListener("click", () => flip(card));
    const drag = (event) => {
      if (section.dataset.view !== "swipe" || (event.type === "pointermove" && !event.buttons)) return;
      const box = stage.getBoundingClientRect();
      cut(card, (100 * (event.clientX - box.left)) / box.width);
    };
    stage.addEventListener("pointerdown", drag);
    stage.addEventListener("pointermove", drag);
  }

  // ---- from patch to patch

  function go(step) {
    const shown = cards.filter((card) => !card.hidden);
    if (!shown.length) return;
    const here = shown.findIndex((card) => card.contains(document.activeElement));
    const current = here >= 0 ? here : shown.findIndex((card) => card.classList.contains("current"));
    const next = current < 0 ? (step > 0 ? 0 : shown.length - 1) : current + step;
    reach(shown[Math.min(shown.length - 1, Math.max(0, next))]);
  }

  function reach(card) {
    for (const other of cards) other.classList.toggle("current", other === card);
    card.focus({ preventScroll: true });
    card.scrollIntoView({ block: "start", behavior: still.matches ? "auto" : "smooth" });
  }

  section.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const card = event.target.closest(".card");
    const act = { j: () => go(1), k: () => go(-1), b: () => card.querySelector(".flip") && flip(card) }[event.key];
    if (act && card) {
      event.preventDefault();
      act();
    }
  });

  // ---- the map

  const readout = one("readout");
  const lit = (patch, on) => {
    for (const mark of all(`[data-patch="${Number(patch)}"]`)) mark.classList.toggle("lit", on);
  };
  const told = (event) => event.target.closest(".print[data-patch]");
  const begin = (event) => {
    const print = told(event);
    if (!print) return;
    lit(print.dataset.patch, true);
    readout.textContent = print.dataset.told;
  };
  const end = (event) => told(event) && lit(told(event).dataset.patch, false);
  for (const [kind, act] of [["pointerover", begin], ["focusin", begin], ["pointerout", end], ["focusout", end]]) {
    one("map").parentElement.addEventListener(kind, act);
  }
  one("map").parentElement.addEventListener("click", (event) => {
    const link = event.target.closest("a.print");
    const card = link && one(`patch-${Number(link.dataset.patch)}`);
    if (!card) return;
    event.preventDefault();
    if (card.hidden) form.reset(); // what was chosen hides it
    setTimeout(() => reach(card));
  });

  // ---- everything together

  function refresh() {
    choose();
    dress();
  }
  for (const kind of ["input", "change"]) {
    form.addEventListener(kind, (event) => {
      if (event.target.name === "sort") sort();
      refresh();
    });
  }
  form.addEventListener("reset", () => setTimeout(() => { sort(); refresh(); }));
  form.addEventListener("submit", (event) => event.preventDefault());
  one("next").addEventListener("click", () => go(1));
  one("previous").addEventListener("click", () => go(-1));
  one("blink").addEventListener("click", () => (clock ? stop() : start()));
  still.addEventListener("change", () => { stop(); dress(); });
  form.reset(); // a browser that goes back keeps old choices; the page begins anew
  refresh();
})();
