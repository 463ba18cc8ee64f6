"use strict";
// What the page of a report does when it opens; its parts are in widgets.js.

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

startTheme();
const data = JSON.parse(document.getElementById("data").textContent);
for (const film of document.querySelectorAll(".film")) startFilm(film, data[Number(film.dataset.part)].film);
for (const wall of document.querySelectorAll("section.wall")) startWall(wall, data[Number(wall.dataset.part)].wall);
for (const picker of document.querySelectorAll(".picker")) startPicker(picker);
for (const table of document.querySelectorAll("table:has([data-sort])")) startTable(table);
