"use strict";
// Shows what a candidate is, under the pointer or by the arrow keys. Without it the page lacks nothing else.
const tip = document.querySelector(".tip");
const spoken = document.querySelector(".unseen");
const REACH = 24; // pixels from the pointer to a point that still counts

for (const layer of document.querySelectorAll("section")) {
  const about = JSON.parse(layer.querySelector("script").textContent);
  const charts = [...layer.querySelectorAll("svg.course")].map((svg) => ({
    svg,
    ring: svg.querySelector(".ring"),
    marks: [...svg.querySelectorAll("[data-i]")]
      .map(({ dataset }) => ({ index: +dataset.i, x: +dataset.x, y: +dataset.y }))
      .sort((a, b) => a.index - b.index),
  }));
  let shown = null;

  const show = (index, x, y) => {
    shown = index;
    for (const { ring, marks } of charts) {
      const mark = marks.find((one) => one.index === index) ?? { x: -20, y: -20 };
      ring.setAttribute("cx", mark.x);
      ring.setAttribute("cy", mark.y);
    }
    tip.hidden = index === null;
    if (index === null) return;
    tip.textContent = about[index];
    const { width, height } = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(4, Math.min(x + 14, innerWidth - width - 8))}px`;
    tip.style.top = `${Math.max(4, y + 14 + height > innerHeight ? y - height - 14 : y + 14)}px`;
  };

  for (const { svg, marks } of charts) {
    const place = (mark) => {
      const box = svg.getBoundingClientRect();
      const scale = box.width / svg.viewBox.baseVal.width;
      return [box.left + mark.x * scale, box.top + mark.y * scale];
    };
    svg.addEventListener("pointermove", (event) => {
      let nearest = null;
      let least = REACH;
      for (const mark of marks) {
        const [x, y] = place(mark);
        const distance = Math.hypot(x - event.clientX, y - event.clientY);
        if (distance < least) [nearest, least] = [mark, distance];
      }
      show(nearest && nearest.index, event.clientX, event.clientY);
    });
    svg.addEventListener("pointerleave", () => show(null));
    svg.addEventListener("blur", () => show(null));
    svg.addEventListener("keydown", (event) => {
      if (event.key === "Escape") return show(null);
      const at = marks.findIndex((mark) => mark.index === shown);
      const last = marks.length - 1;
      const to = { ArrowRight: Math.min(at + 1, last), ArrowLeft: Math.max(at - 1, 0), Home: 0, End: last }[event.key];
      if (to === undefined || last < 0) return;
      event.preventDefault();
      show(marks[to].index, ...place(marks[to]));
      spoken.textContent = tip.textContent;
    });
  }

  for (const row of layer.querySelectorAll("tr[data-i]")) {
    row.addEventListener("pointerenter", ({ clientX, clientY }) => show(+row.dataset.i, clientX, clientY));
    row.addEventListener("pointerleave", () => show(null));
  }
}

document.querySelector("button").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});
