"use strict";
// What moves on a page: the read-out at the pointer, and zoom. All charts have the same
// axis of time, in milliseconds; what is seen of it is from `seen[0]` to `seen[1]`.
// A live page is given new charts in place of the old ones, and says so by an event.
(() => {
  const find = (selector) => document.querySelector(selector);
  const findAll = (selector) => [...document.querySelectorAll(selector)];
  let samples;
  let times = [];
  let whole = [0, 1];
  let seen = whole;

  function read() {
    samples = JSON.parse(find("#samples").textContent);
    times = samples.t;
    const { x, width } = find(".plot").viewBox.baseVal;
    whole = [x, x + width];
  }

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

  const index = () => +find("#time").value;

  function show(index) {
    const time = times[index];
    const slider = find("#time");
    const words = [`${(time / 1000).toFixed(1)} s`];
    for (const key of findAll("[data-curve]")) {
      key.textContent = formatValue(key, index);
      words.push(`${nameOf(key)} ${key.textContent}`);
    }
    slider.value = index;
    slider.setAttribute("aria-valuetext", words.join(", "));
    find("#controls output").textContent = words[0];
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
    show(index());
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
    const centre = times[index()];
    const at = Math.min(Math.max(centre, seen[0]), seen[1]);
    look(at - (at - seen[0]) * factor, at + (seen[1] - at) * factor);
  }

  const zooms = { in: () => zoom(0.5), out: () => zoom(2), all: () => look(...whole) };
  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-zoom]");
    if (button) zooms[button.dataset.zoom]();
  });

  document.addEventListener("input", (event) => {
    if (event.target.id !== "time") return;
    const time = times[index()];
    const span = seen[1] - seen[0];
    if (time < seen[0] || time > seen[1]) look(time - span / 2, time + span / 2);
    else show(index());
  });

  // The pointer: it reads out where it is; with a mouse's button it chooses a span.
  let start = null;
  const timeAt = (area, event) => {
    const box = area.getBoundingClientRect();
    const share = Math.min(Math.max((event.clientX - box.left) / box.width, 0), 1);
    return seen[0] + share * (seen[1] - seen[0]);
  };
  const choose = (area, from, to) => {
    const chosen = area.querySelector(".chosen");
    chosen.setAttribute("x", place(Math.min(from, to)));
    const width = Math.abs(to - from) / (seen[1] - seen[0]);
    chosen.setAttribute("width", `${100 * width}%`);
    return width;
  };
  const pointer = {
    pointerdown(area, event) {
      if (event.pointerType === "mouse" && event.button === 0) {
        start = timeAt(area, event);
        area.setPointerCapture(event.pointerId);
      }
      show(findNearest(timeAt(area, event)));
    },
    pointermove(area, event) {
      show(findNearest(timeAt(area, event)));
      if (start !== null) choose(area, start, timeAt(area, event));
    },
    pointerup(area, event) {
      if (start === null) return;
      const end = timeAt(area, event);
      const width = choose(area, start, end);
      const [from, to] = [Math.min(start, end), Math.max(start, end)];
      start = null;
      choose(area, 0, 0);
      // A click that shook a little is no choice.
      if (width > 0.01) look(from, to);
    },
    pointercancel(area) {
      start = null;
      choose(area, 0, 0);
    },
    dblclick() {
      look(...whole);
    },
  };
  for (const [name, act] of Object.entries(pointer)) {
    document.addEventListener(name, (event) => {
      const area = event.target.closest(".marks");
      if (area) act(area, event);
    });
  }

  // New charts: who looked at the end goes on doing so, and else nothing moves.
  function renew() {
    if (!find("#samples")) return;
    const isFirst = times.length === 0;
    const isLast = isFirst || index() >= times.length - 1;
    const [time, sees] = [times[index()], seen];
    const [seesStart, seesEnd] = [seen[0] === whole[0], seen[1] === whole[1]];
    read();
    find("#time").value = isLast ? times.length - 1 : findNearest(time);
    if (isFirst || (seesStart && seesEnd)) look(...whole);
    else if (seesEnd) look(whole[1] - (sees[1] - sees[0]), whole[1]);
    else look(...sees);
    find("#controls").hidden = false;
  }

  document.addEventListener("renewed", renew);
  renew();
})();
