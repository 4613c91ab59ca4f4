"use strict";
(() => {
  const root = document.documentElement;
  root.classList.add("js");
  const form = document.getElementById("filters");
  if (!form) return;
  const all = (selector, from = document) => [...from.querySelectorAll(selector)];
  const byId = (id) => document.getElementById(id);
  const cards = all(".card");
  const prints = all(".print[data-patch]");
  const section = byId("cards");
  const still = matchMedia("(prefers-reduced-motion: reduce)");
  const BLINK_MS = 1000; // a change a second at most: faster could harm

  // ---- choosing and sorting

  function choices() {
    const data = new FormData(form);
    return {
      verdicts: form.elements.verdict ? data.getAll("verdict") : null,
      min: Number(data.get("min")),
      max: Number(data.get("max")),
      place: data.get("place") || "",
      image: data.get("image") || "",
    };
  }

  function fits(item, want) {
    const confidence = Number(item.confidence);
    return (
      (!want.verdicts || want.verdicts.includes(item.verdict)) &&
      confidence >= want.min &&
      (confidence <= want.max || want.max >= 1) &&
      (!want.place || item.place === want.place) &&
      (!want.image || item.image === want.image)
    );
  }

  function choose() {
    const want = choices();
    for (const card of cards) card.hidden = !fits(card.dataset, want);
    for (const print of prints) print.classList.toggle("off", !fits(print.dataset, want));
    const shown = cards.filter((card) => !card.hidden).length;
    const text = `${shown} of ${cards.length} patches`;
    if (byId("count").textContent !== text) byId("count").textContent = text;
    byId("nothing").hidden = shown > 0;
    for (const name of ["min", "max"]) {
      byId(`${name}-value`).textContent = Number(form.elements[name].value).toFixed(2);
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

  // ---- comparing the two dates

  function setView() {
    const data = new FormData(form);
    section.dataset.view = data.get("view");
    section.dataset.colour = data.get("colour") || "natural";
    if (data.get("view") !== "blink") stop();
    byId("blink").disabled = data.get("view") !== "blink" || still.matches;
    byId("blink").title = still.matches ? "Off, because your system is set to reduce motion" : "";
  }

  function flip(card, toMatch = !card.classList.contains("flipped")) {
    card.classList.toggle("flipped", toMatch);
    card.querySelector(".flip").textContent = `Showing ${toMatch ? "the match" : "the query"}: flip`;
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
    byId("blink").setAttribute("aria-pressed", "false");
    byId("blink").textContent = "Blink each second";
  }
  function start() {
    let showMatch = false;
    clock = setInterval(() => {
      showMatch = !showMatch;
      for (const card of cards) if (!card.hidden && card.querySelector(".flip")) flip(card, showMatch);
    }, BLINK_MS);
    byId("blink").setAttribute("aria-pressed", "true");
    byId("blink").textContent = "Stop blinking";
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
    focusCard(shown[Math.min(shown.length - 1, Math.max(0, next))]);
  }

  function focusCard(card) {
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

  const readout = byId("readout");
  const highlight = (patch, on) => {
    for (const mark of all(`[data-patch="${Number(patch)}"]`)) mark.classList.toggle("lit", on);
  };
  const printOf = (event) => event.target.closest(".print[data-patch]");
  const begin = (event) => {
    const print = printOf(event);
    if (!print) return;
    highlight(print.dataset.patch, true);
    readout.textContent = print.dataset.label;
  };
  const end = (event) => printOf(event) && highlight(printOf(event).dataset.patch, false);
  for (const [kind, act] of [["pointerover", begin], ["focusin", begin], ["pointerout", end], ["focusout", end]]) {
    byId("map").parentElement.addEventListener(kind, act);
  }
  byId("map").parentElement.addEventListener("click", (event) => {
    const link = event.target.closest("a.print");
    const card = link && byId(`patch-${Number(link.dataset.patch)}`);
    if (!card) return;
    event.preventDefault();
    if (card.hidden) form.reset(); // the filters hide it
    setTimeout(() => focusCard(card));
  });

  // ---- the form

  function refresh() {
    choose();
    setView();
  }
  for (const kind of ["input", "change"]) {
    form.addEventListener(kind, (event) => {
      if (event.target.name === "sort") sort();
      refresh();
    });
  }
  form.addEventListener("reset", () => setTimeout(() => { sort(); refresh(); }));
  form.addEventListener("submit", (event) => event.preventDefault());
  byId("next").addEventListener("click", () => go(1));
  byId("previous").addEventListener("click", () => go(-1));
  byId("blink").addEventListener("click", () => (clock ? stop() : start()));
  still.addEventListener("change", () => { stop(); setView(); });
  form.reset(); // a browser keeps old choices when it goes back
  refresh();
})();
