// The studio's page: puts the HTML that the server sends into its place, and starts the widgets inside. A slider, a
// search or an opened list stays as it is when a part is shown anew.
"use strict";

const studio = {
  mount(element, props, trigger, watch) {
    const root = element.querySelector(".report");
    const show = () => {
      const kept = studio.keep(root);
      root.innerHTML = props.value ?? "";
      studio.start(root, trigger);
      studio.restore(root, kept);
    };
    watch("value", show);
    show();
  },

  start(root, trigger) {
    const data = JSON.parse(root.querySelector(".data")?.dataset.content ?? "{}");
    for (const film of root.querySelectorAll(".film")) startFilm(film, data[film.dataset.part].film);
    for (const wall of root.querySelectorAll("section.wall")) startWall(wall, data[wall.dataset.part].wall);
    const buttons = [...root.querySelectorAll("[data-choice]")];
    for (const button of buttons) {
      button.addEventListener("click", () => {
        for (const each of buttons) each.setAttribute("aria-pressed", String(each === button));
        trigger("select", { choice: Number(button.dataset.choice) });
      });
    }
    for (const control of root.querySelectorAll(".checkpoints")) studio.startCheckpoints(control, trigger);
  },

  startCheckpoints(control, trigger) {
    const names = JSON.parse(control.dataset.names);
    const slider = control.querySelector("input");
    slider.addEventListener("input", () => {
      const name = names[Number(slider.value)];
      control.querySelector("output").textContent = name;
      slider.setAttribute("aria-valuetext", name);
      trigger("input", { checkpoint: name });
    });
  },

  // Sliders through frames by their value, or the end if they stood there; searches, choices and open lists.
  keep(root) {
    return {
      films: [...root.querySelectorAll(".film input[type=range]")].map(({ value, max }) => (value === max ? null : value)),
      finders: [...root.querySelectorAll(".finder :is(input, select)")].map(({ value }) => value),
      open: [...root.querySelectorAll("details")].map(({ open }) => open),
    };
  },

  restore(root, { films, finders, open }) {
    const set = (field, value) => {
      if (!field || value === null || field.value === value) return;
      field.value = value;
      field.dispatchEvent(new Event("input", { bubbles: true }));
    };
    root.querySelectorAll(".film input[type=range]").forEach((field, n) => set(field, films[n] ?? null));
    root.querySelectorAll(".finder :is(input, select)").forEach((field, n) => set(field, finders[n] ?? null));
    root.querySelectorAll("details").forEach((list, n) => (list.open = open[n] ?? list.open));
  },
};
