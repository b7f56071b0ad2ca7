// The sheet on which a hole is painted: brush and eraser by mouse or finger, or a cursor that the arrow keys move.

const SIDE = 320; // pixels of the screen
const LARGEST = 24; // diameter of the brush, in pixels of the picture
const KEPT = 100; // strokes that can be taken back
const AT_ONCE = 5_000_000; // bytes of a file that are sent as they are; a larger one is made small here first
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

function make(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

function hatching() {
  // Orange with white and black lines: seen on every colour, and by its lines where colours are not told apart.
  const tile = make("canvas", { width: 10, height: 10 }), pen = tile.getContext("2d");
  pen.fillStyle = "rgba(213, 94, 0, 0.62)";
  pen.fillRect(0, 0, 10, 10);
  for (const [shift, style] of [[0, "rgba(255, 255, 255, 0.95)"], [2, "rgba(0, 0, 0, 0.8)"]]) {
    pen.strokeStyle = style;
    pen.lineWidth = 1.5;
    pen.beginPath();
    for (const k of [-10, 0, 10]) { pen.moveTo(k + shift - 2, 12); pen.lineTo(k + shift + 12, -2); }
    pen.stroke();
  }
  return tile;
}

function render({ model, el }) {
  const side = model.get("side");
  let mask = new Uint8Array(side * side), before = [], stroke = null, picture = null;
  let cursor = [side / 2, side / 2], seen = false;
  el.classList.add("ldm-hole");
  el.setAttribute("data-lm-suppress-shortcuts", "true"); // arrows and Space belong to the brush, not to the notebook

  const tools = ["Brush", "Eraser"].map((name) => make("button", { type: "button", "aria-pressed": "false" }, name));
  const size = make("input", { type: "range", min: 1, max: LARGEST, value: 8, "aria-label": "size of the brush, in pixels" });
  const shown = make("output", {}, "8");
  const undo = make("button", { type: "button" }, "Undo");
  const clear = make("button", { type: "button" }, "Clear");
  const bar = make("div", { class: "ldm-bar" }, ...tools, make("label", {}, "Size ", size, shown), undo, clear);
  const below = make("canvas", { width: side, height: side, class: "ldm-picture", "aria-hidden": "true" });
  const above = make("canvas", {
    width: SIDE, height: SIDE, tabindex: "0", role: "application", class: "ldm-over",
    "aria-label": "picture to paint a hole on; arrows move the brush, Space paints, Shift and arrows paint on the way, "
      + "E changes to the eraser and back, plus and minus change the size",
  });
  const stage = make("div", { class: "ldm-stage" }, below, above);
  const alert = make("p", { role: "alert", class: "ldm-alert" });
  const count = make("p", { role: "status", "aria-live": "polite", class: "ldm-count" });
  const said = make("p", { role: "status", "aria-live": "polite", class: "ldm-said" });
  const help = make("p", { class: "ldm-help" },
    "Paint with the mouse what is to be drawn anew; Shift erases. By key: Tab to the picture; arrows move the brush, "
    + "Space paints, Shift and arrows paint on the way, E is the eraser, + and - change the size.");
  const file = make("input", { type: "file", accept: "image/*,.tif,.tiff,.tga,.jp2", "aria-label": "a picture file of your own" });
  const own = make("label", { class: "ldm-own" }, "Your own picture: ", file);
  el.append(bar, stage, alert, count, said, help, own);

  const pen = above.getContext("2d"), hatch = pen.createPattern(hatching(), "repeat");
  let erasing = false;

  function choose(eraser) {
    erasing = eraser;
    tools.forEach((tool, k) => tool.setAttribute("aria-pressed", String(Boolean(k) === erasing)));
    draw();
  }

  function resize(value) {
    size.value = Math.min(LARGEST, Math.max(1, value));
    shown.textContent = size.value;
    draw();
  }

  // ---------------------------------------------------------------- the hole

  function dab([x, y], value) {
    const radius = Math.max(Number(size.value) / 2, 0.5);
    for (let row = Math.max(0, Math.floor(y - radius)); row < Math.min(side, y + radius); row++) {
      for (let column = Math.max(0, Math.floor(x - radius)); column < Math.min(side, x + radius); column++) {
        const here = Math.floor(x) === column && Math.floor(y) === row; // the smallest brush still paints one pixel
        if (here || (column + 0.5 - x) ** 2 + (row + 0.5 - y) ** 2 <= radius ** 2) mask[row * side + column] = value;
      }
    }
  }

  function line(from, to, value) {
    const steps = Math.max(1, Math.ceil(2 * Math.hypot(to[0] - from[0], to[1] - from[1])));
    for (let k = 0; k <= steps; k++) dab([0, 1].map((i) => from[i] + ((to[i] - from[i]) * k) / steps), value);
  }

  const differs = (old) => mask.some((value, k) => value !== old[k]);

  function keep(old) {
    if (!differs(old)) return;
    before.push(old);
    if (before.length > KEPT) before.shift();
    send();
  }

  function send() {
    alert.textContent = "";
    model.send({ now: null }, undefined, [mask.slice().buffer]); // at once: saved changes may be held back
    model.set("mask", new DataView(mask.slice().buffer));
    model.save_changes();
    draw();
  }

  function change(what) {
    const old = mask.slice();
    what();
    keep(old);
    draw();
  }

  function draw() {
    const unit = SIDE / side;
    pen.clearRect(0, 0, SIDE, SIDE);
    pen.fillStyle = hatch;
    const edge = new Path2D();
    let holes = 0;
    const at = (row, column) => row >= 0 && column >= 0 && row < side && column < side && mask[row * side + column];
    for (let row = 0; row < side; row++) {
      for (let column = 0; column < side; column++) {
        if (!at(row, column)) continue;
        holes++;
        const x = column * unit, y = row * unit;
        pen.fillRect(x, y, unit, unit);
        const sides = [[-1, 0, x, y, x + unit, y], [1, 0, x, y + unit, x + unit, y + unit], [0, -1, x, y, x, y + unit],
          [0, 1, x + unit, y, x + unit, y + unit]];
        for (const [down, across, fromX, fromY, toX, toY] of sides) {
          if (!at(row + down, column + across)) { edge.moveTo(fromX, fromY); edge.lineTo(toX, toY); }
        }
      }
    }
    for (const [width, color] of [[3, "#000"], [1.2, "#fff"]]) {
      pen.lineWidth = width;
      pen.strokeStyle = color;
      pen.stroke(edge);
    }
    if (seen) ring(unit);
    const share = (100 * holes) / (side * side);
    const words = `Hole: ${holes} of ${side * side} pixels (${share.toFixed(share < 10 ? 1 : 0)}%).`;
    if (!stroke && count.textContent !== words) count.textContent = words;
    undo.disabled = !before.length;
    clear.disabled = !holes;
  }

  function ring(unit) {
    const [x, y] = cursor.map((each) => each * unit), radius = Math.max(3, (Number(size.value) / 2) * unit);
    for (const [width, color] of [[4, "#000"], [2, "#fff"]]) {
      pen.lineWidth = width;
      pen.strokeStyle = color;
      pen.setLineDash(erasing ? [5, 4] : []);
      pen.beginPath();
      pen.arc(x, y, radius, 0, 2 * Math.PI);
      pen.stroke();
    }
    pen.setLineDash([]);
  }

  // ---------------------------------------------------------------- mouse and keys

  function point(event) {
    const area = above.getBoundingClientRect();
    return [((event.clientX - area.left) * side) / area.width, ((event.clientY - area.top) * side) / area.height];
  }

  above.addEventListener("pointerdown", (event) => {
    if (event.button !== 0 || stroke) return;
    event.preventDefault();
    above.focus({ preventScroll: true });
    cursor = point(event);
    stroke = { pointer: event.pointerId, old: mask.slice(), value: erasing !== event.shiftKey ? 0 : 1 };
    dab(cursor, stroke.value);
    above.setPointerCapture(event.pointerId);
    draw();
  });
  above.addEventListener("pointermove", (event) => {
    const to = point(event);
    seen = true;
    if (stroke && event.pointerId === stroke.pointer) line(cursor, to, stroke.value);
    if (!stroke || event.pointerId === stroke.pointer) cursor = to;
    draw();
  });
  function finish(event) {
    if (!stroke || event.pointerId !== stroke.pointer) return;
    const { old } = stroke;
    stroke = null;
    cursor = cursor.map((each) => Math.min(side - 0.5, Math.max(0.5, each)));
    keep(old);
    draw();
  }
  function cancel() {
    if (!stroke) return;
    mask = stroke.old;
    stroke = null;
    draw();
  }
  above.addEventListener("pointerup", finish);
  above.addEventListener("pointercancel", cancel);
  above.addEventListener("pointerleave", () => { seen = document.activeElement === above; draw(); });
  above.addEventListener("focus", () => { seen = true; draw(); });
  above.addEventListener("blur", () => { seen = false; draw(); });

  above.addEventListener("keydown", (event) => {
    const arrow = ARROWS[event.key], value = erasing ? 0 : 1;
    if (arrow) {
      const step = Math.max(1, Math.floor(Number(size.value) / 4)), from = cursor.map((each) => Math.floor(each) + 0.5);
      cursor = from.map((each, k) => Math.min(side - 0.5, Math.max(0.5, each + step * arrow[k])));
      if (event.shiftKey) change(() => line(from, cursor, value));
      const [column, row] = cursor.map(Math.floor);
      said.textContent = `row ${row + 1}, column ${column + 1}, ${mask[row * side + column] ? "hole" : "picture"}`;
      seen = true;
      draw();
    } else if (event.key === " ") {
      change(() => dab(cursor, value));
      said.textContent = erasing ? "erased" : "painted";
    } else if (event.key === "e" || event.key === "E") {
      choose(!erasing);
      said.textContent = erasing ? "eraser" : "brush";
    } else if (event.key === "+" || event.key === "-") {
      resize(Number(size.value) + (event.key === "+" ? 1 : -1));
      said.textContent = `size ${size.value}`;
    } else if (event.key === "z" && (event.ctrlKey || event.metaKey)) undo.click();
    else if (event.key === "Escape") cancel();
    else return;
    event.preventDefault();
    event.stopPropagation();
  });

  tools.forEach((tool, k) => tool.addEventListener("click", () => choose(Boolean(k))));
  size.addEventListener("input", () => resize(Number(size.value)));
  clear.addEventListener("click", () => { change(() => mask.fill(0)); undo.focus(); });
  undo.addEventListener("click", () => {
    if (!before.length) return;
    mask = before.pop();
    send();
    if (undo.disabled) above.focus({ preventScroll: true });
  });

  // ---------------------------------------------------------------- pictures

  async function smaller(chosen) {
    const whole = await createImageBitmap(chosen), least = Math.min(whole.width, whole.height), wide = 4 * side;
    const canvas = make("canvas", { width: wide, height: wide }), brush = canvas.getContext("2d");
    brush.fillStyle = "#fff"; // behind transparent parts, as in the course's own reader
    brush.fillRect(0, 0, wide, wide);
    brush.imageSmoothingQuality = "high";
    brush.drawImage(whole, (whole.width - least) / 2, (whole.height - least) / 2, least, least, 0, 0, wide, wide);
    return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
  }

  file.addEventListener("change", async () => {
    const chosen = file.files[0];
    if (!chosen) return;
    alert.textContent = "";
    said.textContent = `reading ${chosen.name}`;
    try {
      const blob = chosen.size > AT_ONCE ? await smaller(chosen) : chosen;
      model.send({ name: chosen.name }, undefined, [await blob.arrayBuffer()]);
    } catch {
      alert.textContent = `${chosen.name} is too large to be sent, and the browser cannot make it smaller. `
        + "Save a smaller copy as PNG or JPEG.";
    }
    file.value = ""; // the same file can be chosen again
  });

  async function load() {
    const data = model.get("image");
    if (!data?.byteLength) return;
    picture = await createImageBitmap(new Blob([data], { type: "image/png" }));
    const brush = below.getContext("2d");
    brush.clearRect(0, 0, side, side);
    brush.drawImage(picture, 0, 0, side, side);
    before = [];
    draw();
  }

  function read() {
    const data = model.get("mask");
    if (stroke || data?.byteLength !== side * side) return;
    mask = new Uint8Array(data.buffer.slice(data.byteOffset, data.byteOffset + data.byteLength));
    draw();
  }
  model.on("change:image", load);
  model.on("change:mask", read);
  read();
  choose(false);
  load();
  return () => {
    model.off("change:image", load);
    model.off("change:mask", read);
  };
}

export default { render };
