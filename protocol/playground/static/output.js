// What a workbench shows of answers: their figures, their content, and errors.

/** The part of a workbench that shows a panel's answers. */
function createOutput(panel) {
  const title = element("h2", { id: newId() }, panel.log ? "Conversation" : "Answer");
  // A conversation has many answers.
  const caption = panel.log && element("p", { class: "hint", hidden: true }, "Figures of the last answer");
  const figures = element("dl", { class: "numbers" });
  const content = element("div", { class: "content" });
  const output = element("section", { class: "answer", "aria-labelledby": title.id, "aria-busy": "false" },
    element("div", { class: "heading" }, title, caption, figures), content);
  const showHint = (text) => content.replaceChildren(element("p", { class: "hint" }, text));
  const showFigures = (values) => {
    figures.replaceChildren(...listFigures(values));
    if (caption) caption.hidden = !figures.hasChildNodes();
  };
  return {
    element: output,
    showHint,
    showFigures,
    show: (shown) => content.replaceChildren(...shown.filter(Boolean)),
    clear() {
      showFigures({});
      if (panel.log) content.replaceChildren(panel.log);
      else showHint("Nothing has been sent yet.");
    },
    /** Show an error instead of the content, or beside what came of a stream. */
    showError(box, isBeside) {
      // Before what came, which may be long; a log is scrolled to its end.
      if (panel.log) content.append(box);
      else if (isBeside) content.prepend(box);
      else content.replaceChildren(box);
      // A long message, which a chat puts back into its field, leaves no room.
      reveal(box);
    },
    setBusy: (isBusy) => output.setAttribute("aria-busy", String(isBusy)),
    /** Let screen readers say a text, unless the user looks at another model. */
    tell: (text) => output.isConnected && announce(text),
  };
}

/** The elements for milliseconds, tokens, and the request's id. `inputNote` says more about the input's tokens. */
function listFigures({ milliseconds, firstAfter, usage, requestId, inputNote = "" }) {
  const figures = [];
  const add = (name, value, kind) =>
    figures.push(element("div", { class: kind }, element("dt", {}, name), element("dd", {}, value)));
  if (milliseconds) add("Latency", `${milliseconds.toFixed(milliseconds < 100 ? 1 : 0)} ms`);
  if (firstAfter) add("First token", `${firstAfter.toFixed(0)} ms`);
  if (usage?.prompt_tokens !== undefined) add("Input", `${usage.prompt_tokens} tokens${inputNote}`);
  if (usage?.completion_tokens) {
    add("Output", `${usage.completion_tokens} tokens`);
    const seconds = (milliseconds - (firstAfter ?? 0)) / 1000;
    if (firstAfter && usage.completion_tokens > 1 && seconds > 0) {
      add("Speed", `${((usage.completion_tokens - 1) / seconds).toFixed(1)} tokens/s`);
    }
  }
  if (requestId) add("Request", requestId, "id");
  return figures;
}

/** The box of an error, with a button for the same request if that may succeed. */
function errorBox(error, advice, retry) {
  return element(
    "div",
    { class: "error", role: "alert" },
    element("h3", {}, error.title),
    element("p", {}, error.message),
    element("p", { class: "hint" }, advice),
    isTemporary(error) ? button("Try again", retry) : null,
  );
}

/** Scroll to an element that begins outside the window, or near its lower edge. */
function reveal(element) {
  const { top } = element.getBoundingClientRect();
  if (top < 0 || top > innerHeight - 200) element.scrollIntoView({ block: "nearest" });
}
