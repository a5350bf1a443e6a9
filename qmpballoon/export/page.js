"use strict";
// What moves on a page: the read-out at the pointer, and zoom. All charts have the same
// axis of time, in milliseconds; what is seen of it is from `seen[0]` to `seen[1]`.
(() => {
  const find = (selector) => document.querySelector(selector);
  const findAll = (selector) => [...document.querySelectorAll(selector)];
  const charts = find("#charts");
  if (!charts) return;
  const samples = JSON.parse(find("#samples").textContent);
  const times = samples.t;
  const { x, width } = find(".plot").viewBox.baseVal;
  const whole = [x, x + width];
  const slider = find("#time");
  const output = find("#controls output");
  const keys = findAll("[data-curve]");
  let seen = whole;

  // As sizes.format_size does.
  function formatSize(bytes) {
    if (bytes < 1024) return `${bytes} B`;
    let tenths = 0;
    let power = 0;
    do {
      power += 1;
      const exact = (bytes * 10) / 1024 ** power;
      tenths = Math.round(exact);
      if (exact % 1 === 0.5) tenths -= tenths % 2; // to the even one, as Python rounds
    } while (tenths >= 10240 && power < 5);
    return `${tenths / 10} ${"KMGTP"[power - 1]}iB`;
  }

  function formatValue(key, index) {
    const value = samples[key.dataset.curve][index];
    if (value === null) return "unknown";
    return formatSize(value) + (key.dataset.unit === "rate" ? "/s" : "");
  }

  function nameOf(key) {
    return key.parentNode.firstChild.textContent.trim();
  }

  function findNearest(time) {
    let [low, high] = [0, times.length - 1];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (times[middle] < time) low = middle + 1;
      else high = middle;
    }
    const isBefore = low > 0 && time - times[low - 1] < times[low] - time;
    return isBefore ? low - 1 : low;
  }

  function place(time) {
    return `${(100 * (time - seen[0])) / (seen[1] - seen[0])}%`;
  }

  // The read-out

  function show(index) {
    const time = times[index];
    const words = [`${(time / 1000).toFixed(1)} s`];
    for (const key of keys) {
      key.textContent = formatValue(key, index);
      words.push(`${nameOf(key)} ${key.textContent}`);
    }
    slider.value = index;
    slider.setAttribute("aria-valuetext", words.join(", "));
    output.textContent = words[0];
    for (const line of findAll(".cursor")) {
      line.setAttribute("visibility", "visible");
      line.setAttribute("x1", place(time));
      line.setAttribute("x2", place(time));
    }
  }

  // Zoom

  function look(from, to) {
    const span = Math.min(Math.max(to - from, 1), whole[1] - whole[0]);
    const start = Math.min(Math.max(from, whole[0]), whole[1] - span);
    seen = [start, start + span];
    for (const plot of findAll(".plot")) {
      const height = plot.viewBox.baseVal.height;
      plot.setAttribute("viewBox", `${start} 0 ${span} ${height}`);
    }
    for (const part of findAll(".marks [data-t]")) {
      const attributes = part.tagName === "line" ? ["x1", "x2"] : ["x"];
      for (const name of attributes) part.setAttribute(name, place(+part.dataset.t));
    }
    for (const axis of findAll(".times")) axis.replaceChildren(...listTimes().map(write));
    show(+slider.value);
  }

  // Round times, as panels.py chooses them.
  function listTimes() {
    const span = (seen[1] - seen[0]) / 1000;
    const [unit, name] =
      [[3600, "h"], [60, "min"]].find(([size]) => span >= 3 * size) ?? [1, "s"];
    const rough = span / unit / 5;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= rough);
    const ticks = [];
    for (let n = Math.ceil(seen[0] / 1000 / unit / step); ; n += 1) {
      if (n * step * unit * 1000 > seen[1]) return ticks;
      ticks.push([n * step * unit * 1000, `${+(n * step).toPrecision(6)} ${name}`]);
    }
  }

  function write([time, label]) {
    const text = document.createElementNS("http://www.w3.org/2000/svg", "text");
    text.setAttribute("x", place(time));
    text.textContent = label;
    return text;
  }

  function zoom(factor) {
    const centre = times[+slider.value];
    const at = Math.min(Math.max(centre, seen[0]), seen[1]);
    look(at - (at - seen[0]) * factor, at + (seen[1] - at) * factor);
  }

  const zooms = { in: () => zoom(0.5), out: () => zoom(2), all: () => look(...whole) };
  for (const button of findAll("[data-zoom]")) {
    button.addEventListener("click", zooms[button.dataset.zoom]);
  }

  slider.addEventListener("input", () => {
    const time = times[+slider.value];
    const span = seen[1] - seen[0];
    if (time < seen[0] || time > seen[1]) look(time - span / 2, time + span / 2);
    else show(+slider.value);
  });

  // The pointer: it reads out where it is; with a mouse's button it chooses a span.
  for (const area of findAll(".marks")) {
    const chosen = area.querySelector(".chosen");
    let start = null;
    const timeAt = (event) => {
      const box = area.getBoundingClientRect();
      const share = Math.min(Math.max((event.clientX - box.left) / box.width, 0), 1);
      return seen[0] + share * (seen[1] - seen[0]);
    };
    const choose = (from, to) => {
      chosen.setAttribute("x", place(Math.min(from, to)));
      const width = Math.abs(to - from) / (seen[1] - seen[0]);
      chosen.setAttribute("width", `${100 * width}%`);
      return width;
    };
    area.addEventListener("pointerdown", (event) => {
      if (event.pointerType === "mouse" && event.button === 0) {
        start = timeAt(event);
        area.setPointerCapture(event.pointerId);
      }
      show(findNearest(timeAt(event)));
    });
    area.addEventListener("pointermove", (event) => {
      show(findNearest(timeAt(event)));
      if (start !== null) choose(start, timeAt(event));
    });
    area.addEventListener("pointerup", (event) => {
      if (start === null) return;
      const end = timeAt(event);
      const width = choose(start, end);
      const [from, to] = [Math.min(start, end), Math.max(start, end)];
      start = null;
      choose(0, 0);
      // A click that shook a little is no choice.
      if (width > 0.01) look(from, to);
    });
    area.addEventListener("pointercancel", () => {
      start = null;
      choose(0, 0);
    });
    area.addEventListener("dblclick", () => look(...whole));
  }

  show(+slider.value);
  find("#controls").hidden = false;
})();
