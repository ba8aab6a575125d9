// The workbench of a view: its fields, the answer to the last request, and the code of that request.

/**
 * A workbench of a model and a view.
 *
 * @param readKey returns the API key, empty for none.
 * @param onUnauthorized called if the server asks for another key.
 */
function createBench(model, view, readKey, onUnauthorized) {
  const lookUp = async (request) => {
    try {
      return (await call(request, { key: readKey() })).answer;
    } catch {
      return {};
    }
  };
  const panel = view.create(model, lookUp);
  const stop = button("Stop", () => running?.controller.abort(), { hidden: true });
  const clear = panel.clear && button("Start again", () => restart());
  const problem = element("p", { class: "problem", role: "alert" });
  const facts = element("dl", { class: "numbers" });
  const content = element("div", { class: "content" });
  const code = createCode(readKey);
  // The controller and the stream of the request under way, and the last request; what belongs to others is dropped.
  let running = null;
  let sent = null;

  const form = element(
    "form",
    { class: "card fields", novalidate: true },
    panel.fields,
    problem,
    element("div", { class: "actions" }, element("button", { type: "submit", class: "main" }, "Send"), stop, clear,
      element("p", { class: "hint keys" }, `${/Mac|iP/.test(navigator.platform) ? "⌘" : "Ctrl"} + Enter sends`)),
  );
  const output = element(
    "section",
    { class: "card answer", "aria-label": "Answer" },
    element("div", { class: "heading" }, element("h2", {}, "Answer"), facts),
    content,
  );

  /** The request of the fields; null, with a message, if they make none. */
  function read() {
    problem.textContent = "";
    try {
      return panel.read();
    } catch (error) {
      if (!(error instanceof FieldError)) throw error;
      problem.textContent = error.message;
      error.control.focus();
      return null;
    }
  }

  function updateCode() {
    try {
      code.show(panel.read());
    } catch (error) {
      if (!(error instanceof FieldError)) throw error;
      // The code of the last request stays until the fields make another.
      code.show(code.request);
    }
  }

  function setRunning(next) {
    running = next;
    stop.hidden = next === null;
    output.setAttribute("aria-busy", String(next !== null));
  }

  /** Give up the request under way. */
  function drop() {
    running?.controller.abort();
    running?.stream?.finish("stopped");
    setRunning(null);
  }

  function restart() {
    drop();
    panel.clear?.();
    showFacts(facts, {});
    content.replaceChildren(element("p", { class: "hint" }, "Nothing has been sent yet."));
    updateCode();
  }

  async function submit() {
    let request = read();
    if (request === null) return;
    if (running) {
      drop();
      request = panel.read();
    }
    sent = request;
    code.show(request);
    const stream = panel.start?.(request);
    const mine = { controller: new AbortController(), stream };
    setRunning(mine);
    showFacts(facts, {});
    announce("Sent.");
    if (stream) content.replaceChildren(...stream.content);
    const isCurrent = () => running === mine;
    const began = performance.now();
    let firstAfter = null;
    const onEvent = (event) => {
      if (!isCurrent()) return;
      firstAfter ??= performance.now() - began;
      stream.onEvent(event);
    };
    const key = readKey();
    try {
      const result = await call(request, { key, signal: mine.controller.signal, onEvent: stream && onEvent });
      if (!isCurrent()) return;
      const shown = stream ? { summary: stream.finish("whole") } : panel.show(result.answer, request);
      if (!stream) content.replaceChildren(...shown.content.filter(Boolean));
      const usage = stream ? stream.usage() : result.answer.usage;
      showFacts(facts, { ...result, firstAfter, usage });
      announce(`Answer after ${Math.round(result.milliseconds)} ms. ${shown.summary}`);
      if (!usage && panel.listTexts) countTokens(panel.listTexts(request.body), request, result);
    } catch (error) {
      if (isCurrent()) fail(error, stream);
    } finally {
      if (isCurrent()) setRunning(null);
    }
  }

  function fail(error, stream) {
    if (error.name === "AbortError") {
      stream?.finish("stopped");
      if (!stream) content.replaceChildren(element("p", { class: "hint" }, "You stopped it."));
      announce("Stopped.");
      return;
    }
    stream?.finish("failed");
    const isCall = error instanceof CallError;
    const shown = isCall ? error : new CallError("This page cannot show the answer.", { isAnswered: true });
    const box = showError(shown, submit);
    // First, because what has come of a stream may be long.
    if (stream) content.prepend(box);
    else content.replaceChildren(box);
    showFacts(facts, shown);
    if (shown.status === 401) onUnauthorized();
    if (!isCall) throw error;
  }

  /** Tell the tokens of texts, where the answer does not. */
  async function countTokens(texts, request, result) {
    const counted = await lookUp({ path: `tokenize?model=${encodeURIComponent(model.id)}`, body: { inputs: texts } });
    if (!Array.isArray(counted) || sent !== request || running) return;
    const tokens = counted.reduce((sum, each) => sum + each.length, 0);
    showFacts(facts, { ...result, usage: { prompt_tokens: tokens } });
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    submit();
  });
  form.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
    event.preventDefault();
    submit();
  });
  form.addEventListener("input", updateCode);
  form.addEventListener("change", updateCode);
  restart();
  return {
    element: element("div", { class: "bench" }, element("div", { class: "pair" }, form, output), code.element),
    updateCode,
    stop: () => running?.controller.abort(),
  };
}

/** Milliseconds, tokens and the request's id. */
function showFacts(list, { milliseconds, firstAfter, usage, requestId, status }) {
  const facts = [];
  const add = (name, value) => facts.push(element("div", {}, element("dt", {}, name), element("dd", {}, value)));
  if (status) add("Status", String(status));
  if (milliseconds) add("Latency", `${milliseconds.toFixed(milliseconds < 100 ? 1 : 0)} ms`);
  if (firstAfter) add("First token", `${firstAfter.toFixed(0)} ms`);
  if (usage?.prompt_tokens !== undefined) add("Input", `${usage.prompt_tokens} tokens`);
  if (usage?.completion_tokens) {
    add("Output", `${usage.completion_tokens} tokens`);
    const seconds = (milliseconds - (firstAfter ?? 0)) / 1000;
    if (firstAfter && usage.completion_tokens > 1 && seconds > 0) {
      add("Speed", `${((usage.completion_tokens - 1) / seconds).toFixed(1)} tokens/s`);
    }
  }
  if (requestId) add("Request", requestId);
  list.replaceChildren(...facts);
}

function showError(error, again) {
  const isTemporary = [0, 429, 503, 504].includes(error.status);
  return element(
    "div",
    { class: "error", role: "alert" },
    element("h3", {}, error.status ? `Error ${error.status}` : error.isAnswered ? "Unknown answer" : "No answer"),
    element("p", {}, error.message),
    element("p", { class: "hint" }, advise(error)),
    isTemporary ? button("Try again", again) : null,
  );
}

/** The code of a request in the languages of CODE_KINDS. */
function createCode(readKey) {
  let kind = CODE_KINDS[0].id;
  const code = element("code");
  const copied = element("span", { role: "status", class: "hint" });
  const made = {
    request: null,
    show(request) {
      if (request === null) return;
      made.request = request;
      copied.textContent = "";
      code.textContent = CODE_KINDS.find(({ id }) => id === kind).write(request, readKey() !== "");
    },
  };
  const choose = (id) => {
    kind = id;
    made.show(made.request);
  };
  const copy = async () => {
    copied.textContent = (await copyText(code.textContent)) ? "Copied" : "The browser does not allow it";
  };
  made.element = element(
    "section",
    { class: "card code", "aria-label": "Code of this request" },
    element(
      "div",
      { class: "heading" },
      element("h2", {}, "Code of this request"),
      segments("Language", CODE_KINDS, kind, choose),
      element("div", { class: "copy" }, copied, button("Copy", copy)),
    ),
    element("pre", { tabindex: "0", "aria-label": "Code" }, code),
  );
  return made;
}
