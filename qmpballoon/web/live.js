"use strict";
// A live page: it puts in new parts for those that have changed, as the server sends
// them, and asks the server for changes. What a chart does is page.js's.
(() => {
  const find = (selector) => document.querySelector(selector);
  const findAll = (selector) => [...document.querySelectorAll(selector)];
  const connection = find("#connection");

  // New parts

  // What is the same stays, with its focus and what the other script has done to it.
  function become(old, next) {
    if (old.nodeType === Node.TEXT_NODE) {
      if (old.data !== next.data) old.data = next.data;
      return;
    }
    for (const { name } of [...old.attributes]) {
      if (!next.hasAttribute(name)) old.removeAttribute(name);
    }
    for (const { name, value } of next.attributes) {
      if (old.getAttribute(name) !== value) old.setAttribute(name, value);
    }
    const [children, others] = [[...old.childNodes], [...next.childNodes]];
    const isAlike =
      children.length === others.length &&
      children.every((child, n) => child.nodeName === others[n].nodeName);
    if (isAlike) children.forEach((child, n) => become(child, others[n]));
    else old.replaceChildren(...others);
  }

  function renew(parts) {
    for (const [id, html] of Object.entries(parts)) {
      const old = document.getElementById(id);
      const template = document.createElement("template");
      template.innerHTML = html;
      const next = template.content.firstElementChild;
      if (!next) old?.remove();
      else if (old) become(old, next);
      else if (next.localName === "tr") find("table.live tbody").append(next);
    }
    order();
    if ("charts-part" in parts) document.dispatchEvent(new Event("renewed"));
  }

  // Sorted and filtered

  let sorted = "name";
  let isDown = false;

  function compare(one, other) {
    const [a, b] = [one.dataset[sorted], other.dataset[sorted]];
    if (a === "" || b === "") return (a === "") - (b === ""); // the unknown come last
    const isText = sorted === "name" || sorted === "state";
    const order = isText ? a.localeCompare(b) : a - b;
    return isDown ? -order : order;
  }

  function order() {
    const body = find("table.live tbody");
    if (!body) return;
    const wanted = find("#filter").value.toLowerCase();
    const rows = [...body.rows];
    const inOrder = [...rows].sort(
      (a, b) => compare(a, b) || a.dataset.name.localeCompare(b.dataset.name),
    );
    if (rows.some((row, n) => row !== inOrder[n])) {
      const focused = document.activeElement;
      body.append(...inOrder);
      if (body.contains(focused)) focused.focus();
    }
    for (const row of rows) {
      const text = `${row.dataset.name} ${row.cells[1].textContent}`.toLowerCase();
      row.hidden = !text.includes(wanted);
    }
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-sort]");
    if (!button) return;
    const key = button.dataset.sort;
    // Of sizes the largest come first, of what is above the headroom the neediest.
    isDown = key === sorted ? !isDown : !["name", "state", "spare"].includes(key);
    sorted = key;
    for (const head of findAll("table.live thead th")) head.removeAttribute("aria-sort");
    const direction = isDown ? "descending" : "ascending";
    button.closest("th").setAttribute("aria-sort", direction);
    order();
  });
  find("#filter")?.addEventListener("input", order);
  if (find("#tools")) find("#tools").hidden = false;

  // The stream. The browser connects again by itself, unless it was refused: a proxy
  // whose server is being restarted refuses, too.

  let since = connection.dataset.since;

  function say(text, isLost) {
    if (connection.textContent !== text) connection.textContent = text;
    connection.classList.toggle("lost", isLost);
  }

  function connect() {
    const url = new URL(connection.dataset.events, document.baseURI);
    url.searchParams.set("since", since);
    const events = new EventSource(url);
    events.addEventListener("open", () => say("Live", false));
    events.addEventListener("parts", (event) => {
      since = event.lastEventId;
      renew(JSON.parse(event.data));
    });
    events.addEventListener("reload", () => location.reload());
    events.addEventListener("error", () => {
      say("No connection to the server: what is shown is old. Trying again.", true);
      if (events.readyState !== EventSource.CLOSED) return;
      events.close();
      setTimeout(connect, 2000);
    });
  }

  connect();

  // Changes

  const changes = find("#changes");
  if (!changes) return;
  changes.hidden = false;
  const vm = decodeURIComponent(changes.dataset.vm);
  const key = find("meta[name=change-key]").content;
  const go = find("[data-change=reclaim]");

  async function ask(what, details = {}) {
    const answer = find("#answer");
    answer.textContent = "";
    try {
      const response = await fetch(`api/${what}`, {
        method: "POST",
        headers: { "Content-Type": "application/json", "X-Change-Key": key },
        body: JSON.stringify({ vm, ...details }),
      });
      const isJson = response.headers.get("Content-Type") === "application/json";
      const said = isJson ? (await response.json()).text : await response.text();
      answer.textContent = said;
      return response.ok;
    } catch {
      answer.textContent = "The server does not answer.";
      return false;
    }
  }

  const read = (name) => find(`#${name}`).value.trim() || null;

  changes.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (event.target.dataset.form === "resize") await ask("resize", { size: read("size") });
    else go.hidden = !(await ask("plan", { amount: read("amount") }));
  });
  // Another plan is another press.
  find("#amount").addEventListener("input", () => (go.hidden = true));
  changes.addEventListener("click", async (event) => {
    const change = event.target.closest("[data-change]")?.dataset.change;
    if (!change) return;
    const hold = find("[name=hold]").checked;
    await ask(change, change === "reclaim" ? { amount: read("amount"), hold } : {});
    go.hidden = true;
  });
})();
