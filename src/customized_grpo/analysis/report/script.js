"use strict";
// Theme, and the sliders over training. Texts are set as text, pictures as addresses that the page holds.

const reduced = matchMedia("(prefers-reduced-motion: reduce)");

function startTheme() {
  const root = document.documentElement;
  const button = document.getElementById("theme");
  const name = document.getElementById("theme-name");
  let dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const show = () => {
    name.textContent = dark ? "Light" : "Dark";
    button.setAttribute("aria-label", `Switch to the ${dark ? "light" : "dark"} theme`);
  };
  button.addEventListener("click", () => {
    dark = !dark;
    root.style.colorScheme = dark ? "dark" : "light";
    show();
  });
  show();
  button.hidden = false;
}

// The marker of every chart of the part goes to the update that the pictures show.
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
    slider.setAttribute("aria-valuetext", `update ${update}`);
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

startTheme();
const frames = JSON.parse(document.getElementById("frames").textContent);
for (const film of document.querySelectorAll(".film")) startFilm(film, frames[Number(film.dataset.part)]);
