// What ipywidgets leaves out: names and states for screen readers, alternative texts, and a word when the kernel is gone.

const GONE = "These controls have lost their kernel. Run this cell again, after the cells above it.";

function set(node, attribute, value) {
  // Only where it differs: every change calls the observer again.
  if (node && value !== undefined && node.getAttribute(attribute) !== value) node.setAttribute(attribute, value);
}

function words(node) {
  return node?.textContent?.trim() ?? "";
}

function nameSlider(slider) {
  const label = words(slider.querySelector(".widget-label"));
  const readout = slider.querySelector(".widget-readout");
  for (const handle of slider.querySelectorAll("[role=slider]")) {
    set(handle, "aria-label", label);
    if (readout) set(handle, "aria-valuetext", words(readout)); // "mean", where noUiSlider says "0"
  }
  if (readout?.isContentEditable) {
    set(readout, "role", "textbox");
    set(readout, "aria-label", `${label}, as text`);
  }
}

function namePlay(play) {
  const [start, stop, again] = play.querySelectorAll("button");
  const what = play.title || "play";
  set(start, "aria-label", start?.querySelector(".fa-pause") ? "pause" : what);
  set(stop, "aria-label", "back to the start");
  set(again, "aria-label", "over and over");
  set(again, "aria-pressed", String(again?.classList.contains("mod-active")));
}

function nameProgress(progress) {
  const bar = progress.querySelector(".progress");
  set(bar, "role", "progressbar");
  set(bar, "aria-label", words(progress.querySelector(".widget-label")) || "progress");
  set(bar, "aria-valuenow", String(parseInt(bar?.querySelector(".progress-bar")?.style.width) || 0));
}

function nameAll(root, alts) {
  root.querySelectorAll('[title="null"]').forEach((node) => node.removeAttribute("title"));
  root.querySelectorAll(".widget-slider").forEach(nameSlider);
  root.querySelectorAll(".widget-play").forEach(namePlay);
  root.querySelectorAll(".widget-progress").forEach(nameProgress);
  for (const group of root.querySelectorAll(".widget-toggle-buttons")) {
    set(group, "role", "group");
    set(group, "aria-label", words(group.querySelector(".widget-label")));
  }
  for (const button of root.querySelectorAll(".widget-toggle-button")) {
    set(button, "aria-pressed", String(button.classList.contains("mod-active")));
  }
  // Up and down belong to the control that has the focus; JupyterLab would go to the next cell.
  root.querySelectorAll("select, [role=slider]").forEach((node) => set(node, "data-lm-suppress-shortcuts", "true"));
  root.querySelectorAll("img.widget-image").forEach((image, k) => set(image, "alt", alts[k] ?? ""));
}

function outermost(node) {
  let found = node;
  for (let each = node; each; each = each.parentElement) {
    if (each.classList.contains("jupyter-widgets")) found = each;
  }
  return found;
}

function render({ model, el }) {
  el.classList.add("ldm-live");
  const message = document.createElement("p");
  message.setAttribute("role", "alert");
  message.style.margin = "0";
  el.append(message);
  let observer, timer;
  const start = () => {
    if (!el.isConnected || !el.parentElement) {
      timer = setTimeout(start, 50);
      return;
    }
    const root = outermost(el);
    const look = () => {
      nameAll(root, model.get("alts"));
      const text = root.querySelector(".jupyter-widgets-disconnected") || root.matches(".jupyter-widgets-disconnected")
        ? GONE : "";
      if (message.textContent !== text) message.textContent = text;
    };
    observer = new MutationObserver(look);
    observer.observe(root, { subtree: true, childList: true, characterData: true, attributes: true });
    model.on("change:alts", look);
    look();
  };
  start();
  return () => {
    clearTimeout(timer);
    observer?.disconnect();
  };
}

export default { render };
