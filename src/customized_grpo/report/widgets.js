"use strict";
// Sliders over training, selection of arms, sorting of tables and walls, for every page that shows them. Texts are set
// as text, never as markup; pictures are data URIs inside the page.

const reduced = matchMedia("(prefers-reduced-motion: reduce)");

// Moves the marker of every chart in the part to the update that the pictures show.
function mark(part, update) {
  for (const line of part.querySelectorAll(".now")) {
    const { first, last, left, right } = Object.fromEntries(
      Object.entries(line.dataset).map(([key, value]) => [key, Number(value)]),
    );
    const share = Math.min(Math.max((update - first) / (last - first || 1), 0), 1);
    const x = left + share * (right - left);
    line.setAttribute("x1", x);
    line.setAttribute("x2", x);
    line.classList.add("on");
  }
  for (const dot of part.querySelectorAll("[data-update]")) {
    dot.classList.toggle("here", Number(dot.dataset.update) === update);
  }
}

function startFilm(film, { updates, frames }) {
  const slider = film.querySelector("input");
  const output = film.querySelector("output");
  const play = film.querySelector(".play");
  const part = film.closest(".part");
  const figures = [...film.querySelectorAll("figure[data-case]")].map((figure) => ({
    image: figure.querySelector("img"),
    values: [...figure.querySelectorAll("dd")],
    at: [Number(figure.dataset.case), Number(figure.dataset.column)],
  }));
  let timer = 0;

  const show = () => {
    const stop = Number(slider.value);
    const update = updates[stop];
    output.textContent = update;
    slider.setAttribute("aria-valuetext", `${film.dataset.unit} ${update}`);
    for (const { image, values, at: [row, column] } of figures) {
      const shown = frames[stop][row][column];
      if (!shown || !image) continue;
      image.src = shown[0];
      values.forEach((value, place) => {
        const text = shown[place + 1];
        value.textContent = text;
        value.className = text.endsWith("✓") ? "right" : text.endsWith("✗") ? "wrong" : "";
      });
    }
    mark(part, update);
  };
  const pause = () => {
    clearInterval(timer);
    timer = 0;
    play.textContent = "▶";
    play.setAttribute("aria-label", "Play");
  };
  const advance = () => {
    if (Number(slider.value) >= updates.length - 1) return pause();
    slider.value = Number(slider.value) + 1;
    show();
  };
  play.addEventListener("click", () => {
    if (timer) return pause();
    if (Number(slider.value) >= updates.length - 1) slider.value = 0;
    show();
    play.textContent = "❚❚";
    play.setAttribute("aria-label", "Pause");
    timer = setInterval(advance, reduced.matches ? 2000 : 600);
  });
  slider.addEventListener("input", () => {
    pause();
    show();
  });
  film.querySelector(".control").hidden = updates.length < 2;
}

// Names next to their lines: moved as little as possible so that visible ones are a line apart and inside the chart.
// charts.py does the same in _apart.
function layOut(chart) {
  const [low, high] = [14, 216];
  const labels = [...chart.querySelectorAll("[data-at]")]
    .filter((label) => !label.closest(".off"))
    .map((label) => ({ label, at: Number(label.dataset.at) }))
    .sort((a, b) => a.at - b.at);
  const line = Math.min(14, (high - low) / Math.max(labels.length - 1, 1));
  let previous = -Infinity;
  for (const each of labels) each.at = previous = Math.max(each.at, previous + line, low);
  let limit = high + line;
  for (const each of labels.reverse()) {
    each.at = limit = Math.min(each.at, limit - line);
    each.label.setAttribute("y", each.at + 4);
    each.label.parentNode.querySelector(".leader")?.setAttribute("y2", each.at);
  }
}

function startPicker(picker) {
  const part = picker.closest(".part");
  const boxes = [...picker.querySelectorAll("input")];
  const presets = [...picker.querySelectorAll("button")];
  const output = picker.querySelector("output");

  const show = () => {
    const on = new Set(boxes.filter((box) => box.checked).map((box) => box.value));
    const names = boxes.filter((box) => box.checked).map((box) => box.parentNode.textContent.trim());
    output.textContent = names.length > 4 ? `${names.length} of ${boxes.length}` : names.join(", ") || "none";
    for (const arm of part.querySelectorAll("g.arm")) {
      arm.classList.toggle("off", !on.has(arm.dataset.arm));
      if (on.has(arm.dataset.arm)) arm.parentNode.append(arm); // drawn over the hidden ones
    }
    for (const figure of part.querySelectorAll("figure[data-arm]")) figure.hidden = !on.has(figure.dataset.arm);
    for (const cards of part.querySelectorAll(".cards")) {
      const width = cards.querySelectorAll(":scope > :first-child figure:not([hidden])").length;
      cards.className = `cards columns-${Math.min(width, 6)}`;
      cards.style.setProperty("--columns", Math.min(width, 10));
    }
    for (const chart of part.querySelectorAll("svg.chart:has(g.arm)")) layOut(chart);
    for (const preset of presets) {
      const places = preset.dataset.places.split(" ");
      preset.setAttribute("aria-pressed", places.length === on.size && places.every((place) => on.has(place)));
    }
  };
  for (const box of boxes) box.addEventListener("change", show);
  for (const preset of presets) {
    preset.addEventListener("click", () => {
      const places = preset.dataset.places.split(" ");
      for (const box of boxes) box.checked = places.includes(box.value);
      show();
    });
  }
  show();
  picker.hidden = false;
}

// A click on a column's name sorts the table: numbers from the highest first, at the second click from the lowest.
function startTable(table) {
  const heads = [...table.tHead.rows[0].cells];
  for (const head of heads.filter((each) => each.dataset.sort)) {
    const numbers = head.dataset.sort === "number";
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.ariaSort ? head.ariaSort !== "descending" : numbers;
      for (const each of heads) each.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const cell = (row) => row.cells[head.cellIndex];
      const value = (row) => (numbers ? Number(cell(row).dataset.value ?? NaN) : cell(row).textContent.trim());
      const compare = numbers ? (a, b) => a - b : (a, b) => a.localeCompare(b);
      const known = [...table.tBodies[0].rows].filter((row) => !Number.isNaN(value(row)));
      known.sort((a, b) => compare(value(a), value(b)) * (down ? -1 : 1));
      table.tBodies[0].prepend(...known);
    });
  }
}

// Sorts cards by a score or by its change, and searches them; cards without the score come last.
function startWall(wall, { scores }) {
  const finder = wall.querySelector(".finder");
  const [text, metric, column, direction] = [".text", ".metric", ".column", ".direction"].map((name) =>
    finder.querySelector(name),
  );
  const kind = finder.querySelector(".changed"); // only where there are two columns or more
  const output = finder.querySelector("output");
  const list = wall.querySelector(".cards");
  const cards = [...list.children].map((card, place) => ({ card, place, words: words(card) }));

  function words(card) {
    return `${card.querySelector(".prompt").textContent} ${card.querySelector("img")?.alt ?? ""}`.toLowerCase();
  }
  const of = (place, at) => scores[place].at(at)[metric.value] ?? NaN;
  const change = (place) => of(place, -1) - of(place, 0);
  const score = (place) => (column.value === "change" ? change(place) : of(place, Number(column.value)));
  const kinds = { better: (by) => by > 0, worse: (by) => by < 0, same: (by) => by === 0 };
  const changed = (place) => !metric.value || (kinds[kind?.value]?.(change(place)) ?? true);
  const show = () => {
    const wanted = text.value.trim().toLowerCase();
    for (const { card, place, words } of cards) card.hidden = !words.includes(wanted) || !changed(place);
    for (const label of finder.querySelectorAll(".by")) label.hidden = !metric.value;
    const value = metric.value ? ({ place }) => score(place) * Number(direction.value) : ({ place }) => place;
    const last = (number) => (Number.isNaN(number) ? Infinity : number);
    const order = [...cards].sort((a, b) => last(value(a)) - last(value(b)) || a.place - b.place);
    list.append(...order.map(({ card }) => card));
    const count = cards.filter(({ card }) => !card.hidden).length;
    output.textContent = count === cards.length ? "" : `${count} of ${cards.length}`;
  };
  finder.addEventListener("input", show);
  finder.hidden = cards.length < 2;
}
