// The sheet on which boxes are drawn: by mouse or finger on the square, by keys on a box, or as numbers in the list.

const SIDE = 320; // units of the square, which is drawn at this many pixels where there is room
const LEAST = 1 / 16; // of a box's side; the model's grid has 32 places
const STEP = 1 / 32; // of an arrow key
const FINE = 256; // mouse positions are rounded to this part of the side
const DASHES = ["", "9 4", "3 4"]; // a box is told from the others by its dashes too, and by its number
const CURSORS = { nw: "nwse", se: "nwse", ne: "nesw", sw: "nesw", n: "ns", s: "ns", e: "ew", w: "ew" };
const EDGES = { x0: "left", y0: "top", x1: "right", y1: "bottom" };
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

function make(name, attributes = {}, ...children) {
  const svg = ["svg", "g", "rect", "text", "path"].includes(name);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

const percent = (value) => Math.round(100 * value);
const between = (value, low, high) => Math.min(high, Math.max(low, value));
const fine = (value) => Math.round(between(value, 0, 1) * FINE) / FINE;

function describe(box, number) {
  const sides = Object.entries(EDGES).map(([key, name]) => `${name} ${percent(box[key])}`).join(", ");
  return `box ${number + 1}: ${box.kind}, ${sides} percent`;
}

function render({ model, el }) {
  const kinds = model.get("kinds"), colors = model.get("colors"), most = model.get("most");
  let boxes = [], chosen = -1, drag = null;
  el.classList.add("ldm-boxes");
  el.setAttribute("data-lm-suppress-shortcuts", "true"); // arrows and Delete belong to the boxes, not to the notebook

  const options = () => kinds.map((kind) => make("option", { value: kind }, kind));
  const next = make("select", { "aria-label": "kind of the next box" }, ...options());
  const add = make("button", { type: "button" }, "Add a box");
  const clear = make("button", { type: "button" }, "Delete all boxes");
  const bar = make("div", { class: "ldm-bar" }, make("label", {}, "Next box: ", next), add, clear);
  const sheet = make("svg", {
    viewBox: `0 0 ${SIDE} ${SIDE}`, role: "application", class: "ldm-sheet",
    "aria-label": "square for the boxes; Tab goes to a box, arrows move it, Shift and arrows change its size, "
      + "Delete removes it, Enter goes to its row in the list",
  });
  const quarter = SIDE / 4;
  const lines = [1, 2, 3].map((k) => `M${k * quarter} 0V${SIDE}M0 ${k * quarter}H${SIDE}`).join("");
  sheet.append(make("path", { d: lines, class: "ldm-lines" }));
  const layer = make("g");
  sheet.append(layer);
  const alert = make("p", { role: "alert", class: "ldm-alert" });
  const said = make("p", { role: "status", "aria-live": "polite", class: "ldm-said" });
  const help = make("p", { class: "ldm-help" },
    "Drag on the square: a new box (with Shift also on top of another). Drag a box or its handles to change it. "
    + "By key: Tab to a box; arrows move it, Shift and arrows change its size, Delete removes it.");
  const list = make("ol", { class: "ldm-list", "aria-label": "the boxes as numbers" });
  const head = ["", "kind", ...Object.values(EDGES), "in %"].map((name) => make("span", {}, name));
  el.append(bar, sheet, alert, said, help, make("div", { class: "ldm-head", "aria-hidden": "true" }, ...head), list);

  const items = []; // one per box: its group on the sheet and its row in the list, kept while the box changes

  function commit(words = "") {
    const now = boxes.map((box) => ({ ...box }));
    model.send({ now }); // at once: saved changes may be held back, and the button would overtake them
    model.set("boxes", now);
    model.save_changes();
    alert.textContent = "";
    said.textContent = words;
    draw();
  }

  function refuse(words) {
    alert.textContent = "";
    alert.textContent = words;
    draw();
  }

  function room() {
    if (boxes.length < most) return true;
    refuse(`At most ${most} boxes fit. Delete one first.`);
    return false;
  }

  function remove(number) {
    const gone = boxes[number].kind;
    boxes.splice(number, 1);
    chosen = Math.min(number, boxes.length - 1);
    commit(`box ${number + 1}, ${gone}, is deleted`);
    (chosen >= 0 ? items[chosen].group : add).focus();
  }

  function change(number, box, words) {
    boxes[number] = box;
    commit(words ?? describe(box, number));
  }

  function moved(box, dx, dy) {
    const across = between(dx, -box.x0, 1 - box.x1), down = between(dy, -box.y0, 1 - box.y1);
    return { ...box, x0: box.x0 + across, x1: box.x1 + across, y0: box.y0 + down, y1: box.y1 + down };
  }

  function stretched(box, handle, x, y) {
    const made = { ...box };
    if (handle.includes("w")) made.x0 = between(x, 0, box.x1 - LEAST);
    if (handle.includes("e")) made.x1 = between(x, box.x0 + LEAST, 1);
    if (handle.includes("n")) made.y0 = between(y, 0, box.y1 - LEAST);
    if (handle.includes("s")) made.y1 = between(y, box.y0 + LEAST, 1);
    return made;
  }

  // ---------------------------------------------------------------- one box on the sheet and in the list

  function makeItem(number) {
    const group = make("g", { tabindex: "0", role: "group", "aria-roledescription": "box", class: "ldm-box" });
    const parts = {
      ring: make("rect", { class: "ldm-ring" }), body: make("rect", { class: "ldm-body" }),
      plate: make("rect", { class: "ldm-plate" }), label: make("text", { class: "ldm-label" }),
    };
    group.append(...Object.values(parts));
    const handles = Object.keys(CURSORS).map((name) => {
      const handle = make("rect", { class: "ldm-handle", "data-handle": name, width: 12, height: 12 });
      handle.style.cursor = `${CURSORS[name]}-resize`;
      group.append(handle);
      return handle;
    });
    group.addEventListener("focus", () => { chosen = number; draw(); });
    group.addEventListener("keydown", (event) => key(event, number));
    const kind = make("select", { "aria-label": `box ${number + 1}: kind` }, ...options());
    kind.addEventListener("change", () => change(number, { ...boxes[number], kind: kind.value }));
    const inputs = Object.entries(EDGES).map(([edge, name]) => {
      const attributes = { type: "number", min: 0, max: 100, step: 1, "aria-label": `box ${number + 1}: ${name}, percent` };
      const input = make("input", attributes);
      input.addEventListener("change", () => typed(number, edge, input));
      return input;
    });
    const drop = make("button", { type: "button", "aria-label": `delete box ${number + 1}` }, "Delete");
    drop.addEventListener("click", () => remove(number));
    const chip = make("span", { class: "ldm-chip", "aria-hidden": "true" }, String(number + 1));
    chip.style.borderColor = colors[number % colors.length];
    const row = make("li", {}, chip, kind, ...inputs, drop);
    return { group, ...parts, handles, kind, inputs, row };
  }

  function typed(number, edge, input) {
    const value = input.value.trim() === "" ? NaN : Number(input.value) / 100;
    const box = { ...boxes[number], [edge]: fine(value) };
    input.value = input.dataset.shown; // until it is accepted
    if (!(value >= 0 && value <= 1)) {
      refuse(`The ${EDGES[edge]} of box ${number + 1} must be a number from 0 to 100.`);
    } else if (box.x1 - box.x0 < LEAST || box.y1 - box.y0 < LEAST) {
      refuse(`Box ${number + 1} would be too small: it needs ${percent(LEAST)} percent between its sides.`);
    } else change(number, box);
  }

  function key(event, number) {
    const [dx, dy] = (ARROWS[event.key] ?? [0, 0]).map((each) => each * STEP);
    const box = boxes[number];
    if (dx || dy) {
      const right = dx ? box.x1 + dx : box.x1, bottom = dy ? box.y1 + dy : box.y1;
      change(number, event.shiftKey ? stretched(box, "se", right, bottom) : moved(box, dx, dy));
    } else if (event.key === "Delete" || event.key === "Backspace") remove(number);
    else if (event.key === "Enter") items[number].kind.focus();
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  function place(rect, x, y, width, height) {
    for (const [name, value] of Object.entries({ x, y, width, height })) rect.setAttribute(name, Math.max(0, value));
  }

  function drawItem(item, box, number) {
    const x = SIDE * box.x0, y = SIDE * box.y0, width = SIDE * (box.x1 - box.x0), height = SIDE * (box.y1 - box.y0);
    const color = colors[number % colors.length];
    item.group.setAttribute("aria-label", describe(box, number));
    item.group.classList.toggle("ldm-chosen", number === chosen);
    place(item.ring, x - 4, y - 4, width + 8, height + 8);
    place(item.body, x, y, width, height);
    item.body.setAttribute("stroke", color);
    item.body.setAttribute("fill", color);
    item.body.setAttribute("stroke-dasharray", DASHES[number % DASHES.length]);
    item.label.textContent = `${number + 1} ${box.kind}`;
    const wide = 9 * item.label.textContent.length + 6, left = between(x + 8, 0, SIDE - wide), top = y + 8;
    place(item.plate, left, top, wide, 20);
    item.plate.setAttribute("stroke", color);
    item.label.setAttribute("x", left + wide / 2);
    item.label.setAttribute("y", top + 15);
    for (const handle of item.handles) {
      const name = handle.dataset.handle;
      const across = name.includes("w") ? 0 : name.includes("e") ? 1 : 0.5;
      const down = name.includes("n") ? 0 : name.includes("s") ? 1 : 0.5;
      handle.setAttribute("x", between(x + across * width - 6, 0, SIDE - 12));
      handle.setAttribute("y", between(y + down * height - 6, 0, SIDE - 12));
    }
    item.kind.value = box.kind;
    Object.keys(EDGES).forEach((edge, k) => {
      const input = item.inputs[k], text = String(percent(box[edge]));
      if (input.dataset.shown !== text) input.value = input.dataset.shown = text; // what is being typed stays
    });
  }

  function draw() {
    while (items.length < boxes.length) {
      const item = makeItem(items.length);
      items.push(item);
      layer.append(item.group);
      list.append(item.row);
    }
    while (items.length > boxes.length) {
      const item = items.pop();
      item.group.remove();
      item.row.remove();
    }
    boxes.forEach((box, number) => drawItem(items[number], box, number));
    clear.disabled = !boxes.length;
  }

  // ---------------------------------------------------------------- the mouse

  function point(event) {
    const area = sheet.getBoundingClientRect();
    return [fine((event.clientX - area.left) / area.width), fine((event.clientY - area.top) / area.height)];
  }

  function follow(event) {
    if (!drag || event.pointerId !== drag.pointer) return;
    const [x, y] = point(event), { from, start, number } = drag;
    if (drag.handle) boxes[number] = stretched(start, drag.handle, x, y);
    else if (start) boxes[number] = moved(start, x - from[0], y - from[1]);
    else {
      boxes[number] = {
        kind: next.value, x0: Math.min(x, from[0]), y0: Math.min(y, from[1]), x1: Math.max(x, from[0]), y1: Math.max(y, from[1]),
      };
    }
    draw();
  }

  function drop(event) {
    if (!drag || event.pointerId !== drag.pointer) return;
    follow(event);
    const { number, start, before } = drag, box = boxes[number];
    drag = null;
    if (!start && (box.x1 - box.x0 < LEAST || box.y1 - box.y0 < LEAST)) {
      const click = box.x1 - box.x0 < LEAST / 4 && box.y1 - box.y0 < LEAST / 4;
      boxes = before;
      chosen = -1;
      if (click) draw();
      else refuse("That box is too small. Drag further.");
      return;
    }
    if (!start) items[number].group.focus();
    if (JSON.stringify(before) !== JSON.stringify(boxes)) change(number, box);
  }

  function cancel() {
    if (!drag) return;
    boxes = drag.before;
    drag = null;
    draw();
  }

  sheet.addEventListener("pointerdown", (event) => {
    if (event.button !== 0 || drag) return;
    event.preventDefault();
    const number = items.findIndex((item) => item.group.contains(event.target));
    const common = { pointer: event.pointerId, from: point(event), before: boxes.map((box) => ({ ...box })) };
    if (number >= 0 && !event.shiftKey) {
      items[number].group.focus();
      drag = { ...common, number, start: { ...boxes[number] }, handle: event.target.dataset?.handle };
    } else {
      if (!room()) return;
      const [x, y] = common.from;
      drag = { ...common, number: boxes.length };
      boxes.push({ kind: next.value, x0: x, y0: y, x1: x, y1: y });
      chosen = drag.number;
      draw();
    }
    sheet.setPointerCapture(event.pointerId);
  });
  sheet.addEventListener("pointermove", follow);
  sheet.addEventListener("pointerup", drop);
  sheet.addEventListener("pointercancel", cancel);
  el.addEventListener("keydown", (event) => { if (event.key === "Escape") cancel(); });

  add.addEventListener("click", () => {
    if (!room()) return;
    const shift = 0.1 * boxes.length;
    boxes.push({ kind: next.value, x0: 0.25 + shift, y0: 0.25 + shift, x1: 0.6 + shift, y1: 0.6 + shift });
    chosen = boxes.length - 1;
    commit(describe(boxes[chosen], chosen));
    items[chosen].group.focus();
  });
  clear.addEventListener("click", () => {
    boxes = [];
    chosen = -1;
    commit("all boxes are deleted");
    add.focus();
  });

  function read() {
    if (drag || JSON.stringify(model.get("boxes")) === JSON.stringify(boxes)) return;
    boxes = model.get("boxes").map((box) => ({ ...box }));
    chosen = Math.min(chosen, boxes.length - 1);
    draw();
  }
  model.on("change:boxes", read);
  read();
  draw();
  return () => model.off("change:boxes", read);
}

export default { render };
