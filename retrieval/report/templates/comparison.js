"use strict";
(() => {
  document.documentElement.classList.add("js");
  const form = document.getElementById("filters");
  const byId = (id) => document.getElementById(id);
  const section = byId("cards");
  const cards = [...section.querySelectorAll(".card")];
  const VIEWS = ["beside", "swipe", "agreement"];

  // ---- choosing and sorting

  function fits(item, data) {
    const only = data.getAll("only");
    const chosen = data.get("class") || "";
    return (
      Number(item.quality) <= Number(data.get("quality")) &&
      only.every((kind) => Number(item[kind]) > 0) &&
      (!chosen || item.classes.split("\n").includes(chosen))
    );
  }

  function update() {
    const data = new FormData(form);
    section.dataset.view = data.get("view");
    for (const card of cards) card.hidden = !fits(card.dataset, data);
    const shown = cards.filter((card) => !card.hidden).length;
    byId("count").textContent = `${shown} of ${cards.length} tiles`;
    byId("nothing").hidden = shown > 0;
    byId("quality-value").textContent = data.get("quality");
    const key = data.get("sort");
    const compare = (a, b) =>
      key === "name" ? a.dataset.name.localeCompare(b.dataset.name) : Number(a.dataset[key]) - Number(b.dataset[key]);
    section.append(...cards.sort((a, b) => compare(a, b) || a.dataset.rank - b.dataset.rank));
  }

  for (const kind of ["input", "change"]) form.addEventListener(kind, update);
  form.addEventListener("reset", () => setTimeout(update));
  form.addEventListener("submit", (event) => event.preventDefault());

  // ---- swiping

  function cut(card, percent) {
    card.querySelector(".stage").style.setProperty("--cut", `${percent}%`);
    card.querySelector(".cut").value = percent;
  }

  for (const card of cards) {
    const stage = card.querySelector(".stage");
    card.querySelector(".cut").addEventListener("input", (event) => cut(card, event.target.value));
    const drag = (event) => {
      if (section.dataset.view !== "swipe" || !(event.buttons & 1)) return;
      const box = stage.getBoundingClientRect();
      cut(card, Math.round(Math.min(100, Math.max(0, (100 * (event.clientX - box.left)) / box.width))));
    };
    stage.addEventListener("pointerdown", drag);
    stage.addEventListener("pointermove", drag);
  }

  // ---- going from tile to tile

  function go(step) {
    const shown = cards.filter((card) => !card.hidden);
    if (!shown.length) return;
    const here = shown.findIndex((card) => card.contains(document.activeElement));
    const next = here < 0 ? (step > 0 ? 0 : shown.length - 1) : Math.min(shown.length - 1, Math.max(0, here + step));
    shown[next].focus({ preventScroll: true });
    shown[next].scrollIntoView({ block: "nearest" });
  }

  byId("next").addEventListener("click", () => go(1));
  byId("previous").addEventListener("click", () => go(-1));
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("select")) return;
    const view = VIEWS[Number(event.key) - 1];
    if (view) {
      form.elements.view.value = view;
      update();
    } else if (event.key === "j" || event.key === "k") {
      go(event.key === "j" ? 1 : -1);
    }
  });
  update();
})();
